"""Metrics on aligned features: how close do two representations come when one is rotated, or its features reordered?

All compute in float64: where representations are nearly equal, their distance is the square root of a small difference
of large numbers. The narrower representation counts as padded with features that are 0; nothing is padded for it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from alignlab.metrics.kernels import RESI, centre
from alignlab.metrics.matching import matched
from alignlab.metrics.registry import metric

WILLIAMS = "Williams et al. 2021, Generalized Shape Metrics on Neural Representations"


def compact(x: Tensor) -> Tensor:
    """Features no more than items with the same inner products between items, `[N, D]` -> `[N, min(N, D)]`.

    Wide features can be rotated so that all but N of them are 0, which leaves what is invariant to rotation as it is.
    """
    n, d = x.shape
    return torch.linalg.qr(x.T, mode="r").R.T if d > n else x


def wide(x: Tensor) -> Tensor:
    """Features in float64, no more than items."""
    return compact(x.double())


def shape(x: Tensor) -> Tensor:
    """The same of centred features."""
    return compact(centre(x.double()))


def unit_shape(x: Tensor) -> Tensor:
    """The same, of norm 1."""
    centred = shape(x)
    return centred / centred.norm()


def nuclear(x: Tensor, y: Tensor) -> Tensor:
    """The largest inner product <x Q, y> over all rotations Q of compact x and y: the nuclear norm of x' y."""
    return torch.linalg.svdvals(x.T @ y).sum()


def shape_cosine(x: Tensor, y: Tensor) -> Tensor:
    """The largest cosine between two unit shapes, one of them rotated, each taken as one vector."""
    return nuclear(x, y).clamp(max=1)


def right_angles(cosine: Tensor) -> Tensor:
    """1 - the angle as a share of a right angle."""
    return 1 - cosine.arccos() * (2 / math.pi)


def squares_apart(x: Tensor, y: Tensor, inner: Tensor, distance: bool) -> Tensor:
    """The distance of x and y of which the inner product is given, or 1 - its square / (|x|^2 + |y|^2)."""
    sizes = x.square().sum() + y.square().sum()
    squared = (sizes - 2 * inner).clamp(min=0)
    return squared.sqrt() if distance else 1 - squared / sizes


@metric(
    formula="|Xc' Yc|_* / (|Xc| |Yc|), |.|_* the sum of singular values; distance sqrt(2 - 2 score)",
    range="0..1",
    chance="about 1 / sqrt(1 + N / min(Dx, Dy)) for independent Gaussians (to 0.1); nears 1 for Dx and Dy far above N",
    invariant=("scale", "shift", "permutation", "rotation"),
    cost="N Dx Dy + D^3, D = min(Dx, Dy); N^2 D for the features wider than N",
    source=f"Ding et al. 2021, Grounding Representation Similarity with Statistical Testing; {RESI}, orthogonal Procrustes",
)
def procrustes(X: Tensor, Y: Tensor, distance: bool = False) -> Tensor:
    """How well one representation can be rotated onto the other, both centred and of norm 1.

    X `[N, Dx]`, Y `[N, Dy]`. The score is the cosine between the two after the best rotation: 1 for the same shape, 0 for
    no linear relation. `distance=True` gives their Euclidean distance sqrt(2 - 2 score), 0..sqrt 2, smaller for more
    alike: ReSi's OrthogonalProcrustesCenteredAndNormalized. (Others report its square, 2 - 2 score, or scipy's disparity,
    1 - score^2.) Directions of large variance rule, though less than in `cka`. Compare it with a null: wide features
    score high for free.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(100, 8))
    >>> round(procrustes(X, 3 * X[:, ::-1] + 1), 6)
    1.0
    """
    score = shape_cosine(unit_shape(X), unit_shape(Y))
    return (2 - 2 * score).sqrt() if distance else score


@metric(
    formula="1 - 2/pi arccos(|Xc' Yc|_* / (|Xc| |Yc|)); distance: the arccos",
    range="0..1",
    chance="2/pi arcsin of `procrustes`, about 0.64 of it where that is small",
    invariant=("scale", "shift", "permutation", "rotation"),
    cost="N Dx Dy + D^3, D = min(Dx, Dy); N^2 D for the features wider than N",
    source=f"{WILLIAMS}, angular distance; {RESI}, orthogonal angular shape metric",
)
def angular_shape(X: Tensor, Y: Tensor, distance: bool = False) -> Tensor:
    """The angle between two representations, centred and one rotated onto the other, as a share of a right angle.

    X `[N, Dx]`, Y `[N, Dy]`. The score is 1 - angle / 90 degrees. `distance=True` gives the angle in radians, 0..pi/2,
    smaller for more alike: a metric in the mathematical sense, with the triangle inequality. It orders all pairs as
    `procrustes` does, and separates those better that are nearly alike.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(100, 8))
    >>> round(angular_shape(X, 3 * X[:, ::-1] + 1), 6)
    1.0
    """
    cosine = shape_cosine(unit_shape(X), unit_shape(Y))
    return cosine.arccos() if distance else right_angles(cosine)


@metric(
    formula="2 |Xc' Yc|_* / (|Xc|^2 + |Yc|^2) = 1 - d^2 / (|Xc|^2 + |Yc|^2), d the distance",
    range="0..1",
    chance="`procrustes` times 2 |Xc| |Yc| / (|Xc|^2 + |Yc|^2)",
    invariant=("shift", "permutation", "rotation"),
    cost="N Dx Dy + D^3, D = min(Dx, Dy); N^2 D for the features wider than N",
    source=f"{WILLIAMS}; {RESI}, Procrustes size-and-shape distance",
)
def size_and_shape(X: Tensor, Y: Tensor, distance: bool = False) -> Tensor:
    """How well one representation can be rotated onto the other, both centred, with their sizes left as they are.

    X `[N, Dx]`, Y `[N, Dy]`. The score is 1 minus the squared distance as a share of the squares of both: 1 for equal
    shapes of equal size, and close to 0 for sizes far apart, however alike the shapes. `distance=True` gives
    min over rotations Q of |Xc Q - Yc|, 0..inf, smaller for more alike. Only features in one unit can be compared so, say
    two checkpoints of one model; otherwise take `procrustes`.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(100, 8))
    >>> round(size_and_shape(X, X[:, ::-1] + 1), 6), round(size_and_shape(X, 3 * X), 6)
    (1.0, 0.6)
    """
    x, y = shape(X), shape(Y)
    return squares_apart(x, y, nuclear(x, y), distance)


@metric(
    formula="2 <X P, Y> / (|X|^2 + |Y|^2) = 1 - d^2 / (|X|^2 + |Y|^2), P the best matching of features, d the distance",
    range="-1..1",
    chance="2 D / (Dx + Dy), D = min(Dx, Dy), times 0.6 to 0.9 sqrt(2 ln max(Dx, Dy) / N) for independent standard Gaussians",
    invariant=("permutation",),
    cost="N Dx Dy + min(Dx, Dy)^2 max(Dx, Dy)",
    source=f"{WILLIAMS}; {RESI}, permutation Procrustes",
)
def permutation_procrustes(X: Tensor, Y: Tensor, distance: bool = False) -> Tensor:
    """How close two representations come when the features of one are reordered, neither centred nor rescaled.

    X `[N, Dx]`, Y `[N, Dy]`. The score is 1 minus the squared distance as a share of the squares of both: 1 for equal up
    to the order of features, 0 for orthogonal or of sizes far apart. `distance=True` gives min over permutations P of
    |X P - Y|, 0..inf, smaller for more alike; features without a partner count with their whole length. It tells whether
    the axes themselves agree, which `size_and_shape` ignores. Features of one sign score high for their means alone:
    centre them before, if means are not meant to count.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(100, 8))
    >>> round(permutation_procrustes(X, X[:, ::-1]), 6)
    1.0
    """
    x, y = X.double(), Y.double()
    return squares_apart(x, y, matched(x.T @ y).sum(), distance)


@metric(
    formula="mean over items of cos(x_i Q, y_i), Q the rotation that brings X closest to Y",
    range="-1..1",
    chance="near `procrustes` for features without a mean, far above it where all features share a direction",
    invariant=("scale", "permutation", "rotation"),
    cost="N Dx Dy + Dx Dy D, D = min(Dx, Dy); N^2 D for the features wider than N",
    source=f"{RESI}, aligned cosine similarity; Hamilton et al. 2016",
)
def aligned_cosine(X: Tensor, Y: Tensor) -> Tensor:
    """The mean cosine between an item's two features after one representation was rotated onto the other.

    X `[N, Dx]`, Y `[N, Dy]`, not centred. Items count alike in the mean, though long rows decide about the rotation. It
    tells whether the directions from the origin agree: features of a large common mean score near 1 for that alone.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(100, 8))
    >>> round(aligned_cosine(X, 3 * X[:, ::-1]), 6)
    1.0
    """
    return aligned(wide(X), wide(Y))


def aligned(x: Tensor, y: Tensor) -> Tensor:
    """The mean cosine between the rows of compact x, rotated onto y, and those of y."""
    u, _, vh = torch.linalg.svd(x.T @ y, full_matrices=False)
    inner = (x @ u * (y @ vh.T)).sum(1)  # [N]: Q = u vh, and it keeps lengths
    return (inner / (x.norm(dim=1) * y.norm(dim=1))).mean()
