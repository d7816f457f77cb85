"""What is particular to single metrics and to `prepare`; what all metrics have in common is in test_all.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignlab import metrics
from alignlab.metrics import neighbours


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
