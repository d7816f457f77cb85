"""Rows of pictures with labels, as one image file."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from alignlab.files import save_figure

INCHES = 1.05  # a picture's side


def save_grid(rows: dict[str, Tensor], path: Path, title: str = "") -> None:
    """Write labelled rows of images (label -> float `[N, 3, H, W]` in 0..1, the same N) as a JPEG file."""
    from matplotlib.figure import Figure

    counts = {len(images) for images in rows.values()}
    if len(counts) != 1 or counts == {0}:
        raise ValueError(f"rows must hold the same number of images, one at least, got {sorted(counts)}")
    (columns,) = counts
    figure = Figure(
        figsize=(columns * INCHES + 1.3, len(rows) * INCHES + (0.35 if title else 0.05)), layout="constrained"
    )
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, (label, images) in zip(axes, rows.items(), strict=True):
        for cell, image in zip(line, images, strict=True):
            cell.imshow(image.detach().cpu().clamp(0, 1).permute(1, 2, 0).numpy())
            cell.set_xticks([])
            cell.set_yticks([])
            for edge in cell.spines.values():
                edge.set_visible(False)
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0, hspace=0)  # type: ignore[call-arg,union-attr]
    if title:
        figure.suptitle(title, fontsize=10)
    save_figure(figure, path, dpi=110, format="jpeg", pil_kwargs={"quality": 88})
