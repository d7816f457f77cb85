"""What Table 4's numbers say: whether the paper's order of encoders holds here, and what is left of it above chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from alignlab import paper
from alignlab.captioning.table4 import METRICS
from alignlab.captioning.table4_columns import CAPTIONED, PAPERS, difference
from alignlab.provenance import shown_model

DIGITS = {"CS": 2, "Ref-CS": 2}  # of the others three
ALL = (*CAPTIONED, *METRICS, "Avg")


def paper_order(column: str = "Avg") -> list[str]:
    """The paper's encoders, the most alike first."""
    return sorted(paper.TABLE4, key=lambda name: -paper.TABLE4[name][column])


def orders(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For every column of the paper, as it is and calibrated: the order of its encoders here and there.

    "steps" are the differences of neighbours in the paper's order. "holds" where all are positive, "clear" where they are
    so beyond their intervals, "reversed" the steps that are clearly negative; None and "missing" where an encoder has no
    number.
    """
    return [_order(rows, column, calibrated) for column in PAPERS for calibrated in (False, True)]


def _order(rows: Sequence[Mapping[str, Any]], column: str, calibrated: bool) -> dict[str, Any]:
    key, theirs = "calibrated" if calibrated else "score", paper_order(column)
    there = {row["name"]: row for row in rows if row["columns"].get(column, {}).get(key) is not None}
    values = {name: there[name]["columns"][column][key] for name in theirs if name in there}
    missing = [name for name in theirs if name not in there]
    steps = []
    for a, b in pairwise(theirs):
        if a in there and b in there and (found := difference(dict(there[a]), dict(there[b]), column, calibrated)):
            steps.append({"minuend": a, "subtrahend": b, **found})
    up = [step["difference"] > 0 for step in steps]
    return {
        "column": column,
        "calibrated": calibrated,
        "here": sorted(values, key=lambda name: -values[name]),
        "values": values,
        "paper": theirs,
        "steps": steps,
        "missing": missing,
        "holds": None if missing else all(up),
        "clear": None if missing else all(positive and step["clear"] for positive, step in zip(up, steps, strict=True)),
        "reversed": [f"{s['minuend']} - {s['subtrahend']}" for s in steps if s["difference"] < 0 and s["clear"]],
    }


def readings(
    rows: Sequence[Mapping[str, Any]], human: Mapping[str, Any] | None, judge: str | None, others: Sequence[str] = ()
) -> list[str]:
    """Sentences made of the rows' numbers; of what is missing, that it is. `others` are rows that were not asked for."""
    found = orders(rows)
    said = [
        f"{row['name']}: {'not finished' if row['columns'] else 'missing'}" for row in rows if row["status"] != "done"
    ]
    said += [f"{name}: not asked for" for name in others]
    said += _verdict(found)
    said += [_told(one) for one in found if one["steps"]]
    controls = [row for row in rows if row["control"] and row["columns"]]
    if not controls:
        said.append("no row of a random encoder has numbers: nothing is said of what an untrained encoder scores")
    for control in controls:
        said += [_against(row, control) for row in rows if not row["control"] and row["columns"]]
    if human is not None:
        figures = ", ".join(f"{name} {_number(one['score'], name)}" for name, one in human["columns"].items())
        said.append(
            f"held-out human captions of {human['images']} images: {figures}, a ceiling as far as captions of one image agree"
        )
    if judge is not None:
        said.append(
            f"CS and Ref-CS are those of the judge {shown_model(judge.partition('@')[0])}; the paper's are ViT-B-32/openai's"
            + ("" if "ViT-B-32/openai" in judge else ", so that orders can be compared and values cannot")
        )
    said.append(
        "three encoders are three points: no correlation over them means anything. Intervals are over images or items, of one "
        "training each: another seed may differ by more"
    )
    return said


def _verdict(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where the paper's order holds, in one sentence as it is and one calibrated."""
    said = []
    for calibrated in (False, True):
        some = [one for one in found if one["calibrated"] == calibrated and one["holds"] is not None]
        if not some:
            continue
        parts = []
        for what, names in (
            ("holds, every step clear, in", [one["column"] for one in some if one["holds"] and one["clear"]]),
            ("holds, not every step clear, in", [one["column"] for one in some if one["holds"] and not one["clear"]]),
            ("does not hold in", [one["column"] for one in some if not one["holds"]]),
        ):
            parts += [f"{what} {', '.join(names)}"] if names else []
        start = "after calibration by nulls and shuffled captions it" if calibrated else "the paper's order"
        said.append(f"{start}{'' if calibrated else f' {_chain(paper_order())}'} {'; '.join(parts)}")
    return said


def _chain(names: Sequence[str]) -> str:
    return " > ".join(names)


def _told(one: Mapping[str, Any]) -> str:
    column = one["column"]
    what = column
    if one["calibrated"]:
        what = f"{column} calibrated" if column in (*METRICS, "Avg") else f"{column} minus the shuffled captions'"
    values = " > ".join(f"{name} {_number(one['values'][name], column)}" for name in one["here"])
    steps = ", ".join(f"{s['minuend']} minus {s['subtrahend']} {_difference(s, column)}" for s in one["steps"])
    if one["missing"]:
        verdict = f"{', '.join(one['missing'])} missing, so that the paper's order cannot be judged"
    elif one["holds"]:
        verdict = f"the paper's order {'holds' if not one['calibrated'] else 'survives'}" + (
            ", every step clear" if one["clear"] else ", not every step clear"
        )
    else:
        turned = ", ".join(one["reversed"])
        verdict = (
            f"the paper's order {_chain(one['paper'])} {'does not survive' if one['calibrated'] else 'does not hold'}"
            + (f" ({turned} clearly below 0)" if turned else ", though no step is clearly the other way round")
        )
    return f"{what}: {values}; {steps}; {verdict}"


def _against(row: Mapping[str, Any], control: Mapping[str, Any]) -> str:
    """Both above what they are by chance: a row may score more than the control on any image's caption."""
    parts: list[str] = []
    sides: dict[str, list[str]] = {"above it": [], "below it": [], "neither clearly": []}
    for column in ALL:
        found = difference(dict(row), dict(control), column, calibrated=True)
        if found is None:
            continue
        parts.append(f"{column} {_difference(found, column)}")
        side = "neither clearly" if not found["clear"] else "above it" if found["difference"] > 0 else "below it"
        sides[side].append(column)
    if not parts:
        return f"{row['name']} and {control['name']}: no column has a number of both"
    verdict = ", ".join(f"{side} in {', '.join(columns)}" for side, columns in sides.items() if columns)
    return f"{row['name']} minus {control['name']}, both above chance: {', '.join(parts)}; {verdict}"


def _difference(found: Mapping[str, Any], column: str) -> str:
    value = _number(found["difference"], column, "+")
    if found["ci95"] is not None:
        low, high = (_number(end, column, "+") for end in found["ci95"])
        return f"{value} ({low} to {high})"
    return value if found["clear"] is None else f"{value} (intervals {'apart' if found['clear'] else 'overlap'})"


def _number(value: float, column: str, sign: str = "") -> str:
    return f"{value:{sign}.{DIGITS.get(column, 3)}f}"
