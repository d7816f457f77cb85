"""Several encoders by several language models: the tables, what is refused, and what the pictures show."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from matplotlib.figure import Figure

from alignlab.alignment import Alignment, align
from alignlab.alignment.compare import VALUES, Comparison, compare
from alignlab.alignment.figures import overlapping, profile

N = 40
ENCODERS, LLMS = ("mae", "clip", "vqgan"), ("qwen", "llama")
STRENGTH = {"mae": 1.0, "clip": 2.0, "vqgan": 0.3}


def layers(shared: np.ndarray, strength: float, depth: int, rng: np.random.Generator) -> np.ndarray:
    mixed = [strength * shared @ rng.normal(size=(5, 12)) + rng.normal(size=(len(shared), 12)) for _ in range(depth)]
    return np.stack(mixed, 1)


def measure(n: int = N, metrics: tuple[str, ...] = ("mutual_knn", "cka"), **options) -> list[Alignment]:
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(n, 5))
    x = {name: layers(shared, STRENGTH[name], 3, rng) for name in ENCODERS}
    y = {name: layers(shared, 1.5, 4, rng) for name in LLMS}
    settings = {"nulls": 19, "resamples": 20, "k": 4} | options
    return [
        dataclasses.replace(align(x[a], y[b], metrics, **settings), x_name=a, y_name=b) for a in ENCODERS for b in LLMS
    ]


@pytest.fixture(scope="module")
def results() -> list[Alignment]:
    return measure()


@pytest.fixture(scope="module")
def compared(results) -> Comparison:
    return compare(results)


@pytest.fixture(scope="module")
def partial(results) -> Comparison:
    return compare(results[:3])  # mae by both, clip by qwen alone


def test_names_are_in_the_order_of_the_results(compared):
    assert (compared.encoders, compared.llms, compared.metrics) == (ENCODERS, LLMS, ("mutual_knn", "cka"))
    assert compared.n == N


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("metric", ["mutual_knn", "cka"])
def test_matrix_holds_the_best_of_each_pair(compared, results, metric, value):
    frame = compared.matrix(metric, value)
    assert (tuple(frame.index), tuple(frame.columns)) == (ENCODERS, LLMS)
    assert (frame.dtypes == "float64").all()
    for r in results:
        expected = getattr(r.best(metric), value)
        assert frame.loc[r.x_name, r.y_name] == pytest.approx(np.nan if expected is None else expected, nan_ok=True)


def test_what_the_matrix_offers(compared):
    assert {"score", "calibrated", "null_mean", "p", "z", "chance", "x_layer", "y_layer"} <= set(VALUES)
    assert compared.matrix("cka").equals(compared.matrix("cka", "score"))


def test_intervals(compared, results):
    frame = compared.intervals("cka")
    for r in results:
        low, high = frame.loc[r.x_name, r.y_name]
        assert (low, high) == r.best("cka").ci95


def test_missing_pairs_are_nan(partial):
    assert partial.encoders == ("mae", "clip")
    for value in ("score", "p", "x_layer"):
        frame = partial.matrix("cka", value)
        assert np.isnan(frame.loc["clip", "llama"])
        assert frame.notna().to_numpy().sum() == 3
    assert partial.intervals("cka").loc["clip", "llama"].isna().all()
    ranks = partial.ranks("cka")
    assert ranks.isna().to_numpy().tolist() == [[False, False], [False, True]]
    assert len(partial.to_frame()) == 3 * 2


def test_ranks(compared):
    ranks, scores = compared.ranks("cka"), compared.matrix("cka")
    assert sorted(ranks["qwen"]) == [1, 2, 3]
    assert ranks.loc[scores["qwen"].idxmax(), "qwen"] == 1
    assert ranks["qwen"].idxmin() == "clip"
    assert compared.ranks("cka", "calibrated")["qwen"].idxmin() == "clip"


def test_equal_scores_share_a_rank(results):
    twins = [results[0], dataclasses.replace(results[0], x_name="twin"), results[4]]
    ranks = compare(twins).ranks("cka")["qwen"]
    assert list(ranks) == [1, 1, 3]


def test_long_form(compared, results):
    frame = compared.to_frame()
    assert list(frame.columns) == ["encoder", "llm", "metric", "n", *VALUES, "ci_low", "ci_high"]
    assert len(frame) == len(results) * 2
    row = frame[(frame.encoder == "clip") & (frame.llm == "llama") & (frame.metric == "cka")].iloc[0]
    best = results[3].best("cka")
    assert (row.score, row.p, row.x_layer, (row.ci_low, row.ci_high)) == (best.score, best.p, best.x_layer, best.ci95)
    wide = frame[frame.metric == "cka"].pivot(index="encoder", columns="llm", values="score")
    assert wide.loc[list(ENCODERS), list(LLMS)].to_numpy() == pytest.approx(compared.matrix("cka").to_numpy())


def test_without_nulls_and_intervals():
    bare = compare(measure(nulls=0, resamples=0)[:4])
    assert bare.matrix("cka", "p").isna().to_numpy().all()
    assert bare.intervals("cka").isna().to_numpy().all()
    assert bare.to_frame()["z"].isna().all()
    assert bare.ranks("cka", "z").isna().to_numpy().all()
    (axes, _) = bare.rank_plot("cka").axes
    assert [t.get_text() for t in axes.get_yticklabels()] == ["clip", "mae"]
    assert isinstance(bare.clustermap("cka", "score"), Figure)
    for picture in (bare.clustermap, bare.rank_plot):
        with pytest.raises(ValueError, match="no result has a value for 'calibrated'"):
            picture("cka", "calibrated")


def test_standings_are_one_scale_for_value_interval_and_null(compared, results):
    score = {s.encoder: s for s in compared.standings("cka", "qwen")}
    calibrated = {s.encoder: s for s in compared.standings("cka", "qwen", "calibrated")}
    z = {s.encoder: s for s in compared.standings("cka", "qwen", "z")}
    assert [s.value for s in compared.standings("cka", "qwen")] == sorted(
        (s.value for s in score.values()), reverse=True
    )
    for name in ENCODERS:
        assert (calibrated[name].null_mean, z[name].null_mean) == (0, 0)
        for other in (calibrated, z):
            shares = [(s.value - s.interval[0]) / (s.interval[1] - s.interval[0]) for s in (score[name], other[name])]
            assert shares[0] == pytest.approx(shares[1])


def test_only_metrics_of_all_results_are_compared(results):
    fewer = measure(metrics=("cka",))
    mixed = compare([*results[:3], *fewer[3:]])
    assert mixed.metrics == ("cka",)
    with pytest.raises(ValueError, match="metric must be one of cka, got 'mutual_knn'"):
        mixed.matrix("mutual_knn")
    with pytest.raises(ValueError, match="no metric in common"):
        compare([fewer[0], *measure(metrics=("mutual_knn",))[1:]])


def test_results_that_cannot_stand_beside_each_other(results):
    with pytest.raises(ValueError, match="results is empty"):
        compare([])
    with pytest.raises(ValueError, match="mae by qwen twice"):
        compare([*results, results[0]])
    with pytest.raises(ValueError, match="mae by qwen has 40, mae by llama has 30"):
        compare([results[0], measure(n=30)[1]])
    with pytest.raises(
        ValueError, match=r"mutual_knn with the same options: mae by qwen has k=4.*mae by llama has k=5"
    ):
        compare([results[0], measure(k=5)[1]])
    with pytest.raises(ValueError, match=r"write \[result\]"):
        compare(results[0])
    with pytest.raises(ValueError, match="got str"):
        compare(["mae"])


def test_unknown_names_are_named(compared):
    for call in (compared.matrix, compared.intervals, compared.ranks, compared.clustermap, compared.rank_plot):
        with pytest.raises(ValueError, match="metric must be one of mutual_knn, cka, got 'ckaa'"):
            call("ckaa")
    for call in (compared.matrix, compared.clustermap):
        with pytest.raises(ValueError, match=r"value must be one of score, .*, got 'scores'"):
            call("cka", "scores")
    for call in (compared.ranks, compared.rank_plot):
        with pytest.raises(ValueError, match="value must be one of score, calibrated, z, got 'p'"):
            call("cka", "p")
    with pytest.raises(ValueError, match="llm must be one of qwen, llama, got 'mae'"):
        compared.standings("cka", "mae")


def test_clustermap_keeps_each_number_at_its_names(compared):
    figure = compared.clustermap("cka")
    axes = next(a for a in figure.axes if a.get_xticklabels() and a.texts)
    names = [t.get_text() for t in axes.get_yticklabels()], [t.get_text() for t in axes.get_xticklabels()]
    frame = compared.matrix("cka", "calibrated").loc[names[0], names[1]]
    assert [t.get_text() for t in axes.texts] == [f"{v:.3f}" for v in frame.to_numpy().ravel()]
    assert len(figure.axes) == 4  # two trees, the map, its scale


def test_clustermap_without_trees(compared, partial, results):
    one_row, one_column = compare(results[:2]), compare(results[::2])
    for comparison in (partial, one_row, one_column, compare(results[:1])):
        figure = comparison.clustermap("cka")
        assert len(figure.axes) == 2
        assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == list(comparison.encoders)
    assert len(partial.clustermap("cka").axes[0].texts) == 3
    layers = compared.clustermap("cka", "x_layer")
    assert all(t.get_text() in "012" for a in layers.axes for t in a.texts)


def test_rank_plot_has_a_panel_a_model_with_the_best_uppermost(compared, partial):
    figure = compared.rank_plot("cka")
    assert [a.get_title() for a in figure.axes] == list(LLMS)
    for axes, llm in zip(figure.axes, LLMS, strict=True):
        expected = compared.matrix("cka")[llm].sort_values(ascending=False)
        assert [t.get_text() for t in axes.get_yticklabels()] == list(expected.index)
        assert axes.yaxis_inverted()
        dots = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"]
        assert dots == pytest.approx(list(expected))
    assert [t.get_text() for t in partial.rank_plot("cka").axes[1].get_yticklabels()] == ["mae"]


def test_overlapping_runs():
    assert overlapping([]) == []
    assert overlapping([(0, 1)]) == []
    assert overlapping([(4, 6), (3, 5), (2, 4.5)]) == [(0, 2)]
    assert overlapping([(4, 6), (3, 5), (1, 3.5), (0, 0.5)]) == [(0, 1), (1, 2)]
    assert overlapping([(4, 6), None, (4, 6)]) == []


def test_pictures_leave_pyplot_alone(compared, results, tmp_path):
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    for i, figure in enumerate((compared.clustermap("cka"), compared.rank_plot("cka"), profile(results[0], "cka"))):
        figure.savefig(tmp_path / f"{i}.png")
        assert (tmp_path / f"{i}.png").stat().st_size > 5000
    assert pyplot.get_fignums() == before


def test_profile_is_best_and_mean_over_the_other_side(results):
    result = results[0]
    found, best = result.metrics["cka"], result.best("cka")
    left, right = profile(result, "cka").axes[:2]
    for axes, other in ((left, 1), (right, 0)):
        drawn = [np.asarray(line.get_ydata(), float) for line in axes.lines]
        expected = [
            found.matrix.max(other),
            found.matrix.mean(other),
            found.chance.max(other),
            found.chance.mean(other),
        ]
        for values, wanted in zip(drawn, expected, strict=False):
            np.testing.assert_allclose(values, wanted)
        assert float(drawn[4][0]) == best.score
        assert float(drawn[5][0]) == best.null_mean
    assert left.lines[4].get_xdata()[0] == best.x_layer
    assert right.lines[4].get_xdata()[0] == best.y_layer
    title = profile(result, "cka").get_suptitle()
    assert all(part in title for part in ("mae", "qwen", "cka", "N = 40"))


def test_profile_of_layers_that_do_not_vary_and_of_a_single_layer():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(30, 3, 6)), rng.normal(size=(30, 1, 6))
    x[:, 0] = 1
    result = align(x, y, ["cka"], nulls=0, resamples=0)
    left, right = profile(result, "cka").axes[:2]
    assert list(left.lines[0].get_xdata()) == [1, 2]
    assert list(right.lines[0].get_xdata()) == [0]
    assert len(left.lines) == 5  # no null, no line for it
    nothing = align(x[:, :1], y, ["cka"], nulls=5, resamples=0)
    assert isinstance(profile(nothing, "cka"), Figure)
    with pytest.raises(ValueError, match="metric must be one of cka"):
        profile(result, "mutual_knn")
