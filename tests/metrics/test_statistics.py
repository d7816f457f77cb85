"""What is particular about regression, the descriptive statistics and topology; the rest is in the tester of all metrics."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import numpy as np
import pytest
import reference_statistics
import torch
from reference_statistics import REFERENCES

from alignlab.metrics import regression, statistics, topology
from alignlab.metrics.registry import REGISTRY

needs_gudhi = pytest.mark.skipif(
    importlib.util.find_spec("gudhi") is None, reason="needs gudhi: pip install 'alignlab[topology]'"
)
NAMES = [pytest.param(name, marks=needs_gudhi if name == "rtd" else ()) for name in REFERENCES]
DISTANCES = [
    pytest.param(name, marks=needs_gudhi if name == "rtd" else ()) for name in REFERENCES if "linear" not in name
]


def related(n: int, dx: int, dy: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([seed, n, dx, dy])
    x = rng.normal(size=(n, dx)) + 0.3
    return x, np.tanh(x @ rng.normal(size=(dx, dy)) / np.sqrt(dx)) + rng.normal(size=(n, dy)) / 4 + 0.1


def call(name: str, x: np.ndarray, y: np.ndarray, **options: Any) -> float:
    return REGISTRY[name].function(x, y, **options)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(30, 4, 6), (20, 40, 5), (20, 5, 40)])
def test_scores_are_the_references(name, shape):
    x, y = related(*shape)
    for options in ({}, *reference_statistics.OPTIONS.get(name, [])):
        assert call(name, x, y, **options) == pytest.approx(REFERENCES[name](x, y, **options), rel=1e-7)


@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize("shape", [(30, 4, 6), (20, 40, 5)])
def test_distances_are_the_references(name, shape):
    x, y = related(*shape)
    assert call(name, x, y, distance=True) == pytest.approx(REFERENCES[name](x, y, distance=True), rel=1e-7)
    assert call(name, x, x, distance=True) == pytest.approx(0, abs=1e-6)
    assert call(name, x, x) == pytest.approx(1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(30, 4, 6), (20, 40, 30)])
def test_float32_is_float64_rounded(name, shape):
    x, y = (z.astype("float32") for z in related(*shape))
    assert call(name, x, y) == pytest.approx(call(name, x.astype(float), y.astype(float)), rel=1e-4)


# --- regression -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 1}, r"folds must be an int in \[2, N\], got 1 with N=20"),
        ({"folds": 21}, r"folds must be an int in \[2, N\], got 21 with N=20"),
        ({"folds": 5.0}, r"folds must be an int in \[2, N\], got 5\.0"),
        ({"folds": True}, r"folds must be an int in \[2, N\], got True"),
        ({"ridge": -0.1}, r"ridge must be a finite number >= 0, got -0\.1"),
        ({"ridge": float("nan")}, "ridge must be a finite number >= 0, got nan"),
        ({"ridge": float("inf")}, "ridge must be a finite number >= 0, got inf"),
    ],
)
def test_regression_refuses_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        regression.linear_regression(*related(20, 4, 6), **options)


@pytest.mark.parametrize("dx", [5, 15, 17, 20, 21, 200])  # 16 items are left to train on
@pytest.mark.parametrize("ridge", [0, 1e-14, 1e-9, 1e-3, 10])
def test_regression_is_defined_for_any_width_and_ridge(dx, ridge):
    x, y = related(20, dx, 3)
    expected = REFERENCES["linear_regression"](x, y, ridge=ridge)
    assert regression.linear_regression(x, y, ridge=ridge) == pytest.approx(expected, rel=1e-6)


def test_regression_on_features_that_repeat_themselves():
    x, y = related(40, 4, 3)
    for wide in (np.concatenate([x, x, x], 1), np.tile(x, (1, 20))):
        for dtype in ("float32", "float64"):
            score = regression.linear_regression(wide.astype(dtype), y.astype(dtype), ridge=0)
            assert score == pytest.approx(regression.linear_regression(x, y, ridge=0), rel=1e-4)


def test_leave_one_out_is_its_closed_form():
    x, y = related(25, 4, 3)
    columns = np.concatenate([np.ones((25, 1)), x], 1)
    hat = columns @ np.linalg.pinv(columns)
    errors = (y - hat @ y) / (1 - np.diag(hat))[:, None]
    means = (y - y.mean(0)) * 25 / 24
    score = regression.linear_regression(x, y, ridge=0, folds=25)
    assert score == pytest.approx(1 - (errors**2).sum() / (means**2).sum())


def test_ridge_is_in_units_of_the_mean_eigenvalue():
    x, y = related(60, 6, 3)
    score = regression.linear_regression(x, y, ridge=0.5)
    assert regression.linear_regression(1e-6 * x, 1e6 * y, ridge=0.5) == pytest.approx(score)
    assert score < regression.linear_regression(x, y)
    own = regression.linear_regression(x * 10.0 ** -np.arange(6), x * 10.0 ** -np.arange(6))
    assert 1 - 0.01 / 4 < own < 1


def test_a_feature_that_only_a_held_out_item_has_predicts_the_mean():
    x, y = np.full((20, 3), 0.1), related(20, 3, 4)[1]
    x[0] = 2
    # without item 0 nothing varies; with it, it is fitted as it is, and the others by their mean
    alone, others = y[0] - y[1:].mean(0), (y[1:] - y[1:].mean(0)) * 19 / 18
    expected = 1 - ((alone**2).sum() + (others**2).sum()) / (((y - y.mean(0)) * 20 / 19) ** 2).sum()
    for wide in (x, np.tile(x, (1, 20))):
        assert regression.linear_regression(wide, y, folds=20, ridge=0) == pytest.approx(expected)
        assert regression.linear_regression(wide, y, folds=20, ridge=1e-8) == pytest.approx(expected, rel=1e-4)


def test_regression_of_unrelated_features_scores_what_is_stated():
    rng = np.random.default_rng(0)
    for d, expected in ((16, -16 / (160 - 16 - 1)), (1600, -160 / (1600 - 160 - 1))):
        scores = [
            regression.linear_regression(rng.normal(size=(200, d)), rng.normal(size=(200, 20))) for _ in range(10)
        ]
        assert np.mean(scores) == pytest.approx(expected, rel=0.15)


def test_linear_fit_sees_the_span_of_y_only():
    x, y = related(40, 5, 4)
    score = regression.linear_fit(x, y)
    assert regression.linear_fit(x, y @ np.triu(np.ones((4, 4))) + 3) == pytest.approx(score)
    for dtype in ("float32", "float64"):
        doubled = np.concatenate([y, y], 1).astype(dtype)
        assert regression.linear_fit(x.astype(dtype), doubled) == pytest.approx(score, rel=1e-5)
    assert regression.linear_fit(x, np.random.default_rng(0).normal(size=(40, 39))) == pytest.approx(1)
    assert regression.linear_fit(x, y) > regression.linear_regression(y, x)


def test_linear_fit_of_unrelated_features_scores_their_rank():
    rng = np.random.default_rng(0)
    scores = [regression.linear_fit(rng.normal(size=(61, 30)), rng.normal(size=(61, 15))) for _ in range(20)]
    assert np.mean(scores) == pytest.approx(15 / 60, rel=0.05)


# --- descriptive statistics -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_mean_that_is_rounding_counts_as_none(dtype):
    x, y = related(50, 8, 30)
    x, y = ((z - z.mean(0)).astype(dtype) for z in (x, y))
    assert statistics.magnitude(x, y) == 1
    assert statistics.magnitude(x, y, distance=True) == 0
    assert statistics.magnitude(x, y + 1) == 0
    assert statistics.concentricity(x, y) == 1
    assert statistics.concentricity(x, 1e-3 * x + 1) == pytest.approx(0.5, abs=1e-4)


def test_magnitude_is_the_ratio_of_the_means_lengths():
    x = related(50, 8, 3)[0]
    assert statistics.magnitude(x, -3 * x) == pytest.approx(1 / 3)
    assert statistics.magnitude(x, -3 * x, distance=True) == pytest.approx(2 * np.linalg.norm(x.mean(0)))


def test_items_all_one_way_against_items_every_way():
    rays = np.linspace(1, 2, 20)[:, None] * np.ones((20, 3))
    around = np.stack([np.cos(np.arange(20) * np.pi / 10), np.sin(np.arange(20) * np.pi / 10)], 1)
    assert statistics.concentricity(rays, around) == pytest.approx(0.5)
    assert statistics.concentricity(rays, around, distance=True) == pytest.approx(1)


def test_uniformity_of_items_far_apart_is_that_of_any_others():
    x, y = related(30, 8, 50)
    assert statistics.uniformity(1e3 * x, 1e4 * y) == 1
    assert statistics.uniformity(1e-9 * x, 1e3 * y, distance=True) == pytest.approx(np.log(30))
    assert statistics.uniformity(1e-9 * x, 1e3 * y) == pytest.approx(1 / 30)


@pytest.mark.parametrize("t", [0, -1, float("nan"), float("inf")])
def test_uniformity_refuses_a_bad_t(t):
    with pytest.raises(ValueError, match=f"t must be a finite number above 0, got {t}"):
        statistics.uniformity(*related(20, 4, 6), t=t)


# --- topology ---------------------------------------------------------------------------------------------------------


def test_the_spectrum_of_a_ring_and_of_a_complete_graph():
    angles = np.arange(24) * np.pi / 12
    ring = torch.tensor(np.stack([np.cos(angles), np.sin(angles)], 1))
    for k, expected in ((2, 1 - np.cos(angles)), (23, [0] + [24 / 23] * 23)):
        found = topology.laplacian_spectrum(ring, k)
        np.testing.assert_allclose(np.sort(found), np.sort(expected), atol=1e-12)


def test_imd_of_clusters_that_are_not_joined():
    rng = np.random.default_rng(0)
    clusters = 100 * np.repeat(np.arange(5), 8)[:, None] + rng.normal(size=(40, 3))
    spectrum = topology.laplacian_spectrum(torch.tensor(clusters), 4)
    assert (spectrum.abs() < 1e-9).sum() == 5
    assert topology.imd(clusters, clusters[::-1]) == pytest.approx(1)
    assert topology.imd(clusters, rng.normal(size=(40, 3))) < 0.9
    equal = np.repeat(rng.normal(size=(20, 3)), 2, 0)  # many distances are the same
    assert 0 <= topology.imd(equal, clusters) <= 1


def test_no_heat_trace_is_below_that_of_no_structure():
    for k in (1, 5, 29):
        trace = topology.heat_trace(topology.laplacian_spectrum(torch.tensor(related(30, 4, 2)[0]), k))
        assert (trace >= (-topology.TIMES).exp()).all()
        assert (trace <= (1 + (-2 * topology.TIMES).exp()) / 2).all()


@needs_gudhi
def test_rtd_tells_two_clusters_from_one():
    """One gap of 0.9 quantile lengths: a bar of that length, born at once in the cloud that closes it."""
    rng = np.random.default_rng(0)
    two = np.repeat([[0.0, 0.0], [1.0, 0.0]], 10, 0) + 1e-4 * rng.normal(size=(20, 2))
    one = two * [0, 1] + 1e-4 * rng.normal(size=(20, 2))
    bars = topology.cross_graph(*(topology._scaled_distances(torch.tensor(z), "X") for z in (two, one)))
    assert topology._ripser()(bars) > 0.7
    assert topology.rtd(two, one) < 0.6 < topology.rtd(two, 2 * two + 1e-6)


@needs_gudhi
def test_rtd_of_batches():
    x, y = related(40, 4, 6)
    whole = topology.rtd(x, y, batch=40)
    assert topology.rtd(x, y) == topology.rtd(x, y, batch=40, trials=3, seed=7) == whole
    some = topology.rtd(x, y, batch=20, trials=3)
    assert some == topology.rtd(x, y, batch=20, trials=3) != topology.rtd(x, y, batch=20, trials=3, seed=1)
    # the mean of the draws' distances, not of their scores
    assert some == pytest.approx(1 / (1 + topology.rtd(x, y, batch=20, trials=3, distance=True)))


@needs_gudhi
@pytest.mark.parametrize("name", ["batch", "trials"])
@pytest.mark.parametrize("value", [0, 2.5, True, -1])
def test_rtd_refuses_bad_options(name, value):
    with pytest.raises(ValueError, match=rf"{name} must be an int >= \d, got {value}"):
        topology.rtd(*related(20, 4, 6), **{name: value})


@needs_gudhi
def test_rtd_refuses_items_that_are_nearly_all_equal():
    x, y = related(40, 4, 6)
    x[1:] = x[0] = 1
    x[3] = 2
    with pytest.raises(ValueError, match="X has hardly any two items that differ"):
        topology.rtd(x, y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scaled_distances_are_symmetric_to_the_last_bit(dtype):
    d = topology._scaled_distances(torch.randn(300, 2, dtype=dtype, generator=torch.Generator().manual_seed(0)), "X")
    assert np.array_equal(d, d.T)
    assert np.quantile(d, 0.9) == pytest.approx(1)


def test_rtd_without_gudhi_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gudhi.sklearn", None)
    with pytest.raises(ValueError, match=r"rtd needs the package gudhi: pip install 'alignlab\[topology\]'"):
        topology.rtd(*related(20, 4, 6))


def test_options_of_rtd_are_refused_without_gudhi_too(monkeypatch):
    monkeypatch.setitem(sys.modules, "gudhi.sklearn", None)
    with pytest.raises(ValueError, match="batch must be an int >= 4"):
        topology.rtd(*related(20, 4, 6), batch=2)
