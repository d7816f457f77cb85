"""The adapters by themselves (Table 6, Fig. 11), alignment against restoration, and compute (App. B.4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from alignlab.analysis.correlation import tags
from alignlab.analysis.words import COMPARED, MEASURES, ROWS, measure, percent, si
from alignlab.report import figures, images
from alignlab.report.blocks import (
    Block,
    Cell,
    Fold,
    Lines,
    Paragraph,
    Picture,
    Section,
    Table,
    cell,
    listed,
    number,
    plural,
    with_interval,
)
from alignlab.report.node import Node
from alignlab.report.source import Source, of_kind

# What is cut off after a component, in words.
CUT = {"true": "true tokens", "written": "written ones"}
HIGHEST = 2.0  # of what is unexplained, in a figure

TESTS = {
    "points": "all points, as if independent",
    "within": "within encoders",
    "means": "means of encoders",
    "curves": "all points, whole encoders permuted",
}


def adapters(sources: Sequence[Source]) -> Section | None:
    made = Section(
        "adapters",
        "Adapters",
        lead="A = W_out W_in is what the trained layers do to a token without the language model between them. L depends on the "
        "scale of A, and D has no expectation for random matrices; the rows below them are the ones to compare.",
    )
    for source in of_kind(sources, "analyse-adapters"):
        for one in source.node["checkpoints"].each():
            _checkpoint(one, source, made)
    if made.blocks:
        random = "random: pairs of Gaussian layers of the same shapes and spread."
        made.blocks.append(Lines([*MEASURES, random], kind="note", title="What the rows are"))
    return made if made.blocks else None


def _checkpoint(node: Node, source: Source, made: Section) -> None:
    name = node["checkpoint"].text()
    where = [key for key, _ in node["coordinates"].entries()]
    rows, paper = [], list[str]()
    for key, (title, published) in ROWS.items():
        line = [Cell(title)]
        for one in where:
            found = node["coordinates"][one]
            value = found["trained"][key].number(optional=True)
            random = found["random"][key]
            low, middle, high = (random[end].number(optional=True) for end in ("low", "median", "high"))
            line += [Cell(measure(key, value), value)]
            spread = f"{measure(key, low, 2)} to {measure(key, high, 2)}"
            line += [Cell(f"{measure(key, middle)} ({spread})", middle)]
        identity = node["identity"][key].number(optional=True)
        line.append(Cell(measure(key, identity), identity))
        rows.append(line)
        if published:
            theirs = {what: source.node["paper"][published][what].number(optional=True) for what in ("Ours", "Random")}
            paper.append(f"{published} {measure(key, theirs['Ours'])}, random {measure(key, theirs['Random'])}")
    headings = ["", *(text for one in where for text in (f"{one}: trained", f"{one}: random (5% to 95%)")), "identity"]
    tasks = ", ".join(node["design"]["tasks"].texts())
    between = node["design"]["encoder"].text()
    if node["llm_width"].value:  # an expert reads none
        between += f" and {node['design']['llm'].text()}"
    made.blocks.append(
        Table(
            f"{name}: {between}, {tasks}; A is "
            f"{number(node['width'].number(), 0)} × {number(node['width'].number(), 0)}",
            headings,
            rows,
            numeric=range(1, len(headings)),
            note=f"The paper, of its models: {'; '.join(paper)}.",
        )
    )
    for one in where[:1]:
        found = node["coordinates"][one]
        ratio, median = (found["trained"][key].number(optional=True) for key in ("ratio", "diagonal_median"))
        high = found["random"]["diagonal_median"]["high"].number(optional=True)
        if ratio is not None and high is not None:  # no median is one that is infinite
            stands = "stands out" if median is None or median > high else "does not stand out"
            made.answers.append(
                f"of {name} alpha I makes up {1 - ratio:.1%} of the squares of A = W_out W_in, whose diagonal {stands}"
            )
    for picture in list(node["pictures"].each(optional=True))[:1]:
        uri = images.whole(picture, source.folder)
        if uri:
            made.blocks.append(Picture(uri, f"The entries of A of {name}", f"{name}: entries of A"))
    made.blocks += _singular(node, name, where)


def _singular(node: Node, name: str, where: Sequence[str]) -> Iterator[Block]:
    """The singular values of A beside those of random layers."""
    panels: dict[str, list[figures.Curve]] = {}
    for one in where:
        found = node["coordinates"][one]
        values = found["singular_values"].numbers()
        low, middle, high = (found["random_singular_values"][end].numbers() for end in ("low", "median", "high"))
        spans = [None if a is None or b is None else (a, b) for a, b in zip(low, high, strict=False)]
        heading = f"number of the singular value, {one} features"
        panels[heading] = [
            figures.Curve("trained", range(1, len(values) + 1), values),
            figures.Curve("random layers (5% to 95%)", range(1, len(middle) + 1), middle, spans),
        ]
        alpha = found["trained"]["alpha"].number(optional=True)
        if alpha:
            panels[heading].append(figures.Curve("|alpha|", level=abs(alpha), dashed=True))
    if panels:
        alt = f"Singular values of A of {name}, largest first, and those of random layers"
        yield figures.curves(
            panels, "singular value", alt=alt, caption=f"{alt}; dashed, |alpha|.", share=False, log=True
        )


def components(sources: Sequence[Source]) -> Section | None:
    """How much of each principal component of the encoder's tokens is written, and what it is worth."""
    made = Section(
        "components",
        "What is written of the tokens",
        lead="The principal components of the true tokens, the largest first. Unexplained: squared errors over the true tokens' "
        "squared deviations from their mean, 0 exact, 100% no better than the mean. dB: of the decoded picture against the "
        "answer, with the components up to here (the mean in place of the others), or with these alone as written.",
    )
    for source in of_kind(sources, "analyse-components"):
        for one in source.node["checkpoints"].each():
            _written(one, made)
    return made if made.blocks else None


def _written(node: Node, made: Section) -> None:
    name, task = node["checkpoint"].text(), node["task"].text()
    # Null is what there is none of: a task that moves the picture, a model that reads nothing of its own.
    compared = [key for key in COMPARED if not ((one := node["carried"][key]).there and one.value is None)]
    rows, ends = [], list[float | None]()
    worth: dict[str, list[float | None]] = {key: [] for key in CUT}
    for band in node["bands"].each():
        first, last, share = (band[key].number() for key in ("first", "last", "share"))
        line = [Cell(f"{number(first, 0)} to {number(last, 0)}", first), Cell(percent(share), share)]
        for key in compared:
            found = band["unexplained"][key]
            value, interval = found["value"].number(optional=True), found["ci95"].interval()
            span = "" if interval is None else f" ({percent(interval[0])} to {percent(interval[1])})"
            line.append(Cell(f"{percent(value)}{span}", value))
        decibels = {key: band["psnr"][key]["mean"].number(optional=True) for key in (*CUT, "alone")}
        rows.append([*line, *(cell(value, 2) for value in decibels.values())])
        ends.append(last)
        for key in CUT:
            worth[key].append(decibels[key])
    if not rows:
        return
    headings = ["components", "variance", *(f"unexplained, {COMPARED[key]}" for key in compared)]
    headings += [f"dB, {CUT[key]} up to here" for key in CUT] + ["dB, these alone written"]
    carried = [
        (key, node["carried"][key]["value"].number(), node["carried"][key]["ci95"].interval()) for key in compared
    ]
    arrives = "; ".join(f"{COMPARED[key]} {with_interval(value, span, 1)}" for key, value, span in carried)
    whole = ((key, node["psnr"][key]["mean"].number(optional=True)) for key in ("true", *compared))
    painted = "; ".join(f"{(CUT | COMPARED)[key]} {number(value, 2)}" for key, value in whole)
    total = number(node["components"].number(), 0)
    made.blocks.append(
        Table(
            f"{name}, {task}: {node['design']['encoder'].text()} on {number(node['n'].number(), 0)} of "
            f"{node['data']['name'].text()}",
            headings,
            rows,
            numeric=range(1, len(headings)),
            note=f"Components' worth (the sum of what is explained of each), of {total}: {arrives}. All components, dB: {painted}.",
        )
    )
    if isinstance(node["reading"].value, str):
        made.answers.append(f"for {node['reading'].text().rstrip('.')}")
    else:
        node["reading"].text()
    unexplained = [
        figures.Curve(
            COMPARED[key], range(1, len(values) + 1), [None if x is None else min(x, HIGHEST) for x in values]
        )
        for key in compared
        if (values := node["unexplained"][key].numbers())
    ]
    known = [i for i, end in enumerate(ends) if end is not None]
    decoded = [
        figures.Curve(f"{CUT[key]} up to here", [ends[i] or 0.0 for i in known], [worth[key][i] for i in known])
        for key in CUT
    ]
    alt = f"Share of each component's variance that {name} leaves unexplained on {task}"
    if unexplained:
        unexplained.append(figures.Curve("no better than the mean", level=1.0, dashed=True))
        made.blocks.append(
            figures.curves(
                {"principal component": unexplained},
                "share of the variance unexplained",
                alt=alt,
                caption=f"{alt}; what is above {HIGHEST:.0f} is drawn there.",
            )
        )
    alt = f"PSNR of the first components alone, {name} on {task}"
    made.blocks.append(figures.curves({"principal components": decoded}, "PSNR (dB)", alt=alt, caption=f"{alt}."))


def correlation(sources: Sequence[Source]) -> Section | None:
    """Alignment against restoration: a point an encoder, language model and depth."""
    made = Section(
        "prediction",
        "Does alignment predict restoration?",
        lead="A point is one encoder before one language model (or its first K blocks). Points of one encoder are not "
        "independent, so the correlation is given over all points, within encoders, and over encoders. A score at a depth is "
        "the best with the language model's layer there, up to it the best with any layer so far.",
    )
    for source in of_kind(sources, "analyse-correlation"):
        node = source.node
        column = node["column"].text()
        points = list(node["points"].each())
        scores = [key for key, _ in points[0]["alignment"].entries()] if points else []
        about = f"{node['task'].text()} on {node['data'].text()}; alignment on {node['alignment_data'].text()}"
        rows = []
        for point in points:
            value = point["restoration"].number()
            line = [Cell(point["encoder"].text()), Cell(point["llm"].text())]
            line += [cell(point["alignment"][score].number()) for score in scores]
            rows.append([*line, Cell(with_interval(value, point["interval"].interval(), 2, signed=True), value)])
        models = [(point["encoder"].text(), point["llm"].text()) for point in points]
        try:
            names = tags(models)
        except ValueError:  # names that are none
            names = [" / ".join(pair) for pair in models]
        tested: list[list[Cell]] = []
        for score in scores:
            shown = [
                (p["encoder"].text(), name, x, y, p["interval"].interval())
                for p, name in zip(points, names, strict=True)
                if (x := p["alignment"][score].number()) is not None and (y := p["restoration"].number()) is not None
            ]
            tests = [one for one in node["correlations"].each() if one["score"].value == score]
            tested += [_test(score, one) for one in tests]
            if shown:
                made.blocks.append(
                    figures.scatter(
                        shown,
                        (score, f"{column} (dB)"),
                        alt=f"{column} of {len(shown)} points against {score}",
                        caption=f"{about}: {column} against {score}, with 95% intervals over images.",
                    )
                )
        if tested:
            made.blocks.append(
                Table(
                    "Correlations, with 95% intervals and p by permutation", ["score", "kind", *TESTS.values()], tested
                )
            )
        if rows:
            headings = ["encoder", "language model", *scores, f"{column} (dB)"]
            made.blocks.append(Table(f"Points: {about}", headings, rows, numeric=range(2, len(headings))))
        readings = node["readings"].texts()
        if readings:
            made.blocks.append(Lines(readings, kind="reading"))
            made.answers.append(f"whether alignment predicts {node['task'].text()}: {readings[0].rstrip('.')}")
        notes = [*node["notes"].texts(), *(f"without alignment: {x}" for x in node["missing"].texts())]
        notes += [f"left out: {x}" for x in node["left_out"].texts()]
        if notes:
            made.blocks.append(Lines(notes, kind="note"))
    return made if made.blocks else None


def _test(score: str, node: Node) -> list[Cell]:
    """A row: what the correlation is by each way to count the points."""
    line = [Cell(score), Cell(node["kind"].text())]
    for key in TESTS:
        one = node[key]
        r = None if one.there and one.value is None else one["r"].number(optional=True)
        if r is None:
            line.append(Cell("–"))
            continue
        span, p = one["ci95"].interval(), one["p"].number(optional=True)
        text = with_interval(r, span, 2, signed=True)
        line.append(Cell(text if p is None else f"{text}, p {p:.2g}", r))
    return line


def compute(sources: Sequence[Source]) -> Section | None:
    """What a restoration costs, counted twice (App. B.4)."""
    made = Section(
        "compute", "Compute", lead="Floating-point operations of one picture through the whole pipeline, counted twice."
    )
    for source in of_kind(sources, "analyse-compute"):
        node = source.node
        models = node["models"]
        published = node["paper"]["published"]
        theirs = {
            "encoder and decoder": published["mae_flop"].number(optional=True),
            "language model": published["llm_flop"].number(optional=True),
            "all": published["flop"].number(optional=True),
        }
        rows = []
        for part in node["parts"].each():
            name = part["part"].text()
            line = [Cell(name)]
            for key, optional in (
                ("parameters", True),
                ("tokens", True),
                ("formula_flop", False),
                ("torch_flop", False),
            ):
                value = part[key].number(optional=optional)
                line.append(Cell("–" if value is None else si(value) if "flop" in key else number(value, 0), value))
            seconds, share = part["seconds"].number(optional=True), part["share_of_peak"].number(optional=True)
            line.append(Cell("–" if seconds is None else f"{seconds:.3g} s", seconds))
            line.append(Cell("–" if share is None else f"{share:.0%}", share))
            paper = theirs.get(name)
            rows.append([*line, Cell("–" if paper is None else si(paper), paper, quiet=True)])
        if rows:
            whole = next((row[4].text for row in rows if row[0].text == "all"), None)
            if whole is not None:
                pair = f"{models['encoder'].text()} and {models['llm'].text()}"
                made.answers.append(f"one picture through {pair} takes {whole}FLOP")
            headings = [
                "part",
                "parameters",
                "tokens",
                "2 × tokens × parameters",
                "torch's counter",
                "time",
                "of the peak",
                "the paper",
            ]
            made.blocks.append(
                Table(
                    f"{models['encoder'].text()} and {models['llm'].text()}: FLOP", headings, rows, numeric=range(1, 8)
                )
            )
    return made if made.blocks else None


def plan(sources: Sequence[Source]) -> Section | None:
    """What runs would take that were not made: time, memory, downloads."""
    made = Section(
        "plan",
        "Plans",
        lead="What it would take to run these: computed from numbers of operations and the rate given, not measured.",
    )
    for source in of_kind(sources, "reproduce-plan"):
        node = source.node
        rows = []
        for row in node["rows"].each():
            design = row["design"]
            hours, memory = row["hours_left"].number(optional=True), row["memory_gb"].number(optional=True)
            images = row["images"].number()
            line = [Cell(row["run"].text()), Cell(", ".join(row["targets"].texts()) if "targets" in row else "–")]
            line += [Cell(row["state"].text()), Cell(design["encoder"].text())]
            reads = design["how"].value not in ("linear", "mlp", "transformer")
            line += [Cell(design["llm"].text() if reads and isinstance(design["llm"].value, str) else "–")]
            rows.append([*line, Cell(number(images, 0), images), cell(memory, 1), cell(hours, 1)])
        if rows:
            headings = ["run", "for", "state", "encoder", "language model", "images", "memory (GB)", "hours left"]
            rate = node["rate_tflops"].number(optional=True)
            how = f"at {number(rate, 2)} TFLOP/s, measured" if rate is not None else "on the paper's GPUs"
            title = f"{node['title'].text(source.name)}: {number(node['hours_left'].number(), 1)} hours left, {how}"
            needs = [need["name"].text() for need in node["weights"].each(optional=True) if need["here"].value is False]
            weights = f"{number(node['download_gb'].number(), 1)} GB of weights to get{f' ({listed(needs)})' if needs else ''}"
            at_most = f"{number(node['memory_gb'].number(), 1)} GB of memory at most{'' if rate is not None else ', on each GPU'}"
            made.blocks.append(Paragraph(f"{title}; {at_most}; {weights}."))
            time = number(node["hours_left"].number(), 1)
            made.answers.append(f"{plural(len(rows), 'run')} would take {time} hours {how}, and {at_most}")
            made.blocks.append(Fold(title, [Table(title, headings, rows, numeric=(5, 6, 7))]))
        needs = []
        for need in node["weights"].each(optional=True):
            state = "here" if need["here"].value else f"to get, {number(need['gb'].number(optional=True), 2)} GB"
            gated = ", gated" if need["gated"].value else ""
            needs.append(f"{need['name'].text()}: {state}{gated}")
        needs += [f"data: {text}" for text in node["data_missing"].texts()]
        if needs:
            made.blocks.append(Lines(needs, kind="note", title="Weights and data"))
    return made if made.blocks else None
