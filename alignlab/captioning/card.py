"""What a trained captioning probe is, for whoever finds it: a README beside the file, made of its result."""

from __future__ import annotations

import math
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

from alignlab.captioning.fit import RECIPE, Design
from alignlab.models.weights import sha256_file
from alignlab.paper import PROBE_RECIPE
from alignlab.pretrain.card import loss_curve
from alignlab.trained import ADAPTERS

CONTROLS = ("generated", "shuffled", "human", "random")


def write_card(result: dict[str, Any], folder: Path) -> None:
    """Write `README.md` and `loss.png` for what `experiment.run` made in `folder`."""
    loss_curve(result["learnt"]["log"], "cross-entropy of a token (nats)", "training", folder / "loss.png")
    (folder / "README.md").write_text(_text(result, folder), encoding="utf-8")


def _text(result: dict[str, Any], folder: Path) -> str:
    design, frozen, learnt, recipe, env = (
        result[key] for key in ("design", "frozen", "learnt", "recipe", "environment")
    )
    name = folder.resolve().name
    items = f"{learnt['learnt']:,} of {learnt['items']:,} items of {result['data']['name']}"
    lines = [
        f"# {name}: {design['encoder']} read by {design['llm']}",
        "",
        f"A captioning probe: one linear layer between `{frozen['encoder']}` and `{frozen['llm']}`, which stay frozen. The "
        "file holds nothing else.",
        "",
        f"Made by `{command(result)}`; use it with `alignlab caption generate IMAGE --checkpoint {name}`.",
        "",
        "| | |",
        "|---|---|",
        f"| parameters | {learnt['parameters']:,} |",
        f"| steps, batch, images seen | {recipe['steps']:,}, {recipe['batch']}, {learnt['images']:,} |",
        f"| data | {items}{'; each fifth is held out' if learnt['held_out'] else ''} |",
        *([f"| before every caption | {design['prefix']} |"] if design["prefix"] else []),
        f"| AdamW | rate {recipe['lr']:.2g}, warm-up {recipe['warmup']}, {recipe['schedule']} decay, betas "
        f"{tuple(recipe['betas'])}, weight decay {recipe['weight_decay']:g} |",
        f"| time | {learnt['seconds'] / 60:.0f} minutes on {env['processor']}, {env['threads']} thread(s), "
        f"{recipe['dtype']} |",
        f"| seed | {recipe['seed']} |",
        f"| torch, transformers | {env['torch']}, {env['transformers']} |",
        f"| SHA-256 of {ADAPTERS} | `{sha256_file(folder / ADAPTERS)}` |",
        "",
    ]
    for one in result["evaluations"]:
        lines += [f"## {one['n']} images of {one['data']['name']}, which it never saw", "", *table(one), ""]
        lines += [f"![captions]({one['picture']})", ""]
    return "\n".join([*lines, "![loss](loss.png)", ""])


def table(one: dict[str, Any]) -> list[str]:
    """An evaluation in Markdown: a row a metric, and what is to be known about it."""
    columns = [name for name in CONTROLS if name in one["scores"]]
    lines = [
        f"| metric | {' | '.join(columns)} | generated minus shuffled |",
        "|---|" + "---|" * (len(columns) + 1),
    ]
    for metric in one["scores"]["generated"]:
        cells = [cell(one["scores"][name].get(metric)) for name in columns]
        lines.append(f"| {metric} | {' | '.join(cells)} | {cell(one['differences'].get('shuffled', {}).get(metric))} |")
    return [*lines, "", *(f"* {text}" for text in about(one))]


def about(one: dict[str, Any]) -> list[str]:
    """What an evaluation's numbers are, in sentences."""
    judge = f"judged by {one['judge'].partition('@')[0]}" if one["judge"] else "without a judge"
    said = [
        "95% intervals over images. shuffled: each caption scored on another image. human: one of the image's captions, drawn "
        f"at random, against its others. CLIPScores {judge}; tokens: {one['tokenizer']}. {one['distinct']:,} of "
        f"{one['n']:,} captions differ, {one['empty']} are empty.",
        one["says"],
    ]
    cut = one["truncated"]
    if cut["captions"] or cut["references"]:
        said.append(
            f"Longer than the judge reads, and cut: {cut['captions']} captions and {cut['references']} references."
        )
    said += [f"{note[0].upper()}{note[1:]}." for note in one["notes"]]
    said += [f"Without {name}: {reason}." for name, reason in one["left_out"].items()]
    return [text for text in said if text]


def cell(found: dict[str, Any] | None) -> str:
    """A score, or a difference, with its interval."""
    if found is None:
        return "-"
    sign = "+" if "difference" in found else ""
    value, (low, high) = found.get("score", found.get("difference")), found["ci95"]
    if value is None or low is None or high is None:
        return "-"
    return f"{value:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"


def command(result: dict[str, Any]) -> str:
    """The command that makes the probe anew: whatever differs from what it would do by itself."""
    from alignlab.captioning.experiment import Experiment  # which writes the card

    usual, design, recipe, ours = asdict(Design()), result["design"], result["recipe"], asdict(RECIPE)
    words = ["alignlab caption train", f"--data {result['data']['name']}"]
    parts = [name for name in ("encoder", "llm", "prefix") if design[name] != usual[name]]
    words += [f"--{name} {shlex.quote(design[name])}" for name in parts]
    ours["warmup"] = math.ceil(PROBE_RECIPE["warmup"] * recipe["steps"])
    options = {"batch-size": "batch", **{name: name for name in ("steps", "lr", "warmup", "seed", "dtype")}}
    words += [f"--{option} {recipe[key]}" for option, key in options.items() if recipe[key] != ours[key]]
    words += [f"--subset {result['subset']}"] if result["subset"] else []
    words += [f"--test {one['name']}" for one in result["test"]]
    words += [f"--n {result['n']}"] if result["n"] != Experiment.n else []
    words += [f"--judge {shlex.quote(result['judge'])}"] if result["judge"] else []
    return " ".join(words)
