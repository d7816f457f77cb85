"""Targets: what each is made of, runs shared, resumed and reused, rows beside the paper's, on small random models."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from alignlab import paper, training
from alignlab.cli import reproduce
from alignlab.data import to_tensor
from alignlab.models.catalogue import BY_NAME
from alignlab.restoration import earlier, estimate, reproduction
from alignlab.restoration.fit import RECIPE
from alignlab.restoration.reproduction import gather, grids, longest, perform, places, readings, standing
from alignlab.restoration.targets import EMBEDDED, LABS, PAPER, TARGETS, Lab, target
from alignlab.sheets import cut_sheet
from alignlab.trained import ADAPTERS


@pytest.fixture(scope="module")
def pictures(blurs):
    return blurs("pictures", 20)


@pytest.fixture(scope="module")
def lab(small_mae, small_llm, pictures):
    return Lab(
        "embedded",
        encoders={"mae": (str(small_mae), None)},
        llm=str(small_llm),
        others={"small": ("mae", str(small_llm)), "random": ("mae", f"{small_llm}@random")},
        data=(str(pictures),),
        recipe=replace(RECIPE, steps=2, batch=4, warmup=1),
    )


def run_all(what, lab, runs):
    for place in places(what, lab, runs):
        perform(place)
    return places(what, lab, runs)


@pytest.fixture(scope="module")
def table3(lab, tmp_path_factory):
    """All of Table 3, run for real: the target, its places and the folder of its runs."""
    runs = tmp_path_factory.mktemp("runs")
    what = target("table3", lab, n=4)
    return what, run_all(what, lab, runs), runs


def test_the_papers_differences_follow_from_its_table():
    printed = {
        "denoise": 6.81,
        "deblur": 0.09,
        "derain": 4.66,
        "pepper": 2.19,
        "mask": 5.83,
        "rotate": -2.34,
        "flip": -2.24,
    }
    for task, difference in printed.items():
        columns = paper.TABLE2[task]
        assert columns["LM4LV"]["PSNR"] - columns["MAE-r"]["PSNR"] == pytest.approx(difference, abs=1e-9)
    tokens = 2 * paper.COMPUTE["visual_tokens"] + paper.COMPUTE["task_tokens"] + paper.COMPUTE["text_tokens"]
    assert tokens == 410
    assert 2 * tokens * paper.COMPUTE["llm_parameters"] == pytest.approx(paper.COMPUTE["llm_flop"])


@pytest.mark.parametrize("lab_name", LABS)
@pytest.mark.parametrize("name", TARGETS)
def test_rows_differ_in_what_they_compare_and_in_nothing_else(name, lab_name):
    what = target(name, LABS[lab_name])
    names = [row.name for row in what.rows]
    assert len(set(names)) == len(names) > 1
    made = [row.experiment for row in what.rows]
    assert len({(one.design, one.recipe.lr) for one in made}) == len(names)
    assert len({one.recipe.lr for one in made}) == (4 if name == "choices" else 1)
    assert len({(replace(one.recipe, lr=1.0), one.data, one.test, one.n) for one in made}) == 1
    assert made[0].n == {"embedded": 256, "paper": 4500}[lab_name]
    assert {name for pair in what.pairs for name in pair} <= set(names)
    assert name in paper.SAYS
    wanted = [need.name for need in estimate.needs([row.experiment.design for row in what.rows])]
    assert all(known in BY_NAME for known in wanted)


def test_what_the_laboratories_train():
    assert target("table2", EMBEDDED).rows[0].experiment.images_seen == 4000
    assert target("table2", EMBEDDED, images=30_001).rows[0].experiment.images_seen == 30_008  # whole batches
    assert target("table3", EMBEDDED, images=30_000).title.startswith("Table 3 (30,000 images): LM4LV and")
    assert target("table3", EMBEDDED, images=4000).title == target("table3", EMBEDDED).title
    one = target("table2", PAPER).rows[0].experiment
    assert (one.recipe.steps, one.recipe.batch, one.recipe.lr, one.recipe.warmup) == (4651, 256, 3e-4, 200)
    assert (one.data, one.test, one.design.features) == (("llava595k",), ("nocaps",), "raw")
    assert one.design.decoder == "bytetriper/vit-mae-r"
    unpublished = [row.name for row in target("table3", EMBEDDED).rows if not row.paper]
    assert unpublished == ["denoise/linear", "rotate/linear", "denoise/transformer/mae", "rotate/transformer/mae"]
    assert len(target("table3", PAPER).rows) == 8
    assert target("table3", EMBEDDED).rows[1].paper == {"restored": {"PSNR": 25.87, "SSIM": 0.76}}
    # The paper's models by their names, in its laboratory alone.
    assert {row.name for row in target("table7", PAPER).rows} | {"MAE-r"} == set(paper.TABLE7)
    assert [row.name for row in target("table7", EMBEDDED).rows if row.paper] == ["smollm2"]
    # The paper's figures are of a trained language model, whole.
    assert [row.name for row in target("fig7", EMBEDDED).rows if row.paper] == ["denoise/trained", "rotate/trained"]
    assert [row.name for row in target("depth", EMBEDDED).rows if row.paper] == ["mae+position/all"]
    (usual, *others) = target("choices", EMBEDDED).rows
    assert (usual.experiment.images_seen, target("choices", EMBEDDED, images=80).rows[0].experiment.images_seen) == (
        1000,
        80,
    )
    assert usual.paper
    assert not any(row.paper for row in others)
    everything = others[-1].experiment
    paper_like = (everything.design.features, everything.design.begin, everything.recipe.lr)
    assert paper_like == ("raw", "plain", paper.LM4LV_RECIPE["lr"])
    assert "raw" not in {row.experiment.design.features for row in others[:3]}
    assert [row.name for row in target("choices", PAPER).rows] == [
        *("as-it-is", "rate-0.001", "rate-0.003", "rate-0.01", "features-whitened", "begin-scaled", "begin-plain")
    ]
    assert "repeat/pca" not in {row.name for row in target("fig4", PAPER).rows}
    features = {row.name: row.experiment.design.features for row in target("fig4", EMBEDDED).rows}
    assert {name for name, how in features.items() if how == "raw"} == {name for name in features if "/pca" in name}


def test_runs_that_targets_share_have_one_folder():
    folders = {}
    for name in TARGETS:
        found = places(target(name, EMBEDDED), EMBEDDED, Path("runs"))
        folders[name] = {place.row.name: place.where for place in found}
    assert folders["table3"]["denoise/lm4lv"] == folders["table2"]["denoise"] == folders["fig5"]["lm4lv"]
    assert folders["fig6"]["linear"] == folders["table3"]["denoise/linear"]
    assert folders["table2"]["denoise"].name == "denoise-lm4lv-mae+position-smollm2-4000-images"
    assert folders["table7"]["first-24-of-30-blocks"].name == "derain-lm4lv-mae+position-smollm2-24-4000-images"
    everything = [path for rows in folders.values() for path in rows.values()]
    assert len(set(everything)) == 51 + 8
    assert folders["choices"]["begin-plain"].name == "denoise-lm4lv-mae+position-smollm2-plain-1000-images"
    assert folders["choices"]["raw-plain-0.0003"].name.endswith("smollm2-raw-plain-lr0.0003-1000-images")


def test_unknown_names_and_numbers():
    with pytest.raises(ValueError, match="no target 'table9'; there are table2"):
        target("table9", EMBEDDED)
    with pytest.raises(ValueError, match="--images must be 1 or more, got 0"):
        target("table3", EMBEDDED, images=0)
    with pytest.raises(ValueError, match="--n must be 1 or more"):
        target("table3", EMBEDDED, n=0)
    with pytest.raises(ValueError, match="--only rotat: table3 has the rows denoise/linear"):
        target("table3", EMBEDDED).only(["rotat"])
    assert [r.name for r in target("table3", EMBEDDED).only(["rotate/*", "denoise/mlp"]).rows][:2] == [
        "denoise/mlp",
        "rotate/linear",
    ]


def test_a_whole_table(table3):
    what, found, _ = table3
    assert {place.standing.state for place in found} == {"done"}
    rows = gather(what, found)
    assert [row["status"] for row in rows] == ["done"] * 8
    assert {row["images"] for row in rows} == {8}
    assert all(row["parameters"] > 0 and row["environment"]["torch"] for row in rows)
    json.dumps(rows, allow_nan=False)
    said = readings(what, rows)
    taught = [line.partition(":")[0] for line in said if "dB where it reads the true answer so far" in line]
    assert taught == ["denoise/lm4lv", "rotate/lm4lv"]
    assert len(said) == 8 + 6
    assert all(" dB (" in line for line in said)
    gain = rows[0]["evaluations"][0]["gain"]["psnr"]["mean"]
    assert f"minus encoder + decoder alone {gain:+.2f} dB" in said[0]
    assert "; the paper, with its models: minus MAE-r +6.81 dB" in said[3]
    ours, theirs = (rows[i]["evaluations"][0]["gain"]["psnr"] for i in (3, 1))
    (line,) = [line for line in said if line.startswith("denoise/lm4lv minus denoise/mlp: ")]
    assert line.split(": ")[1].startswith(f"{ours['mean'] - theirs['mean']:+.2f} dB")
    # The experts begin as the identity and have hardly learnt: they are what encoder and decoder alone are.
    assert abs(rows[0]["evaluations"][0]["gain"]["psnr"]["mean"]) < 0.5


def test_a_run_in_another_type_of_number_is_the_row_and_said(table3, lab, tmp_path):
    """What a machine is quick in makes no other experiment; a table whose rows differ in it says so."""
    what, found, _ = table3
    for place in found:
        shutil.copytree(place.where, tmp_path / place.where.name)
    here, other = "bfloat16", "float32"
    for place in found:
        path = tmp_path / place.where.name / "result.json"
        result = json.loads(path.read_text())
        # An expert has no language model: its recipe's type is nobody's.
        dtype = other if place.row.name in ("denoise/mlp", "rotate/lm4lv") else here
        path.write_text(json.dumps({**result, "recipe": {**result["recipe"], "dtype": dtype}}))
    again = places(what, lab, tmp_path)
    assert {place.standing.state for place in again} == {"done"}
    assert not any("computed in" in line for line in readings(what, gather(what, found)))
    (line,) = [line for line in readings(what, gather(what, again)) if "computed in" in line]
    assert line == f"computed in {here}: denoise/lm4lv; computed in {other}: rotate/lm4lv"


def test_finished_runs_are_read_not_repeated(table3, lab, monkeypatch):
    what, found, runs = table3
    before = {place.where: (place.where / ADAPTERS).stat().st_mtime_ns for place in found}
    monkeypatch.setattr(training, "train", None)  # nothing may be trained
    monkeypatch.setattr("alignlab.restoration.fit.train", None)
    again = run_all(what, lab, runs)
    assert {place.where: (place.where / ADAPTERS).stat().st_mtime_ns for place in again} == before
    # Figure 6 is made of two of them.
    assert {place.standing.state for place in places(target("fig6", lab, n=4), lab, runs)} == {"done"}


def test_pictures_of_all_arms_side_by_side(table3, monkeypatch):
    what, found, _ = table3
    first = grids(what, found)
    assert list(first) == ["denoise-pictures", "rotate-pictures"]
    arms = [f"denoise/{how}" for how in ("linear", "mlp", "transformer", "lm4lv")]
    assert list(first["denoise-pictures"]) == ["given", "small-mae alone", *arms, "truth"]
    assert {tuple(images.shape) for images in first["rotate-pictures"].values()} == {(4, 3, 32, 32)}
    monkeypatch.setattr(reproduction.design, "load", None)  # kept beside the runs
    again = grids(what, found)
    assert all((again[key][label] == images).all() for key, grid in first.items() for label, images in grid.items())


def test_rows_of_an_earlier_result_stay_where_their_runs_are_gone(tmp_path, table3, lab, capsys):
    """As on another machine, or after the folder of runs was cleared."""
    what, found, _ = table3
    few = [place for place in found if place.row.name in ("denoise/linear", "denoise/mlp")]
    first = tmp_path / "first"
    for place in few:
        shutil.copytree(place.where, first / place.where.name)
    config = {"data": [], "test": [], "n": 4, "longest": False, "device": "cpu"}
    out = tmp_path / "out"

    def table(folder, of=what):
        before = earlier.read(out, reproduce.SCHEMA, of.name, lab.name)
        found = places(of, lab, folder, before)
        for place in found:  # what is kept is not trained again
            assert (place.state == "kept") == (place.kept is not None and place.standing.state != "done")
            assert place.is_open == (place.state == "to do")
        rows = reproduce.result(of, lab, found, config, out, before)
        (out / "result.json").write_text(json.dumps(rows))
        return rows

    out.mkdir()
    before = table(first)
    done = {row["name"]: row for row in before["rows"] if row["status"] == "done"}
    assert set(done) == {"denoise/linear", "denoise/mlp"}
    assert "kept" not in capsys.readouterr().err

    second = tmp_path / "second"
    shutil.copytree(found[3].where, second / found[3].where.name)  # denoise/lm4lv
    after = table(second)
    assert {row["name"] for row in after["rows"] if row["status"] == "done"} == {*done, "denoise/lm4lv"}
    assert all(row == done[row["name"]] for row in after["rows"] if row["name"] in done)
    told = capsys.readouterr().err
    assert "result.json, as no such run is under --runs: denoise/linear, denoise/mlp" in told
    (sheet,) = after["sheets"]
    assert sheet["rows"] == ["given", "small-mae alone", "denoise/linear", "denoise/mlp", "denoise/lm4lv", "truth"]
    whole = cut_sheet(out / sheet["file"], sheet)
    theirs = grids(what, found)["denoise-pictures"]
    for label in sheet["rows"]:
        ours = torch.stack([to_tensor(picture) for picture in whole[label]])
        assert (ours - theirs[label]).abs().max() < 1 / 255, label

    # Those of another experiment do not stay, nor those of a test set of another length.
    assert all(
        row["status"] == "missing" for row in table(tmp_path / "none", target("table3", lab, images=16, n=4))["rows"]
    )
    table(second)
    fewer = target("table3", lab, n=3)
    assert {row["status"] for row in table(tmp_path / "none", fewer)["rows"]} == {"missing"}


def test_an_earlier_result_that_is_damaged_is_not_lost_without_a_word(tmp_path, lab):
    about = {"schema": reproduce.SCHEMA, "target": "fig6", "laboratory": lab.name}
    for other in ({"schema": "alignlab.reproduce/2"}, {"target": "fig7"}, {"laboratory": "own"}):
        (tmp_path / "result.json").write_text(json.dumps({**about, **other, "rows": 3}))
        assert earlier.read(tmp_path, *about.values()) == earlier.Earlier()
    (tmp_path / "result.json").write_text(json.dumps({**about, "rows": 3}))
    with pytest.raises(ValueError, match="is damaged, and its rows cannot be kept"):
        earlier.read(tmp_path, *about.values())


def test_an_interrupted_run_goes_on_and_what_is_not_done_is_missing(tmp_path, lab, monkeypatch):
    lab = replace(lab, recipe=replace(lab.recipe, steps=4))
    what = target("fig6", lab, n=4)
    found = places(what, lab, tmp_path)
    assert [place.standing.state for place in found] == ["to do", "to do"]
    assert [row["status"] for row in gather(what, found)] == ["missing", "missing"]
    assert readings(what, gather(what, found)) == ["lm4lv: missing", "linear: missing"]
    assert grids(what, found) == {}

    real, steps = training.descend, []

    def until_killed(*args):
        if len(steps) == 3:
            raise KeyboardInterrupt
        steps.append(1)
        real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(training, "SAVE_EVERY", -1.0)
        patch.setattr("alignlab.restoration.fit.descend", until_killed)
        with pytest.raises(KeyboardInterrupt):
            perform(found[1])
    found = places(what, lab, tmp_path)
    assert [(place.standing.state, place.standing.steps) for place in found] == [("to do", 0), ("partly", 3)]
    assert gather(what, found)[1]["status"] == "partly"
    perform(found[1])
    found = places(what, lab, tmp_path)
    rows = gather(what, found)
    assert [row["status"] for row in rows] == ["missing", "done"]
    file = (found[1].where / ADAPTERS).read_bytes()
    assert rows[1]["trained"] == f"{found[1].where.name}@sha256:{sha256(file).hexdigest()}"
    assert readings(what, rows)[0] == "lm4lv: missing"
    assert len(readings(what, rows)) == 2  # no difference with what is not there


def test_another_run_in_the_folder_is_refused(tmp_path, lab):
    what = target("fig6", lab, n=4)
    place = places(what, lab, tmp_path)[1]
    perform(place)
    (place.where / "result.json").unlink()
    assert standing(place.row.experiment, place.where).state == "partly"  # trained, to be measured
    other = replace(place.row.experiment, recipe=replace(place.row.experiment.recipe, lr=1.0))
    assert standing(other, place.where).state == "another run"
    (place.where / "state.pt").write_bytes(b"not a state")
    found = places(what, lab, tmp_path)
    with pytest.raises(ValueError, match=r"holds another run than linear's .* choose another --runs folder"):
        reproduction.refuse_others(found)


def test_table_2_may_take_longer_runs(tmp_path, lab):
    what = target("table2", lab, n=4).only(["denoise"])
    longer = target("table2", lab, images=16, n=4).only(["denoise"])
    run_all(longer, lab, tmp_path)
    one = what.rows[0].experiment
    (place,) = places(what, lab, tmp_path)
    assert place.standing.state == "to do"
    (place,) = places(what, lab, tmp_path, take_longest=True)
    assert (place.standing.state, place.where) == ("done", longest(one, tmp_path))
    assert gather(what, [place])[0]["images"] == 16
    # One that saw less is no stand-in, nor one that was measured otherwise.
    more = target("table2", lab, images=64, n=4).only(["denoise"])
    assert longest(more.rows[0].experiment, tmp_path) is None
    assert longest(replace(one, n=3), tmp_path) is None
    # Nor one of another rate, which `choices` has.
    assert longest(replace(one, recipe=replace(one.recipe, lr=1e-2)), tmp_path) is None
    with pytest.raises(ValueError, match="--longest: the rows of fig6 are compared with each other"):
        places(target("fig6", lab), lab, tmp_path, take_longest=True)


def test_rows_of_other_encoders_of_the_same_name_are_not_compared(tmp_path, lab):
    what = target("table2", lab, n=4).only(["denoise", "flip"])
    found = run_all(what, lab, tmp_path)
    path = found[1].where / "result.json"
    result = json.loads(path.read_text())
    result["frozen"]["encoder"] = "small-mae@sha256:another+whitened:0"
    path.write_text(json.dumps(result))
    with pytest.raises(ValueError, match="cannot stand in one comparison; delete the older"):
        gather(what, found)


def test_estimates():
    (row,) = target("table2", PAPER).only(["denoise"]).rows
    cost = estimate.cost(row.experiment, 16)
    # What the paper needed: "around 8 hours" on four A100.
    assert estimate.seconds(cost, 1.0, None) / 3600 == pytest.approx(paper.HARDWARE["hours"], rel=0.25)
    llm = BY_NAME["meta-llama/Llama-2-7b-chat-hf"]
    assert cost.train / row.experiment.images_seen == pytest.approx(4 * (2 * 197 + 18) * llm.parameters, rel=0.05)
    assert cost.memory > 2 * llm.parameters
    assert estimate.cost(row.experiment, 1).memory > cost.memory
    by_name = {row.name: estimate.cost(row.experiment) for row in target("table7", EMBEDDED).rows}
    whole, cut = by_name["smollm2"].train, by_name["first-12-of-30-blocks"].train
    assert cut / whole == pytest.approx(12 / 30, rel=0.1)
    assert by_name["random-weights"] == by_name["smollm2"]
    linear, mlp, _, lm4lv, *_ = (estimate.cost(row.experiment) for row in target("table3", EMBEDDED).rows)
    assert linear.train < mlp.train < lm4lv.train / 10
    assert math.isfinite(estimate.matmul_rate("cpu", "float32", 0.01))


def test_models_outside_the_catalogue_have_no_estimate(lab):
    row = target("table2", lab).rows[0]
    assert estimate.cost(row.experiment) is None
    assert {need.here for need in estimate.needs([row.experiment.design])} == {None}


def test_two_rows_differ_image_by_image():
    def row(name, psnr, ssim):
        found = {
            "data": {"name": "s", "fingerprint": "f"},
            "n": 3,
            "seed": 1,
            "each": {"psnr": psnr, "ssim": [ssim] * 3},
        }
        return {"name": name, "evaluations": [found]}

    a, b = row("a", [21.0, 31.0, None], 0.5), row("b", [20.0, 29.0, 40.0], 0.75)
    assert reproduction._versus(a, b) == [
        "a minus b: +1.50 dB (+1.00 to +2.00), SSIM -0.250 (-0.250 to -0.250), image by image"
    ]
    b["evaluations"][0]["seed"] = 2  # other degradations
    assert reproduction._versus(a, b) == []
