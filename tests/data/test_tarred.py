"""WebDataset shards: what is an item, what is refused, and that nothing is held in memory."""

import io
import json
import pickle
import tarfile
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from alignlab.cli import run
from alignlab.data import load_dataset


def png(value, size=(8, 8)):
    out = io.BytesIO()
    Image.new("RGB", size, (value % 256, 0, 0)).save(out, format="PNG")
    return out.getvalue()


def write(path, files):
    """A tar of name -> bytes, in that order."""
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def shard(path, first, count):
    files = []
    for i in range(first, first + count):
        files += [(f"{i:06d}.png", png(i)), (f"{i:06d}.txt", f"picture {i}\nnumber {i}\n".encode())]
    return write(path, files)


@pytest.fixture
def folder(tmp_path):
    for number in range(3):
        shard(tmp_path / f"set-{number:03}.tar", 10 * number, 10)
    return tmp_path


@pytest.mark.parametrize("source", ["{folder}", "{folder}/set-{{000..002}}.tar"])
def test_shards_are_one_set_in_order(folder, source):
    data = load_dataset(source.format(folder=folder))
    assert len(data) == 30
    assert data.captions[12] == ("picture 12", "number 12")
    assert np.asarray(data[12].image)[0, 0, 0] == 12
    assert data.ids[12] == "set-001/000012"
    assert load_dataset(str(folder / "set-001.tar"))[2].captions == data[12].captions


def test_the_set_is_the_same_as_a_folder_with_the_same_files(folder, tmp_path):
    plain = tmp_path / "plain"
    plain.mkdir()
    with tarfile.open(folder / "set-000.tar") as tar:
        tar.extractall(plain, filter="data")
    assert load_dataset(str(folder / "set-000.tar")).fingerprint == load_dataset(str(plain)).fingerprint


def test_items_are_read_in_any_order_and_in_any_process(folder):
    data = load_dataset(str(folder))
    again = pickle.loads(pickle.dumps(data))
    for i in (29, 3, 17):
        assert np.array_equal(np.asarray(again[i].image), np.asarray(data[i].image))


def test_captions_in_json_with_what_else_it_says(tmp_path):
    said = {"caption": "a red square", "width": 8}
    several = {"captions": ["one", "two"], "key": "b"}
    files = [("x/a.png", png(1)), ("x/a.json", json.dumps(said).encode())]
    files += [("x/b.json", json.dumps(several).encode()), ("x/b.seg.png", png(2))]
    data = load_dataset(str(write(tmp_path / "s.tar", files)))
    assert data.captions == [("a red square",), ("one", "two")]
    assert data.meta == [{"width": 8}, {"key": "b"}]
    assert data.ids == ["s/x/a", "s/x/b"]


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ([("a.txt", b"no picture")], "no image among '.txt'"),
        ([("a.png", png(0))], "no caption"),
        ([("a.png", png(0)), ("a.txt", b" \n")], "no caption"),
        ([("a.png", png(0)), ("a.txt", b"\xff\xfe")], "not UTF-8"),
        ([("a.png", png(0)), ("a.json", b"{")], "bad JSON"),
        ([("a.png", png(0)), ("a.json", b"[1]")], "must be an object"),
        ([("a.png", png(0)), ("a.json", b'{"caption": 3}')], "must be text"),
        ([("a.png", png(0)), ("a.txt", b"x" * (2**20 + 1))], "at most"),
    ],
)
def test_an_item_that_does_not_fit_is_named(tmp_path, files, reason):
    good = [("z.png", png(1)), ("z.txt", b"fine")]
    path = write(tmp_path / "s.tar", [*files, *good])
    with pytest.raises(ValueError, match=reason):
        load_dataset(str(path))
    left = load_dataset(str(path), skip_bad=True)
    assert left.captions == [("fine",)]
    assert reason in left.skipped[0].reason


def test_links_devices_and_hidden_files_are_no_items(tmp_path):
    path = shard(tmp_path / "s.tar", 0, 2)
    with tarfile.open(path, "a") as tar:
        for name, kind in (("9.png", tarfile.SYMTYPE), ("9.txt", tarfile.LNKTYPE), ("8.png", tarfile.CHRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        info = tarfile.TarInfo("._7.png")
        tar.addfile(info)
    assert len(load_dataset(str(path))) == 2


def test_an_image_that_is_damaged_is_told_when_it_is_read(tmp_path):
    path = write(tmp_path / "s.tar", [("a.png", b"no picture"), ("a.txt", b"a"), ("b.png", png(1)), ("b.txt", b"b")])
    with pytest.raises(ValueError, match=r"s\.tar: a\.png"):
        load_dataset(str(path))[0]
    assert len(load_dataset(str(path), skip_bad=True)) == 1


@pytest.mark.parametrize("kept", [0, 100, 700, 1500, 5000])
def test_a_shard_that_is_cut_off_is_refused_or_a_bad_item(tmp_path, capsys, kept):
    path = shard(tmp_path / "s.tar", 0, 5)
    path.write_bytes(path.read_bytes()[:kept])
    assert run(["measure", "--encoder", "mae", "--data", str(path), "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert "s.tar" in told
    assert told.count("\n") == 1


@pytest.mark.parametrize("damage", ["a bit of a header", "cut at a header", "cut in a header", "no end"])
def test_no_item_is_lost_without_a_word(tmp_path, damage):
    """tarfile takes the first header that it cannot read for the end of the archive."""
    path = shard(tmp_path / "s.tar", 0, 5)
    with tarfile.open(path) as tar:
        header, end = tar.getmembers()[6].offset, tar.getmembers()[-1].offset_data + 512
    content = bytearray(path.read_bytes())
    if damage == "a bit of a header":
        content[header + 3] ^= 1
    else:
        kept = {"cut at a header": header, "cut in a header": header + 100, "no end": end}[damage]
        content = content[:kept]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"s\.tar: not a whole tar"):
        load_dataset(str(path), skip_bad=True)


def test_a_mask_beside_a_picture_is_not_the_picture(tmp_path):
    files = [("1.mask.png", png(200)), ("1.png", png(7)), ("1.txt", b"seven")]
    data = load_dataset(str(write(tmp_path / "s.tar", files)))
    assert np.asarray(data[0].image)[0, 0, 0] == 7
    two = write(tmp_path / "t.tar", [("1.jpg", png(1)), ("1.png", png(2)), ("1.txt", b"one or two")])
    with pytest.raises(ValueError, match=r"2 images in one item: '\.jpg, \.png'; leave one"):
        load_dataset(str(two))


def test_what_is_no_shard_is_told(tmp_path, capsys):
    import gzip

    packed = tmp_path / "s.tar"
    packed.write_bytes(gzip.compress(shard(tmp_path / "plain.tar", 0, 2).read_bytes()))
    for source, message in (
        (packed, "uncompressed"),
        (tmp_path / "none.tar", "No such file"),
        (tmp_path / "s-{3..1}.tar", "one range"),
        (tmp_path / "s-{0..9999999}.tar", "one range"),
        (tmp_path / "s-{0..2}.tar", "No such file"),
    ):
        assert run(["measure", "--encoder", "mae", "--data", str(source), "--out", str(tmp_path / "out")]) == 2
        told = capsys.readouterr().err
        assert message in told or "there is no" in told, told


def test_a_thousand_pictures_are_not_held(tmp_path):
    """Opening and reading through takes far less memory than the pictures have."""
    big = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(big).save(out, format="PNG")
    content = out.getvalue()
    write(tmp_path / "s.tar", [x for i in range(1000) for x in ((f"{i}.png", content), (f"{i}.txt", b"noise"))])
    tracemalloc.start()
    data = load_dataset(str(tmp_path / "s.tar"))
    for item in data:
        assert item.image.size == (64, 64)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(content) * 1000 > 10e6
    assert peak < 3e6
