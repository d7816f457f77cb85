"""Pictures of an alignment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

if TYPE_CHECKING:
    from alignlab.alignment.result import Alignment


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
    return Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="#ff3b30", linewidth=2)
