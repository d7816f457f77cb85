"""Sets of images with captions: jsonl, csv, tar, zip and nested json that say anything, names that climb out of their folder."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

from fuzzing import Kind, called, damaged, damages, edited, edits, odd, quiet
from hypothesis import strategies as st
from PIL import Image

from alignlab.data import load_dataset


def _picture() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (4, 3), "teal").save(out, format="PNG")
    return out.getvalue()


PICTURE = _picture()
ZEROS = bytes(3_000_000)
NAMES = (
    *(
        "a.png",
        "./a.png",
        "missing.png",
        "../escaped.png",
        "../../escaped.png",
        "/escaped.png",
        "a/../../escaped.png",
        "..",
        ".",
    ),
    *(
        "a.png\0.png",
        "sub/a.png",
        "C:\\escaped.png",
        "~/escaped.png",
        "é.png",
        "x" * 300 + ".png",
        "captions.jsonl",
        "a.PNG ",
    ),
)
names = st.one_of(st.just("a.png"), st.sampled_from(NAMES))
words = st.sampled_from(("a cat", "two cats", "é"))
texts = st.one_of(
    words, st.text(max_size=20), st.sampled_from(("a cat", "", " ", "\ud800", "a\u2028b", "\0", '"', "a,b", "🐈"))
)


def some(changes: st.SearchStrategy[Any], none: Any) -> st.SearchStrategy[Any]:
    """Changes in one of two inputs: where all are damaged nothing is read to its end."""
    return st.one_of(st.just(none), changes)


spoken = st.one_of(texts, st.lists(texts, max_size=3), odd)


def lines(draw: st.DrawFn) -> list[bytes]:
    made: list[bytes] = []
    for _ in range(draw(st.integers(0, 4))):
        match draw(st.sampled_from(("item", "item", "item", "junk", "nested", "json", "long"))):
            case "item":
                item = {
                    "image": draw(st.one_of(names, odd)),
                    draw(st.sampled_from(("caption", "captions"))): draw(spoken),
                }
                made.append(json.dumps(edited(item, draw(edits(most=1)))).encode())
            case "junk":
                made.append(draw(st.binary(max_size=40)))
            case "nested":
                made.append(draw(st.sampled_from((b"[", b'{"a":'))) * draw(st.sampled_from((1, 10, 200_000))))
            case "json":
                made.append(json.dumps(draw(odd)).encode())
            case _:
                size = draw(st.sampled_from((1_000, 10_000_000)))
                made.append(b'{"image": "a.png", "caption": "' + b"x" * size + b'"}')
    return made


@st.composite
def jsonl(draw: st.DrawFn) -> dict[str, bytes]:
    start = draw(st.sampled_from((b"", b"", b"\xef\xbb\xbf", b"\xff\xfe")))
    end = draw(st.sampled_from((b"\n", b"\r\n", b"\n\n")))
    return {"set.jsonl": damaged(start + end.join(lines(draw)), draw(damages(1)))}


@st.composite
def table(draw: st.DrawFn) -> dict[str, bytes]:
    header = draw(
        st.lists(st.sampled_from(("image", "caption", "captions", "caption_1", "x", "", '"', "Image ")), max_size=4)
    )
    rows = [[str(draw(st.one_of(names, texts, odd))) for _ in header] for _ in range(draw(st.integers(0, 3)))]
    separator = draw(st.sampled_from((",", ";", "\t")))
    if draw(st.booleans()):
        header, separator = ["image", "caption"], ","
        rows = [[draw(names), draw(texts)] for _ in range(draw(st.integers(1, 3)))]
    text = "\n".join(separator.join(row) for row in (header, *rows))
    return {"set.csv": damaged(text.encode("utf-8", "surrogatepass"), draw(damages(2)))}


@st.composite
def tar(draw: st.DrawFn) -> dict[str, bytes]:
    out = io.BytesIO()
    with tarfile.open(
        fileobj=out, mode="w", format=draw(st.sampled_from((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)))
    ) as made:
        for number in range(draw(st.integers(0, 3))):
            stem = draw(
                st.sampled_from(
                    (f"{number:04}", "../escaped", "/escaped", "a/../../escaped", "same", "é", ".hidden", "")
                )
            )
            several = st.lists(st.sampled_from((".png", ".txt", ".json", ".cls", ".jpg", "")), max_size=3)
            for suffix in draw(st.one_of(st.just([".png", ".txt"]), several)):
                info = tarfile.TarInfo(stem + suffix)
                content = PICTURE
                if suffix == ".txt":
                    content = draw(texts).encode("utf-8", "surrogatepass")
                elif suffix == ".json":
                    content = json.dumps(
                        draw(st.one_of(odd, st.builds(lambda said: {"caption": said}, spoken)))
                    ).encode()
                info.size = len(content)
                kind = draw(
                    st.sampled_from(
                        (tarfile.REGTYPE,) * 20 + (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE)
                    )
                )
                if kind != tarfile.REGTYPE:
                    info.type, info.size, info.linkname = kind, 0, "../../escaped"
                made.addfile(info, io.BytesIO(content) if info.size else None)
    return {"set.tar": damaged(out.getvalue(), draw(some(damages(3), [])))}


@st.composite
def llava(draw: st.DrawFn) -> dict[str, bytes]:
    items = []
    for _ in range(draw(st.integers(0, 3))):
        turns = [{"from": "human", "value": "what?\n<image>"}, {"from": "gpt", "value": draw(spoken)}]
        items.append(edited({"image": draw(names), "conversations": turns}, draw(some(edits(most=2), []))))
    out = io.BytesIO()
    with zipfile.ZipFile(
        out, "w", draw(st.sampled_from((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)))
    ) as made:
        for name in draw(st.one_of(st.just(["a.png"]), st.lists(names, max_size=3, unique=True))):
            content = draw(st.sampled_from((PICTURE, PICTURE, b"", ZEROS)))
            with quiet():  # of a name that is there twice, once cut at its NUL
                made.writestr(name, content)
    chat = json.dumps(edited(items, draw(some(edits(most=1), [])))).encode()
    return {
        "chat.json": damaged(chat, draw(some(damages(1), []))),
        "images.zip": damaged(out.getvalue(), draw(some(damages(3), []))),
    }


@st.composite
def nocaps(draw: st.DrawFn) -> dict[str, bytes]:
    images = [{"id": i, "file_name": draw(names), "domain": "in-domain"} for i in range(draw(st.integers(0, 2)))]
    said = [{"image_id": i, "caption": draw(texts)} for i in range(draw(st.integers(0, 2)))]
    value = edited({"images": images, "annotations": said}, draw(edits(most=2)))
    return {"nocaps_val_4500_captions.json": damaged(json.dumps(value).encode(), draw(damages(1)))}


@st.composite
def beside(draw: st.DrawFn) -> dict[str, bytes]:
    """A folder of images, each with a text."""
    made: dict[str, bytes] = {}
    for stem in draw(st.lists(st.sampled_from(("b", "c", ".d", "e e", "é")), max_size=3, unique=True)):
        made[f"{stem}.png"] = damaged(PICTURE, draw(damages(1)))
        made[f"{stem}.txt"] = draw(st.one_of(st.binary(max_size=30), st.sampled_from((b"", b"\n", b"a\nb", b"\xff"))))
    return made


def write(given: dict[str, bytes], folder: Path) -> None:
    (folder / "a.png").write_bytes(PICTURE)
    (folder.parent / "escaped.png").write_bytes(PICTURE)  # to be read by a name that climbs out
    for name, content in given.items():
        (folder / name).write_bytes(content)


def _source(folder: Path, given: dict[str, bytes]) -> str:
    first = next(iter(given), "")
    if first == "chat.json":
        return f"llava595k:{folder}"
    if first.startswith("nocaps"):
        return f"nocaps:{folder}"
    return str(folder / first) if first.startswith("set.") else str(folder)


def answer(given: dict[str, bytes], folder: Path) -> int:
    source = _source(folder, given)

    def read(skip_bad: bool) -> None:
        data = load_dataset(source, skip_bad=skip_bad)
        assert not any("escaped" in name for name in data.ids if source.endswith(("jsonl", "csv")) and ".." in name)
        json.dumps(data.check(skip_bad=skip_bad).plain()).encode()
        for item in data.head(1):
            json.dumps(item.meta)

    return min(called(lambda: read(False)), called(lambda: read(True)))


SOURCES: dict[str, Any] = {
    "jsonl": jsonl(),
    "csv": table(),
    "tar": tar(),
    "zip": llava(),
    "nocaps": nocaps(),
    "folder": beside(),
}
KINDS = tuple(Kind(name, inputs, write, answer) for name, inputs in SOURCES.items())
