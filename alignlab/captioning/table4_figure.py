"""Table 4 as a picture: what came out here above, the paper's numbers, of other models, in panels of their own below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignlab.captioning.table4_columns import PAPERS
from alignlab.files import save_figure

HERE, CONTROL, GREY, CEILING = "#1f6fb4", "#d1660f", "#6e6e6e", "#2a9d4e"


def save_bars(
    rows: Sequence[Mapping[str, Any]],
    human: Mapping[str, Any] | None,
    published: Mapping[str, Mapping[str, float]],
    path: Path,
    title: str,
) -> None:
    """Write a panel a column: scores with 95% intervals, what shuffled captions and pairings score, people's captions."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    shown = [row for row in rows if row["columns"]]
    tall = 0.34 * max(len(shown), 1) + 0.34 * len(published) + 2.3
    figure = Figure(figsize=(13.2, tall), layout="constrained")
    grid = figure.subplots(2, len(PAPERS), height_ratios=(max(len(shown), 1), len(published)), squeeze=False)
    for axes, column in zip(grid[0], PAPERS, strict=True):
        for at, row in enumerate(shown):
            _point(axes, at, row["columns"].get(column), CONTROL if row["control"] else HERE)
        ceiling = (human or {"columns": {}})["columns"].get(column)
        if ceiling is not None:
            axes.axvline(ceiling["score"], color=CEILING, linestyle="--", linewidth=1.4)
        _panel(axes, [row["name"] for row in shown], column, column == PAPERS[0])
    for axes, column in zip(grid[1], PAPERS, strict=True):
        for at, figures in enumerate(published.values()):
            axes.plot(figures[column], at, "s", color=GREY, markersize=6)
        _panel(axes, list(published), f"the paper: {column}", column == PAPERS[0])
    keys = [
        Line2D([], [], color=HERE, marker="o", linewidth=2.2, label="here, 95% interval"),
        Line2D([], [], color=CONTROL, marker="o", linewidth=2.2, label="random encoder"),
        Line2D([], [], color=GREY, marker="|", linewidth=0, markersize=9, markeredgewidth=1.6, label="shuffled"),
        Line2D([], [], color=CEILING, linestyle="--", linewidth=1.4, label="held-out human captions"),
        Line2D([], [], color=GREY, marker="s", linewidth=0, label="the paper, its models and judge"),
    ]
    if not any(row["control"] for row in shown):
        del keys[1]
    figure.legend(handles=keys, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path, dpi=130)


def _point(axes: Any, at: int, found: Mapping[str, Any] | None, colour: str) -> None:
    if found is None or found["score"] is None:
        return
    if found["ci95"] is not None:
        axes.plot(found["ci95"], (at, at), color=colour, linewidth=2.2, alpha=0.6)
    axes.plot(found["score"], at, "o", color=colour, markersize=6)
    if found.get("baseline") is not None:
        axes.plot(found["baseline"], at, "|", color=GREY, markersize=11, markeredgewidth=1.8)


def _panel(axes: Any, names: Sequence[str], title: str, named: bool) -> None:
    axes.set_yticks(range(len(names)), names if named else [""] * len(names), fontsize=8)
    axes.set_ylim(max(len(names), 1) - 0.5, -0.5)
    low, high = axes.get_xlim()
    axes.set_xlim(min(0.0, low), high + 0.02 * (high - min(0.0, low)))
    axes.set_title(title, fontsize=9)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
