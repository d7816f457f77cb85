"""The engine against the plainest possible computation: every pair, permutation and subset by the metric itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from alignlab.alignment import Alignment, align, engine
from alignlab.alignment.pairs import KernelPairs, NeighbourPairs
from alignlab.metrics import cka, mutual_knn, prepare

N, K = 48, 5


@pytest.fixture
def features() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    rng = np.random.default_rng(1)
    shared = rng.normal(size=(N, 6))
    x = [torch.tensor(shared @ rng.normal(size=(6, d)) + 0.5 * rng.normal(size=(N, d))) for d in (9, 12, 7)]
    y = [torch.tensor(shared @ rng.normal(size=(6, d)) + 0.5 * rng.normal(size=(N, d))) for d in (15, 60)]
    return prepare(x), prepare(y)


ENGINES = {
    "mutual_knn": (lambda x, y: NeighbourPairs(x, y, K), lambda a, b: mutual_knn(a, b, k=K)),
    "cka": (KernelPairs, cka),
}


def naive(metric, x, y) -> np.ndarray:
    return np.array([[metric(a, b) for b in y] for a in x])


@pytest.mark.parametrize("name", ENGINES)
def test_matrix_is_the_metric_of_every_pair(name, features):
    x, y = features
    engine, metric = ENGINES[name]
    np.testing.assert_allclose(engine(x, y).matrix().numpy(), naive(metric, x, y), rtol=1e-10)


@pytest.mark.parametrize("name", ENGINES)
def test_permuted_equals_measuring_shuffled_items(name, features):
    x, y = features
    engine, metric = ENGINES[name]
    perms = torch.stack([torch.randperm(N) for _ in range(6)])
    fast = engine(x, y).permuted(perms).numpy()
    for perm, scores in zip(perms, fast, strict=True):
        moved = [torch.empty_like(a).index_copy_(0, perm, a) for a in x]
        np.testing.assert_allclose(scores, naive(metric, moved, y), rtol=1e-9)


@pytest.mark.parametrize("name", ENGINES)
def test_subsampled_equals_measuring_the_subset(name, features):
    x, y = features
    engine, metric = ENGINES[name]
    subsets = torch.stack([torch.randperm(N)[: N // 2] for _ in range(6)])
    fast = engine(x, y).subsampled(subsets).numpy()
    for subset, scores in zip(subsets, fast, strict=True):
        np.testing.assert_allclose(scores, naive(metric, [a[subset] for a in x], [b[subset] for b in y]), rtol=1e-9)


def test_subsets_that_exhaust_the_neighbour_lists_are_still_exact(features):
    x, y = features
    engine = NeighbourPairs(x, y, K)
    engine.length = K + 1  # far too short for subsets: nearly every row must be completed
    engine.near_x, engine.near_y = engine.near_x[:, :, : K + 1], engine.near_y[:, :, : K + 1]
    subset = torch.randperm(N)[: N // 2]
    expected = naive(lambda a, b: mutual_knn(a, b, k=K), [a[subset] for a in x], [b[subset] for b in y])
    np.testing.assert_allclose(engine.subsampled(subset[None]).numpy()[0], expected, rtol=1e-10)


def test_float32_keeps_the_digits(features):
    x, y = features
    for name, (build, _) in ENGINES.items():
        wide = build(x, y).matrix().numpy()
        narrow = build([a.float() for a in x], [b.float() for b in y]).matrix().numpy()
        np.testing.assert_allclose(narrow, wide, rtol=2e-5, err_msg=name)


def test_align_reports_the_maximum_and_its_own_null(features):
    x, y = features
    result = align(x, y, ["mutual_knn", "cka"], k=K, nulls=50, resamples=40, q=1)
    for name, (_, metric) in ENGINES.items():
        expected = naive(metric, x, y)
        best = result.best(name)
        np.testing.assert_allclose(result.matrix(name), expected, rtol=1e-6)
        assert best.score == pytest.approx(expected.max())
        assert (best.x_layer, best.y_layer) == np.unravel_index(expected.argmax(), expected.shape)
        assert best.last_layer_score == pytest.approx(expected[-1, -1])
        nulls = result.metrics[name].null_max
        assert best.p == (1 + (nulls >= best.score).sum()) / 51
        assert best.z == pytest.approx((best.score - nulls.mean()) / nulls.std())
        assert best.calibrated == pytest.approx((best.score - nulls.mean()) / (1 - nulls.mean()))
        assert best.ci95[0] < best.score < best.ci95[1]


def test_layers_in_groups_give_the_same_result(features, monkeypatch):
    x, y = features
    whole = align(x, y, k=K, nulls=10, resamples=10)
    monkeypatch.setattr(engine, "BYTES_AT_ONCE", 1)
    split = align(x, y, k=K, nulls=10, resamples=10)
    for name in whole.metrics:
        np.testing.assert_allclose(whole.matrix(name), split.matrix(name))
        np.testing.assert_allclose(whole.metrics[name].null_max, split.metrics[name].null_max)
        np.testing.assert_allclose(whole.metrics[name].subset_max, split.metrics[name].subset_max)


def test_unrelated_features_are_not_significant_more_often_than_chance():
    rng = np.random.default_rng(5)
    p = {"mutual_knn": [], "cka": []}
    for _ in range(60):
        x, y = rng.normal(size=(40, 3, 20)), rng.normal(size=(40, 2, 90))
        result = align(x, y, k=4, nulls=19, resamples=0)
        for name in p:
            p[name].append(result.best(name).p)
    for name, values in p.items():
        # binomial(60, 0.05): more than 9 has probability 0.0005
        assert sum(v <= 0.05 for v in values) <= 9, name
        assert np.mean(values) > 0.3, name


def test_intervals_cover_the_score_of_a_large_sample():
    """The share of intervals that hold the truth; nominally 95%, here for CKA of a fixed population."""
    rng = np.random.default_rng(2)
    mix = rng.normal(size=(4, 6))

    def sample(n: int) -> tuple[np.ndarray, np.ndarray]:
        shared = rng.normal(size=(n, 4))
        return shared[:, None] + 0.7 * rng.normal(size=(n, 1, 4)), (shared @ mix)[:, None] + 0.7 * rng.normal(
            size=(n, 1, 6)
        )

    x, y = sample(20_000)
    truth = cka(
        x[:, 0] / np.linalg.norm(x[:, 0], axis=1, keepdims=True),
        y[:, 0] / np.linalg.norm(y[:, 0], axis=1, keepdims=True),
    )
    held = 0
    for _ in range(60):
        best = align(*sample(150), ["cka"], nulls=0, resamples=100, q=1).best("cka")
        held += best.ci95[0] - 0.02 <= truth <= best.ci95[1] + 0.02  # 0.02: the bias of CKA at N=150
    assert held >= 50


def test_a_layer_that_is_the_same_for_every_item_scores_zero_with_a_note(features):
    x, y = features
    x = [torch.ones(N, 9) * 3, *x]
    result = align(x, y, k=K, nulls=5, resamples=5)
    for name in result.metrics:
        assert (result.matrix(name)[0] == 0).all()
        assert (result.matrix(name)[1:] > 0).all()
    assert "layer 0 of x is the same for every item" in result.notes[0]


def test_all_layers_the_same_gives_zero_not_nan():
    x = np.ones((20, 2, 4))
    best = align(x, np.random.default_rng(0).normal(size=(20, 1, 4)), k=3, nulls=5, resamples=5).best("cka")
    assert (best.score, best.p) == (0.0, 1.0)


def test_accepts_arrays_tensors_and_half_precision(features):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(N, 2, 8)).astype("float32"), rng.normal(size=(N, 3, 5)).astype("float32")
    a = align(x, y, k=K, nulls=3, resamples=3)
    b = align(torch.tensor(x), torch.tensor(y), k=K, nulls=3, resamples=3)
    c = align(torch.tensor(x).bfloat16(), torch.tensor(y).bfloat16(), k=K, nulls=3, resamples=3)
    np.testing.assert_array_equal(a.matrix("cka"), b.matrix("cka"))
    np.testing.assert_allclose(a.matrix("cka"), c.matrix("cka"), atol=0.01)


def test_save_and_load_round_trip(tmp_path, features):
    result = align(*features, k=K, nulls=4, resamples=4)
    result.save(tmp_path / "a" / "alignment.json")
    again = Alignment.load(tmp_path / "a" / "alignment.json")
    assert again.best("cka") == result.best("cka")
    assert again.to_frame().equals(result.to_frame())
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(ValueError, match="no saved alignment"):
        Alignment.load(tmp_path / "bad.json")


def test_heatmap_is_a_picture(tmp_path, features):
    result = align(*features, k=K, nulls=4, resamples=4)
    result.heatmap("cka").savefig(tmp_path / "cka.png")
    assert (tmp_path / "cka.png").read_bytes().startswith(b"\x89PNG")


def test_frame_has_a_row_a_pair(features):
    frame = align(*features, k=K, nulls=0, resamples=0).to_frame()
    assert len(frame) == 2 * 3 * 2
    assert list(frame.columns) == ["metric", "x_layer", "y_layer", "score", "chance"]


def test_without_nulls_or_resamples_nothing_is_claimed(features):
    best = align(*features, k=K, nulls=0, resamples=0).best("cka")
    assert best.p is best.z is best.ci95 is best.calibrated is best.null_mean is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": ["ckaa"]}, "unknown metric 'ckaa'; did you mean cka"),
        ({"metrics": []}, "metrics is empty"),
        ({"k": 0}, r"k must be an int in \[1, N-1\], got 0 with N=48"),
        ({"k": 48}, r"k must be an int in \[1, N-1\], got 48 with N=48"),
        ({"k": 30}, "k must be at most 23"),
        ({"nulls": -1}, "nulls must be a whole number, 0 or more, got -1"),
        ({"q": 0}, "q must be in"),
        ({"seed": -1}, "seed must be a whole number, 0 or more, got -1"),
        ({"metrics": "cka"}, "metrics must be a list of names, got 'cka'"),
    ],
)
def test_bad_options_are_named(features, change, message):
    with pytest.raises(ValueError, match=message):
        align(*features, **{"k": K, "nulls": 2, "resamples": 2, **change})


def test_bad_features_are_named():
    good = np.random.default_rng(0).normal(size=(20, 2, 4))
    with_nan = good.copy()
    with_nan[7, 1, 2] = np.nan
    with pytest.raises(ValueError, match="x must be finite, but item 7"):
        align(with_nan, good, k=3)
    with pytest.raises(ValueError, match="same items, got 20 and 19"):
        align(good, good[:19], k=3)
    with pytest.raises(ValueError, match=r"y must be \[N, L, D\]"):
        align(good, good[:, 0], k=3)
    with pytest.raises(ValueError, match="4 items or more, got 3"):
        align(good[:3], good[:3], k=1)
    with pytest.raises(ValueError, match="floating-point"):
        align((good * 10).astype(int), good, k=3)


def test_chance_of_cka_is_the_mean_over_permutations(features):
    x, y = features
    engine = KernelPairs(x, y)
    perms = torch.stack([torch.randperm(N) for _ in range(4000)])
    np.testing.assert_allclose(engine.chance().numpy(), engine.permuted(perms).mean(0).numpy(), rtol=0.03)
