"""Table 4 on small random models: rows are run once and put together; averages and sentences are those of the numbers."""

from __future__ import annotations

import copy
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from alignlab import paper, training
from alignlab.captioning import fit, table4
from alignlab.captioning.evaluation import RESAMPLES, SEED
from alignlab.captioning.fit import RECIPE, Captioning
from alignlab.captioning.table4 import EMBEDDED, PAPER, Lab, table
from alignlab.captioning.table4_columns import columns, difference, human
from alignlab.captioning.table4_readings import orders, readings
from alignlab.cli import run
from alignlab.cli.common import console
from alignlab.cli.reproduce_table4 import show
from alignlab.models import llm_load, vision
from alignlab.restoration import estimate


@pytest.fixture(autouse=True)
def no_java(monkeypatch):
    """METEOR takes seconds to start."""
    monkeypatch.setenv("PATH", "")


@pytest.fixture(scope="module")
def judge(small_judge):
    return small_judge


@pytest.fixture(scope="module")
def lab(tmp_path_factory, blurs, small_mae, small_llm, judge):
    """A laboratory of three small encoders: one network with its weights moved a little."""
    photos = str(blurs("photos", 24, caption="a blur of number {}\nit is a blur\n"))
    encoders = {"MAE": str(small_mae)}
    for name in ("BEiT", "VQGAN"):
        folder = tmp_path_factory.mktemp("encoders") / f"small-{name.lower()}"
        shutil.copytree(small_mae, folder)
        weights = load_file(folder / "model.safetensors")
        moved = {key: x + 0.05 * len(name) * torch.ones_like(x) for key, x in weights.items()}
        save_file(moved, folder / "model.safetensors", metadata={"format": "pt"})
        encoders[name] = str(folder)
    return Lab(
        "embedded",
        encoders={name: encoders[name] for name in ("VQGAN", "BEiT", "MAE")},
        controls={"mae@random": f"{small_mae}@random"},
        llm=str(small_llm),
        data=photos,
        align_on=photos,
        recipe=replace(RECIPE, steps=2, batch=4, warmup=1),
        judge=judge,
    )


@pytest.fixture
def here(lab, tmp_path, monkeypatch):
    """The small laboratory in the embedded one's place, in an empty folder."""
    monkeypatch.setitem(table4.LABS, "embedded", lab)
    monkeypatch.setattr(estimate, "matmul_rate", lambda device, dtype: 1e11)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def plain(path):
    """A file of JSON, read as strictly as JSON is."""

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


COMMAND = ["reproduce", "table4", "--n", "4", "--device", "cpu"]


def test_rows_are_run_one_by_one_and_put_together(here, lab, small_mae, capsys, monkeypatch):
    assert run([*COMMAND, "--only", "MAE", "--out", "one"]) == 0
    assert "VQGAN: not asked for" in capsys.readouterr().out
    first = plain(here / "one" / "result.json")
    assert [row["name"] for row in first["rows"]] == ["MAE"]
    assert first["not_asked_for"] == ["VQGAN", "BEiT", "mae@random"]
    # Nothing is trained: the others are missing.
    assert run([*COMMAND, "--no-train", "--out", "two", "--json", "too.json"]) == 0
    printed = capsys.readouterr().out
    assert "BEiT: missing" in printed
    assert "no row of a random encoder has numbers" in printed
    result = plain(here / "two" / "result.json")
    assert result == plain(here / "too.json")
    assert result["missing"] == ["VQGAN", "BEiT", "mae@random"]
    assert result["rows"][2]["columns"] == first["rows"][0]["columns"]
    assert all(order["holds"] is None and order["missing"] == ["BEiT", "VQGAN"] for order in result["orders"])

    assert run([*COMMAND, "--out", "all"]) == 0
    printed = capsys.readouterr().out
    result = plain(here / "all" / "result.json")
    assert (result["schema"], result["laboratory"]) == ("alignlab.reproduce-table4/1", "embedded")
    assert result["missing"] == []
    assert result["budget"] == {"images": [8], "n": 4}
    assert result["judge"].startswith("open_clip:small-judge/judge.safetensors@sha256:")
    assert [row["name"] for row in result["rows"]] == ["VQGAN", "BEiT", "MAE", "mae@random"]
    for row in result["rows"]:
        assert row["control"] == (row["name"] == "mae@random")
        assert set(row["columns"]) == {"CS", "Ref-CS", "CIDEr", "M-kNN", "CKA", "Avg"}
        assert (row["status"], row["images"], row["learnt"]) == ("done", 8, 19)
        assert row["columns"]["CS"]["score"] == pytest.approx(
            100 * row["evaluation"]["scores"]["generated"]["CLIPScore"]["score"]
        )
        assert set(row["evaluation"]["each"]) == {"generated", "shuffled"}
        assert len(row["evaluation"]["each"]["shuffled"]["CLIPScore"]) == 4
        assert np.array(row["alignment"]["cka"]["matrix"]).shape == (3, 3)
        assert row["alignment"]["mutual_knn"]["params"]["k"] == 10
        assert row["alignment"]["of"]["data"]["n"] == 24
        low, high = row["columns"]["Avg"]["ci95"]
        assert low < row["columns"]["Avg"]["score"] < high
    assert {row["name"]: row["paper"] for row in result["rows"] if row["paper"]} == paper.TABLE4
    assert result["human"]["images"] == 4
    assert {order["column"] for order in result["orders"]} == {"CS", "Ref-CS", "M-kNN", "CKA", "Avg"}
    assert any(line.startswith("MAE minus mae@random, both above chance: CS ") for line in result["readings"])
    assert set(result["pictures"]) == {
        "table4.png",
        *(f"captions-{n}.jpg" for n in ("VQGAN", "BEiT", "MAE", "mae-random")),
    }
    assert all((here / "all" / name).stat().st_size > 1000 for name in result["pictures"])
    assert "embedded laboratory (small models, not the paper's)" in printed
    assert "0.36" in printed  # the paper's average
    result["environment"].pop("command")
    for row in result["rows"]:
        row["environment"].pop("command")
    said = json.dumps(result)
    assert not any(str(path) in said for path in (here, small_mae.parent, lab.data.rpartition("/")[0]))

    # What is finished is read: nothing trains, nothing is aligned.
    monkeypatch.setattr(fit, "fit", None)
    monkeypatch.setattr(table4, "_align", None)
    assert run([*COMMAND, "--out", "again"]) == 0
    again = plain(here / "again" / "result.json")
    assert (again["rows"], again["readings"]) == (plain(here / "all" / "result.json")["rows"], result["readings"])
    assert run([*COMMAND, "--dry-run"]) == 0
    assert capsys.readouterr().out.count("done") == 4

    # Where no run lies, the rows of the result stay with their pictures, and nothing is trained for them.
    elsewhere = ["--runs", "none", "--out", "all"]
    assert run([*COMMAND, *elsewhere, "--dry-run", "--json", "plan.json"]) == 0
    assert [(row["state"], row["hours_left"]) for row in plain(here / "plan.json")["rows"]] == [("kept", 0.0)] * 4
    for more in (["--no-train"], []):
        assert run([*COMMAND, *elsewhere, *more]) == 0
        assert "no such run is under --runs: VQGAN, BEiT, MAE, mae@random" in capsys.readouterr().err
        kept = plain(here / "all" / "result.json")
        assert (kept["rows"], kept["readings"], kept["missing"]) == (again["rows"], result["readings"], [])
        assert all((here / "all" / name).is_file() for name in kept["pictures"])
    # Not those of another measurement.
    assert run([*COMMAND, "--n", "3", "--no-train", *elsewhere]) == 0
    assert plain(here / "all" / "result.json")["missing"] == ["VQGAN", "BEiT", "MAE", "mae@random"]
    (here / "all" / "result.json").write_text("{")
    capsys.readouterr()
    assert run([*COMMAND, *elsewhere]) == 2
    assert "is damaged, and its rows cannot be kept" in capsys.readouterr().err


def test_a_run_that_was_stopped_is_shown_as_far_as_it_is_and_goes_on(here, lab, monkeypatch, capsys):
    step = Captioning.step

    def stop(self, items, done):
        if done >= 0.5:
            raise KeyboardInterrupt
        return step(self, items, done)

    with monkeypatch.context() as patch:
        patch.setattr(Captioning, "step", stop)
        patch.setattr(training, "SAVE_EVERY", -1.0)
        assert run([*COMMAND, "--only", "MAE"]) == 1
    capsys.readouterr()
    assert run([*COMMAND, "--dry-run", "--json", "plan.json"]) == 0
    assert "1 of 2 steps" in capsys.readouterr().out
    (row,) = [row for row in plain(here / "plan.json")["rows"] if row["name"] == "MAE"]
    assert (row["state"], row["steps_done"], row["aligned"], row["captioned"]) == ("partly", 1, True, False)
    assert run([*COMMAND, "--no-train", "--only", "MAE", "--out", "stopped"]) == 0
    row = plain(here / "stopped" / "result.json")["rows"][0]
    assert (row["status"], set(row["columns"])) == ("partly", {"M-kNN", "CKA"})
    assert "MAE: not finished" in capsys.readouterr().out
    assert run([*COMMAND, "--only", "MAE", "--out", "on"]) == 0
    assert plain(here / "on" / "result.json")["rows"][0]["status"] == "done"
    (where,) = (here / "runs" / "reproduce" / "embedded").iterdir()
    (where / "alignment.json").write_text("{")  # damaged
    assert run([*COMMAND, "--only", "MAE", "--dry-run"]) == 0
    assert "to be aligned" in capsys.readouterr().out
    assert run([*COMMAND, "--only", "MAE", "--out", "mended"]) == 0
    assert plain(here / "mended" / "result.json")["rows"] == plain(here / "on" / "result.json")["rows"]
    # Another recipe is another run, and what lies there is not overwritten.
    monkeypatch.setitem(table4.LABS, "embedded", replace(lab, recipe=replace(lab.recipe, lr=0.1)))
    assert run([*COMMAND, "--only", "MAE", "--dry-run"]) == 0
    assert "another run" in capsys.readouterr().out
    assert run([*COMMAND, "--only", "MAE"]) == 2
    assert "small-mae-small-llm-8-images holds another run than MAE's" in capsys.readouterr().err


def test_more_encoders_and_sets_are_rows_and_runs_of_their_own(here, lab, small_mae, blurs, capsys):
    other = here / "my-mae"
    shutil.copytree(small_mae, other)
    assert run([*COMMAND, "--encoder", str(other), "--only", "my-mae", "--images", "9", "--out", "o"]) == 0
    result = plain(here / "o" / "result.json")
    assert result["laboratory"] == "own"
    assert "own data or encoders" in capsys.readouterr().out
    assert (result["rows"][0]["name"], result["rows"][0]["paper"], result["rows"][0]["images"]) == ("my-mae", {}, 12)
    assert result["config"]["encoders"] == ["my-mae"]
    photos = str(blurs("others", 24))
    rows = table(lab, data=[photos], align_on=photos, only=["MAE"], seed=3)
    name = table4.folder(rows[0], lab)
    assert name.startswith("caption-small-mae-small-llm-others-")
    assert "-aligned-on-others-" in name
    assert name.endswith("-seed3-8-images")
    assert lab.whose(rows) == "own"
    assert lab.whose(table(lab)) == "embedded"
    assert rows[0].experiment.measured == (photos,)


def test_an_encoder_without_tokens_is_refused_before_anything_is_trained(here, capsys):
    name = "timm:crossvit_9_240@random"
    assert run([*COMMAND, "--encoder", name, "--only", name]) == 2
    assert f"--encoder {name} gives one vector an image, no tokens" in capsys.readouterr().err
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["table4", "--lab", "mine"], "--lab must be one of embedded, paper, got 'mine'"),
        (["table4", "--images", "0"], "--images must be 1 or more"),
        (["table4", "--n", "0"], "--n must be 1 or more"),
        (["table4", "--accumulate", "0"], "--accumulate must be 1 or more"),
        (["table4", "--longest"], "--longest: the rows of table4 are compared"),
        (["table4", "--only", "mae"], "--only mae: table4 has the rows VQGAN, BEiT, MAE, mae@random"),
        (["table4", "--encoder", "mae"], "--encoder mae: table4 has the row MAE already"),
        (["table4", "--encoder", "mea", "--only", "mea"], "unknown encoder 'mea'; did you mean mae"),
        (["table4", "--data", "a", "--data", "b"], "--data is given 2 times; table4 has one set"),
        (["table4", "--data", "no-such-folder"], "no-such-folder"),
        (["fig6", "--encoder", "pca"], "--encoder is for table4; fig6 has rows of its own"),
        (["fig6", "--align-on", "scenes"], "--align-on is for table4"),
        (
            ["table5"],
            "there is no target 'table5'; there are table2, table3, table7, fig4, fig5, fig6, fig7, depth, choices, table4, all",
        ),
    ],
)
def test_bad_input(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["reproduce", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["embedded", "paper"])
def test_the_plan_is_printed_without_weights_or_network(name, tmp_path, monkeypatch, capsys):
    def refuse(*args, **options):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(vision, "load_vision", refuse)
    monkeypatch.setattr(llm_load, "load", refuse)
    monkeypatch.setattr(estimate, "matmul_rate", lambda device, dtype: 1e11)
    monkeypatch.chdir(tmp_path)
    assert run(["reproduce", "table4", "--lab", name, "--dry-run", "--json", "plan.json"]) == 0
    printed, plan = capsys.readouterr().out, plain(tmp_path / "plan.json")
    assert [row["name"] for row in plan["rows"]] == ["VQGAN", "BEiT", "MAE", "mae@random"]
    for row in plan["rows"]:
        assert (row["state"], row["steps_done"]) == ("to do", 0)
        assert row["hours_left"] > 0
        assert row["memory_gb"] > 1
    assert "Training a captioning probe on an image: 4 x (T + 50) x parameters" in printed
    assert {path.name for path in tmp_path.iterdir()} == {"plan.json"}
    if name == "paper":
        assert plan["data"] == ["llava595k", "nocaps", "wit1024"]
        assert "judged by ViT-B-32/openai" in printed
    else:
        assert (plan["data"], plan["data_missing"]) == (["scenes-train:4000", "scenes"], [])


def test_the_papers_laboratory_says_at_once_what_it_lacks(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run(["reproduce", "table4", "--lab", "paper"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for part in (
        "no CUDA GPU",
        "alignlab models fetch vqgan-f16-16384",
        "accept the licence",
        "llava595k:FOLDER",
        "wit1024",
    ):
        assert part in error
    assert "--align-on name copies" in error


def test_laboratories_are_the_papers_and_their_budget_follows_the_images():
    recipe = PAPER.recipe
    assert (recipe.steps, recipe.batch, recipe.warmup, recipe.lr) == (782, 128, 24, 2e-3)
    recipe = EMBEDDED.recipe
    assert (recipe.steps * recipe.batch, recipe.warmup) == (3200, math.ceil(0.03 * recipe.steps))
    assert (recipe.batch, recipe.lr) == (RECIPE.batch, RECIPE.lr)
    lab = replace(EMBEDDED, recipe=replace(RECIPE, batch=16))
    (row,) = table(lab, images=33, only=["MAE"])
    assert (row.experiment.recipe.steps, row.experiment.recipe.warmup, row.images_seen) == (3, 1, 48)
    assert table4.folder(row, lab) == "caption-mae-smollm2-48-images"
    assert row.experiment.measured == ("scenes",)
    assert table(PAPER, only=["MAE"])[0].experiment.subset == 100_000


# --- numbers ---

PAIR = {"null_std": 0.001, "p": 0.005, "last_layer_score": 0.1, "encoder_layer": 2, "llm_layer": 3, "ceiling": 1.0}


def evaluated(clip, shuffled=20.0, n=64, spread=0.04):
    """An evaluation as JSON, of CLIPScores about `clip` (in hundredths), RefCLIPScores 10 above."""
    noise = np.random.default_rng(n).normal(size=n) * spread
    noise -= noise.mean()
    kinds = {"generated": clip, "shuffled": shuffled}
    each = {
        kind: {"CLIPScore": (x / 100 + noise).tolist(), "RefCLIPScore": (x / 100 + 0.1 + noise).tolist()}
        for kind, x in kinds.items()
    }
    each["shuffled"]["CLIPScore"] = each["shuffled"]["CLIPScore"][::-1]
    rows = np.random.default_rng(SEED).integers(n, size=(RESAMPLES, n))

    def interval(values):
        return np.quantile(np.array(values)[rows].mean(1), [0.025, 0.975]).tolist()

    above = {
        name: np.array(each["generated"][name]) - np.array(each["shuffled"][name])
        for name in ("CLIPScore", "RefCLIPScore")
    }
    return {
        "each": each,
        "scores": {
            kind: {name: {"score": float(np.mean(x)), "ci95": interval(x)} for name, x in scores.items()}
            for kind, scores in each.items()
        },
        "differences": {
            "shuffled": {name: {"difference": float(x.mean()), "ci95": interval(x)} for name, x in above.items()}
        },
        "images": {"human": n},
    }


def aligned(knn, cka, null=0.01, half=0.01):
    return {
        metric: {
            **PAIR,
            "score": x,
            "ci95": [x - half, x + half],
            "null_mean": null,
            "calibrated": (x - null) / (1 - null),
        }
        for metric, x in (("mutual_knn", knn), ("cka", cka))
    }


def made(name, clip, knn, cka, control=False, **options):
    evaluation, pairs = evaluated(clip), aligned(knn, cka, **options)
    return {
        "name": name,
        "control": control,
        "status": "done",
        "evaluation": evaluation,
        "columns": columns(evaluation, pairs),
    }


def test_the_average_is_the_papers_formula():
    for figures in paper.TABLE4.values():  # of its own numbers, rounded as it is
        average = ((figures["CS"] + figures["Ref-CS"]) / 100 + figures["M-kNN"] + figures["CKA"]) / 4
        assert average == pytest.approx(figures["Avg"], abs=0.006)
    evaluation, pairs = evaluated(45.0), aligned(0.09, 0.31, null=0.02)
    found = columns(evaluation, pairs)
    assert (found["CS"]["score"], found["Ref-CS"]["score"]) == pytest.approx((45.0, 55.0))
    assert (found["CS"]["baseline"], found["CS"]["calibrated"]) == pytest.approx((20.0, 25.0))
    assert found["Avg"]["score"] == pytest.approx((0.45 + 0.55 + 0.09 + 0.31) / 4)
    assert found["Avg"]["calibrated"] == pytest.approx((0.25 + 0.25 + 0.07 / 0.98 + 0.29 / 0.98) / 4)
    assert found["CKA"]["calibrated_ci95"] == pytest.approx([0.28 / 0.98, 0.30 / 0.98])
    # CS and RefCLIPScore move together here: their sum has twice the width of one.
    low, high = (end / 100 for end in found["CS"]["ci95"])
    expected = [
        0.35 - math.sqrt((2 * (0.45 - low)) ** 2 + 2 * 0.01**2) / 4,
        0.35 + math.sqrt((2 * (high - 0.45)) ** 2 + 2 * 0.01**2) / 4,
    ]
    assert found["Avg"]["ci95"] == pytest.approx(expected)
    assert set(columns(None, pairs)) == {"M-kNN", "CKA"}
    without = copy.deepcopy(evaluation)  # no judge
    without["scores"] = {"generated": {"CIDEr": {"score": 0.5, "ci95": [0.4, 0.6]}}}
    without["differences"] = {}
    found = columns(without, pairs)
    assert set(found) == {"CIDEr", "M-kNN", "CKA"}
    assert found["CIDEr"]["calibrated"] is None
    assert human([{"name": "no evaluation"}]) is None


def test_two_rows_are_compared_image_by_image_and_alignments_by_their_intervals():
    a, b = made("a", 45.0, 0.09, 0.31), made("b", 44.9, 0.08, 0.20)
    found = difference(a, b, "CS")
    # The same noise is in both: the difference is the same for every image.
    assert found["difference"] == pytest.approx(0.1)
    assert found["ci95"] == pytest.approx([0.1, 0.1])
    assert found["clear"]
    assert difference(a, b, "M-kNN")["clear"] is False
    assert difference(a, b, "CKA") == {"difference": pytest.approx(0.11), "ci95": None, "clear": True}
    average = difference(a, b, "Avg")
    half = math.sqrt(4 * 0.01**2) / 4
    expected = (0.002 + 0.01 + 0.11) / 4
    assert average["ci95"] == pytest.approx([expected - half, expected + half])
    assert average["clear"]
    assert difference(a, {"columns": {}}, "CS") is None


def test_the_orders_that_hold_are_said_to_and_those_that_do_not():
    rows = [made("VQGAN", 30.0, 0.02, 0.15), made("BEiT", 35.0, 0.07, 0.40), made("MAE", 45.0, 0.08, 0.31)]
    rows.append(made("mae@random", 40.0, 0.01, 0.10, control=True))
    found = {(one["column"], one["calibrated"]): one for one in orders(rows)}
    assert found["CS", False]["here"] == found["CS", False]["paper"] == ["MAE", "BEiT", "VQGAN"]
    assert (found["CS", False]["holds"], found["CS", False]["clear"]) == (True, True)
    assert (found["M-kNN", False]["holds"], found["M-kNN", False]["clear"]) == (True, False)
    assert (found["CKA", False]["holds"], found["CKA", False]["reversed"]) == (False, ["MAE - BEiT"])
    said = readings(rows, None, "open_clip:ViT-B-32/openai@sha256:1")
    assert (
        "the paper's order MAE > BEiT > VQGAN holds, every step clear, in CS, Ref-CS, Avg; holds, not every step clear, in "
        "M-kNN; does not hold in CKA"
    ) in said
    (line,) = [x for x in said if x.startswith("CKA: ")]
    assert line.startswith("CKA: BEiT 0.400 > MAE 0.310 > VQGAN 0.150; MAE minus BEiT -0.090 (intervals apart), ")
    assert line.endswith("does not hold (MAE - BEiT clearly below 0)")
    (line,) = [x for x in said if x.startswith("CS minus the shuffled captions'")]
    assert line.endswith("the paper's order survives, every step clear")
    (line,) = [x for x in said if x.startswith("BEiT minus mae@random")]
    assert "CS -5.00 (-5.00 to -5.00)" in line
    assert line.endswith("above it in M-kNN, CKA, Avg, below it in CS, Ref-CS")
    assert any("ViT-B-32/openai; the paper's are" in x and "cannot" not in x for x in said)
    assert any("values cannot" in x for x in readings(rows, None, "clip-tiny@sha256:1"))


def test_calibration_can_turn_an_order():
    rows = [made("VQGAN", 30.0, 0.02, 0.15), made("BEiT", 35.0, 0.07, 0.30, null=0.01, half=0.001)]
    rows.append(made("MAE", 45.0, 0.08, 0.40, null=0.2, half=0.001))
    found = {(one["column"], one["calibrated"]): one for one in orders(rows)}
    assert found["CKA", False]["holds"]
    assert found["CKA", True]["here"] == ["BEiT", "MAE", "VQGAN"]
    (line,) = [x for x in readings(rows, None, None) if x.startswith("CKA calibrated: ")]
    assert "does not survive (MAE - BEiT clearly below 0)" in line


def test_what_is_missing_is_said_to_be():
    rows = [made("BEiT", 35.0, 0.07, 0.30), made("MAE", 45.0, 0.08, 0.40)]
    rows.insert(0, {"name": "VQGAN", "control": False, "status": "missing", "columns": {}})
    said = readings(rows, None, "clip-tiny", ["mae@random"])
    assert said[:2] == ["VQGAN: missing", "mae@random: not asked for"]
    assert not any(line.startswith("the paper's order") for line in said)
    (line,) = [x for x in said if x.startswith("Avg: ")]
    assert line.endswith("VQGAN missing, so that the paper's order cannot be judged")


def test_a_table_with_all_its_figures_fits_a_pipe(capsys):
    """132 columns, the longest of names and numbers: nothing is cut off."""
    row = {**made("efficientnet-lite0", 45.0, 0.09, 0.31), "paper": paper.TABLE4["MAE"]}
    row["columns"]["CIDEr"] = {**row["columns"]["CKA"], "score": 1.2345}
    whole = {"title": "T", "laboratory": "paper", "rows": [row], "human": None, "formula": "F", "readings": []}
    show(console(), {**whole, "paper": {"says": "-"}}, Path("o"))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[1:7])) <= 132
    (line,) = [x for x in lines if "efficientnet" in x]
    assert [cell.strip() for cell in line.split("│")][9:14] == ["46.97", "55.56", "0.09", "0.31", "0.36"]
