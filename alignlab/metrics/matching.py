"""Metrics on single features: does each feature of one representation have a counterpart among the other's?"""

from __future__ import annotations

import torch
from torch import Tensor

from alignlab.metrics.kernels import RESI, centre
from alignlab.metrics.registry import metric

LI = "Li et al. 2016, Convergent Learning: Do Different Neural Networks Learn the Same Representations?"


def unit_columns(x: Tensor) -> Tensor:
    """Each feature centred and of length 1, in float64, `[N, D]` -> `[N, D]`; zeros where it never changes."""
    wide = x.double()
    centred = centre(wide)
    length = centred.norm(dim=0)
    # not length > 0: the mean of a constant is rounded, and what is left would be blown up to length 1
    changes = length > torch.finfo(x.dtype).eps * wide.norm(dim=0)
    return centred * (changes / length.where(changes, 1.0))


def correlations(X: Tensor, Y: Tensor) -> Tensor:
    """Pearson's correlation of each feature with each, `[N, Dx]`, `[N, Dy]` -> float64 `[Dx, Dy]`; 0 with a constant."""
    return (unit_columns(X).T @ unit_columns(Y)).clamp(-1, 1)


def matched(values: Tensor) -> Tensor:
    """The values of the one-to-one matching with the largest sum, `[Dx, Dy]` -> `[min(Dx, Dy)]`."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(values.detach().cpu().numpy(), maximize=True)
    return values[torch.from_numpy(rows).to(values.device), torch.from_numpy(columns).to(values.device)]


@metric(
    formula="max over one-to-one matchings of mean corr(x_a, y_b) over the min(Dx, Dy) matched features a, b",
    range="-1..1",
    chance="0.6 to 0.9 times sqrt(2 ln max(Dx, Dy) / N) for independent Gaussians and 10 features or more",
    invariant=("scale", "shift", "permutation"),
    cost="N Dx Dy + min(Dx, Dy)^2 max(Dx, Dy)",
    source=f"{LI}, bipartite matching; {RESI}, hard correlation match",
)
def hard_correlation_match(X: Tensor, Y: Tensor) -> Tensor:
    """The mean correlation of features matched one to one, in the matching that makes it largest.

    X `[N, Dx]`, Y `[N, Dy]`; features that the wider one has in excess stay without a partner and do not count, so that X
    scores 1 with any part of itself. It tells whether single features mean the same, which no metric that is invariant
    to rotation can; the same information in other axes scores like chance. A feature that never changes correlates 0
    with everything: with such features X scores less than 1 with itself.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(100, 8))
    >>> round(hard_correlation_match(X, 3 * X[:, ::-1] + 1), 6)
    1.0
    """
    return matched(correlations(X, Y)).mean()


@metric(
    formula="(mean over a of max over b of corr(x_a, y_b) + mean over b of max over a of corr(x_a, y_b)) / 2",
    range="-1..1",
    chance="0.6 to 0.9 times sqrt(2 ln max(Dx, Dy) / N) for independent Gaussians and 10 features or more",
    invariant=("scale", "shift", "permutation"),
    cost="N Dx Dy",
    source=f"{LI}, semi-matching; {RESI}, soft correlation match",
)
def soft_correlation_match(X: Tensor, Y: Tensor) -> Tensor:
    """The mean correlation of each feature with the one of the other representation that it correlates with most.

    X `[N, Dx]`, Y `[N, Dy]`. As `hard_correlation_match`, but a feature may be the partner of many, so that repeated
    features cost nothing; the mean of both directions. A feature that never changes correlates 0 with everything.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(100, 8))
    >>> round(soft_correlation_match(X, np.concatenate([X, 2 * X], axis=1)), 6)
    1.0
    """
    table = correlations(X, Y)
    return (table.amax(0).mean() + table.amax(1).mean()) / 2
