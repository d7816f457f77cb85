"""What a probe is measured on it has never learnt; what makes an experiment is plain; controls must be fair."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace

import pytest
from safetensors.torch import load_file, save_file

from alignlab.captioning import fit
from alignlab.captioning.experiment import (
    Experiment,
    control_differs,
    describe,
    holds_out,
    is_control,
    learnt_items,
    open_test,
    run,
    shown_judge,
)
from alignlab.captioning.fit import RECIPE, Design
from alignlab.data import load_dataset

SHORT = replace(RECIPE, steps=2, batch=2, warmup=1)


@pytest.fixture(autouse=True)
def no_java(monkeypatch):
    """METEOR takes seconds to start."""
    monkeypatch.setenv("PATH", "")


@pytest.fixture(scope="module")
def photos(blurs):
    return str(blurs("photos", 11, (36, 48), "a blur\nblur number {}\n"))


@pytest.fixture
def plan(small_mae, small_llm):
    return Design(encoder=str(small_mae), llm=str(small_llm))


def test_of_a_set_that_is_learnt_each_fifth_is_measured_on(photos, plan, tmp_path):
    data = load_dataset(photos)
    experiment = Experiment(plan, photos)
    assert experiment.measured == (photos,)
    assert holds_out(data, experiment)
    items = learnt_items(data, True)
    about = fit.about(data, items, True)
    test = open_test(photos, about)
    assert list(test.indices) == [0, 5, 10]
    assert not set(test.indices) & set(items)
    assert list(open_test(photos, about, 2).indices) == [0, 5]
    assert list(open_test(photos).indices) == list(range(11))
    with pytest.raises(ValueError, match="photos was learnt from, all of it; give images that the probe never saw"):
        open_test(photos, fit.about(data, list(range(11))))
    moved = tmp_path / "moved"  # the same set by its content
    shutil.copytree(photos, moved)
    assert list(open_test(str(moved), about).indices) == [0, 5, 10]
    assert holds_out(data, replace(experiment, test=(str(moved),)))
    (moved / "00.txt").write_text("another\n")
    assert len(open_test(str(moved), about)) == 11
    assert not holds_out(data, replace(experiment, test=(str(moved),)))


def test_scenes_are_learnt_whole_and_measured_on_the_shipped_ones(plan, monkeypatch):
    made = {}

    def few(n):
        if n not in made:
            from alignlab.data.rendered import write_scenes
            from alignlab.paths import home

            made[n] = home() / f"few-{n}"
            write_scenes(made[n], n, "train", 32)
        return made[n]

    monkeypatch.setattr("alignlab.data.rendered.training_scenes", few)
    six, seven = load_dataset("scenes-train:6"), load_dataset("scenes-train:7")
    experiment = Experiment(plan, "scenes-train:6")
    assert experiment.measured == ("scenes",)
    assert not holds_out(six, experiment)
    about = fit.about(six, learnt_items(six, False))
    assert len(open_test("scenes", about, 5)) == 5
    with pytest.raises(ValueError, match="scenes-train:7 was learnt from"):  # its first six are
        open_test("scenes-train:7", about)
    assert holds_out(six, replace(experiment, test=("scenes-train:7",)))
    assert list(open_test("scenes-train:7", fit.about(six, [1], True)).indices) == [0, 5]
    assert len(seven) == 7


def test_a_subset_is_drawn_once_and_leaves_out_what_is_held_out(photos):
    data = load_dataset(photos)
    drawn = learnt_items(data, True, 4)
    assert drawn == sorted(set(drawn))
    assert len(drawn) == 4
    assert all(i % 5 for i in drawn)
    assert learnt_items(data, True, 4) == drawn
    assert len({tuple(learnt_items(data, False, 4, seed)) for seed in range(5)}) > 1
    assert learnt_items(data, False, 99) == list(range(11))


def test_a_run_leaves_what_it_should_and_is_read_again(photos, plan, tmp_path, monkeypatch):
    experiment = Experiment(plan, photos, SHORT, subset=6, judge="none")
    result = run(experiment, tmp_path, dtype="float32")
    assert result["learnt"]["learnt"] == 6
    assert result["evaluations"][0]["n"] == 3
    assert result["evaluations"][0]["items"] == [0, 5, 10]
    assert json.loads((tmp_path / "result.json").read_text()) == result
    monkeypatch.setattr(fit, "fit", None)  # nothing trains
    assert run(experiment, tmp_path, dtype="float32") == result


def test_a_damaged_result_is_made_again_and_another_model_is_another_run(photos, plan, tmp_path, small_mae):
    experiment = Experiment(plan, photos, SHORT, n=2, judge="none")
    first = run(experiment, tmp_path / "out", dtype="float32")
    for content in ("", "[]", "null"):
        (tmp_path / "out" / "result.json").write_text(content)
        assert run(experiment, tmp_path / "out", dtype="float32")["evaluations"] == first["evaluations"]
    moved = tmp_path / small_mae.name  # the same model goes on with the same run, another one of its name does not
    shutil.copytree(small_mae, moved)
    state = (tmp_path / "out" / "state.pt").read_bytes()
    elsewhere = replace(experiment, design=replace(plan, encoder=str(moved)))
    assert run(elsewhere, tmp_path / "out", dtype="float32")["evaluations"] == first["evaluations"]
    assert (tmp_path / "out" / "state.pt").read_bytes() == state
    weights = load_file(moved / "model.safetensors")
    save_file({name: x + 0.01 for name, x in weights.items()}, moved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="belongs to another run: its frozen's encoder is small-mae@"):
        run(replace(elsewhere, n=1), tmp_path / "out", dtype="float32")


def test_what_makes_an_experiment_is_plain_and_has_no_folders(photos, plan, tmp_path):
    weights = tmp_path / "judge.safetensors"
    weights.write_bytes(b"")
    found = describe(
        Experiment(plan, photos, test=("scenes", photos), n=5, judge=f"arch/{weights}"), load_dataset(photos)
    )
    assert json.loads(json.dumps(found)) == found
    assert (found["data"]["name"], [one["name"] for one in found["test"]]) == ("photos", ["scenes", "photos"])
    assert found["judge"] == "arch/judge.safetensors"
    said = json.dumps(found)
    assert not any(str(path) in said for path in (photos.rpartition("/")[0], tmp_path, plan.encoder))
    assert shown_judge(str(tmp_path)) == tmp_path.name
    assert shown_judge("ViT-B-32/openai") == "ViT-B-32/openai"


@pytest.mark.parametrize(
    ("control", "probe", "is_one"),
    [
        ("mae@random", "mae", True),
        ("mae-tiny@random", "mae", True),
        ("mae@random", "mae-tiny", True),
        ("mae@random", "beit", False),
        ("mae", "mae", False),
        ("mae@random", "mae@random", False),
        ("timm:vit_tiny@random", "timm:vit_tiny", True),
    ],
)
def test_a_control_reads_the_same_encoder_at_random(control, probe, is_one):
    assert is_control(Design(encoder=control), Design(encoder=probe)) == is_one


def test_a_fair_control_was_trained_alike():
    ours = {
        "design": {"prefix": ""},
        "frozen": {"llm": "y@sha256:1", "encoder": "x"},
        "about": {
            "recipe": {"steps": 5, "seed": 0},
            "data": {"fingerprint": "sha256:2", "learnt": 4, "held_out": True},
        },
    }
    theirs = copy.deepcopy(ours)
    theirs["about"]["recipe"]["seed"] = 1
    theirs["frozen"]["encoder"] = "x@random"
    assert control_differs(theirs, ours) == ""
    theirs["about"]["recipe"]["steps"] = 3
    assert control_differs(theirs, ours) == "recipe's steps is 3, not 5"
    theirs["about"]["data"]["learnt"] = 9
    assert control_differs(theirs, ours) == "data's learnt is 9, not 4"
    theirs = copy.deepcopy(ours)
    theirs["about"]["data"]["held_out"] = False  # it may have learnt what it is shown now
    assert control_differs(theirs, ours) == "data's held_out is False, not True"
