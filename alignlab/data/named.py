"""Published data sets by name: what each is, whose it is, where it comes from, and how to open it.

>>> NAMED["nocaps"].items, NAMED["nocaps"].captions
(4500, '10')
>>> open_named("imagenet")  # doctest: +ELLIPSIS
Traceback (most recent call last):
ValueError: imagenet needs its files: download ... then give their folder: imagenet:FOLDER
"""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path

from alignlab.data.entries import Opened
from alignlab.data.layouts import class_root, read_chat, read_classes, read_nocaps
from alignlab.paths import shipped


@dataclass(frozen=True)
class NamedData:
    """A published set. `items` counts the whole split; `hub` is NAME@REVISION there, `files` what to download else."""

    name: str
    what: str
    split: str
    items: int
    captions: str  # an item
    licence: str
    source: str
    needs: str
    hub: str = ""
    files: str = ""
    get: str = ""


SCENES = ("scenes", "scenes-train")
TRAINING_SCENES = 8000  # unless told otherwise: some minutes of rendering

NAMED = {
    data.name: data
    for data in (
        NamedData(
            name="scenes",
            what="rendered 3-D scenes with generated captions; the embedded laboratory's",
            split="eval",
            items=1024,
            captions="5",
            licence="Apache-2.0, as alignlab",
            source="data/scenes in alignlab's repository; made by `alignlab data render`",
            needs="nothing: it comes with alignlab",
        ),
        NamedData(
            name="scenes-train",
            what="scenes to learn from, of the same generator; none of them is among `scenes`",
            split="train",
            items=TRAINING_SCENES,
            captions="5",
            licence="Apache-2.0, as alignlab",
            source="rendered on first use, 96 px, kept in alignlab's cache folder",
            needs="nothing; scenes-train:N is the first N",
        ),
        NamedData(
            name="wit1024",
            what="Wikipedia images and captions: the Platonic Representation Hypothesis' set; the first caption counts",
            split="train",
            items=1024,
            captions="1 or more",
            licence="CC BY-SA 3.0 (WIT); each image has its own on Wikimedia Commons",
            source="https://huggingface.co/datasets/minhuh/prh/tree/wit_1024",
            needs="the hub and alignlab[hf]; or wit1024:FOLDER",
            hub="minhuh/prh@wit_1024",
            get="hf download minhuh/prh --repo-type dataset --revision wit_1024 --local-dir FOLDER",
        ),
        NamedData(
            name="nocaps",
            what="captions of novel objects; 648 images in-domain, 2,938 near-domain, 914 out-domain",
            split="validation",
            items=4500,
            captions="10",
            licence="CC BY 2.0",
            source="https://huggingface.co/datasets/HuggingFaceM4/NoCaps and https://nocaps.org",
            needs="the hub and alignlab[hf]; or nocaps:FOLDER",
            # The repository itself holds a loading script, which `datasets` no longer runs.
            hub="HuggingFaceM4/NoCaps@refs/convert/parquet",
            files="its Parquet files (1.42 GB), or nocaps_val_4500_captions.json, which tells the domains, "
            "with the images it lists",
            get="hf download HuggingFaceM4/NoCaps --repo-type dataset --revision refs/convert/parquet "
            "--include 'default/validation/*' --local-dir FOLDER",
        ),
        NamedData(
            name="llava595k",
            what="LLaVA's pretraining pairs: a subset of CC3M with balanced concepts, raw captions as answers",
            split="train",
            items=595_375,
            captions="1",
            licence="CC3M's (free for any purpose, Google asks to be named; the images are their owners')",
            source="https://huggingface.co/datasets/liuhaotian/LLaVA-CC3M-Pretrain-595K",
            needs="llava595k:FOLDER with chat.json and images.zip",
            files="chat.json (211 MB) and images.zip (6.46 GB; it need not be unpacked)",
            get="hf download liuhaotian/LLaVA-CC3M-Pretrain-595K chat.json images.zip --repo-type dataset "
            "--local-dir FOLDER",
        ),
        NamedData(
            name="imagenet",
            what='ImageNet (ILSVRC2012), or any folder of class folders; the caption is "a photo of a NAME."',
            split="validation; train: FOLDER/train",
            items=50_000,
            captions="1",
            licence="non-commercial research and education, by ImageNet's terms of access",
            source="https://www.image-net.org/download.php (after registration)",
            needs="imagenet:FOLDER with one folder a class",
            files="ILSVRC2012_img_val.tar (6.3 GB) and sort it into one folder a class (n01440764/...)",
        ),
    )
}


def parse(source: str) -> tuple[NamedData, str] | None:
    """The set that `NAME` or `NAME:FOLDER` means and the folder ("" without), or None where it is no such name."""
    name, _, folder = source.partition(":")
    return (NAMED[name], folder) if name in NAMED and name != "scenes" else None


def is_here(data: NamedData) -> bool | None:
    """Whether the set opens by its name alone without the hub; None for what is always given a folder."""
    if data.name == "scenes":
        return shipped("scenes", "captions.jsonl").is_file()
    if data.name == "scenes-train":
        return True
    if not data.hub:
        return None
    if importlib.util.find_spec("datasets") is None:
        return False
    import datasets
    from datasets.naming import camelcase_to_snakecase

    # What the library has prepared lies under owner___name, the name in its own spelling.
    owner, _, name = data.hub.partition("@")[0].partition("/")
    return os.path.isdir(os.path.join(datasets.config.HF_DATASETS_CACHE, f"{owner}___{camelcase_to_snakecase(name)}"))


def open_named(source: str) -> Opened:
    """Open `NAME` or `NAME:FOLDER`.

    Raises ValueError, in one line, where a folder is needed and not given (what to download from where, how large,
    its licence) or does not hold the set, RuntimeError where the hub does not give it.
    """
    parsed = parse(source)
    if parsed is None:
        raise ValueError(f"no published set {source!r}; there are {', '.join(NAMED)}")
    data, given = parsed
    if data.name == "scenes-train":
        return _training_scenes(data, given)
    if not given:
        if not data.hub:
            raise ValueError(f"{data.name} needs its files: {_how(data)}; then give their folder: {data.name}:FOLDER")
        return _from_hub(data)
    path = Path(os.path.expanduser(given))
    if not os.path.exists(path):
        raise ValueError(f"{source}: there is no {path}; {_how(data)}")
    where = {"wit1024": _copy, "nocaps": _nocaps, "llava595k": _llava, "imagenet": _imagenet}[data.name]
    return where(data, path)


def _training_scenes(data: NamedData, given: str) -> Opened:
    from alignlab.data.rendered import training_scenes
    from alignlab.data.sources import read_jsonl

    if not re.fullmatch(r"([1-9]\d{0,6})?", given):
        raise ValueError(f"{data.name}:{given}: give a number of scenes in 1..9999999, or none for {data.items:,}")
    captions = training_scenes(int(given or data.items)) / "captions.jsonl"
    return Opened(data.name, str(captions), read_jsonl(captions))


def _how(data: NamedData) -> str:
    """What to download from where, how large it is, its licence, and the command."""
    how = f"download {data.files or 'it'} from {data.source}"
    return f"{how}{f' ({data.get})' if data.get else ''}; its licence: {data.licence}"


def _from_hub(data: NamedData) -> Opened:
    from alignlab.data.hub import open_published

    instead = f"use a copy, {data.name}:FOLDER ({data.get})"
    return open_published(data.name, data.hub, data.split, instead)


def _copy(data: NamedData, folder: Path) -> Opened:
    """A folder with the hub's files, or saved by `datasets`."""
    from alignlab.data.hub import open_published

    if not folder.is_dir():
        raise ValueError(f"{data.name}:{folder}: not a folder; {_how(data)}")
    return open_published(f"{data.name}:{folder}", str(folder), data.split, "name another folder")


def _nocaps(data: NamedData, path: Path) -> Opened:
    listed = [path] if path.suffix == ".json" else _nocaps_files(path)
    if listed:
        return Opened(data.name, str(listed[0]), read_nocaps(listed[0]), "list images in it")
    saved = any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))
    # As deep as the hub's default/validation/0000.parquet; "**" would walk all of whatever folder was named.
    if saved or any(next(path.glob(f"{deep}*.parquet"), None) for deep in ("", "*/", "*/*/")):
        return _copy(data, path)
    raise ValueError(f"{data.name}:{path}: neither nocaps_val_4500_captions.json nor Parquet files in it; {_how(data)}")


def _nocaps_files(folder: Path) -> list[Path]:
    inside = [folder, folder / "annotations"]
    return [file for place in inside for file in sorted(place.glob("nocaps_val*captions.json"))]


def _llava(data: NamedData, path: Path) -> Opened:
    names = ("chat.json", "blip_laion_cc_sbu_558k.json")  # the second is LLaVA 1.5's set, in the same layout
    files = [path] if path.suffix == ".json" else [path / name for name in names]
    chat = next((file for file in files if file.is_file()), None)
    if chat is None:
        raise ValueError(f"{data.name}:{path}: no chat.json in it; {_how(data)}")
    return Opened(data.name, str(chat), read_chat(chat), "add items to the list")


def _imagenet(data: NamedData, path: Path) -> Opened:
    root = class_root(path)
    split = root.name if root != path or root.name in ("val", "validation", "train") else ""
    name = f"{data.name}:{split}" if split else data.name
    return Opened(name, str(root), read_classes(root), "it needs one folder a class with images in it")
