"""Metrics on linear prediction: how much of one representation's variance is a linear function of the other's features?"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from alignlab.metrics.inputs import is_same
from alignlab.metrics.kernels import RESI, centre
from alignlab.metrics.registry import metric

KORNBLITH = "Kornblith et al. 2019, Similarity of Neural Network Representations Revisited, section 4"


@metric(
    formula="1 - sum |y_i - prediction_i|^2 / sum |y_i - training mean|^2, over held-out items of all folds",
    range="-inf..1",
    chance="below 0: about -Dx / (n - Dx - 1) for Dx below n = N (1 - 1/folds), -n / (Dx - n - 1) above; ridge dampens it",
    invariant=("scale", "shift", "permutation", "rotation"),
    cost="folds (N D min(N, D) + min(N, D)^3) for D = Dx, and N min(N, Dx) Dy",
    source=f"{KORNBLITH}, linear regression; with a ridge and cross-validation here",
    symmetric=False,
    self_maximal=False,
)
def linear_regression(X: Tensor, Y: Tensor, ridge: float = 1e-2, folds: int = 5) -> Tensor:
    """Cross-validated R2 of predicting Y's features from X's by ridge regression.

    X `[N, Dx]`, Y `[N, Dy]`. Item i is held out in fold i % folds, whatever the features are; where neighbouring items are
    alike (frames, captions of one image) shuffle them first. Means are those of the training items, and all of Y's
    variance counts alike, so that directions of large variance rule.

    `ridge` is in units of the mean eigenvalue of the training items' covariance of X (`[Dx, Dx]`, all Dx eigenvalues), so
    that the scale of X does not matter; 0 is least squares, of minimum norm where there are many solutions. X predicts
    itself with R2 of about 1 - ridge / 4 or more for Dx well below N; for Dx above N, X's held-out items have parts that
    no training item has, and 1 is out of reach. Other features in which Y's directions have more variance may predict X
    better than X does. It says how well Y can be read from X, not the other way round. `linear_fit` is the in-sample R2.

    Raises ValueError for a ridge that is negative or not finite, and for folds outside [2, N].

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(100, 8))
    >>> round(linear_regression(X, 3 * X[:, :2] + 1), 3)
    1.0
    """
    n = len(X)
    if isinstance(folds, bool) or not isinstance(folds, int | np.integer) or not 2 <= folds <= n:
        raise ValueError(f"folds must be an int in [2, N], got {folds} with N={n}")
    if not 0 <= ridge < math.inf:
        raise ValueError(f"ridge must be a finite number >= 0, got {ridge}")
    x, y = centre(X.double()), centre(Y.double())
    fold = torch.arange(n, device=X.device) % folds
    # one Gram matrix serves all folds where it is the smaller one
    gram = x @ x.T if x.shape[1] > n else None
    least = _rounding(X)
    left = total = x.new_zeros(())
    for part in range(folds):
        train, test = (fold != part).nonzero()[:, 0], (fold == part).nonzero()[:, 0]
        target, truth = centre(y[train]), y[test] - y[train].mean(0)
        total = total + truth.square().sum()
        if is_same(X[train]):  # only rounding is left of these features
            left = left + truth.square().sum()
        elif gram is None:
            features, new = centre(x[train]), x[test] - x[train].mean(0)
            covariance = features.T @ features
            weights = solve(covariance, features.T @ target, ridge * covariance.trace() / x.shape[1], least)
            left = left + (truth - new @ weights).square().sum()
        else:
            kernel, cross = _about_training_mean(gram[train][:, train], gram[test][:, train])
            weights = solve(kernel, target, ridge * kernel.trace() / x.shape[1], least)
            left = left + (truth - cross @ weights).square().sum()
    return 1 - left / total


def _rounding(x: Tensor) -> float:
    """Eigenvalues of `x' x` or `x x'` below this share of the largest are rounding: of x, or of the float64 product."""
    n = max(x.shape)
    return max((n * torch.finfo(x.dtype).eps) ** 2, n * torch.finfo(torch.float64).eps)


def _about_training_mean(kernel: Tensor, cross: Tensor) -> tuple[Tensor, Tensor]:
    """Inner products with the training items' mean taken off: `[n, n]` of training items, `[m, n]` of others with them."""
    rows = kernel.mean(0)
    return kernel - rows - rows[:, None] + rows.mean(), cross - cross.mean(1, keepdim=True) - rows + rows.mean()


def solve(a: Tensor, b: Tensor, penalty: Tensor, least: float) -> Tensor:
    """(a + penalty)^-1 b for symmetric a without negative eigenvalues; the pseudoinverse where `a` has no inverse.

    `least` is the share of the largest eigenvalue below which an eigenvalue counts as 0.
    """
    if penalty > least * a.trace():
        shifted = a + penalty * torch.eye(len(a), dtype=a.dtype, device=a.device)
        return torch.cholesky_solve(b, torch.linalg.cholesky(shifted))
    values, vectors = torch.linalg.eigh(a)
    kept = values > least * values[-1]
    vectors = vectors[:, kept]
    return vectors @ (vectors.T @ b / (values[kept] + penalty)[:, None])


@metric(
    formula="|U' X|^2 / |X|^2 of centred X, U an orthonormal basis of what the centred Y's columns span",
    range="0..1",
    chance="min(Dy, N - 1) / (N - 1)",
    invariant=("scale", "shift", "permutation", "rotation"),
    cost="N Dy min(N, Dy) + N Dx min(N, Dy)",
    source=f"{KORNBLITH}; {RESI}, linear regression",
    symmetric=False,
)
def linear_fit(X: Tensor, Y: Tensor) -> Tensor:
    """In-sample R2 of predicting X's features from Y's, by least squares on all items.

    X `[N, Dx]`, Y `[N, Dy]`. X is what is predicted, as ReSi's LinearRegression has it, the reverse of
    `linear_regression`; on Y's side any invertible linear map changes nothing. It is 1 for every X once Dy >= N - 1 (and Y
    of full rank), and says something only for Dy well below N: `linear_regression` is the measure otherwise. ReSi inverts a
    matrix of Y that has no inverse there; here directions of Y below the rounding of its dtype are left out.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(100, 8))
    >>> round(linear_fit(X, X @ np.triu(np.ones((8, 8)))), 6)
    1.0
    """
    return share_within(targets(X), predictable(Y))


def targets(x: Tensor) -> Tensor:
    """Centred features of norm 1, in float64."""
    centred = centre(x.double())
    return centred / centred.norm()


def predictable(y: Tensor) -> Tensor:
    """An orthonormal basis of what is linear in the features, `[N, D]` -> `[N, rank]`."""
    z = centre(y.double())
    if z.shape[1] > len(z):  # an N x N matrix of the same span and singular values: its SVD is several times faster
        z = torch.linalg.qr(z.T, mode="r").R.T
    u, s, _ = torch.linalg.svd(z, full_matrices=False)
    return u[:, s > s[0] * max(y.shape) * torch.finfo(y.dtype).eps]


def share_within(x: Tensor, basis: Tensor) -> Tensor:
    """The share of x's squares that lies within the basis."""
    return (basis.T @ x).square().sum()
