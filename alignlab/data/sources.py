"""Where data sets come from: the shipped scenes, a folder, a .jsonl or .csv file, the Hugging Face hub."""

from __future__ import annotations

import contextlib
import csv
import difflib
import functools
import io
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from alignlab.data.dataset import SKIP_BAD, Bad, Entry, ImageTextDataset, and_more
from alignlab.paths import shipped

ACCEPTED = (
    "'scenes', a folder (with captions.jsonl, or with a .txt beside each image), "
    "a .jsonl or .csv file, or 'hf:NAME[@REVISION][:SPLIT]'"
)
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff", ".jp2", ".ppm")
_CAPTION_COLUMN = re.compile(r"captions?|caption_?\d+")
# Hub columns that hold captions, best first; caption_0, caption_1, ... come after them.
_HUB_CAPTIONS = (
    *("captions", "caption", "sentences", "sentence", "annotations_captions", "texts", "text"),
    *("alt_text", "description", "prompt"),
)


def load_dataset(source: str | Path, *, n: int | None = None, skip_bad: bool = False) -> ImageTextDataset:
    """Open a set of images with captions. Images are read later, item by item.

    Args:
        source: one of
            * `"scenes"`, the scenes that come with alignlab (a folder of that name: `"./scenes"`);
            * a folder with `captions.jsonl`, or with a `.txt` beside each image, one caption a line;
            * a `.jsonl` file: `image` (a path, relative to the file's folder) and `caption` (text) or
              `captions` (a list of texts) on each line; other keys become `meta`;
            * a `.csv` file: a column `image` and one or more of `caption`, `captions` (a JSON list or one
              text), `caption_1`, `caption_2`, ...; rows with the same image are several captions of it;
            * `"hf:NAME[@REVISION][:SPLIT]"` on the Hugging Face hub, or with a local folder for NAME.
        n: the first n items only (with `skip_bad`: the first n good ones).
        skip_bad: leave out what cannot be used (a line that cannot be parsed, a missing or empty caption, an
            image that is missing or cannot be decoded) and list it in `.skipped`. Images are then decoded
            once, here.

    Raises ValueError, in one line that names the file, the line and what to do: for an unknown or empty
    source, n outside 1..len, and without `skip_bad` for the first thing that cannot be used. An image that is
    there but cannot be decoded raises when it is read, or in `.check()`.

    >>> load_dataset("scnes")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: no data set 'scnes'; did you mean 'scenes'? Accepted: 'scenes', a folder ...
    """
    opened = _open(source)
    entries: list[Entry] = []
    bad: list[Bad] = []
    for found in opened.items:
        if isinstance(found, Bad):
            bad.append(found)
        else:
            entries.append(found)
    if bad:
        complaint = f"{opened.where}: {bad[0].id}: {bad[0].reason}{and_more(len(bad))}"
        if not skip_bad:
            raise ValueError(f"{complaint}; correct it, or {SKIP_BAD}")
        if not entries:
            raise ValueError(f"{complaint}; none of the {len(bad)} items is good")
    if not entries:
        raise ValueError(f"{opened.where}: 0 items; {opened.when_empty}")
    dataset = ImageTextDataset(opened.name, entries, bad)
    if skip_bad:
        return dataset.check(skip_bad=True) if n is None else _first_good(dataset, n)
    return dataset if n is None else dataset.head(n)


@dataclass(frozen=True)
class _Opened:
    """A source: its name, what errors call it, its items, and what to do if there are none."""

    name: str
    where: str
    items: Iterator[Entry | Bad]
    when_empty: str = "add one line an item"


def _first_good(dataset: ImageTextDataset, n: int) -> ImageTextDataset:
    # Decoding only as far as needed: a thousand items of a hub set must not cost all its images.
    taken = n
    while True:
        candidates = dataset.head(taken)
        missing = n - (taken - len(candidates.undecodable))
        if missing <= 0 or taken == len(dataset):
            return candidates.check(skip_bad=True).head(n)
        taken = min(taken + missing, len(dataset))


def _open(source: str | Path) -> _Opened:
    if not isinstance(source, str | Path):
        raise ValueError(f"source must be a str or a Path, got {type(source).__name__}; accepted: {ACCEPTED}")
    if source == "scenes":
        captions = shipped("scenes", "captions.jsonl")
        if not captions.is_file():
            raise FileNotFoundError(f"{captions}: no such file; it comes with alignlab: install it again")
        return _Opened("scenes", str(captions), _read_jsonl(captions))
    if isinstance(source, str) and source.startswith("hf:"):
        return _open_hub(source)
    # os.path takes any text; Path.expanduser and Path.exists raise for "~nobody" or a name of 300 letters
    path = Path(os.path.expanduser(source))
    if not str(source).strip() or not os.path.exists(path):
        raise _unknown(str(source), path)
    # "." and ".." have no name of their own
    folder_name = path.resolve().name if path.is_dir() else path.resolve().parent.name
    if path.is_dir():
        captions = path / "captions.jsonl"
        if captions.is_file():
            return _Opened(folder_name, str(captions), _read_jsonl(captions))
        return _Opened(folder_name, str(path), _read_folder(path), _when_folder_is_empty(path))
    name = folder_name if path.name == "captions.jsonl" else path.stem
    if path.suffix.lower() == ".jsonl":
        return _Opened(name, str(path), _read_jsonl(path))
    if path.suffix.lower() == ".csv":
        return _Opened(name, str(path), _read_csv(path), "add one row an item under the header")
    raise ValueError(f"{path}: not a data set; accepted: {ACCEPTED}")


def _unknown(source: str, path: Path) -> ValueError:
    near = {"scenes": "scenes"}
    with contextlib.suppress(OSError, ValueError):
        for sibling in path.parent.iterdir():
            if sibling.suffix.lower() in (".jsonl", ".csv") or sibling.is_dir():
                near[sibling.name] = str(sibling)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        near[path.name] = f"hf:{source}"
    matches = difflib.get_close_matches(path.name, near, n=3)
    hint = f"; did you mean {' or '.join(repr(near[match]) for match in matches)}?" if matches else "."
    return ValueError(f"no data set {source!r}{hint} Accepted: {ACCEPTED}")


# --- folder, jsonl, csv ---


def _when_folder_is_empty(folder: Path) -> str:
    listed = sorted(str(p) for p in folder.iterdir() if p.suffix.lower() in (".jsonl", ".csv"))
    if listed:
        return f"it has neither captions.jsonl nor images; name the file itself: {listed[0]}"
    return "it needs captions.jsonl, or images with a .txt beside each (sub-folders are not searched)"


def _read_folder(folder: Path) -> Iterator[Entry | Bad]:
    for image in sorted(folder.iterdir()):
        if not image.name.lower().endswith(IMAGE_SUFFIXES) or image.is_dir():
            continue
        if image.name.startswith("."):  # macOS leaves a ._cat.jpg that is no image beside cat.jpg
            continue
        beside = image.with_suffix(".txt")
        try:
            text = _read_text(beside)
            for number, line in enumerate(text.split("\n"), 1):
                _refuse_undecodable(line, f"{beside.name} line {number}")
            captions = _captions([line for line in text.split("\n") if line.strip()])
            yield Entry(image.name, str(image), functools.partial(Path.read_bytes, image), captions)
        except FileNotFoundError:
            yield Bad(image.name, f"no captions: no {beside.name} beside it")
        except ValueError as error:
            yield Bad(image.name, str(error))


def _read_jsonl(path: Path) -> Iterator[Entry | Bad]:
    seen: dict[str, int] = {}
    for number, line in enumerate(_read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            _refuse_undecodable(line, "the line")
            entry = _from_keys(_parse_json(line), path.parent)
        except ValueError as error:
            yield Bad(f"line {number}", str(error))
            continue
        seen[entry.id] = seen.get(entry.id, 0) + 1
        yield replace(entry, id=f"{entry.id}#{seen[entry.id]}") if seen[entry.id] > 1 else entry


def _from_keys(keys: Any, root: Path) -> Entry:
    if not isinstance(keys, dict):
        raise ValueError(f'expected {{"image": ..., "caption": ...}}, got {_short(keys)}')
    held = _short(", ".join(keys))
    if "image" not in keys:
        raise ValueError(f'no key "image"; the line has {held}')
    said = "captions" if "captions" in keys else "caption"
    if said not in keys:
        raise ValueError(f'no key "caption" or "captions"; the line has {held}')
    meta = {key: value for key, value in keys.items() if key not in ("image", said)}
    return _entry(keys["image"], _captions(keys[said]), root, meta)


def _read_csv(path: Path) -> Iterator[Entry | Bad]:
    rows = _csv_rows(path)
    _, cells = next(rows, (1, []))
    _refuse_undecodable("".join(cells), f"{path}: line 1")
    header = [cell.strip().lower() for cell in cells]
    spoken = [column for column in header if _CAPTION_COLUMN.fullmatch(column)]
    if header and (header.count("image") != 1 or not spoken or len(set(header)) != len(header)):
        wanted = "one column image and one or more of caption, captions, caption_1, caption_2, ..."
        raise ValueError(f"{path}: line 1: the header must have {wanted}, each once; it has {', '.join(cells)}")
    entries: dict[str, Entry] = {}
    for number, row in rows:
        try:
            entry = _from_row(header, spoken, row, path.parent)
        except ValueError as error:
            yield Bad(f"line {number}", str(error))
            continue
        first = entries.get(entry.id)
        entries[entry.id] = replace(first, captions=first.captions + entry.captions) if first else entry
    yield from entries.values()


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not blank, each with the number of its first line."""
    reader = csv.reader(io.StringIO(_read_text(path), newline=""), strict=True)
    number = 1
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                yield number, row
            number = reader.line_num + 1
    except csv.Error as error:
        # Past a broken quote there is no telling rows apart, so this is not an item to skip.
        raise ValueError(f"{path}: line {number}: {error}; correct the quoting of this row") from error


def _from_row(header: list[str], spoken: list[str], row: list[str], root: Path) -> Entry:
    _refuse_undecodable("".join(row), "the row")
    if len(row) != len(header):
        raise ValueError(
            f'{len(row)} cells under {len(header)} columns; put "..." round a caption that has a comma in it'
        )
    cells = dict(zip(header, row, strict=True))
    captions: list[str] = []
    for column in spoken:
        cell = cells[column].strip()
        if column == "captions" and cell.startswith("["):
            captions += _captions(_parse_json(cell))
        elif cell:  # items may differ in their number of captions
            captions.append(cell)
    meta = {column: cell for column, cell in cells.items() if column != "image" and column not in spoken}
    return _entry(cells["image"].strip(), _captions(captions), root, meta)


def _entry(image: Any, captions: tuple[str, ...], root: Path, meta: dict[str, Any]) -> Entry:
    if not isinstance(image, str) or not image:
        raise ValueError(f"image must be a path, got {_short(image)}")
    _refuse_undecodable(image, "image")
    inside = os.path.normpath(image)
    if PurePath(inside).parts[:1] == ("..",):
        raise ValueError(f"image {image!r} leaves the folder {root}; move it there or give its absolute path")
    path = root / inside
    if not os.path.isfile(path):
        raise ValueError(f"no image {path}")
    return Entry(Path(inside).as_posix(), str(path), functools.partial(Path.read_bytes, path), captions, meta)


def _captions(value: Any) -> tuple[str, ...]:
    """One text or a list of texts as stripped captions; ValueError for none, or for an empty one."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple):
        raise ValueError(f"a caption must be text or a list of texts, got {_short(value)}")
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"a caption must be text, got {_short(text)}")
        if not text.strip():
            raise ValueError("empty caption")
        _refuse_undecodable(text, "caption")
    if not texts:
        raise ValueError("no caption")
    return tuple(text.strip() for text in texts)


def _read_text(path: Path) -> str:
    # Bytes that are not UTF-8 come through as surrogates, so that the line they are on can be named.
    try:
        return path.read_bytes().decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from error


def _refuse_undecodable(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        got = f"byte 0x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"a lone \\u{code:04x}"
        raise ValueError(f"{where} is not UTF-8 ({got}); save the text as UTF-8") from None


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"bad JSON ({error.msg}, column {error.colno}): {_short(text)}") from None
    except (ValueError, RecursionError) as error:  # numbers of 5,000 digits, lists 100,000 deep
        raise ValueError(f"bad JSON ({_one_line(error)})") from None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


# --- hub ---


@dataclass(frozen=True)
class _HubImage:
    """Reads one row's encoded image; `column` alone is in `rows`, not decoded."""

    rows: Any
    column: str
    index: int

    def __call__(self) -> bytes:
        cell = self.rows[self.index][self.column]
        if cell is None:
            raise FileNotFoundError("the row has no image")
        return cell["bytes"] if cell["bytes"] is not None else Path(cell["path"]).read_bytes()


def _open_hub(source: str) -> _Opened:
    rows, split = _hub_rows(source)
    image, spoken = _hub_columns(rows.features, source)
    stem = source.removesuffix(f":{split}") if split else source
    return _Opened(f"{stem}:{split}" if split else stem, source, _read_hub(rows, image, spoken, source))


def _hub_rows(source: str) -> tuple[Any, str]:
    """The `datasets.Dataset` that a `hf:` source means, and its split ("" where it has none)."""
    rest = source.removeprefix("hf:")
    # A local folder may have a colon or an @ in its path; a split may be train[:100].
    name, _, split = (rest, "", "") if os.path.isdir(os.path.expanduser(rest)) else rest.partition(":")
    if not name:
        raise ValueError(f"{source!r} names no data set; write hf:NAME[@REVISION][:SPLIT]")
    try:
        import datasets
    except ImportError:
        raise ValueError(f'{source} needs the datasets library: pip install "alignlab[hf]"') from None
    try:
        loaded = _hub_load(name, split)
    except ConnectionError as error:
        instead = "check the connection, or name a local folder: hf:FOLDER"
        raise ValueError(f"{source}: the hub cannot be reached ({_one_line(error)}); {instead}") from error
    except Exception as error:  # the hub's client raises its own types, those of httpx, and many more
        raise ValueError(f"{source}: cannot be loaded: {_one_line(error)}") from error
    if not isinstance(loaded, datasets.DatasetDict):
        return loaded, split or str(loaded.split or "")
    splits = [str(one) for one in loaded]
    chosen = split or ("train" if "train" in splits else "") or (splits[0] if len(splits) == 1 else "")
    if chosen not in splits:
        asked = f"no split {split!r}" if split else "several splits and none called train"
        raise ValueError(f"{source}: {asked}; name one of {', '.join(splits)}: hf:{name}:{splits[0]}")
    return loaded[chosen], chosen


def _hub_load(name: str, split: str) -> Any:
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
    return datasets.load_dataset(repository, revision=revision or None, split=split or None)


def _hub_columns(features: Any, source: str) -> tuple[str, list[str]]:
    """The column of images and the columns of captions."""
    import datasets

    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    image = next((name for name in images if name.lower() == "image"), images[0] if images else None)
    texts = {name.lower(): name for name, kind in features.items() if _holds_text(kind)}
    spoken = [texts[name] for name in _HUB_CAPTIONS if name in texts][:1]
    spoken = spoken or [name for lower, name in texts.items() if _CAPTION_COLUMN.fullmatch(lower)]
    if image is None or not spoken:
        missing = "column of images" if image is None else f"column of captions ({', '.join(_HUB_CAPTIONS)})"
        held = ", ".join(f"{name} ({getattr(kind, 'dtype', type(kind).__name__)})" for name, kind in features.items())
        raise ValueError(f"{source}: no {missing} among {held}; rename one with datasets and save_to_disk")
    return image, spoken


def _holds_text(kind: Any) -> bool:
    inner = getattr(kind, "feature", kind)  # a list's; in old versions of datasets [kind]
    inner = inner[0] if isinstance(inner, list) and inner else inner
    return getattr(inner, "dtype", None) in ("string", "large_string")


def _read_hub(rows: Any, image: str, spoken: list[str], source: str) -> Iterator[Entry | Bad]:
    import datasets

    encoded = rows.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    plain = [name for name, kind in rows.features.items() if isinstance(kind, datasets.Value)]
    meta = [name for name in plain if name not in spoken]
    for index, row in enumerate(rows.select_columns([*spoken, *meta])):
        try:
            said = row[spoken[0]] if len(spoken) == 1 else [row[name] for name in spoken if row[name]]
            captions = _captions(said)
        except ValueError as error:
            yield Bad(f"row {index}", str(error))
            continue
        read = _HubImage(encoded, image, index)
        yield Entry(str(index), f"{source} row {index}", read, captions, {name: row[name] for name in meta})
