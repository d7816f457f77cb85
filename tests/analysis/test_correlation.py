"""Alignment against restoration: the statistics against scipy's, and what is put together or refused."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from scipy import stats

from alignlab.analysis import correlation as analysis
from alignlab.analysis.correlation import bootstrap, correlate, correlation, permutation_test
from alignlab.analysis.points import Point, gather, read

LLM = "llm@sha256:" + "ab" * 32
RNG = np.random.default_rng(0)
LAYERS = 7  # of the language model, embedding included


def matrix(seed: int, llm_layers: int = LAYERS) -> list[list[float]]:
    return np.random.default_rng(seed).uniform(0, 1, (4, llm_layers)).tolist()


def pair(encoder="mae", llm="smollm2", llm_checkpoint=LLM, metric="cka", scores=None, k=10, pool="cls"):
    return {
        **{"encoder": encoder, "checkpoint": f"{encoder}@sha256:1", "pool": pool, "llm": llm, "llm_pool": "mean"},
        **{
            "llm_checkpoint": llm_checkpoint,
            "metric": metric,
            "params": {"k": k},
            "matrix": scores or matrix(len(encoder)),
        },
    }


def measured(*pairs, data="scenes"):
    return {
        "schema": "alignlab.measure/1",
        "data": {"name": data, "n": 64, "fingerprint": f"sha256:{data}"},
        "pairs": pairs,
    }


def figures(mean):
    return {"psnr": {"mean": mean, "ci95": mean and [mean - 0.1, mean + 0.1], "infinite": 0}}


def evaluation(gain, task="denoise", data="scenes", n=16, **changed):
    return {
        **{"task": task, "data": {"name": data, "fingerprint": "sha256:0", "items": 9}, "n": n, "seed": 1},
        **{"strength": None, "gain": figures(gain), "lift": figures(2.0), "restored": figures(20.0), **changed},
    }


def design(encoder="mae", llm="smollm2", **changed):
    return {
        **{"how": "lm4lv", "encoder": encoder, "decoder": None, "llm": llm, "tasks": ["denoise"], "task_tokens": 10},
        **{"features": "whitened", "lora": 0, "causal": False, "rotary": False, "seed": 0, **changed},
    }


def frozen(encoder="mae", llm="smollm2"):
    return {
        "encoder": f"{encoder.removesuffix('+position')}@sha256:1",
        "decoder": "d",
        "llm": LLM + llm.removeprefix("smollm2"),
    }


def trained(encoder="mae", llm="smollm2", gain=1.0, images=4000, evaluations=None, **changed):
    return {
        "schema": "alignlab.restore-train/1",
        "design": design(encoder, llm, **changed),
        "frozen": frozen(encoder, llm),
        "learnt": {"images": images},
        "evaluations": [evaluation(gain)] if evaluations is None else evaluations,
    }


@pytest.fixture
def write(tmp_path):
    number = itertools.count()

    def put(*results):
        paths = []
        for result in results:
            folder = tmp_path / f"run{next(number)}"
            folder.mkdir()
            (folder / "result.json").write_text(json.dumps(result))
            paths.append(folder)
        return paths

    return put


def gathered(paths, column="gain", **options):
    scores, restorations, left_out = read(paths, column)
    return gather(scores, restorations, left_out=left_out, **options)


# --- statistics ---


def test_coefficients_are_scipys():
    x, y = RNG.normal(size=9), RNG.normal(size=9)
    y[3] = y[4]
    assert float(correlate(x, y)) == pytest.approx(stats.pearsonr(x, y)[0])
    spearman = correlate(analysis.ranks(x), analysis.ranks(y))
    assert float(spearman) == pytest.approx(stats.spearmanr(x, y)[0])
    assert np.isnan(correlate(np.full(9, 0.1), y))
    np.testing.assert_allclose(correlate(np.stack([x, -x]), np.stack([y, y])), [correlate(x, y), -correlate(x, y)])


@pytest.mark.parametrize("n", [3, 4, 6])
def test_exact_p_values_are_scipys(n):
    x, y = RNG.normal(size=n), RNG.normal(size=n)
    found = permutation_test(x, y, correlate, [np.arange(n)])
    theirs = stats.permutation_test(
        (x,), lambda a: stats.pearsonr(a, y)[0], permutation_type="pairings", n_resamples=10**5
    )
    assert (found.exact, found.arrangements, found.n) == (True, math.factorial(n), n)
    assert found.r == pytest.approx(theirs.statistic)
    assert found.p == pytest.approx(theirs.pvalue)


@pytest.mark.parametrize("count", [3, 4, 5, 6, 7])
def test_what_is_the_same_within_each_group_does_not_vary_within_them(count):
    groups = np.repeat(np.arange(40), count)
    same = np.repeat(RNG.random(40), count)  # whose mean over a group is not always itself, to the last bit
    other = analysis._centred(RNG.random(len(same)), groups)
    assert np.isnan(correlate(analysis._centred(same, groups), other))


def test_perfect_order_cannot_do_better_than_two_over_n_factorial():
    for n in (3, 4, 5):
        found = permutation_test(
            np.arange(n),
            np.arange(n) ** 2,
            lambda a, b: correlate(analysis.ranks(a), analysis.ranks(b)),
            [np.arange(n)],
        )
        assert found.p == pytest.approx(2 / math.factorial(n))
        assert found.least == found.p


def test_drawn_p_values_are_near_the_exact_and_repeat():
    x = np.arange(12.0)
    y = x + 4 * RNG.normal(size=12)
    first, again = (permutation_test(x, y, correlate, [np.arange(12)], seed=3) for _ in range(2))
    assert first == again
    assert not first.exact
    assert first.p == pytest.approx(stats.pearsonr(x, y)[1], abs=0.02)
    assert permutation_test(x, x, correlate, [np.arange(12)]).p == pytest.approx(2 / 10_000)


def test_a_null_p_value_is_uniform():
    rng = np.random.default_rng(5)
    values = [permutation_test(rng.normal(size=6), rng.normal(size=6), correlate, [np.arange(6)]).p for _ in range(200)]
    assert abs(np.mean(np.array(values) <= 0.1) - 0.1) < 0.06


def test_blocks_keep_points_in_their_groups():
    x, y = RNG.normal(size=5), RNG.normal(size=5)
    blocks = [np.array([0, 1, 2]), np.array([3, 4])]
    found = permutation_test(x, y, correlate, blocks)
    assert found.arrangements == 12
    by_hand = [
        float(correlate(x[[*a, *b]], y))
        for a in itertools.permutations((0, 1, 2))
        for b in itertools.permutations((3, 4))
    ]
    r = float(correlate(x, y))
    tails = [np.mean(np.array(by_hand) >= r - 1e-9), np.mean(np.array(by_hand) <= r + 1e-9)]
    assert found.p == pytest.approx(min(1, 2 * min(tails)))
    assert permutation_test(x, y, correlate, [np.array([i]) for i in range(5)]).p is None  # nothing can be permuted
    assert permutation_test(np.ones(5), y, correlate, blocks).r is None


def test_whole_groups_change_places():
    x, y = np.array([0.0, 1, 10, 11, 20, 21]), np.array([0.0, 1, 10, 11, 20, 21])
    found = permutation_test(x, y, correlate, [np.array([0, 1]), np.array([2, 3]), np.array([4, 5])], whole=True)
    assert (found.r, found.arrangements, found.n) == (pytest.approx(1), 6, 3)
    assert found.p == pytest.approx(2 / 6)


def test_the_bootstrap_covers_and_is_silent_about_few():
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(30):
        x = rng.normal(size=40)
        y = 0.6 * x + 0.8 * rng.normal(size=40)
        low, high = bootstrap(x, y, correlate, [np.array([i]) for i in range(40)], seed=trial)
        hits += low <= 0.6 <= high
    assert hits >= 24
    assert bootstrap(x[:4], y[:4], correlate, [np.array([i]) for i in range(4)]) is None
    assert bootstrap(np.ones(9), y[:9], correlate, [np.array([i]) for i in range(9)]) is None


def points(encoders, depths, alignment, restoration):
    return [
        Point(e, f"smollm2[:{k}]", k, False, {"cka at": alignment(i, k)}, restoration(i, k), None, 1)
        for i, e in enumerate(encoders)
        for k in depths
    ]


def test_a_relation_between_encoders_is_not_one_within_them():
    noise = np.random.default_rng(3).normal(size=(4, 9))
    found = correlation(
        points("abcd", (2, 4, 6, 8), lambda i, k: i + 0.1 * noise[i, k], lambda i, k: i), "cka at", "pearson"
    )
    assert found.points.r > 0.95
    assert found.points.p < 0.001  # as if sixteen points were independent
    assert found.means.p == pytest.approx(2 / 24)  # there are four
    assert found.curves.p >= 2 / 24
    assert found.within.r is None  # restoration is the same within
    assert found.means.ci95 is None


def test_a_relation_within_encoders_is_hidden_by_their_levels():
    shift = (0, -30, 10)
    found = correlation(
        points("abc", (1, 2, 3, 4), lambda i, k: k + shift[i], lambda i, k: k - 3 * shift[i]), "cka at", "pearson"
    )
    assert found.points.r < 0
    assert found.within.r == pytest.approx(1)
    assert found.within.p < 0.01
    assert found.each == {name: pytest.approx(1.0) for name in "abc"}


def test_curves_need_the_same_depths():
    uneven = points("ab", (1, 2), lambda i, k: k + i, lambda i, k: k)[:3]
    assert correlation(uneven, "cka at", "spearman").curves is None


def test_too_few_points():
    two = points("ab", (1,), lambda i, k: i, lambda i, k: i)
    with pytest.raises(ValueError, match=r"3 points at least, got 2 \(a / smollm2\[:1\], b / smollm2\[:1\]\)"):
        correlation(two, "cka at", "spearman")
    three = points("abc", (1,), lambda i, k: i, lambda i, k: i)
    found = [correlation(three, "cka at", kind) for kind in analysis.KINDS]
    assert [one.points.p for one in found] == [pytest.approx(1 / 3)] * 2
    assert found[0].means is None  # they are the points
    said = " ".join(analysis.readings(three, found))
    assert "3 points are too few to conclude anything" in said
    assert "cannot be below 0.33 (2 / 3!)" in said
    with pytest.raises(ValueError, match="score must be one of cka at"):
        correlation(three, "cka", "spearman")
    with pytest.raises(ValueError, match="kind must be"):
        correlation(three, "cka at", "kendall")


def test_three_encoders_are_three_points_however_deep():
    found = points("abc", (1, 2, 3, 4), lambda i, k: i + k, lambda i, k: i + k)
    said = " ".join(analysis.readings(found, [correlation(found, "cka at", "spearman")]))
    assert "the 12 points are of 3 encoders" in said
    assert "3 encoders are 3 points" in said
    assert "too few" not in said
    assert said.startswith("yes, better aligned is better restored (Spearman within encoders: cka at +1.00")
    assert "3 encoders are not enough to compare encoders" in said
    one = points("a", (1, 2, 3, 4, 5), lambda i, k: 1.0, lambda i, k: k)
    said = " ".join(analysis.readings(one, [correlation(one, "cka at", "spearman")]))
    assert "nothing about encoders" in said
    assert "one side is the same for all points" in said


def test_the_answer_is_of_what_is_clear_after_all_that_was_tried():
    worse = points("abc", (1, 2, 3, 4), lambda i, k: i + k, lambda i, k: i - k)
    found = [correlation(worse, "cka at", kind) for kind in analysis.KINDS]
    assert analysis.readings(worse, found)[0].startswith("no, where it is clear, better aligned is worse restored")
    mixed = points("abcde", (1,), lambda i, k: i, lambda i, k: (2, 0, 4, 1, 3)[i])
    (said, *_) = analysis.readings(mixed, [correlation(mixed, "cka at", "spearman")])
    assert said.startswith("no correlation is clear (Spearman over points: cka at +0.30 (p ")
    # p = 2 / 5! = 0.017 of one correlation, not of four
    rising = points("abcde", (1,), lambda i, k: i, lambda i, k: i)
    once = correlation(rising, "cka at", "spearman")
    assert analysis.readings(rising, [once])[0].startswith(
        "yes, better aligned is better restored (Spearman over points"
    )
    assert analysis.readings(rising, [once] * 4)[0].startswith("no correlation is clear")


# --- points ---


def test_an_encoder_with_and_without_its_places_is_one():
    """They have one alignment score between them: six points of three encoders, not of six."""
    names = [name + place for name in ("mae", "beit", "vqgan") for place in ("", "+position")]
    points = [
        Point(encoder, "smollm2", 6, True, {"cka at": float(i // 2)}, i / 2, None, 1) for i, encoder in enumerate(names)
    ]
    assert analysis.owners(points) == ["mae", "mae", "beit", "beit", "vqgan", "vqgan"]
    assert analysis.owners(points[1::2]) == ["mae+position", "beit+position", "vqgan+position"]
    found = correlation(points, "cka at", "spearman")
    assert found.means is not None
    assert (found.means.n, found.means.ci95) == (3, None)
    said = analysis.readings(points, [found])
    assert "mae and mae+position have one alignment score between them and count as one encoder" in said
    assert any("3 encoders are 3 points" in line for line in said)


def test_a_cut_model_reads_layer_k_of_the_whole(write):
    scores = matrix(3)
    found = gathered(write(measured(pair(scores=scores)), trained(llm="smollm2[:2]", gain=0.5), trained(gain=2.0)))
    table = np.array(scores)
    cut, whole = found.points
    assert (cut.name, cut.depth, cut.own, cut.restoration) == ("mae / smollm2[:2]", 2, False, 0.5)
    assert cut.alignment == {"cka at": table[:, 2].max(), "cka upto": table[:, :3].max()}
    assert (whole.depth, whole.own, whole.interval) == (LAYERS - 1, True, (1.9, 2.1))
    assert whole.alignment == {"cka at": table[:, -1].max(), "cka upto": table.max()}
    assert any("before the final norm" in note for note in found.notes)
    assert (found.images, found.task, found.alignment_data) == ((4000,), "denoise", "scenes (64 items, scenes)")


def test_a_cut_models_own_measurement_wins(write):
    own = matrix(8, 3)
    pairs = (pair(), pair(llm="smollm2[:2]", llm_checkpoint=f"{LLM}[:2]", scores=own))
    found = gathered(write(measured(*pairs), trained(llm="smollm2[:2]"), trained(llm="smollm2[:4]")))
    first, second = found.points
    assert (first.own, first.alignment["cka at"]) == (True, np.array(own)[:, -1].max())
    assert not second.own
    assert any("not quite alike" in note for note in found.notes)


def test_restorations_without_a_score_are_listed(write):
    paths = write(
        measured(pair(), pair(metric="mutual_knn"), pair("beit")),
        *(
            trained(*names)
            for names in (("mae", "smollm2"), ("mae", "smollm2@random"), ("beit",), ("mae", "smollm2[:9]"))
        ),
    )
    found = gathered(paths)
    assert [point.name for point in found.points] == ["mae / smollm2"]
    said = "\n".join(found.missing)
    assert len(found.missing) == 3
    assert "mae / smollm2@random: no cka, mutual_knn of mae@sha256:1 with llm@sha256:abababab@random" in said
    assert "beit / smollm2: no mutual_knn" in said  # a point has every score or is none
    assert "mae / smollm2[:9]" in said


def test_a_random_models_score_is_not_the_trained_ones(write):
    scores = matrix(9)
    paths = write(
        measured(pair(), pair(llm="smollm2@random", llm_checkpoint=f"{LLM}@random", scores=scores)),
        trained(llm="smollm2@random"),
    )
    assert gathered(paths).points[0].alignment["cka at"] == np.array(scores)[:, -1].max()


def test_names_with_a_position_code_and_older_whitened_names(write):
    old = trained()
    old["frozen"]["encoder"] += "+whitened:0123"
    found = gathered(write(measured(pair()), old, trained("mae+position")))
    assert len(found.points) == 2
    assert any("position code" in note for note in found.notes)


def test_runs_of_several_seeds_are_averaged_and_the_same_run_counts_once(write):
    done = {"name": "a", "status": "done", "run": "x", "design": design(), "frozen": frozen(), "images": 4000}
    rows = [{**done, "evaluations": [evaluation(1.0)]}, {"name": "b", "status": "missing"}]
    table = {"schema": "alignlab.reproduce/1", "rows": rows}
    found = gathered(write(measured(pair()), trained(gain=1.0), trained(gain=3.0, seed=1), table))
    (point,) = found.points
    assert (point.restoration, point.runs, point.interval) == (2.0, 2, None)
    assert any("b: missing" in line for line in found.left_out)
    with pytest.raises(ValueError, match="several runs of one seed"):
        gathered(write(measured(pair()), trained(gain=1.0), trained(gain=3.0)))


def test_columns(write):
    paths = write(measured(pair()), trained(evaluations=[evaluation(None)]))
    assert gathered(paths, "restored").points[0].restoration == 20.0
    assert gathered(paths, "lift").points[0].restoration == 2.0
    found = gathered(paths)
    assert (found.points, len(found.left_out)) == ((), 1)
    with pytest.raises(ValueError, match="column must be one of gain"):
        read(paths, "psnr")


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([trained("beit", images=8000)], r"different numbers of images \(4,000, 8,000\).*--any-budget"),
        ([trained("beit", evaluations=[evaluation(1.0, "rotate")])], r"more than one task \(denoise, rotate\).*--task"),
        ([trained("beit", evaluations=[evaluation(1.0, data="photos")])], r"photos, scenes\).*--data"),
        ([trained("beit", evaluations=[evaluation(1.0, n=17)])], "more than one way that denoise was measured"),
        ([trained("beit", evaluations=[evaluation(1.0, mode="free")])], "more than one way that denoise was measured"),
        ([trained(seed=1, task_tokens=3)], "more than one design of mae / smollm2"),
        ([measured(pair("beit"), data="photos")], "set that alignment was measured on.*--alignment-data"),
        ([measured(pair(pool="mean"))], "measured twice"),
        ([measured(pair("beit", k=5))], "measured in several ways"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared(write, others, message):
    with pytest.raises(ValueError, match=message):
        gathered(write(measured(pair()), trained(), *others))


def test_choices_make_one_of_several(write):
    both = [evaluation(1.0), evaluation(5.0, "rotate")]
    paths = write(
        measured(pair()),
        measured(pair(scores=matrix(7)), data="photos"),
        trained(evaluations=both),
        trained("beit", images=1),
    )
    found = gathered(paths, task="rotate", alignment_data="photos")
    assert [point.restoration for point in found.points] == [5.0]
    assert any("it is denoise, not rotate" in line for line in found.left_out)
    found = gathered(paths, task="denoise", alignment_data="photos", any_budget=True)
    assert len(found.missing) == 1
    assert found.images == (1, 4000)
    assert any("different numbers of images" in note for note in found.notes)
    for wrong, message in (
        ({"task": "paint"}, "task must be one of"),
        ({"task": "mask"}, "no restoration by lm4lv of mask"),
        ({"task": "denoise", "data": "nocaps"}, "no restoration by lm4lv of denoise on nocaps"),
        ({"task": "rotate", "alignment_data": "wit"}, "no alignment was measured on wit"),
    ):
        with pytest.raises(ValueError, match=message):
            gathered(paths, **wrong)


def test_evaluations_say_their_budget_older_ones_do_not(write):
    row = {"checkpoint": "x", "design": design(), "frozen": frozen(), **evaluation(1.5)}
    paths = write(measured(pair()), {"schema": "alignlab.restore-eval/1", "results": [row]})
    with pytest.raises(ValueError, match="does not say how many images"):
        gathered(paths)
    assert gathered(paths, any_budget=True).points[0].restoration == 1.5
    assert gathered([*paths, *write(trained(gain=1.5))]).images == (4000,)  # the same run, which says it
    known = {**row, "steps": {"done": 50, "planned": 500, "images": 400}}
    assert gathered(write(measured(pair()), {"schema": "alignlab.restore-eval/1", "results": [known]})).images == (400,)


def test_unlike_trainings_are_told(write):
    def run_of(encoder, tasks=("denoise",), lr=0.003, data="scenes"):
        found = trained(encoder=encoder, tasks=list(tasks))
        return {**found, "recipe": {"lr": lr, "steps": 500, "seed": 0}, "data": [{"name": data, "fingerprint": ""}]}

    both = measured(pair("mae"), pair("beit"))
    alike = gathered(write(both, run_of("mae"), run_of("beit")), task="denoise")
    assert alike.notes == ()
    several = gathered(write(both, run_of("mae"), run_of("beit", ("denoise", "mask"), 0.1, "photos")), task="denoise")
    told = " ".join(several.notes)
    assert "learnt different tasks (denoise; denoise, mask)" in told
    assert "training's recipe" in told
    assert "training's data" in told


def test_experts_are_left_out(write):
    linear = trained(how="linear")
    del linear["frozen"]["llm"]
    found = gathered(write(measured(pair()), trained(), linear))
    assert len(found.points) == 1
    assert any("how is linear" in line for line in found.left_out)


def test_files_that_are_no_results(write, tmp_path):
    (tmp_path / "a.json").write_text("[1]")
    (tmp_path / "b.json").write_text("{")
    for path, message in (
        (tmp_path / "a.json", "is no result of"),
        (tmp_path / "b.json", "is no result of"),
        (*write({"schema": "else/1"}), "its schema is 'else/1'"),
        (*write({**measured(pair()), "pairs": [{}]}), "it lacks 'matrix'"),
        (*write({"schema": "alignlab.restore-train/1"}), "it lacks 'evaluations'"),
        (*write(measured(pair(scores=[[0.1, math.nan]]))), "no finite scores"),
    ):
        with pytest.raises(ValueError, match=message):
            read([path])
    with pytest.raises(FileNotFoundError):
        read([tmp_path / "nothing.json"])
    # As a pattern of folders finds them: what is no restoration, and what is not finished.
    (tmp_path / "begun").mkdir()
    (captions,) = write({"schema": "alignlab.caption-train/1"})
    _, _, out = read([captions, tmp_path / "begun"])
    assert out == [
        f"{captions.name}: a result of another kind (alignlab.caption-train)",
        "begun: it has no result.json (not finished?)",
    ]
    with pytest.raises(ValueError, match="no alignment score"):
        gathered(write(trained()))
    with pytest.raises(ValueError, match="no restoration among"):
        gathered(write(measured(pair())))
    unmeasured, left_out = read(write(trained(evaluations=[])))[1:]
    assert (unmeasured, len(left_out)) == ([], 1)


def test_the_picture_names_every_point():
    found = points(("mae", "beit"), (2, 4), lambda i, k: i + k, lambda i, k: i * k)
    found.append(Point("mae", "smollm2@random", 6, True, {"cka at": 0.0}, 0.0, (-0.1, 0.1), 1))
    tests = [correlation(found, "cka at", kind) for kind in analysis.KINDS]
    figure = analysis.scatter(found, tests, "gain", "title")
    texts = {text.get_text() for text in figure.axes[0].texts}
    assert texts == {"mae [:2]", "mae [:4]", "beit [:2]", "beit [:4]", "mae random"}
    assert "5 points" in figure.axes[0].get_title()
