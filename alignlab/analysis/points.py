"""Points for a correlation: what result files say of alignment and of restoration, put together by their models.

A point is an encoder and a language model, `smollm2[:K]` and `smollm2@random` being models of their own. LM4LV through the
first K blocks writes from layer K, so that its alignment is that of layer K. It comes from a measurement of `smollm2[:K]`
itself where there is one, and else from column K of the whole model's matrix of layers. The two differ in one thing: a cut
model keeps the final norm, which the whole model puts behind its last layer alone. Two readings are given: "at", the best
of the encoder's layers with layer K, and "upto", the best of them with any layer up to K.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np

from alignlab.data.degradations import NAMES as TASKS
from alignlab.models import variant
from alignlab.restoration.coordinates import POSITION, WHITENED
from alignlab.restoration.design import HOWS

COLUMNS = ("gain", "lift", "restored")
READINGS = ("at", "upto")
MEASURE, TRAIN, EVAL, REPRODUCE = (
    "alignlab.measure/1",
    "alignlab.restore-train/1",
    "alignlab.restore-eval/1",
    "alignlab.reproduce/1",
)


class _Read:
    """What is read from a file; TypeError where a text is none, or a whole number: they are compared and sorted."""

    def __post_init__(self) -> None:
        for name, kinds in get_type_hints(type(self)).items():
            of_interest = kinds in (str, tuple[str, ...], int | None)
            value = getattr(self, name)
            for one in value if isinstance(value, tuple) else (value,):
                if of_interest and not isinstance(one, int | None if kinds == int | None else str):
                    raise TypeError(f"{name} is {value!r}")


@dataclass(frozen=True)
class Score(_Read):
    """A measured pair: scores `[L_x, L_y]` of one metric. `params` and pools are what a score depends on beside its models."""

    encoder: str
    encoder_checkpoint: str
    llm: str
    llm_checkpoint: str
    metric: str
    about: tuple[tuple[str, str], ...]
    data: str
    matrix: np.ndarray


@dataclass(frozen=True)
class Restoration(_Read):
    """One trained and measured restorer. `images` it learnt from is None where the file does not say; `value` is None where
    the figure is infinite for every image.
    """

    run: str
    how: str
    encoder: str
    encoder_checkpoint: str
    llm: str
    llm_checkpoint: str
    task: str
    images: int | None
    design: tuple[tuple[str, str], ...]
    tasks: tuple[str, ...]
    recipe: tuple[tuple[str, str], ...]
    learnt: tuple[str, ...]
    seed: int
    data: str
    measured: tuple[tuple[str, str], ...]
    value: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Point:
    """An encoder through a language model: alignment by metric and reading ("cka at"), and restoration.

    `own` says that the cut model's own layers were measured. `runs` restorers (of different seeds) are averaged. The
    checkpoints name both models with their hashes.
    """

    encoder: str
    llm: str
    depth: int
    own: bool
    alignment: dict[str, float]
    restoration: float
    interval: tuple[float, float] | None
    runs: int
    encoder_checkpoint: str = ""
    llm_checkpoint: str = ""

    @property
    def name(self) -> str:
        return f"{self.encoder} / {self.llm}"


@dataclass(frozen=True)
class Gathered:
    """Points, restorations without an alignment score (why), results that are no points (why), and what is to be known."""

    points: tuple[Point, ...]
    missing: tuple[str, ...]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]
    task: str
    images: tuple[int | None, ...]
    alignment_data: str
    data: str


# --- reading ---


def read(paths: Sequence[Path], column: str = "gain") -> tuple[list[Score], list[Restoration], list[str]]:
    """Scores and restorations of result files (or of folders with a result.json), each once, and what was left out: other
    results of alignlab among them, and folders without one.

    `column` is the restoration's: "gain" (restored minus encoder and decoder alone), "lift" (minus degraded) or "restored",
    PSNR in dB. Raises ValueError for a file that is no result.
    """
    if column not in COLUMNS:
        raise ValueError(f"column must be one of {', '.join(COLUMNS)}, got {column!r}")
    scores: list[Score] = []
    restorations: list[Restoration] = []
    left_out: list[str] = []
    for path in paths:
        file = path / "result.json" if path.is_dir() else path
        if path.is_dir() and not file.is_file():
            left_out.append(f"{path.resolve().name}: it has no result.json (not finished?)")
            continue
        try:
            result = json.loads(file.read_text(encoding="utf-8"))
            schema = result.get("schema")
            if schema == MEASURE:
                scores += _scores(result)
            elif schema in (TRAIN, EVAL, REPRODUCE):
                restorations += _restorations(result, file.resolve().parent.name, column, left_out)
            elif isinstance(schema, str) and schema.startswith("alignlab."):
                left_out.append(f"{file.resolve().parent.name}: a result of another kind ({schema.partition('/')[0]})")
            else:
                raise ValueError(f"its schema is {schema!r}")
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
            raise ValueError(
                f"{file} is no result of `alignlab measure`, `restore train`, `restore eval` or `reproduce`: {reason}"
            ) from error
    return scores, _once(restorations), left_out


def _scores(result: dict[str, Any]) -> Iterator[Score]:
    named = f"{result['data']['name']} ({result['data']['n']} items, {_short(result['data']['fingerprint'])})"
    for pair in result["pairs"]:
        matrix = np.asarray(pair["matrix"], dtype=np.float64)
        if matrix.ndim != 2 or not np.isfinite(matrix).all():
            raise ValueError(f"the matrix of {pair['encoder']} and {pair['llm']} holds no finite scores of layers")
        params = {**pair["params"], "pool": pair["pool"], "llm_pool": pair["llm_pool"]}
        yield Score(
            encoder=pair["encoder"],
            encoder_checkpoint=pair["checkpoint"],
            llm=pair["llm"],
            llm_checkpoint=pair["llm_checkpoint"],
            metric=pair["metric"],
            about=_pairs(params),
            data=named,
            matrix=matrix,
        )


def _pairs(values: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((key, json.dumps(value)) for key, value in values.items()))


def _short(fingerprint: str) -> str:
    return fingerprint.removeprefix("sha256:")[:8]


def _restorations(result: dict[str, Any], folder: str, column: str, left_out: list[str]) -> Iterator[Restoration]:
    schema = result["schema"]
    if schema == TRAIN:
        each = [(folder, result, one, result["learnt"]["images"]) for one in result["evaluations"]]
        if not each:
            left_out.append(f"{folder}: it was not measured (--n 0)")
    elif schema == EVAL:
        each = [(row["checkpoint"], row, row, row.get("steps", {}).get("images")) for row in result["results"]]
    else:
        done = [row for row in result["rows"] if row["status"] == "done"]
        left_out += [f"{folder}, {row['name']}: {row['status']}" for row in result["rows"] if row["status"] != "done"]
        each = [(row["run"], row, one, row["images"]) for row in done for one in row["evaluations"]]
    for run, row, one, images in each:
        plan = row["design"]
        if plan["how"] not in HOWS:
            raise ValueError(f"{run} is a {plan['how']!r}")
        figures = one[column]["psnr"] if one[column] is not None else {"mean": None, "ci95": None}
        known = ("how", "encoder", "llm", "seed", "tasks")
        yield Restoration(
            run=run,
            how=plan["how"],
            encoder=plan["encoder"],
            encoder_checkpoint=_own_checkpoint(row["frozen"]["encoder"]),
            llm=plan["llm"],
            llm_checkpoint=row["frozen"].get("llm", ""),
            task=one["task"],
            images=images,
            design=_pairs({key: value for key, value in plan.items() if key not in known}),
            tasks=tuple(plan["tasks"]),
            recipe=_pairs({key: value for key, value in row.get("recipe", {}).items() if key not in ("seed", "steps")}),
            learnt=() if schema == EVAL else tuple(sorted(set_["name"] for set_ in row.get("data", []))),
            seed=int(plan["seed"]),
            data=one["data"]["name"],
            measured=_pairs(
                {
                    "set": f"{one['data']['name']} {_short(one['data']['fingerprint'])}",
                    "n": one["n"],
                    "seed": one["seed"],
                    "strength": one["strength"],
                    "mode": one.get("mode", "forced"),
                }
            ),
            value=None if figures["mean"] is None else float(figures["mean"]),
            interval=None if not figures["ci95"] else (float(figures["ci95"][0]), float(figures["ci95"][1])),
        )


def _own_checkpoint(checkpoint: str) -> str:
    """An encoder's own, without the coordinates that its tokens were learnt in: alignment reads its own layers."""
    return checkpoint.partition(WHITENED)[0].removesuffix(POSITION)


def _once(found: list[Restoration]) -> list[Restoration]:
    """The same run may stand in its own result and in several tables."""

    def identity(one: Restoration) -> tuple[Any, ...]:
        return (
            *(one.how, one.encoder, one.encoder_checkpoint, one.llm_checkpoint, one.task),
            *(one.design, one.seed, one.measured, one.value, one.interval),
        )

    kept: dict[tuple[Any, ...], Restoration] = {}
    for one in found:
        known = kept.setdefault(identity(one), one)
        if known.images is None and one.images is not None:  # an older evaluation does not say how long was trained
            kept[identity(one)] = one
    return list(kept.values())


# --- points ---


def gather(
    scores: Sequence[Score],
    restorations: Sequence[Restoration],
    *,
    task: str | None = None,
    data: str | None = None,
    alignment_data: str | None = None,
    how: str = "lm4lv",
    any_budget: bool = False,
    left_out: Sequence[str] = (),
) -> Gathered:
    """Put restorations and alignment scores together.

    Points are compared within one `task`, measured alike on one set (`data`, its name), after one budget of images unless
    `any_budget`, and with scores of one set (`alignment_data`). Raises ValueError where there are several of a thing that
    must be one, naming them.
    """
    if task is not None and task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
    if not scores:
        raise ValueError("there is no alignment score among the results; add one of `alignlab measure`")
    if not restorations:
        raise ValueError(
            "there is no restoration among the results; add one of `alignlab restore train` or `reproduce`"
        )
    ours = [one for one in restorations if one.how == how]
    out = [*left_out, *(f"{one.run}: its how is {one.how}, not {how}" for one in restorations if one.how != how)]
    chosen = task or _only("task", "--task", {one.task for one in ours})
    out += [f"{one.run}: it is {one.task}, not {chosen}" for one in ours if one.task != chosen]
    ours = [one for one in ours if one.task == chosen]
    on = data or _only("set that restoration was measured on", "--data", {one.data for one in ours})
    out += [f"{one.run}: it was measured on {one.data}, not {on}" for one in ours if one.data != on]
    ours = [one for one in ours if one.data == on]
    if not ours:
        raise ValueError(f"there is no restoration by {how} of {chosen} on {on} among the results")
    _only(
        f"way that {chosen} was measured on {on}",
        None,
        {"; ".join(f"{key} {value}" for key, value in one.measured) for one in ours},
    )
    budgets = {one.images for one in ours}
    if len(budgets) > 1 and not any_budget:
        told = ", ".join("unknown" if n is None else f"{n:,}" for n in sorted(budgets, key=lambda n: n or 0))
        raise ValueError(
            f"the restorers learnt from different numbers of images ({told}), so that their {chosen} cannot be compared; "
            "leave some out, or --any-budget"
        )
    if None in budgets and not any_budget:
        raise ValueError(
            "a result of `restore eval` does not say how many images a restorer learnt from; measure again, give the results of "
            "`restore train` or `reproduce`, or --any-budget"
        )
    scored = list(scores)
    about = alignment_data or _only("set that alignment was measured on", "--alignment-data", {s.data for s in scored})
    fitting = [s for s in scored if s.data == about or s.data.partition(" (")[0] == about]
    if not fitting:
        raise ValueError(
            f"no alignment was measured on {about}; there is {', '.join(sorted({s.data for s in scored}))}"
        )
    about = _only("set of that name", None, {s.data for s in fitting})
    return _points(fitting, ours, out, chosen, on, about)


def _only(what: str, option: str | None, found: set[str]) -> str:
    if len(found) > 1:
        way = f"choose one with {option}" if option else "leave some results out"
        raise ValueError(f"the results have more than one {what} ({', '.join(sorted(found))}); {way}")
    return next(iter(found), "")


def _points(
    scores: list[Score], restorations: list[Restoration], out: list[str], task: str, data: str, about: str
) -> Gathered:
    table = _table(scores)
    groups: dict[tuple[str, str], list[Restoration]] = {}
    missing = []
    for one in restorations:
        if one.value is None:
            out.append(f"{one.run}: its figure is infinite for every image")
        else:
            groups.setdefault((one.encoder, one.llm), []).append(one)
    metrics = sorted({score.metric for score in scores})
    points = []
    for (encoder, llm), runs in groups.items():
        _only(f"design of {encoder} / {llm}", None, {", ".join(f"{k} {v}" for k, v in run.design) for run in runs})
        for part in ("encoder_checkpoint", "llm_checkpoint"):
            _only(f"checkpoint behind {encoder} / {llm}", None, {getattr(run, part) for run in runs})
        if len({run.seed for run in runs}) < len(runs):
            raise ValueError(f"{encoder} / {llm} has several runs of one seed; leave some results out")
        found = [_alignment(table, runs[0], metric) for metric in metrics]
        if any(one is None for one in found):
            lacking = [metric for metric, one in zip(metrics, found, strict=True) if one is None]
            whose = f"{_named(runs[0].encoder_checkpoint)} with {_named(runs[0].llm_checkpoint)}"
            missing.append(f"{encoder} / {llm}: no {', '.join(lacking)} of {whose}")
            continue
        whole = [one for one in found if one is not None]
        alignment = {
            f"{metric} {reading}": value
            for metric, one in zip(metrics, whole, strict=True)
            for reading, value in zip(READINGS, one[:2], strict=True)
        }
        values = [run.value for run in runs if run.value is not None]
        points.append(
            Point(
                encoder=encoder,
                llm=llm,
                depth=whole[0][2],
                own=all(one[3] for one in whole),
                alignment=alignment,
                restoration=float(np.mean(values)),
                interval=runs[0].interval if len(runs) == 1 else None,
                runs=len(runs),
                encoder_checkpoint=runs[0].encoder_checkpoint,
                llm_checkpoint=runs[0].llm_checkpoint,
            )
        )
    budgets = tuple(sorted({one.images for one in restorations}, key=lambda n: n or 0))
    points.sort(key=lambda p: (p.encoder, p.depth, p.llm))
    return Gathered(
        tuple(points), tuple(missing), tuple(out), tuple(_notes(points, restorations)), task, budgets, about, data
    )


def _named(checkpoint: str) -> str:
    """A checkpoint with the first digits of its hash."""
    return re.sub(r"(sha256:[0-9a-f]{8})[0-9a-f]+", r"\1", checkpoint)


def _notes(points: list[Point], restorations: list[Restoration]) -> Iterator[str]:
    cut = [p for p in points if variant.parse(p.llm).blocks is not None]
    borrowed = [p for p in cut if not p.own]
    if borrowed:
        yield (
            f"{len(borrowed)} of {len(cut)} cut models take their alignment from the whole model's matrix: its layer K is "
            "before the final norm, which [:K] keeps"
        )
    if borrowed and len(borrowed) < len(cut):
        yield "the other cut models' own layers were measured, after the final norm: these points are not quite alike"
    if any(one.encoder.endswith(POSITION) for one in restorations):
        yield "an encoder with a position code has the alignment of the encoder without: its layers are the same"
    plans = {one.design for one in restorations}
    if len(plans) > 1:
        kinds = sorted({key for plan in plans for key, value in plan if dict(next(iter(plans)))[key] != value})
        yield f"the restorers differ in their design, too: {', '.join(kinds)}"
    if len({one.tasks for one in restorations}) > 1:
        told = "; ".join(sorted({", ".join(one.tasks) for one in restorations}))
        yield f"the restorers learnt different tasks ({told}), and shared their images among them"
    # An evaluation alone does not say.
    recipes, sets = (
        {one.recipe for one in restorations if one.recipe},
        {one.learnt for one in restorations if one.learnt},
    )
    for what, count in (("recipe", len(recipes)), ("data", len(sets))):
        if count > 1:
            yield f"the restorers differ in their training's {what}: part of the differences is theirs"
    if {one.images for one in restorations} - {restorations[0].images}:
        yield "the restorers learnt from different numbers of images: part of the differences is theirs"


Table = dict[tuple[str, str, str], Score]


def _table(scores: list[Score]) -> Table:
    """Checkpoints and metric -> score. ValueError where one was measured in several ways, or with different outcomes."""
    ways: dict[str, set[tuple[tuple[str, str], ...]]] = {}
    table: Table = {}
    for score in scores:
        key = (score.encoder_checkpoint, score.llm_checkpoint, score.metric)
        known = table.setdefault(key, score)
        same = known.about == score.about and known.matrix.shape == score.matrix.shape
        if not same or not np.allclose(known.matrix, score.matrix, rtol=1e-3, atol=1e-6):
            raise ValueError(
                f"{score.metric} of {score.encoder} and {score.llm} was measured twice, with other options or outcomes; "
                "leave one result out"
            )
        ways.setdefault(score.metric, set()).add(tuple(x for x in score.about if x[0] != "pool"))
    for metric, found in ways.items():
        if len(found) > 1:
            told = " and ".join(sorted(", ".join(f"{key} {value}" for key, value in way) for way in found))
            raise ValueError(f"{metric} was measured in several ways ({told}); leave some results out")
    return table


def _alignment(table: Table, one: Restoration, metric: str) -> tuple[float, float, int, bool] | None:
    """Scores "at" and "upto" the layer that a restorer writes from, that layer, and whether it is the model's own."""
    own = table.get((one.encoder_checkpoint, one.llm_checkpoint, metric))
    if own is not None:
        best = own.matrix.max(0)  # [L_x, L_y] -> [L_y]
        return float(best[-1]), float(best.max()), len(best) - 1, True
    blocks = variant.parse(one.llm).blocks
    if blocks is None:
        return None
    whole = table.get((one.encoder_checkpoint, one.llm_checkpoint.replace(f"[:{blocks}]", ""), metric))
    if whole is None or blocks >= whole.matrix.shape[1]:
        return None
    best = whole.matrix.max(0)[: blocks + 1]
    return float(best[blocks]), float(best.max()), blocks, False
