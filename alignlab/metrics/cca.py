"""Metrics on canonical correlations: which directions of one representation are linear functions of the other?

Both compute in float64, because directions of small variance lose most of float32's digits; how many directions there
are is decided by the rounding of the features' own dtype.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from alignlab.metrics.kernels import centre
from alignlab.metrics.matching import unit_columns
from alignlab.metrics.procrustes import compact
from alignlab.metrics.registry import metric

SHARED = 1e-9  # a canonical correlation this close to 1 is 1 but for rounding: the direction lies in both spans


def directions(centred: Tensor, dtype: torch.dtype) -> Tensor:
    """Orthonormal directions of items, `[N, D]` -> `[N, rank]`, those of largest variance first.

    Directions below the rounding of `dtype` are left out, by the rule of numpy's matrix_rank.
    """
    u, s, _ = torch.linalg.svd(compact(centred), full_matrices=False)
    return u[:, s > s[0] * max(centred.shape) * torch.finfo(dtype).eps]


@metric(
    formula="mean of the singular values of U_X' U_Y, U the first cca_dim left singular vectors of standardised features",
    range="0..1",
    chance="about 0.85 sqrt(cca_dim / (N - 1)) for cca_dim well below N, whatever Dx and Dy from cca_dim on",
    invariant=("scale", "shift", "permutation"),
    cost="N D min(N, D)",
    source="Huh et al. 2024, The Platonic Representation Hypothesis, code; Raghu et al. 2017, SVCCA",
)
def svcca(X: Tensor, Y: Tensor, cca_dim: int = 10) -> Tensor:
    """The mean canonical correlation of both representations' first principal components.

    X `[N, Dx]`, Y `[N, Dy]`. Features are standardised, each to a variance of 1, as the Platonic Representation Hypothesis
    code has it: so their units do not matter, but rotating them first does change the score. How much variance a component
    has does not count. Where a representation has fewer than cca_dim directions, all of them are taken and the mean is over
    the fewer correlations, min(rank X, rank Y): with both below cca_dim it is plain CCA, which no invertible linear map
    changes.

    Deterministic, unlike the reference, whose `svd_lowrank` draws random vectors. Both agree to 1e-3 where the first
    cca_dim components have clearly more variance than the rest; where they have not, the reference finds others on each
    call, its scores scatter and tend to lie lower, and X scores less than 1 with itself. Here the directions are those of
    the exact SVD, and the correlations its closed form instead of scikit-learn's iteration on the same directions. The
    reference's 1e-8 beside the standard deviation is left out, so that the scale of small features does not matter.

    Raises ValueError for cca_dim outside [1, N-1].

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(100, 20))
    >>> round(svcca(X, 3 * X[:, ::-1] + 1), 6)
    1.0
    """
    return correlation(components(X, cca_dim), components(Y, cca_dim))


def components(x: Tensor, cca_dim: int = 10) -> Tensor:
    """The first directions of standardised features, `[N, D]` -> `[N, min(cca_dim, rank)]`."""
    n = len(x)
    if isinstance(cca_dim, bool) or not isinstance(cca_dim, int | np.integer) or not 1 <= cca_dim <= n - 1:
        raise ValueError(f"cca_dim must be an int in [1, N-1], got {cca_dim} with N={n}")
    return directions(unit_columns(x), x.dtype)[:, :cca_dim]


def correlation(u: Tensor, v: Tensor) -> Tensor:
    """The mean canonical correlation of two sets of directions."""
    return torch.linalg.svdvals(u.T @ v).clamp(max=1).mean()


@metric(
    formula="sum_i a_i r_i / sum_i a_i, r_i canonical correlations, a_i = sum_j |<h_i, x_j>|, h_i canonical variates of X",
    range="0..1",
    chance="0.85 to 1 times sqrt(max(Dx, Dy) / (N - 1)) for independent Gaussians; 1 for every pair once Dx or Dy >= N - 1",
    invariant=("scale", "shift", "permutation"),
    cost="N D min(N, D)",
    source="Morcos et al. 2018, Insights on Representational Similarity in Neural Networks with Canonical Correlation",
    symmetric=False,
)
def pwcca(X: Tensor, Y: Tensor) -> Tensor:
    """The mean of the canonical correlations, each weighted by how much of X's features its direction accounts for.

    X `[N, Dx]`, Y `[N, Dy]`. There are min(rank X, rank Y) correlations; x_j is a centred feature of X. The weights are
    X's: pwcca(X, Y) is not pwcca(Y, X), any invertible linear map of Y changes nothing, a rotation of X does. Directions
    below the rounding of the features' dtype are left out. It says nothing once Dx or Dy >= N - 1, and little for Dx + Dy
    not well below N. This is the paper's definition; the authors' code, which ReSi has too, does not whiten the directions
    that weigh, leaves the features uncentred there, and takes those of the narrower representation.

    The directions of correlation 1, of which there are some whenever Dx + Dy > N - 1, may be any basis of what both span,
    and the weights depend on which. Taken are the principal axes of X within it.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(100, 8))
    >>> round(pwcca(X, X @ np.triu(np.ones((8, 8))) + 1), 6)
    1.0
    """
    x = centre(X.double())
    u, v = directions(x, X.dtype), directions(centre(Y.double()), Y.dtype)
    rotation, correlation, _ = torch.linalg.svd(u.T @ v, full_matrices=False)
    loadings = (u @ rotation).T @ x  # [c, Dx]: of each feature of X on each canonical variate
    loadings = principal_where(loadings, correlation > 1 - SHARED)
    weights = loadings.abs().sum(1)
    return (weights @ correlation / weights.sum()).clamp(max=1)


def principal_where(loadings: Tensor, tied: Tensor) -> Tensor:
    """Loadings `[c, D]` with the first rows, those tied `[c]`, turned from an arbitrary basis to its principal axes."""
    some = loadings[tied]
    axes = torch.linalg.eigh(some @ some.T).eigenvectors
    return torch.cat([axes.T @ some, loadings[~tied]])
