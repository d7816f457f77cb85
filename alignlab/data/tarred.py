"""WebDataset shards: items inside tar files, read in any order without unpacking or holding them.

An item is the files of one name up to its first dot, one after another: `0001.jpg` and `0001.txt`, or `0001.json`. A shard's
headers are read once; of a member only where it lies is kept.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignlab.data.dataset import Bad, Entry
from alignlab.data.entries import IMAGE_SUFFIXES, captions_of, numbered, parse_json, refuse_undecodable, short
from alignlab.data.images import LARGEST

LONGEST = 1 << 20  # bytes of an item's texts
TEXTS = (".txt", ".caption", ".cap")
KEYS = ("captions", "caption", "text")  # of a .json
_BRACES = re.compile(r"(.*)\{(\d+)\.\.(\d+)\}(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class TarMember:
    """Reads one member; its str() names the shard and the member, for errors. Opens the shard anew: safe in any process."""

    shard: str
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.shard}: {self.name}"

    def __call__(self) -> bytes:
        if self.size > LARGEST:
            raise OSError(f"{self.size:,} bytes; an image has {LARGEST:,} at most")
        with open(self.shard, "rb") as file:
            file.seek(self.offset)
            data = file.read(self.size)
        if len(data) != self.size:
            raise OSError("cut off in the tar; download the shard again")
        return data


def shards(source: str) -> list[Path]:
    """The shards that a name means: `x.tar`, `x-{000..015}.tar`; none for anything else.

    >>> [str(path) for path in shards("a-{08..10}.tar")]
    ['a-08.tar', 'a-09.tar', 'a-10.tar']
    """
    if not source.endswith(".tar"):
        return []
    found = _BRACES.fullmatch(source)
    if found is None:
        return [Path(source).expanduser()]
    before, first, last, after = found.groups()
    if int(last) < int(first) or int(last) - int(first) >= 100_000 or "{" in before:
        raise ValueError(f"{short(source)}: one range such as {{000..015}} names up to 100,000 shards")
    width = len(first) if first.startswith("0") else 0
    return [Path(f"{before}{number:0{width}d}{after}").expanduser() for number in range(int(first), int(last) + 1)]


def read_shards(paths: list[Path]) -> Iterator[Entry | Bad]:
    """The items of shards, in order. Raises FileNotFoundError for a shard that is not there, ValueError for one that is no tar
    or is cut off; an item that does not fit is a `Bad`.
    """
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(2, "No such file or directory", str(path))
    seen: dict[str, int] = {}
    for path in paths:
        for key, members in _items(path):
            try:
                refuse_undecodable(key, "the name")
                entry = _entry(path, key, members)
            except ValueError as error:
                yield Bad(f"{path.name}: {short(key)}", str(error))
                continue
            name = numbered(entry.id, seen)
            yield entry if name == entry.id else Entry(name, entry.where, entry.read, entry.captions, entry.meta)


def _items(path: Path) -> Iterator[tuple[str, dict[str, TarMember]]]:
    """Key -> its members by what follows the first dot, in lower case; neighbours of one key are one item."""
    key, members = "", dict[str, TarMember]()
    shard = str(path)  # one for all of its members, which may be hundreds of thousands
    try:
        with tarfile.open(path, "r:") as tar:
            while (info := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep every header
                folder, slash, name = info.name.rpartition("/")
                if not info.isreg() or name.startswith("."):
                    continue
                stem, dot, suffix = name.partition(".")
                if not dot:
                    continue
                now = folder + slash + stem
                if now != key and members:
                    yield key, members
                    members = {}
                key = now
                member = TarMember(shard, info.name, info.offset_data, info.size)
                members["." + suffix.lower()] = member
            _check_end(path, tar.offset)
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{path}: not a whole tar ({reason}); download it again, uncompressed") from error
    if members:
        yield key, members


def _check_end(path: Path, offset: int) -> None:
    """ValueError unless the shard ends where its headers do: tarfile takes a header that it cannot read for the end."""
    with open(path, "rb") as file:
        file.seek(offset)
        block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise ValueError("cut off: the end of an archive is missing")
    if any(block):
        raise ValueError(f"a damaged header at byte {offset:,}")


def _entry(path: Path, key: str, members: dict[str, TarMember]) -> Entry:
    images = [suffix for suffix in members if suffix.endswith(IMAGE_SUFFIXES)]
    if not images:
        raise ValueError(f"no image among {short(', '.join(members))}")
    # Beside 0001.png there may be 0001.mask.png, which is another thing.
    plain = [suffix for suffix in images if suffix in IMAGE_SUFFIXES] or images
    if len(plain) > 1:
        raise ValueError(f"{len(plain)} images in one item: {short(', '.join(plain))}; leave one")
    image = members[plain[0]]
    meta: dict[str, Any] = {}
    said: Any = None
    if ".json" in members:
        meta = parse_json(_text(members[".json"]))
        if not isinstance(meta, dict):
            raise ValueError(f"its .json must be an object, got {short(meta)}")
        spoken = next((name for name in KEYS if meta.get(name)), None)
        said = meta.pop(spoken) if spoken else None
    for suffix in TEXTS:
        if suffix in members:
            said = [line for line in _text(members[suffix]).splitlines() if line.strip()]
            break
    if said is None:
        raise ValueError(f"no caption: no {', '.join(TEXTS)}, and no .json with {', '.join(KEYS)}")
    return Entry(f"{path.stem}/{key}", image, image, captions_of(said), meta)


def _text(member: TarMember) -> str:
    if member.size > LONGEST:
        raise ValueError(f"{member.name} has {member.size:,} bytes; an item's texts have {LONGEST:,} at most")
    try:
        return member().decode()
    except OSError as error:
        raise ValueError(f"{member.name}: {error}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{member.name} is not UTF-8 ({error.reason}); save the text as UTF-8") from None
