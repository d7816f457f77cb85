"""Figures as SVG that takes its colours from the page: text and axes follow light and dark."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.patches import Rectangle

from alignlab.report.blocks import Figure, Hover, number

INK, FAINT = "#010101", "#020202"  # never drawn so: the page's own colours take their place
SERIES = ("#2f7fd1", "#d1660f", "#2a9d4e", "#9557c7", "#c2378b", "#8a7a2b", "#16949c", "#c0392b")
STROKES = ("-", "-.", ":")  # of curves beyond the colours
MARK = "#ff3b30"
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "alignlab",
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # a dollar in a name is a dollar
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


def style() -> AbstractContextManager[None]:
    """Draw figures inside of it."""
    return rc_context(_STYLE)  # type: ignore[arg-type]


def svg(drawing: Drawing) -> Markup:
    """The SVG of a drawing made in `style`, to be put into a page: hidden from screen readers, which read its caption."""
    out = io.StringIO()
    with style():
        drawing.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    own = f"f{hashlib.sha1(text.encode()).hexdigest()[:8]}-"  # one page has many drawings, and every id once
    text = re.sub(r'\bid="([^"]*)"', rf'id="{own}\1"', text)
    text = re.sub(r"url\(#([^)]*)\)", rf"url(#{own}\1)", text)
    text = re.sub(r'xlink:href="#([^"]*)"', rf'xlink:href="#{own}\1"', text)
    text = text.replace(INK, "currentColor").replace(FAINT, "var(--line)")
    # The page says how large it is; matplotlib has escaped all text in it.
    text = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", text, count=1)
    return Markup(text.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1))


def short(name: str, most: int = 28) -> str:
    """A name that fits an axis, on one line."""
    plain = " ".join("".join(c if c.isprintable() else " " for c in name).split())
    return plain if len(plain) <= most else plain[: most - 1] + "…"


# --- heatmaps ---


def heatmap(
    matrix: np.ndarray,
    names: tuple[str, str],
    *,
    title: str,
    caption: str,
    best: tuple[int, int] | None = None,
    null: tuple[float, float] | None = None,
    first: tuple[int, int] = (0, 0),
    high: float | None = None,
    beside: str = "",
) -> Figure:
    """Values of `[rows, columns]`, row 0 at the bottom; `null` (mean, sd) is a band on the scale; nan is left empty.

    `names` are what a row and a column is ("mae layer"); their numbers begin with `first`. `high` ends the scale of maps that
    are to be compared (default: the largest value).
    """
    rows, columns = matrix.shape
    with style():
        drawing = Drawing(figsize=(min(9.0, max(4.2, 0.2 * columns + 1.9)), min(6.5, max(2.3, 0.2 * rows + 1.2))))
        axes, bar = _coloured(drawing, matrix, high)
        if best is not None:
            axes.add_patch(Rectangle((best[1] - 0.5, best[0] - 0.5), 1, 1, fill=False, edgecolor=MARK, linewidth=2))
        across, up = range(0, columns, max(1, columns // 10)), range(0, rows, max(1, rows // 8))
        axes.set_xticks(across, [str(i + first[1]) for i in across])
        axes.set_yticks(up, [str(i + first[0]) for i in up])
        axes.set_ylabel(short(names[0]))
        axes.set_xlabel(short(names[1]))
        if null is not None:
            mean, sd = null
            bar.axhspan(mean - 2 * sd, mean + 2 * sd, color="white", alpha=0.55, linewidth=0)
            bar.axhline(mean, color=MARK, linewidth=1.6)
        made = svg(drawing)
    hover = Hover(
        box=_box(axes),
        rows=[f"{names[0]} {i + first[0]}" for i in range(rows)],
        columns=[f"{names[1]} {j + first[1]}" for j in range(columns)],
        values=[[number(float(x)) if np.isfinite(x) else "no number" for x in row] for row in matrix],
        beside=beside,
    )
    return Figure(made, title, caption, least=max(300, min(620, 14 * columns + 140)), hover=hover)


def grid(
    matrix: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[str]],
    *,
    title: str,
    caption: str,
) -> Figure:
    """A few named rows and columns, coloured by `matrix` with its numbers in the cells; `values` are what hovering tells.

    The first row is on top; nan is left empty.
    """
    with style():
        drawing = Drawing(figsize=(max(6.5, 1.1 * len(columns) + 2.4), max(2.0, 0.4 * len(rows) + 1.0)))
        flipped = matrix[::-1]  # a heatmap's row 0 is at the bottom
        axes, _ = _coloured(drawing, flipped)
        low, high = axes.images[0].get_clim()
        for (i, j), x in np.ndenumerate(flipped):
            if np.isfinite(x):
                light = x > low + 0.6 * (high - low)
                axes.text(j, i, number(float(x)), ha="center", va="center", color="#111111" if light else "#ffffff")
        turned = sum(map(len, columns)) > 12 * len(columns)
        axes.set_xticks(
            range(len(columns)),
            [short(name) for name in columns],
            rotation=20 if turned else 0,
            ha="right" if turned else "center",
        )
        axes.set_yticks(range(len(rows)), [short(name) for name in reversed(rows)])
        made = svg(drawing)
    hover = Hover(box=_box(axes), rows=list(reversed(rows)), columns=list(columns), values=list(reversed(values)))
    return Figure(made, title, caption, least=max(300, min(620, 90 * len(columns) + 160)), hover=hover)


def _coloured(drawing: Drawing, matrix: np.ndarray, high: float | None = None) -> tuple[Axes, Axes]:
    """The cells and their scale."""
    drawing.set_layout_engine("constrained")
    axes = drawing.add_subplot()
    axes.grid(False)
    low, high = min(0.0, float(np.nanmin(matrix))), float(np.nanmax(matrix)) if high is None else high
    high = high if high > low else low + 1e-6
    image = axes.imshow(matrix, aspect="auto", origin="lower", cmap="viridis", vmin=low, vmax=high)
    bar = drawing.colorbar(image, ax=axes)
    bar.ax.grid(False)
    return axes, bar.ax


def _box(axes: Axes) -> tuple[float, float, float, float]:
    """Where the cells are, once the drawing was laid out."""
    box = axes.get_position()
    return round(box.x0, 4), round(1 - box.y1, 4), round(box.width, 4), round(box.height, 4)


# --- curves along depth ---


@dataclass(frozen=True)
class Curve:
    """Values along `at`, with intervals where there are any; `level` is a horizontal line with its band instead. One without
    a `label` is not in the legend.
    """

    label: str
    at: Sequence[float] = ()
    values: Sequence[float | None] = ()
    intervals: Sequence[tuple[float, float] | None] = ()
    level: float | None = None
    band: tuple[float, float] | None = None
    colour: str = ""
    dashed: bool = False
    stroke: str = "-"


def curves(
    panels: Mapping[str, Sequence[Curve]], ylabel: str, *, alt: str, caption: str, share: bool = True, log: bool = False
) -> Figure:
    """Panels (the label of their x axis -> curves) side by side, one legend below."""
    with style():
        wide = 4.6 * len(panels) + (1.0 if len(panels) == 1 else 0.4)
        labels = {short(curve.label, 40) for found in panels.values() for curve in found if curve.label}
        rows = len(labels) / max(1, int(15 * wide / max(map(len, labels), default=1)) // 2)  # of the legend, about
        drawing = Drawing(figsize=(wide, 3.4 + 0.17 * max(0.0, rows - 2)), layout="constrained")
        grid = drawing.subplots(1, len(panels), sharey=share, squeeze=False)[0]
        colours: dict[str, str] = {}
        handles: dict[str, Artist] = {}
        for axes, (xlabel, found) in zip(grid, panels.items(), strict=True):
            for curve in found:
                colour = curve.colour or colours.setdefault(curve.label, SERIES[len(colours) % len(SERIES)])
                line = _curve(axes, curve, colour)
                if curve.label:
                    handles.setdefault(short(curve.label, 40), line)
            axes.set_xlabel(short(xlabel, 40))
            if log:
                axes.set_yscale("log")
        grid[0].set_ylabel(short(ylabel, 48))
        _legend(drawing, handles)
        return Figure(svg(drawing), alt, caption, least=300 * len(panels) if len(panels) > 1 else 420)


def _legend(drawing: Drawing, handles: Mapping[str, Artist]) -> None:
    """Below, in as many columns as are not wider than the drawing: what is, is cut off."""
    for columns in range(min(4, len(handles)), 0, -1):
        legend = drawing.legend(
            list(handles.values()), list(handles), loc="outside lower center", ncols=columns, fontsize=8
        )
        if columns == 1 or legend.get_window_extent().width <= 0.97 * drawing.bbox.width:
            return
        legend.remove()


def _curve(axes: Axes, curve: Curve, colour: str) -> Artist:
    stroke = "--" if curve.dashed else curve.stroke
    if curve.level is not None:
        if curve.band is not None:
            axes.axhspan(*curve.band, color=colour, alpha=0.18, linewidth=0)
        return axes.axhline(curve.level, color=colour, linestyle=stroke, linewidth=1.4)
    kept = [(x, y) for x, y in zip(curve.at, curve.values, strict=True) if y is not None]
    (line,) = (
        axes.plot(*zip(*kept, strict=True), stroke, color=colour, marker="." if len(kept) < 100 else "", linewidth=1.6)
        if kept
        else axes.plot([], [])
    )
    spans = [(x, span[0], span[1]) for x, span in zip(curve.at, curve.intervals, strict=False) if span is not None]
    if len(spans) > 1:
        at, low, high = zip(*spans, strict=True)
        axes.fill_between(at, low, high, color=colour, alpha=0.18, linewidth=0)
    return line


# --- points with intervals ---


@dataclass(frozen=True)
class Dot:
    """A value with its interval in a row of a `forest`."""

    value: float | None
    interval: tuple[float, float] | None = None


def forest(rows: Mapping[str, Mapping[str, Dot]], xlabel: str, *, alt: str, caption: str, zero: bool = False) -> Figure:
    """Row -> series -> a dot with its interval, the rows from top to bottom."""
    series = list(dict.fromkeys(name for found in rows.values() for name in found))
    with style():
        drawing = Drawing(figsize=(6.4, 0.34 * len(rows) + 1.3), layout="constrained")
        axes = drawing.add_subplot()
        if zero:
            axes.axvline(0, color=INK, linewidth=0.9)
        for at, found in enumerate(rows.values()):
            for name, dot in found.items():
                if dot.value is None:
                    continue
                place = series.index(name)
                y = at + 0.12 * (place - (len(series) - 1) / 2)
                colour = SERIES[place % len(SERIES)]
                if dot.interval is not None:
                    axes.plot(dot.interval, (y, y), color=colour, linewidth=2.4, alpha=0.55, solid_capstyle="butt")
                axes.plot(dot.value, y, "o", color=colour, markersize=5)
        axes.set_yticks(range(len(rows)), [short(name) for name in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel(xlabel)
        if len(series) > 1:
            dots = (axes.plot([], [], "o-", color=SERIES[i % len(SERIES)])[0] for i in range(len(series)))
            _legend(drawing, dict(zip(map(short, series), dots, strict=True)))
        return Figure(svg(drawing), alt, caption, least=320)


def scatter(
    points: Sequence[tuple[str, str, float, float, tuple[float, float] | None]],
    labels: tuple[str, str],
    *,
    alt: str,
    caption: str,
) -> Figure:
    """Points (group, name, x, y, interval of y), a colour a group, each with its name."""
    groups = list(dict.fromkeys(group for group, *_ in points))
    with style():
        drawing = Drawing(figsize=(6.4, 4.2), layout="constrained")
        axes = drawing.add_subplot()
        handles: dict[str, Artist] = {}
        for place, group in enumerate(groups):
            colour = SERIES[place % len(SERIES)]
            ours = [point for point in points if point[0] == group]
            for number, (_, name, x, y, interval) in enumerate(ours):
                if interval is not None:
                    axes.plot((x, x), interval, color=colour, linewidth=1.4, alpha=0.5)
                beside = (4, 3 if number % 2 else -9)  # neighbours often lie close together
                axes.annotate(short(name, 18), (x, y), xytext=beside, textcoords="offset points", fontsize=7, color=INK)
            order = sorted(ours, key=lambda point: point[2])
            (handles[short(group)],) = axes.plot(
                [p[2] for p in order], [p[3] for p in order], "o", color=colour, markersize=5
            )
        axes.set_xlabel(short(labels[0], 60))
        axes.set_ylabel(short(labels[1], 60))
        if len(groups) > 1:
            _legend(drawing, handles)
        return Figure(svg(drawing), alt, caption)
