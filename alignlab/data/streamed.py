"""The first rows of a set of the hub, streamed and kept, where its split would be downloaded whole for them."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from alignlab.paths import home

_SLICE = re.compile(r"([\w.]+)\[(\d*):(\d+)\]")  # of rows; what is told in percent needs to know how many there are


def sliced(split: str) -> tuple[str, range] | None:
    """A split's name and the rows of it that `NAME[A:B]` or `NAME[:B]` asks for; None for any other split."""
    asked = _SLICE.fullmatch(split)
    return None if asked is None else (asked[1], range(int(asked[2] or 0), int(asked[3])))


def load_streamed(name: str, revision: str, split: str, rows: range) -> Any:
    """The `datasets.Dataset` of some rows of a split, streamed to `$ALIGNLAB_HOME/hub`, once for each version of the set.

    Images stay encoded, as they come. As with whole sets, what is kept serves where the hub cannot be reached. None where the
    columns cannot be known without downloading the set. Raises what the hub's client does.
    """
    import datasets
    from filelock import FileLock

    kept = home() / "hub" / name.replace("/", "--") / (revision or "main").replace("/", "--")
    part = f"{split}-{rows.start}-{rows.stop}"
    try:
        builder = datasets.load_dataset_builder(name, revision=revision or None)
    except (ConnectionError, TimeoutError):
        if not (before := sorted(kept.glob(f"*/{part}"), key=os.path.getmtime)):
            raise
        return datasets.load_from_disk(before[-1])
    folder = kept / builder.hash / part
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{part}.lock")):
        if not folder.is_dir():
            stream = builder.as_streaming_dataset(split=split)
            if stream.features is None:
                return None
            _keep(stream, rows, folder)
    return datasets.load_from_disk(folder)


def _keep(stream: Any, rows: range, folder: Path) -> None:
    """Write rows of a stream to a folder, which appears whole or not at all."""
    import datasets

    images = [column for column, kind in stream.features.items() if isinstance(kind, datasets.Image)]
    for column in images:
        stream = stream.cast_column(column, datasets.Image(decode=False))
    asked = partial(_read, stream.skip(rows.start), len(rows), images)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        made = datasets.Dataset.from_generator(asked, features=stream.features, cache_dir=scratch, split=stream.split)
        made.save_to_disk(Path(scratch, "whole"))
        Path(scratch, "whole").rename(folder)


def _read(stream: Any, count: int, images: list[str]) -> Iterator[dict[str, Any]]:
    import fsspec

    for row in islice(stream, count):  # its own `take` opens the next file too
        for column in images:
            if (cell := row[column]) is not None and cell["bytes"] is None and cell["path"] is not None:
                with fsspec.open(cell["path"], "rb") as file:  # by itself, or in an archive: zip://a.png::hf://...
                    row[column] = {"bytes": file.read(), "path": None}
        yield row
