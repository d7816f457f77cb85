"""Sets as the Hugging Face hub has them: Parquet files and folders with a list of their images, whole and a slice of them."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from fuzz_datasets import NAMES, PICTURE, some, spoken, texts
from fuzzing import OUT, Finding, Kind, called, damaged, damages, edited, edits, odd
from hypothesis import strategies as st
from PIL import Image

from alignlab.data import load_dataset

ELSEWHERE = (7, 5)
paths = st.sampled_from(("a.png", *NAMES, "zip://a.png::images.zip", "http://127.0.0.1:9/a.png", "file:///escaped.png"))
encoded = st.one_of(st.just(PICTURE), st.builds(damaged, st.just(PICTURE), damages(1)), st.sampled_from((b"", None)))


def seldom(changes: st.SearchStrategy[Any], none: Any) -> st.SearchStrategy[Any]:
    return some(some(changes, none), none)


@st.composite
def parquet(draw: st.DrawFn) -> dict[str, bytes]:
    import pyarrow
    import pyarrow.parquet

    struct = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    name = draw(st.sampled_from(("caption", "caption", "text", "caption_0", "x")))
    many, label = draw(st.booleans()), draw(st.booleans())
    kind: dict[str, Any] = {"_type": "Value", "dtype": "string"}
    features = {"image": {"_type": "Image"}, name: {"_type": "List", "feature": kind} if many else kind}
    if label:
        features["label"] = {"_type": "Value", "dtype": "int64"}
    about = edited({"info": {"features": features}}, draw(seldom(edits(most=1), [])))
    made: dict[str, bytes] = {}
    for number in range(draw(st.integers(1, 2))):
        count = draw(st.sampled_from((0, 1, 2, 3, 3)))
        cells = [{"bytes": draw(encoded), "path": draw(some(paths, None))} for _ in range(count)]
        said = [draw(some(texts, None)) for _ in range(count)]
        plain = [one and one.encode("utf-8", "replace").decode() for one in said]
        words = pyarrow.array([[one, one] for one in plain], pyarrow.list_(pyarrow.string()))
        # Text that is no UTF-8 is written by few, but read.
        raw = pyarrow.array([one and one.encode("utf-8", "surrogatepass") for one in said], pyarrow.binary())
        alone = pyarrow.Array.from_buffers(pyarrow.string(), count, raw.buffers(), raw.null_count, raw.offset)
        columns = {"image": pyarrow.array(cells, struct), name: words if many else alone}
        if label:
            columns["label"] = pyarrow.array(
                [draw(st.sampled_from((0, -1, None))) for _ in range(count)], pyarrow.int64()
            )
        told = {b"huggingface": json.dumps(about).encode()}  # what a table says of itself
        out = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table(columns).replace_schema_metadata(told), out)
        made[f"train-{number}.parquet"] = damaged(out.getvalue(), draw(seldom(damages(2), [])))
    return made


@st.composite
def listed(draw: st.DrawFn) -> dict[str, bytes]:
    """A folder of images with a metadata.jsonl."""
    lines = []
    for _ in range(draw(st.integers(0, 3))):
        item = {"file_name": draw(st.one_of(st.just("a.png"), paths, odd)), "text": draw(spoken)}
        lines.append(json.dumps(edited(item, draw(seldom(edits(most=1), [])))))
    made = {"metadata.jsonl": damaged("\n".join(lines).encode(), draw(seldom(damages(1), [])))}
    if draw(st.booleans()):
        made["b.png"] = damaged(PICTURE, draw(damages(1)))
    return made


def write(given: dict[str, bytes], folder: Path) -> None:
    (folder / "a.png").write_bytes(PICTURE)
    Image.new("RGB", ELSEWHERE).save(folder.parent / "escaped.png")  # to be read by a name that climbs out
    for name, content in given.items():
        (folder / name).write_bytes(content)


@contextlib.contextmanager
def _library(folder: Path) -> Iterator[None]:
    """The datasets library, offline, with a cache of its own; the hub has one set, `some/set`, and that is the folder."""
    import datasets

    build = datasets.load_dataset_builder
    shown = not datasets.utils.are_progress_bars_disabled()
    datasets.utils.disable_progress_bars()
    with (
        mock.patch.object(datasets.config, "HF_DATASETS_CACHE", folder / OUT),
        mock.patch.object(datasets.config, "HF_HUB_OFFLINE", True),
        mock.patch.object(datasets, "load_dataset_builder", side_effect=lambda *_, **__: build(str(folder))),
    ):
        yield
    if shown:
        datasets.utils.enable_progress_bars()


def answer(part: bool, given: dict[str, bytes], folder: Path) -> int:
    source = "hf:some/set:train[:2]" if part else f"hf:{folder}"

    def read() -> None:
        data = load_dataset(source, skip_bad=True)
        assert not part or len(data) <= 2
        json.dumps(data.check(skip_bad=True).plain()).encode()
        for item in data:
            json.dumps(item.meta, default=str)
            if item.image.size == ELSEWHERE:
                raise Finding("it reads a picture outside the set's folder")

    with _library(folder):
        return called(read)


KINDS = tuple(
    Kind(name, inputs, write, lambda given, folder, part=part: answer(part, given, folder))
    for name, inputs, part in (
        ("hub: parquet", parquet(), False),
        ("hub: folder", listed(), False),
        ("hub slice: parquet", parquet(), True),
        ("hub slice: folder", listed(), True),
    )
)
