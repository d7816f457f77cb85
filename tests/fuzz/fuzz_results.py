"""Result files that other hands have changed, in `report`, `analyse correlation` and `reproduce --no-train`."""

from __future__ import annotations

import functools
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from fuzzing import OUT, Damage, Edit, Kind, command, damaged, damages, edited, edits
from hypothesis import strategies as st

from alignlab import trained
from alignlab.restoration import reproduction, targets

RESULTS = Path(__file__).parents[2] / "reports" / "results"
SMALL = tuple(sorted(path.parent.name for path in RESULTS.glob("*/result.json") if path.stat().st_size < 100_000))


@dataclass(frozen=True)
class Changed:
    """A result of this repository, by name, with other values and other bytes."""

    of: str
    edits: tuple[Edit, ...]
    changes: tuple[Damage, ...]


@functools.cache
def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _written(given: Changed, value: Any) -> bytes:
    return damaged(json.dumps(edited(value, list(given.edits))).encode(), list(given.changes))


def _changed(names: tuple[str, ...]) -> st.SearchStrategy[Changed]:
    several, none = edits(1, 5).map(tuple), st.just(())
    return st.one_of(
        st.builds(Changed, st.sampled_from(names), several, none),
        st.builds(Changed, st.sampled_from(names), several, none),
        st.builds(Changed, st.sampled_from(names), none, damages(2).map(tuple)),
    )


def write_result(given: Changed, folder: Path) -> None:
    shutil.copytree(RESULTS / given.of, folder / "run")
    (folder / "run" / "result.json").write_bytes(_written(given, json.loads(_text(RESULTS / given.of / "result.json"))))


def report(given: Changed, folder: Path) -> int:
    return command("report", "run", "--out", f"{OUT}/page.html")


# What `analyse correlation` reads: a measurement, and restorers of three encoders behind it.


@functools.cache
def _correlated() -> str:
    measured = json.loads(_text(RESULTS / "measure-scenes" / "result.json"))
    restored = json.loads(_text(RESULTS / "denoise-4000" / "result.json"))
    made = {"measure": measured}
    pairs = {pair["encoder"]: pair for pair in measured["pairs"]}
    for number, (name, pair) in enumerate(pairs.items()):
        one = json.loads(json.dumps(restored))
        one["design"] |= {"encoder": name, "llm": pair["llm"]}
        one["frozen"] |= {"encoder": pair["checkpoint"], "llm": pair["llm_checkpoint"]}
        one["evaluations"][0]["gain"]["psnr"]["mean"] = number / 2
        made[name] = one
    return json.dumps(made)


def write_correlated(given: Changed, folder: Path) -> None:
    for name, value in json.loads(_correlated()).items():
        (folder / name).mkdir()
        content = _written(given, value) if name == given.of else json.dumps(value).encode()
        (folder / name / "result.json").write_bytes(content)


def correlation(given: Changed, folder: Path) -> int:
    names = list(json.loads(_correlated()))
    return command("analyse", "correlation", *names, "--out", OUT)


# What `reproduce --no-train` finds: a finished run of table 3's first row.


@functools.cache
def _finished() -> tuple[str, str]:
    lab = targets.open_lab("embedded")
    row = targets.target("table3", lab, images=None, n=256, data=(), test=(), seed=0).rows[0]
    from alignlab.restoration import experiment

    described = experiment.describe(row.experiment)
    restored = json.loads(_text(RESULTS / "denoise-4000" / "result.json"))
    return reproduction.folder(row.experiment, lab), json.dumps({**restored, **described})


def write_finished(given: Changed, folder: Path) -> None:
    name, text = _finished()
    place = folder / "runs" / name
    trained.write(place, {"weight": torch.zeros(1)}, {}, {}, {})
    (place / "result.json").write_bytes(_written(given, json.loads(text)))
    if given.of == "state":
        (place / "result.json").rename(place / "state.pt")


def reproduce(given: Changed, folder: Path) -> int:
    longest = ["--longest"] if given.of == "longest" else []
    with mock.patch.object(reproduction, "grids", return_value={}):  # pictures need the models
        return command("reproduce", "table3", "--no-train", "--runs", "runs", "--device", "cpu", *longest, "--out", OUT)


KINDS = (
    Kind("report", _changed(SMALL), write_result, report),
    Kind("correlation", _changed(tuple(json.loads(_correlated()))), write_correlated, correlation),
    Kind("reproduce", _changed(("result", "state")), write_finished, reproduce),
)
