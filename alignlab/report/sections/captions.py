"""Can the language model read the encoder? Table 4, scores of captions beside their controls, and what was said."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from alignlab.report import figures, images
from alignlab.report.blocks import (
    Block,
    Captions,
    Cell,
    Fold,
    Lines,
    Paragraph,
    Picture,
    Said,
    Section,
    Table,
    cell,
    listed,
    number,
    with_interval,
)
from alignlab.report.node import Node
from alignlab.report.source import Source, of_kind

DIGITS = {"CS": 1, "Ref-CS": 1}  # of Table 4's columns; the others have three
JUDGED = {"CLIPScore", "RefCLIPScore"}


def section(sources: Sequence[Source]) -> Section | None:
    made = Section(
        "captions",
        "Captions through one linear layer",
        lead="One trained linear layer between a frozen encoder and a frozen language model: what the model then says of an "
        "image, beside the same captions put to other images.",
    )
    for source in of_kind(sources, "reproduce-table4"):
        _table4(source, made)
    for source in of_kind(sources, "caption-train", "caption-eval"):
        _evaluations(source, made)
    return made if made.blocks else None


def _table4(source: Source, made: Section) -> None:
    node = source.node
    rows, dots = [], dict[str, dict[str, dict[str, figures.Dot]]]()
    read: list[str] = []
    unread: list[str] = []
    for row in node["rows"].each():
        name = row["name"].text()
        if row["status"].text() != "done":
            source.gaps.append(f"Table 4: {name} is not finished")
            made.blocks.append(Paragraph(f"Table 4: {name} is missing; its run is not finished.", "gap"))
            continue
        for column, found in row["columns"].entries():
            digits = DIGITS.get(column, 3)
            score, interval = found["score"].number(), found["ci95"].interval()
            chance = None if column == "Avg" else found["baseline"].number(optional=True)  # Table 4's Avg has none
            paper = row["paper"].part(column).number(optional=True)
            rows.append(
                [
                    Cell(name),
                    Cell(column),
                    Cell(with_interval(score, interval, digits), score),
                    cell(chance, digits),
                    Cell(*_above(found, digits)),
                    cell(paper, 2, quiet=True),
                    cell(None if paper is None or score is None else score - paper, 2, signed=True, quiet=True),
                ]
            )
            dots.setdefault(column, {})[name] = {
                "here": figures.Dot(score, interval),
                "by chance": figures.Dot(chance, found.part("baseline_ci95").interval()),
            }
        apart = row["evaluation"]["apart"]["shuffled"]
        called = f"the untrained control {name}" if row["control"].value else name
        if isinstance(apart.value, list):
            (read if set(apart.texts()) & JUDGED else unread).append(called)
        else:
            apart.texts()  # a gap: nothing is said of this one
    if not rows:
        return
    judge, budget = node["judge"].text().partition("@")[0], node["budget"]
    made.blocks.append(
        Table(
            f"{node['title'].text('Table 4')}: here ({node['laboratory'].text()} laboratory) and in the paper",
            [
                "encoder",
                "measure",
                "here (95%)",
                "by chance",
                "above chance (CKA, M-kNN, Avg: calibrated)",
                "the paper",
                "here − paper",
            ],
            rows,
            numeric=range(2, 7),
            note=f"The judge of CS and Ref-CS is {judge}, the paper's is {node['paper']['judge'].text()}; the models are others "
            f"too, so that the difference compares laboratories, not encoders. By chance: the same captions on other images, "
            f"shuffled pairings. {number(budget['n'].number(), 0)} images captioned.",
        )
    )
    for column in ("CS", "CKA"):
        if column in dots:
            made.blocks.append(
                figures.forest(
                    dots[column],
                    column,
                    alt=f"{column} of {listed(list(dots[column]))}, here and by chance",
                    caption=f"{column} with 95% intervals, and what it is by chance.",
                )
            )
    said = node["readings"].texts()
    if said:
        made.blocks.append(Lines(said, kind="reading", title="What Table 4 says", show=2))
    for row in node["rows"].each():
        title = f"{row['name'].text()} read by {row['design']['llm'].text()}"
        if found_gallery := list(_gallery(row["gallery"], row["picture"], source, title)):
            made.blocks.append(Fold(f"Captions: {title}", found_gallery))
    if read:
        other = f", not clearly for {listed(unread)}" if unread else ""
        made.answers.append(f"captions fit their own images better than others' for {listed(read)}{other}")
    elif unread:
        made.answers.append(f"captions do not clearly fit their own images better than others', for {listed(unread)}")


def _above(found: Node, digits: int) -> tuple[str, float | None]:
    value = found["calibrated"].number(optional=True)
    return with_interval(value, found["calibrated_ci95"].interval(), digits, signed=True), value


def _evaluations(source: Source, made: Section) -> None:
    """Of one probe on one set each: its scores, beside shuffled captions and people's."""
    train = source.kind == "caption-train"
    for one in source.node["evaluations" if train else "results"].each():
        design = source.node["design"] if train else one["design"]
        who = f"{design['encoder'].text()} read by {design['llm'].text()}"
        data = one["data"]["name"].text()
        arms = dict(one["scores"].entries())
        rows = []
        for metric in dict.fromkeys(name for arm in arms.values() for name, _ in arm.entries()):
            line = [Cell(metric)]
            for arm in arms.values():
                score = arm[metric]["score"].number(optional=True)
                line.append(Cell(with_interval(score, arm[metric]["ci95"].interval()), score))
            rows.append(line)
        if rows:
            n = number(one["n"].number(), 0)
            made.blocks.append(
                Table(
                    f"Captions of {n} images of {data}: {who}", ["metric", *arms], rows, numeric=range(1, len(arms) + 1)
                )
            )
        if "says" in one:
            made.blocks.append(Paragraph(one["says"].text(), "reading"))
        made.answers += _fits(one, who, data)
        made.blocks += _gallery(one["gallery"], one["picture"], source, f"{who} on {data}")


def _fits(one: Node, who: str, data: str) -> list[str]:
    """Do the captions fit their images better than others'? A clause of the first score that a judge gave."""
    differences = one["differences"].part("shuffled")
    for metric in ("CLIPScore", "RefCLIPScore", "CIDEr"):
        if metric not in differences:
            continue
        found = differences[metric]
        value, span = found["difference"].number(), found["ci95"].interval()
        ours, others = (one["scores"][arm][metric]["score"].number() for arm in ("generated", "shuffled"))
        if value is None or span is None or ours is None or others is None:
            return []
        how = (
            "fit their own images better than others'" if span[0] > 0 else "do not clearly fit their own images better"
        )
        return [f"captions of {data} by {who} {how} ({metric} {number(ours)}, put to other images {number(others)})"]
    return []


def _gallery(node: Node, picture: Node, source: Source, title: str) -> Iterator[Block]:
    """What was said of some images; of an older result, its picture as it is."""
    if node.there:
        sheet = images.sheet(node["sheet"], source.folder)
        said, truth = (list(node[key].each()) for key in ("said", "truth"))
        if sheet is None:
            return
        squares = next(iter(sheet.values()), [])
        if not len(squares) == len(said) == len(truth):
            node.gaps.append(f"{node.place} has {len(squares)} images, {len(said)} captions and {len(truth)} of people")
            return
        cards = []
        for number_, (square, ours, theirs) in enumerate(zip(squares, said, truth, strict=True), 1):
            people = theirs.text()
            texts = (("said", ours.text() or "(nothing)"), ("person", people))
            cards.append(Said(images.uri(square), f"Image {number_}, which a person describes so: {people}", texts))
        yield Captions(title, cards)
    elif picture.there and picture.value is not None:
        found = images.whole(picture, source.folder)
        if found is not None:
            yield Picture(found, f"Images with the captions of {title} and of people", title)
