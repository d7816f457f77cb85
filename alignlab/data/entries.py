"""What every source makes its items with: checked texts, safe file names, errors of one line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignlab.data.dataset import Bad, Entry
from alignlab.data.images import read_file

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff", ".jp2", ".ppm")


@dataclass(frozen=True)
class Opened:
    """A source: its name, what errors call it, its items, and what to do if there are none."""

    name: str
    where: str
    items: Iterator[Entry | Bad]
    when_empty: str = "add one line an item"


@dataclass(frozen=True, slots=True)
class InFolder:
    """Reads one file of a folder; its str() is the path, for errors. Small: a set may hold a million."""

    folder: str
    name: str

    def __str__(self) -> str:
        return os.path.join(self.folder, self.name)

    def __call__(self) -> bytes:
        return read_file(str(self))


def inside(image: Any, root: str | Path) -> str:
    """An image's path as a source gives it, normalised; ValueError where it is none or climbs out of `root`."""
    if not isinstance(image, str) or not image:
        raise ValueError(f"image must be a path, got {short(image)}")
    refuse_undecodable(image, "image")
    normal = os.path.normpath(image)
    if normal == os.pardir or normal.startswith(os.pardir + os.sep):
        raise ValueError(f"image {short(image)} leaves the folder {root}; move it there or give its absolute path")
    return normal


def file_entry(image: Any, captions: tuple[str, ...], root: str | Path, meta: dict[str, Any]) -> Entry:
    """The item of an image file; ValueError where there is no such file."""
    file = InFolder(str(root), inside(image, root))
    if not os.path.isfile(str(file)):
        raise ValueError(f"no image {str(file) if len(str(file)) < 300 else short(str(file))}")
    return Entry(file.name.replace(os.sep, "/"), file, file, captions, meta)


def captions_of(value: Any) -> tuple[str, ...]:
    """One text or a list of texts as stripped captions; ValueError for none, or for an empty one."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple):
        raise ValueError(f"a caption must be text or a list of texts, got {short(value)}")
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"a caption must be text, got {short(text)}")
        if not text.strip():
            raise ValueError("empty caption")
        refuse_undecodable(text, "caption")
    if not texts:
        raise ValueError("no caption")
    return tuple(text.strip() for text in texts)


def numbered(id: str, seen: dict[str, int]) -> str:
    """`id` the first time, `id#2`, `id#3`, ... after that; `seen` remembers."""
    seen[id] = seen.get(id, 0) + 1
    return f"{id}#{seen[id]}" if seen[id] > 1 else id


def read_text(path: Path) -> str:
    """A file's text, without a byte order mark. FileNotFoundError passes, other failures become ValueError."""
    # Bytes that are not UTF-8 come through as surrogates, so that the line they are on can be named.
    try:
        if path.exists() and not path.is_file():
            raise ValueError(f"{path}: cannot be read (it is no ordinary file)")
        return path.read_bytes().decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from error


def refuse_undecodable(text: str, where: str) -> None:
    """ValueError for text that is no valid Unicode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        got = f"byte 0x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"a lone \\u{code:04x}"
        raise ValueError(f"{where} is not UTF-8 ({got}); save the text as UTF-8") from None


def parse_json(text: str) -> Any:
    """`json.loads` whose every failure is a ValueError of one short line."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"bad JSON ({error.msg}, column {error.colno}): {short(text)}") from None
    except (ValueError, RecursionError) as error:  # numbers of 5,000 digits, lists 100,000 deep
        raise ValueError(f"bad JSON ({one_line(error)})") from None


def short(value: Any) -> str:
    """A value's repr in at most 60 characters."""
    if isinstance(value, str):
        value = value[:100]  # a repr of megabytes is not wanted even for a moment
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def one_line(error: BaseException) -> str:
    """An error's text in one line of at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__
