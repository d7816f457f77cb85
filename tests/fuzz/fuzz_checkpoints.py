"""Checkpoints of every layout that is read: damaged bytes, headers and configurations that say other things than the file."""

from __future__ import annotations

import functools
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fuzzing import Damage, Edit, Kind, called, damaged, damages, edited, edits
from hypothesis import strategies as st

from alignlab import trained
from alignlab.captioning import fit as captioning
from alignlab.models import load_encoder, load_llm
from alignlab.models.vqgan import VQGAN, VQGANConfig
from alignlab.pretrain.run import save as save_own
from alignlab.restoration import design
from alignlab.training import Recipe, _identity, check_state

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "models")]

import layouts  # noqa: E402
import small  # noqa: E402

RECIPE, ABOUT = Recipe(steps=3), {"data": "x", "design": {"how": "linear"}}
VQ = VQGANConfig(32, (1, 2), 1, (16,), 6, 6, 50, 32)  # of layouts.vqgan_yaml


def _restorer(folder: Path, mae: Path) -> None:
    plan = design.Design(how="linear", encoder=str(mae), features="raw")
    design.save(design.build(plan, dtype="float32"), plan, folder)


def _probe(folder: Path, mae: Path) -> None:
    trained.write(
        folder, {"weight": torch.zeros(2, 2)}, {"encoder": str(mae), "llm": "x", "prefix": "", "seed": 0}, {}, {}
    )


def _state(folder: Path) -> None:
    module = torch.nn.Linear(3, 3)
    folder.mkdir()
    state = {"step": 2, "seconds": 1.0, "log": [{"step": 0}], "running": {}, "identity": _identity(RECIPE, ABOUT)}
    optimiser = torch.optim.AdamW(module.parameters())
    torch.save(
        {**state, "modules": module.state_dict(), "optimisers": {"m": optimiser.state_dict()}}, folder / "state.pt"
    )


@functools.cache
def whole() -> Path:
    """A folder with one sound checkpoint of every layout, made once."""
    top = Path(tempfile.mkdtemp(prefix="fuzz-checkpoints-"))
    mae = small.write_mae(top / "mae")
    small.write_llm(top / "llm")
    (top / "vqgan").mkdir()
    model = VQGAN(VQ)
    save_own(model, top / "vqgan")
    for name, zipped in (("taming", True), ("taming before zip", False)):
        (top / name).mkdir()
        value = {"state_dict": model.state_dict(), "epoch": 1}
        torch.save(value, top / name / "last.ckpt", _use_new_zipfile_serialization=zipped)
        (top / name / "model.yaml").write_text(layouts.vqgan_yaml())
    (top / "beit").mkdir()
    torch.save({"model": layouts.beit()[1]}, top / "beit" / "beit.pth")
    (top / "dalle").mkdir()
    layouts.write_dalle(top / "dalle")
    _restorer(top / "restorer", mae)
    _probe(top / "probe", mae)
    _state(top / "state")
    for adapters in (top / "restorer", top / "probe"):
        assert (adapters / trained.ADAPTERS).is_file()
    return top


def _looked_through(encoder: Any) -> None:
    encoder.layers(torch.rand(1, 3, 32, 32))


READ: dict[str, tuple[str, Callable[[Path], object]]] = {
    "mae": ("", lambda folder: _looked_through(load_encoder(str(folder)))),
    "vqgan": ("", lambda folder: _looked_through(load_encoder(str(folder)))),
    "taming": ("", lambda folder: _looked_through(load_encoder(str(folder)))),
    "taming before zip": ("", lambda folder: _looked_through(load_encoder(str(folder)))),
    "beit": ("beit.pth", lambda file: load_encoder(str(file))),
    "dalle": ("", lambda folder: load_encoder(str(folder))),
    "llm": ("", lambda folder: load_llm(str(folder)).layers(["a b"])),
    "restorer": ("", lambda folder: design.load(str(folder), dtype="float32")),
    "probe": ("", lambda folder: captioning.read(folder)),
    "state": ("", lambda folder: check_state(folder, RECIPE, ABOUT)),
}


@dataclass(frozen=True)
class Broken:
    """A checkpoint with one of its files changed: its values where it has some (JSON, a safetensors header), then its bytes."""

    layout: str
    file: float
    edits: tuple[Edit, ...]
    changes: tuple[Damage, ...]


def _resized(content: bytes, changes: tuple[Edit, ...]) -> bytes:
    """A safetensors file with another header."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    described = json.loads(header.get("__metadata__", {}).get("alignlab", "null"))
    if described is not None and changes and changes[0].at < 0.7:  # what alignlab says there
        header["__metadata__"]["alignlab"] = json.dumps(edited(described, list(changes)))
    else:
        header = edited(header, list(changes))
    new = json.dumps(header).encode()
    return len(new).to_bytes(8, "little") + new + content[8 + size :]


def write(given: Broken, folder: Path) -> None:
    place = folder / "model"
    shutil.copytree(whole() / given.layout, place)
    files = sorted(path for path in place.iterdir() if path.is_file())
    path = files[int(given.file * len(files))]
    content = path.read_bytes()
    if given.edits and path.suffix == ".json":
        content = json.dumps(edited(json.loads(content), list(given.edits))).encode()
    elif given.edits and path.suffix == ".safetensors":
        content = _resized(content, given.edits)
    path.write_bytes(damaged(content, list(given.changes)))


def answer(given: Broken, folder: Path) -> int:
    inside, read = READ[given.layout]
    return called(lambda: read(folder / "model" / inside))


def kind(layout: str) -> Kind:
    share = st.floats(0, 1, exclude_max=True)
    inputs = st.one_of(
        st.builds(Broken, st.just(layout), share, edits(1, 2).map(tuple), st.just(())),
        st.builds(Broken, st.just(layout), share, st.just(()), damages(3).map(tuple)),
    )
    return Kind(f"checkpoint: {layout}", inputs, write, answer)


KINDS = tuple(kind(layout) for layout in READ)
