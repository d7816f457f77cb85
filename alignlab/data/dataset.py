"""A set of images with captions: read item by item, identified by its content, checked once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import operator
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, SupportsIndex

import PIL
from PIL import Image

from alignlab.data.images import decode
from alignlab.paths import home

SKIP_BAD = "use --skip-bad to leave bad items out"


def and_more(count: int) -> str:
    """The tail of a message that names one bad item of `count`."""
    return f" (and {count - 1} more bad item{'s' if count > 2 else ''})" if count > 1 else ""


def printable(text: object) -> str:
    """A name or message in one line: a file may be called anything, line breaks included.

    >>> printable("a\\nb.png")
    'a\\\\nb.png'
    """
    return "".join(x if x.isprintable() else x.encode("unicode_escape").decode() for x in str(text))


@dataclass(frozen=True)
class Item:
    """One image with its captions (at least one, none empty) and whatever else the source says about it."""

    id: str
    image: Image.Image
    captions: tuple[str, ...]
    meta: dict[str, Any]


@dataclass(frozen=True)
class Bad:
    """An item that was left out: its id (or its line in the source) and why."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Entry:
    """An item whose image has not been read. `read` gives the encoded file; str(`where`) names it in errors."""

    id: str
    where: object
    read: Callable[[], bytes]
    captions: tuple[str, ...]
    meta: dict[str, Any] = field(default_factory=dict)

    def image(self) -> Image.Image:
        """Read and decode the image; ValueError with the reason alone."""
        try:
            data = self.read()
        except OSError as error:
            raise ValueError(f"cannot be read ({error.strerror or error})") from error
        return decode(data)


class ImageTextDataset:
    """A map-style set of images with captions, as `alignlab.load_dataset` returns it.

    `ds[i]` and iteration give `Item`s and read the image then; everything else works without decoding. They
    raise ValueError (one line: the file and the reason) for an image that cannot be read.

    Attributes:
        name: what results call it.
        skipped: the items that were left out, a tuple of `Bad`.
    """

    def __init__(self, name: str, entries: Sequence[Entry], skipped: Sequence[Bad] = ()) -> None:
        self.name = name
        self.skipped = tuple(skipped)
        self._entries = tuple(entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: SupportsIndex) -> Item:
        entry = self._entries[operator.index(index)]
        try:
            image = entry.image()
        except ValueError as error:
            raise ValueError(printable(f"{entry.where}: {error}")) from error
        return Item(entry.id, image, entry.captions, dict(entry.meta))

    def __iter__(self) -> Iterator[Item]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        left_out = f", {len(self.skipped)} skipped" if self.skipped else ""
        return f"ImageTextDataset({self.name!r}, {len(self)} items{left_out})"

    @property
    def captions(self) -> list[tuple[str, ...]]:
        """Every item's captions, in order; reads no image."""
        return [entry.captions for entry in self._entries]

    @property
    def ids(self) -> list[str]:
        """Every item's id, in order; reads no image."""
        return [entry.id for entry in self._entries]

    @property
    def meta(self) -> list[dict[str, Any]]:
        """What the source says of every item beside its image and captions, in order; reads no image."""
        return [dict(entry.meta) for entry in self._entries]

    @cached_property
    def fingerprint(self) -> str:
        """`sha256:<hex>` over every item's encoded image and captions, in order.

        It depends on content alone: the same items in another folder, or listed in another kind of file, have
        the same fingerprint. Ids and meta do not count; an image that cannot be read counts as unreadable.
        """
        whole = hashlib.sha256(b"alignlab.items/1")
        for entry in self._entries:
            try:
                image = hashlib.sha256(entry.read()).digest()
            except OSError as error:
                image = f"unreadable {type(error).__name__}".encode()
            # Every part goes in with its length: ("ab", "c") and ("a", "bc") must differ.
            for part in (image, str(len(entry.captions)).encode(), *(c.encode() for c in entry.captions)):
                whole.update(len(part).to_bytes(8, "big") + part)
        return f"sha256:{whole.hexdigest()}"

    def plain(self) -> dict[str, Any]:
        """What a result says of its data, as JSON: name, number of items, fingerprint, and what was left out."""
        left_out = [{"id": bad.id, "reason": bad.reason} for bad in self.skipped]
        return {"name": self.name, "n": len(self), "fingerprint": self.fingerprint, "skipped": left_out}

    def head(self, n: int) -> ImageTextDataset:
        """The first `n` items; ValueError unless 1 <= n <= len."""
        try:
            count = operator.index(n)
        except TypeError:
            count = 0
        if not 1 <= count <= len(self):
            raise ValueError(f"n must be a whole number in 1..{len(self)} (the items of {self.name}), got {n!r}")
        return self if count == len(self) else ImageTextDataset(self.name, self._entries[:count], self.skipped)

    def check(self, skip_bad: bool = False, among: Among | None = None) -> ImageTextDataset:
        """Decode every image once, and return the set without its bad items; `among` several processes each decodes its share.

        A bad item raises ValueError (one line: the file and the reason), unless `skip_bad`: then it is left
        out and listed in the result's `skipped`. The outcome is remembered in the cache folder under the
        fingerprint, so the next check of the same content decodes nothing. Raises ValueError where no good
        item is left.
        """
        if among is not None and among.count > 1:
            self.__dict__["undecodable"] = self._undecodable_among(among)
        bad = self.undecodable
        if not bad:
            return self
        first = next(iter(bad))
        complaint = printable(f"{self._entries[first].where}: {bad[first]}{and_more(len(bad))}")
        if not skip_bad:
            raise ValueError(f"{complaint}; {SKIP_BAD}")
        if len(bad) == len(self):
            raise ValueError(f"{self.name}: none of the {len(self)} items is good: {complaint}")
        good = [entry for i, entry in enumerate(self._entries) if i not in bad]
        left_out = [Bad(self._entries[i].id, reason) for i, reason in bad.items()]
        return ImageTextDataset(self.name, good, [*self.skipped, *left_out])

    @cached_property
    def undecodable(self) -> dict[int, str]:
        """Index -> reason of every item whose image cannot be decoded; remembered, see `check`."""
        bad = _recall(self._memory, len(self))
        if bad is None:
            bad = self._decode(range(len(self)))
            _remember(self._memory, bad)
        return bad

    @property
    def _memory(self) -> Path:
        return home() / "checked" / f"{self.fingerprint.removeprefix('sha256:')}.json"

    def _decode(self, indices: range) -> dict[int, str]:
        bad = {}
        for i in indices:
            try:
                self._entries[i].image()
            except ValueError as error:
                bad[i] = str(error)
        return bad

    def _undecodable_among(self, among: Among) -> dict[int, str]:
        bad = _recall(self._memory, len(self))
        if None not in among.gather(bad):  # all of them remember, or none does
            assert bad is not None
            return bad
        parts = among.gather(self._decode(range(among.rank, len(self), among.count)))
        found = dict(sorted((i, reason) for part in parts for i, reason in part.items()))
        if among.rank == 0:
            _remember(self._memory, found)
        return found


class Among(Protocol):
    """Which of how many processes this is, and how they tell each other values; `alignlab.training.processes()` is one."""

    @property
    def rank(self) -> int: ...

    @property
    def count(self) -> int: ...

    def gather(self, value: Any) -> list[Any]: ...


def _recall(path: Path, items: int) -> dict[int, str] | None:
    """The outcome of an earlier check, or None where there is none that can be trusted."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        # Another Pillow may read what this one does not, and the other way round.
        if found["schema"] != "alignlab.checked/1" or found["pillow"] != PIL.__version__:
            return None
        bad = {int(i): str(reason) for i, reason in found["bad"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    return bad if all(0 <= i < items for i in bad) else None


def _remember(path: Path, bad: dict[int, str]) -> None:
    text = json.dumps({"schema": "alignlab.checked/1", "pillow": PIL.__version__, "bad": bad})
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time, never the check
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem[:8], suffix=".tmp")
        try:
            with open(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(temporary, path)
        except OSError:
            os.unlink(temporary)
            raise
