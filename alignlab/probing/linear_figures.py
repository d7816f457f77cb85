"""Pictures of linear probes: curves by layer with intervals, chance, shuffled pairings and control tasks."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

TEXT, IMAGE, GREY = "#d1660f", "#1f6fb4", "#6e6e6e"
RECALL_COLOURS = ("#08306b", "#2171b5", "#6baed6")


def _curve(
    axes: Axes, values: list[float | None], ends: list[list[float] | None] | None, colour: str, label: str, **how: Any
) -> None:
    layers = np.array([i for i, value in enumerate(values) if value is not None])
    axes.plot(
        layers, [values[i] for i in layers], color=colour, label=label, **{"marker": ".", "linewidth": 1.6, **how}
    )
    if ends is not None:
        band = np.array([ends[i] for i in layers])
        if band.size:
            axes.fill_between(layers, band[:, 0], band[:, 1], color=colour, alpha=0.18, linewidth=0)


def regression(pair: dict[str, Any], llm: str, encoder: str, n: int) -> Figure:
    """R2 (left) and retrieval both ways (middle, right) along the language model's layers, for one encoder layer."""
    figure = Figure(figsize=(12.5, 3.9), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    ways = (("text_to_image", f"{llm} → {encoder}", TEXT), ("image_to_text", f"{encoder} → {llm}", IMAGE))
    for key, label, colour in ways:
        _curve(left, pair[key]["r2"], pair[key]["ci95"], colour, label)
        if pair[key]["null_max"] is not None:
            _curve(
                left,
                pair[key]["null_max"],
                None,
                colour,
                f"{label}, shuffled at most",
                linestyle=":",
                marker="",
                linewidth=1.2,
            )
    left.axhline(0, color=GREY, linewidth=0.8)
    left.set_ylabel("R2, held-out items")
    for axes, (key, label, _) in zip((middle, right), ways, strict=True):
        for (k, found), colour in zip(pair[key]["recall"].items(), RECALL_COLOURS, strict=True):
            _curve(axes, found["value"], found["ci95"], colour, f"R@{k}")
            axes.axhline(found["chance"], color=colour, linestyle="--", linewidth=0.9)
        axes.set_ylabel(f"retrieval among {n}")
        axes.set_title(f"{label} (dashed: chance)", fontsize=9)
        axes.set_ylim(bottom=0)
    for axes in (left, middle, right):
        axes.set_xlabel(f"{llm} layer")
        axes.legend(fontsize=7, frameon=False)
    figure.suptitle(f"ridge regression, {encoder} layer {pair['encoder_layer']}   N = {n}", fontsize=10)
    return figure


def label(found: dict[str, Any]) -> Figure:
    """Accuracy, control task and majority class along the layers of the language model (left) and the encoder (right)."""
    figure = Figure(figsize=(9.4, 3.7), layout="constrained")
    for axes, side, colour in zip(figure.subplots(1, 2, sharey=True), found["sides"], (TEXT, IMAGE), strict=True):
        _curve(axes, side["accuracy"]["value"], side["accuracy"]["ci95"], colour, "accuracy")
        if (task := side["control"]) is not None:
            _curve(axes, task["value"], task["ci95"], GREY, "control task", marker="x", markersize=4)
        axes.axhline(found["majority"], color="black", linestyle="--", linewidth=1, label="largest class")
        axes.set_xlabel(f"{side['model']} layer")
        axes.legend(fontsize=8, frameon=False)
        axes.set_ylim(0, 1.02)
    figure.axes[0].set_ylabel("accuracy, held-out items")
    figure.suptitle(f"{found['label']}: {found['about']}   N = {found['n']}, {found['classes']} classes", fontsize=10)
    return figure
