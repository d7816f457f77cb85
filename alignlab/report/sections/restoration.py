"""What the frozen language model restores: the paper's tables and figures, single runs, and the pictures themselves."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from alignlab.report import figures, images
from alignlab.report.blocks import (
    Block,
    Cell,
    Fold,
    Lines,
    Paragraph,
    Picture,
    Section,
    Slides,
    Table,
    cell,
    listed,
    number,
    plural,
    with_interval,
)
from alignlab.report.node import Node
from alignlab.report.source import Source, of_kind

SPATIAL = ("rotate", "flip", "repeat")  # their answers are compared with the truth alone
SHOWN = 4  # pictures of a gallery
COLUMNS = {"degraded": "degraded", "alone": "encoder + decoder", "restored": "restored"}
HEADINGS = ("degraded", "encoder + decoder", "restored", "minus degraded", "minus encoder + decoder", "misaligned")


def section(sources: Sequence[Source]) -> Section | None:
    made = Section(
        "restoration",
        "Restoration",
        lead="PSNR in dB and SSIM on images that were not learnt from. Encoder + decoder: the two alone, of what was given (the "
        "paper's MAE-r); of rotate, flip and repeat, of the answer, which is the best that can be had. Differences are "
        "means over the same images with 95% intervals, over images: each run is one training with one seed. Pictures are the "
        "first images of a test set.",
    )
    tables_first = sorted(
        of_kind(sources, "reproduce"), key=lambda source: "Table" not in source.node["title"].text("")
    )
    for source in tables_first:
        _reproduced(source, made)
    told: list[str] = []
    for source in of_kind(sources, "restore-train", "restore-eval"):
        _runs(source, made, told)
    made.answers += told
    return made if made.blocks else None


def reconstruction(sources: Sequence[Source]) -> Section | None:
    """What encoders and their decoders leave of an image."""
    made = Section(
        "reconstruction",
        "Reconstruction",
        lead="Images encoded, decoded and compared: what is lost before anything else.",
    )
    for source in of_kind(sources, "reconstruct"):
        data = source.node["data"]
        rows: list[list[Cell]] = []
        pictures: list[Block] = []
        for one in source.node["results"].each():
            name, sets = one["encoder"].text(), list(one["sets"].each(optional=True))
            row = [Cell(name), *(_mean(one[key], digits) for key, digits in (("psnr", 2), ("ssim", 3), ("l1", 4)))]
            row.append(_mean(one["lpips"], 3) if "lpips" in one else Cell("–"))
            row.append(Cell("; ".join(f"{x['name'].text()} {number(x['distance'].number(), 1)}" for x in sets) or "–"))
            rows.append(row)
            uri = images.whole(one["picture"], source.folder)
            if uri:
                alt = f"Rows of images of {data['name'].text()} and what {name} and its decoder leave of them"
                pictures.append(Picture(uri, alt, f"{name} on {data['name'].text()}"))
        if rows:
            best = max(source.node["results"].each(), key=lambda one: one["psnr"]["mean"].number(optional=True) or 0.0)
            psnr = number(best["psnr"]["mean"].number(optional=True), 1)
            made.answers.append(
                f"of {data['name'].text()}, {best['encoder'].text()} and its decoder keep the most ({psnr} dB)"
            )
            caption = f"Reconstruction of {data['name'].text()}, {number(data['n'].number(), 0)} images"
            made.blocks.append(
                Table(
                    caption,
                    ["encoder", "PSNR (95%)", "SSIM", "L1", "LPIPS", "distance of the sets"],
                    rows,
                    numeric=range(1, 5),
                )
            )
        left = [
            f"{x['metric'].text()} is left out: {x['reason'].text()}"
            for x in source.node["left_out"].each(optional=True)
        ]
        if left:
            made.blocks.append(Lines(left, kind="note"))
        if pictures:
            made.blocks.append(Fold(f"Pictures of {data['name'].text()}", pictures))
    return made if made.blocks else None


# --- tables ---


def _mean(node: Node, digits: int, signed: bool = False) -> Cell:
    """A mean with its interval; inf where it is null and images are counted as infinite."""
    value = node["mean"].number(optional=True)
    if value is None:
        exact = node.part("infinite").number(optional=True)
        return Cell("inf", math.inf) if exact else Cell("–")
    return Cell(with_interval(value, node["ci95"].interval(), digits, signed), value)


def _both(node: Node) -> Cell:
    """PSNR / SSIM, in order of the PSNR."""
    psnr, ssim = _mean(node["psnr"], 2), node["ssim"]["mean"].number(optional=True)
    value = node["psnr"]["mean"].number(optional=True)
    infinite = node["psnr"].part("infinite").whole(optional=True)
    exact = f" ({infinite} inf)" if infinite else ""
    text = psnr.text if value is None else number(value, 2) + exact
    return Cell(f"{text} / {number(ssim, 2)}", psnr.sort)


def _difference(found: Node, key: str, other: str) -> Cell:
    """Null is where no image has a finite PSNR in both: one of the two is exact, or both are."""
    node = found[key]
    if not node.there or node.value is not None:
        psnr, ssim = _mean(node["psnr"], 2, True), node["ssim"]["mean"].number(optional=True)
        return Cell(f"{psnr.text} / {number(ssim, 3, signed=True)}", psnr.sort)
    ours, theirs = (found[column]["psnr"]["mean"].number(optional=True) is None for column in ("restored", other))
    if ours and theirs:
        return Cell("both exact", 0.0)
    return Cell("–") if ours == theirs else Cell("−inf", -math.inf) if theirs else Cell("+inf", math.inf)


def _figures(found: Node) -> list[Cell]:
    """The cells of one evaluation under `HEADINGS`."""
    lift = Cell("–") if found["task"].value in SPATIAL else _difference(found, "lift", "degraded")
    gain = _difference(found, "gain", "alone")
    wrong, n = found["misaligned"].whole(), found["n"].whole()
    count = Cell(f"{number(wrong, 0)} of {number(n, 0)}", wrong)
    return [*(_both(found[key]) for key in ("degraded", "alone", "restored")), lift, gain, count]


def _reproduced(source: Source, made: Section) -> None:
    node = source.node
    title = node["title"].text(source.name)
    short = title.partition(":")[0]
    rows: list[list[Cell]] = []
    beside: list[list[Cell]] = []
    gaps: list[str] = []
    dots: dict[str, dict[str, figures.Dot]] = {}
    done: list[tuple[str, Node]] = []
    encoders: dict[str, None] = {}
    for row in node["rows"].each():
        name, state = row["name"].text(), row["status"].text()
        if state != "done":
            gaps.append(f"{name} ({'begun' if state == 'partly' else state})")
            source.gaps.append(f"{short}: {name} is not finished")
            continue
        images_learnt = row["images"].number()
        if "/" not in name:
            encoders[row["design"]["encoder"].text()] = None
        for found in row["evaluations"].each():
            done.append((name, found))
            rows.append([Cell(name), cell(images_learnt, 0), *_figures(found)])
            beside += _beside(name, row["paper"], found)
            dots[name] = {
                label: figures.Dot(
                    found[key]["psnr"]["mean"].number(optional=True), found[key]["psnr"]["ci95"].interval()
                )
                for key, label in COLUMNS.items()
            }
    lab = node["laboratory"].text()
    if rows:
        headings = ["row", "images learnt", *HEADINGS]
        of = f"; encoder {listed(list(encoders))}" if encoders else ""
        made.blocks.append(Table(f"{title} ({lab} laboratory{of})", headings, rows, numeric=range(1, len(headings))))
        alt = f"PSNR of what was given, of encoder and decoder alone, and restored, for {listed(list(dots))}"
        told = f"{title}: PSNR with 95% intervals; what is exact has none."
        made.blocks.append(figures.forest(dots, "PSNR (dB)", alt=alt, caption=told))
    if beside:
        headings = ["row", "figure", "here", "the paper", "here − paper (dB)"]
        note = "The paper's figures are of its models and images; the differences compare two laboratories."
        table = Table(
            f"{short}: here and in the paper, PSNR in dB / SSIM", headings, beside, numeric=(2, 3, 4), note=note
        )
        made.blocks.append(Fold(f"{short} beside the paper's figures", [table], open=True))
    if gaps:
        made.blocks.append(Paragraph(f"{short}: not finished, so not here: {'; '.join(gaps)}.", "gap"))
    said = [x for x in node["readings"].texts() if not x.endswith(": missing")]
    if said:
        made.blocks.append(Lines(said, kind="reading", title=f"What {short} says", show=8))
    made.answers += _answers(node["target"].value, short, done, len(gaps), list(encoders))
    if "sheets" in node:
        how = {row["name"].text(): row["design"]["how"].text() for row in node["rows"].each() if "design" in row}
        for sheet in node["sheets"].each():
            made.blocks += _slides(sheet, source, f"{short}, {sheet['title'].text()}", how)
    else:
        made.blocks += _pictures(node["pictures"], source, title)


def _beside(name: str, paper: Node, found: Node) -> list[list[Cell]]:
    """What the paper has of a row beside what came out here."""
    rows = []
    pairs: dict[str, tuple[float, float]] = {}
    published = dict(paper.entries(optional=True))
    for key, label in COLUMNS.items():
        if key not in published:
            continue
        theirs, ssim = (published[key][size].number(optional=True) for size in ("PSNR", "SSIM"))
        ours = found[key]["psnr"]["mean"].number(optional=True)
        told = "inf" if theirs is None else number(theirs, 2)
        both = theirs is not None and ours is not None
        if both:
            assert theirs is not None
            assert ours is not None
            pairs[key] = (ours, theirs)
        rows.append(
            [
                Cell(name),
                Cell(f"{label} (MAE-r)" if key == "alone" else label),
                _both(found[key]),
                Cell(told + ("" if ssim is None else f" / {number(ssim, 2)}"), theirs, quiet=True),
                cell(pairs[key][0] - pairs[key][1] if both else None, 2, signed=True, quiet=True),
            ]
        )
    if {"alone", "restored"} <= pairs.keys():
        ours, theirs = (pairs["restored"][i] - pairs["alone"][i] for i in (0, 1))
        line = [
            Cell(name),
            Cell("restored − MAE-r"),
            cell(ours, 2, signed=True),
            cell(theirs, 2, signed=True, quiet=True),
        ]
        rows.append([*line, cell(ours - theirs, 2, signed=True, quiet=True)])
    return rows


def _answers(target: Any, short: str, done: list[tuple[str, Node]], missing: int, encoders: list[str]) -> list[str]:
    """What a table says, in a clause; of rows whose differences are not there nothing is said."""
    rest = f" ({plural(missing, 'row')} not finished)" if missing else ""
    own = [(name, found) for name, found in done if "/" not in name]
    if target == "table2" and own:
        told = []
        for key, beside in (("lift", "the degraded input"), ("gain", "encoder and decoder alone")):
            spans = {
                name: found[key]["psnr"]["ci95"].interval()
                for name, found in own
                if key == "gain" or found["task"].value not in SPATIAL
            }
            judged = [name for name, span in spans.items() if span is not None]
            above = [name for name in judged if (spans[name] or (0.0,))[0] > 0]
            if judged:
                names = f" ({listed(above)})" if above else ""
                told.append(f"{len(above)} of {plural(len(judged), 'task')} clearly above {beside}{names}")
        seen = listed(list(dict.fromkeys(found["data"]["name"].text() for _, found in own)))
        who = f"on {seen}, with {listed(encoders)}, the frozen language model restores"
        return [f"{who} {' and '.join(told)}{rest}"] if told else []
    tasks: dict[str, list[tuple[float, str]]] = {}
    for name, found in done:
        gain = found["gain"]["psnr"]["mean"].number(optional=True) if "gain" in found else None
        if gain is not None:
            task = found["task"].text()
            tasks.setdefault(task, []).append((gain, name.removeprefix(f"{task}/")))
    said = []
    for task, gains in tasks.items():
        (high, best), (low, worst) = max(gains), min(gains)
        clause = f"{task} comes to {number(high, 2, signed=True)} dB with {best}"
        said.append(
            clause if best == worst else f"{clause} at best, {number(low, 2, signed=True)} with {worst} at worst"
        )
    return [f"in {short}, against encoder and decoder alone, {'; '.join(said)}{rest}"] if said else []


def _against(found: Node) -> str:
    """What it is compared with, and whether it is clearly apart from that."""
    told = []
    for key, of, what in (("lift", "degraded", "the degraded input"), ("gain", "alone", "encoder and decoder alone")):
        if key == "lift" and found["task"].value in SPATIAL:
            continue
        other, span = found[of]["psnr"]["mean"].number(optional=True), found[key]["psnr"]["ci95"].interval()
        if other is None or span is None:
            continue
        how = "clearly above" if span[0] > 0 else "clearly below" if span[1] < 0 else "not clearly apart from"
        told.append(f"{how} {what} ({number(other, 1)})")
    return f", {' and '.join(told)}" if told else ""


def _runs(source: Source, made: Section, told: list[str]) -> None:
    """A run's own evaluations, or those of `restore eval`; where there is no table, or of other images than its, `told` gets
    what they come to.
    """
    tabled = bool(made.answers)
    train = source.kind == "restore-train"
    rows, galleries = [], list[Block]()
    for found in source.node["evaluations" if train else "results"].each():
        design = (source.node if train else found)["design"]
        reads = design["how"].value in ("lm4lv", "vit-llm")
        label = design["encoder"].text() + (f" / {design['llm'].text()}" if reads else "")
        name = source.name if train else found["checkpoint"].text()
        task, data = _asked(found), found["data"]["name"].text()
        rows.append(
            [Cell(name), Cell(f"{design['how'].text()} of {label}"), Cell(f"{task} on {data}"), *_figures(found)]
        )
        # Of several strengths the first has pictures, and is told of.
        first = "sheet" in found or "picture" in found or not found.part("strength").value
        if (
            first
            and (data != "scenes" or not tabled)
            and (restored := found["restored"]["psnr"]["mean"].number(optional=True))
        ):
            told.append(f"{task} on {data} comes to {number(restored, 1)} dB with {name}{_against(found)}")
        if "sheet" in found:
            galleries += _slides(found["sheet"], source, f"{name}, {task} on {data}")
        elif first:
            galleries += _pictures(
                Node([found["picture"].value], source.gaps, "picture"), source, f"{name}, {task} on {data}"
            )
    if rows:
        command = "restore train" if train else "restore eval"
        made.blocks.append(
            Table(
                f"{source.name}: alignlab {command}",
                ["run", "what", "task", *HEADINGS],
                rows,
                numeric=range(3, 3 + len(HEADINGS)),
            )
        )
    made.blocks += galleries


def _asked(found: Node) -> str:
    """The task, and how strongly was spoilt where that is not as in training."""
    task, strength = found["task"].text(), found.part("strength")
    if not isinstance(strength.value, dict):
        strength.number(optional=True)  # whatever else stands there is a gap
        return task
    from alignlab.restoration.card import task_of

    return task_of({"task": task, "strength": strength.value})


# --- pictures ---


def _slides(node: Node, source: Source, title: str, how: Mapping[str, str] | None = None) -> Iterator[Block]:
    """A gallery with a slider over each picture, from what was given to what came out. `how`: of rows, what made them."""
    sheet = images.sheet(node, source.folder)
    if sheet is None:
        return
    labels = list(sheet)
    pictures = [[images.uri(row[i]) for row in sheet.values()] for i in range(min(SHOWN, len(sheet[labels[0]])))]
    shown = [_shown(label, how or {}) for label in labels]
    made = [
        x
        for label, x in zip(labels, shown, strict=True)
        if label not in ("given", "truth", "encoder + decoder") and not label.endswith(" alone")
    ]
    lm4lv = [x for x in made if "LM4LV" in x]
    yield Slides(title, shown, pictures, shown[0], (lm4lv or made or shown[-1:])[0])


def _shown(label: str, how: Mapping[str, str]) -> str:
    """A row of a contact sheet as the page calls it.

    >>> [_shown(x, {"flip": "lm4lv"}) for x in ("given", "mae alone", "denoise/lm4lv", "flip", "truth")]
    ['degraded', 'mae alone', 'denoise/LM4LV', 'flip: LM4LV', 'truth']
    """
    if label == "given":
        return "degraded"
    if how.get(label) == "lm4lv" and "lm4lv" not in label:
        return f"{label}: LM4LV"
    return re.sub(r"\blm4lv\b", "LM4LV", label)


def _pictures(names: Node, source: Source, title: str) -> Iterator[Block]:
    """Grids as they are, of results without a contact sheet."""
    for node in names.each(optional=True):
        uri = images.whole(node, source.folder)
        if uri:
            yield Picture(uri, f"Rows of images of {title}: what was given, what was made of it, the truth", title)
