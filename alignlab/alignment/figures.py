"""Pictures of an alignment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

if TYPE_CHECKING:
    import pandas as pd

    from alignlab.alignment.compare import Standing
    from alignlab.alignment.result import Alignment

X_COLOUR, Y_COLOUR, GREY, MARK = "#1f6fb4", "#d1660f", "#6e6e6e", "#ff3b30"


def heatmap(result: Alignment, metric: str) -> Figure:
    """Scores of all layer pairs, encoder layers upwards, the best cell framed and named in the title."""
    scores, best = result.matrix(metric), result.best(metric)
    rows, columns = scores.shape
    figure = Figure(figsize=(max(4.2, 0.26 * columns + 2.2), max(2.6, 0.26 * rows + 1.7)), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(scores, aspect="auto", origin="lower", cmap="viridis", vmin=min(0.0, float(scores.min())))
    axes.add_patch(_frame(best.y_layer, best.x_layer))
    axes.set_xlabel(f"{result.y_name} layer")
    axes.set_ylabel(f"{result.x_name} layer")
    axes.set_xticks(range(0, columns, max(1, columns // 10)))
    axes.set_yticks(range(0, rows, max(1, rows // 10)))
    shuffled = "" if best.null_mean is None else f"   shuffled {best.null_mean:.3f}"
    axes.set_title(
        f"{metric}   best {best.score:.3f} at ({best.x_layer}, {best.y_layer}){shuffled}   N = {result.n}", fontsize=10
    )
    figure.colorbar(image, ax=axes)
    return figure


def _frame(column: int, row: int) -> Rectangle:
    return Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=MARK, linewidth=2)


def profile(result: Alignment, metric: str) -> Figure:
    """Scores along the depth of x (left) and of y (right).

    At each layer the best score over the other model's layers, and their mean as a thin line; dashed what unrelated items
    give on average, thick and thin alike; dotted the mean of the null's maximum over all pairs of layers. Layers that are
    the same for every item are left out.
    """
    best, found = result.best(metric), result.metrics[metric]
    pairs = np.ix_(*found.measured)
    scores, chance = found.matrix[pairs], found.chance[pairs]
    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    sides = (
        (left, result.x_name, X_COLOUR, 0, best.x_layer),
        (right, result.y_name, Y_COLOUR, 1, best.y_layer),
    )
    for axes, name, colour, side, marked in sides:
        if scores.size:
            _along_depth(axes, found.measured[side], scores, chance, 1 - side, colour)
            axes.plot(marked, best.score, "o", color=MARK, markersize=7, zorder=5)
        if best.null_mean is not None:
            axes.axhline(best.null_mean, color=GREY, linestyle=":", linewidth=1.4)
        _depth_axes(axes, name, found.matrix.shape[side])
    left.set_ylim(bottom=min(0.0, left.get_ylim()[0]))
    left.set_ylabel(metric)
    keys = [
        Line2D([], [], color="black", marker=".", linewidth=1.8, label="best over the other's layers"),
        Line2D([], [], color="black", linewidth=0.8, label="their mean"),
        Line2D([], [], color=GREY, linestyle="--", linewidth=1.4, label="chance, best and mean likewise"),
        Line2D([], [], color=GREY, linestyle=":", linewidth=1.4, label="best of all pairs, shuffled"),
        Line2D([], [], color=MARK, marker="o", linewidth=0, label=f"best, ({best.x_layer}, {best.y_layer})"),
    ]
    shown = (True, True, not np.isnan(chance).any(), best.null_mean is not None, True)
    handles = [key for key, is_shown in zip(keys, shown, strict=True) if is_shown]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=8, frameon=False, columnspacing=1.2)
    figure.suptitle(f"{metric}   {result.x_name} and {result.y_name}   N = {result.n}", fontsize=10)
    return figure


def _along_depth(
    axes: Axes, layers: list[int], scores: np.ndarray, chance: np.ndarray, other: int, colour: str
) -> None:
    axes.plot(layers, scores.max(other), ".-", color=colour, linewidth=1.8)
    axes.plot(layers, scores.mean(other), color=colour, linewidth=0.8)
    if not np.isnan(chance).any():
        axes.plot(layers, chance.max(other), "--", color=GREY, linewidth=1.4)
        axes.plot(layers, chance.mean(other), "--", color=GREY, linewidth=0.7)


def _depth_axes(axes: Axes, name: str, depth: int) -> None:
    axes.set_xlabel(f"{name} layer")
    axes.set_xticks(range(0, depth, -(-depth // 13)))
    margin = max(0.4, 0.025 * depth)
    axes.set_xlim(-margin, depth - 1 + margin)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if depth > 1:
        relative = axes.secondary_xaxis(
            "top", functions=(lambda v: np.divide(v, depth - 1), lambda v: np.multiply(v, depth - 1))
        )
        relative.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        relative.tick_params(labelsize=7, colors=GREY, length=2)
        relative.set_xlabel("relative depth", fontsize=7, color=GREY)
        relative.spines["top"].set_visible(False)


def clustermap(matrix: pd.DataFrame, title: str, label: str) -> Figure:
    """An annotated heatmap, rows and columns ordered and joined by average linkage; plain where that is not possible."""
    import seaborn

    clustered = min(matrix.shape) > 1 and not matrix.isna().to_numpy().any()
    rows, columns = matrix.shape
    width = max(0.62, 0.075 * (max(map(len, matrix.columns)) if columns > 1 else 8))
    size = (width * columns + 0.075 * max(map(len, matrix.index)) + 2.2, 0.38 * rows + 2.2)
    figure = Figure(figsize=(max(4.2, size[0]), max(2.6, size[1])), layout="constrained")
    if clustered:
        grid = figure.add_gridspec(2, 2, width_ratios=(0.7, 0.62 * columns), height_ratios=(0.55, 0.38 * rows))
        axes = figure.add_subplot(grid[1, 1])
        order = _dendrogram(figure.add_subplot(grid[1, 0]), matrix.to_numpy(), "left")
        across = _dendrogram(figure.add_subplot(grid[0, 1]), matrix.to_numpy().T, "top")
        matrix = matrix.iloc[order, across]
    else:
        axes = figure.add_subplot()
    whole = label in ("x_layer", "y_layer")
    style = {"annot": True, "fmt": ".0f" if whole else ".3f", "annot_kws": {"fontsize": 8}, "linewidths": 0.5}
    seaborn.heatmap(matrix, ax=axes, cmap="viridis", cbar_kws={"label": label}, **style)
    axes.set_facecolor("#e4e4e4")
    axes.set(xlabel="", ylabel="")
    axes.tick_params(axis="y", rotation=0)
    figure.suptitle(title, fontsize=10)
    return figure


def _dendrogram(axes: Axes, rows: np.ndarray, side: str) -> list[int]:
    """Draw the tree of the rows, and say in what order it has them."""
    from scipy.cluster.hierarchy import dendrogram, linkage

    tree = linkage(rows, "average", optimal_ordering=True)
    drawn = dendrogram(tree, ax=axes, orientation=side, color_threshold=0, above_threshold_color=GREY, no_labels=True)
    if side == "left":
        axes.invert_yaxis()  # a heatmap's first row is its uppermost
    axes.axis("off")
    return drawn["leaves"]


def rank_plot(panels: Mapping[str, list[Standing]], encoders: Sequence[str], title: str, label: str) -> Figure:
    """A panel for each language model, the best encoder uppermost: dots, intervals, and the null's mean as a tick."""
    columns = 2 if len(panels) == 4 else min(3, len(panels))
    lines = -(-len(panels) // columns)
    wide = 2.8 + 0.07 * max(map(len, encoders))
    figure = Figure(figsize=(max(6.2, wide * columns), lines * (0.3 * len(encoders) + 0.8) + 1.0), layout="constrained")
    grid = figure.subplots(lines, columns, sharex=True, squeeze=False)
    colours = _colours(encoders)
    for axes, (llm, standings) in zip(grid.flat, panels.items(), strict=False):
        _ranking(axes, standings, colours)
        axes.set_ylim(len(encoders) - 0.5, -0.5)
        axes.set_title(llm, fontsize=9)
        axes.tick_params(axis="x", labelsize=8)
    for at in range(len(panels), grid.size):
        grid.flat[at].set_axis_off()
    for axes in grid.flat[max(0, len(panels) - columns) : len(panels)]:
        axes.set_xlabel(label, fontsize=9)
        axes.tick_params(axis="x", labelbottom=True)  # in the last but one line too where there is no panel below
    handles = _ranking_keys([s for standings in panels.values() for s in standings], label)
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10)
    return figure


def _ranking_keys(standings: list[Standing], label: str) -> list[Line2D]:
    keys = [Line2D([], [], color=GREY, marker="o", linewidth=0, label=label)]
    if any(s.interval is not None for s in standings):
        keys[0] = Line2D([], [], color=GREY, marker="o", linewidth=2.2, label=f"{label}, 95% interval")
    tick: dict[str, Any] = {"marker": "|", "linewidth": 0}
    if any(s.null_mean is not None for s in standings):
        keys.append(Line2D([], [], color=GREY, markersize=9, markeredgewidth=1.6, label="shuffled, mean", **tick))
    if any(s.interval is not None for s in standings):
        keys.append(
            Line2D([], [], color="black", markersize=12, markeredgewidth=2.4, label="intervals all overlap", **tick)
        )
    return keys


def _colours(names: Sequence[str]) -> dict[str, tuple[float, ...]]:
    several = (
        colormaps["tab10"](range(len(names)))
        if len(names) <= 10
        else colormaps["turbo"](np.linspace(0.05, 0.95, len(names)))
    )
    return {name: tuple(colour) for name, colour in zip(names, several, strict=False)}


def _ranking(axes: Axes, standings: list[Standing], colours: Mapping[str, tuple[float, ...]]) -> None:
    for row, s in enumerate(standings):
        if s.interval is not None:
            axes.plot(s.interval, (row, row), color=colours[s.encoder], linewidth=2.2, alpha=0.6)
        axes.plot(s.value, row, "o", color=colours[s.encoder], markersize=6)
        if s.null_mean is not None:
            axes.plot(s.null_mean, row, "|", color=GREY, markersize=10, markeredgewidth=1.6)
    lane, reached = 0, -1
    for first, last in overlapping([s.interval for s in standings]):
        lane = (lane + 1) % 3 if first <= reached else 0  # runs that share ranks stand beside each other
        at, reached = 1.02 + 0.025 * lane, last
        where: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "clip_on": False}
        axes.plot((at, at), (first - 0.25, last + 0.25), color="black", linewidth=2.4, solid_capstyle="butt", **where)
    axes.set_yticks(range(len(standings)), [s.encoder for s in standings], fontsize=8)
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def overlapping(intervals: Sequence[tuple[float, float] | None]) -> list[tuple[int, int]]:
    """The longest runs of two or more neighbouring ranks whose intervals all overlap each other: (first, last).

    >>> overlapping([(5, 7), (4, 6), (3, 5.5), (1, 2), None])
    [(0, 2)]
    """
    runs: list[tuple[int, int]] = []
    for first in range(len(intervals)):
        low, high, last = -np.inf, np.inf, first - 1
        for interval in intervals[first:]:
            if interval is None or max(low, interval[0]) > min(high, interval[1]):
                break
            low, high, last = max(low, interval[0]), min(high, interval[1]), last + 1
        if last > first and not (runs and runs[-1][1] >= last):
            runs.append((first, last))
    return runs
