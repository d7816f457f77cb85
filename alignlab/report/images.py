"""Pictures of a result file, decoded and encoded anew as data URIs: nothing of a file but its pixels reaches the page."""

from __future__ import annotations

import base64
import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from alignlab.report.node import Node
from alignlab.sheets import cut_sheet

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("PNG", "JPEG", "WEBP")  # what commands write; Pillow would hand others to other programs
WIDEST = 1400  # pixels of a picture that is shown whole


def file_of(node: Node, folder: Path) -> Path | None:
    """The picture that a result names; None and a gap where it is not there, or not beside the result."""
    name = node.text(default="")
    if not name:
        if node.value == "":
            node.gaps.append(f"{node.place} names no picture")
        return None
    if Path(name).name != name or name.startswith("."):
        node.gaps.append(f"{node.place} is {name!r}, which is not beside the result")
        return None
    path = folder / name
    if not path.is_file() or path.is_symlink():
        node.gaps.append(f"{name} is not beside the result")
        return None
    return path


def uri(picture: Image.Image, quality: int = 90) -> str:
    """A small picture without losses, a larger one as JPEG."""
    out = io.BytesIO()
    small = picture.width * picture.height <= 96 * 96
    if small:
        picture.save(out, format="WEBP", lossless=True, method=6)
    else:
        picture.convert("RGB").save(out, format="JPEG", quality=quality, optimize=True)
    kind = "webp" if small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"


def whole(node: Node, folder: Path) -> str | None:
    """A picture as it is, not wider than the page shows."""
    from PIL import Image

    path = file_of(node, folder)
    if path is None:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as picture:
                made = picture.convert("RGB")
        made.thumbnail((WIDEST, 4 * WIDEST))
        return uri(made, quality=82)
    except (OSError, SyntaxError, ValueError, Warning, Image.DecompressionBombError) as error:
        node.gaps.append(f"{path.name} cannot be shown: {error}")
        return None


def sheet(node: Node, folder: Path) -> dict[str, list[Image.Image]] | None:
    """The pictures of a contact sheet by row; None and a gap where it is not there or damaged."""
    path = file_of(node["file"], folder)
    named = len(node["rows"].texts()) == sum(isinstance(one.value, str) for one in node["rows"].each())
    if path is None or not named:
        return None
    try:
        return cut_sheet(path, node.value)
    except (ValueError, KeyError, TypeError) as error:
        node.gaps.append(f"{path.name} cannot be shown: {error}")
        return None
