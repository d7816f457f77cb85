"""Run what a target is made of, and put together what came out: rows, sentences, grids of pictures.

Rows of several targets that are the same experiment share one run, which lies in a folder of its own and is trained once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignlab import trained
from alignlab.data.degradations import TASKS
from alignlab.files import slug, write_tensors
from alignlab.restoration import design, experiment
from alignlab.restoration.card import difference_of, endless
from alignlab.restoration.coordinates import POSITION, WHITENED
from alignlab.restoration.earlier import Earlier
from alignlab.restoration.evaluation import difference
from alignlab.restoration.experiment import RESULT, TEST_SEED, Experiment, TestSet, evaluate_on, open_tests
from alignlab.restoration.fit import named_data
from alignlab.restoration.targets import Lab, Row, Target
from alignlab.training import in_turn, processes

PICTURES = 8  # in a row of a grid
KEPT = ("given", "alone", "restored", "truth")  # rows of pictures that a run keeps


def folder(one: Experiment, lab: Lab) -> str:
    """The name of a run's folder: what tells it from the others of its laboratory."""
    plan = one.design

    def last(name: str) -> str:
        return name.rstrip("/").rpartition("/")[2]

    parts = [*plan.tasks, plan.how, last(plan.encoder)]
    parts += [last(plan.llm)] if plan.reads_llm else []
    parts += [word for word, on in (("causal", plan.causal), ("rotary", plan.rotary)) if on]
    parts += [plan.features] if plan.features != lab.features else []
    parts += [plan.begin] if plan.begin != "fitted" else []
    parts += [f"lr{one.recipe.lr:g}"] if one.recipe.lr != lab.recipe.lr else []
    # Another set of the same name is another run.
    parts += [_called(source) for source in one.data] if one.data != lab.data else []
    parts += ["on", *map(_called, one.test)] if one.test != lab.test else []
    parts += [f"seed{plan.seed}"] if plan.seed else []
    named = "-".join([*parts, f"{one.images_seen}-images"])
    return slug(named)


def _called(source: str) -> str:
    """A set's name and what tells it from others of that name."""
    named = named_data(source)
    return f"{named['name'].rpartition('/')[2]}-{named['fingerprint'].removeprefix('sha256:')[:8]}".rstrip("-")


@dataclass(frozen=True)
class Standing:
    """How far a run is: "done", "partly" (`steps` are; at the end it is still to be measured), "to do", or "another run"
    lies in its folder.
    """

    state: str
    steps: int = 0


def standing(one: Experiment, where: Path) -> Standing:
    """Of one run; no model is opened."""
    if (found := _result(where)) is not None and _same(found, one):
        return Standing("done", one.recipe.steps)
    saved = where / "state.pt"
    if not saved.is_file():
        return Standing("to do")
    try:
        state = torch.load(saved, map_location="cpu", weights_only=True, mmap=True)
        identity, steps = state["identity"], int(state["step"])
        ours = {
            "design": one.design.plain(),
            "data": [named_data(source) for source in one.data],
            "crops": one.crops,
            "held out": not one.test,
        }
        about = {key: identity["about"][key] for key in ours}
        same = _recipe(identity["recipe"]) == _recipe(_plain(asdict(one.recipe))) and about == _plain(ours)
    except Exception:  # whatever is wrong with that file, it is not this run's
        same, steps = False, 0
    return Standing("partly", steps) if same else Standing("another run")


def _plain(value: Any) -> Any:
    """As a JSON file gives it back."""
    return json.loads(json.dumps(value))


def _result(where: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((where / RESULT).read_text())
    except (OSError, ValueError):
        return None
    whole = isinstance(found, dict) and found.get("schema") == experiment.SCHEMA and found.get("evaluations")
    if not whole or not (where / trained.ADAPTERS).is_file():
        return None
    try:
        _check_sound(found)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{where / RESULT} is damaged or not what `alignlab restore train` wrote; delete it, and its run measures again"
        ) from error
    return found


def _check_sound(result: dict[str, Any]) -> None:
    """KeyError, TypeError or ValueError where a result lacks what tables, sentences and pictures are made of."""
    learnt, frozen = result["learnt"], result["frozen"]
    _ = f"{learnt['images']:,} {learnt['parameters']:,} {learnt['seconds']:.1f} {result['recipe']['steps']:,}"
    if not all(isinstance(name, str) for name in frozen.values()) or not isinstance(result["environment"], dict):
        raise TypeError
    for one in result["evaluations"]:
        _ = f"{one['n']:,} {one['misaligned']:,} {one['seed']:,} {one['data']['name']:s} {one['data']['fingerprint']:s}"
        for column in ("degraded", "alone", "restored", "gain", "lift"):
            _check_figures(one[column])
        if one.get("told"):
            _check_figures(one["told"])
        if any(len([float(x or 0) for x in one["each"][name]]) != one["n"] for name in ("psnr", "ssim")):
            raise ValueError


def _check_figures(figures: dict[str, Any] | None) -> None:
    """Means that are numbers, or None for an infinite one, with two numbers each around those that are."""
    if figures is None:
        return
    for name in ("psnr", "ssim"):
        mean, ends = figures[name]["mean"], figures[name]["ci95"]
        _ = "inf" if mean is None and name == "psnr" else f"{mean:+.2f}"
        low, high = ends or (0.0, 0.0)
        _ = f"{low:+.2f} {high:+.2f}"


def _same(found: dict[str, Any], one: Experiment, longer: bool = False) -> bool:
    """Whether a result is the experiment's, or, where `longer`, differs from it in length alone."""
    same = found.get("design") == _plain(one.design.plain()) and (found.get("crops"), found.get("n")) == (
        one.crops,
        one.n,
    )
    if not same or _recipe(found["recipe"], longer) != _recipe(_plain(asdict(one.recipe)), longer):
        return False
    # Last, as a set's fingerprint is of all that it holds.
    sets = {"data": one.data, "test": one.test}
    return all(found.get(key) == [named_data(source) for source in sources] for key, sources in sets.items())


def _recipe(plain: dict[str, Any], longer: bool = False) -> dict[str, Any]:
    """Without the type of its numbers, which is the machine's (bfloat16 where it is quick in it), and, where `longer`, without
    how long it is.
    """
    out = ("dtype", "steps", "warmup") if longer else ("dtype",)
    return {name: value for name, value in plain.items() if name not in out}


def longest(one: Experiment, runs: Path) -> Path | None:
    """The finished run that differs from `one` in length alone and saw the most images, its budget or more, in any folder."""
    found = [(result["learnt"]["images"], path.parent) for path, result in _results(runs) if _same(result, one, True)]
    images, where = max(found, default=(0, None))
    return where if images >= one.images_seen else None


def _results(runs: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in sorted(runs.glob(f"*/{RESULT}")):
        if (result := _result(path.parent)) is not None:
            yield path, result


@dataclass(frozen=True)
class Place:
    """A row, the folder of its run, how far that is, and the row of an earlier result that stands in the run's stead."""

    row: Row
    where: Path
    standing: Standing
    kept: dict[str, Any] | None = None

    @property
    def state(self) -> str:
        """As its run's, or "kept"."""
        return self.standing.state if self.kept is None else "kept"

    @property
    def is_open(self) -> bool:
        """Whether there is something to train or measure."""
        return self.state not in ("done", "kept")


def places(
    what: Target, lab: Lab, runs: Path, earlier: Earlier | None = None, *, take_longest: bool = False
) -> list[Place]:
    """Where each row's run lies. A row that `earlier` has of the same experiment is kept where its run is not finished here.

    With `take_longest` a finished run of the same design, or an earlier row, that saw more takes a row's place; ValueError for
    a target whose rows are compared with each other.
    """
    if take_longest and not what.own_budgets:
        raise ValueError(
            f"--longest: the rows of {what.name} are compared with each other, and every run has one budget"
        )
    found = []
    for row in what.rows:
        longer = longest(row.experiment, runs) if take_longest else None
        where = longer or runs / folder(row.experiment, lab)
        done = Standing("done", row.experiment.recipe.steps)
        place = Place(row, where, done if longer else standing(row.experiment, where))
        before = None if earlier is None else earlier.rows.get(row.name)
        found.append(place if before is None else _kept(place, before, take_longest))
    return found


def _kept(place: Place, before: dict[str, Any], take_longest: bool) -> Place:
    """The place with the earlier row, where that stands in it."""
    here = _row(place)
    longer = take_longest and before["images"] > here.get("images", 0)
    stands = (longer or here["status"] != "done") and _is_row(before, place, longer)
    return replace(place, kept=before) if stands else place


def refuse_others(found: list[Place]) -> None:
    """ValueError where another run lies in the folder of one that is still to be trained."""
    for place in found:
        if place.state == "another run":
            raise ValueError(
                f"{place.where} holds another run than {place.row.name}'s (its models, data or recipe differ), or a damaged "
                "one; delete it, or choose another --runs folder"
            )


def perform(place: Place, *, device: str = "cpu", accumulate: int = 1) -> None:
    """Train and measure what a row still lacks. Of several commands that want one run, one trains and the others wait.

    Errors as `experiment.run`.
    """
    among = processes(device)
    if not among.share(place.is_open):  # another command may have finished it between two processes' looks
        return
    with in_turn(place.where, among):
        experiment.run(place.row.experiment, place.where, device=device, accumulate=accumulate)


def gather(what: Target, found: list[Place]) -> list[dict[str, Any]]:
    """The rows as plain values: what is kept of them, or their runs' files say, or that they are missing. Nothing is measured
    here.

    ValueError where two runs' encoders, or the language models of two, have one name and are not the same.
    """
    rows = [_row(place) if place.kept is None else place.kept for place in found]
    for part in ("encoder", "llm"):
        seen: dict[str, tuple[str, str]] = {}
        for row in rows:
            checkpoint = row.get("frozen", {}).get(part, "").partition(WHITENED)[0]
            name = row["design"][part]
            if checkpoint and seen.setdefault(name, (checkpoint, row["run"]))[0] != checkpoint:
                raise ValueError(
                    f"{row['run']} was trained with the {part} {checkpoint}, {seen[name][1]} with {seen[name][0]}: they "
                    "cannot stand in one comparison; delete the older one's folder and run it again"
                )
    return rows


def _row(place: Place) -> dict[str, Any]:
    row = place.row
    described: dict[str, Any] = {
        "name": row.name,
        "task": row.task,
        "run": place.where.name,
        "status": place.standing.state,
        "steps_done": place.standing.steps,
        "design": _plain(row.experiment.design.plain()),
        "paper": {column: {k: _finite(x) for k, x in figures.items()} for column, figures in row.paper.items()},
    }
    result = _result(place.where) if (place.where / trained.ADAPTERS).is_file() else None
    if result is None or not _same(result, row.experiment, longer=place.standing.state == "done"):
        return {**described, "status": "missing" if described["status"] == "to do" else described["status"]}
    return {
        **described,
        "status": "done",
        "steps_done": result["recipe"]["steps"],
        "images": result["learnt"]["images"],
        "parameters": result["learnt"]["parameters"],
        "seconds": result["learnt"]["seconds"],
        "frozen": result["frozen"],
        "trained": trained.checkpoint(place.where),
        "data": result["data"],
        "recipe": result["recipe"],
        "evaluations": result["evaluations"],
        "environment": result["environment"],
    }


def _is_row(row: dict[str, Any], place: Place, longer: bool) -> bool:
    """Whether an earlier row is of the place's experiment, or, where `longer`, differs from it in length alone."""
    one, tests = place.row.experiment, open_tests(place.row.experiment)
    try:
        measured = [(e["data"]["fingerprint"], e["n"], e["seed"], e["strength"]) for e in row["evaluations"]]
        same = row["design"] == _plain(one.design.plain()) and row["task"] == place.row.task
        same = same and row["data"] == [named_data(source) for source in one.data]
        same = same and _recipe(row["recipe"], longer) == _recipe(_plain(asdict(one.recipe)), longer)
        _check_sound({**row, "learnt": row})
    except (KeyError, TypeError, ValueError):
        return False
    return bool(same and measured == [(test.data.fingerprint, len(test), TEST_SEED, None) for test in tests])


def _finite(x: float) -> float | None:
    """None for inf, which JSON does not have."""
    return x if math.isfinite(x) else None


# --- what the rows say ---


def readings(what: Target, rows: list[dict[str, Any]]) -> list[str]:
    """Sentences made of the rows' numbers, one a row and test set, then one a pair; of what is missing, that it is."""
    by_name = {row["name"]: row for row in rows}
    said = []
    for row in rows:
        if row["status"] != "done":
            said.append(f"{row['name']}: missing")
        for found in row.get("evaluations", ()):
            at = f"{row['name']}{_on(found, row)}"
            parts = [f"minus encoder + decoder alone {_difference(found['gain'], endless(found))}"]
            if found["lift"] and not TASKS[row["task"]].spatial:
                parts.insert(0, f"minus degraded {_difference(found['lift'], endless(found, 'degraded'))}")
            text = f"{at}: restored {', '.join(parts)}; {found['misaligned']} of {found['n']} misaligned"
            if found.get("told"):
                psnr = found["told"]["psnr"]["mean"]
                text += f"; {'inf' if psnr is None else f'{psnr:.2f}'} dB where it reads the true answer so far"
            if {"alone", "restored"} <= row["paper"].keys():
                ours = row["paper"]["restored"]["PSNR"] - row["paper"]["alone"]["PSNR"]
                text += f"; the paper, with its models: minus MAE-r {ours:+.2f} dB"
            said.append(text)
    for a, b in what.pairs:
        if a in by_name and b in by_name:
            said += _versus(by_name[a], by_name[b])
    types: dict[str, list[str]] = {}
    for row in rows:
        if row["status"] == "done" and row["design"]["how"] in ("lm4lv", "vit-llm"):  # others have no language model
            types.setdefault(str(row["recipe"]["dtype"]), []).append(row["name"])
    if len(types) > 1:
        said.append("; ".join(f"computed in {dtype}: {', '.join(names)}" for dtype, names in types.items()))
    return said


def _on(found: dict[str, Any], row: dict[str, Any]) -> str:
    return f" on {found['data']['name']}" if len(row["evaluations"]) > 1 else ""


def _difference(figures: dict[str, Any] | None, otherwise: str = "") -> str:
    if figures is None:
        return otherwise
    psnr, _, span = difference_of(figures["psnr"], 2).partition(" ")
    return f"{psnr} dB {span}, SSIM {difference_of(figures['ssim'], 3)}"


def _versus(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Row a minus row b, image by image: the images and what happened to them are the same."""
    said = []
    others = {found["data"]["fingerprint"]: found for found in b.get("evaluations", ())}
    for ours in a.get("evaluations", ()):
        theirs = others.get(ours["data"]["fingerprint"])
        if theirs is None or (theirs["n"], theirs["seed"]) != (ours["n"], ours["seed"]):
            continue
        figures = difference(_each(ours), _each(theirs))
        if figures is not None:
            plain = {"psnr": figures.psnr.plain(), "ssim": figures.ssim.plain()}
            said.append(f"{a['name']} minus {b['name']}{_on(ours, a)}: {_difference(plain)}, image by image")
    return said


def _each(found: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """PSNR and SSIM of every restored image, `[n]`."""
    psnr, ssim = (
        torch.tensor([math.inf if x is None else x for x in found["each"][name]], dtype=torch.float64)
        for name in ("psnr", "ssim")
    )
    return psnr, ssim


# --- pictures ---


def grids(
    what: Target, found: list[Place], earlier: Earlier | None = None, *, device: str = "cpu"
) -> dict[str, dict[str, Tensor]]:
    """Task and set -> label -> `[N, 3, H, W]`: what was given, what encoders and decoders alone make of it, what every
    finished row made of it, the truth. The pictures are the first of the test set, degraded as in evaluation; those of
    rows that are kept are from `earlier`.
    """
    made: dict[str, dict[str, Tensor]] = {}
    truths: dict[str, Tensor] = {}
    for place, row in zip(found, gather(what, found), strict=True):
        if row["status"] != "done":
            continue
        result = None if place.kept is not None else _result(place.where)
        encoder = f"{str(row['design']['encoder']).removesuffix(POSITION)} alone"  # a position code is not decoded
        for test in open_tests(place.row.experiment):
            key = slug(f"{place.row.task}-{test.data.name}")
            if result is not None:
                shown = _pictures(place, result, test, device)
            else:
                before = {} if earlier is None else earlier.pictures.get(key, {})
                labels = ("given", encoder, row["name"], "truth")
                if not before.keys() >= set(labels):
                    continue
                shown = dict(zip(KEPT, (before[label] for label in labels), strict=True))
            grid = made.setdefault(key, {"given": shown["given"]})
            grid.setdefault(encoder, shown["alone"])
            grid[row["name"]] = shown["restored"]
            truths.setdefault(key, shown["truth"])
    return {key: {**grid, "truth": truths[key]} for key, grid in made.items()}


def _pictures(place: Place, result: dict[str, Any], test: TestSet, device: str) -> dict[str, Tensor]:
    """Restored by the saved adapters once, then read from `shown-SET.safetensors` beside them."""
    from safetensors import safe_open

    whose = sha256(json.dumps([result, test.data.fingerprint]).encode()).hexdigest()
    kept = place.where / f"shown-{slug(test.data.name)}.safetensors"
    if kept.is_file():
        with safe_open(kept, framework="pt") as file:
            if (file.metadata() or {}).get("of") == whose:
                return {key: file.get_tensor(key).float() / 255 for key in KEPT}
    model = design.load(str(place.where), device=device)[0]
    few = TestSet(test.data, test.indices[:PICTURES])
    rows = evaluate_on(model, few, place.row.task)[1].shown
    named = dict(zip(KEPT, rows.values(), strict=True))
    bytes_ = {key: images.clamp(0, 1).mul(255).round().byte().cpu() for key, images in named.items()}
    write_tensors(kept, bytes_, {"of": whose})
    return {key: images.float() / 255 for key, images in bytes_.items()}
