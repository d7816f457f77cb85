"""Metrics on one number of each representation: how long, how aligned and how spread out are its items?

They compare summaries, not items: two representations with nothing in common can score 1, and which item of one belongs
to which of the other does not matter.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from alignlab.metrics.kernels import RESI, squared_distances
from alignlab.metrics.registry import metric

WANG = "Wang et al. 2022, Towards Understanding the Instability of Network Embedding"


def mean_item(x: Tensor) -> Tensor:
    """The mean of the items, `[N, D]` -> float64 `[D]`; zeros where only rounding is left of it, as in centred features."""
    rows = x.double()
    mean = rows.mean(0)
    noise = 10 * torch.finfo(x.dtype).eps * rows.square().sum(1).mean().sqrt()
    return mean if mean.norm() > noise else torch.zeros_like(mean)


@metric(
    formula="min(a, b) / max(a, b), a = |mean of x_i|, b = |mean of y_i|; 1 where both are 0",
    range="0..1",
    chance="about sqrt(min(Dx, Dy) / max(Dx, Dy)) for Gaussians of mean 0 and variance 1",
    invariant=("permutation", "rotation"),
    cost="N (Dx + Dy)",
    source=f"{RESI}, magnitude difference; {WANG}",
    paired=False,
)
def magnitude(X: Tensor, Y: Tensor, distance: bool = False) -> Tensor:
    """How alike the lengths of the two mean items are.

    X `[N, Dx]`, Y `[N, Dy]`. The score is the ratio of the two lengths; `distance=True` gives their absolute difference,
    ReSi's MagnitudeDifference (smaller is more alike). It tells whether both representations are as far from the origin,
    nothing about the items. A mean that is 0 but for rounding counts as 0: two centred representations score 1.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(100, 8))
    >>> round(magnitude(X, 2 * X), 6), magnitude(X, X, distance=True)
    (0.5, 0.0)
    """
    a, b = mean_item(X).norm(), mean_item(Y).norm()
    if distance:
        return (a - b).abs()
    larger = torch.maximum(a, b)
    return torch.minimum(a, b) / larger if larger > 0 else torch.ones_like(larger)


def mean_cosine(x: Tensor) -> Tensor:
    """The mean cosine of an item and the mean item; 0 where the mean is."""
    mean = mean_item(x)
    rows = x.double()
    cosines = rows @ mean / rows.norm(dim=1)
    return (cosines / mean.norm()).mean() if mean.any() else mean.new_zeros(())


@metric(
    formula="1 - |a - b| / 2, a = mean cosine of x_i and the mean of X, b the same of Y",
    range="0..1",
    chance="near 1: a and b are about 1 / sqrt(N) for Gaussians of mean 0",
    invariant=("scale", "permutation", "rotation"),
    cost="N (Dx + Dy)",
    source=f"{RESI}, concentricity difference; {WANG}",
    paired=False,
)
def concentricity(X: Tensor, Y: Tensor, distance: bool = False) -> Tensor:
    """How alike the two representations' items are gathered around the direction of their mean.

    X `[N, Dx]`, Y `[N, Dy]`. A representation's concentricity is in -1..1: 1 where all items point one way (the anisotropy
    of language models), near 0 for centred features. `distance=True` gives |a - b|, in 0..2, ReSi's
    ConcentricityDifference (smaller is more alike). It says nothing about which items are close to one another. A mean that
    is 0 but for rounding gives a concentricity of 0.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(100, 8))
    >>> concentricity(X, 3 * X) > concentricity(X, X + 5)
    True
    """
    difference = (mean_cosine(X) - mean_cosine(Y)).abs()
    return difference if distance else 1 - difference / 2


def log_mean_potential(x: Tensor, t: float) -> Tensor:
    """log of the mean over all pairs, i = j among them, of exp(-t |x_i - x_j|^2): in -log N..0."""
    return (-t * squared_distances(x)).exp().mean().log()


@metric(
    formula="exp(-|u - v|), u = log of the mean over all pairs i, j of exp(-t |x_i - x_j|^2), v the same of Y",
    range="0..1",
    chance="near 1: u and v are both about log(1/N + e^-2t) for rows of length 1 in many dimensions",
    invariant=("shift", "permutation", "rotation"),
    cost="N^2 (Dx + Dy)",
    source=f"{RESI}, uniformity difference; Wang and Isola 2020, Alignment and Uniformity on the Hypersphere, section 4.1.2",
    paired=False,
)
def uniformity(X: Tensor, Y: Tensor, t: float = 2.0, distance: bool = False) -> Tensor:
    """How alike the two representations' items are spread out, by the mean of a Gaussian potential of their distances.

    X `[N, Dx]`, Y `[N, Dy]`. Meant for rows of length 1 (`prepare`): where items are many times 1 / sqrt(t) apart, only the
    pairs i = j are left, u is -log N, and any two such representations score 1. The score is the ratio of the two means of
    the potential, the smaller over the larger, 1/N at least; `distance=True` gives |u - v|, ReSi's UniformityDifference for
    t = 2 (smaller is more alike). Raises ValueError for t not above 0.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(100, 8))
    >>> X /= np.linalg.norm(X, axis=1, keepdims=True)
    >>> round(uniformity(X, X[::-1] + 1), 6), uniformity(X, 0.5 * X) < 0.2
    (1.0, True)
    """
    if not 0 < t < math.inf:
        raise ValueError(f"t must be a finite number above 0, got {t}")
    difference = (log_mean_potential(X, t) - log_mean_potential(Y, t)).abs()
    return difference if distance else (-difference).exp()
