"""Metrics on kernels: do two representations give the same similarities between all items?"""

from __future__ import annotations

from torch import Tensor

from alignlab.metrics.registry import metric


def centred_gram(x: Tensor) -> Tensor:
    """The linear kernel of centred features, `[N, D]` -> `[N, N]`.

    The features are centred, not the kernel: subtracting means of products would lose digits.
    """
    centred = x - x.mean(0)
    return centred @ centred.T


@metric(
    formula="<Kc, Lc> / (|Kc| |Lc|), Kc = H X X' H, H the centring matrix",
    range="0..1",
    chance="grows with D / N: about 1 / sqrt((1 + N/Dx)(1 + N/Dy)) for independent Gaussians",
    invariant=("scale", "shift", "permutation", "rotation"),
    cost="N^2 (Dx + Dy), or N Dx Dy where the features are narrow",
    source="Kornblith et al. 2019, Similarity of Neural Network Representations Revisited, eq. 3",
)
def cka(X: Tensor, Y: Tensor) -> Tensor:
    """Centred kernel alignment with the linear kernel and the biased HSIC.

    X `[N, Dx]`, Y `[N, Dy]`, numpy or torch. Compare it with a null: wide features score high for free.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(100, 8))
    >>> round(cka(X, 3 * X + 1), 6)
    1.0
    """
    if max(X.shape[1], Y.shape[1]) < len(X):
        a, b = X - X.mean(0), Y - Y.mean(0)
        return (a.T @ b).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm())
    k, l = centred_gram(X), centred_gram(Y)
    return (k * l).sum() / (k.norm() * l.norm())
