"""Metrics on kernels: do two representations give the same similarities between all items?

Each of these metrics turns a representation into a symmetric matrix M of items by items and compares the two matrices
through their inner product only. A `Form` says how: what M is, whether it is the product of something narrow with
itself (then no N x N matrix is needed for narrow features), and how <Mx, My>, <Mx, Mx> and <My, My> become a score. The
engine behind `align` works on the same forms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from alignlab.metrics.inputs import Rows, blocks, check_pair
from alignlab.metrics.preparation import Prepared
from alignlab.metrics.registry import metric

RESI = "Klabunde et al. 2024, ReSi: A Comprehensive Benchmark for Representational Similarity Measures"


@dataclass(frozen=True)
class Form:
    """How a metric compares matrices of items by items.

    `matrix(x, **options)` is `[N, D]` -> `[N, N]`; `factor(x, **options)` -> `[N, r]` with matrix = factor factor', if
    there is one; `combine(xy, xx, yy)` turns inner products (elementwise, any shape) into scores. `hollow` says that
    the diagonals are left out as the unbiased estimator of HSIC does; `proportional` that `combine` is linear in xy;
    `linear` that the matrix is the centred linear kernel. `scoring` names the options that go to `combine`.
    """

    matrix: Callable[..., Tensor]
    combine: Callable[..., Tensor]
    factor: Callable[..., Tensor] | None = None
    hollow: bool = False
    proportional: bool = True
    linear: bool = False
    scoring: tuple[str, ...] = ()

    def bound(self, options: dict[str, Any]) -> tuple[Form, dict[str, Any]]:
        """The form with its scoring options filled in, and the options that are left for matrix and factor."""
        chosen = {name: value for name, value in options.items() if name in self.scoring}
        rest = {name: value for name, value in options.items() if name not in chosen}
        return replace(self, combine=partial(self.combine, **chosen), scoring=()) if chosen else self, rest


def cosine(xy: Tensor, xx: Tensor, yy: Tensor) -> Tensor:
    return xy / (xx * yy).sqrt()


def share(xy: Tensor, xx: Tensor, yy: Tensor) -> Tensor:
    """1 - |Mx - My|^2 / (|Mx|^2 + |My|^2): 1 for equal matrices, 0 where one is zero or they have nothing in common."""
    return 2 * xy / (xx + yy)


def compare(form: Form, X: Tensor, Y: Tensor, **options: Any) -> Tensor:
    """The score of a form."""
    form, rest = form.bound(options)
    return form.combine(*products(form, X, Y, **rest))


def products(form: Form, X: Tensor, Y: Tensor, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """<Mx, My>, <Mx, Mx> and <My, My> in float64, through factors where they are narrower than N."""
    if form.factor is not None:
        a, b = form.factor(X, **options), form.factor(Y, **options)
        if max(a.shape[1], b.shape[1]) < len(X):
            inner = [(u.T @ v).double().square().sum() for u, v in ((a, b), (a, a), (b, b))]
            diagonals = [z.double().square().sum(1) for z in (a, b)]
        else:
            k, l = a @ a.T, b @ b.T
            inner, diagonals = [_inner(u, v) for u, v in ((k, l), (k, k), (l, l))], [_diagonal(k), _diagonal(l)]
    else:
        k, l = form.matrix(X, **options), form.matrix(Y, **options)
        inner, diagonals = [_inner(u, v) for u, v in ((k, l), (k, k), (l, l))], [_diagonal(k), _diagonal(l)]
    if form.hollow:
        x, y = diagonals
        pairs = ((x, y), (x, x), (y, y))
        inner = [unbiased(xy, p @ q, p.sum() * q.sum(), len(X)) for xy, (p, q) in zip(inner, pairs, strict=True)]
    return inner[0], inner[1], inner[2]


def _inner(k: Tensor, l: Tensor) -> Tensor:
    return (k * l).sum(dtype=torch.float64)


def _diagonal(k: Tensor) -> Tensor:
    return k.diagonal().double()


def unbiased(product: Tensor, diagonals: Tensor, traces: Tensor, n: int) -> Tensor:
    """The unbiased HSIC (Song et al. 2012, eq. 5) from what centred kernels K, L give.

    `product` <K, L>, `diagonals` the sum of K_ii L_ii, `traces` tr K tr L. Without their diagonals the kernels' rows sum
    to -K_ii and -L_ii, so nothing else is needed.
    """
    hollow = product - diagonals * (1 + 2 / (n - 2)) + traces / ((n - 1) * (n - 2))
    return hollow / (n * (n - 3))


def centre(x: Tensor) -> Tensor:
    return x - x.mean(0)


def centred_gram(x: Tensor) -> Tensor:
    """The linear kernel of centred features, `[N, D]` -> `[N, N]`.

    The features are centred, not the kernel: subtracting means of products would lose digits.
    """
    centred = centre(x)
    return centred @ centred.T


CKA = Form(centred_gram, cosine, centre, linear=True)


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

    X `[N, Dx]`, Y `[N, Dy]`, numpy or torch. Global: it is ruled by the directions of largest variance, and by outliers.
    Compare it with a null, or take `unbiased_cka`: wide features score high for free.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(100, 8))
    >>> round(cka(X, 3 * X + 1), 6)
    1.0
    """
    return compare(CKA, X, Y)


EPS = 1e-6  # in the denominators of the Platonic Representation Hypothesis code


def unit_centre(x: Tensor) -> Tensor:
    """Centred features; rows much shorter than 1 are scaled up first, so that `EPS` does not swamp them."""
    return centre(x) / _scale(x)


def _scale(x: Rows) -> float:
    """The root mean square length of rows, 1 at most."""
    squares = sum(float(rows.square().sum(dtype=torch.float64)) for rows in blocks(x))
    return min(1.0, (squares / len(x)) ** 0.5)


def _unit_gram(x: Tensor) -> Tensor:
    z = unit_centre(x)
    return z @ z.T


def _unbiased_cosine(xy: Tensor, xx: Tensor, yy: Tensor, eps: float = EPS) -> Tensor:
    return xy / ((xx * yy).sqrt() + eps)


UNBIASED_CKA = Form(_unit_gram, _unbiased_cosine, unit_centre, hollow=True, linear=True, scoring=("eps",))


@metric(
    formula="HSIC(K, L) / (sqrt(HSIC(K, K) HSIC(L, L)) + eps) with the unbiased HSIC",
    range="about -1..1",
    chance="0",
    invariant=("shift", "permutation", "rotation", "scale"),
    cost="N^2 (Dx + Dy), or N Dx Dy where the features are narrow",
    source="Song et al. 2012, eq. 5; Huh et al. 2024, The Platonic Representation Hypothesis, code",
)
def unbiased_cka(X: Tensor, Y: Tensor, eps: float = EPS) -> Tensor:
    """CKA with the unbiased estimator of HSIC: unrelated features score 0 on average, however wide they are.

    X `[N, Dx]`, Y `[N, Dy]`. May be negative; not clamped. `eps` is the reference's, for the same numbers. For rows of length
    1 that point all ways it takes about 1e-6 D off; where all items share a direction it takes more, and where they
    are nearly alike most of the score: `align` notes what it takes, and eps=0 leaves it out. It shrinks with rows
    shorter than 1, so that scale does not matter. N of 4 is the least; small N is noisy. Raises ValueError where the
    estimate of a variance is negative.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(100, 8))
    >>> round(unbiased_cka(X, 3 * X + 1), 4)
    1.0
    """
    return compare(UNBIASED_CKA, X, Y, eps=eps)


def squared_distances(x: Tensor) -> Tensor:
    """Squared Euclidean distances `[N, N]` in float64: differences of large numbers, where float32 loses neighbours."""
    z = centre(x.double())
    lengths = z.square().sum(1)
    d = lengths[:, None] + lengths - 2 * (z @ z.T)
    return d.clamp_(min=0).fill_diagonal_(0)


def double_centre(k: Tensor) -> Tensor:
    """H K H for a symmetric matrix."""
    rows = k.mean(0)
    return k - rows - rows[:, None] + rows.mean()


def gaussian_gram(x: Tensor, sigma: float = 1.0) -> Tensor:
    """Centred Gaussian kernel `[N, N]`; the bandwidth is sigma times the median distance of two items."""
    if not sigma > 0:
        raise ValueError(f"sigma must be above 0, got {sigma}")
    d = squared_distances(x)
    upper = torch.triu_indices(len(x), len(x), 1, device=x.device)
    between = d[upper[0], upper[1]].sqrt()
    median = (between.median() - (-between).median()) / 2  # torch's is the lower of the middle two
    return double_centre((-d / (2 * (sigma * median) ** 2)).exp()).to(x.dtype)


RBF_CKA = Form(gaussian_gram, cosine)


@metric(
    formula="CKA with k(x, x') = exp(-|x - x'|^2 / (2 (sigma m)^2)), m the median distance",
    range="0..1",
    chance="grows with D / N, as that of CKA",
    invariant=("scale", "shift", "permutation", "rotation"),
    cost="N^2 (Dx + Dy)",
    source="Kornblith et al. 2019, Similarity of Neural Network Representations Revisited, section 3",
)
def rbf_cka(X: Tensor, Y: Tensor, sigma: float = 1.0) -> Tensor:
    """Centred kernel alignment with Gaussian kernels: a small sigma counts near items only, a large one nears CKA.

    X `[N, Dx]`, Y `[N, Dy]`. Raises ValueError for sigma not above 0, and where more than half of all pairs of items are
    equal (their median distance is 0).

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(100, 8))
    >>> round(rbf_cka(X, 3 * X + 1), 6)
    1.0
    """
    return compare(RBF_CKA, X, Y, sigma=sigma)


def distances(x: Tensor) -> Tensor:
    return squared_distances(x).sqrt_().to(x.dtype)


def centred_distances(x: Tensor) -> Tensor:
    return double_centre(squared_distances(x).sqrt_()).to(x.dtype)


DISTANCE_CORRELATION = Form(
    centred_distances, lambda xy, xx, yy: cosine(xy, xx, yy).clamp(min=0).sqrt(), proportional=False
)


@metric(
    formula="sqrt(<A, B> / (|A| |B|)), A and B the doubly centred Euclidean distances",
    range="0..1",
    chance="grows with D / N and nears 1 for D far above N",
    invariant=("scale", "shift", "permutation", "rotation"),
    cost="N^2 (Dx + Dy)",
    source=f"Szekely et al. 2007, eq. 2.8; {RESI}, distance correlation",
)
def distance_correlation(X: Tensor, Y: Tensor) -> Tensor:
    """The correlation of distances: 0 in the limit of many items only for independent representations.

    X `[N, Dx]`, Y `[N, Dy]`. The biased (V-statistic) estimate, as ReSi has it: compare it with a null.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(100, 8))
    >>> round(distance_correlation(X, 3 * X + 1), 6)
    1.0
    """
    return compare(DISTANCE_CORRELATION, X, Y)


RSM_DIFFERENCE = Form(distances, share)


@metric(
    formula="1 - |S - S'|^2 / (|S|^2 + |S'|^2), S and S' the Euclidean distances of the items",
    range="0..1",
    chance="near 1 for features of one size: distances are positive; compare with a null",
    invariant=("shift", "permutation", "rotation"),
    cost="N^2 (Dx + Dy)",
    source=f"{RESI}, RSM norm difference; Shahbazi et al. 2021",
)
def rsm_difference(X: Tensor, Y: Tensor, distance: bool = False) -> Tensor:
    """How little two matrices of distances between items differ, sizes included.

    X `[N, Dx]`, Y `[N, Dy]`. `distance=True` gives the Frobenius norm of S - S' (smaller is more alike); ReSi's paper
    defines that, its code takes the spectral norm of the same matrix.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(100, 8))
    >>> rsm_difference(X, X), rsm_difference(X, X, distance=True)
    (1.0, 0.0)
    """
    xy, xx, yy = products(RSM_DIFFERENCE, X, Y)
    return (xx + yy - 2 * xy).clamp(min=0).sqrt() if distance else share(xy, xx, yy)


def column_space(x: Tensor) -> Tensor:
    """An orthonormal basis of what the features' columns span, `[N, D]` -> `[N, rank]`."""
    wide = x.double()
    if wide.shape[1] > len(wide):  # x = (Q R)' has the left singular vectors of R', which is N x N
        wide = torch.linalg.qr(wide.T).R.T
    u, s, _ = torch.linalg.svd(wide, full_matrices=False)
    # float32 features are noise below their own rounding, whatever the SVD ran in
    rank = int((s > s[0] * max(x.shape) * torch.finfo(x.dtype).eps).sum())
    return u[:, :rank].to(x.dtype)


def projector(x: Tensor) -> Tensor:
    u = column_space(x)
    return u @ u.T


EIGENSPACE_OVERLAP = Form(projector, lambda xy, xx, yy: xy / torch.maximum(xx, yy), column_space)


@metric(
    formula="|U' V|^2 / max(rank X, rank Y), U and V orthonormal bases of the columns' spans",
    range="0..1",
    chance="min(rank X, rank Y) / N; 1 once both ranks are N",
    invariant=("scale", "permutation", "rotation", "linear"),
    cost="N D min(N, D)",
    source=f"{RESI}, eigenspace overlap score; May et al. 2019, definition 2",
)
def eigenspace_overlap(X: Tensor, Y: Tensor) -> Tensor:
    """How much of the span of one representation's features the other's covers, all directions alike.

    X `[N, Dx]`, Y `[N, Dy]`, not centred. Says something only where D is well below N. Directions below the rounding of
    the features' dtype are not counted; ReSi divides by max(Dx, Dy), which is the same for full rank.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(100, 8))
    >>> round(eigenspace_overlap(X, X @ np.triu(np.ones((8, 8)))), 6)
    1.0
    """
    return compare(EIGENSPACE_OVERLAP, X, Y)


def ridge_factor(x: Tensor, ridge: float = 1e-2) -> Tensor:
    """Z `[N, min(N, D)]` with Z Z' = X (S + ridge)^-1 X' / N, for centred features of mean squared length 1."""
    if not ridge >= 0:
        raise ValueError(f"ridge must be 0 or more, got {ridge}")
    n = len(x)
    z = centre(x.double())
    z = z / z.norm()
    # eigenvectors of the smaller of covariance and Gram matrix give the same singular values
    values, vectors = torch.linalg.eigh(z.T @ z if z.shape[1] < n else z @ z.T)
    least = torch.finfo(x.dtype).eps * max(x.shape) * values[-1]
    kept = values > least
    values, vectors = values[kept], vectors[:, kept]
    basis = z @ vectors / values.sqrt() if z.shape[1] < n else vectors
    return (basis * (values / (values + ridge)).sqrt()).to(x.dtype)


def ridge_hat(x: Tensor, ridge: float = 1e-2) -> Tensor:
    z = ridge_factor(x, ridge)
    return z @ z.T


GULP = Form(ridge_hat, share, ridge_factor)


@metric(
    formula="2 tr AB / (tr A^2 + tr B^2), A = X (S_X + ridge)^-1 X' / N of features centred, of mean squared length 1",
    range="0..1",
    chance="grows with D / N; 1 for ridge = 0 once D >= N - 1",
    invariant=("scale", "shift", "permutation", "rotation"),
    cost="N D min(N, D)",
    source=f"Boix-Adsera et al. 2022, GULP, definition 1; {RESI}, GULP",
)
def gulp(X: Tensor, Y: Tensor, ridge: float = 1e-2, distance: bool = False) -> Tensor:
    """How alike ridge regressions from both representations predict, over all targets.

    X `[N, Dx]`, Y `[N, Dy]`. `distance=True` gives tr A^2 + tr B^2 - 2 tr AB (smaller is more alike), the squared GULP
    distance that ReSi reports; ReSi's ridge is 0, which cannot tell features apart once D >= N - 1. Raises ValueError
    for a negative ridge.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(100, 8))
    >>> round(gulp(X, 3 * X + 1), 6)
    1.0
    """
    xy, xx, yy = products(GULP, X, Y, ridge=ridge)
    return (xx + yy - 2 * xy).clamp(min=0) if distance else share(xy, xx, yy)


def minibatch_cka(
    X: Tensor | ArrayLike, Y: Tensor | ArrayLike, batch: int = 512, eps: float = EPS, seed: int = 0
) -> float:
    """Unbiased CKA of many items, estimated batch by batch in memory that does not grow with N.

    X `[N, Dx]`, Y `[N, Dy]`, numpy or torch. The items are dealt at random (by `seed`) to batches of equal size, `batch` or
    a little less; HSIC is averaged over them and only then divided, so that it estimates what `unbiased_cka` of all
    items does (Nguyen, Raghu and Kornblith 2021, "Do Wide and Deep Networks Learn the Same Things?", eq. 3). Costs N
    batch (Dx + Dy). Raises ValueError for a batch below 8.

    >>> X = torch.randn(1000, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    >>> minibatch_cka(X, X, batch=100) > 0.999
    True
    """
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 8:
        raise ValueError(f"batch must be an int of 8 or more, got {batch}")
    return batched_cka(*check_pair(X, Y), batch=batch, eps=eps, seed=seed)


def batched_cka(x: Tensor | Prepared, y: Tensor | Prepared, batch: int = 512, eps: float = EPS, seed: int = 0) -> float:
    """`minibatch_cka` without checks, of features that may lie on disk."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).to(x.device)
    scales = [_scale(z) for z in (x, y)]  # as in unbiased_cka, one for all batches
    total = torch.zeros(3, dtype=torch.float64, device=x.device)
    batches = order.tensor_split(-(-len(x) // batch))
    for items in batches:
        k, l = (centred_gram(z[items] / scale) for z, scale in zip((x, y), scales, strict=True))
        for i, (p, q) in enumerate(((k, l), (k, k), (l, l))):
            u, v = _diagonal(p), _diagonal(q)
            total[i] += unbiased(_inner(p, q), u @ v, u.sum() * v.sum(), len(items))
    xy, xx, yy = total / len(batches)
    return float(_unbiased_cosine(xy, xx, yy, eps))
