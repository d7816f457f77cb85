"""`alignlab cache`: what is there, what is damaged, and what goes."""

import json
import os
import time

import pytest
import torch

from alignlab.cli import run
from alignlab.data import load_dataset
from alignlab.features import extract
from alignlab.features.cache import entries, remove


class Colours:
    pools = ("mean",)
    image_size = 8

    def __init__(self, name="colours"):
        self.name = name
        self.checkpoint = f"{name}@1"
        self.seen = 0

    def layers(self, images, pool=None):
        self.seen += len(images)
        mean = images.mean((2, 3))
        return torch.stack([mean, mean**2], dim=1)


@pytest.fixture
def store(tmp_path, monkeypatch, blurs):
    """A store of its own with features of two models on 300 pictures, in two shards each."""
    monkeypatch.setenv("ALIGNLAB_HOME", str(tmp_path))
    data = load_dataset(str(blurs("pictures", 300, (8, 8))))
    for name in ("colours", "hues"):
        extract(Colours(name), data)
    return data


def shards(model):
    (entry,) = [entry for entry in entries() if entry.model == model]
    return sorted(entry.folder.glob("shard-*"))


def flip(path, at=-1):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_an_empty_store_is_told_as_such(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ALIGNLAB_HOME", str(tmp_path / "none"))
    assert run(["cache", "list"]) == 0
    assert "0 set(s) of features" in capsys.readouterr().out
    assert run(["cache", "verify"]) == 0
    assert run(["cache", "prune", "--everything"]) == 0


def test_what_is_there_is_listed(store, capsys):
    assert run(["cache", "list"]) == 0
    told = capsys.readouterr().out
    assert "colours" in told
    assert "hues" in told
    assert "300" in told
    assert "2 set(s) of features" in told


def test_a_flipped_bit_is_found_and_its_shard_alone_computed_anew(store, capsys):
    assert run(["cache", "verify"]) == 0
    assert "4 shard(s) in 2 set(s)" in capsys.readouterr().out
    whole = extract(Colours("hues"), store).layers
    flip(shards("hues")[1])
    assert run(["cache", "verify"]) == 1
    told = capsys.readouterr()
    assert "damaged: shard-00001.safetensors" in told.out
    assert "(hues on" in told.out
    assert "colours" not in told.out
    again = Colours("hues")
    assert torch.equal(extract(again, store).layers, whole)
    assert again.seen == 300 - 256
    assert run(["cache", "verify"]) == 0


def test_a_missing_shard_and_a_damaged_manifest_are_found(store, capsys):
    shards("hues")[0].unlink()
    (shards("colours")[0].parent / "manifest.json").write_text("{")
    assert run(["cache", "verify"]) == 1
    told = capsys.readouterr().out
    assert "shard-00000.safetensors" in told
    assert "its manifest is damaged" in told
    assert run(["cache", "list"]) == 0


def test_only_what_fits_every_option_goes(store, capsys):
    assert run(["cache", "prune", "--model", "hues", "--older", "1"]) == 0
    assert "0 set(s)" in capsys.readouterr().out
    assert run(["cache", "prune", "--model", "hues", "--dry-run"]) == 0
    assert "would delete" in capsys.readouterr().out
    assert len(entries()) == 2
    assert run(["cache", "prune", "--model", "hues"]) == 0
    assert [entry.model for entry in entries()] == ["colours"]


def test_old_incomplete_and_damaged_ones_go_when_asked_for(store):
    (entry,) = [entry for entry in entries() if entry.model == "colours"]
    past = time.time() - 40 * 86_400
    for path in entry.folder.iterdir():
        os.utime(path, (past, past))
    assert run(["cache", "prune", "--older", "30"]) == 0
    assert [entry.model for entry in entries()] == ["hues"]
    assert run(["cache", "prune", "--incomplete"]) == 0
    assert run(["cache", "prune", "--damaged"]) == 0
    assert len(entries()) == 1
    flip(shards("hues")[0])
    assert run(["cache", "prune", "--damaged"]) == 0
    assert entries() == []


def test_what_a_run_is_writing_is_left_alone(store, capsys):
    from filelock import FileLock

    (entry,) = [entry for entry in entries() if entry.model == "hues"]
    with FileLock(entry.folder.with_name(entry.folder.name + ".00001.lock")):
        assert run(["cache", "prune", "--everything"]) == 0
    assert "left alone" in capsys.readouterr().out
    assert [entry.model for entry in entries()] == ["hues"]


def test_what_a_run_fills_is_left_alone_between_two_shards(store, monkeypatch):
    """When it holds none of them, and has written what would be lost."""
    from alignlab.features import store as stored

    fill, tried = stored._fill, []

    def pruned(spec, left, compute, progress, waiting):
        def told(done):
            progress(done)
            tried.extend(remove(entry) for entry in entries() if entry.model == "late")

        fill(spec, left, compute, told, waiting)

    monkeypatch.setattr(stored, "_fill", pruned)
    assert len(extract(Colours("late"), store)) == 300
    assert tried == [False, False]
    (entry,) = [entry for entry in entries() if entry.model == "late"]
    assert remove(entry)
    assert remove(entry)  # as another prune may have done before
    assert not list(entry.folder.parent.glob(f"{entry.folder.name}*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "say what to delete"),
        (["--everything", "--incomplete"], "stands alone"),
        (["--older", "-1"], "0 or more"),
        (["--older", "nan"], "0 or more"),
        (["--model", "nobody"], "there is colours, hues"),
    ],
)
def test_bad_options(store, capsys, options, message):
    assert run(["cache", "prune", *options]) == 2
    assert message in capsys.readouterr().err
    assert len(entries()) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"n": float("inf")},
        {"shards": {"x" * 300: "a"}},
        {"shards": {"a\0b": "a"}},
        {"shards": {"../../escape": "a"}},
        {"shards": {"shard-00000.safetensors": 5}},
        {"model": "\ud800"},
        None,
    ],
    ids=["n", "long", "nul", "path", "hash", "surrogate", "deep"],
)
def test_a_hostile_manifest_is_one_of_many(store, capsys, change):
    """The others are listed and checked, and it can be thrown away."""
    manifest = shards("hues")[0].parent / "manifest.json"
    manifest.write_text("[" * 100_000 if change is None else json.dumps(json.loads(manifest.read_text()) | change))
    assert run(["cache", "list"]) == 0
    told = capsys.readouterr().out
    assert "colours" in told
    assert run(["cache", "verify"]) == 1
    assert "its manifest is damaged" in capsys.readouterr().out
    assert run(["cache", "prune", "--damaged"]) == 0
    assert [one.model for one in entries()] == ["colours"]
    encoder = Colours("hues")
    extract(encoder, store)
    assert encoder.seen == 300
