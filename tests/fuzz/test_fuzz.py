"""A few hostile inputs of every kind, the same every time; benchmarks/fuzz.py tries thousands. And what was found by them."""

from __future__ import annotations

import json
import sys
import time

import fuzz_checkpoints
import fuzz_commands
import fuzz_datasets
import fuzz_features
import fuzz_hub
import fuzz_images
import fuzz_results
import pytest
from fuzz_checkpoints import Broken
from fuzz_results import Changed
from fuzzing import Damage, Edit, Finding, Kind, called, try_one
from hypothesis import HealthCheck, Phase, given, settings

from alignlab.cli import run

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the limit of an input's time needs signals")

SLOW = {
    "checkpoint: mae": 4,
    "checkpoint: llm": 4,
    "report": 4,
    "correlation": 4,
    "reproduce": 4,
    "store": 4,
    "working line": 8,
}
KINDS = (
    *fuzz_images.KINDS,
    *fuzz_datasets.KINDS,
    *fuzz_hub.KINDS,
    *fuzz_checkpoints.KINDS,
    *fuzz_features.KINDS,
    *fuzz_results.KINDS,
    *fuzz_commands.KINDS,
)
NAMED = {kind.name: kind for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_input_is_read_or_refused_in_one_line(kind):
    @settings(
        max_examples=SLOW.get(kind.name, 12),
        deadline=None,
        derandomize=True,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(kind.inputs)
    def every(one):
        try_one(kind, one)

    every()


# What was found


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("csv", {"set.csv": b'"\na.png\na.png"\na.png'}),  # a message of several lines
        # a file that is called so
        ("jsonl", {"set.jsonl": b'{"image": "a\\nb", "caption": "0"}'}),
        ("folder", {"a\nb.png": b"no picture", "a\nb.txt": b"a cat"}),
        # torch's reader of pickles, which pops from an empty list
        ("checkpoint: state", Broken("state", 0.0, (), (Damage("flip", 0.0, 1),))),
        # a design whose encoder is no text
        ("checkpoint: restorer", Broken("restorer", 0.0, (Edit("set", 0.125, None),), ())),
        # a folder was made before the data was looked for
        ("command line", ["restore", "decoder", "--data", "nowhere/at/all"]),
    ],
)
def test_what_was_found_is_refused(kind, found):
    assert try_one(NAMED[kind], found) == 2


# What finds it


@pytest.mark.parametrize("key", ["task", "images"])
def test_what_is_no_text_or_number_in_a_correlation_names_its_file(tmp_path, monkeypatch, capsys, key):
    """They were compared with texts and numbers of other files: a TypeError."""
    fuzz_results.write_correlated(Changed("none", (), ()), tmp_path)
    path = tmp_path / "mae" / "result.json"
    value = json.loads(path.read_text())
    (value["evaluations"][0] if key == "task" else value["learnt"])[key] = [None]
    path.write_text(json.dumps(value))
    monkeypatch.chdir(tmp_path)
    assert run(["analyse", "correlation", "measure", "mae", "beit", "vqgan", "--out", "out"]) == 2
    assert f"result.json is no result of `alignlab measure`, `restore train`, `restore eval` or `reproduce`: {key}" in (
        capsys.readouterr().err
    )


LACKS = ("recipe", "frozen", "learnt", "environment")


@pytest.mark.parametrize("key", LACKS)
def test_a_finished_run_whose_result_lacks_something_is_named(tmp_path, monkeypatch, capsys, key):
    """They were KeyErrors."""
    fuzz_results.write_finished(Changed("result", (), ()), tmp_path)
    (path,) = tmp_path.glob("runs/*/result.json")
    value = json.loads(path.read_text())
    del value[key]
    path.write_text(json.dumps(value))
    monkeypatch.chdir(tmp_path)
    line = ["reproduce", "table3", "--no-train", "--runs", "runs", "--device", "cpu", "--out", "out"]
    assert run(line) == 2
    assert f"{path.relative_to(tmp_path)} is damaged" in capsys.readouterr().err


def lying(answer):
    return Kind("lying", fuzz_images.bombs, lambda given, folder: None, answer)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda given, folder: called(lambda: {}["key"]), "KeyError"),
        (lambda given, folder: called(lambda: int("two\nlines")), None),
        (lambda given, folder: (folder.parent / "escaped").write_text("x"), "it writes outside its output folder"),
        (lambda given, folder: (folder / "out" / "page").write_text(""), None),
    ],
)
def test_findings_are_found(answer, said):
    if said is None:
        try_one(lying(answer), b"")
        return
    with pytest.raises(Finding, match=said):
        try_one(lying(answer), b"")


def computes():
    while True:
        pass


@pytest.mark.parametrize(("limit", "endless"), [("WITHIN", computes), ("AT_LAST", lambda: time.sleep(3600))])
def test_what_does_not_end_is_found(monkeypatch, limit, endless):
    monkeypatch.setattr(f"fuzzing.{limit}", 0.2)
    with pytest.raises(Finding, match="it computes longer than"):
        try_one(lying(lambda given, folder: endless()), b"")
