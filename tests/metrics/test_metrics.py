"""What is particular to single metrics and to `prepare`; what all metrics have in common is in test_all.py."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignlab import align, metrics
from alignlab.metrics import neighbours
from alignlab.metrics.registry import REGISTRY


def draw(n: int, dx: int, dy: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, dx)), rng.normal(size=(n, dy))


def test_unrelated_features_share_about_k_of_n_neighbours():
    scores = [metrics.mutual_knn(*draw(200, 20, 20, seed), k=10) for seed in range(20)]
    assert np.mean(scores) == pytest.approx(10 / 199, rel=0.1)


def test_blocks_do_not_change_neighbours(monkeypatch):
    x = torch.randn(50, 6)
    whole = neighbours.nearest(x, 7)
    monkeypatch.setattr(neighbours, "ENTRIES_AT_ONCE", 8 * 50)
    assert torch.equal(neighbours.nearest(x, 7), whole)
    assert not (whole == torch.arange(50)[:, None]).any()  # nobody is its own neighbour


def plain_prepare(f: np.ndarray, q: float) -> np.ndarray:
    limit = np.sort(np.abs(f).ravel())[int(q * f.size)]
    f = f.clip(-limit, limit)
    return f / np.linalg.norm(f, axis=-1, keepdims=True)


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(st.integers(4, 20), st.integers(1, 5), st.integers(2, 9), st.integers(0, 999)),
    q=st.floats(0.3, 0.99),
)
def test_prepare_is_clamping_at_the_exact_quantile_then_unit_length(shape, q):
    *size, seed = shape
    f = np.random.default_rng(seed).standard_t(2, size=size)
    np.testing.assert_allclose(metrics.prepare(f, q), plain_prepare(f, q), rtol=1e-12)
    np.testing.assert_allclose(metrics.prepare(torch.tensor(f), q).numpy(), plain_prepare(f, q), rtol=1e-12)


def test_prepare_takes_a_list_layer_by_layer_and_leaves_its_input_alone():
    rng = np.random.default_rng(0)
    a, b = torch.tensor(rng.normal(size=(9, 4))), 100 * torch.tensor(rng.normal(size=(9, 6)))
    kept = a.clone()
    out = metrics.prepare([a, b])
    np.testing.assert_allclose(out[1].numpy(), plain_prepare(b.numpy(), 0.95))
    assert torch.equal(a, kept)
    assert metrics.prepare(np.zeros((4, 3)), q=1).tolist() == np.zeros((4, 3)).tolist()


def test_names_and_score():
    assert {"mutual_knn", "cka"} <= set(metrics.NAMES)
    with pytest.raises(ValueError, match="unknown metric 'mutual_nn'; did you mean mutual_knn"):
        metrics.score("mutual_nn", np.eye(5), np.eye(5))


def test_q_must_be_a_share():
    for q in (0, 1.5, -0.1):
        with pytest.raises(ValueError, match=r"q must be in \(0, 1\]"):
            metrics.prepare(np.eye(5), q)


PLATONIC = ("cycle_knn", "mutual_knn", "lcs_knn", "edit_distance_knn", "cka", "unbiased_cka", "cknna", "svcca")


def references() -> dict[str, Callable[..., float]]:
    found: dict[str, Callable[..., float]] = {}
    for file in ("reference_neighbours", "reference_kernels", "reference_shapes"):
        spec = importlib.util.spec_from_file_location(file, Path(__file__).parent / f"{file}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found.update(module.REFERENCES)
    return found


@pytest.mark.parametrize("width", [16, 400])
@pytest.mark.parametrize("name", PLATONIC)
def test_the_platonic_names_give_the_platonic_numbers_in_float32(name, width):
    """From raw layers to the best layer pair: prepare over the whole tensor, score every pair, keep the maximum."""
    rng = np.random.default_rng(width)
    shared = rng.normal(size=(150, 1, 12))
    raw = [
        (shared @ rng.normal(size=(layers, 12, width)).transpose(1, 0, 2).reshape(12, -1)).reshape(150, layers, width)
        + 0.7 * rng.standard_t(3, size=(150, layers, width))
        for layers in (3, 2)
    ]
    x, y = (f.astype(np.float32) for f in raw)
    a, b = (plain_prepare(f.astype(np.float64), 0.95) for f in (x, y))
    options = {"k": 10} if "k" in REGISTRY[name].options else {}
    scores = np.array([[references()[name](a[:, i], b[:, j], **options) for j in range(2)] for i in range(3)])
    single = metrics.score(name, metrics.prepare(x)[:, 1], metrics.prepare(y)[:, 0], **options)
    assert single == pytest.approx(scores[1, 0], rel=1e-4)
    best = align(x, y, [name], k=10, nulls=0, resamples=0).best(name)
    assert best.score == pytest.approx(scores.max(), rel=1e-4)
    assert (best.x_layer, best.y_layer) == np.unravel_index(scores.argmax(), scores.shape)


def test_the_page_of_the_docs_is_what_the_registry_says():
    root = Path(__file__).resolve().parents[2]
    spec = importlib.util.spec_from_file_location("make_metrics", root / "docs" / "make_metrics.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    own = {m.name for m in REGISTRY.values() if m.function.__module__.startswith("alignlab.")}
    assert {m.family for m in REGISTRY.values() if m.name in own} == set(module.FAMILIES)
    assert (root / "docs" / "metrics.md").read_text() == module.text(), "run python docs/make_metrics.py"


def test_the_table_has_a_row_a_metric():
    table = metrics.table()
    assert list(table.index) == list(metrics.NAMES)
    assert table.loc["cka", "invariant"] == "scale, shift, permutation, rotation"
    assert table.notna().all().all()


def test_the_code_of_the_docs_page_runs():
    page = (Path(__file__).resolve().parents[2] / "docs" / "metrics.md").read_text()
    (code,) = [block.split("```")[0] for block in page.split("```python\n")[1:]]
    space: dict[str, object] = {"__name__": "own"}
    try:
        exec(code, space)
        x = np.random.default_rng(0).normal(size=(30, 2, 5))
        assert align(x, x, ["eccentricity"], nulls=9, resamples=0, q=1).best("eccentricity").score == pytest.approx(1)
    finally:
        REGISTRY.pop("eccentricity", None)


def test_a_large_feature_or_offset_does_not_hide_the_others():
    x = np.random.default_rng(0).normal(size=(50, 6))
    assert metrics.cka(x + 1e6, x) == pytest.approx(1, abs=1e-6)
    beside = np.c_[0.02 * x, np.full(50, 1e4)]
    assert metrics.cka(beside, x) == pytest.approx(1, abs=1e-6)
    assert metrics.cka(beside.astype(np.float32), x.astype(np.float32)) > 0.99


def test_noise_of_rounding_is_no_variation():
    rng = np.random.default_rng(0)
    same = (1 + 1e-7 * rng.normal(size=(50, 6))).astype(np.float32)
    with pytest.warns(UserWarning, match="X is the same for every item"):
        assert metrics.cka(same, rng.normal(size=(50, 6))) == 0


def test_features_too_sparse_for_the_quantile_are_refused():
    f = np.zeros((40, 50))
    f[:, 0] = np.arange(1, 41)
    with pytest.raises(ValueError, match=r"F is 0 in 95% of its values or more: .* use q=1"):
        metrics.prepare(f)
    assert np.isfinite(metrics.prepare(f, q=1)).all()


@pytest.mark.parametrize("n", [1024, 1028, 1540])
def test_minibatches_come_near_whatever_the_order_and_the_remainder(n):
    rng = np.random.default_rng(0)
    x = np.repeat(rng.normal(size=(4, 8)), n // 4, 0) + 0.1 * rng.normal(size=(n // 4 * 4, 8))  # sorted by class
    y = x + 0.3 * rng.normal(size=x.shape)
    assert metrics.minibatch_cka(x, y) == pytest.approx(metrics.unbiased_cka(x, y), abs=0.01)
    with pytest.raises(ValueError, match="batch must be an int of 8 or more, got 4"):
        metrics.minibatch_cka(x, y, batch=4)
