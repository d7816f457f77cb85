"""The permutation distribution of CKA without permutations: exact mean, variance and skewness, and a p-value from them.

A shuffled pairing turns a centred kernel K `[N, N]` into its rows and columns in another order, K^pi, and a score
<K, L> into W = <K^pi, L>. Every centred symmetric matrix is the sum of three parts that keep apart under any
permutation (they are the irreducible representations of the symmetric group in it):

    K = c H + H diag(d) H + M

c = tr K / (N - 1) times the centring matrix, which no permutation moves; what K's diagonal still says, with sum(d) = 0;
and M with a diagonal of zeros and rows that sum to zero. So W has three terms, the first of which is its mean, and its
central moments are raw moments of the other two: nothing of the size of the mean has to cancel, however wide the
features and large the N. With e and M' those of L and f = (N - 2) / N, W - E W = f sum_i d_pi(i) e_i + <M^pi, M'>.

Moments of either come from sums over distinct indices, and thanks to the zero sums these are multiples of a few
numbers a kernel: `KernelMoments`. Kazi-Aoual et al. 1995 have the same moments as polynomials in traces and sums of K
itself; those are differences of large terms, and in float64 no digit of the skewness is left once D is a hundred N.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from alignlab.metrics.inputs import check_pair, is_same
from alignlab.metrics.kernels import CKA, centre, compare
from alignlab.metrics.registry import check_rows

LEAST = 6  # items; the third moment is a sum over six distinct ones
ENTRIES = 2**20  # of the rows of a kernel that are looked at together, 8 MiB


@dataclass(frozen=True)
class KernelMoments:
    """What the moments of a shuffled score depend on in a centred kernel of norm 1: float64 `[]`, or `[L]` for L kernels.

    With the parts c, d and M of the kernel (see the module): `trace` (N - 1) c, `d2` sum d_i^2, `d3` sum d_i^3,
    `m2` |M|^2, `triangles` tr M^3, `cubes` sum M_ij^3, `form` d' M d, `mixed` sum_ij d_i M_ij^2.
    """

    trace: Tensor
    d2: Tensor
    d3: Tensor
    m2: Tensor
    triangles: Tensor
    cubes: Tensor
    form: Tensor
    mixed: Tensor

    @classmethod
    def stack(cls, several: Sequence[KernelMoments]) -> KernelMoments:
        """Those of single kernels as those of L kernels."""
        return cls(**{f.name: torch.stack([getattr(m, f.name) for m in several]) for f in fields(cls)})


@dataclass(frozen=True)
class PermutationTest:
    """A score, the mean, standard deviation and skewness of it over all shuffled pairings, and what follows from them."""

    score: float
    mean: float
    std: float
    skewness: float
    z: float
    p: float


def cka_test(X: Tensor | ArrayLike, Y: Tensor | ArrayLike) -> PermutationTest:
    """CKA with its exact chance level and a p-value, as if from very many shuffled pairings but without any.

    X `[N, Dx]`, Y `[N, Dy]`, numpy or torch. `mean`, `std` and `skewness` are those over all N! pairings, exact; `p` is the
    chance of a score as high or higher under the Pearson type III (shifted gamma) distribution that has these three
    moments. Costs N^2 (Dx + Dy) in float64, in blocks, so that no N x N matrix is kept for features narrower than N.

    p is close to that of very many shuffles for features without outliers, whatever D, and N of some tens (the tests hold
    it to 20,000 shuffles at N = 60). It is rough for smaller N, where the true distribution has steps; far out in the tail
    (beyond the end of a bounded distribution p is 0); and far off where few items hold most of the variance, as the score
    then depends on where these land and little else. Shuffle then. Where no permutation changes the score (all items
    equally far from each other) z is 0 and p is 1. The p of one pair of layers is not that of the best of many.

    Raises ValueError for what `cka` refuses, for features that are the same for every item, and for N below 6.

    Source: Kazi-Aoual, Hitier, Sabatier and Lebreton 1995, Refined approximations to permutation tests for multivariate
    inference; Josse, Pages and Husson 2008, Testing the significance of the RV coefficient.

    >>> rng = np.random.default_rng(0)
    >>> X, Y = rng.normal(size=(50, 400)), rng.normal(size=(50, 400))
    >>> unrelated, related = cka_test(X, Y), cka_test(X, X + 4 * Y)
    >>> round(unrelated.score, 2), round(unrelated.mean, 2), unrelated.p > 0.05
    (0.89, 0.89, True)
    >>> related.p < 0.001
    True
    """
    x, y = check_pair(X, Y)
    for name, t in (("X", x), ("Y", y)):
        if is_same(t):
            raise ValueError(f"{name} is the same for every item: it has no permutation distribution")
        check_rows(t, name)
    check_least(len(x), "X")
    score = compare(CKA, x.double(), y.double())
    moments = permutation_moments(feature_moments(x), feature_moments(y), len(x))
    mean, std, skewness = (float(m) for m in moments)
    z = (float(score) - mean) / std if std > 0 else 0.0
    return PermutationTest(float(score), mean, std, skewness, z, float(pearson3_p(float(score), mean, std, skewness)))


def check_least(n: int, name: str) -> None:
    if n < LEAST:
        raise ValueError(f"{name} must have {LEAST} items or more for the skewness of shuffled scores, got {n}")


def kernel_moments(gram: Tensor) -> KernelMoments:
    """The invariants of a centred symmetric matrix `[N, N]` (rows sum to 0, not all zero), of any scale.

    Costs one product N^3 in the matrix's own dtype; all sums are in float64. It need not be a linear kernel: what
    `rbf_cka` compares is one too.
    """
    unit = gram / gram.norm()
    diagonal = unit.diagonal().double()
    c, d = _diagonal_part(diagonal)
    # M itself but for terms that its rows, being orthogonal to ones, do not see
    inner = unit.clone()
    inner.diagonal().copy_(-(c + 2 * d) / len(d))

    def triangles(m: Tensor) -> Tensor:
        return (m * (m.to(inner.dtype) @ inner)).sum()

    return _collect(diagonal, lambda rows: unit[rows].double(), triangles, gram.dtype)


def feature_moments(features: Tensor) -> KernelMoments:
    """The invariants of the linear kernel of features `[N, D]`, centred here, without an N x N matrix: N^2 D in float64."""
    z = centre(features.double())
    z = z / z.norm()
    diagonal = z.square().sum(1)
    c, d = _diagonal_part(diagonal)

    def triangles(m: Tensor) -> Tensor:
        # tr M^3 = tr M^2 (Z Z' - c H - H diag(d) H), and H M = M
        return (m @ z).square().sum() - (m.square() @ (c + d)).sum()

    return _collect(diagonal, lambda rows: z[rows] @ z.T, triangles, features.dtype)


def _diagonal_part(diagonal: Tensor) -> tuple[Tensor, Tensor]:
    """c and d of a kernel, from its diagonal: H diag(d) H has the diagonal d (N - 2) / N where sum(d) = 0."""
    n = len(diagonal)
    c = diagonal.sum() / (n - 1)
    return c, (diagonal - diagonal.mean()) * n / (n - 2)


def _collect(
    diagonal: Tensor, rows_of: Callable[[slice], Tensor], triangles_of: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> KernelMoments:
    """Sums over M, some rows `[b, N]` at a time.

    `rows_of` gives those rows of K in float64, `triangles_of` their share in tr M^3. `dtype` is what the input came in.
    """
    n = len(diagonal)
    check_least(n, "the kernel")
    c, d = _diagonal_part(diagonal)
    sums = torch.zeros(5, dtype=torch.float64, device=d.device)
    step = max(1, ENTRIES // n)
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        m = rows_of(rows) + (c + d[rows, None] + d) / n
        m.diagonal(start).zero_()
        squares = m.square()
        sums += torch.stack(
            (squares.sum(), triangles_of(m), (squares * m).sum(), d[rows] @ (m @ d), d[rows] @ squares.sum(1))
        )
    m2, triangles, cubes, form, mixed = sums.cpu()
    c, d2, d3 = c.cpu(), d.square().sum().cpu(), d.pow(3).sum().cpu()
    moved = d2 * (n - 2) / n + m2
    norm = (c * c * (n - 1) + moved).sqrt()
    # rounding of a kernel that permutations leave as it is would make a distribution out of nothing
    if moved.sqrt() <= 4 * torch.finfo(dtype).eps * math.sqrt(n) * norm:
        d2, d3, m2, triangles, cubes, form, mixed = torch.zeros(7, dtype=torch.float64)
    return KernelMoments(
        trace=c * (n - 1) / norm,
        d2=d2 / norm**2,
        d3=d3 / norm**3,
        m2=m2 / norm**2,
        triangles=triangles / norm**3,
        cubes=cubes / norm**3,
        form=form / norm**3,
        mixed=mixed / norm**3,
    )


def permutation_moments(k: KernelMoments, l: KernelMoments, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, standard deviation and skewness of CKA over all pairings of n items, each `[L_x, L_y]` (`[]` for two kernels).

    k of `[L_x]` kernels, l of `[L_y]`. Exact; the skewness is 0 where the standard deviation is. Needs n of 6 or more.

    W - E W = A + B, A from the diagonal parts and B from M and M'. Every expectation below is a sum over the ways to tie
    together the index slots of the product: for each, the sum over distinct indices in K times that in L, divided by
    n (n-1) ..., one factor an index. For all but B^3, where the ways are written out, one number a kernel is left.
    """
    check_least(n, "n")

    def product(name: str) -> Tensor:
        return outer(getattr(k, name), getattr(l, name))

    f = (n - 2) / n
    variance = f**2 * product("d2") / (n - 1) + 2 * product("m2") / (n * (n - 3))
    aaa = f**3 * product("d3") * n / ((n - 1) * (n - 2))
    aab = f**2 * product("form") * 2 / (n * (n - 3))
    abb = f * product("mixed") * 4 * (n - 2) / ((n - 1) * (n - 3) * (n - 4))
    third = aaa + 3 * aab + 3 * abb + _third_of_hollow(k, l, n)
    std = variance.sqrt()
    skewness = torch.where(std > 0, third / torch.where(std > 0, std, 1) ** 3, 0)
    return product("trace") / (n - 1), std, skewness


def _third_of_hollow(k: KernelMoments, l: KernelMoments, n: int) -> Tensor:
    """E <M^pi, M'>^3: three edges with their six ends on 2 to 6 distinct items, one line for each shape they make."""

    def term(triangles: float, cubes: float, items: int) -> Tensor:
        a, b = (triangles * m.triangles + cubes * m.cubes for m in (k, l))
        return outer(a, b) / float(math.perm(n, items))  # a float: torch refuses integers beyond 64 bits

    return (
        4 * term(0, 1, 2)  # one edge three times
        + 24 * term(0, -1, 3)  # one twice, the other from its end
        + 8 * term(1, 0, 3)  # a triangle
        + 6 * term(0, 2, 4)  # one twice, the other apart
        + 8 * term(0, 2, 4)  # a star
        + 24 * term(-1, 1, 4)  # a path
        + 12 * term(2, -4, 5)  # a path of two, the third apart
        + term(-8, 16, 6)  # all apart
    )


def outer(a: Tensor, b: Tensor) -> Tensor:
    """`[L_x]` and `[L_y]` -> `[L_x, L_y]`; numbers stay numbers."""
    return a.reshape(a.shape + (1,) * b.ndim) * b


def pearson3_p(score: ArrayLike, mean: ArrayLike, std: ArrayLike, skewness: ArrayLike) -> np.ndarray:
    """The chance of `score` or more under Pearson's type III distribution of these moments; normal for skewness 0.

    Arrays that broadcast, or tensors on the CPU. 1 where std is 0: all shuffled scores are the same then.

    >>> float(pearson3_p(1.0, 1.0, 0.5, 0.0)), float(pearson3_p(1.0, 1.0, 0.0, 0.0))
    (0.5, 1.0)
    """
    from scipy.stats import pearson3

    at, middle, width, skew = (np.asarray(a, dtype=np.float64) for a in (score, mean, std, skewness))
    moves = width > 0
    z = (at - middle) / np.where(moves, width, 1.0)
    return np.where(moves, pearson3.sf(z, skew), 1.0)
