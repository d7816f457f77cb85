"""Experiments: what is measured on is never learnt from, sets of one name stay apart, results fit what was asked."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from alignlab.restoration import design
from alignlab.restoration.design import Design
from alignlab.restoration.experiment import Experiment, describe, open_test, run
from alignlab.restoration.fit import RECIPE, named_data
from alignlab.trained import ADAPTERS

SHORT = replace(RECIPE, steps=2, batch=2, warmup=1)


@pytest.fixture(scope="module")
def photos(blurs):
    return str(blurs("photos", 11, (36, 48)))


@pytest.fixture
def plan(small_mae):
    return Design(how="linear", encoder=str(small_mae), tasks=("deblur",))


def test_a_set_that_was_learnt_from_gives_its_held_out_fifth(photos):
    learnt = [named_data(photos)]
    assert list(open_test(photos, learnt).indices) == [0, 5, 10]
    assert list(open_test(f"{photos}/../photos/", learnt).indices) == [0, 5, 10]  # the same by another name
    assert list(open_test(photos, [{"name": "photos", "fingerprint": "sha256:of-others"}]).indices) == list(range(11))
    assert list(open_test(photos, fifth=True).indices) == [0, 5, 10]
    assert list(open_test(photos).indices) == list(range(11))
    assert list(open_test(photos, n=4).indices) == [0, 2, 5, 8]
    assert list(open_test(photos, learnt, 2).indices) == [0, 5]
    scenes = [named_data("scenes")]
    assert len(open_test("scenes", scenes)) == len(open_test("scenes"))  # the shipped ones are never learnt from
    with pytest.raises(ValueError, match="scenes-train:4 are scenes that were learnt from"):
        open_test("scenes-train:4", scenes)
    assert open_test(photos).pictures(32)(2, 5).shape == (3, 3, 32, 32)


def test_what_is_learnt_and_what_is_measured_do_not_meet(photos, plan, tmp_path, monkeypatch):
    from alignlab.restoration.batches import WholePictures

    made = []
    begin = WholePictures.__init__

    def noted(self, data, items, *rest):
        made.append(set(items))
        begin(self, data, items, *rest)

    monkeypatch.setattr(WholePictures, "__init__", noted)
    result = run(Experiment(plan, (photos,), SHORT), tmp_path / "out", dtype="float32")
    assert made
    assert all(items == set(range(11)) - {0, 5, 10} for items in made)
    assert result["evaluations"][0]["n"] == 3


def test_with_a_test_set_all_is_learnt_from_and_that_is_remembered(photos, plan, tmp_path, capsys):
    from alignlab.cli import run as command

    others = [tmp_path / "1" / "photos", tmp_path / "2" / "photos"]  # of the same name
    for shape, other in enumerate(others):
        shutil.copytree(photos, other)
        Image.new("RGB", (32, 32 + shape)).save(other / "00.png")
    with pytest.raises(
        ValueError, match="photos: training learns from all of it; measure on pictures that it never sees"
    ):
        run(Experiment(plan, (photos,), SHORT, test=(str(others[0]), photos)), tmp_path / "out", dtype="float32")
    assert not (tmp_path / "out").exists()
    test = tuple(map(str, others))
    result = run(Experiment(plan, (photos,), SHORT, test=test), tmp_path / "out", dtype="float32")
    assert [one["n"] for one in result["evaluations"]] == [11, 11]
    pictures = [one["picture"] for one in result["evaluations"]]
    assert len(set(pictures)) == 2
    assert all((tmp_path / "out" / picture).is_file() for picture in pictures)
    evaluate = ["restore", "eval", "--checkpoint", str(tmp_path / "out"), "--out", str(tmp_path / "eval")]
    assert command([*evaluate, "--data", photos]) == 2
    assert "photos: " in (said := capsys.readouterr().err)
    assert f"{tmp_path / 'out'} learns from all of it; measure on pictures that it never sees" in said


def test_what_makes_an_experiment_is_plain_and_has_no_folders(photos, plan):
    found = describe(Experiment(plan, (photos, "scenes"), SHORT, test=("scenes",), n=5))
    assert json.loads(json.dumps(found)) == found
    assert [one["name"] for one in found["data"]] == ["photos", "scenes"]
    assert found["data"][0]["fingerprint"].startswith("sha256:")
    assert photos.rpartition("/")[0] not in json.dumps(found)


@pytest.mark.parametrize(("begun", "quick"), [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_a_run_keeps_the_type_that_it_began_in(photos, plan, tmp_path, monkeypatch, begun, quick):
    """Begun where bfloat16 is quick and ended where it is not, or the other way round, it is one run."""
    experiment = Experiment(plan, (photos,), SHORT, n=1)

    def machine(dtype):
        for module in ("alignlab.training", "alignlab.restoration.design"):
            monkeypatch.setattr(f"{module}.work_dtype", lambda asked, device: dtype if asked == "auto" else asked)

    machine(begun)
    first = run(experiment, tmp_path)
    assert first["recipe"]["dtype"] == begun
    machine(quick)
    monkeypatch.setattr("alignlab.restoration.experiment.fit.fit", None)  # nothing trains
    assert run(experiment, tmp_path) == first
    monkeypatch.undo()
    machine(quick)
    (tmp_path / "result.json").unlink()
    assert run(experiment, tmp_path)["recipe"]["dtype"] == begun  # told by the state
    assert run(experiment, tmp_path / "new")["recipe"]["dtype"] == quick
    (tmp_path / "result.json").unlink()
    with pytest.raises(ValueError, match=f"its dtype is {begun}, not {quick}"):
        run(experiment, tmp_path, dtype=quick)


def test_a_damaged_result_is_made_again(photos, plan, tmp_path, monkeypatch):
    experiment = Experiment(plan, (photos,), SHORT, n=1)
    first = run(experiment, tmp_path, dtype="float32")
    adapters = (tmp_path / ADAPTERS).read_bytes()
    for content in ("", "[]", "{", "null"):
        (tmp_path / "result.json").write_text(content)
        again = run(experiment, tmp_path, dtype="float32")
        assert again["evaluations"] == first["evaluations"]
    (tmp_path / ADAPTERS).write_bytes(adapters[:200])
    assert run(experiment, tmp_path, dtype="float32")["evaluations"] == first["evaluations"]
    _, _, tensors = design.read(tmp_path)
    assert tensors["layer.weight"].shape == (24, 24)


def test_a_model_in_another_folder_is_the_same_and_other_weights_are_not(photos, plan, tmp_path, small_mae):
    first = run(Experiment(plan, (photos,), SHORT, n=1), tmp_path / "out", dtype="float32")
    moved = replace(plan, encoder=str(tmp_path / small_mae.name))
    shutil.copytree(small_mae, moved.encoder)
    again = run(Experiment(moved, (photos,), SHORT, n=1), tmp_path / "out", dtype="float32")
    assert again["evaluations"] == first["evaluations"]
    weights = Path(moved.encoder) / "model.safetensors"
    save_file({key: x + 1 for key, x in load_file(weights).items()}, weights, metadata={"format": "pt"})
    (tmp_path / "out" / "result.json").unlink()
    with pytest.raises(ValueError, match=r"belongs to another run: its frozen's (encoder|decoder) is "):
        run(Experiment(moved, (photos,), SHORT, n=1), tmp_path / "out", dtype="float32")
