"""Pictures with what was said of them, as one image file."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from alignlab.files import save_figure

if TYPE_CHECKING:
    from PIL import Image

COLUMNS = 4
SHOWN = COLUMNS**2
CELL, INCHES, LINE = 2.55, 1.25, 0.135  # inches: a cell's width, a picture's side, a line of text
WIDE, LINES = 42, 4  # characters in a line of text, and lines, before it is cut


def evenly(n: int, shown: int = SHOWN) -> list[int]:
    """Which of n things to show."""
    return sorted({i * n // min(shown, n) for i in range(min(shown, n))})


def save_gallery(
    images: Sequence[Image.Image], rows: Sequence[dict[str, str]], path: Path, title: str = "", columns: int = COLUMNS
) -> None:
    """Write images, under each its texts (label -> text), in `columns` columns, as a JPEG file.

    Raises ValueError for no images and for another number of texts.
    """
    from matplotlib.figure import Figure

    if not images or len(images) != len(rows):
        raise ValueError(f"there must be texts for every image, one at least, got {len(images)} and {len(rows)}")
    texts = [[_lines(label, words) for label, words in row.items()] for row in rows]
    tallest = max(sum(map(len, parts)) for parts in texts)
    head, height = 0.4 if title else 0.1, INCHES + LINE * tallest + 0.3
    wide, tall = CELL * columns, height * -(-len(images) // columns) + head
    figure = Figure(figsize=(wide, tall))
    for number, (image, parts) in enumerate(zip(images, texts, strict=True)):
        left, top = CELL * (number % columns), tall - head - height * (number // columns)
        # A square, in the middle of its cell's upper part.
        corner = ((left + (CELL - INCHES) / 2) / wide, (top - INCHES) / tall)
        cell = figure.add_axes((*corner, INCHES / wide, INCHES / tall))
        cell.imshow(image.convert("RGB"))
        cell.set_axis_off()
        below = top - INCHES - 0.05
        for lines, colour in zip(parts, ("black", *["#666666"] * len(parts)), strict=False):
            figure.text(
                (left + 0.08) / wide,
                below / tall,
                "\n".join(lines),
                color=colour,
                fontsize=7.5,
                linespacing=1.2,
                va="top",
                parse_math=False,  # a dollar is a dollar
            )
            below -= LINE * len(lines) + 0.02
    if title:
        figure.text(0.5, 1 - 0.1 / tall, title, fontsize=10, ha="center", va="top", parse_math=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a script that the font has not
        save_figure(figure, path, dpi=130, format="jpeg", pil_kwargs={"quality": 88})


def _lines(label: str, words: str) -> list[str]:
    said = " ".join(words.split()) or "(nothing)"
    return textwrap.wrap(f"{label}: {said}", WIDE, max_lines=LINES, placeholder=" ...")
