"""Published layouts: NoCaps' COCO-style json, LLaVA's conversations with a zip of images, a folder of classes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from alignlab.data.dataset import Bad, Entry
from alignlab.data.entries import (
    IMAGE_SUFFIXES,
    InFolder,
    captions_of,
    file_entry,
    inside,
    numbered,
    one_line,
    parse_json,
    read_text,
    refuse_undecodable,
    short,
)

_BLANK = re.compile(r"[ \t\r\n]*")
_WNID = re.compile(r"n\d{8}")


# --- LLaVA: chat.json and images.zip ---


def read_chat(chat: Path) -> Iterator[Entry | Bad]:
    """The items of a LLaVA `chat.json`: the answer ("gpt") is the caption, the question ("human") is `meta["prompt"]`.

    Images come from `images/` beside it, else from `images.zip`, which is not unpacked, else from beside it. Raises
    ValueError where the file is no JSON list (past a broken item there is no telling items apart) and for a damaged
    zip; an item that does not fit is a `Bad`.
    """
    place = _images_of(chat.parent)
    prompts: dict[str, dict[str, Any]] = {}  # a handful of questions are asked half a million times
    seen: dict[str, int] = {}
    for index, item in enumerate(_array(chat)):
        try:
            image, caption, prompt = _turns(item)
            entry = place(image, captions_of(caption), prompts.setdefault(prompt, {"prompt": prompt} if prompt else {}))
        except ValueError as error:
            yield Bad(f"[{index}]", str(error))
            continue
        name = numbered(entry.id, seen)
        yield entry if name == entry.id else Entry(name, entry.where, entry.read, entry.captions, entry.meta)


_Place = Callable[[Any, tuple[str, ...], dict[str, Any]], Entry]


def _images_of(folder: Path) -> _Place:
    unpacked, packed = folder / "images", folder / "images.zip"
    if unpacked.is_dir() or not packed.is_file():
        root = unpacked if unpacked.is_dir() else folder
        return lambda image, captions, meta: file_entry(image, captions, root, meta)
    from alignlab.data.zipped import zip_members

    members = zip_members(packed)

    def place(image: Any, captions: tuple[str, ...], meta: dict[str, Any]) -> Entry:
        name = inside(image, packed).replace(os.sep, "/")
        member = members.get(name) or members.get(f"images/{name}")
        if member is None:
            raise ValueError(f"no image {short(name)} in {packed}")
        return Entry(name, member, member, captions, meta)

    return place


def _turns(item: Any) -> tuple[Any, Any, str]:
    """An item's image, its first answer, and the question before it."""
    if not isinstance(item, dict):
        raise ValueError(f'expected {{"image": ..., "conversations": [...]}}, got {short(item)}')
    for key in ("image", "conversations"):
        if key not in item:
            raise ValueError(f'no key "{key}"; the item has {short(", ".join(item))}')
    turns = item["conversations"]
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError(f'conversations must be a list of {{"from": ..., "value": ...}}, got {short(turns)}')
    prompt = ""
    for turn in turns:
        if turn.get("from") == "gpt":
            refuse_undecodable(prompt, "the question")
            return item["image"], turn.get("value"), prompt
        if turn.get("from") == "human" and isinstance(turn.get("value"), str):
            prompt = turn["value"]
    raise ValueError('no turn from "gpt" in conversations, so no caption')


def _array(path: Path) -> Iterator[Any]:
    """The items of a JSON list one after another, so that only one is held as objects at a time."""
    text = read_text(path)
    parse = json.JSONDecoder().raw_decode
    at = _skip(text, 0)
    if text[at : at + 1] != "[":
        raise ValueError(f"{path}: must be a JSON list of items, begins with {short(text[at : at + 20])}")
    at = _skip(text, at + 1)
    closed = text[at : at + 1] == "]"
    while not closed:
        try:
            item, at = parse(text, at)
        except json.JSONDecodeError as error:
            where = f"line {error.lineno}, column {error.colno}"
            raise ValueError(f"{path}: bad JSON ({error.msg}, {where}); download it again") from None
        except (ValueError, RecursionError) as error:  # numbers of 5,000 digits, lists 100,000 deep
            raise ValueError(f"{path}: bad JSON ({one_line(error)})") from None
        yield item
        at = _skip(text, at)
        closed = text[at : at + 1] == "]"
        if not closed and text[at : at + 1] != ",":
            raise ValueError(f"{path}: bad JSON (cut off or broken after {at:,} characters); download it again")
        at = _skip(text, at + 1)


def _skip(text: str, at: int) -> int:
    blank = _BLANK.match(text, at)
    return blank.end() if blank else at


# --- NoCaps: one COCO-style json ---

DOMAINS = ("in-domain", "near-domain", "out-domain")
_NOCAPS_FOLDERS = ("", "images", "val", "validation", "val_images", "imgs")


def read_nocaps(annotations: Path) -> Iterator[Entry | Bad]:
    """The items of `nocaps_val_4500_captions.json`, every caption of an image in the file's order.

    `meta` has `image_id`, and `domain` (in-domain, near-domain, out-domain) and `open_images_id` where the file has
    them. Images lie beside the file, or in `images/`, `val/`, `validation/`, `val_images/` or `imgs/` there or one
    level up. Raises ValueError where the file as a whole does not fit; an item that does not is a `Bad`.
    """
    try:
        found = parse_json(read_text(annotations))
    except ValueError as error:
        raise ValueError(f"{annotations}: {error}" if str(annotations) not in str(error) else str(error)) from None
    if not isinstance(found, dict) or not isinstance(found.get("images"), list):
        raise ValueError(f'{annotations}: must be {{"images": [...], "annotations": [...]}}, got {short(found)}')
    if not isinstance(found.get("annotations"), list):
        raise ValueError(
            f"{annotations}: no annotations; image info alone has no captions: use the validation captions"
        )
    captions: dict[Any, list[Any]] = {}
    bad: list[Bad] = []
    for index, said in enumerate(found["annotations"]):
        if not isinstance(said, dict) or "caption" not in said or not isinstance(said.get("image_id"), int | str):
            bad.append(Bad(f"annotations[{index}]", f"no image_id and caption in {short(said)}"))
        else:
            captions.setdefault(said["image_id"], []).append(said["caption"])
    images = found["images"]
    names = [image["file_name"] for image in images if isinstance(image, dict) and _is_name(image.get("file_name"))]
    root = _folder_of(annotations, names)
    known: set[Any] = set()
    for index, image in enumerate(images):
        try:
            yield _nocaps_entry(image, captions, known, root)
        except ValueError as error:
            yield Bad(f"images[{index}]", str(error))
    for lost in captions.keys() - known:
        bad.append(Bad(f"image_id {short(lost)}", "captions of an image that is not listed"))
    yield from bad


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _folder_of(annotations: Path, names: list[str]) -> Path:
    """The folder that holds one of the images, the nearest first; the file's own where none does."""
    roots = [base / below for base in (annotations.parent, annotations.parent.parent) for below in _NOCAPS_FOLDERS]
    roots = [root for root in roots if root.is_dir()]
    return next((root for name in names for root in roots if os.path.isfile(root / name)), annotations.parent)


def _nocaps_entry(image: Any, captions: dict[Any, list[Any]], known: set[Any], root: Path) -> Entry:
    if not isinstance(image, dict):
        raise ValueError(f'expected {{"id": ..., "file_name": ...}}, got {short(image)}')
    number = image.get("id")
    if not isinstance(number, int | str):
        raise ValueError(f"no id; the image has {short(', '.join(image))}")
    if number in known:
        raise ValueError(f"id {short(number)} is there twice")
    known.add(number)
    meta = {"image_id": number, **{key: image[key] for key in ("domain", "open_images_id") if key in image}}
    if meta.get("domain", DOMAINS[0]) not in DOMAINS:
        raise ValueError(f"domain must be one of {', '.join(DOMAINS)}, got {short(meta['domain'])}")
    return file_entry(image.get("file_name"), captions_of(captions.get(number, [])), root, meta)


# --- a folder of classes ---

_SYNSETS = "LOC_synset_mapping.txt"


def class_root(folder: Path) -> Path:
    """The folder whose sub-folders are the classes: `folder`, or `val` or `train` in it if that has sub-folders."""
    for base in (folder, folder / "ILSVRC" / "Data" / "CLS-LOC"):
        for split in ("val", "validation", "train"):
            if _folders(base / split):
                return base / split
    return folder


def read_classes(root: Path) -> Iterator[Entry | Bad]:
    """One item an image in `root/CLASS/`, with the caption "a photo of a NAME.".

    NAME is the class's first synonym in `LOC_synset_mapping.txt` (beside the images or up to five levels above), else
    for a WordNet id as ImageNet's folders are called the one that timm knows, else the folder's name with spaces for
    underscores. `meta`: `class` (the place in the mapping, or among the sorted folders), `name`, `folder`. Files
    outside class folders do not count. A class without images is a `Bad`.
    """
    folders = _folders(root)
    synsets = _synsets(root)
    places = {name: place for place, name in enumerate(synsets or folders)}
    for folder in folders:
        try:
            refuse_undecodable(folder, "the folder's name")
        except ValueError as error:
            yield Bad(ascii(folder), str(error))
            continue
        known = synsets.get(folder) or (_wordnet(folder) if _WNID.fullmatch(folder) else "")
        name = known.split(",")[0].strip() or folder.replace("_", " ")
        meta = {"class": places.get(folder), "name": name, "folder": folder}
        captions = (f"a photo of a {name}.",)
        with os.scandir(root / folder) as listed:
            images = sorted(x.name for x in listed if x.name.lower().endswith(IMAGE_SUFFIXES) and x.name[0] != ".")
        if not images:
            yield Bad(folder, "no images in this class folder")
        for image in images:
            file = InFolder(str(root), os.path.join(folder, image))
            yield Entry(f"{folder}/{image}", file, file, captions, meta)


def _folders(root: Path) -> list[str]:
    try:
        with os.scandir(root) as listed:
            return sorted(x.name for x in listed if x.is_dir() and not x.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _synsets(root: Path) -> dict[str, str]:
    """WordNet id -> its synonyms, in ImageNet's order; empty where no mapping lies with the images."""
    absolute = root.resolve()
    path = next((up / _SYNSETS for up in (absolute, *absolute.parents[:5]) if (up / _SYNSETS).is_file()), None)
    if path is None:
        return {}
    found: dict[str, str] = {}
    for number, line in enumerate(read_text(path).split("\n"), 1):
        wnid, _, names = line.strip().partition(" ")
        if not wnid:
            continue
        if not _WNID.fullmatch(wnid) or not names.strip():
            raise ValueError(f"{path}: line {number}: expected 'n01440764 tench, Tinca tinca', got {short(line)}")
        refuse_undecodable(names, f"{path}: line {number}")
        found[wnid] = names
    return found


def _wordnet(wnid: str) -> str:
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    return info.label_name_to_description(wnid) if wnid in info.label_names() else ""
