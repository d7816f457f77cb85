"""What the feature store holds: listed, checked byte by byte, and thrown away."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from alignlab.features.store import SCHEMA, SHARD, is_whole, removing
from alignlab.paths import home

_NAME = re.compile(r"shard-\d{5,}\.safetensors")


@dataclass(frozen=True)
class Entry:
    """One folder of the store. `items` of `n` are finished; `trouble` says why its manifest cannot be read."""

    folder: Path
    model: str
    checkpoint: str
    data: str
    pool: str
    dtype: str
    batch: int | None  # items that were computed at once, where that matters
    n: int
    items: int
    size: int
    changed: float  # seconds since 1970 of the manifest's last change
    hashes: dict[str, str]
    trouble: str = ""

    @property
    def complete(self) -> bool:
        return not self.trouble and self.items == self.n


def entries() -> list[Entry]:
    """Everything in the store, the largest first."""
    root = home() / "features"
    folders = [path for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
    return sorted((_entry(folder) for folder in folders), key=lambda entry: -entry.size)


def _entry(folder: Path) -> Entry:
    found = []
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # what a run was writing has its name by now
            found.append(path.stat())
    size = sum(one.st_size for one in found)
    changed = max((one.st_mtime for one in found), default=folder.stat().st_mtime)
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        if manifest["schema"] != SCHEMA:
            raise ValueError(f"its schema is {manifest['schema']!r}")
        hashes, n = dict(manifest["shards"]), int(manifest["n"])
        batch = None if manifest.get("batch") is None else int(manifest["batch"])
        if not all(_NAME.fullmatch(name) and isinstance(digest, str) for name, digest in hashes.items()):
            raise ValueError("it names other files than shards")
        about = {key: str(manifest[key]) for key in ("model", "checkpoint", "data", "pool", "dtype")}
        "".join(about.values()).encode()  # what is no text cannot be shown
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        told = str(error) if len(str(error)) < 100 else type(error).__name__
        reason = "it has no manifest" if isinstance(error, FileNotFoundError) else f"its manifest is damaged ({told})"
        nothing = dict.fromkeys(("model", "checkpoint", "data", "pool", "dtype"), "?")
        return Entry(folder, **nothing, batch=None, n=0, items=0, size=size, changed=changed, hashes={}, trouble=reason)
    items = min(n, SHARD * sum((folder / name).is_file() for name in hashes))
    return Entry(folder, **about, batch=batch, n=n, items=items, size=size, changed=changed, hashes=hashes)


def damaged(entry: Entry) -> Iterator[str]:
    """The names of its shards that are not what the manifest vouches for; every byte is read."""
    for name, expected in sorted(entry.hashes.items()):
        if not is_whole(entry.folder / Path(name).name, expected):
            yield name


def remove(entry: Entry) -> bool:
    """Delete a folder of the store; False, and nothing is deleted, while a run writes it."""
    with removing(entry.folder) as free:
        if free:
            with contextlib.suppress(FileNotFoundError):  # another prune may have been faster
                shutil.rmtree(entry.folder)
            for lock in entry.folder.parent.glob(f"{entry.folder.name}.*lock"):
                lock.unlink(missing_ok=True)
    return free
