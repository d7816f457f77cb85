"""The engine against the plainest possible computation: every pair, permutation and subset by the metric itself."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch

from alignlab.alignment import Alignment, align, engine
from alignlab.alignment.draws import Draws
from alignlab.alignment.graph_pairs import OverlapPairs
from alignlab.alignment.kernel_pairs import FactorPairs, KernelPairs
from alignlab.alignment.layers import Layers, repeated, symmetric_product
from alignlab.alignment.pairs import LayerPairs
from alignlab.alignment.settings import settle
from alignlab.metrics import NAMES, cka, mutual_knn, prepare
from alignlab.metrics.registry import REGISTRY

N, K = 48, 5
METRICS = {"mutual_knn": lambda a, b: mutual_knn(a, b, k=K), "cka": cka}
SLOW = {"rtd"}  # no tricks to test, and half a minute of barcodes


def model(shared: np.ndarray, widths: tuple[int, ...], rng: np.random.Generator) -> list[torch.Tensor]:
    n, d = shared.shape
    return prepare([torch.tensor(shared @ rng.normal(size=(d, w)) + 0.5 * rng.normal(size=(n, w))) for w in widths])


@pytest.fixture
def features() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    rng = np.random.default_rng(1)
    shared = rng.normal(size=(N, 6))
    return model(shared, (9, 12, 7), rng), model(shared, (15, 60), rng)


def naive(name: str, x: list[torch.Tensor], y: list[torch.Tensor], **options: object) -> np.ndarray:
    return np.array([[float(REGISTRY[name].core(a, b, **options)) for b in y] for a in x])


def routes(name: str, x: list[torch.Tensor], y: list[torch.Tensor]) -> list[LayerPairs]:
    """Every way in which the engine may compute a metric."""
    entry = REGISTRY[name]
    settings = settle(entry, K, {})
    sides = [Layers(x, keep_grams=True), Layers(y, keep_grams=True)]
    plain = [Layers(x), Layers(y)]
    if name in engine.FORMS:
        form = engine.FORMS[name]
        found: list[LayerPairs] = [KernelPairs(*sides, form, settings)]
        if form.factor is not None and max(f.shape[1] for f in (*x, *y)) < len(x[0]) // 2:
            found.append(FactorPairs(*plain, form, settings))
        return found
    draws = Draws(len(x[0]), 2, 2, 0, 0, "cpu")
    return [engine._builder(entry, settings, engine._Sides(*s, {}), draws)[0](*s) for s in (sides, plain)]


@pytest.mark.parametrize("name", [n for n in NAMES if n not in SLOW])
def test_matrix_permutations_and_subsets_are_the_metric_of_every_pair(name, features):
    x, y = features
    settings = settle(REGISTRY[name], K, {})
    generator = torch.Generator().manual_seed(0)
    perms = torch.stack([torch.randperm(N, generator=generator) for _ in range(3)])
    subsets = torch.stack([torch.randperm(N, generator=generator)[: N // 2] for _ in range(3)])
    for b in (y, [y[0], x[1]]):  # with and without a layer that is wider than N
        for pairs in routes(name, x, b):
            np.testing.assert_allclose(pairs.matrix(), naive(name, x, b, **settings), rtol=1e-8, atol=1e-10)
            for perm, scores in zip(perms, pairs.permuted(perms), strict=True):
                moved = [torch.empty_like(f).index_copy_(0, perm, f) for f in x]
                np.testing.assert_allclose(scores, naive(name, moved, b, **settings), rtol=1e-8, atol=1e-10)
            for subset, scores in zip(subsets, pairs.subsampled(subsets), strict=True):
                few = naive(name, [f[subset] for f in x], [f[subset] for f in b], **settings)
                np.testing.assert_allclose(scores, few, rtol=1e-8, atol=1e-10)


def test_every_way_is_taken_somewhere(features):
    x, y = features
    taken = {type(pairs).__name__ for name in NAMES if name not in SLOW for pairs in routes(name, x, [y[0]])}
    kinds = {"KernelPairs", "FactorPairs", "GraphPairs", "OverlapPairs", "SecondOrderPairs", "StatePairs", "EachPair"}
    assert taken == kinds


@pytest.mark.parametrize("name", [*engine.FORMS, "mutual_knn", "jaccard_knn"])
def test_chance_is_the_mean_over_permutations(name, features):
    x, y = features
    perms = torch.stack([torch.randperm(N, generator=torch.Generator().manual_seed(i)) for i in range(3000)])
    for pairs in routes(name, x, [y[0]]):
        chance = pairs.chance()
        if chance is None:
            assert not engine.FORMS[name].proportional
        else:
            drawn = pairs.permuted(perms)
            error = (drawn.std(0) / len(perms) ** 0.5).numpy()
            assert ((chance - drawn.mean(0)).abs().numpy() <= 5 * error + 1e-12).all()


def test_too_many_items_for_a_table_give_the_same(features, monkeypatch):
    x, y = features
    perms, subsets = torch.randperm(N)[None], torch.randperm(N)[None, : N // 2]
    table = OverlapPairs(Layers(x), Layers(y), K)
    monkeypatch.setattr("alignlab.alignment.graph_pairs.TABLE_BYTES", 0)
    lists = OverlapPairs(Layers(x), Layers(y), K)
    for a, b in ((table.matrix(), lists.matrix()), (table.permuted(perms), lists.permuted(perms))):
        np.testing.assert_allclose(a, b)
    np.testing.assert_allclose(table.subsampled(subsets), lists.subsampled(subsets))


@pytest.mark.parametrize("name", ["mutual_knn", "cknna"])
def test_subsets_that_exhaust_the_neighbour_lists_are_still_exact(name, features):
    x, y = features
    (pairs, _) = routes(name, x, y)
    pairs.length = K + 1  # far too short for subsets: nearly every row must be completed
    subset = torch.randperm(N)[: N // 2]
    expected = naive(name, [a[subset] for a in x], [b[subset] for b in y], k=K)
    np.testing.assert_allclose(pairs.subsampled(subset[None])[0], expected, rtol=1e-8)


@pytest.mark.parametrize("name", ["mutual_knn", *engine.FORMS])
def test_float32_keeps_the_digits(name, features):
    x, y = features
    for b in (y, [y[0]]):
        exact = routes(name, x, b)
        narrow = routes(name, [a.float() for a in x], [c.float() for c in b])
        for wide, small in zip(exact, narrow, strict=True):
            np.testing.assert_allclose(small.matrix(), wide.matrix(), rtol=3e-5, atol=2e-5)


def test_float32_keeps_the_digits_where_all_items_point_the_same_way():
    """Mean cosine above 0.999, as in the middle layers of language models: neighbours and CKA as in float64."""
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(300, 6))
    x, y = (
        prepare(torch.tensor(40 + shared @ rng.normal(size=(6, 64)) + rng.normal(size=(300, 64))))[:, None]
        for _ in "xy"
    )
    assert float((x[:, 0] @ x[:, 0].T).mean()) > 0.995
    wide = align(x, y, ["mutual_knn", "cka", "unbiased_cka"], nulls=0, resamples=0, q=1)
    narrow = align(x.float(), y.float(), ["mutual_knn", "cka", "unbiased_cka"], nulls=0, resamples=0, q=1)
    for name in wide.metrics:
        np.testing.assert_allclose(narrow.matrix(name), wide.matrix(name), rtol=2e-3)


def test_many_items_are_never_held_against_each_other(monkeypatch):
    """CKA through features and neighbours in blocks give what the matrices of all items by all items give."""
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(900, 8))
    x, y = (torch.tensor(shared @ rng.normal(size=(8, 12)) + rng.normal(size=(900, 12)))[:, None].float() for _ in "xy")
    names = ["mutual_knn", "cka", "unbiased_cka", "jaccard_knn"]
    settings = {"nulls": 5, "resamples": 5, "seed": 3}
    whole = align(x, y, names, **settings)
    for name, limit in (
        ("alignment.engine.BYTES_AT_ONCE", 1),
        ("alignment.graph_pairs.TABLE_BYTES", 0),
        ("metrics.inputs.ROWS_AT_ONCE", 100),
    ):
        monkeypatch.setattr(f"alignlab.{name}", limit)
    monkeypatch.setattr("alignlab.metrics.neighbours.ENTRIES_AT_ONCE", 10_000)
    made = []
    monkeypatch.setattr("alignlab.alignment.layers.symmetric_product", lambda *a: made.append(a))
    parts = align(x, y, names, **settings)
    assert not made
    for name in names:
        for array in ("matrix", "null_max", "subset_max", "chance"):
            a, b = (getattr(r.metrics[name], array) for r in (whole, parts))
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6, err_msg=f"{name} {array}")


def test_matrices_larger_than_any_memory_are_refused(features, monkeypatch):
    monkeypatch.setattr(engine, "memory", lambda: 1000)
    with pytest.raises(
        ValueError, match=r"rsa compares matrices of N x N numbers and needs .* with N=48; take a sample"
    ):
        align(*features, ["rsa"], nulls=0, resamples=0)


def test_dtypes_may_differ(features):
    x, y = features
    names = ["mutual_knn", "cka", "procrustes"]
    mixed = align([x[0].float(), x[1]], [f.float() for f in y], names, k=K, nulls=2, resamples=2, q=1)
    for name in names:
        exact = align(x[:2], y, [name], k=K, nulls=0, resamples=0, q=1).matrix(name)
        np.testing.assert_allclose(mixed.matrix(name), exact, rtol=1e-4)


def test_a_layer_that_varies_in_one_item_only_leaves_an_interval_or_none():
    """On half of the halves it is the same for every item: these are left out, and counted in a note."""
    rng = np.random.default_rng(0)
    y, z = rng.normal(size=(60, 1, 6)), np.ones((60, 1, 6))
    z[7] = [2, 1, 1, 1, 1, -3]
    names = ["cka", "gulp", "procrustes", "svcca", "distance_correlation"]
    result = align(z, y, names, nulls=5, resamples=20, split_half=3, options={"svcca": {"cca_dim": 1}})
    for name in names:
        best = result.best(name)
        assert best.ci95 is None or np.isfinite(best.ci95).all(), name
        assert np.isfinite([best.score, best.p, best.null_mean]).all(), name
        assert best.held_out is None or np.isfinite(best.held_out)
    assert any("gulp could not be measured on" in note for note in result.notes)


@pytest.mark.parametrize("n", [4, 5, 6, 7])
def test_halves_too_small_to_measure_are_refused(n):
    x = np.random.default_rng(0).normal(size=(n, 1, 9))
    with pytest.raises(ValueError, match=f"halves of {n} items are too few"):
        align(x, x, ["cka"])
    assert align(x, x, ["cka"], nulls=3, resamples=0).best("cka").score == pytest.approx(1)


def test_what_the_references_epsilon_takes_is_said():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(200, 64)) + 10 * rng.normal(size=64))[:, None]
    with_eps = align(x, x, ["unbiased_cka"], nulls=0, resamples=0)
    assert with_eps.best("unbiased_cka").score < 0.9
    assert any("with itself is 0." in note and "'eps': 0" in note for note in with_eps.notes)
    without = align(x, x, ["unbiased_cka"], nulls=0, resamples=0, options={"unbiased_cka": {"eps": 0.0}})
    assert without.best("unbiased_cka").score == pytest.approx(1)
    assert not without.notes


def test_repeated_items_on_both_sides_are_said():
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(4, 8))[rng.integers(0, 4, size=80)][:, None] for _ in "xy")
    assert any("same features as another" in note for note in align(x, y, k=4, nulls=0, resamples=0).notes)
    fresh = rng.normal(size=(80, 1, 8))
    assert not align(x, fresh, k=4, nulls=0, resamples=0).notes


def test_tied_neighbours_do_not_make_unrelated_items_significant():
    """Unrelated groups of identical items: in the order of the items, both sides would list the same neighbours."""
    rng = np.random.default_rng(0)
    names = ["mutual_knn", "lcs_knn", "cknna"]
    p: dict[str, list[float]] = {name: [] for name in names}
    for seed in range(60):
        x, y = (rng.normal(size=(3, 8))[rng.integers(0, 3, size=60)][:, None] for _ in "xy")
        result = align(x, y, names, k=5, nulls=19, resamples=0, seed=seed)
        for name in names:
            p[name].append(result.best(name).p)
    for name, values in p.items():
        assert sum(v <= 0.05 for v in values) <= 9, name  # binomial(60, 0.05): more than 9 has probability 0.0005


def test_repeated_counts_items_not_pairs():
    x = torch.tensor([[1.0, 2], [3, 4], [1, 2], [1, 2], [5, 6]])
    assert repeated(x) == 3 / 5
    assert repeated(x[:2]) == 0


def test_refusals_of_a_metric_reach_the_caller_of_align():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"rsa: a layer has an item .* whose features are all one number"):
        align(rng.normal(size=(60, 1, 1)), rng.normal(size=(60, 1, 4)), ["rsa"], nulls=0, resamples=0)


def test_numbers_of_numpy_are_saved_too(tmp_path, features):
    result = align(*features, k=np.int64(K), nulls=2, resamples=2, seed=np.int64(3))
    result.save(tmp_path / "a.json")
    assert Alignment.load(tmp_path / "a.json").best("cka") == result.best("cka")


def test_nothing_is_left_behind(features):
    """Features can be gigabytes: what holds them must go with the call, not with the next garbage collection."""
    align(*features, ["mutual_knn", "jaccard_knn", "cka", "rsa", "svcca"], k=K, nulls=2, resamples=2, split_half=1)
    gc.collect()
    gc.disable()
    try:
        align(*features, ["mutual_knn", "jaccard_knn", "cka", "rsa", "svcca"], k=K, nulls=2, resamples=2, split_half=1)
        assert not [o for o in gc.get_objects() if type(o) in (Layers, KernelPairs, OverlapPairs)]
    finally:
        gc.enable()


def test_a_symmetric_product_is_the_product():
    z = torch.randn(700, 30, dtype=torch.float64)
    out = torch.empty(700, 700, dtype=torch.float64)
    symmetric_product(z, out)
    torch.testing.assert_close(out, z @ z.T)


def test_align_reports_the_maximum_and_its_own_null(features):
    x, y = features
    result = align(x, y, ["mutual_knn", "cka"], k=K, nulls=50, resamples=40, q=1)
    for name in METRICS:
        expected = naive(name, x, y, **({"k": K} if name == "mutual_knn" else {}))
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


def test_the_maximum_of_unrelated_layers_is_not_significant_more_often_than_chance():
    rng = np.random.default_rng(5)
    names = ["mutual_knn", "cka", "unbiased_cka", "rsa", "procrustes", "lcs_knn"]
    p: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(60):
        x, y = rng.normal(size=(40, 3, 20)), rng.normal(size=(40, 2, 90))
        result = align(x, y, names, k=4, nulls=19, resamples=0)
        for name in names:
            p[name].append(result.best(name).p)
    for name, values in p.items():
        # binomial(60, 0.05): more than 9 has probability 0.0005
        assert sum(v <= 0.05 for v in values) <= 9, name
        assert np.mean(values) > 0.3, name


def test_split_halves_take_the_selection_out_of_the_score():
    """Unrelated features, many layer pairs: the best of them looks high, the pair chosen elsewhere does not."""
    rng = np.random.default_rng(0)
    above, held = [], []
    for seed in range(6):
        x, y = rng.normal(size=(60, 8, 10)), rng.normal(size=(60, 8, 10))
        best = align(x, y, ["unbiased_cka"], nulls=20, resamples=0, split_half=10, seed=seed).best("unbiased_cka")
        above.append(best.score - best.chance)
        held.append(best.held_out - best.held_out_null)
    assert min(above) > 0.03
    assert abs(np.mean(held)) < 0.03


def test_split_halves_score_what_is_there(features):
    x, y = features
    result = align(x, y, ["cka", "mutual_knn"], k=K, nulls=0, resamples=0, split_half=8, q=1)
    draws = Draws(N, 0, 0, 8, 0, "cpu")
    a, b, *_ = draws.halves
    assert not set(a.tolist()) & set(b.tolist())
    chosen = np.unravel_index(naive("cka", [f[b] for f in x], [f[b] for f in y]).argmax(), (3, 2))
    assert result.metrics["cka"].held_out[0] == pytest.approx(cka(x[chosen[0]][a], y[chosen[1]][a]), rel=1e-6)
    best = result.best("cka")
    assert best.held_out > best.held_out_null + 0.1
    assert best.p is None


def test_options_reach_their_metric(features):
    x, y = features
    result = align(x, y, ["rsa", "gulp"], q=1, nulls=2, resamples=2, options={"rsa": {"compare": "pearson"}})
    assert result.metrics["rsa"].params["compare"] == "pearson"
    np.testing.assert_allclose(
        result.matrix("rsa"), naive("rsa", x, y, dissimilarity="correlation", compare="pearson"), rtol=1e-6
    )
    assert result.metrics["gulp"].params["ridge"] == 0.01


def test_minibatches_estimate_unbiased_cka_and_say_so():
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(1500, 6))
    x, y = ((shared @ rng.normal(size=(6, 20)) + rng.normal(size=(1500, 20)))[:, None] for _ in "xy")
    exact = align(x, y, ["unbiased_cka"], nulls=0, resamples=0).best("unbiased_cka").score
    rough = align(x, y, ["unbiased_cka"], nulls=3, resamples=0, approximate="minibatch")
    assert rough.metrics["unbiased_cka"].params["approximate"] == "minibatch"
    assert rough.best("unbiased_cka").score == pytest.approx(exact, abs=0.02)
    assert abs(rough.best("unbiased_cka").null_mean) < 0.02


def test_faiss_finds_nearly_the_same_neighbours():
    pytest.importorskip("faiss", reason="needs the extra alignlab[faiss]")
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(800, 6))
    x, y = ((shared @ rng.normal(size=(6, 20)) + rng.normal(size=(800, 20)))[:, None] for _ in "xy")
    exact = align(x, y, ["mutual_knn"], nulls=0, resamples=0).best("mutual_knn").score
    rough = align(x, y, ["mutual_knn"], nulls=3, resamples=3, approximate="faiss")
    assert rough.metrics["mutual_knn"].params["approximate"] == "faiss"
    assert rough.best("mutual_knn").score == pytest.approx(exact, abs=0.01)


def test_a_metric_without_pairing_is_not_called_significant(features):
    result = align(*features, ["magnitude", "cka"], nulls=10, resamples=0)
    best = result.best("magnitude")
    assert best.p == 1
    assert best.z is None
    assert any("magnitude does not ask which item is which" in note for note in result.notes)


def test_the_best_is_never_a_layer_that_is_the_same_for_every_item():
    rng = np.random.default_rng(3)
    for seed in range(20):  # unbiased CKA of unrelated features is negative half of the time
        x, y = rng.normal(size=(30, 2, 5)), rng.normal(size=(30, 1, 5))
        x[:, 0] = 1.0
        best = align(x, y, ["unbiased_cka"], nulls=0, resamples=0, seed=seed).best("unbiased_cka")
        assert best.x_layer == 1
        assert best.score != 0


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
    assert best.score == 0
    assert best.p is best.z is best.ci95 is best.calibrated is None


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


def test_profile_is_a_picture(tmp_path, features):
    result = align(*features, k=K, nulls=4, resamples=4)
    result.profile("mutual_knn").savefig(tmp_path / "profile.png")
    assert (tmp_path / "profile.png").read_bytes().startswith(b"\x89PNG")


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
        ({"metrics": ["cknna"], "k": 1}, r"k must be an int in \[2, N-1\], got 1"),
        ({"options": {"cka": {"sigma": 2}}}, "cka has no option sigma here; its options: none"),
        ({"options": {"rsa": {}}}, "options names rsa, which is not among metrics"),
        ({"metrics": ["rsm_difference"], "options": {"rsm_difference": {"distance": True}}}, "no option distance here"),
        ({"metrics": ["rsa"], "options": {"rsa": {"compare": "kendall"}}}, "compare must be one of spearman, pearson"),
        ({"device": "gpu"}, "device 'gpu' cannot be used here"),
        ({"approximate": "lsh"}, "approximate must be among faiss, minibatch, got 'lsh'"),
        ({"approximate": "minibatch"}, "approximate='minibatch' is for unbiased_cka, got metrics mutual_knn, cka"),
        ({"split_half": -2}, "split_half must be a whole number, 0 or more, got -2"),
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
    with_zeros = good.copy()
    with_zeros[5, 1] = 0
    with pytest.raises(ValueError, match=r"y, layer 1, has a row of zeros \(item 5\)"):
        align(good, with_zeros, k=3)
    with pytest.raises(ValueError, match="floating-point"):
        align((good * 10).astype(int), good, k=3)
