from __future__ import annotations

import functools
import json
import os
import pickle
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import alignlab.data.dataset as dataset_module
from alignlab.data import ImageTextDataset, Item
from alignlab.data.dataset import Bad, Entry

GOOD = {"a.png": ["a red square"], "b.png": ["a green square", "green"], "c.png": ["a blue square"]}
COLOURS = dict(zip(GOOD, ["red", "lime", "blue"], strict=True))


def make(folder: Path, captions: dict[str, list[str]] | None = None, name: str = "squares") -> ImageTextDataset:
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for file, texts in (captions or GOOD).items():
        path = folder / file
        if not path.exists():
            Image.new("RGB", (8, 6), COLOURS.get(file, "black")).save(path)
        read = functools.partial(Path.read_bytes, path)
        entries.append(Entry(file, str(path), read, tuple(texts), {"file": file}))
    return ImageTextDataset(name, entries)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder for this test alone."""
    monkeypatch.setenv("ALIGNLAB_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every image that is decoded."""
    calls: list[int] = []
    decode = dataset_module.decode

    def counting(data: bytes) -> Image.Image:
        calls.append(len(data))
        return decode(data)

    monkeypatch.setattr(dataset_module, "decode", counting)
    return calls


# --- items ---


def test_items(tmp_path: Path) -> None:
    ds = make(tmp_path)
    assert len(ds) == 3
    item = ds[1]
    assert isinstance(item, Item)
    assert (item.id, item.captions, item.meta) == ("b.png", ("a green square", "green"), {"file": "b.png"})
    assert item.image.mode == "RGB"
    assert np.asarray(item.image).shape == (6, 8, 3)
    assert [one.id for one in ds] == list(GOOD)
    assert ds[-1].id == "c.png"
    assert ds[np.int64(0)].id == "a.png"
    assert ds.skipped == ()
    assert repr(ds) == "ImageTextDataset('squares', 3 items)"
    with pytest.raises(IndexError):
        ds[3]


def test_meta_of_an_item_is_its_own(tmp_path: Path) -> None:
    ds = make(tmp_path)
    ds[0].meta["file"] = "changed"
    assert ds[0].meta == {"file": "a.png"}


def test_captions_read_no_image(tmp_path: Path) -> None:
    ds = make(tmp_path)
    for file in GOOD:
        (tmp_path / file).unlink()
    assert ds.captions == [tuple(texts) for texts in GOOD.values()]


def test_reading_a_bad_item_names_its_file(tmp_path: Path) -> None:
    ds = make(tmp_path)
    cut(tmp_path / "a.png")
    (tmp_path / "b.png").unlink()
    with pytest.raises(ValueError, match=r"a\.png: .*truncated"):
        ds[0]
    with pytest.raises(ValueError, match=r"b\.png: cannot be read \(No such file"):
        ds[1]


def test_it_pickles_for_worker_processes(tmp_path: Path) -> None:
    ds = pickle.loads(pickle.dumps(make(tmp_path)))
    assert ds[2].id == "c.png"


def test_head(tmp_path: Path) -> None:
    ds = make(tmp_path)
    assert [item.id for item in ds.head(2)] == ["a.png", "b.png"]
    assert ds.head(3).fingerprint == ds.fingerprint
    assert ds.head(2).fingerprint != ds.fingerprint


@pytest.mark.parametrize("n", [0, -1, 4, 2.5, "2", None])
def test_head_refuses(tmp_path: Path, n: object) -> None:
    with pytest.raises(ValueError, match=re.escape(f"1..3 (the items of squares), got {n!r}")):
        make(tmp_path).head(n)  # type: ignore[arg-type]


# --- fingerprint ---


def test_the_fingerprint_is_of_the_content_not_the_place(tmp_path: Path) -> None:
    here = make(tmp_path / "here")
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", here.fingerprint)
    assert make(tmp_path / "there", name="other").fingerprint == here.fingerprint


def test_the_fingerprint_changes_with_a_byte(tmp_path: Path) -> None:
    before = make(tmp_path).fingerprint
    data = bytearray((tmp_path / "b.png").read_bytes())
    data[-1] ^= 1
    (tmp_path / "b.png").write_bytes(data)
    assert make(tmp_path).fingerprint != before


@pytest.mark.parametrize(
    "captions",
    [
        {**GOOD, "b.png": ["a green square", "greem"]},
        {**GOOD, "b.png": ["a green squar", "egreen"]},
        {**GOOD, "b.png": ["a green squaregreen"]},
        {**GOOD, "b.png": ["green", "a green square"]},
        dict(reversed(GOOD.items())),
        {"a.png": ["a red square", "a green square"], "b.png": ["green"], "c.png": ["a blue square"]},
    ],
)
def test_the_fingerprint_changes_with_captions_and_order(tmp_path: Path, captions: dict[str, list[str]]) -> None:
    assert make(tmp_path, captions).fingerprint != make(tmp_path).fingerprint


def test_the_fingerprint_is_computed_once_and_late(tmp_path: Path) -> None:
    ds = make(tmp_path)
    first = ds.fingerprint
    (tmp_path / "a.png").unlink()
    assert ds.fingerprint == first
    assert make(tmp_path, {"b.png": GOOD["b.png"], "c.png": GOOD["c.png"]}).fingerprint != first


# --- check ---


def test_checking_a_good_set_changes_nothing(tmp_path: Path, home: Path) -> None:
    ds = make(tmp_path / "set")
    checked = ds.check()
    assert checked.fingerprint == ds.fingerprint
    assert checked.captions == ds.captions
    assert checked.skipped == ()


def test_a_bad_item_is_an_error_that_says_what_to_do(tmp_path: Path, home: Path) -> None:
    ds = make(tmp_path / "set")
    cut(tmp_path / "set" / "b.png")
    with pytest.raises(ValueError, match="use --skip-bad to leave bad items out") as caught:
        ds.check()
    assert str(tmp_path / "set" / "b.png") in str(caught.value)
    assert "truncated" in str(caught.value)
    assert "more" not in str(caught.value)
    assert "\n" not in str(caught.value)
    (tmp_path / "set" / "c.png").write_text("nonsense")
    with pytest.raises(ValueError, match=r"b\.png: .*\(and 1 more bad item\); use --skip-bad"):
        make(tmp_path / "set").check()


def test_skip_bad_leaves_out_and_lists(tmp_path: Path, home: Path) -> None:
    made = make(tmp_path / "set")
    ds = ImageTextDataset("squares", made._entries, [Bad("line 9", "empty caption")])
    (tmp_path / "set" / "b.png").write_bytes(b"")
    checked = ds.check(skip_bad=True)
    assert [item.id for item in checked] == ["a.png", "c.png"]
    assert checked.skipped == (Bad("line 9", "empty caption"), Bad("b.png", "the file is empty (0 bytes)"))
    assert checked.name == "squares"
    assert len(ds) == 3
    assert repr(checked) == "ImageTextDataset('squares', 2 items, 2 skipped)"
    only_good = make(tmp_path / "set", {"a.png": GOOD["a.png"], "c.png": GOOD["c.png"]})
    assert checked.fingerprint == only_good.fingerprint


def test_nothing_good_is_an_error(tmp_path: Path, home: Path) -> None:
    ds = make(tmp_path / "set")
    for file in GOOD:
        (tmp_path / "set" / file).unlink()
    with pytest.raises(ValueError, match=r"squares: none of the 3 items is good: .*a\.png: cannot be read"):
        ds.check(skip_bad=True)


def test_the_second_check_decodes_nothing(tmp_path: Path, home: Path, decoded: list[int]) -> None:
    make(tmp_path / "set").check()
    assert len(decoded) == 3
    make(tmp_path / "set").check()
    make(tmp_path / "moved").check()
    assert len(decoded) == 3
    file = home / "checked" / f"{make(tmp_path / 'set').fingerprint.removeprefix('sha256:')}.json"
    assert json.loads(file.read_text())["bad"] == {}
    assert [one.name for one in (home / "checked").iterdir()] == [file.name]


class Together:
    """Threads in the place of processes: what each gives to `gather`, all get."""

    def __init__(self, rank: int, boards: list[list[Any]], barrier: threading.Barrier) -> None:
        self.rank, self.count = rank, len(boards)
        self.boards, self.barrier, self.told = boards, barrier, 0

    def gather(self, value: Any) -> list[Any]:
        self.boards[self.rank].append(value)
        self.barrier.wait(30)
        self.told += 1
        return [board[self.told - 1] for board in self.boards]


def test_processes_share_the_decoding_and_agree(tmp_path: Path, home: Path, decoded: list[int]) -> None:
    make(tmp_path / "set")
    cut(tmp_path / "set" / "b.png")
    for looks in (3, 3):  # the second time all of them remember
        boards: list[list[Any]] = [[], []]
        barrier = threading.Barrier(2)
        with ThreadPoolExecutor(2) as pool:
            sets = [make(tmp_path / "set") for _ in boards]
            both = [pool.submit(one.check, True, Together(rank, boards, barrier)) for rank, one in enumerate(sets)]
            first, second = (future.result() for future in both)
        assert [bad.id for bad in first.skipped] == [bad.id for bad in second.skipped] == ["b.png"]
        assert first.captions == second.captions
        assert len(decoded) == looks  # each picture once, by one of them
    with pytest.raises(ValueError, match=r"b\.png: .*truncated"):
        make(tmp_path / "set").check()
    assert len(decoded) == 3


def test_a_remembered_bad_item_is_still_bad(tmp_path: Path, home: Path, decoded: list[int]) -> None:
    make(tmp_path / "set")
    cut(tmp_path / "set" / "b.png")
    first = make(tmp_path / "set").check(skip_bad=True)
    again = make(tmp_path / "set").check(skip_bad=True)
    assert first.skipped == again.skipped != ()
    assert again.captions == first.captions
    with pytest.raises(ValueError, match=r"b\.png: .*truncated"):
        make(tmp_path / "set").check()
    assert len(decoded) == 3


def test_a_mended_item_is_looked_at_again(tmp_path: Path, home: Path) -> None:
    make(tmp_path / "set")
    file = tmp_path / "set" / "b.png"
    data = file.read_bytes()
    ds = make(tmp_path / "set")
    file.unlink()
    assert len(ds.check(skip_bad=True)) == 2
    file.write_bytes(data)
    assert len(make(tmp_path / "set").check()) == 3


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        "\udcff",
        '{"schema": "alignlab.checked/1", "bad": {}}',
        '{"schema": "alignlab.checked/1", "pillow": "0.0", "bad": {"0": "said another Pillow"}}',
        '{"schema": "alignlab.checked/1", "pillow": "PILLOW", "bad": {"3": "out of range"}}',
        '{"schema": "alignlab.checked/1", "pillow": "PILLOW", "bad": {"one": "no number"}}',
        '{"schema": "alignlab.checked/1", "pillow": "PILLOW", "bad": 7}',
    ],
)
def test_memory_that_cannot_be_trusted_is_rewritten(tmp_path: Path, home: Path, text: str) -> None:
    ds = make(tmp_path / "set")
    ds.check()
    (file,) = (home / "checked").iterdir()
    sound = file.read_text()
    file.write_text(text.replace("PILLOW", Image.__version__), errors="surrogateescape")
    assert len(make(tmp_path / "set").check()) == 3
    assert file.read_text() == sound


def test_a_cache_that_cannot_be_written_does_not_fail_the_check(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.write_text("a file where the folder should be")
    assert len(make(tmp_path / "set").check()) == 3
    home.unlink()

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert len(make(tmp_path / "set").check()) == 3
    assert list((home / "checked").iterdir()) == []
