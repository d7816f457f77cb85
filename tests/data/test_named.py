"""The published sets on small files of the same layouts."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from alignlab.data import load_dataset, sources
from alignlab.data.named import NAMED, SCENES, is_here, open_named

COLOURS = ("red", "lime", "blue")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNLAB_HOME", str(tmp_path / "home"))


def picture(colour: str) -> bytes:
    held = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(held, "PNG")
    return held.getvalue()


def refusal(source: str, **options: Any) -> str:
    with pytest.raises(ValueError, match=r"\S") as caught:
        load_dataset(source, **options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 900
    return str(caught.value)


# --- the registry ---


@pytest.mark.parametrize("name", NAMED)
def test_every_set_tells_what_it_is(name: str) -> None:
    data = NAMED[name]
    assert data.name == name
    assert data.items > 0
    for text in (data.what, data.split, data.captions, data.licence, data.source, data.needs):
        assert text.strip() == text != ""
    assert data.hub or data.files or name in SCENES


def test_what_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    assert [is_here(NAMED[name]) for name in NAMED] == [True, True, False, False, None, None]
    for prepared in ("minhuh___prh", "HuggingFaceM4___no_caps"):
        (tmp_path / prepared).mkdir()
    assert is_here(NAMED["wit1024"])
    assert is_here(NAMED["nocaps"])
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert not is_here(NAMED["wit1024"])


@pytest.mark.parametrize("name", ["llava595k", "imagenet"])
@pytest.mark.parametrize("given", ["", ":", ":/not/there"])
def test_without_its_files_a_set_says_how_to_get_them(name: str, given: str) -> None:
    message = refusal(name + given)
    data = NAMED[name]
    for told in (data.source, data.licence, data.files, data.get):
        assert told in message
    assert "GB" in message
    assert f"{name}:FOLDER" in message or "/not/there" in message


def test_near_names() -> None:
    assert "did you mean 'nocaps'?" in refusal("no-caps")
    assert "did you mean 'wit1024'?" in refusal("WIT-1024")
    assert "did you mean 'llava595k:/data/llava'?" in refusal("llava595:/data/llava")
    assert "did you mean 'imagenet'?" in refusal("imagnet")
    with pytest.raises(ValueError, match="no published set 'photos'; there are scenes, scenes-train, wit1024"):
        open_named("photos")


def test_a_name_comes_before_a_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "llava595k").mkdir()
    monkeypatch.chdir(tmp_path)
    assert "llava595k needs its files" in refusal("llava595k")
    assert "0 items" in refusal("./llava595k")


# --- wit1024, and NoCaps' copy on the hub ---


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return datasets


def prh(datasets: Any) -> Any:
    """Rows in the layout of minhuh/prh: an image and a list of texts."""
    texts = [["red square", "crimson"], ["lime square"], ["blue square", "azure", "navy"]]
    rows = {"image": [{"bytes": picture(c), "path": f"{c}.png"} for c in COLOURS], "text": texts}
    features = datasets.Features({"image": datasets.Image(), "text": [datasets.Value("string")]})
    return datasets.Dataset.from_dict(rows, features=features)


def nocaps_rows(datasets: Any) -> Any:
    """Rows in the layout of HuggingFaceM4/NoCaps."""
    value = datasets.Value
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "image_coco_url": value("string"),
            "image_date_captured": value("string"),
            "image_file_name": value("string"),
            "image_height": value("int32"),
            "image_width": value("int32"),
            "image_id": value("int32"),
            "image_license": value("int8"),
            "image_open_images_id": value("string"),
            "annotations_ids": [value("int32")],
            "annotations_captions": [value("string")],
        }
    )
    rows = [
        {
            "image": {"bytes": picture(colour), "path": None},
            "image_coco_url": f"https://s3.amazonaws.com/nocaps/val/{colour}.jpg",
            "image_date_captured": "2018-11-06 11:04:33",
            "image_file_name": f"{colour}.jpg",
            "image_height": 6,
            "image_width": 8,
            "image_id": number,
            "image_license": 0,
            "image_open_images_id": colour,
            "annotations_ids": [10 * number + i for i in range(10)],
            "annotations_captions": [f"{colour} {i} " for i in range(10)],
        }
        for number, colour in enumerate(COLOURS)
    ]
    return datasets.Dataset.from_list(rows, features=features)


def test_wit1024_from_a_parquet_repository(hub: Any, tmp_path: Path) -> None:
    (tmp_path / "prh" / "data").mkdir(parents=True)
    prh(hub).to_parquet(tmp_path / "prh" / "data" / "train-00000-of-00001.parquet")
    ds = load_dataset(f"wit1024:{tmp_path / 'prh'}")
    assert (ds.name, len(ds)) == ("wit1024", 3)
    assert ds.captions[0] == ("red square", "crimson")
    assert ds[2].image.getpixel((0, 0)) == (0, 0, 255)


@pytest.mark.parametrize("splits", [True, False])
def test_wit1024_saved_to_disk(hub: Any, tmp_path: Path, splits: bool) -> None:
    rows = prh(hub)
    (hub.DatasetDict({"train": rows, "test": rows.select([0])}) if splits else rows).save_to_disk(str(tmp_path / "w"))
    ds = load_dataset(f"wit1024:{tmp_path / 'w'}")
    assert (ds.name, len(ds)) == ("wit1024", 3)


def test_the_same_items_have_the_same_fingerprint(hub: Any, tmp_path: Path) -> None:
    prh(hub).save_to_disk(str(tmp_path / "w"))
    lines = []
    for colour, captions in zip(COLOURS, load_dataset(f"wit1024:{tmp_path / 'w'}").captions, strict=True):
        (tmp_path / f"{colour}.png").write_bytes(picture(colour))
        lines.append(json.dumps({"image": f"{colour}.png", "captions": captions}))
    (tmp_path / "same.jsonl").write_text("\n".join(lines))
    assert load_dataset(f"wit1024:{tmp_path / 'w'}").fingerprint == load_dataset(tmp_path / "same.jsonl").fingerprint


def test_a_file_is_no_copy_of_the_hub(tmp_path: Path, hub: Any) -> None:
    (tmp_path / "x.bin").touch()
    assert "not a folder; download it from https://huggingface.co/datasets/minhuh/prh" in refusal(
        f"wit1024:{tmp_path / 'x.bin'}"
    )
    (tmp_path / "empty").mkdir()
    assert "cannot be loaded" in refusal(f"wit1024:{tmp_path / 'empty'}")


def test_what_is_asked_of_the_hub(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(name: str, **options: Any) -> Any:
        asked.append((name, options["revision"], options["split"]))
        return prh(hub) if "prh" in name else nocaps_rows(hub)

    monkeypatch.setattr(hub, "load_dataset", load)
    assert load_dataset("wit1024").name == "wit1024"
    assert load_dataset("nocaps").name == "nocaps"
    assert asked == [
        ("minhuh/prh", "wit_1024", "train"),
        ("HuggingFaceM4/NoCaps", "refs/convert/parquet", "validation"),
    ]


@pytest.mark.parametrize("name", ["wit1024", "nocaps"])
def test_without_the_hub_one_line_says_what_to_do(hub: Any, name: str) -> None:
    with pytest.raises(RuntimeError, match=f"{name}: the hub cannot be reached") as caught:
        load_dataset(name)
    assert f"use a copy, {name}:FOLDER (hf download " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nocaps_from_a_copy_of_its_parquet_files(hub: Any, tmp_path: Path) -> None:
    for split in ("validation", "test"):
        (tmp_path / "default" / split).mkdir(parents=True)
        rows = nocaps_rows(hub)
        (rows if split == "validation" else rows.select([0])).to_parquet(tmp_path / "default" / split / "0000.parquet")
    ds = load_dataset(f"nocaps:{tmp_path}")
    assert (ds.name, len(ds)) == ("nocaps", 3)
    assert ds.captions[1] == tuple(f"lime {i}" for i in range(10))
    assert ds[1].meta["image_id"] == 1
    assert ds[1].meta["image_open_images_id"] == "lime"


# --- NoCaps' own json ---


def nocaps_json(**changes: Any) -> dict[str, Any]:
    domains = ("in-domain", "near-domain", "out-domain")
    made: dict[str, Any] = {
        "licenses": [],
        "info": {"description": "nocaps validation dataset"},
        "images": [
            {"id": i, "file_name": f"{c}.png", "open_images_id": c, "domain": d, "height": 6, "width": 8}
            for i, (c, d) in enumerate(zip(COLOURS, domains, strict=True))
        ],
        "annotations": [{"id": n, "image_id": n % 3, "caption": f"{COLOURS[n % 3]} {n // 3}"} for n in range(30)],
    }
    return {**made, **changes}


def write_nocaps(folder: Path, found: Any, images: str = "val", below: str = "") -> Path:
    (folder / below).mkdir(parents=True, exist_ok=True)
    (folder / images).mkdir(parents=True, exist_ok=True)
    for colour in COLOURS:
        (folder / images / f"{colour}.png").write_bytes(picture(colour))
    file = folder / below / "nocaps_val_4500_captions.json"
    file.write_text(found if isinstance(found, str) else json.dumps(found))
    return file


@pytest.mark.parametrize("images", ["", "images", "val", "validation"])
@pytest.mark.parametrize("below", ["", "annotations"])
def test_nocaps(tmp_path: Path, images: str, below: str) -> None:
    file = write_nocaps(tmp_path, nocaps_json(), images, below)
    ds = load_dataset(f"nocaps:{tmp_path}")
    assert (ds.name, len(ds)) == ("nocaps", 3)
    assert ds.captions[2] == tuple(f"blue {i}" for i in range(10))
    assert ds[2].image.getpixel((0, 0)) == (0, 0, 255)
    assert ds[2].meta == {"image_id": 2, "domain": "out-domain", "open_images_id": "blue"}
    assert load_dataset(f"nocaps:{file}").fingerprint == ds.fingerprint


HOSTILE_NOCAPS: list[tuple[Any, str]] = [
    ("{", "bad JSON"),
    ("[" * 100_000, "bad JSON"),
    ("[]", 'must be {"images"'),
    ({"images": 3}, 'must be {"images"'),
    ({"images": []}, "no annotations; image info alone has no captions"),
    (nocaps_json(images=[]), "captions of an image that is not listed"),
    (nocaps_json(images=[*nocaps_json()["images"], 7]), "images[3]: expected"),
    (nocaps_json(images=[{"file_name": "red.png"}]), "images[0]: no id"),
    (nocaps_json(images=[{"id": [0], "file_name": "red.png"}]), "images[0]: no id"),
    (nocaps_json(images=nocaps_json()["images"] * 2), "images[3]: id 0 is there twice (and 2 more bad items)"),
    (nocaps_json(images=[{"id": 0}]), "image must be a path, got None"),
    (nocaps_json(images=[{"id": 0, "file_name": "../red.png"}]), "leaves the folder"),
    (nocaps_json(images=[{"id": 0, "file_name": "gone.png"}]), "no image "),
    (nocaps_json(images=[{"id": 0, "file_name": "red.png", "domain": "nowhere"}]), "domain must be one of in-domain"),
    (nocaps_json(annotations=[]), "images[0]: no caption"),
    (nocaps_json(annotations=[*nocaps_json()["annotations"], {"image_id": 0}]), "annotations[30]: no image_id and"),
    (nocaps_json(annotations=[*nocaps_json()["annotations"], "x" * 10_000_000]), "annotations[30]: no image_id and"),
    (nocaps_json(annotations=[*nocaps_json()["annotations"], {"image_id": 0, "caption": 5}]), "must be text, got 5"),
    (nocaps_json(annotations=[*nocaps_json()["annotations"], {"image_id": 9, "caption": "x"}]), "image_id 9: captions"),
]


@pytest.mark.parametrize("case", range(len(HOSTILE_NOCAPS)))
def test_hostile_nocaps_json(tmp_path: Path, case: int) -> None:
    found, reason = HOSTILE_NOCAPS[case]
    file = write_nocaps(tmp_path, found)
    message = refusal(f"nocaps:{tmp_path}")
    assert str(file) in message
    assert reason in message


def test_bad_nocaps_items_are_left_out(tmp_path: Path) -> None:
    found = nocaps_json()
    found["images"][0]["file_name"] = "gone.png"
    write_nocaps(tmp_path, found)
    ds = load_dataset(f"nocaps:{tmp_path}", skip_bad=True)
    assert [item.id for item in ds] == ["lime.png", "blue.png"]
    assert [bad.id for bad in ds.skipped] == ["images[0]"]


def test_a_folder_without_nocaps(tmp_path: Path) -> None:
    assert "neither nocaps_val_4500_captions.json nor Parquet files in it; download" in refusal(f"nocaps:{tmp_path}")


# --- LLaVA ---


def chat(image: Any, caption: Any, prompt: str = "Describe the image concisely.\n<image>") -> dict[str, Any]:
    turns = [{"from": "human", "value": prompt}, {"from": "gpt", "value": caption}]
    return {"id": str(image).removesuffix(".jpg"), "image": image, "conversations": turns}


NAMES = [f"GCC_train_{i:09d}.jpg" for i in (2582585, 2109690, 2429825)]
CHATS = [chat(name, f"a {colour} square ") for name, colour in zip(NAMES, COLOURS, strict=True)]


def write_llava(folder: Path, chats: Any, prefix: str = "", packed: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = chats if isinstance(chats, str) else json.dumps(chats)
    (folder / "chat.json").write_text(text, encoding="utf-8")
    pictures = dict(zip(NAMES, map(picture, COLOURS), strict=True))
    if packed:
        with zipfile.ZipFile(folder / "images.zip", "w") as made:
            for name, data in pictures.items():
                made.writestr(prefix + name, data)
            made.writestr("../outside.png", picture("black"))
    else:
        (folder / prefix).mkdir(exist_ok=True)
        for name, data in pictures.items():
            (folder / prefix / name).write_bytes(data)
    return folder


@pytest.mark.parametrize(("prefix", "packed"), [("", True), ("images/", True), ("", False), ("images", False)])
def test_llava(tmp_path: Path, prefix: str, packed: bool) -> None:
    ds = load_dataset(f"llava595k:{write_llava(tmp_path / 'llava', CHATS, prefix, packed)}")
    assert (ds.name, len(ds)) == ("llava595k", 3)
    assert ds.captions == [("a red square",), ("a lime square",), ("a blue square",)]
    assert ds[1].id == NAMES[1]
    assert ds[1].image.getpixel((0, 0)) == (0, 255, 0)
    assert ds[1].meta == {"prompt": "Describe the image concisely.\n<image>"}
    (tmp_path / "same").mkdir()
    lines = [{"image": name, "caption": c["conversations"][1]["value"]} for name, c in zip(NAMES, CHATS, strict=True)]
    for name, colour in zip(NAMES, COLOURS, strict=True):
        (tmp_path / "same" / name).write_bytes(picture(colour))
    (tmp_path / "same" / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert load_dataset(tmp_path / "same").fingerprint == ds.fingerprint
    assert load_dataset(f"llava595k:{tmp_path / 'llava' / 'chat.json'}", n=2).captions == ds.captions[:2]
    assert not (tmp_path / "outside.png").exists()


def test_llava_1_5s_set_is_in_the_same_layout(tmp_path: Path) -> None:
    write_llava(tmp_path, CHATS)
    (tmp_path / "chat.json").rename(tmp_path / "blip_laion_cc_sbu_558k.json")
    assert len(load_dataset(f"llava595k:{tmp_path}")) == 3


def test_one_image_in_two_conversations(tmp_path: Path) -> None:
    ds = load_dataset(f"llava595k:{write_llava(tmp_path, [*CHATS, chat(NAMES[0], 'again')])}")
    assert [item.id for item in ds] == [*NAMES, f"{NAMES[0]}#2"]


HOSTILE_CHATS: list[tuple[Any, str]] = [
    (7, '[1]: expected {"image"'),
    ({"image": NAMES[0]}, "[1]: no key \"conversations\"; the item has 'image'"),
    ({"conversations": []}, '[1]: no key "image"'),
    ({"image": NAMES[0], "conversations": "hi"}, "[1]: conversations must be a list"),
    ({"image": NAMES[0], "conversations": [["gpt", "hi"]]}, "[1]: conversations must be a list"),
    ({"image": NAMES[0], "conversations": []}, '[1]: no turn from "gpt"'),
    ({"image": NAMES[0], "conversations": [{"from": "gpt"}]}, "a caption must be text or a list of texts, got None"),
    (chat(NAMES[0], " "), "[1]: empty caption"),
    (chat(NAMES[0], 7), "a caption must be text or a list of texts, got 7"),
    (chat(NAMES[0], "\ud800"), "caption is not UTF-8"),
    (chat(NAMES[0], "x", "\ud800"), "the question is not UTF-8"),
    (chat(None, "x"), "image must be a path, got None"),
    (chat("../outside.png", "x"), "leaves the folder"),
    (chat("gone.jpg", "x"), "[1]: no image 'gone.jpg' in "),
    (chat("x" * 10_000_000, "x"), "[1]: no image 'xxx"),
]


@pytest.mark.parametrize("case", range(len(HOSTILE_CHATS)))
def test_hostile_conversations(tmp_path: Path, case: int) -> None:
    item, reason = HOSTILE_CHATS[case]
    write_llava(tmp_path, [CHATS[0], item, CHATS[2]])
    message = refusal(f"llava595k:{tmp_path}")
    assert f"{tmp_path / 'chat.json'}: " in message
    assert reason in message
    assert message.endswith("use --skip-bad to leave bad items out")
    ds = load_dataset(f"llava595k:{tmp_path}", skip_bad=True)
    assert [item.id for item in ds] == [NAMES[0], NAMES[2]]
    assert [bad.id for bad in ds.skipped] == ["[1]"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "must be a JSON list of items, begins with ''"),
        ('{"image": 1}', "must be a JSON list of items"),
        ("[", "bad JSON (Expecting value, line 1, column 2)"),
        (json.dumps(CHATS)[:-200], "bad JSON ("),
        (json.dumps(CHATS)[:-1], "bad JSON (cut off or broken after"),
        (json.dumps(CHATS[:1])[:-1] + " 3]", "bad JSON (cut off or broken after"),
        (json.dumps(CHATS)[:-1] + ",]", "bad JSON ("),
        ("[" * 100_000, "bad JSON ("),
        ("[]", "0 items"),
        (" [ \n ] ", "0 items"),
    ],
)
def test_a_chat_json_that_is_no_list(tmp_path: Path, text: str, reason: str) -> None:
    message = refusal(f"llava595k:{write_llava(tmp_path, text)}", skip_bad=True)
    assert f"{tmp_path / 'chat.json'}: " in message
    assert reason in message


def test_a_byte_that_is_not_utf8_costs_its_item(tmp_path: Path) -> None:
    write_llava(tmp_path, CHATS)
    data = (tmp_path / "chat.json").read_bytes()
    (tmp_path / "chat.json").write_bytes(b"\xef\xbb\xbf" + data.replace(b"a lime", b"a l\xefme"))
    assert "[1]: caption is not UTF-8 (byte 0xef)" in refusal(f"llava595k:{tmp_path}")
    assert len(load_dataset(f"llava595k:{tmp_path}", skip_bad=True)) == 2


def test_a_truncated_image_in_the_zip_is_left_out(tmp_path: Path) -> None:
    write_llava(tmp_path, CHATS)
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as made:
        for name, colour in zip(NAMES, COLOURS, strict=True):
            made.writestr(name, picture(colour)[: 20 if colour == "lime" else None])
    ds = load_dataset(f"llava595k:{tmp_path}")
    with pytest.raises(ValueError, match=rf"images\.zip: {NAMES[1]}: .*use --skip-bad"):
        ds.check()
    ds = load_dataset(f"llava595k:{tmp_path}", skip_bad=True)
    assert [item.id for item in ds] == [NAMES[0], NAMES[2]]
    assert [bad.id for bad in ds.skipped] == [NAMES[1]]


def test_a_damaged_or_missing_zip(tmp_path: Path) -> None:
    write_llava(tmp_path, CHATS)
    (tmp_path / "images.zip").write_bytes(b"PK\x03\x04 and no more")
    assert "images.zip: not a whole zip" in refusal(f"llava595k:{tmp_path}")
    (tmp_path / "images.zip").unlink()
    assert "no image " in refusal(f"llava595k:{tmp_path}")
    (tmp_path / "chat.json").unlink()
    assert "no chat.json in it; download chat.json (211 MB)" in refusal(f"llava595k:{tmp_path}")


def test_a_zip_that_is_damaged_later_counts_as_unreadable(tmp_path: Path) -> None:
    ds = load_dataset(f"llava595k:{write_llava(tmp_path, CHATS)}")
    whole = ds.fingerprint
    data = (tmp_path / "images.zip").read_bytes()
    (tmp_path / "images.zip").write_bytes(data.replace(b"\x89PNG", b"\x89XXX"))
    ds = load_dataset(f"llava595k:{tmp_path}")
    assert ds.fingerprint != whole
    with pytest.raises(ValueError, match=r"cannot be read \(damaged in the zip"):
        ds[0]


# --- ImageNet ---

SYNSETS = {
    "n01440764": "tench, Tinca tinca",
    "n01443537": "goldfish, Carassius auratus",
    "n02012849": "crane",
}


def write_classes(folder: Path, *names: str) -> Path:
    for name, colour in zip(names, COLOURS, strict=False):
        (folder / name).mkdir(parents=True)
        for number in (2, 1):
            (folder / name / f"{name}_{number}.JPEG").write_bytes(picture(colour))
        (folder / name / "notes.txt").write_text("not an image")
    return folder


def write_mapping(folder: Path) -> None:
    lines = [f"{wnid} {names}" for wnid, names in SYNSETS.items()]
    (folder / "LOC_synset_mapping.txt").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("below", ["", "val", "train", "ILSVRC/Data/CLS-LOC/val"])
def test_imagenet(tmp_path: Path, below: str) -> None:
    root = write_classes(tmp_path / below, "n02012849", "n01440764")
    write_mapping(tmp_path)
    (root / "loose.JPEG").write_bytes(picture("black"))
    ds = load_dataset(f"imagenet:{tmp_path}")
    assert ds.name == (f"imagenet:{root.name}" if below else "imagenet")
    assert [item.id for item in ds] == [f"{w}/{w}_{i}.JPEG" for w in ("n01440764", "n02012849") for i in (1, 2)]
    assert ds.captions[0] == ("a photo of a tench.",)
    assert ds[2].meta == {"class": 2, "name": "crane", "folder": "n02012849"}  # the third line of the mapping
    assert ds[0].image.getpixel((0, 0)) == (0, 255, 0)
    assert load_dataset(f"imagenet:{root}").fingerprint == ds.fingerprint


def test_validation_comes_before_training(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", "n01440764")
    write_classes(tmp_path / "val", "n02012849")
    write_mapping(tmp_path)
    assert load_dataset(f"imagenet:{tmp_path}").name == "imagenet:val"
    train = load_dataset(f"imagenet:{tmp_path / 'train'}")
    assert (train.name, train[0].meta["folder"]) == ("imagenet:train", "n01440764")


def test_without_a_mapping_timm_knows_the_names(tmp_path: Path) -> None:
    ds = load_dataset(f"imagenet:{write_classes(tmp_path, 'n02012849', 'n01440764', 'n99999999')}")
    assert [c[0] for c in ds.captions[::2]] == ["a photo of a tench.", "a photo of a crane.", "a photo of a n99999999."]


def test_any_folder_of_classes(tmp_path: Path) -> None:
    ds = load_dataset(f"imagenet:{write_classes(tmp_path, 'golden_retriever', 'train', 'bus')}")
    assert ds.name == "imagenet"
    assert [c[0] for c in ds.captions[::2]] == [
        "a photo of a bus.",
        "a photo of a golden retriever.",
        "a photo of a train.",
    ]
    assert [item.meta["class"] for item in ds] == [0, 0, 1, 1, 2, 2]


def test_folders_without_classes_or_images(tmp_path: Path) -> None:
    assert "0 items; it needs one folder a class" in refusal(f"imagenet:{tmp_path}")
    (tmp_path / "a.JPEG").write_bytes(picture("red"))
    assert "0 items; it needs one folder a class" in refusal(f"imagenet:{tmp_path}")
    write_classes(tmp_path, "cat")
    (tmp_path / "dog").mkdir()
    (tmp_path / ".hidden").mkdir()
    assert "dog: no images in this class folder; correct it, or use --skip-bad" in refusal(f"imagenet:{tmp_path}")
    ds = load_dataset(f"imagenet:{tmp_path}", skip_bad=True)
    assert (len(ds), [bad.id for bad in ds.skipped]) == (2, ["dog"])
    assert "0 items" in refusal(f"imagenet:{tmp_path / 'a.JPEG'}")


@pytest.mark.parametrize("line", ["tench", "n01440764", "n01440764 ", "1440764 tench"])
def test_a_mapping_that_does_not_fit(tmp_path: Path, line: str) -> None:
    write_classes(tmp_path, "n01440764")
    (tmp_path / "LOC_synset_mapping.txt").write_text(f"n02012849 crane\n{line}\n")
    assert "LOC_synset_mapping.txt: line 2: expected 'n01440764 tench" in refusal(f"imagenet:{tmp_path}")


def test_names_do_not_import_torch(tmp_path: Path) -> None:
    write_llava(tmp_path, CHATS)
    code = f"import sys, alignlab; alignlab.load_dataset('llava595k:{tmp_path}'); sys.exit('torch' in sys.modules)"
    root = Path(sources.__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, env={**os.environ, "PYTHONPATH": str(root)})


def test_training_scenes_are_rendered_once_and_are_no_evaluation_scenes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGNLAB_HOME", str(tmp_path))
    data = load_dataset("scenes-train:3")
    assert (data.name, len(data), data[0].image.size) == ("scenes-train", 3, (96, 96))
    assert all(len(captions) == 5 for captions in data.captions)
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.jpg")}
    again = load_dataset("scenes-train:3")
    assert again.fingerprint == data.fingerprint
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.jpg")} == made
    known = set(load_dataset("scenes").captions)
    assert not known & set(data.captions)
    # A rendering that was killed is begun again.
    (folder,) = (path for path in (tmp_path / "scenes").iterdir() if path.is_dir())
    folder.rename(folder.with_suffix(".unfinished"))
    assert load_dataset("scenes-train:3").fingerprint == data.fingerprint


@pytest.mark.parametrize("count", ["0", "-1", "many", "1.5"])
def test_a_number_of_training_scenes_is_one(count: str) -> None:
    with pytest.raises(ValueError, match="give a number of scenes"):
        load_dataset(f"scenes-train:{count}")
