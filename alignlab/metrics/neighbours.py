"""Metrics on neighbourhoods: do two representations put the same items next to one another?"""

from __future__ import annotations

import torch
from torch import Tensor

from alignlab.metrics.registry import metric

BLOCK = 4096  # rows of the similarity matrix that exist at once


def nearest(x: Tensor, k: int) -> Tensor:
    """The k items with the largest inner product with each item, itself left out: `[N, D]` -> int64 `[N, k]`.

    Nearest first. Computed block by block, so that no N x N matrix exists for large N.
    """
    found = []
    for start in range(0, len(x), BLOCK):
        similarity = x[start : start + BLOCK] @ x.T  # [b, N]
        rows = torch.arange(len(similarity), device=x.device)
        similarity[rows, rows + start] = -torch.inf
        found.append(similarity.topk(k, dim=1).indices)  # [b, k]
    return torch.cat(found)


@metric(
    formula="mean over items of |N_X(i) & N_Y(i)| / k",
    range="0..1",
    chance="k / (N - 1)",
    invariant=("scale", "permutation", "rotation"),
    cost="N^2 (Dx + Dy)",
    source="Huh et al. 2024, The Platonic Representation Hypothesis, appendix A",
)
def mutual_knn(X: Tensor, Y: Tensor, k: int = 10) -> Tensor:
    """The mean share of an item's k nearest neighbours that both representations agree on.

    X `[N, Dx]`, Y `[N, Dy]`, numpy or torch; neighbours by inner product, so normalise the rows first (`prepare`)
    unless lengths are meant to count. Raises ValueError for k outside [1, N-1].

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(100, 8))
    >>> mutual_knn(X, 3 * X)
    1.0
    """
    a, b = nearest(X, k), nearest(Y, k)
    shared = (a[:, :, None] == b[:, None, :]).sum()  # [N, k, k] -> count
    return shared.double() / (len(X) * k)
