"""The moments of shuffled scores against all shuffles there are, and p-values against many shuffles."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from alignlab.metrics import cka
from alignlab.metrics.kernels import gaussian_gram
from alignlab.metrics.permutation import (
    KernelMoments,
    cka_test,
    feature_moments,
    kernel_moments,
    pearson3_p,
    permutation_moments,
)

# D / N of both sides
WIDTHS = {"d < n": (0.1, 0.2), "d = n": (1, 1), "d > n": (3, 4), "d >> n": (100, 100)}
# how much of what both sides share makes p small but not too small for shuffles to find
WEAK = {"d < n": 0.2, "d = n": 0.1, "d > n": 0.07, "d >> n": 0.05}


@pytest.fixture(autouse=True)
def one_thread():
    """Thousands of small products: on a busy machine threads wait for each other longer than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def gram(x: np.ndarray) -> torch.Tensor:
    z = torch.from_numpy(x - x.mean(0))
    return z @ z.T


def unit(k: torch.Tensor) -> np.ndarray:
    return (k / k.norm()).numpy()


def shuffled(k: np.ndarray, l: np.ndarray, perms: np.ndarray) -> np.ndarray:
    return np.array([np.vdot(k[p][:, p], l) for p in perms])


def moments_of(scores: np.ndarray) -> tuple[float, float, float]:
    """Mean, variance and third central moment."""
    central = scores - scores.mean()
    return float(scores.mean()), float((central**2).mean()), float((central**3).mean())


@pytest.fixture(scope="module")
def all_perms() -> dict[int, np.ndarray]:
    return {n: np.array(list(itertools.permutations(range(n)))) for n in (6, 7)}


@pytest.mark.parametrize("n", [6, 7])
@pytest.mark.parametrize("widths", [(1, 1), (1, 5), (2, 3), (4, 40), (3000, 3000)])
@pytest.mark.parametrize("huge", [False, True])
def test_moments_are_those_of_all_permutations(all_perms, n, widths, huge):
    rng = np.random.default_rng(n)
    x, y = (rng.normal(size=(n, d)) for d in widths)
    y = y**2
    if huge:
        x[0] *= 100
        y[2] *= 30
    expected = moments_of(shuffled(unit(gram(x)), unit(gram(y)), all_perms[n]))
    for k, l in (
        (kernel_moments(gram(x)), kernel_moments(gram(y))),
        (feature_moments(torch.from_numpy(x)), feature_moments(torch.from_numpy(y))),
    ):
        mean, std, skewness = (float(m) for m in permutation_moments(k, l, n))
        assert (mean, std**2, skewness * std**3) == pytest.approx(expected, rel=1e-9)


def test_any_centred_matrix_will_do(all_perms):
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(7, 3)), rng.normal(size=(7, 4))
    k, l = (gaussian_gram(torch.from_numpy(z)) for z in (x, y))
    k = k - 0.3 * gram(y) / gram(y).norm()  # not positive semidefinite
    expected = moments_of(shuffled(unit(k), unit(l), all_perms[7]))
    mean, std, skewness = (float(m) for m in permutation_moments(kernel_moments(k), kernel_moments(l), 7))
    assert (mean, std**2, skewness * std**3) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("n", "d"), [(60, 5), (60, 58), (60, 6000), (300, 290), (300, 3000)])
def test_features_and_gram_agree(n, d):
    """At D = 100 N the moments in terms of K itself are differences of terms 10^4 times larger: no digit is left."""
    x = np.random.default_rng(4).normal(size=(n, d))
    a, b = feature_moments(torch.from_numpy(x)), kernel_moments(gram(x))
    for value, other in zip(permutation_moments(a, a, n), permutation_moments(b, b, n), strict=True):
        assert float(value) == pytest.approx(float(other), rel=1e-9)


def test_simulated_moments_of_many_items():
    rng = np.random.default_rng(5)
    n, shuffles = 200, 4000
    x, y = rng.standard_t(5, size=(n, 4)), rng.standard_t(5, size=(n, 30))
    scores = shuffled(unit(gram(x)), unit(gram(y)), np.array([rng.permutation(n) for _ in range(shuffles)]))
    found = cka_test(x, y)
    assert abs(found.mean - scores.mean()) < 4 * found.std / shuffles**0.5
    assert found.std == pytest.approx(scores.std(), rel=0.06)
    assert found.skewness == pytest.approx(stats.skew(scores), abs=4 * (6 / shuffles) ** 0.5)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dependent", [False, True])
def test_p_is_that_of_many_shuffles(width, dependent):
    n, shuffles = 60, 20_000
    rng = np.random.default_rng(7)
    shared = WEAK[width] if dependent else 0
    d, e = (round(w * n) for w in WIDTHS[width])
    common = rng.normal(size=(n, 4))
    x = rng.normal(size=(n, d)) + shared * common @ rng.normal(size=(4, d))
    y = rng.normal(size=(n, e)) + shared * common @ rng.normal(size=(4, e))
    k, l = unit(gram(x)), unit(gram(y))
    scores = shuffled(k, l, np.array([rng.permutation(n) for _ in range(shuffles)]))
    found = cka_test(x, y)
    assert not dependent or 0.0005 < found.p < 0.1
    assert found.score == pytest.approx(cka(x, y), rel=1e-12)
    # at the score itself, and at the quantiles that decide tests
    for at in (found.score, *np.quantile(scores, [0.5, 0.9, 0.95, 0.99])):
        counted = (1 + int((scores >= at).sum())) / (1 + shuffles)
        claimed = float(pearson3_p(at, found.mean, found.std, found.skewness))
        error = 4 * (counted * (1 - counted) / shuffles) ** 0.5
        assert claimed == pytest.approx(counted, abs=error + 0.1 * counted)
    assert found.p == pytest.approx(float(pearson3_p(found.score, found.mean, found.std, found.skewness)))
    assert found.z == pytest.approx((found.score - found.mean) / found.std)


@pytest.mark.parametrize("width", WIDTHS)
def test_type_one_error_is_alpha(width):
    n, pairs, alpha = 24, 400, 0.05
    rng = np.random.default_rng(7)
    d, e = (max(2, round(w * n)) for w in WIDTHS[width])
    rejected = sum(cka_test(rng.normal(size=(n, d)), rng.normal(size=(n, e))).p <= alpha for _ in range(pairs))
    assert stats.binom.cdf(rejected, pairs, alpha) > 0.002
    assert stats.binom.sf(rejected - 1, pairs, alpha) > 0.002


def test_dependence_is_found_where_the_score_alone_says_little():
    rng = np.random.default_rng(8)
    x, noise = rng.normal(size=(100, 2000)), rng.normal(size=(100, 2000))
    unrelated, related = cka_test(x, noise), cka_test(x, noise + 0.5 * x)
    assert unrelated.score > 0.9
    assert related.score - unrelated.score < 0.02
    assert unrelated.p > 0.05
    assert related.p < 1e-6


def test_many_layers_at_once_are_those_one_by_one():
    rng = np.random.default_rng(9)
    x = [kernel_moments(gram(rng.normal(size=(30, d)))) for d in (3, 30, 90)]
    y = [kernel_moments(gram(rng.normal(size=(30, d)))) for d in (2, 50)]
    together = permutation_moments(KernelMoments.stack(x), KernelMoments.stack(y), 30)
    assert all(t.shape == (3, 2) and t.dtype == torch.float64 for t in together)
    p = pearson3_p(0.5, *together)
    assert p.shape == (3, 2)
    for i, k in enumerate(x):
        for j, l in enumerate(y):
            alone = permutation_moments(k, l, 30)
            assert [float(t[i, j]) for t in together] == pytest.approx([float(a) for a in alone], rel=1e-14)
            assert p[i, j] == pytest.approx(float(pearson3_p(0.5, *alone)))


@pytest.mark.parametrize(("n", "d"), [(60, 5), (60, 60), (60, 6000), (300, 40), (300, 3000)])
def test_float32_gram_gives_the_same_moments(n, d):
    x = torch.from_numpy(np.random.default_rng(10).normal(size=(n, d)))
    wide, narrow = kernel_moments(gram(x.numpy())), kernel_moments(gram(x.numpy()).float())
    expected = [float(m) for m in permutation_moments(wide, wide, n)]
    assert [float(m) for m in permutation_moments(narrow, narrow, n)] == pytest.approx(expected, rel=1e-4)


def test_blocks_of_rows_make_no_difference(monkeypatch):
    x = torch.from_numpy(np.random.default_rng(11).normal(size=(50, 7)))
    whole = feature_moments(x), kernel_moments(gram(x.numpy()))
    monkeypatch.setattr("alignlab.metrics.permutation.ENTRIES", 50 * 7)
    for a, b in zip(whole, (feature_moments(x), kernel_moments(gram(x.numpy()))), strict=True):
        assert list(map(float, vars(a).values())) == pytest.approx(list(map(float, vars(b).values())), rel=1e-10)


def test_invariances_and_input_types():
    rng = np.random.default_rng(12)
    x, y = rng.normal(size=(40, 6)).astype(np.float32), rng.normal(size=(40, 60)).astype(np.float32)
    plain = vars(cka_test(x, y))
    assert vars(cka_test(torch.from_numpy(x), torch.from_numpy(y))) == plain
    assert vars(cka_test(y, x)) == pytest.approx(plain, rel=1e-9)
    assert vars(cka_test(x * 1e-12, y.astype(np.float64) * 1e12)) == pytest.approx(plain, rel=1e-4)


def test_scores_that_no_shuffle_changes():
    rng = np.random.default_rng(13)
    found = cka_test(7 * np.eye(12, dtype=np.float32), rng.normal(size=(12, 3)).astype(np.float32))
    assert (found.std, found.skewness, found.z, found.p) == (0, 0, 0, 1)
    assert found.score == pytest.approx(found.mean)


def test_no_skewness_is_a_normal_tail():
    z = np.array([-1.0, 0.0, 2.5])
    assert pearson3_p(z, 0, 1, 0) == pytest.approx(stats.norm.sf(z))
    # Pearson type III is a shifted gamma: skewness 2 is the exponential distribution
    assert float(pearson3_p(1.5, 0, 1, 2)) == pytest.approx(np.exp(-2.5))
    assert float(pearson3_p(1.5, 0, 1, -2)) == 0


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.ones((8, 3)), None, "X is the same for every item"),
        (None, np.ones((8, 3)), "Y is the same for every item"),
        (np.eye(5), np.eye(5), "X must have 6 items or more"),
        (np.eye(3), np.eye(3), "X must have 4 items or more"),
        (np.ones((8, 3), dtype=int), None, "floating-point"),
        (np.ones(8), None, r"X must be \[N, D\]"),
        (np.full((8, 3), np.nan), None, "X must be finite"),
        (np.eye(9), None, "same number of items, got 9 and 8"),
        (np.vstack([np.zeros(3), np.eye(7, 3) + 1]), None, "row of zeros"),
    ],
)
def test_bad_input_is_named(x, y, message):
    good = np.random.default_rng(14).normal(size=(8, 3))
    with pytest.raises(ValueError, match=message):
        cka_test(good if x is None else x, good if y is None else y)


def test_too_few_items_for_a_skewness():
    k = kernel_moments(gram(np.random.default_rng(15).normal(size=(8, 3))))
    with pytest.raises(ValueError, match="n must have 6 items"):
        permutation_moments(k, k, 5)
    with pytest.raises(ValueError, match="the kernel must have 6 items"):
        kernel_moments(gram(np.eye(5)))
