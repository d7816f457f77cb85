"""Representational similarity analysis: do two representations order all pairs of items by dissimilarity alike?"""

from __future__ import annotations

import torch
from torch import Tensor

from alignlab.metrics import kernels
from alignlab.metrics.kernels import Form, centre, cosine, squared_distances
from alignlab.metrics.registry import metric

DISSIMILARITIES = ("correlation", "cosine", "euclidean")
COMPARISONS = ("spearman", "pearson", "cosine")


def dissimilarities(x: Tensor, dissimilarity: str) -> Tensor:
    """The representational dissimilarity matrix, `[N, D]` -> float64 `[N, N]`, zeros on the diagonal."""
    if dissimilarity == "euclidean":
        return squared_distances(x).sqrt_()
    rows = x.double()
    if dissimilarity == "correlation":
        rows = rows - rows.mean(1, keepdim=True)
    rows = rows / rows.norm(dim=1, keepdim=True)
    return (1 - rows @ rows.T).fill_diagonal_(0)


def ranked(values: Tensor) -> Tensor:
    """Ranks from 1, ties sharing their mean rank: `[M]` -> float64 `[M]`."""
    _, place, count = torch.unique(values, return_inverse=True, return_counts=True)
    last = count.cumsum(0).double()
    return (last - (count - 1) / 2)[place]


def rdm(x: Tensor, dissimilarity: str = "correlation", compare: str = "spearman") -> Tensor:
    """The dissimilarities of all pairs as they are compared: ranked for Spearman, centred for both correlations.

    `[N, D]` -> `[N, N]`, symmetric, zeros on the diagonal, of norm 1 (ranks are large numbers).
    """
    if dissimilarity not in DISSIMILARITIES:
        raise ValueError(f"dissimilarity must be one of {', '.join(DISSIMILARITIES)}, got {dissimilarity!r}")
    if compare not in COMPARISONS:
        raise ValueError(f"compare must be one of {', '.join(COMPARISONS)}, got {compare!r}")
    n = len(x)
    if dissimilarity == "correlation":
        check_varied(x, "a layer")
    upper = torch.triu_indices(n, n, 1, device=x.device)
    values = dissimilarities(x, dissimilarity)[upper[0], upper[1]]  # [N (N - 1) / 2]
    # rounding must make neither an order of what is tied nor a variance of what is equal
    steps = 1e12 if x.dtype == torch.float64 else 2.0**24
    largest = float(values.max()) if dissimilarity == "euclidean" else 2.0
    rounded = (values / largest * steps).round()
    if compare == "spearman":
        values = ranked(rounded)
    if compare != "cosine":
        values = centre(values) * (rounded != rounded[0]).any()  # all equal: nothing to correlate, 0 / 0
    values = values / values.norm()
    out = values.new_zeros(n, n)
    out[upper[0], upper[1]] = values
    return (out + out.T).to(x.dtype)


def check_varied(x: Tensor, name: str) -> None:
    """ValueError for an item whose features are all one number: it correlates with nothing."""
    flat = (x - x[:, :1]).abs().amax(1) <= torch.finfo(x.dtype).eps * x.abs().amax(1)
    if flat.any():
        raise ValueError(
            f"{name} has an item ({int(flat.nonzero()[0, 0])}) whose features are all one number; "
            "its correlation is undefined, use dissimilarity='euclidean'"
        )


RSA = Form(rdm, cosine)


@metric(
    formula="correlation of the dissimilarities d(x_i, x_j) and d(y_i, y_j) over all pairs i < j",
    range="-1..1",
    chance="0; for compare='cosine' far above 0, as dissimilarities are positive",
    invariant=("scale", "permutation"),
    cost="N^2 (Dx + Dy) + N^2 log N",
    source="Kriegeskorte et al. 2008, Representational similarity analysis; Klabunde et al. 2024, ReSi, RSA",
)
def rsa(X: Tensor, Y: Tensor, dissimilarity: str = "correlation", compare: str = "spearman") -> Tensor:
    """The correlation of two representational dissimilarity matrices, over the pairs of different items.

    X `[N, Dx]`, Y `[N, Dy]`. `dissimilarity` is "correlation" (1 - Pearson's correlation of two items' features; needs D
    of 2 or more), "cosine" or "euclidean"; `compare` is "spearman", "pearson" or "cosine". "correlation" and "cosine" do
    not change with the length of each item's features; "cosine" and "euclidean" are invariant to rotation, "euclidean" to
    a shift. Raises ValueError for other words, and for an item whose features are all one number under "correlation".

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(100, 8))
    >>> round(rsa(X, 3 * X), 6)
    1.0
    """
    if dissimilarity == "correlation":
        check_varied(X, "X")
        check_varied(Y, "Y")
    return kernels.compare(RSA, X, Y, dissimilarity=dissimilarity, compare=compare)
