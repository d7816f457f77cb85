"""How to get every number of the page again: commands, versions, hashes, seeds, hardware, time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from alignlab.report.blocks import Block, Cell, Fold, Lines, Section, Table, number
from alignlab.report.node import Node, finite
from alignlab.report.source import Source

PACKAGES = ("python", "alignlab", "commit", "torch", "transformers", "timm", "numpy", "scipy")
LONGEST = 4000  # characters of a configuration
WORDS = {
    "the paper": "Zheng et al., LM4LV: A Frozen Large Language Model for Low-level Vision Tasks (arXiv 2405.15734), 2024",
    "LM4LV": "a frozen language model reads the tokens of a degraded image through one linear layer and writes those of the "
    "restored one, one after another, through another",
    "MAE-r": "encoder and decoder alone: the degraded image encoded and decoded, with no language model",
    "+position": "an encoder beside each of whose tokens stands a code of its place",
    "@random, [:K]": "the same model with random weights; its first K blocks alone",
    "ViT-LLM": "all tokens in one pass through the language model, in place of one after another; +causal and +rotary put its "
    "mask and its positions back",
    "M-kNN": "mutual k-NN: how many of an item's k nearest neighbours are the same in both models",
    "CKA": "centred kernel alignment of the two models' similarities of all pairs of items",
    "CS, Ref-CS": "100 times CLIPScore and RefCLIPScore: how well a caption fits its image, and people's captions, to a judge",
    "shuffled, chance": "the same with captions dealt to the wrong images",
    "calibrated": "on a scale on which 0 is shuffled and 1 is identical",
    "nats": "the cross-entropy of a token in natural logarithms",
    "scenes": "rendered 3-D scenes with generated captions, which come with alignlab; none that was measured was learnt from",
    "photos": "1,000 photographs that do not come with alignlab; the embedded encoders learnt from 800 of them, without captions",
}


# The photographs that the embedded encoders learnt from: another set of that name is another set.
PHOTOS = "sha256:dbd059af9394bad1f354719908595fb44faca7739d5639a6c10bc4941cf4f9c1"


def section(sources: Sequence[Source], text: str = "") -> Section:
    """`text` is what the rest of the page says: of the words, those that are used there are explained."""
    made = Section(
        "reproduce",
        "How to get these numbers again",
        lead="Each result file, by the command that wrote it; whole paths in commands are shortened to their last part. A table "
        "made of finished runs says which; without --no-train the same command trains them.",
    )
    rows = []
    for source in sources:
        node = source.node
        environment = node["environment"]
        if not isinstance(environment.value, dict):
            list(environment.entries())  # a gap: without it nobody can get the numbers again
        versions = ", ".join(f"{x} {environment[x].value}" for x in PACKAGES if isinstance(environment[x].value, str))
        hardware = ", ".join(
            str(environment[x].value)
            for x in ("processor", "system", "device")
            if isinstance(environment[x].value, str)
        )
        if isinstance(environment["threads"].value, int):
            hardware += f", {environment['threads'].value} threads"
        seconds = _seconds(node)
        rows.append(
            [
                Cell(source.name),
                Cell(_seed(node)),
                Cell("–" if seconds is None else f"{number(seconds, 0)} s", seconds),
                Cell(_told(environment["time"])),
                Cell(hardware or "not recorded"),
                Cell(versions or "not recorded"),
                Cell(source.sha256),
            ]
        )
    commands = [f"# {source.name}\n{_told(source.node['environment']['command'])}" for source in sources]
    made.blocks.append(Lines("\n\n".join(commands).splitlines(), kind="code", title="Commands"))
    runs = sorted({text for source in sources for text in _runs(source.node)})
    if runs:
        made.blocks.append(Fold("The runs that tables are made of", [Lines(runs, kind="code")]))
    headings = ["result", "seed", "took", "when", "on", "versions", "SHA-256 of the file"]
    made.blocks.append(Table("Result files", headings, rows, numeric=(2,)))
    parts = sorted({found for source in sources for found in _hashes(source.node.value)})
    if parts:
        made.blocks.append(
            Table(
                "Models and data, by their hashes",
                ["name", "hash, or revision on the hub"],
                [[Cell(name), Cell(digest)] for name, digest in parts],
            )
        )
    ours = any(digest == PHOTOS for name, digest in parts if name == "data: photos")
    words = [
        [Cell(word), Cell(meaning)]
        for word, meaning in WORDS.items()
        if any(re.search(rf"(?<![\w-]){re.escape(one)}(?!\w)", text) for one in word.replace("[:K]", "[:").split(", "))
        and (word != "photos" or ours)
    ]
    if words:
        made.blocks.append(Table("Words used here", ["word", "meaning"], words))
    details: list[Block] = []
    for source in sources:
        config = {key: source.node[key].value for key in ("config", "recipe", "design", "budget") if key in source.node}
        if config:
            text = json.dumps(config, indent=1, ensure_ascii=False, default=str)
            cut = text if len(text) <= LONGEST else text[:LONGEST] + "\n…"
            details.append(Lines(cut.splitlines(), kind="code", title=source.name))
    if details:
        made.blocks.append(Fold("The exact configurations", details))
    return made


def _told(node: Node) -> str:
    return node.value if isinstance(node.value, str) else "not recorded"


def _seed(node: Node) -> str:
    # Of an evaluation, where none was given, that of every evaluation.
    for place in (*(node[part]["seed"] for part in ("config", "recipe", "design")), node["results"][0]["seed"]):
        if isinstance(place.value, int) and not isinstance(place.value, bool):
            return str(place.value)
    return "–"


def _seconds(node: Node) -> float | None:
    """Of computing, where a result counts them; else of the whole command."""
    rows = node["rows"].value if isinstance(node["rows"].value, list) else []
    counted: list[list[Any]] = [
        list(node["seconds"].value.values()) if isinstance(node["seconds"].value, dict) else [node["seconds"].value],
        [node["learnt"]["seconds"].value],
        [row.get("seconds") for row in rows if isinstance(row, dict)],
        [node["environment"]["seconds"].value],
    ]
    for spent in counted:
        if known := [float(x) for x in spent if finite(x)]:
            return sum(known)
    return None


def _runs(node: Node) -> Iterator[str]:
    """Of each finished row: its run, what it learnt from how long, and the command that trained or measured it."""
    for row in node.part("rows").each(optional=True):
        environment, recipe = row["environment"], row["recipe"]
        if row["status"].value != "done" or not isinstance(environment["command"].value, str):
            continue
        told = [f"{key} {recipe[key].value}" for key in ("steps", "batch", "lr", "seed", "dtype") if key in recipe]
        yield f"{row['run'].value}: {', '.join(told)}; {environment['command'].value}"


def _hashes(value: Any, named: str = "") -> Iterator[tuple[str, str]]:
    """Every `NAME@sha256:DIGEST` of a result, and every set's fingerprint."""
    if isinstance(value, dict):
        if isinstance(value.get("fingerprint"), str) and value["fingerprint"].startswith("sha256:"):
            yield f"data: {value.get('name', named)}", value["fingerprint"]
        for key, inner in value.items():
            if key not in ("each", "matrix", "captions"):
                yield from _hashes(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from _hashes(inner, named)
    elif isinstance(value, str) and len(value) < 500:
        found = re.match(r"([^@\s]{1,200})@(sha256:[0-9a-f]{64}|[0-9a-f]{40})", value)
        if found:
            yield found[1], found[2]
