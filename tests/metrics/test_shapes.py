"""What is particular to the metrics on aligned features, matched features and canonical correlations."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from reference_shapes import OPTIONS, REFERENCES
from scipy.stats import ortho_group
from sklearn.cross_decomposition import CCA

from alignlab.metrics.cca import pwcca, svcca
from alignlab.metrics.matching import hard_correlation_match, soft_correlation_match
from alignlab.metrics.procrustes import angular_shape, compact, permutation_procrustes, procrustes, size_and_shape
from alignlab.metrics.registry import REGISTRY

METRICS = {name: e.function for name, e in REGISTRY.items() if e.family in ("cca", "procrustes", "matching")}
DISTANCES = {name for name in METRICS if REGISTRY[name].is_distance}
SHAPES = [(40, 6, 6), (40, 6, 15), (30, 18, 17), (20, 35, 8), (16, 50, 60)]  # narrow, sharing directions, wide


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def draw(n: int, dx: int, dy: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A representation and noisy linear functions of it, neither centred, of different scales."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, dx)) * rng.uniform(0.5, 2, dx) + rng.normal(size=dx)
    y = x @ rng.normal(size=(dx, dy)) + np.sqrt(dx) * rng.normal(size=(n, dy)) + rng.normal(size=dy)
    return x, y


def test_every_metric_has_a_reference() -> None:
    assert set(METRICS) == set(REFERENCES)
    assert {"procrustes", "angular_shape", "size_and_shape", "permutation_procrustes"} == DISTANCES


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", METRICS)
def test_is_its_definition(name: str, shape: tuple[int, int, int]) -> None:
    x, y = draw(*shape)
    variants = [{}, *OPTIONS.get(name, []), *([{"distance": True}] if name in DISTANCES else [])]
    for options in variants:
        assert METRICS[name](x, y, **options) == pytest.approx(REFERENCES[name](x, y, **options), rel=1e-6), options


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", METRICS)
def test_float32_keeps_float64s_digits(name: str, shape: tuple[int, int, int]) -> None:
    x, y = draw(*shape)
    single = x.astype("float32"), y.astype("float32")
    for options in [{}, {"distance": True}] if name in DISTANCES else [{}]:
        assert METRICS[name](*single, **options) == pytest.approx(METRICS[name](x, y, **options), rel=1e-4)


# --- aligned features -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("d", [12, 90])
def test_a_rotated_copy_is_at_no_distance(dtype: str, d: int) -> None:
    x = np.random.default_rng(0).normal(size=(60, d)) + 3
    y = x @ ortho_group.rvs(d, random_state=0)
    for metric in (procrustes, angular_shape, size_and_shape):
        assert metric(x.astype(dtype), y.astype(dtype)) == pytest.approx(1, abs=1e-6)
        assert metric(x.astype(dtype), y.astype(dtype), distance=True) < 1e-5 * np.linalg.norm(x)


@pytest.mark.parametrize("seed", range(5))
def test_the_angle_keeps_the_triangle_inequality(seed: int) -> None:
    x, y = draw(30, 5, 9, seed)
    z = x[:, :3] ** 2
    xy, yz, xz = (angular_shape(a, b, distance=True) for a, b in ((x, y), (y, z), (x, z)))
    assert xz <= xy + yz
    assert xy <= xz + yz
    assert yz <= xy + xz


def test_only_size_and_shape_sees_the_size() -> None:
    x, _ = draw(30, 5, 5)
    assert procrustes(x, 3 * x) == pytest.approx(1)
    assert size_and_shape(x, 3 * x) == pytest.approx(2 * 3 / (1 + 9))
    assert size_and_shape(x, 3 * x, distance=True) == pytest.approx(2 * np.linalg.norm(x - x.mean(0)))


@pytest.mark.parametrize("shape", [(12, 5, 5), (12, 3, 5), (6, 5, 2)])
def test_matchings_are_the_best_of_all(shape: tuple[int, int, int]) -> None:
    x, y = draw(*shape)
    width = max(x.shape[1], y.shape[1])
    a, b = (np.pad(z, ((0, 0), (0, width - z.shape[1]))) for z in (x, y))
    orders = list(itertools.permutations(range(width)))
    nearest = min(np.linalg.norm(a[:, order] - b) for order in orders)
    assert permutation_procrustes(x, y, distance=True) == pytest.approx(nearest)

    narrow, wide = (x, y) if x.shape[1] < y.shape[1] else (y, x)
    table = np.corrcoef(narrow, wide, rowvar=False)[: narrow.shape[1], narrow.shape[1] :]
    rows = np.arange(narrow.shape[1])
    best = max(table[rows, list(order[: len(rows)])].mean() for order in orders)
    assert hard_correlation_match(x, y) == pytest.approx(best)


@pytest.mark.parametrize("d", [5, 12, 40])
def test_compact_features_have_the_same_inner_products(d: int) -> None:
    x = torch.randn(12, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    narrow = compact(x)
    assert narrow.shape == (12, min(12, d))
    torch.testing.assert_close(narrow @ narrow.T, x @ x.T)


# --- matched features -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("metric", [hard_correlation_match, soft_correlation_match])
def test_a_feature_that_never_changes_correlates_with_nothing(metric: Callable[..., float], dtype: str) -> None:
    x = np.random.default_rng(0).normal(size=(30, 3))
    dead = np.column_stack([x, np.full(30, 0.1)]).astype(dtype)  # 0.1 30 times has another mean than 0.1
    assert metric(dead, dead) == pytest.approx(3 / 4)
    assert metric(x.astype(dtype), x.astype(dtype)) == pytest.approx(1)


def test_what_the_two_matchings_make_of_repeated_features() -> None:
    x, _ = draw(50, 4, 4)
    doubled = np.concatenate([x, x], axis=1)
    assert soft_correlation_match(x, doubled) == pytest.approx(1)
    assert hard_correlation_match(x, doubled) == pytest.approx(1)  # the four in excess do not count
    lopsided = np.column_stack([x[:, :1], x[:, :1], x[:, :1], x[:, :1]])
    assert hard_correlation_match(x, lopsided) < soft_correlation_match(x, lopsided) < 1


# --- canonical correlations -------------------------------------------------------------------------------------------


def graded(strengths: np.ndarray, n: int = 300, d: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Two representations of latents of these strengths, the second with noise as large as they are."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(n, len(strengths))) * strengths
    mix = np.abs(rng.normal(size=(2, d, len(strengths)))) * rng.choice([-1, 1], size=(2, d, len(strengths)))
    noisy = z + rng.normal(size=z.shape) * strengths
    return tuple(w @ m.T + 0.3 * rng.normal(size=(n, d)) for w, m in zip((z, noisy), mix, strict=True))


def standardised(x: np.ndarray) -> np.ndarray:
    """As the Platonic Representation Hypothesis code has it."""
    return (x - x.mean(0)) / (x.std(0, ddof=1) + 1e-8)


def iterated(u: np.ndarray, v: np.ndarray) -> float:
    """The rest of that code: scikit-learn's CCA on the directions found."""
    a, b = CCA(n_components=u.shape[1]).fit(u, v).transform(u, v)
    return float(np.mean([np.corrcoef(p, q)[0, 1] for p, q in zip(a.T, b.T, strict=True)]))


def randomised(x: np.ndarray, y: np.ndarray, k: int) -> float:
    directions = [torch.svd_lowrank(torch.from_numpy(standardised(z)), q=k)[0].numpy() for z in (x, y)]
    return iterated(*directions)


CLEAR = np.linspace(10, 5, 5)  # as many as are asked for
FLAT = np.full(30, 5.0)


@pytest.mark.parametrize("strengths", [CLEAR, FLAT], ids=["clear", "flat"])
def test_svcca_is_the_platonic_codes_on_exact_directions(strengths: np.ndarray) -> None:
    x, y = graded(strengths)
    exact = [np.linalg.svd(standardised(z), full_matrices=False)[0][:, :5] for z in (x, y)]
    assert svcca(x, y, cca_dim=5) == pytest.approx(iterated(*exact), abs=1e-4)


def test_svcca_is_within_the_noise_of_the_platonic_codes() -> None:
    torch.manual_seed(0)
    x, y = graded(CLEAR)
    for _ in range(5):
        assert svcca(x, y, cca_dim=5) == pytest.approx(randomised(x, y, 5), abs=1e-3)
    x, y = graded(FLAT)
    scores = [randomised(x, y, 5) for _ in range(20)]
    assert np.std(scores) > 0.01
    assert min(scores) - 0.01 < svcca(x, y, cca_dim=5) < max(scores) + 0.1
    assert randomised(x, x, 5) < 0.9
    assert svcca(x, x, cca_dim=5) == pytest.approx(1)


@pytest.mark.parametrize("cca_dim", [0, -1, 10, 12, 2.0, True])
def test_cca_dim_must_fit(cca_dim: object) -> None:
    x, y = draw(10, 4, 6)
    with pytest.raises(ValueError, match=rf"cca_dim must be an int in \[1, N-1\], got {cca_dim} with N=10"):
        svcca(x, y, cca_dim=cca_dim)  # type: ignore[arg-type]
    assert 0 < svcca(x, y, cca_dim=9) <= 1
    assert 0 < svcca(x, y, cca_dim=np.int64(3)) <= 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_directions_that_are_not_there_are_not_counted(dtype: str) -> None:
    rng = np.random.default_rng(0)
    low, y = rng.normal(size=(50, 3)), rng.normal(size=(50, 8))
    repeated = (low @ rng.normal(size=(3, 20))).astype(dtype)  # 20 features in 3 directions
    y = y.astype(dtype)
    for metric in (svcca, pwcca):
        assert metric(repeated, repeated) == pytest.approx(1)
        assert metric(y, repeated) == pytest.approx(metric(y, low.astype(dtype)), abs=1e-4)
    correlation = svcca(repeated, y)
    assert correlation == pytest.approx(svcca(low.astype(dtype), y), abs=1e-4)
    with_constant = np.column_stack([y, np.full(50, 0.1)]).astype(dtype)
    assert svcca(repeated, with_constant) == pytest.approx(correlation, abs=1e-6)


def test_below_cca_dim_svcca_is_plain_cca() -> None:
    x, y = draw(40, 4, 6)
    score = svcca(x, y)
    mixed = np.random.default_rng(1).normal(size=(4, 4))
    assert svcca(x @ mixed, y) == pytest.approx(score)
    centred = [z - z.mean(0) for z in (x, y)]
    assert score == pytest.approx(iterated(*centred), abs=1e-4)


def test_svcca_does_not_depend_on_the_units_of_features_but_on_the_axes() -> None:
    x, y = draw(60, 20, 25)
    units = np.geomspace(1e-6, 1e6, 20)
    assert svcca(x * units, y) == pytest.approx(svcca(x, y))
    assert svcca(x @ ortho_group.rvs(20, random_state=0), y) != pytest.approx(svcca(x, y), abs=1e-3)


def test_only_y_may_be_mapped_in_pwcca() -> None:
    x, y = draw(60, 8, 6)
    rng = np.random.default_rng(1)
    score = pwcca(x, y)
    assert pwcca(x, y @ rng.normal(size=(6, 6))) == pytest.approx(score)
    assert pwcca(x @ rng.normal(size=(8, 8)), y) != pytest.approx(score, abs=1e-3)
    assert pwcca(y, x) != pytest.approx(score, abs=1e-3)


def test_pwcca_weighs_by_the_share_of_x() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(200, 9))
    axes = np.linalg.qr(noise - noise.mean(0))[0]
    x = axes[:, :5] * [30, 1, 1, 1, 1]
    y = axes[:, [0, 5, 6, 7, 8]]  # the same in the one strong direction, uncorrelated otherwise
    assert svcca(x, y) == pytest.approx(1 / 5)
    # a direction among k axes of length 1 has weights that sum to sqrt(k) at most
    assert pwcca(x, y) >= 30 / (30 + 4 * 2)


def test_directions_of_correlation_one_may_come_in_any_basis() -> None:
    rng = np.random.default_rng(0)
    shared, own = rng.normal(size=(80, 6)) * np.arange(1, 7), rng.normal(size=(80, 8))
    x = np.concatenate([shared, own[:, :4]], axis=1) @ rng.normal(size=(10, 10))
    y = np.concatenate([shared, own[:, 4:]], axis=1)
    score = pwcca(x, y)
    for _ in range(5):
        order = rng.permutation(10)
        assert pwcca(x[:, order], y @ rng.normal(size=(10, 10))) == pytest.approx(score, abs=1e-6)
    assert pwcca(x.astype("float32"), y.astype("float32")) == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize("d", [19, 20, 60])
def test_pwcca_says_nothing_from_n_minus_one_features_on(d: int) -> None:
    rng = np.random.default_rng(0)
    assert pwcca(rng.normal(size=(20, d)), rng.normal(size=(20, 5))) == pytest.approx(1)
    assert pwcca(rng.normal(size=(20, 5)), rng.normal(size=(20, d))) == pytest.approx(1)
