"""mutual_knn, cka and prepare: against plain references, their claimed invariances, and bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from alignlab import metrics
from alignlab.metrics import neighbours

FUNCTIONS = {"mutual_knn": lambda x, y: metrics.mutual_knn(x, y, k=5), "cka": metrics.cka}
shapes = st.tuples(st.integers(8, 40), st.integers(2, 30), st.integers(2, 30), st.integers(0, 10_000))


def draw(shape) -> tuple[np.ndarray, np.ndarray]:
    n, dx, dy, seed = shape
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, dx)), rng.normal(size=(n, dy))


def rotation(d: int, seed: int = 0) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))[0]


def plain_cka(x: np.ndarray, y: np.ndarray) -> float:
    """The definition, with the centring matrix written out."""
    n = len(x)
    h = np.eye(n) - 1 / n
    k, l = h @ x @ x.T @ h, h @ y @ y.T @ h
    return float(np.trace(k @ l) / np.sqrt(np.trace(k @ k) * np.trace(l @ l)))


def plain_mutual_knn(x: np.ndarray, y: np.ndarray, k: int) -> float:
    """scikit-learn's neighbours of normalised rows: cosine neighbours are inner-product neighbours there."""
    found = [NearestNeighbors(n_neighbors=k, metric="cosine").fit(z).kneighbors(return_distance=False) for z in (x, y)]
    return float(np.mean([len(set(a) & set(b)) / k for a, b in zip(*found, strict=True)]))


@settings(max_examples=40, deadline=None)
@given(shapes)
def test_cka_is_its_definition_in_either_form(shape):
    x, y = draw(shape)  # D < N goes through features, D >= N through Gram matrices
    assert metrics.cka(x, y) == pytest.approx(plain_cka(x, y), rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(shapes)
def test_mutual_knn_is_its_definition(shape):
    x, y = (metrics.prepare(z, q=1) for z in draw(shape))
    assert metrics.mutual_knn(x, y, k=5) == pytest.approx(plain_mutual_knn(x, y, 5))


@pytest.mark.parametrize("name", FUNCTIONS)
@settings(max_examples=30, deadline=None)
@given(shape=shapes)
def test_what_the_docstrings_claim(name, shape):
    f = FUNCTIONS[name]
    x, y = draw(shape)
    score = f(x, y)
    assert 0 <= score <= 1 + 1e-12
    assert f(x, x) == pytest.approx(1)
    assert f(y, x) == pytest.approx(score)
    assert f(x @ rotation(x.shape[1]), y) == pytest.approx(score)
    assert f(3.7 * x, 0.2 * y) == pytest.approx(score)
    if name == "cka":
        assert f(x + 5, y - 2) == pytest.approx(score)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_numpy_torch_and_precisions_agree(name):
    f = FUNCTIONS[name]
    x, y = draw((60, 10, 90, 1))
    score = f(x, y)
    assert f(torch.tensor(x), torch.tensor(y)) == score
    assert f(x.astype("float32"), y) == pytest.approx(score, rel=1e-5)
    assert f(x.astype("float32"), y.astype("float32")) == pytest.approx(score, rel=1e-5)
    assert f(torch.tensor(x).bfloat16(), torch.tensor(y)) == pytest.approx(score, abs=0.05)
    if torch.cuda.is_available():
        assert f(torch.tensor(x).cuda(), torch.tensor(y).cuda()) == pytest.approx(score, rel=1e-5)
    assert metrics.score(name, x, y, **({"k": 5} if name == "mutual_knn" else {})) == score


def test_unrelated_features_share_about_k_of_n_neighbours():
    scores = [metrics.mutual_knn(*draw((200, 20, 20, seed)), k=10) for seed in range(20)]
    assert np.mean(scores) == pytest.approx(10 / 199, rel=0.1)


def test_blocks_do_not_change_neighbours(monkeypatch):
    x = torch.randn(50, 6)
    whole = neighbours.nearest(x, 7)
    monkeypatch.setattr(neighbours, "BLOCK", 8)
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


@pytest.mark.parametrize("name", FUNCTIONS)
def test_bad_input_is_named(name):
    f = FUNCTIONS[name]
    x, y = draw((20, 4, 6, 0))
    holes = x.copy()
    holes[3, 1] = np.inf
    for bad, message in (
        (x[:19], "same number of items, got 19 and 20"),
        (x[:, 0], r"X must be \[N, D\], got shape \(20,\)"),
        (holes, "X must be finite, but item 3 holds nan or inf"),
        ((x * 10).astype(int), "X must hold floating-point numbers, got int64"),
        (np.empty((20, 0)), "X is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            f(bad, y)
    with pytest.raises(ValueError, match="4 items or more, got 3"):
        f(x[:3], y[:3])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_features_that_never_change_score_zero_with_a_warning(name):
    x, _ = draw((20, 4, 6, 0))
    with pytest.warns(UserWarning, match="Y is the same for every item"):
        assert FUNCTIONS[name](x, np.full((20, 3), 2.5)) == 0.0


@pytest.mark.parametrize("k", [0, -1, 20, 2.0, True])
def test_k_must_fit(k):
    x, y = draw((20, 4, 6, 0))
    with pytest.raises(ValueError, match=rf"k must be an int in \[1, N-1\], got {k} with N=20"):
        metrics.mutual_knn(x, y, k=k)


def test_names_and_score():
    assert {"mutual_knn", "cka"} <= set(metrics.NAMES)
    with pytest.raises(ValueError, match="unknown metric 'mutual_nn'; did you mean mutual_knn"):
        metrics.score("mutual_nn", np.eye(5), np.eye(5))


def test_q_must_be_a_share():
    for q in (0, 1.5, -0.1):
        with pytest.raises(ValueError, match=r"q must be in \(0, 1\]"):
            metrics.prepare(np.eye(5), q)
