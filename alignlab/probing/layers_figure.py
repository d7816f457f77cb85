"""The picture of `alignlab probe layers`: PSNR by layer, the baselines as bands (Fig. 12 of the LM4LV paper)."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOUR, MARK, LINE = "#1f6fb4", "#ff3b30", "#6e6e6e"
BANDS = {"mlp": ("#d1660f", "MLP"), "random": ("#3a923a", "random layer"), "linear": ("#7d5ba6", "one linear layer")}
LINES = {"degraded": (":", "degraded"), "alone": ("--", "encoder + decoder alone")}


def curve(result: dict[str, Any]) -> Figure:
    """PSNR (above), and what it is more than that of one linear layer, over the same images and seeds (below): pictures differ
    far more than layers do. Means with 95% intervals over images and seeds; what has no finite PSNR is left out.
    """
    rows = [row for row in result["layers"] if row["psnr"]["mean"] is not None]
    figure = Figure(figsize=(max(6.4, 0.26 * len(rows) + 2.4), 6.4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for name, (style, label) in LINES.items():
        if result[name]["psnr"]["mean"] is not None:
            above.axhline(result[name]["psnr"]["mean"], color=LINE, linestyle=style, linewidth=1.3, label=label)
    for name, (colour, label) in BANDS.items():
        _band(above, result[name]["psnr"], colour, label)
        if "over_linear" in result[name]:
            _band(below, result[name]["over_linear"]["psnr"], colour, label)
    below.axhline(0, color=BANDS["linear"][0], linewidth=1.3)
    _points(above, [(row["layer"], row["psnr"]) for row in rows])
    _points(below, [(row["layer"], row["over_linear"]["psnr"]) for row in rows])
    for row in rows:
        if row["layer"] == result["best"]:
            label = f"best, layer {row['layer']}"
            above.plot(row["layer"], row["psnr"]["mean"], "o", color=MARK, markersize=7, zorder=5, label=label)
    layers = [row["layer"] for row in rows]
    below.set_xticks(layers if len(layers) <= 16 else [n for n in layers if n % 2 == 0])
    below.set_xlabel(f"{result['llm']} layer")
    above.set_ylabel("PSNR in dB")
    below.set_ylabel("dB over one linear layer")
    seeds, n = result["seeds"], result["test"]["n"]
    above.set_title(f"{result['task']}, {result['encoder']}   {n} images, {seeds} seed{'s' * (seeds > 1)}", fontsize=10)
    figure.legend(*above.get_legend_handles_labels(), loc="outside right upper", fontsize=8, frameon=False)
    return figure


def _band(axes: Axes, found: dict[str, Any], colour: str, label: str) -> None:
    if found["mean"] is not None:
        axes.axhspan(*found["ci95"], color=colour, alpha=0.13, linewidth=0)
        axes.axhline(found["mean"], color=colour, linewidth=1.3, label=label)


def _points(axes: Axes, found: list[tuple[int, dict[str, Any]]]) -> None:
    """A layer's mean and interval each."""
    shown = [(layer, one["mean"], one["ci95"]) for layer, one in found if one["mean"] is not None]
    if shown:
        layers, means, ends = zip(*shown, strict=True)
        reach = [[abs(end[side] - mean) for mean, end in zip(means, ends, strict=True)] for side in (0, 1)]
        how: dict[str, Any] = {"marker": "o", "markersize": 4, "linewidth": 1.6, "elinewidth": 1, "capsize": 2}
        axes.errorbar(layers, means, yerr=reach, color=COLOUR, label="one frozen layer", **how)
