"""Metrics on kernels: do two representations give the same similarities between all items?"""

from __future__ import annotations

from numpy.typing import ArrayLike
from torch import Tensor

from alignlab.metrics.inputs import check_pair, zero_if_same


def centred_gram(x: Tensor) -> Tensor:
    """The linear kernel of centred features, `[N, D]` -> `[N, N]`.

    The features are centred, not the kernel: subtracting means of products would lose digits.
    """
    centred = x - x.mean(0)
    return centred @ centred.T


def cka(X: Tensor | ArrayLike, Y: Tensor | ArrayLike) -> float:
    """Centred kernel alignment with the linear kernel and the biased HSIC: <Kc, Lc> / (|Kc| |Lc|).

    X `[N, Dx]`, Y `[N, Dy]`, numpy or torch. Range 0..1, 1 for X against itself. Chance grows with D / N: independent
    Gaussians score about 1 / sqrt((1 + N/Dx)(1 + N/Dy)), so compare with a null. Invariant to rotation, to a shift and
    to one factor for all items. Symmetric. Costs N^2 (Dx + Dy), or N Dx Dy where the features are narrow.

    Source: Kornblith et al. 2019, "Similarity of Neural Network Representations Revisited", eq. 3. Raises ValueError for
    inputs that are not `[N, D]`, differ in N, hold nan or inf; features that are the same for every item score 0 with
    a warning.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(100, 8))
    >>> round(cka(X, 3 * X + 1), 6)
    1.0
    """
    x, y = check_pair(X, Y)
    if zero_if_same(x, y):
        return 0.0
    if max(x.shape[1], y.shape[1]) < len(x):
        a, b = x - x.mean(0), y - y.mean(0)
        cross, own_x, own_y = (a.T @ b).norm() ** 2, (a.T @ a).norm(), (b.T @ b).norm()
        return float(cross / (own_x * own_y))
    k, l = centred_gram(x), centred_gram(y)
    return float((k * l).sum() / (k.norm() * l.norm()))
