"""Layer by layer: each block alone between two linear layers, what is linear in each layer, and which heads copy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from alignlab import paper
from alignlab.models import variant
from alignlab.models.catalogue import BY_NAME
from alignlab.report import figures
from alignlab.report.blocks import Block, Cell, Fold, Lines, Section, Table, listed, number, plural, with_interval
from alignlab.report.node import Node
from alignlab.report.source import Source, of_kind

BASELINES = {"mlp": "MLP of as many parameters", "random": "random layer", "linear": "one linear layer"}
ARTICLES = {"mlp": "an ", "random": "a ", "linear": ""}


def section(sources: Sequence[Source]) -> Section | None:
    made = Section(
        "layers",
        "Layer by layer",
        lead="Which blocks of the language model help, what each layer tells of the other model, and which attention heads copy "
        "what stood before.",
    )
    makers = {"probe-layers": _single, "probe-linear": _linear, "probe-induction": _induction}
    for source in of_kind(sources, *makers):
        makers[source.kind](source, made)
    for source in of_kind(sources, "reproduce"):
        if source.node["target"].value == "depth":
            _depth(source, made)
    return made if made.blocks else None


def _estimate(node: Node) -> tuple[float | None, tuple[float, float] | None]:
    return node["mean"].number(optional=True), node["ci95"].interval()


# --- each layer alone ---


def _single(source: Source, made: Section) -> None:
    node = source.node
    rows, at, values, spans = [], [], list[float | None](), list[tuple[float, float] | None]()
    for row in node["layers"].each():
        layer = row["layer"].whole()
        value, span = _estimate(row["psnr"])
        if layer is None:
            continue
        at.append(layer)
        values.append(value)
        spans.append(span)
        cells = [Cell(str(layer), layer), Cell(with_interval(value, span, 2), value)]
        ssim = row["ssim"]["mean"].number(optional=True)
        cells.append(Cell(number(ssim), ssim))
        for kind in BASELINES:
            more, interval = _estimate(row[f"over_{kind}"]["psnr"])
            cells.append(Cell(with_interval(more, interval, 2, signed=True), more))
        rows.append(cells)
    if not rows:
        return
    levels = []
    for kind, label in {**BASELINES, "alone": "encoder + decoder"}.items():
        value, span = _estimate(node[kind]["psnr"])
        if value is not None:
            levels.append(figures.Curve(label, level=value, band=span, dashed=kind == "alone"))
    llm = node["llm"].text()
    about = f"{node['task'].text()}, {node['encoder'].text()}, {llm}"
    curve = figures.Curve("one frozen layer", at, values, spans)
    made.blocks.append(
        figures.curves(
            {f"{llm} layer": [curve, *levels]},
            "PSNR (dB)",
            alt=f"PSNR of each single layer of {llm} between two linear layers, with the baselines as bands",
            caption=f"One frozen layer between two trained linear ones ({about}), mean over {number(node['seeds'].number(), 0)} "
            "seeds and the images with 95% intervals (the paper's Fig. 12).",
        )
    )
    made.blocks.append(
        Fold(
            "Every layer's figures",
            [
                Table(
                    f"Single layers: {about}",
                    ["layer", "PSNR (95%)", "SSIM", *(f"over {label}" for label in BASELINES.values())],
                    rows,
                    numeric=range(6),
                )
            ],
        )
    )
    told = []
    for kind, label in BASELINES.items():
        found = (row[f"over_{kind}"]["psnr"]["ci95"].interval() for row in node["layers"].each())
        judged = [span for span in found if span is not None]
        if judged:
            above, below = sum(low > 0 for low, _ in judged), sum(high < 0 for _, high in judged)
            of = "" if len(judged) == len(rows) else f" ({len(judged)} judged)"
            told.append(f"{above} are clearly above and {below} below {ARTICLES[kind]}{label}{of}")
    if told:
        made.answers.append(
            f"of {plural(len(rows), 'single layer')} of {llm}, each between two linear ones, {listed(told)}"
        )
        said = f"Of {plural(len(rows), 'layer')}, with all of the difference's 95% interval, {listed(told)}. "
        made.blocks.append(Lines([f"{said}The paper, of its models: {paper.FIG12}."], kind="reading"))


# --- the first blocks alone ---


def _depth(source: Source, made: Section) -> None:
    """LM4LV through the first K blocks, an encoder a curve."""
    found: dict[str, dict[int, tuple[float, tuple[float, float] | None]]] = {}
    for row in source.node["rows"].each():
        if row["status"].value != "done":
            continue
        try:
            taken = variant.parse(row["design"]["llm"].text())
        except ValueError:  # a name that is none has no depth
            continue
        known = BY_NAME.get(taken.base)
        blocks = taken.blocks or (known.layers - 1 if known is not None and known.layers else None)
        for one in row["evaluations"].each():
            value, span = _estimate(one["gain"]["psnr"])
            if blocks is not None and value is not None:
                found.setdefault(row["design"]["encoder"].text(), {})[blocks] = (value, span)
    curves = [
        figures.Curve(encoder, sorted(at), [at[k][0] for k in sorted(at)], [at[k][1] for k in sorted(at)])
        for encoder, at in found.items()
    ]
    if not any(len(curve.at) > 1 for curve in curves):
        return
    made.blocks.append(
        figures.curves(
            {"first blocks of the language model": curves},
            "restored minus encoder + decoder (dB)",
            alt=f"What LM4LV gains over encoder and decoder alone, by how many blocks it has, for {listed(list(found))}",
            caption="LM4LV through the first K blocks of the language model alone, trained anew for each K; 95% intervals over "
            "images. Compare with the maps of the heads that copy: a depth at which they begin should show here.",
        )
    )


# --- linear probes ---


def _linear(source: Source, made: Section) -> None:
    node = source.node
    llm, encoder = node["llm"]["name"].text(), node["encoder"]["name"].text()
    data = node["data"]["name"].text()
    for pair in node["pairs"].each():
        panels: list[figures.Curve] = []
        told: list[str] = []
        layer = number(pair["encoder_layer"].number(), 0)
        for side, label in (("text_to_image", "captions to images"), ("image_to_text", "images to captions")):
            found = pair[side]
            r2 = found["r2"].numbers()
            panels.append(figures.Curve(label, range(len(r2)), r2, [x.interval() for x in found["ci95"].each()]))
            best = max((x for x in r2 if x is not None), default=None)
            beside = ""
            if not found["null_max"].there or found["null_max"].value is not None:
                null = found["null_max"].numbers()
                panels.append(figures.Curve(f"{label}, shuffled at most", range(len(null)), null, dashed=True))
                chance = max((x for x in null if x is not None), default=None)
                beside = "" if chance is None else f" (shuffled {number(chance)} at most)"
            if best is not None:
                told.append(f"{label} {number(best, 2)}{beside}")
        if told:
            made.answers.append(
                f"ridge regressions on {data} between {llm}'s best layer and layer {layer} of {encoder} come to an R² of "
                f"{listed(told)}"
            )
        made.blocks.append(
            figures.curves(
                {f"{llm} layer": panels},
                "cross-validated R²",
                alt=f"R squared of ridge regressions between {llm}'s layers and layer {layer} of {encoder}, and shuffled",
                caption=f"Ridge regressions between every layer of {llm} and layer {layer} of {encoder} on {data}, items not "
                "seen; dashed, the best of shuffled pairings.",
            )
        )
    matrix = node["matrix"]
    absent = matrix.there and matrix.value is None  # where one layer was asked for
    found_matrix = None if absent else matrix["r2"].matrix()
    if found_matrix is not None:
        layers = [layer for layer in matrix["encoder_layers"].numbers() if layer is not None]
        first = int(layers[0]) if layers else 0
        made.blocks.append(
            Fold(
                "R² of every pair of layers",
                [
                    figures.heatmap(
                        np.maximum(found_matrix.T, -1.0),  # [language model's layers, encoder's] in the file
                        (f"{encoder} layer", f"{llm} layer"),
                        title=f"R squared of {encoder}'s layers from those of {llm}",
                        caption=f"R² of {encoder}'s layers from those of {llm} on {data}.",
                        first=(first, 0),
                    )
                ],
            )
        )
    for probed in node["labels"].each(optional=True):
        made.blocks += _label(probed)
    notes = node["notes"].texts()
    if notes:
        made.blocks.append(Lines(notes, kind="note"))


def _label(node: Node) -> list[Block]:
    name = node["label"].text()
    panels: dict[str, list[figures.Curve]] = {}
    for side in node["sides"].each():
        model = side["model"].text()
        shown = []
        for key, text, dashed in (("accuracy", "accuracy", False), ("control", "control task", True)):
            found = side[key]
            if key == "control" and found.there and found.value is None:  # none can be made of this label
                continue
            values = found["value"].numbers()
            spans = [x.interval() for x in found["ci95"].each(optional=True)]
            shown.append(figures.Curve(text, range(len(values)), values, spans, dashed=dashed))
        chance = node["majority"].number(optional=True)
        if chance is not None:
            shown.append(figures.Curve("always the most frequent", level=chance, dashed=True, colour="#8a8a8a"))
        panels[f"{model} layer"] = shown
    if not panels:
        return []
    text = f"{name} ({node['about'].text()}), {number(node['classes'].number(), 0)} classes"
    return [
        figures.curves(
            panels,
            "accuracy",
            alt=f"Accuracy of logistic probes for {name} by layer of {listed([x.removesuffix(' layer') for x in panels])}",
            caption=f"Logistic probes for {text}, items not seen; the control task gives random answers to learn by heart.",
        )
    ]


# --- heads ---


def _induction(source: Source, made: Section) -> None:
    node = source.node
    parts = [(f"{one['llm'].text()}, random text repeated", one) for one in node["text"].each()]
    if parts:
        made.blocks.append(
            Lines([], title=f"Heads that copy: {listed(list(dict.fromkeys(x['llm'].text() for _, x in parts)))}")
        )
    if "images" in node:
        one = node["images"]
        through = f"LM4LV's own sequences ({one['task'].text()}, {one['design']['llm'].text()})"
        parts.append((f"{through}, from HQ token t to LQ token t + 1", one))
    rows = []
    maps = [one["attention"]["successor"].matrix() for _, one in parts]
    high = max((float(np.nanmax(one)) for one in maps if one is not None), default=None)  # one scale for all
    for (title, one), matrix in zip(parts, maps, strict=True):
        found = one["attention"]
        chance = found["chance"].number(optional=True)
        blocks = [x for x in found["blocks"].numbers() if x is not None]
        if matrix is not None:
            made.blocks.append(
                figures.heatmap(
                    matrix.T,  # [heads, blocks]
                    ("head", "block"),
                    title=f"Attention to the successor: {title}",
                    caption=f"Attention to the earlier occurrence's successor: {title}; chance {number(chance, 4)}.",
                    first=(1, int(blocks[0]) if blocks else 1),
                    high=high,
                )
            )
        for head in found["top"].each():
            successor = head["successor"]
            place = _place(head)
            mean, span = _estimate(successor)
            same = head["same"].number(optional=True)
            rows.append([Cell(title), Cell(place), Cell(with_interval(mean, span), mean), Cell(number(same), same)])
    if rows:
        made.blocks.append(
            Fold(
                "The strongest heads",
                [
                    Table(
                        "Heads that attend most to the successor",
                        ["on", "block.head", "to the successor (95%)", "to the same"],
                        rows,
                        numeric=(2, 3),
                    )
                ],
            )
        )
    dots: dict[str, dict[str, figures.Dot]] = {}
    written: dict[str, dict[str, figures.Dot]] = {}
    for group in node.part("ablation").each(optional=True):
        name = group["group"].text()
        if name == "none":
            continue
        for loss, text in (("copied", "second copy of a text"), ("visual", "LM4LV's visual loss")):
            if loss in group:
                value, span = _estimate(group[loss]["rise"])
                dots.setdefault(name, {})[text] = figures.Dot(value, span)
        if "restored" in group:
            written.setdefault(name, {})["what LM4LV writes"] = figures.Dot(*_estimate(group["restored"]["rise"]))
    if dots:
        made.blocks.append(
            figures.forest(
                dots,
                "rise of the loss",
                alt=f"Rise of the loss without groups of heads: {listed(list(dots))}",
                caption="What is lost when heads are switched off: the strongest on text or on LM4LV's sequences, and random ones.",
                zero=True,
            )
        )
    if written:
        made.blocks.append(
            figures.forest(
                written,
                "change of PSNR (dB)",
                alt=f"Change of the PSNR of LM4LV's pictures without groups of heads: {listed(list(written))}",
                caption="The same of the pictures that LM4LV writes, each token from its own answer so far.",
                zero=True,
            )
        )
    said = node["reading"].texts()
    if said:
        made.blocks.append(Lines(said, kind="reading"))
    made.answers += _copying(node)


def _place(head: Node) -> str:
    """block.head, as heads are called."""
    return f"{number(head['block'].number(), 0)}.{number(head['head'].number(), 0)}"


def _copying(node: Node) -> list[str]:
    """Does the language model copy in context, and is it this that restores? Clauses, of what was measured."""
    groups = {group["group"].text(): group for group in node.part("ablation").each(optional=True)}
    told: list[str] = []
    if {"none", "text"} <= groups.keys() and "visual" in groups["text"] and "visual" in groups["none"]:
        before, after = (groups[name]["visual"]["mean"].number() for name in ("none", "text"))
        if before is not None and after is not None:
            drawn = _of_random(groups, "visual")
            beside = f", without as many random heads by {number(max(drawn))} at most" if drawn else ""
            llm = node["images"]["design"]["llm"].text()
            told.append(
                f"without the heads that copy repeated text most, the visual loss of LM4LV through {llm} rises by "
                f"{number(after - before)} from {number(before)}{beside}"
            )
        change = groups["text"]["restored"]["rise"] if "restored" in groups["text"] else None
        fallen = None if change is None else change["mean"].number()
        if change is not None and fallen is not None:
            drawn, span = _of_random(groups, "restored"), change["ci95"].interval()
            beside = ""
            if span is not None and span[1] >= 0:
                beside = f", no clear fall ({number(span[0], 1, signed=True)} to {number(span[1], 1, signed=True)})"
            elif drawn:
                but = "but random heads do as much" if min(drawn) <= fallen else "more than random heads do"
                beside = f", {but} ({number(min(drawn), 1, signed=True)} at most)"
            told.append(
                f"without them the PSNR of what it writes changes by {number(fallen, 1, signed=True)} dB{beside}"
            )
    for one in node["text"].each():
        first, second = (one["copying"][time]["mean"].number() for time in ("first", "second"))
        if first is None or second is None:
            continue
        clause = f"random tokens cost {one['llm'].text()} {number(first, 2)} nats each, repeated {number(second, 2)}"
        for head in list(one["attention"]["top"].each())[:1]:
            most, chance = head["successor"]["mean"].number(), one["attention"]["chance"].number()
            beside = f"{number(most)}, chance {number(chance)}"
            clause += f", and its head {_place(head)} attends most to what followed before ({beside})"
        told.append(clause)
    return told


def _of_random(groups: dict[str, Node], what: str) -> list[float]:
    """What it costs to go without as many random heads as there are in "text", draw by draw."""
    return [
        rise
        for name, group in groups.items()
        if name in ("random, blocks of text", "random, other blocks") and what in group
        for rise in group[what]["rises"].numbers()
        if rise is not None
    ]
