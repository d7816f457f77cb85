"""How alike the layers are: scores beside their nulls, every pair of layers, and along depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from alignlab.report import figures
from alignlab.report.blocks import Block, Cell, Fold, Lines, Section, Table, cell, listed, number, with_interval
from alignlab.report.node import Node
from alignlab.report.source import Source, of_kind


@dataclass(frozen=True)
class Pair:
    """One encoder, language model and metric of a result. `how`: the poolings and the metric's options, by name."""

    source: str
    data: str
    encoder: str
    llm: str
    metric: str
    score: float | None
    interval: tuple[float, float] | None
    null: tuple[float, float] | None
    p: float | None
    z: float | None
    calibrated: float | None
    place: tuple[int, int] | None
    matrix: np.ndarray | None
    checkpoint: str
    how: Mapping[str, str]


def pair(node: Node, source: str, data: str) -> Pair:
    """A pair as `measure` writes it."""
    k = node["params"].part("k").whole(optional=True)
    metric = node["metric"].text()
    rows, columns = node["encoder_layer"].whole(), node["llm_layer"].whole()
    matrix = node["matrix"].matrix()
    place = None if rows is None or columns is None else (rows, columns)
    if (
        matrix is not None
        and place is not None
        and not (0 <= place[0] < len(matrix) and 0 <= place[1] < matrix.shape[1])
    ):
        node.gaps.append(f"{node.place}: the best layers {place} are not in its matrix")
        place = None
    mean, sd = (node[key].number(optional=True) for key in ("null_mean", "null_std"))
    return Pair(
        source=source,
        data=data,
        encoder=node["encoder"].text(),
        llm=node["llm"].text(),
        metric=f"{metric} (k={k})" if k is not None and "knn" in metric else metric,
        score=node["score"].number(),
        interval=node["ci95"].interval(),
        null=None if mean is None or sd is None else (mean, sd),
        p=node["p"].number(optional=True),
        z=node["z"].number(optional=True),
        calibrated=node["calibrated"].number(optional=True),
        place=place,
        matrix=matrix,
        checkpoint=node["checkpoint"].text(),
        how={
            **{key: str(node.part(key).value) for key in ("pool", "llm_pool")},
            **{key: str(value.value) for key, value in node["params"].entries(optional=True)},
        },
    )


def pairs(sources: Sequence[Source]) -> list[Pair]:
    """Those of `measure`, and those of Table 4's rows that no `measure` has; of several of one name, named by what differs."""
    found: list[Pair] = []
    for source in of_kind(sources, "measure"):
        data = source.node["data"]
        named = f"{data['name'].text()}, {number(data['n'].number(), 0)} items"
        found += [pair(node, source.name, named) for node in source.node["pairs"].each()]

    def identity(one: Pair) -> tuple[str, ...]:
        return (one.checkpoint, one.llm, one.metric, one.data, *map(str, sorted(one.how.items())))

    known = set(map(identity, found))
    for source in of_kind(sources, "reproduce-table4"):
        for row in source.node["rows"].each():
            of = row["alignment"]["of"]["data"]
            for name, node in row["alignment"].entries(optional=True):
                if name in ("of", "notes"):
                    continue
                one = pair(node, source.name, f"{of['name'].text()}, {number(of['n'].number(), 0)} items")
                if identity(one) not in known:
                    found.append(one)
    return [_told_apart(one, found) for one in found]


def _told_apart(one: Pair, found: Sequence[Pair]) -> Pair:
    """Named by how it was computed, where another of its name was computed otherwise."""
    name = (one.data, one.encoder, one.llm, one.metric)
    alike = [x.how for x in found if (x.data, x.encoder, x.llm, x.metric) == name]
    differ = [key for key in one.how if len({how.get(key) for how in alike}) > 1]
    labels = {"encoder": one.encoder, "llm": one.llm, "metric": one.metric}
    for key in differ:
        part = {"pool": "encoder", "llm_pool": "llm"}.get(key, "metric")
        labels[part] += f", {one.how[key]}" if part != "metric" else f", {key}={one.how[key]}"
    return replace(one, encoder=labels["encoder"], llm=labels["llm"], metric=labels["metric"])


def section(sources: Sequence[Source]) -> Section | None:
    found = pairs(sources)
    if not found:
        return None
    made = Section(
        "alignment",
        "Alignment",
        lead="Scores of the best pair of layers, and what the same maximum is when captions are dealt to the wrong images "
        "(shuffled). Calibrated is 0 at the shuffled mean and 1 for identical representations.",
    )
    sets = list(dict.fromkeys(one.data for one in found))
    made.blocks += [_table([one for one in found if one.data == data]) for data in sets]
    notes = [text for source in of_kind(sources, "measure") for text in source.node["notes"].texts()]
    if notes:
        made.blocks.append(Lines(list(dict.fromkeys(notes)), kind="note"))
    for data in sets:
        ours = [one for one in found if one.data == data]
        made.blocks += _matrices(ours, data)
        made.blocks += _profiles(ours, data)
        maps = [_map(one) for one in ours if one.matrix is not None]
        if maps:
            made.blocks.append(Fold(f"Every pair of layers on {data}", maps))
    made.answers = _answers(found)
    return made


def _table(found: Sequence[Pair]) -> Table:
    llms = list(dict.fromkeys(one.llm for one in found))
    several = len(llms) > 1
    rows = []
    for one in found:
        null = "–" if one.null is None else f"{number(one.null[0])} ± {number(one.null[1])}"
        layers = "–" if one.place is None else f"{one.place[0]} / {one.place[1]}"
        rows.append(
            [
                Cell(one.encoder),
                *([Cell(one.llm)] if several else []),
                Cell(one.metric),
                Cell(with_interval(one.score, one.interval), one.score),
                Cell(null, None if one.null is None else one.null[0]),
                Cell("–" if one.p is None else f"{one.p:.3g}", one.p),
                cell(one.z, 1),
                cell(one.calibrated),
                Cell(layers),
            ]
        )
    headings = ["encoder", *(["language model"] if several else []), "metric"]
    numbers = ["score (95%)", "shuffled", "p", "z", "calibrated"]
    start = len(headings)
    return Table(
        f"Alignment with {listed(llms)} on {found[0].data}",
        [*headings, *numbers, "layers"],
        rows,
        numeric=range(start, start + len(numbers)),
        note="layers: the encoder's and the language model's, counted from 0, the embedding output. Compare encoders by "
        "calibrated scores: wide features have a high raw CKA by chance.",
    )


def _map(one: Pair) -> Block:
    assert one.matrix is not None
    parts = [f"{one.metric} of {one.encoder} and {one.llm}"]
    if one.score is not None and one.place is not None:
        parts.append(f"best {number(one.score)} at layers {one.place[0]} and {one.place[1]}")
    if one.null is not None:
        parts.append(
            f"shuffled {number(one.null[0])} ± {number(one.null[1])} (red line on the scale, band of two deviations)"
        )
    told = "" if one.null is None else f"best of shuffled pairings {number(one.null[0])} ± {number(one.null[1])}"
    return figures.heatmap(
        one.matrix,
        (f"{one.encoder} layer", f"{one.llm} layer"),
        title=parts[0],
        caption="; ".join(parts) + ".",
        best=one.place,
        null=one.null,
        beside=told,
    )


def _matrices(found: Sequence[Pair], data: str) -> list[Block]:
    """Encoders by language models, where there are several of both."""
    blocks: list[Block] = []
    for metric in dict.fromkeys(one.metric for one in found):
        ours = {(one.encoder, one.llm): one for one in found if one.metric == metric and one.score is not None}
        encoders, llms = (list(dict.fromkeys(key[side] for key in ours)) for side in (0, 1))
        if len(encoders) < 2 or len(llms) < 2:
            continue
        calibrated = all(one.calibrated is not None for one in ours.values())
        values = np.full((len(encoders), len(llms)), np.nan)
        told = [["not measured"] * len(llms) for _ in encoders]
        for (encoder, llm), one in ours.items():
            i, j = encoders.index(encoder), llms.index(llm)
            shown = one.calibrated if calibrated else one.score
            values[i, j] = np.nan if shown is None else shown
            null = "" if one.null is None else f", shuffled {number(one.null[0])} ± {number(one.null[1])}"
            told[i][j] = f"{with_interval(one.score, one.interval)}{null}, calibrated {number(one.calibrated)}"
        kind = "calibrated" if calibrated else "best pair of layers"
        title = f"{metric}, {kind}, of {len(encoders)} encoders and {len(llms)} language models on {data}"
        blocks.append(figures.grid(values, encoders, llms, told, title=title, caption=f"{title}."))
    return blocks


def _profiles(found: Sequence[Pair], data: str) -> list[Block]:
    blocks: list[Block] = []
    for metric in dict.fromkeys(one.metric for one in found):
        for llm in dict.fromkeys(one.llm for one in found if one.metric == metric):
            ours = [one for one in found if (one.metric, one.llm) == (metric, llm) and one.matrix is not None]
            if not ours or max(one.matrix.shape[1] for one in ours if one.matrix is not None) < 2:
                continue
            along: list[figures.Curve] = []
            across: list[figures.Curve] = []
            for place, one in enumerate(ours):
                assert one.matrix is not None
                turn, number_ = divmod(place, len(figures.SERIES))
                colour, stroke = figures.SERIES[number_], figures.STROKES[turn % len(figures.STROKES)]
                rows, columns = one.matrix.shape
                kept = np.where(np.isfinite(one.matrix), one.matrix, -np.inf)
                best = _finite(kept.max(1))
                if rows == 1:  # a VQGAN's tokens are its one layer: a level, not a point of a curve
                    along.append(figures.Curve(one.encoder, level=best[0], colour=colour, stroke=stroke))
                else:
                    depth = [i / (rows - 1) for i in range(rows)]
                    along.append(figures.Curve(one.encoder, depth, best, colour=colour, stroke=stroke))
                values = _finite(kept.max(0))
                across.append(figures.Curve(one.encoder, list(range(columns)), values, colour=colour, stroke=stroke))
                if one.null is not None:
                    null = figures.Curve("", level=one.null[0], colour=colour, dashed=True)
                    along.append(null)
                    across.append(null)
            panels = {"encoder's layer, as a share of its depth": along, f"{llm} layer": across}
            names = listed([one.encoder for one in ours])
            blocks.append(
                figures.curves(
                    panels,
                    metric,
                    alt=f"{metric} along the depth of {names}, and of {llm}",
                    caption=f"{metric} with {llm} on {data} along depth: the best of the other model's layers (an encoder with one "
                    "layer is a level); dashed and of the encoder's colour, the mean of the best of all pairs when captions are "
                    "shuffled.",
                )
            )
    return blocks


def _finite(values: np.ndarray) -> list[float | None]:
    return [float(x) if np.isfinite(x) else None for x in values]


def _answers(found: Sequence[Pair]) -> list[str]:
    """A clause a set: are the encoders more like the language model than shuffled pairings are, and which leads?"""
    told = [_answer([one for one in found if one.data == data]) for data in dict.fromkeys(one.data for one in found)]
    told = [clause for clause in told if clause]
    return ["; ".join(told[:2]), *told[2:]] if told else []


def _answer(ours: Sequence[Pair]) -> str:
    name = ours[0].data.partition(",")[0]
    learnt = [one for one in ours if "@random" not in one.encoder + one.llm]
    judged = [one for one in learnt if one.p is not None]
    if not judged:
        scored = [one for one in ours if one.score is not None]
        best = max(scored, key=lambda one: one.score or 0.0, default=None)
        if best is None:
            return ""
        return f"on {name} the best score is {number(best.score)} ({best.metric} of {best.encoder}), with no null beside it"
    encoders = list(dict.fromkeys(one.encoder for one in judged))
    clear = [x for x in encoders if all(one.p is not None and one.p < 0.05 for one in judged if one.encoder == x)]
    rest = [x for x in encoders if x not in clear]
    unjudged = list(dict.fromkeys(one.encoder for one in learnt if one.p is None))
    llms = listed(list(dict.fromkeys(one.llm for one in judged)))
    than = f"more like {llms} than shuffled pairings are"
    if not rest:
        every = {1: encoders[0], 2: "both encoders"}.get(len(encoders), f"all {len(encoders)} encoders")
        who = listed(encoders) if unjudged else every
        most = max(one.p for one in judged if one.p is not None)
        said = f"on {name} {who} {'is' if len(encoders) == 1 else 'are'} {than} (p {most:.2g})"
    elif clear:
        said = f"on {name} {listed(clear)} {'is' if len(clear) == 1 else 'are'} {than}, {listed(rest)} not clearly"
    else:
        said = f"on {name} no encoder is clearly {than}"
    if unjudged:
        said += f" (not told of {listed(unjudged)})"
    tested = [one for one in ours if one.p is not None]
    for control in dict.fromkeys(one.encoder for one in tested if "@random" in one.encoder):
        beyond = all(one.p is not None and one.p < 0.05 for one in tested if one.encoder == control)
        said += f" ({'so is' if beyond else 'not so'} the untrained {control})"
    for control in dict.fromkeys(one.llm for one in tested if "@random" in one.llm):
        beyond = all(one.p is not None and one.p < 0.05 for one in tested if one.llm == control)
        said += f" ({'so' if beyond else 'not so'} with the untrained {control})"
    leads: dict[str, list[tuple[str, float]]] = {}
    several = len({one.llm for one in learnt}) > 1
    for metric, llm in dict.fromkeys((one.metric, one.llm) for one in learnt):
        if (found := _lead([one for one in learnt if (one.metric, one.llm) == (metric, llm)])) is not None:
            leads.setdefault(found[0], []).append((f"{metric} with {llm}" if several else metric, found[1]))
    told = [
        f"{who} leads by {listed([metric for metric, _ in of])}, calibrated ({', '.join(number(x) for _, x in of)})"
        if who
        else f"none clearly leads by {' or '.join(metric for metric, _ in of)}"
        for who, of in leads.items()
    ]
    return f"{said}, and {listed(told)}" if told else said


def _lead(ours: Sequence[Pair]) -> tuple[str, float] | None:
    """The encoder that leads by a metric, "" for none, and its calibrated score; None where there are not two to compare.

    It leads if its score's interval, calibrated as the score is, is apart from the others'.
    """
    spans: list[tuple[float, float, float, str]] = []
    for one in ours:
        if one.calibrated is None or one.interval is None or one.score is None or one.null is None:
            continue
        room = one.score - one.null[0]
        scale = one.calibrated / room if room else 0.0
        low, high = (scale * (end - one.null[0]) for end in one.interval)
        spans.append((one.calibrated, low, high, one.encoder))
    if len({encoder for *_, encoder in spans}) < 2:
        return None
    spans.sort(reverse=True)
    first, others = spans[0], [span for span in spans if span[3] != spans[0][3]]
    return (first[3] if first[1] > max(span[2] for span in others) else "", first[0])
