"""Features that other hands have changed: files of `extract --save`, which are read or refused, and the store, which redoes
what it cannot vouch for: the numbers are those of before.
"""

from __future__ import annotations

import functools
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from fuzzing import OUT, Damage, Edit, Finding, Kind, called, command, damaged, damages, edited, edits
from hypothesis import strategies as st
from PIL import Image

from alignlab.data import load_dataset
from alignlab.features import extract, open_features

N, LAYERS, WIDTH = 300, 2, 3  # items in more than one shard


class Mean:
    """An encoder of one's own: a picture's mean colour, and twice that."""

    name, checkpoint, pools, image_size = "mean", "mean@1", ("cls",), 8

    def layers(self, images: torch.Tensor, pool: str) -> torch.Tensor:
        mean = images.mean((-2, -1))  # [B, 3, H, W] -> [B, 3]
        return torch.stack([mean, 2 * mean], 1)


@dataclass(frozen=True)
class Changed:
    """A file of the features, by its name's end, with other values (of JSON) and other bytes."""

    of: str
    edits: tuple[Edit, ...]
    changes: tuple[Damage, ...]

    def __call__(self, content: bytes) -> bytes:
        if self.edits and self.of == "manifest.json":
            content = json.dumps(edited(json.loads(content), list(self.edits))).encode()
        elif self.edits and self.of == "mean.safetensors":
            length = int.from_bytes(content[:8], "little")
            header = json.dumps(edited(json.loads(content[8 : 8 + length]), list(self.edits))).encode()
            content = len(header).to_bytes(8, "little") + header + content[8 + length :]
        return damaged(content, list(self.changes))


@functools.cache
def _made() -> dict[str, bytes]:
    """A set of pictures, the store's folder of its features, and the file of them, by their names."""
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch, "set")
        data.mkdir()
        for i in range(N):
            Image.new("RGB", (8, 8), (i % 256, i // 2, 7)).save(data / f"{i:03d}.png")
            (data / f"{i:03d}.txt").write_text(f"picture {i}")
        with mock.patch.dict(os.environ, ALIGNLAB_HOME=str(Path(scratch, "home"))):
            extract(Mean(), load_dataset(data), file=Path(scratch, "mean.safetensors"))
        files = [path for path in Path(scratch).rglob("*") if path.is_file()]
        return {path.relative_to(scratch).as_posix(): path.read_bytes() for path in files}


def write_file(given: Changed, folder: Path) -> None:
    (folder / "mean.safetensors").write_bytes(given(_made()["mean.safetensors"]))


def open_file(given: Changed, folder: Path) -> int:
    def read() -> None:
        found = open_features(folder / "mean.safetensors").layers
        for one in found if isinstance(found, list) else [found]:
            one.sum()

    return called(read)


def write_store(given: Changed, folder: Path) -> None:
    for name, content in _made().items():
        path = folder / OUT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(given(content) if name.endswith(given.of) else content)


def use_store(given: Changed, folder: Path) -> int:
    with mock.patch.dict(os.environ, ALIGNLAB_HOME=str(folder / OUT / "home")):
        status = max(command("cache", "list"), command("cache", "verify", may_fail=True))
        found = extract(Mean(), load_dataset(folder / OUT / "set")).layers
    if not torch.equal(torch.as_tensor(found), _expected()):
        raise Finding("the store gives other numbers than were computed")
    return status


@functools.cache
def _expected() -> torch.Tensor:
    with tempfile.TemporaryDirectory() as scratch:
        for name, content in _made().items():
            path = Path(scratch, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        with mock.patch.dict(os.environ, ALIGNLAB_HOME=str(Path(scratch, "elsewhere"))):
            return torch.as_tensor(extract(Mean(), load_dataset(Path(scratch, "set"))).layers).clone()


def _changed(*names: str) -> st.SearchStrategy[Changed]:
    several: Any = edits(1, 3).map(tuple)
    bytes_: Any = st.lists(damages(1), min_size=1, max_size=3).map(
        lambda many: tuple(one for few in many for one in few)
    )
    name = st.sampled_from(names)
    return st.one_of(st.builds(Changed, name, several, st.just(())), st.builds(Changed, name, st.just(()), bytes_))


KINDS = (
    Kind("features file", _changed("mean.safetensors"), write_file, open_file),
    Kind(
        "store", _changed("manifest.json", "shard-00000.safetensors", "shard-00001.safetensors"), write_store, use_store
    ),
)
