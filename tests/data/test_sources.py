from __future__ import annotations

import csv
import errno
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import filelock
import pytest
from PIL import Image

from alignlab.data import load_dataset, sources
from alignlab.data.dataset import Bad
from alignlab.paths import shipped

PHOTOS = Path(__file__).resolve().parents[3] / "shared" / "data" / "photos"
COLOURS = {"a.png": "red", "b.png": "lime", "c.png": "blue"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder called `squares` with three images and no captions; checks are remembered beside it."""
    monkeypatch.setenv("ALIGNLAB_HOME", str(tmp_path / "home"))
    made = tmp_path / "squares"
    made.mkdir()
    for name, colour in COLOURS.items():
        Image.new("RGB", (8, 6), colour).save(made / name)
    return made


def write_jsonl(path: Path, *lines: dict[str, Any] | str) -> Path:
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")
    return path


def write_csv(path: Path, *rows: list[str]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def refusal(source: str | Path, **options: Any) -> str:
    with pytest.raises(ValueError, match=r"\S") as caught:
        load_dataset(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


ABC = tuple({"image": name, "caption": f"a {colour} square"} for name, colour in COLOURS.items())


# --- jsonl ---


def test_a_folder_with_captions_jsonl(folder: Path) -> None:
    write_jsonl(folder / "captions.jsonl", *ABC)
    ds = load_dataset(folder)
    assert ds.name == "squares"
    assert ds.captions == [("a red square",), ("a lime square",), ("a blue square",)]
    assert ds[0].id == "a.png"
    assert ds[0].image.getpixel((0, 0)) == (255, 0, 0)
    assert load_dataset(str(folder)).fingerprint == ds.fingerprint
    assert load_dataset(folder / "captions.jsonl").name == "squares"


def test_a_jsonl_is_named_by_its_stem(folder: Path) -> None:
    write_jsonl(folder / "train.jsonl", *ABC)
    assert load_dataset(folder / "train.jsonl").name == "train"


def test_a_folder_named_by_a_dot(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_jsonl(folder / "captions.jsonl", *ABC)
    monkeypatch.chdir(folder)
    assert load_dataset(".").name == "squares"
    assert load_dataset("captions.jsonl").name == "squares"


def test_jsonl_keys(folder: Path) -> None:
    (folder / "sub").mkdir()
    Image.new("L", (4, 4)).save(folder / "sub" / "d.png")
    write_jsonl(
        folder / "captions.jsonl",
        {"image": "a.png", "captions": [" one ", "two"], "label": "red", "size": [8, 6]},
        {"image": str(folder / "b.png"), "caption": "absolute"},
        {"image": "./sub/../sub/d.png", "caption": ["below"]},
        {"image": "c.png", "captions": ["listed"], "caption": "single"},
    )
    ds = load_dataset(folder)
    assert ds.captions == [("one", "two"), ("absolute",), ("below",), ("listed",)]
    assert [item.meta for item in ds] == [{"label": "red", "size": [8, 6]}, {}, {}, {"caption": "single"}]
    assert ds[2].id == "sub/d.png"


def test_one_image_on_several_lines_is_several_items(folder: Path) -> None:
    write_jsonl(folder / "captions.jsonl", *ABC, {"image": "a.png", "caption": "again"})
    ds = load_dataset(folder)
    assert [item.id for item in ds] == ["a.png", "b.png", "c.png", "a.png#2"]


def test_byte_order_mark_blank_lines_and_windows_line_ends(folder: Path) -> None:
    lines = "\r\n\r\n".join(json.dumps(line, ensure_ascii=False) for line in ABC)
    (folder / "captions.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.encode() + b"\r\n \r\n")
    assert len(load_dataset(folder)) == 3


def test_captions_keep_their_letters(folder: Path) -> None:
    text = "un carré rouge \u2028 赤い四角 🟥"
    write_jsonl(folder / "captions.jsonl", json.dumps({"image": "a.png", "caption": text}, ensure_ascii=False))
    assert load_dataset(folder).captions == [(text,)]


BAD_LINES = {
    '{"image": "a.png", "caption": ': "bad JSON",
    "[" * 100_000: "bad JSON",
    '["a.png", "a red square"]': "expected {",
    '{"img": "a.png", "caption": "x"}': "no key \"image\"; the line has 'img, caption'",
    '{"image": "a.png", "text": "x"}': 'no key "caption" or "captions"; the line has \'image, text\'',
    '{"image": "a.png", "caption": ""}': "empty caption",
    '{"image": "a.png", "caption": " \\t"}': "empty caption",
    '{"image": "a.png", "captions": []}': "no caption",
    '{"image": "a.png", "captions": ["x", ""]}': "empty caption",
    '{"image": "a.png", "caption": null}': "must be text or a list of texts, got None",
    '{"image": "a.png", "captions": ["x", 3]}': "must be text, got 3",
    '{"image": "a.png", "caption": "\\ud800"}': "not UTF-8",
    '{"image": 7, "caption": "x"}': "image must be a path, got 7",
    '{"image": "", "caption": "x"}': "image must be a path, got ''",
    '{"image": "gone.png", "caption": "x"}': "no image ",
    '{"image": ".", "caption": "x"}': "no image ",
    '{"image": "a\\u0000.png", "caption": "x"}': "no image ",
    '{"image": "../squares/a.png", "caption": "x"}': "leaves the folder",
    '{"image": "sub/../../a.png", "caption": "x"}': "leaves the folder",
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_a_bad_line_is_an_error_unless_skipped(folder: Path, line: str) -> None:
    file = write_jsonl(folder / "captions.jsonl", ABC[0], line, ABC[2])
    message = refusal(folder)
    assert f"{file}: line 2: " in message
    assert BAD_LINES[line] in message
    assert message.endswith("use --skip-bad to leave bad items out")
    assert len(message) < 700
    ds = load_dataset(folder, skip_bad=True)
    assert [item.id for item in ds] == ["a.png", "c.png"]
    assert [bad.id for bad in ds.skipped] == ["line 2"]


def test_bytes_that_are_not_utf8_name_their_line(folder: Path) -> None:
    good = [json.dumps(line).encode() for line in ABC]
    latin = '{"image": "a.png", "caption": "carré"}'.encode("latin-1")
    (folder / "captions.jsonl").write_bytes(b"\n".join([*good, latin]))
    assert "line 4: the line is not UTF-8 (byte 0xe9)" in refusal(folder)
    assert len(load_dataset(folder, skip_bad=True)) == 3


def test_the_number_of_bad_lines_is_told(folder: Path) -> None:
    write_jsonl(folder / "captions.jsonl", *ABC, "{", "{", "{")
    assert "line 4: bad JSON" in refusal(folder)
    assert "(and 2 more bad items)" in refusal(folder)


def test_only_bad_lines(folder: Path) -> None:
    write_jsonl(folder / "captions.jsonl", "{", "{")
    assert "none of the 2 items is good" in refusal(folder, skip_bad=True)


@pytest.mark.parametrize("text", ["", "\n \n", "\ufeff"])
def test_an_empty_jsonl(folder: Path, text: str) -> None:
    (folder / "captions.jsonl").write_text(text, encoding="utf-8")
    assert "0 items" in refusal(folder)


# --- bad images, n ---


def test_a_corrupt_image_is_found_by_check_or_left_out(folder: Path) -> None:
    write_jsonl(folder / "captions.jsonl", *ABC)
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:-30])
    ds = load_dataset(folder)
    assert len(ds) == 3
    with pytest.raises(ValueError, match=r"b\.png: .*truncated.*; use --skip-bad to leave bad items out"):
        ds.check()
    ds = load_dataset(folder, skip_bad=True)
    assert [item.id for item in ds] == ["a.png", "c.png"]
    assert [bad.id for bad in ds.skipped] == ["b.png"]


def test_n(folder: Path) -> None:
    write_jsonl(folder / "captions.jsonl", *ABC)
    assert len(load_dataset(folder, n=2)) == 2
    assert len(load_dataset(folder, n=3)) == 3
    for n in (0, -1, 4):
        assert f"1..3 (the items of squares), got {n}" in refusal(folder, n=n)
        assert f"1..3 (the items of squares), got {n}" in refusal(folder, n=n, skip_bad=True)


def test_n_with_skip_bad_counts_good_items(folder: Path) -> None:
    write_jsonl(folder / "captions.jsonl", *ABC)
    (folder / "a.png").write_bytes(b"nonsense")
    assert [item.id for item in load_dataset(folder, n=1, skip_bad=True)] == ["b.png"]
    assert [item.id for item in load_dataset(folder, n=2, skip_bad=True)] == ["b.png", "c.png"]
    assert "1..2 (the items of squares), got 3" in refusal(folder, n=3, skip_bad=True)


# --- images with .txt ---


def test_a_folder_of_images_with_txt(folder: Path) -> None:
    (folder / "a.txt").write_text("a red square\n\n another red square \n")
    (folder / "b.txt").write_bytes(b"\xef\xbb\xbfa lime square\r\n")
    (folder / "c.txt").write_text("a blue square")
    (folder / "README.txt").write_text("not a caption")
    (folder / "._a.png").write_bytes(b"left by macOS")
    ds = load_dataset(folder)
    assert ds.name == "squares"
    assert ds.captions == [("a red square", "another red square"), ("a lime square",), ("a blue square",)]
    assert [item.id for item in ds] == list(COLOURS)


def test_the_kind_of_source_does_not_change_the_fingerprint(folder: Path) -> None:
    for line in ABC:
        (folder / line["image"]).with_suffix(".txt").write_text(line["caption"])
    by_txt = load_dataset(folder).fingerprint
    by_csv = write_csv(folder / "s.csv", ["image", "caption"], *([x["image"], x["caption"]] for x in ABC))
    assert load_dataset(by_csv).fingerprint == by_txt
    assert load_dataset(write_jsonl(folder / "captions.jsonl", *ABC)).fingerprint == by_txt


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (None, "no captions: no b.txt beside it"),
        (b" \n\n", "no caption"),
        (b"fine\ncarr\xe9\n", "b.txt line 2 is not UTF-8 (byte 0xe9)"),
    ],
)
def test_a_bad_txt(folder: Path, data: bytes | None, reason: str) -> None:
    for name in ("a.txt", "c.txt"):
        (folder / name).write_text("a square")
    if data is not None:
        (folder / "b.txt").write_bytes(data)
    message = refusal(folder)
    assert f"{folder}: b.png: {reason}" in message
    assert "use --skip-bad" in message
    assert load_dataset(folder, skip_bad=True).skipped[0].id == "b.png"


def test_an_empty_folder(tmp_path: Path) -> None:
    assert "0 items; it needs captions.jsonl" in refusal(tmp_path)
    (tmp_path / "train.jsonl").touch()
    assert f"name the file itself: {tmp_path / 'train.jsonl'}" in refusal(tmp_path)


# --- csv ---


def test_csv(folder: Path) -> None:
    file = write_csv(
        folder / "table.csv",
        ["Image", "caption", "label"],
        ["a.png", 'a "red", square\nover two lines', "red"],
        ["b.png", "a lime square", "lime"],
        [],
        ["./a.png", "another", "ignored"],
    )
    ds = load_dataset(file)
    assert ds.name == "table"
    assert ds.captions == [('a "red", square\nover two lines', "another"), ("a lime square",)]
    assert [item.meta for item in ds] == [{"label": "red"}, {"label": "lime"}]


def test_a_cell_may_be_as_long_as_a_line_of_jsonl(folder: Path) -> None:
    long = "words " * 50_000  # csv's own limit is 131,072 characters
    file = write_csv(folder / "long.csv", ["image", "caption"], ["a.png", long], ["b.png", "short"])
    before = csv.field_size_limit()
    assert load_dataset(file)[0].captions == (long.strip(),)
    assert csv.field_size_limit() == before


def test_csv_with_numbered_and_listed_captions(folder: Path) -> None:
    file = write_csv(
        folder / "table.csv",
        ["image", "caption_1", "caption_2", "captions"],
        ["a.png", "one", "two", '["three", "four"]'],
        ["b.png", "", "two", ""],
        ["c.png", "", "", "one text | with a bar"],
    )
    assert load_dataset(file).captions == [
        ("one", "two", "three", "four"),
        ("two",),
        ("one text | with a bar",),
    ]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (["b.png"], "1 cells under 2 columns"),
        (["b.png", "a lime", " square"], "3 cells under 2 columns; put"),
        (["b.png", " "], "no caption"),
        (["", "x"], "image must be a path"),
        (["gone.png", "x"], "no image "),
        (["../squares/b.png", "x"], "leaves the folder"),
    ],
)
def test_a_bad_row(folder: Path, row: list[str], reason: str) -> None:
    file = write_csv(folder / "t.csv", ["image", "caption"], ["a.png", "two\nlines"], row, ["c.png", "x"])
    message = refusal(file)
    assert f"{file}: line 4: " in message
    assert reason in message
    assert "use --skip-bad" in message
    ds = load_dataset(file, skip_bad=True)
    assert [item.id for item in ds] == ["a.png", "c.png"]
    assert [bad.id for bad in ds.skipped] == ["line 4"]


def test_a_bad_list_in_a_row(folder: Path) -> None:
    file = write_csv(folder / "t.csv", ["image", "captions"], ["a.png", '["one", ]'])
    assert "line 2: bad JSON" in refusal(file)


@pytest.mark.parametrize(
    "header", [["image;caption"], ["image"], ["caption"], ["image", "text"], ["image", "caption", "caption"]]
)
def test_a_csv_header_that_does_not_fit(folder: Path, header: list[str]) -> None:
    file = write_csv(folder / "t.csv", header, ["a.png"] * len(header))
    assert f"{file}: line 1: the header must have" in refusal(file, skip_bad=True)
    assert f"it has {', '.join(header)}" in refusal(file)


def test_a_csv_with_broken_quotes_or_encoding(folder: Path) -> None:
    file = folder / "t.csv"
    file.write_text('image,caption\na.png,x\nb.png,"never closed\nc.png,x\n')
    assert f"{file}: line 3: " in refusal(file, skip_bad=True)
    file.write_bytes("image,caption\na.png,x\nb.png,carré\n".encode("latin-1"))
    assert "line 3: the row is not UTF-8 (byte 0xe9)" in refusal(file)
    file.write_text("image,caption\na.png,x\n", encoding="utf-16")
    assert "line 1 is not UTF-8" in refusal(file)


@pytest.mark.parametrize("text", ["", "\n", "image,caption\n"])
def test_an_empty_csv(folder: Path, text: str) -> None:
    (folder / "t.csv").write_text(text)
    assert "0 items" in refusal(folder / "t.csv")


def test_csv_with_byte_order_mark(folder: Path) -> None:
    (folder / "t.csv").write_text("\ufeffimage,caption\r\na.png,x\r\n", encoding="utf-8")
    assert load_dataset(folder / "t.csv").captions == [("x",)]


# --- which source ---


def test_scenes_are_the_shipped_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_jsonl(folder / "captions.jsonl", *ABC)
    monkeypatch.setattr(sources, "shipped", lambda *parts: folder.joinpath(*parts[1:]))
    ds = load_dataset("scenes")
    assert (ds.name, len(ds)) == ("scenes", 3)
    (folder / "captions.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match="install it again"):
        load_dataset("scenes")


@pytest.mark.skipif(not shipped("scenes", "captions.jsonl").is_file(), reason="no scenes in data/ yet")
def test_the_scenes_themselves() -> None:
    ds = load_dataset("scenes")
    assert len(ds) == 1024
    assert ds[0].image.mode == ds[1023].image.mode == "RGB"


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="no photographs in ../shared/data/photos")
def test_the_photographs() -> None:
    ds = load_dataset(PHOTOS)
    assert (ds.name, len(ds)) == ("photos", 1000)
    assert ds[0].image.size == (256, 256)
    assert ds[0].meta == {"label": "tench"}
    assert all(len(captions) >= 1 for captions in ds.captions)
    assert load_dataset(PHOTOS, n=20).check().skipped == ()


@pytest.mark.parametrize("source", ["scene", "Scenes", "sceness"])
def test_an_unknown_name_suggests_a_near_one(source: str) -> None:
    message = refusal(source)
    assert f"no data set {source!r}" in message
    assert "did you mean 'scenes'?" in message
    for accepted in ("captions.jsonl", ".txt", ".csv", "hf:NAME"):
        assert accepted in message


def test_an_unknown_path_suggests_its_neighbours(folder: Path) -> None:
    assert f"did you mean {str(folder)!r}" in refusal(folder.parent / "sqares")
    write_jsonl(folder / "train.jsonl", *ABC)
    assert f"did you mean {str(folder / 'train.jsonl')!r}" in refusal(folder / "trian.jsonl")
    assert "did you mean 'hf:someone/images'" in refusal("someone/images")


@pytest.mark.parametrize("source", ["", " ", "x" * 400, "~nobody-of-that-name/x", "a\0b", "http://x/y.zip"])
def test_odd_names(source: str) -> None:
    assert "no data set" in refusal(source)
    assert "Accepted: 'scenes'" in refusal(source)


def test_other_files_and_types(folder: Path) -> None:
    assert "a.png: not a data set" in refusal(folder / "a.png")
    assert "got int" in refusal(7)  # type: ignore[arg-type]


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, alignlab.data; sys.exit('torch' in sys.modules or 'datasets' in sys.modules)"
    root = Path(sources.__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, env={**os.environ, "PYTHONPATH": str(root)})


# --- hub ---


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The datasets library, offline, with a cache of its own."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return datasets


def table(hub: Any, folder: Path, **columns: list[Any]) -> Any:
    images = [str(folder / name) for name in COLOURS]
    return hub.Dataset.from_dict({"image": images, **columns}).cast_column("image", hub.Image())


def test_hub_set_saved_to_disk(hub: Any, folder: Path, tmp_path: Path) -> None:
    columns: dict[str, list[Any]] = {
        "caption": ["red", "lime", "blue"],
        "label": [1, 2, 3],
        "box": [[1], [2], [3]],
    }
    saved = str(tmp_path / "saved")
    table(hub, folder, **columns).save_to_disk(saved)
    ds = load_dataset(f"hf:{saved}")
    assert ds.name == "hf:saved"
    assert ds.captions == [("red",), ("lime",), ("blue",)]
    assert ds[1].image.getpixel((0, 0)) == (0, 255, 0)
    assert (ds[1].id, ds[1].meta) == ("1", {"label": 2})
    write_jsonl(
        folder / "same.jsonl",
        *({"image": n, "caption": c} for n, c in zip(COLOURS, columns["caption"], strict=True)),
    )
    assert load_dataset(folder / "same.jsonl").fingerprint == ds.fingerprint
    assert "no split 'test'" in refusal(f"hf:{saved}:test")


def test_hub_splits(hub: Any, folder: Path, tmp_path: Path) -> None:
    one = table(hub, folder, text=[["red", "crimson"], ["lime"], ["blue"]])
    saved = str(tmp_path / "saved")
    hub.DatasetDict({"train": one, "test": one.select([2])}).save_to_disk(saved)
    assert load_dataset(f"hf:{saved}").name == "hf:saved:train"
    assert load_dataset(f"hf:{saved}").captions[0] == ("red", "crimson")
    test = load_dataset(f"hf:{saved}:test")
    assert (test.name, test.captions) == ("hf:saved:test", [("blue",)])
    assert "no split 'val'; name one of train, test" in refusal(f"hf:{saved}:val")
    hub.DatasetDict({"val": one, "test": one}).save_to_disk(str(tmp_path / "other"))
    assert "several splits and none called train" in refusal(f"hf:{tmp_path / 'other'}")
    hub.DatasetDict({"val": one}).save_to_disk(str(tmp_path / "third"))
    assert load_dataset(f"hf:{tmp_path / 'third'}").name.endswith(":val")


def test_hub_reads_a_plain_folder_of_images(hub: Any, folder: Path) -> None:
    write_jsonl(folder / "metadata.jsonl", *({"file_name": x["image"], "text": x["caption"]} for x in ABC))
    ds = load_dataset(f"hf:{folder}")
    assert ds.name == f"hf:{folder.name}:train"
    assert sorted(ds.captions) == sorted((line["caption"],) for line in ABC)
    assert {item.image.size for item in ds} == {(8, 6)}
    part = load_dataset(f"hf:{folder}:train[:2]")
    assert (part.name, len(part)) == (f"hf:{folder.name}:train[:2]", 2)
    assert "Unknown split" in refusal(f"hf:{folder}:nope")


def test_hub_numbered_captions(hub: Any, folder: Path, tmp_path: Path) -> None:
    columns: dict[str, list[Any]] = {"caption_0": ["red", "lime", "blue"], "caption_1": ["crimson", None, ""]}
    table(hub, folder, **columns).save_to_disk(str(tmp_path / "saved"))
    assert load_dataset(f"hf:{tmp_path / 'saved'}").captions == [("red", "crimson"), ("lime",), ("blue",)]


def test_hub_columns_that_do_not_fit(hub: Any, folder: Path, tmp_path: Path) -> None:
    table(hub, folder, label=["r", "g", "b"]).save_to_disk(str(tmp_path / "saved"))
    message = refusal(f"hf:{tmp_path / 'saved'}")
    assert "no column of captions" in message
    assert "label (string)" in message
    table(hub, folder, text=["r", "g", "b"]).remove_columns("image").save_to_disk(str(tmp_path / "texts"))
    assert "no column of images" in refusal(f"hf:{tmp_path / 'texts'}")


def test_hub_rows_without_caption_or_image(hub: Any, folder: Path, tmp_path: Path) -> None:
    rows = table(hub, folder, caption=["red", None, "blue"])
    without = hub.Dataset.from_dict({"image": [None], "caption": ["nothing"]}, features=rows.features)
    hub.concatenate_datasets([rows, without]).save_to_disk(str(tmp_path / "saved"))
    source = f"hf:{tmp_path / 'saved'}"
    assert f"{source}: row 1: a caption must be text" in refusal(source)
    ds = load_dataset(source, skip_bad=True)
    assert ds.captions == [("red",), ("blue",)]
    assert [bad.id for bad in ds.skipped] == ["row 1", "3"]
    assert ds.skipped[1] == Bad("3", "cannot be read (the row has no image)")


def test_hub_images_that_are_no_files_of_the_set(hub: Any, folder: Path, tmp_path: Path) -> None:
    """A cell of neither bytes nor a path, the path of a pipe, which would never end, and paths of others' pictures."""
    import pyarrow
    import pyarrow.parquet

    struct = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    features = hub.Features({"image": hub.Image(), "caption": hub.Value("string")})
    picture = folder / next(iter(COLOURS))
    cases = {
        "none": (None, "the row has no image"),
        "pipe": (tmp_path / "pipe" / "pipe.png", "no ordinary file"),
        "elsewhere": (picture, "the row names a file outside the set"),
        "upwards": (tmp_path / "upwards" / ".." / folder.name / picture.name, "the row names a file outside the set"),
        "linked": (tmp_path / "linked" / "away" / picture.name, "the row names a file outside the set"),
    }
    for name, (path, reason) in cases.items():
        place = tmp_path / name
        place.mkdir()
        images = pyarrow.array([{"bytes": None, "path": path and str(path)}], struct)
        table = pyarrow.table({"image": images, "caption": ["one"]}, features.arrow_schema)
        pyarrow.parquet.write_table(table, place / "train.parquet")
        if name == "pipe":
            os.mkfifo(path)
        if name == "linked":
            path.parent.symlink_to(folder)
        with pytest.raises(ValueError, match=reason):
            load_dataset(f"hf:{place}")[0]


def test_hub_rows_whose_text_is_no_text(hub: Any, folder: Path, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    said = pyarrow.array([b"red", b"\xff\xfe", b"blue"], pyarrow.binary())
    texts = pyarrow.Array.from_buffers(pyarrow.string(), 3, said.buffers())
    cells = [{"bytes": (folder / name).read_bytes(), "path": None} for name in COLOURS]
    struct = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    features = hub.Features({"image": hub.Image(), "caption": hub.Value("string")})
    table = pyarrow.table({"image": pyarrow.array(cells, struct), "caption": texts}, features.arrow_schema)
    (tmp_path / "set").mkdir()
    pyarrow.parquet.write_table(table, tmp_path / "set" / "train.parquet")
    assert "row 1: its text is not UTF-8" in refusal(f"hf:{tmp_path / 'set'}")
    assert load_dataset(f"hf:{tmp_path / 'set'}", skip_bad=True).captions == [("red",), ("blue",)]


def test_hub_without_network(hub: Any) -> None:
    with pytest.raises(RuntimeError, match="hf:someone/images:test: the hub cannot be reached") as caught:
        load_dataset("hf:someone/images:test")
    assert "name a local folder: hf:FOLDER" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_hubs_retries_are_not_shown(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    log = logging.getLogger("huggingface_hub.utils._http")
    before = log.getEffectiveLevel()
    levels: list[int] = []

    def load(*_: Any, **__: Any) -> Any:
        levels.append(log.getEffectiveLevel())
        raise ConnectionError("no route")

    monkeypatch.setattr(hub, "load_dataset", load)
    with pytest.raises(RuntimeError, match="no route"):
        load_dataset("hf:x/y")
    assert levels == [logging.ERROR]
    assert log.getEffectiveLevel() == before


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("DatasetNotFoundError", "there is no such public data set"),
        ("GatedRepoError", "accept the licence"),
        ("RevisionNotFoundError", "not this revision"),
    ],
)
def test_what_the_hub_does_not_give(hub: Any, monkeypatch: pytest.MonkeyPatch, kind: str, reason: str) -> None:
    from huggingface_hub import errors

    def load(*_: Any, **__: Any) -> Any:
        if kind == "DatasetNotFoundError":
            raise hub.exceptions.DatasetNotFoundError("it does not exist")
        failed = getattr(errors, kind)
        raise failed.__new__(failed, "said no")

    monkeypatch.setattr(hub, "load_dataset", load)
    with pytest.raises(RuntimeError, match=reason):
        load_dataset("hf:x/y")


def test_padded_lists_of_captions(hub: Any, folder: Path, tmp_path: Path) -> None:
    table(hub, folder, text=[["red", None], ["", "lime", " "], ["blue"]]).save_to_disk(str(tmp_path / "saved"))
    assert load_dataset(f"hf:{tmp_path / 'saved'}").captions == [("red",), ("lime",), ("blue",)]
    table(hub, folder, text=[["red"], ["", None], ["blue"]]).save_to_disk(str(tmp_path / "empty"))
    assert "row 1: empty caption" in refusal(f"hf:{tmp_path / 'empty'}")


def test_hub_name_revision_and_split_are_passed_on(hub: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(name: str, **options: Any) -> Any:
        asked.append((name, options))
        return table(hub, folder, text=["r", "g", "b"])

    monkeypatch.setattr(hub, "load_dataset", load)
    assert load_dataset("hf:minhuh/prh@wit_1024:train").name == "hf:minhuh/prh@wit_1024:train"
    assert asked == [("minhuh/prh", {"revision": "wit_1024", "split": "train"})]


@pytest.fixture
def far(hub: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub whose `someone/squares` is a folder of Parquet files here; downloading it whole is an error."""
    place = tmp_path / "far"
    place.mkdir()
    for at, (name, text) in enumerate(zip(COLOURS, ["red", "lime", "blue"], strict=True)):
        image = {"bytes": (folder / name).read_bytes(), "path": name}
        part = hub.Dataset.from_dict({"image": [image], "text": [text]}).cast_column("image", hub.Image())
        part.to_parquet(place / f"train-{at:05d}-of-00003.parquet")
    build = hub.load_dataset_builder

    def builder(name: str, revision: str | None = None) -> Any:
        assert name == "someone/squares"
        if not place.is_dir():
            raise ConnectionError("no route")
        return build(str(place))

    def load(*_: Any, **__: Any) -> Any:
        raise AssertionError("the split was downloaded")

    monkeypatch.setattr(hub, "load_dataset_builder", builder)
    monkeypatch.setattr(hub, "load_dataset", load)
    return place


def test_a_slice_of_the_hub_is_streamed_and_kept(far: Path, folder: Path) -> None:
    (far / "train-00002-of-00003.parquet").write_bytes(b"never read")
    ds = load_dataset("hf:someone/squares:train[:2]")
    assert (ds.name, ds.captions) == ("hf:someone/squares:train[:2]", [("red",), ("lime",)])
    assert ds[1].image.getpixel((0, 0)) == (0, 255, 0)
    write_jsonl(
        folder / "same.jsonl", *({"image": n, "caption": c} for n, c in zip(COLOURS, ["red", "lime"], strict=False))
    )
    assert load_dataset(folder / "same.jsonl").fingerprint == ds.fingerprint  # the bytes are those of the files
    assert load_dataset("hf:someone/squares:train[1:2]").captions == [("lime",)]
    assert len(load_dataset("hf:someone/squares:train[0:1]")) == 1
    far.rename(far.with_name("gone"))
    assert load_dataset("hf:someone/squares:train[:2]").fingerprint == ds.fingerprint
    for other in ("train[:3]", "test[:2]"):
        with pytest.raises(RuntimeError, match="the hub cannot be reached"):
            load_dataset(f"hf:someone/squares:{other}")


def test_a_slice_longer_than_its_split_is_the_split(far: Path) -> None:
    assert load_dataset("hf:someone/squares:train[1:100]").captions == [("lime",), ("blue",)]


def test_a_slice_that_broke_off_is_not_kept(far: Path, tmp_path: Path) -> None:
    last = far / "train-00002-of-00003.parquet"
    whole = last.read_bytes()
    last.write_bytes(b"cut")
    assert "cannot be loaded" in refusal("hf:someone/squares:train[:3]")
    kept = tmp_path / "hf-cache" / "slices"
    assert [path.name for path in kept.rglob("*") if path.is_file()] == [".train-0-3.lock"]
    last.write_bytes(whole)
    assert len(load_dataset("hf:someone/squares:train[:3]")) == 3
    (made,) = kept.rglob("train-0-3")
    left = made.with_name(".train-0-2")  # of a run that was killed
    left.mkdir()
    (left / "half.arrow").touch()
    assert len(load_dataset("hf:someone/squares:train[:2]")) == 2
    assert {path.name for path in made.parent.iterdir() if path.is_dir()} == {"train-0-2", "train-0-3"}


def test_a_slice_that_is_kept_writes_nothing(far: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a read-only disk."""
    first = load_dataset("hf:someone/squares:train[:2]")
    monkeypatch.setattr(filelock, "FileLock", None)
    assert load_dataset("hf:someone/squares:train[:2]").fingerprint == first.fingerprint


def test_a_slice_on_a_full_disk(hub: Any, far: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hub.arrow_writer.ArrowWriter, "write_table", write)
    monkeypatch.setattr(hub.arrow_writer.ArrowWriter, "finalize", write)
    with pytest.raises(OSError, match=r"cannot be kept .*; free some space or point HF_DATASETS_CACHE elsewhere"):
        load_dataset("hf:someone/squares:train[:2]")


def test_a_slice_that_names_files_elsewhere(hub: Any, far: Path, folder: Path, tmp_path: Path) -> None:
    """Neither of this machine nor of another one; a pipe would never end."""
    import pyarrow
    import pyarrow.parquet

    os.mkfifo(tmp_path / "pipe.png")
    secret = folder / next(iter(COLOURS))
    inside = far / "inside.png"
    shutil.copy(secret, inside)
    names = [
        secret,
        f"{far}/../{folder.name}/{secret.name}",
        tmp_path / "pipe.png",
        far / "gone.png",
        "http://x/y.png",
        inside,
    ]
    struct = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    features = hub.Features({"image": hub.Image(), "caption": hub.Value("string")})
    cells = [{"bytes": None, "path": str(name)} for name in names]
    # Where both are given the library reads the file, if there is one.
    blue = (folder / list(COLOURS)[2]).read_bytes()
    images = pyarrow.array([*cells, {"bytes": blue, "path": str(secret)}], struct)
    table = pyarrow.table({"image": images, "caption": ["one"] * (len(names) + 1)}, features.arrow_schema)
    for path in far.glob("*.parquet"):
        path.unlink()
    pyarrow.parquet.write_table(table, far / "train.parquet")
    ds = load_dataset("hf:someone/squares:train[:7]", skip_bad=True)
    assert [item.id for item in ds] == ["5", "6"]
    assert [item.image.getpixel((0, 0)) for item in ds] == [(255, 0, 0), (0, 0, 255)]
    assert {bad.reason for bad in ds.skipped} == {"cannot be read (the row has no image)"}


def test_a_slice_of_a_split_that_is_not_there(far: Path) -> None:
    assert "cannot be loaded: Bad split: nope" in refusal("hf:someone/squares:nope[:2]")


def test_a_slice_of_images_in_files_of_their_own(hub: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_jsonl(folder / "metadata.jsonl", *({"file_name": x["image"], "text": x["caption"]} for x in ABC))
    whole = load_dataset(f"hf:{folder}")
    build = hub.load_dataset_builder
    monkeypatch.setattr(hub, "load_dataset_builder", lambda name, revision=None: build(str(folder)))
    part = load_dataset("hf:someone/files:train[:2]")
    assert part.captions == whole.captions[:2]
    assert [item.image.tobytes() for item in part] == [item.image.tobytes() for item in list(whole)[:2]]


def test_hub_other_failures_are_one_line(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> Any:
        raise RuntimeError("Config name is missing.\nPlease pick one among\n  ['a', 'b']")

    monkeypatch.setattr(hub, "load_dataset", load)
    assert "cannot be loaded: Config name is missing. Please pick one among ['a', 'b']" in refusal("hf:x/y")


def test_hub_needs_a_name_and_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    assert re.search("names no data set; write hf:NAME", refusal("hf:"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert 'pip install "alignlab[hf]"' in refusal("hf:minhuh/prh")
