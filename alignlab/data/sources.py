"""Where data sets come from: a name, a folder, a .jsonl or .csv file, the Hugging Face hub."""

from __future__ import annotations

import contextlib
import csv
import difflib
import io
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from alignlab.data import named
from alignlab.data.dataset import SKIP_BAD, Bad, Entry, ImageTextDataset, and_more, printable
from alignlab.data.entries import (
    IMAGE_SUFFIXES,
    InFolder,
    Opened,
    captions_of,
    file_entry,
    numbered,
    parse_json,
    read_text,
    refuse_undecodable,
    short,
)
from alignlab.data.tarred import read_shards, shards
from alignlab.paths import shipped

ACCEPTED = (
    "'scenes', 'scenes-train[:N]', 'wit1024', 'nocaps', 'nocaps:FOLDER', 'llava595k:FOLDER', 'imagenet:FOLDER', "
    "a folder (with captions.jsonl, or with a .txt beside each image), "
    "a .jsonl or .csv file, WebDataset shards ('x.tar', 'x-{000..015}.tar', a folder of them), or 'hf:NAME[@REVISION][:SPLIT]'"
)
LONGEST_CELL = 2**31 - 1  # characters in a csv file, as a line of a jsonl file may have; csv's own limit is 2**17
_CAPTION_COLUMN = re.compile(r"captions?|caption_?\d+")


def load_dataset(
    source: str | Path, *, n: int | None = None, skip_bad: bool = False, captions: bool = True
) -> ImageTextDataset:
    """Open a set of images with captions. Images are read later, item by item.

    Args:
        source: one of
            * `"scenes"`, the scenes that come with alignlab (a folder of that name: `"./scenes"`);
            * `"scenes-train"`, or `"scenes-train:N"`: scenes to learn from, rendered on first use and kept;
            * a published set: `"wit1024"` and `"nocaps"` from the hub or, with `":FOLDER"`, from a copy of its files;
              `"llava595k:FOLDER"`; `"imagenet:FOLDER"` (any folder of class folders). `alignlab data show NAME` says
              what each is and how to get it; NoCaps' json gives `meta["domain"]`;
            * a folder with `captions.jsonl`, or with a `.txt` beside each image, one caption a line;
            * a `.jsonl` file: `image` (a path, relative to the file's folder) and `caption` (text) or
              `captions` (a list of texts) on each line; other keys become `meta`;
            * a `.csv` file: a column `image` and one or more of `caption`, `captions` (a JSON list or one
              text), `caption_1`, `caption_2`, ...; rows with the same image are several captions of it;
            * WebDataset shards, `"x.tar"`, `"x-{000..015}.tar"` or a folder of `.tar` files: an image and a `.txt` (or `.caption`,
              or a `.json` with `caption`, `captions` or `text`; its other keys become `meta`) of one name. Nothing is unpacked;
            * `"hf:NAME[@REVISION][:SPLIT]"` on the Hugging Face hub, or with a local folder for NAME. Of a SPLIT as
              `train[:1000]` those rows alone are fetched, as they stream, and kept; of any other, all of it.
        n: the first n items only (with `skip_bad`: the first n good ones).
        skip_bad: leave out what cannot be used (a line that cannot be parsed, a missing or empty caption, an
            image that is missing or cannot be decoded) and list it in `.skipped`. Images are then decoded
            once, here.

        captions: False for a set of which the pictures alone are wanted: a folder of images then needs no texts.

    Raises ValueError, in one line that names the file, the line and what to do: for an unknown or empty
    source, n outside 1..len, and without `skip_bad` for the first thing that cannot be used. An image that is
    there but cannot be decoded raises when it is read, or in `.check()`. Raises RuntimeError where the hub cannot
    be reached or does not give the set.

    >>> load_dataset("scnes")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: no data set 'scnes'; did you mean 'scenes'? Accepted: 'scenes', 'scenes-train[:N]', ...
    """
    opened = _open(source, captions)
    entries: list[Entry] = []
    bad: list[Bad] = []
    for found in opened.items:
        if isinstance(found, Bad):
            bad.append(found)
        else:
            entries.append(found)
    if bad:
        complaint = printable(f"{opened.where}: {bad[0].id}: {bad[0].reason}{and_more(len(bad))}")
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


def _first_good(dataset: ImageTextDataset, n: int) -> ImageTextDataset:
    # Decoding only as far as needed: a thousand items of a hub set must not cost all its images.
    taken = n
    while True:
        candidates = dataset.head(taken)
        missing = n - (taken - len(candidates.undecodable))
        if missing <= 0 or taken == len(dataset):
            return candidates.check(skip_bad=True).head(n)
        taken = min(taken + missing, len(dataset))


def _open(source: str | Path, captions: bool) -> Opened:
    if not isinstance(source, str | Path):
        raise ValueError(f"source must be a str or a Path, got {type(source).__name__}; accepted: {ACCEPTED}")
    if source == "scenes":
        file = shipped("scenes", "captions.jsonl")
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such file; it comes with alignlab: install it again")
        return Opened("scenes", str(file), read_jsonl(file))
    if isinstance(source, str) and source.startswith("hf:"):
        from alignlab.data.hub import open_hub

        return open_hub(source)
    if isinstance(source, str) and named.parse(source):
        return named.open_named(source)
    if isinstance(source, str) and (named_shards := shards(source)):
        return Opened(_name_of(named_shards), source, read_shards(named_shards), _WHEN_SHARDS_ARE_EMPTY)
    # os.path takes any text; Path.expanduser and Path.exists raise for "~nobody" or a name of 300 letters
    path = Path(os.path.expanduser(source))
    if not str(source).strip() or not os.path.exists(path):
        raise _unknown(str(source), path)
    # "." and ".." have no name of their own
    folder_name = path.resolve().name if path.is_dir() else path.resolve().parent.name
    if path.is_dir():
        file = path / "captions.jsonl"
        if file.is_file():
            return Opened(folder_name, str(file), read_jsonl(file))
        if tars := sorted(path.glob("*.tar")):
            return Opened(folder_name, str(path), read_shards(tars), _WHEN_SHARDS_ARE_EMPTY)
        return Opened(folder_name, str(path), _read_folder(path, captions), _when_folder_is_empty(path))
    name = folder_name if path.name == "captions.jsonl" else path.stem
    if path.suffix.lower() == ".jsonl":
        return Opened(name, str(path), read_jsonl(path))
    if path.suffix.lower() == ".csv":
        return Opened(name, str(path), _read_csv(path), "add one row an item under the header")
    raise ValueError(f"{path}: not a data set; accepted: {ACCEPTED}")


_WHEN_SHARDS_ARE_EMPTY = "a shard holds an image and a text of one name for each item"


def _name_of(paths: list[Path]) -> str:
    """What the shards' names have in common, without the number."""
    return re.sub(r"[-_.]?\d+$", "", paths[0].stem) or paths[0].resolve().parent.name


def _unknown(source: str, path: Path) -> ValueError:
    name, colon, folder = source.partition(":")
    # Of a published set's name only what stands before the colon was typed from memory.
    if near_names := difflib.get_close_matches(name.lower().replace("-", ""), named.NAMED, n=1):
        meant = near_names[0] + (colon + folder if near_names[0] != "scenes" else "")
        return ValueError(f"no data set {short(source)}; did you mean {meant!r}? Accepted: {ACCEPTED}")
    near = {}
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


def _read_folder(folder: Path, captioned: bool) -> Iterator[Entry | Bad]:
    for image in sorted(folder.iterdir()):
        if not image.name.lower().endswith(IMAGE_SUFFIXES) or image.is_dir():
            continue
        if image.name.startswith("."):  # macOS leaves a ._cat.jpg that is no image beside cat.jpg
            continue
        if not captioned:
            file = InFolder(str(folder), image.name)
            yield Entry(image.name, file, file, ())
            continue
        beside = image.with_suffix(".txt")
        try:
            text = read_text(beside)
            for number, line in enumerate(text.split("\n"), 1):
                refuse_undecodable(line, f"{beside.name} line {number}")
            captions = captions_of([line for line in text.split("\n") if line.strip()])
            file = InFolder(str(folder), image.name)
            yield Entry(image.name, file, file, captions)
        except FileNotFoundError:
            yield Bad(image.name, f"no captions: no {beside.name} beside it")
        except ValueError as error:
            yield Bad(image.name, str(error))


def read_jsonl(path: Path) -> Iterator[Entry | Bad]:
    seen: dict[str, int] = {}
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            refuse_undecodable(line, "the line")
            entry = _from_keys(parse_json(line), path.parent)
        except ValueError as error:
            yield Bad(f"line {number}", str(error))
            continue
        yield replace(entry, id=numbered(entry.id, seen))


def _from_keys(keys: Any, root: Path) -> Entry:
    if not isinstance(keys, dict):
        raise ValueError(f'expected {{"image": ..., "caption": ...}}, got {short(keys)}')
    held = short(", ".join(keys))
    if "image" not in keys:
        raise ValueError(f'no key "image"; the line has {held}')
    said = "captions" if "captions" in keys else "caption"
    if said not in keys:
        raise ValueError(f'no key "caption" or "captions"; the line has {held}')
    meta = {key: value for key, value in keys.items() if key not in ("image", said)}
    return file_entry(keys["image"], captions_of(keys[said]), root, meta)


def _read_csv(path: Path) -> Iterator[Entry | Bad]:
    rows = _csv_rows(path)
    _, cells = next(rows, (1, []))
    refuse_undecodable("".join(cells), f"{path}: line 1")
    header = [cell.strip().lower() for cell in cells]
    spoken = [column for column in header if _CAPTION_COLUMN.fullmatch(column)]
    if header and (header.count("image") != 1 or not spoken or len(set(header)) != len(header)):
        wanted = "one column image and one or more of caption, captions, caption_1, caption_2, ..."
        there = printable(", ".join(cells)[:300])
        raise ValueError(f"{path}: line 1: the header must have {wanted}, each once; it has {there}")
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
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    rows, number = [], 1
    usual = csv.field_size_limit(LONGEST_CELL)
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append((number, row))
            number = reader.line_num + 1
    except csv.Error as error:
        # Past a broken quote there is no telling rows apart, so this is not an item to skip.
        raise ValueError(f"{path}: line {number}: {error}; correct the quoting of this row") from error
    finally:
        csv.field_size_limit(usual)
    yield from rows


def _from_row(header: list[str], spoken: list[str], row: list[str], root: Path) -> Entry:
    refuse_undecodable("".join(row), "the row")
    if len(row) != len(header):
        raise ValueError(
            f'{len(row)} cells under {len(header)} columns; put "..." round a caption that has a comma in it'
        )
    cells = dict(zip(header, row, strict=True))
    captions: list[str] = []
    for column in spoken:
        cell = cells[column].strip()
        if column == "captions" and cell.startswith("["):
            captions += captions_of(parse_json(cell))
        elif cell:  # items may differ in their number of captions
            captions.append(cell)
    meta = {column: cell for column, cell in cells.items() if column != "image" and column not in spoken}
    return file_entry(cells["image"].strip(), captions_of(captions), root, meta)
