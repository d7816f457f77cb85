"""What the frozen language model restores: the paper's tables and figures, single runs, and the pictures themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
from alignlab.report.source import Source

SPATIAL = ("rotate", "flip", "repeat")  # their answers are compared with the truth alone
SHOWN = 4  # pictures of a gallery
HEADINGS = ("degraded", "encoder + decoder", "restored", "minus degraded", "minus encoder + decoder", "misaligned")


def section(sources: Sequence[Source]) -> Section | None:
    made = Section(
        "restoration",
        "Restoration",
        lead="PSNR in dB and SSIM on images that were not learnt from. Encoder + decoder: the two alone, of what was given (the "
        "paper's MAE-r); of rotate, flip and repeat, of the answer, which is the best that can be had. Differences are "
        "means over the same images with 95% intervals.",
    )
    for source in sources:
        if source.kind == "reproduce":
            _reproduced(source, made)
    for source in sources:
        if source.kind in ("restore-train", "restore-eval"):
            _runs(source, made)
    return made if made.blocks else None


def reconstruction(sources: Sequence[Source]) -> Section | None:
    """What encoders and their decoders leave of an image."""
    made = Section(
        "reconstruction",
        "Reconstruction",
        lead="Images encoded, decoded and compared: what is lost before anything else.",
    )
    for source in sources:
        if source.kind != "reconstruct":
            continue
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
        return Cell("inf" if node["infinite"].number(optional=True) else "–")
    return Cell(with_interval(value, node["ci95"].interval(), digits, signed), value)


def _both(node: Node) -> Cell:
    """PSNR / SSIM, in order of the PSNR."""
    psnr, ssim = _mean(node["psnr"], 2), node["ssim"]["mean"].number(optional=True)
    value = node["psnr"]["mean"].number(optional=True)
    text = psnr.text if value is None else number(value, 2)
    return Cell(f"{text} / {number(ssim, 2)}", psnr.sort)


def _figures(found: Node) -> list[Cell]:
    """The cells of one evaluation under `HEADINGS`."""
    lift = Cell("–") if found["task"].value in SPATIAL or "lift" not in found else _mean(found["lift"]["psnr"], 2, True)
    gain = _mean(found["gain"]["psnr"], 2, True) if "gain" in found else Cell("−inf")
    wrong, n = found["misaligned"].whole(), found["n"].whole()
    count = Cell(f"{number(wrong, 0)} of {number(n, 0)}", wrong)
    return [*(_both(found[key]) for key in ("degraded", "alone", "restored")), lift, gain, count]


def _reproduced(source: Source, made: Section) -> None:
    node = source.node
    title = node["title"].text(source.name)
    rows, gaps = [], []
    dots: dict[str, dict[str, figures.Dot]] = {}
    better: list[str] = []
    restored = 0
    for row in node["rows"].each():
        name = row["name"].text()
        if row["status"].text() != "done":
            gaps.append(f"{name}: {row['status'].text()}")
            continue
        paper = {key: row["paper"][key]["PSNR"].number(optional=True) for key in ("alone", "restored")}
        for found in row["evaluations"].each():
            here = found["restored"]["psnr"]["mean"].number(optional=True)
            gain = found["gain"]["psnr"]["mean"].number(optional=True) if "gain" in found else None
            theirs = paper["restored"]
            of_theirs = None if theirs is None or paper["alone"] is None else theirs - paper["alone"]
            rows.append(
                [
                    Cell(name),
                    Cell(
                        number(row["images"].number(), 0),
                        row["images"].value if isinstance(row["images"].value, int) else None,
                    ),
                    *_figures(found),
                    cell(theirs, 2, quiet=True),
                    cell(of_theirs, 2, signed=True, quiet=True),
                    cell(None if of_theirs is None or gain is None else gain - of_theirs, 2, signed=True, quiet=True),
                ]
            )
            columns = {"degraded": "degraded", "alone": "encoder + decoder", "restored": "restored"}
            dots[name] = {
                label: figures.Dot(
                    found[key]["psnr"]["mean"].number(optional=True), found[key]["psnr"]["ci95"].interval()
                )
                for key, label in columns.items()
            }
            if found["task"].value not in SPATIAL and "lift" in found and here is not None:
                restored += 1
                interval = found["lift"]["psnr"]["ci95"].interval()
                if interval is not None and interval[0] > 0 and name not in better:
                    better.append(name)
    lab = node["laboratory"].text()
    if rows:
        headings = ["row", "images learnt", *HEADINGS, "the paper: restored", "the paper: minus MAE-r", "here − paper"]
        made.blocks.append(
            Table(
                f"{title} ({lab} laboratory)",
                headings,
                rows,
                numeric=range(1, len(headings)),
                note="The paper's columns are of its models and images; the last column is the difference of the two "
                "differences from encoder + decoder, of two laboratories.",
            )
        )
        made.blocks.append(
            figures.forest(
                dots,
                "PSNR (dB)",
                alt=f"PSNR of what was given, of encoder and decoder alone, and restored, for {listed(list(dots))}",
                caption=f"{title}: PSNR with 95% intervals; what is exact has none.",
            )
        )
    if gaps:
        made.blocks.append(Paragraph(f"{title}: not finished, so not here: {'; '.join(gaps)}.", "gap"))
    said = node["readings"].texts()
    if said:
        kept = [x for x in said if not x.endswith(": missing")]
        made.blocks.append(Lines(kept, kind="reading", title=f"What {title.partition(':')[0]} says", show=8))
    if node["target"].value == "table2" and restored:
        made.answers.append(
            f"{node['rows'][0]['design']['llm'].text()} restores {len(better)} of {plural(restored, 'task')} clearly above the "
            f"degraded input{f' ({listed(better)})' if better else ''}"
        )
    if "sheets" in node:
        for sheet in node["sheets"].each():
            made.blocks += _slides(sheet, source, f"{title.partition(':')[0]}, {sheet['title'].text()}")
    else:
        made.blocks += _pictures(node["pictures"], source, title)


def _runs(source: Source, made: Section) -> None:
    """A run's own evaluations, or those of `restore eval`."""
    train = source.kind == "restore-train"
    rows, galleries = [], list[Block]()
    for found in source.node["evaluations" if train else "results"].each():
        design = (source.node if train else found)["design"]
        label = design["encoder"].text() + (f" / {design['llm'].text()}" if design["how"].value != "linear" else "")
        name = source.name if train else found["checkpoint"].text()
        task, data = found["task"].text(), found["data"]["name"].text()
        rows.append(
            [Cell(name), Cell(f"{design['how'].text()} of {label}"), Cell(f"{task} on {data}"), *_figures(found)]
        )
        if "sheet" in found:
            galleries += _slides(found["sheet"], source, f"{name}, {task} on {data}")
        else:
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


# --- pictures ---


def _slides(node: Node, source: Source, title: str) -> Iterator[Block]:
    """A gallery with a slider over each picture, from what was given to what came out."""
    sheet = images.sheet(node, source.folder)
    if sheet is None:
        return
    labels = list(sheet)
    pictures = [[images.uri(row[i]) for row in sheet.values()] for i in range(min(SHOWN, len(sheet[labels[0]])))]
    middle = [
        label
        for label in labels
        if label not in ("given", "truth") and not label.endswith((" alone", "encoder + decoder"))
    ]
    left, right = labels[0], (middle or labels[-1:])[0]
    yield Slides(title, labels, pictures, left, right)


def _pictures(names: Node, source: Source, title: str) -> Iterator[Block]:
    """Grids as they are, of results without a contact sheet."""
    for node in names.each(optional=True):
        uri = images.whole(node, source.folder)
        if uri:
            yield Picture(uri, f"Rows of images of {title}: what was given, what was made of it, the truth", title)
