"""The first rows of a set of the hub, streamed and kept, where its split would be downloaded whole for them."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from alignlab.data.images import LARGEST

_SLICE = re.compile(r"([\w.]+)\[(\d*):(\d+)\]")  # of rows; what is told in percent needs to know how many there are


def sliced(split: str) -> tuple[str, range] | None:
    """A split's name and the rows of it that `NAME[A:B]` or `NAME[:B]` asks for; None for any other split."""
    asked = _SLICE.fullmatch(split)
    return None if asked is None else (asked[1], range(int(asked[2] or 0), int(asked[3])))


def load_streamed(name: str, revision: str, split: str, rows: range) -> Any:
    """The `datasets.Dataset` of some rows of a split, streamed once for each version of the set, and kept where the datasets
    library keeps whole splits.

    Images stay encoded, as they come. As with whole sets, what is kept serves where the hub cannot be reached. None where the
    columns cannot be known without downloading the set. Raises what the hub's client does.
    """
    import datasets
    from filelock import FileLock

    cache = Path(datasets.config.HF_DATASETS_CACHE, "slices")
    kept = cache / name.replace("/", "--") / (revision or "main").replace("/", "--")
    part = f"{split}-{rows.start}-{rows.stop}"
    try:
        builder = datasets.load_dataset_builder(name, revision=revision or None)
    except (ConnectionError, TimeoutError):
        if not (before := sorted(kept.glob(f"*/{part}"), key=os.path.getmtime)):
            raise
        return datasets.load_from_disk(before[-1])
    folder = kept / builder.hash / part
    if folder.is_dir():
        return datasets.load_from_disk(folder)
    stream = builder.as_streaming_dataset(split=split)
    if stream.features is None:
        return None
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{part}.lock")):
        if not folder.is_dir():
            _keep(stream, str(builder.base_path), rows, folder)
    return datasets.load_from_disk(folder)


def _keep(stream: Any, base: str, rows: range, folder: Path) -> None:
    """Write rows of a stream to a folder, which appears whole or not at all."""
    import datasets

    images = [column for column, kind in stream.features.items() if isinstance(kind, datasets.Image)]
    for column in images:
        stream = stream.cast_column(column, datasets.Image(decode=False))
    asked = partial(_read, stream.skip(rows.start), len(rows), images, base.rstrip("/") + "/")
    scratch = folder.with_name(f".{folder.name}")  # always the same, so that the next run clears what a killed one left
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        made = datasets.Dataset.from_generator(
            asked, features=stream.features, cache_dir=str(scratch), split=stream.split
        )
        made.save_to_disk(scratch / "whole")
        (scratch / "whole").rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _read(stream: Any, count: int, images: list[str], base: str) -> Iterator[dict[str, Any]]:
    """Rows with their images' bytes, or without an image where it is not there. `base` is where the set's own files lie."""
    for row in islice(stream, count):  # its own `take` opens the next file too
        for column in images:
            if (cell := row[column]) is not None:
                data = cell["bytes"] if cell["bytes"] is not None else _fetched(cell["path"] or "", base)
                # Without its path, which the library would read in place of the bytes where it is a file of this machine.
                row[column] = None if data is None else {"bytes": data, "path": None}
        yield row


def _fetched(path: str, base: str) -> bytes | None:
    """An image in a file of the set, by itself or in an archive (`zip://a.png::BASE/images.zip`). What a row names elsewhere is
    none: a set must not have this machine's files read, nor others' fetched.
    """
    import fsspec

    outermost = path.rpartition("::")[2]
    if not outermost.startswith(base) or ".." in outermost.split("/"):
        return None
    try:
        with fsspec.open(path, "rb") as file:
            data: bytes = file.read(LARGEST + 1)
    except FileNotFoundError:
        return None
    return data if len(data) <= LARGEST else None
