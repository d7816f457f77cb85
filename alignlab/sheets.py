"""Contact sheets: pictures of one size in one lossless file, in rows and columns without gaps, and what lies where.

A grid with labels is for people; a sheet is for the report, which shows its pictures one by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignlab import files

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

MOST = 4096  # pixels of a picture's side, and pictures of a sheet: more is no contact sheet


def save_sheet(rows: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """Write rows of pictures (label -> float `[N, 3, H, W]` in 0..1) as a PNG file, and say what lies where, as JSON.

    Raises ValueError for rows of different shapes.
    """
    import torch
    from PIL import Image

    shapes = {tuple(images.shape) for images in rows.values()}
    if len(shapes) != 1 or next(iter(shapes))[0] < 1:
        raise ValueError(f"rows must be pictures of one shape, one at least, got {sorted(shapes)}")
    ((n, _, height, width),) = shapes
    whole = torch.stack([images.detach().float().cpu().clamp(0, 1) for images in rows.values()])  # [R, N, 3, H, W]
    flat = whole.permute(0, 3, 1, 4, 2).reshape(len(rows) * height, n * width, 3)
    with files.whole(path) as unfinished:
        Image.fromarray(flat.mul(255).round().byte().numpy()).save(unfinished, format="PNG", optimize=True)
    return {"file": path.name, "rows": list(rows), "n": n, "width": width, "height": height}


def cut_sheet(path: Path, described: Mapping[str, Any]) -> dict[str, list[Image.Image]]:
    """The pictures of a sheet by row, as `save_sheet` described it. Raises ValueError where the file is another."""
    from PIL import Image

    rows, (n, width, height) = described["rows"], (described[key] for key in ("n", "width", "height"))
    if not all(isinstance(x, int) and 0 < x <= MOST for x in (n, width, height)) or n * len(rows) > MOST:
        raise ValueError(f"it is described as {len(rows)} rows of {n} pictures of {width} x {height}")
    try:
        with Image.open(path, formats=("PNG",)) as sheet:
            if sheet.size != (n * width, len(rows) * height):
                raise ValueError(
                    f"it has {sheet.size[0]} x {sheet.size[1]} pixels, not {n * width} x {len(rows) * height}"
                )
            pixels = sheet.convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"it is no picture: {error}") from error
    return {
        str(label): [pixels.crop((i * width, j * height, (i + 1) * width, (j + 1) * height)) for i in range(n)]
        for j, label in enumerate(rows)
    }
