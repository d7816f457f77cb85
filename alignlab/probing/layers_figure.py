"""The picture of `alignlab probe layers`: PSNR by layer, the baselines as bands (Fig. 12 of the LM4LV paper)."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

COLOUR, MARK, LINE = "#1f6fb4", "#ff3b30", "#6e6e6e"
BANDS = {"mlp": ("#d1660f", "MLP"), "random": ("#3a923a", "random layer"), "linear": ("#7d5ba6", "one linear layer")}
LINES = {"degraded": (":", "degraded"), "alone": ("--", "encoder + decoder alone")}


def curve(result: dict[str, Any]) -> Figure:
    """Means with 95% intervals over images and seeds; what has no finite PSNR is left out."""
    rows = [row for row in result["layers"] if row["psnr"]["mean"] is not None]
    figure = Figure(figsize=(max(6.4, 0.26 * len(rows) + 2.4), 4.2), layout="constrained")
    axes = figure.add_subplot()
    for name, (style, label) in LINES.items():
        if result[name]["psnr"]["mean"] is not None:
            axes.axhline(result[name]["psnr"]["mean"], color=LINE, linestyle=style, linewidth=1.3, label=label)
    for name, (colour, label) in BANDS.items():
        found = result[name]["psnr"]
        if found["mean"] is not None:
            axes.axhspan(*found["ci95"], color=colour, alpha=0.13, linewidth=0)
            axes.axhline(found["mean"], color=colour, linewidth=1.3, label=label)
    layers, means = [row["layer"] for row in rows], [row["psnr"]["mean"] for row in rows]
    if rows:
        reach = [[abs(row["psnr"]["ci95"][end] - row["psnr"]["mean"]) for row in rows] for end in (0, 1)]
        axes.errorbar(
            layers, means, yerr=reach, color=COLOUR, marker="o", markersize=4, linewidth=1.6, elinewidth=1, capsize=2,
            label="one frozen layer",
        )  # fmt: skip
        best = means.index(max(means))
        axes.plot(
            layers[best], means[best], "o", color=MARK, markersize=7, zorder=5, label=f"best, layer {layers[best]}"
        )
        axes.set_xticks(layers if len(layers) <= 16 else [n for n in layers if n % 2 == 0])
    axes.set_xlabel(f"{result['llm']} layer")
    axes.set_ylabel("PSNR in dB")
    seeds, n = result["seeds"], result["test"]["n"]
    axes.set_title(f"{result['task']}, {result['encoder']}   {n} images, {seeds} seed{'s' * (seeds > 1)}", fontsize=10)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=8, frameon=False)
    return figure
