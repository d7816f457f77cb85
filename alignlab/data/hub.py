"""Image-text sets of the Hugging Face hub, or in a local folder in one of its layouts."""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from alignlab.data.dataset import Bad, Entry
from alignlab.data.entries import Opened, captions_of, one_line
from alignlab.data.images import read_file
from alignlab.data.streamed import load_streamed, sliced
from alignlab.errors import causes

BLOCK = 1000  # rows that are read at once
_CAPTION_COLUMN = re.compile(r"captions?|caption_?\d+")
# Columns that hold captions, best first; caption_0, caption_1, ... come after them.
_CAPTIONS = (
    *("captions", "caption", "sentences", "sentence", "annotations_captions", "texts", "text"),
    *("alt_text", "description", "prompt"),
)


@dataclass(frozen=True)
class _HubImage:
    """Reads one row's encoded image; `column` alone is in `rows`, not decoded. A file is read where it lies in one of the
    `folders`, the set's own: a set must not have this machine's other files read.
    """

    rows: Any
    column: str
    index: int
    folders: tuple[str, ...]

    def __call__(self) -> bytes:
        cell = self.rows[self.index][self.column]
        if cell is None or (cell["bytes"] is None and cell["path"] is None):
            raise FileNotFoundError("the row has no image")
        if cell["bytes"] is not None:
            return bytes(cell["bytes"])
        if not os.path.realpath(cell["path"]).startswith(self.folders):
            raise FileNotFoundError("the row names a file outside the set")
        return read_file(cell["path"])


def _folders(name: str) -> tuple[str, ...]:
    """Where the files of a set lie: in its folder, or where the hub's client and the datasets library keep what they fetch."""
    import datasets
    import huggingface_hub.constants

    local = os.path.expanduser(name)
    # A folder may be a snapshot in the client's cache, of links to files elsewhere in it.
    fetched = [datasets.config.HF_DATASETS_CACHE, huggingface_hub.constants.HF_HUB_CACHE]
    fetched += [local] if os.path.isdir(local) else [datasets.config.DOWNLOADED_DATASETS_PATH]
    return tuple(os.path.join(os.path.realpath(place), "") for place in fetched)


def open_hub(source: str) -> Opened:
    """What `hf:NAME[@REVISION][:SPLIT]` means. Raises RuntimeError where the hub does not give it, ValueError else."""
    rest = source.removeprefix("hf:")
    # A local folder may have a colon or an @ in its path; a split may be train[:100].
    name, _, split = (rest, "", "") if os.path.isdir(os.path.expanduser(rest)) else rest.partition(":")
    if not name:
        raise ValueError(f"{source!r} names no data set; write hf:NAME[@REVISION][:SPLIT]")
    rows, split = _rows(name, split, source, "name a local folder: hf:FOLDER")
    stem = source.removesuffix(f":{split}") if split else source
    if os.path.isdir(os.path.expanduser(name)):  # where it lies is nobody's business
        stem = f"hf:{os.path.basename(os.path.realpath(os.path.expanduser(name)))}"
    return Opened(f"{stem}:{split}" if split else stem, source, _read(rows, source, _folders(name)))


def open_published(label: str, name: str, split: str, instead: str) -> Opened:
    """A set that goes by a short name, `label`: from the hub's NAME@REVISION, or a folder with a copy of that.

    `instead` is what errors advise where the hub does not give it.
    """
    single = os.path.isfile(os.path.join(name, "state.json"))  # saved without its siblings, so there is no choice
    rows, _ = _rows(name, "" if single else split, label, instead)
    return Opened(label.partition(":")[0], label, _read(rows, label, _folders(name)))


def _rows(name: str, split: str, source: str, instead: str) -> tuple[Any, str]:
    """The `datasets.Dataset` of a name and its split ("" where it has none); `source` is what errors call it."""
    try:
        import datasets
    except ImportError:
        raise ValueError(f'{source} needs the datasets library: pip install "alignlab[hf]"') from None
    try:
        with _quiet_hub():
            loaded = _load(name, split)
    except Exception as error:  # the hub's client raises its own types, those of httpx, and many more
        reason = None if os.path.isdir(os.path.expanduser(name)) else _not_given(error)
        if reason:
            raise RuntimeError(f"{source}: {reason}, or {instead}") from error
        if number := _no_room(error):
            told = (
                f"{source} cannot be kept ({os.strerror(number)}); free some space or point HF_DATASETS_CACHE elsewhere"
            )
            raise OSError(number, told, str(datasets.config.HF_DATASETS_CACHE)) from error
        if isinstance(error, datasets.exceptions.DatasetGenerationError) and error.__cause__ is not None:
            error = error.__cause__  # itself it says no more than that there was one
        raise ValueError(f"{source}: cannot be loaded: {one_line(error)}") from error
    if not isinstance(loaded, datasets.DatasetDict):
        return loaded, split or str(loaded.split or "")
    splits = [str(one) for one in loaded]
    chosen = split or ("train" if "train" in splits else "") or (splits[0] if len(splits) == 1 else "")
    if chosen not in splits:
        asked = f"no split {split!r}" if split else "several splits and none called train"
        raise ValueError(f"{source}: {asked}; name one of {', '.join(splits)}: hf:{name}:{splits[0]}")
    return loaded[chosen], chosen


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """The libraries' own messages about retries and broken files are off inside: the error at their end says it all."""
    import datasets  # noqa: F401  # both set their loggers' levels when they are first imported, so import them first
    import huggingface_hub  # noqa: F401

    silent = {"huggingface_hub": logging.ERROR, "datasets": logging.CRITICAL}
    logs = {logging.getLogger(name): level for name, level in silent.items()}
    before = {log: log.level for log in logs}
    try:
        for log, level in logs.items():
            log.setLevel(level)
        yield
    finally:
        for log, level in before.items():
            log.setLevel(level)


def _no_room(error: BaseException) -> int | None:
    """The number of the system's error where a disk is full or read-only."""
    numbers = (link.errno for link in causes(error) if isinstance(link, OSError))
    return next((number for number in numbers if number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)), None)


def _not_given(error: BaseException) -> str | None:
    """Why the hub does not give a data set, or None where that is not what went wrong."""
    import datasets
    from huggingface_hub import errors as hub

    chain = causes(error)

    def has(*kinds: type[BaseException]) -> bool:
        return any(isinstance(link, kinds) for link in chain)

    if has(hub.GatedRepoError) or "gated dataset" in str(error):
        return "it is gated; accept the licence at the data set's page, then run `hf auth login`"
    if has(hub.RevisionNotFoundError):
        return "the hub has the data set but not this revision; check what follows the @"
    if has(ConnectionError, TimeoutError, hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled):
        return f"the hub cannot be reached ({one_line(error)}); check the connection"
    if has(hub.RepositoryNotFoundError, datasets.exceptions.DatasetNotFoundError):
        return "there is no such public data set; check the name, or run `hf auth login` if it is private"
    if has(hub.HfHubHTTPError):
        return f"{one_line(error)}; try again later"
    return None


def _load(name: str, split: str) -> Any:
    import datasets

    folder = os.path.expanduser(name)
    if any(os.path.isfile(os.path.join(folder, saved)) for saved in ("dataset_dict.json", "state.json")):
        loaded = datasets.load_from_disk(folder)
        if split and isinstance(loaded, datasets.Dataset) and str(loaded.split) != split:
            raise ValueError(f"no split {split!r}: the folder holds one set, {loaded.split}; write hf:{name}")
        return loaded
    if os.path.isdir(folder):
        return datasets.load_dataset(folder, split=split or None)
    repository, _, revision = name.partition("@")
    if asked := sliced(split):
        part = load_streamed(repository, revision, *asked)
        if part is not None:
            return part
    return datasets.load_dataset(repository, revision=revision or None, split=split or None)


def _columns(features: Any, source: str) -> tuple[str, list[str]]:
    """The column of images and the columns of captions."""
    import datasets

    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    image = next((name for name in images if name.lower() == "image"), images[0] if images else None)
    texts = {name.lower(): name for name, kind in features.items() if _holds_text(kind)}
    spoken = [texts[name] for name in _CAPTIONS if name in texts][:1]
    spoken = spoken or [name for lower, name in texts.items() if _CAPTION_COLUMN.fullmatch(lower)]
    if image is None or not spoken:
        missing = "column of images" if image is None else f"column of captions ({', '.join(_CAPTIONS)})"
        held = ", ".join(f"{name} ({getattr(kind, 'dtype', type(kind).__name__)})" for name, kind in features.items())
        raise ValueError(f"{source}: no {missing} among {held}; rename one with datasets and save_to_disk")
    return image, spoken


def _filled(said: Any) -> tuple[str, ...]:
    # Lists of captions come padded with None or "" to one length.
    if isinstance(said, list):
        filled = [text for text in said if text is not None and str(text).strip()]
        return captions_of(filled or said)
    return captions_of(said)


def _holds_text(kind: Any) -> bool:
    inner = getattr(kind, "feature", kind)  # a list's; in old versions of datasets [kind]
    inner = inner[0] if isinstance(inner, list) and inner else inner
    return getattr(inner, "dtype", None) in ("string", "large_string")


def _read(rows: Any, source: str, folders: tuple[str, ...]) -> Iterator[Entry | Bad]:
    import datasets

    image, spoken = _columns(rows.features, source)
    encoded = rows.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    plain = [name for name, kind in rows.features.items() if isinstance(kind, datasets.Value)]
    meta = [name for name in plain if name not in spoken]
    for index, row in enumerate(_each(rows.select_columns([*spoken, *meta]))):
        if row is None:
            yield Bad(f"row {index}", "its text is not UTF-8")
            continue
        try:
            said = row[spoken[0]] if len(spoken) == 1 else [row[name] for name in spoken if row[name]]
            captions = _filled(said)
        except ValueError as error:
            yield Bad(f"row {index}", str(error))
            continue
        read = _HubImage(encoded, image, index, folders)
        yield Entry(str(index), f"{source} row {index}", read, captions, {name: row[name] for name in meta})


def _each(rows: Any) -> Iterator[dict[str, Any] | None]:
    """The rows, read some at a time; None for one with text that cannot be read."""
    for start in range(0, len(rows), BLOCK):
        places = range(start, min(start + BLOCK, len(rows)))
        try:
            columns = rows[places.start : places.stop]
            yield from (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
        except UnicodeDecodeError:
            for place in places:
                try:
                    yield rows[place]
                except UnicodeDecodeError:
                    yield None
