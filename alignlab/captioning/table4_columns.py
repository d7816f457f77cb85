"""The numbers of Table 4's rows, put together from what their runs left: columns, averages, differences of two rows.

Every column has a score and what of it remains above chance (`calibrated`): a caption's score minus that of the same
captions on other images, an alignment on a scale where shuffled pairings are 0 and identical features 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignlab import trained
from alignlab.captioning.evaluation import CLIP, RESAMPLES, SEED
from alignlab.captioning.table4 import METRICS, Place, read_alignment, read_captions

Floats = NDArray[np.float64]
CAPTIONED = {"CS": ("CLIPScore", 100.0), "Ref-CS": ("RefCLIPScore", 100.0), "CIDEr": ("CIDEr", 1.0)}
PAPERS = ("CS", "Ref-CS", "M-kNN", "CKA", "Avg")  # the paper's columns
KEPT = (*CLIP, "CIDEr")  # of what is known of every image
FORMULA = (
    "Avg = ((CS + Ref-CS)/100 + M-kNN + CKA)/4; calibrated, CS and Ref-CS are minus those of the shuffled captions, M-kNN and CKA "
    "calibrated. Its interval resamples images for CS and Ref-CS jointly and adds the deviations of the alignments' intervals in "
    "quadrature, as if the three were independent: an approximation."
)


def gather(found: Sequence[Place]) -> list[dict[str, Any]]:
    """The rows as plain values: what their runs' files say, or that they are missing. Nothing is measured here.

    ValueError where two rows have one model or judge by name that is not the same by its weights.
    """
    rows = [_row(place) if place.kept is None else _kept(place.kept) for place in found]
    seen: dict[str, tuple[str, str]] = {}
    for row in rows:
        for what, value in row.pop("models"):
            first = seen.setdefault(what, (value, row["run"]))
            if first[0] != value:
                raise ValueError(
                    f"{row['run']} has the {what} {value}, {first[1]} has {first[0]}: they cannot stand in one table; delete "
                    "the older one's folder and run it again"
                )
    return rows


def _kept(row: dict[str, Any]) -> dict[str, Any]:
    """A row of an earlier result, with the models that it is of."""
    frozen, evaluation = row["frozen"], row["evaluation"]
    models = [(f"encoder of {row['name']}", frozen["encoder"]), ("llm", frozen["llm"])]
    models += [("judge", str(evaluation["judge"])), ("test data", evaluation["data"]["fingerprint"])]
    for metric in METRICS.values():
        pair = row["alignment"][metric]
        models += [(f"encoder of {row['name']}", pair["checkpoint"]), ("llm", pair["llm_checkpoint"])]
    return {**row, "models": models}


def _row(place: Place) -> dict[str, Any]:
    row, captions = place.row, read_captions(place.row, place.where)
    aligned = read_alignment(row, place.where)
    models: list[tuple[str, str]] = []
    described: dict[str, Any] = {
        "name": row.name,
        "control": row.control,
        "run": place.where.name,
        "status": "missing" if place.state == "to do" else place.state,
        "steps_done": place.steps,
        "design": row.experiment.design.plain(),
        "paper": dict(row.paper),
        "models": models,
    }
    evaluation = None
    if captions is not None:
        (evaluation,) = captions["evaluations"]
        each = {
            name: {key: values for key, values in scores.items() if key in KEPT}
            for name, scores in evaluation["each"].items()
            if name in ("generated", "shuffled")
        }
        evaluation = {**evaluation, "each": each}
        described |= {key: captions[key] for key in ("frozen", "data", "subset", "recipe", "environment")}
        described |= {key: captions["learnt"][key] for key in ("images", "learnt", "parameters", "seconds", "log")}
        described |= {"trained": trained.checkpoint(place.where), "evaluation": evaluation}
        models += [(f"encoder of {row.name}", captions["frozen"]["encoder"]), ("llm", captions["frozen"]["llm"])]
        models += [("judge", str(evaluation["judge"])), ("test data", evaluation["data"]["fingerprint"])]
    if aligned is not None:
        described["alignment"] = {**aligned["pairs"], "of": aligned["of"], "notes": aligned["notes"]}
        models += [(f"encoder of {row.name}", aligned["frozen"]["encoder"]), ("llm", aligned["frozen"]["llm"])]
    described["columns"] = columns(evaluation, aligned and aligned["pairs"])
    return described


# --- columns ---


def columns(evaluation: dict[str, Any] | None, pairs: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Column -> "score", "ci95", "baseline" (the control's or null's), "calibrated" and "calibrated_ci95"; those there are.

    `evaluation` is an evaluation of captions as JSON, `pairs` an alignment by metric.
    """
    found: dict[str, dict[str, Any]] = {}
    if evaluation is not None:
        for column, (metric, scale) in CAPTIONED.items():
            if metric in evaluation["scores"]["generated"]:
                found[column] = _captioned(evaluation, metric, scale)
    if pairs is not None:
        found |= {column: _aligned(pairs[metric]) for column, metric in METRICS.items()}
    if evaluation is not None and {"CS", "Ref-CS", *METRICS} <= found.keys():
        found["Avg"] = _average(found, evaluation)
    return found


def _captioned(evaluation: dict[str, Any], metric: str, scale: float) -> dict[str, Any]:
    scores = evaluation["scores"]
    other = scores.get("shuffled", {}).get(metric, {})
    above = evaluation["differences"].get("shuffled", {}).get(metric, {})
    return {
        "score": _scaled(scores["generated"][metric]["score"], scale),
        "ci95": _both(scores["generated"][metric]["ci95"], scale),
        "baseline": _scaled(other.get("score"), scale),
        "baseline_ci95": _both(other.get("ci95"), scale),
        "calibrated": _scaled(above.get("difference"), scale),
        "calibrated_ci95": _both(above.get("ci95"), scale),
    }


def _aligned(pair: dict[str, Any]) -> dict[str, Any]:
    null, room = pair["null_mean"], None
    if null is not None and pair["ceiling"] > null:
        room = pair["ceiling"] - null
    interval = pair["ci95"]
    return {
        "score": pair["score"],
        "ci95": interval,
        "baseline": null,
        "calibrated": pair["calibrated"],
        "calibrated_ci95": None if interval is None or room is None else [(end - null) / room for end in interval],
        **{key: pair[key] for key in ("null_std", "p", "last_layer_score", "encoder_layer", "llm_layer")},
    }


def _average(found: dict[str, dict[str, Any]], evaluation: dict[str, Any]) -> dict[str, Any]:
    average: dict[str, Any] = {}
    for key, interval in (("score", "ci95"), ("calibrated", "calibrated_ci95")):
        parts = [found[column][key] for column in ("CS", "Ref-CS", *METRICS)]
        bounds = [found[column][interval] for column in METRICS]
        if any(part is None for part in parts):
            average |= {key: None, interval: None}
            continue
        clip, knn, cka = (parts[0] + parts[1]) / 100, parts[2], parts[3]
        drawn = _drawn(evaluation, list(CLIP), key == "calibrated").sum(0)
        deviations = [_deviations(clip, _middle(drawn))]
        deviations += [_deviations(part, bound) for part, bound in zip((knn, cka), bounds, strict=True)]
        average |= {key: (clip + knn + cka) / 4, interval: _quadrature((clip + knn + cka) / 4, deviations, 4)}
    return average


def _drawn(evaluation: dict[str, Any], metrics: Sequence[str], calibrated: bool) -> Floats:
    """Means over resampled images `[metrics, RESAMPLES]`, minus the shuffled captions' where `calibrated`."""
    kinds = ("generated", "shuffled") if calibrated else ("generated",)
    values = [np.array([evaluation["each"][kind][name] for name in metrics], dtype=np.float64) for kind in kinds]
    each = values[0] - values[1] if calibrated else values[0]  # [metrics, N]
    drawn: Floats = each[:, _resamples(each.shape[1])].mean(2)  # [metrics, RESAMPLES, N] -> [metrics, RESAMPLES]
    return drawn


@cache
def _resamples(n: int) -> NDArray[np.int64]:
    """The same resamples of n images as an evaluation's own intervals have."""
    return np.random.default_rng(SEED).integers(n, size=(RESAMPLES, n))


def _middle(drawn: Floats) -> list[float]:
    return [float(end) for end in np.quantile(drawn, [0.025, 0.975])]


def _deviations(value: float, interval: Sequence[float] | None) -> tuple[float, float]:
    """How far an interval reaches below and above its value."""
    return (0.0, 0.0) if interval is None else (value - interval[0], interval[1] - value)


def _quadrature(value: float, deviations: Sequence[tuple[float, float]], share: float) -> list[float]:
    low, high = (math.sqrt(sum(one[side] ** 2 for one in deviations)) / share for side in (0, 1))
    return [value - low, value + high]


def _scaled(value: float | None, scale: float) -> float | None:
    return None if value is None else value * scale


def _both(interval: Sequence[float | None] | None, scale: float) -> list[float] | None:
    ends = [end * scale for end in interval or () if end is not None]
    return ends if len(ends) == 2 else None


# --- two rows ---


def difference(a: dict[str, Any], b: dict[str, Any], column: str, calibrated: bool = False) -> dict[str, Any] | None:
    """Row a minus row b in a column: "difference", "ci95", and whether it is "clear"; None where either has no number.

    Scores of captions are compared image by image, clear where the interval leaves out 0. Alignments have no such interval:
    clear where their own do not overlap. Of Avg the parts' deviations are added in quadrature.
    """
    key, interval = ("calibrated", "calibrated_ci95") if calibrated else ("score", "ci95")
    ours, theirs = (row["columns"].get(column, {}) for row in (a, b))
    if ours.get(key) is None or theirs.get(key) is None:
        return None
    value = ours[key] - theirs[key]
    if column in METRICS:
        bounds = ours[interval], theirs[interval]
        apart = None if None in bounds else bounds[0][0] > bounds[1][1] or bounds[1][0] > bounds[0][1]
        return {"difference": value, "ci95": None, "clear": apart}
    metrics = list(CLIP) if column == "Avg" else [CAPTIONED[column][0]]
    drawn = (_drawn(a["evaluation"], metrics, calibrated) - _drawn(b["evaluation"], metrics, calibrated)).sum(0)
    if column != "Avg":
        ends = _middle(drawn * CAPTIONED[column][1])
    else:
        clip = sum(
            row["columns"][name][key] * sign for row, sign in ((a, 0.01), (b, -0.01)) for name in ("CS", "Ref-CS")
        )
        deviations = [_deviations(clip, _middle(drawn))]
        for name in METRICS:
            up, down = (_deviations(row["columns"][name][key], row["columns"][name][interval]) for row in (a, b))
            deviations += [up, down[::-1]]
        ends = _quadrature(value, deviations, 4)
    return {"difference": value, "ci95": ends, "clear": ends[0] > 0 or ends[1] < 0}


def human(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The same columns of captions that people, or the set's own generator, wrote; None where no image has two."""
    for row in rows:
        scores = row.get("evaluation", {}).get("scores", {}).get("human")
        if scores:
            held = {
                column: {"score": _scaled(scores[name]["score"], scale), "ci95": _both(scores[name]["ci95"], scale)}
                for column, (name, scale) in CAPTIONED.items()
                if name in scores
            }
            return {"columns": held, "images": row["evaluation"]["images"]["human"]}
    return None
