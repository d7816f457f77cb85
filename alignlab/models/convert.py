"""`alignlab models convert FILE`: a pickled checkpoint once, offline, into safetensors and a `config.json`.

No instruction of the pickle is run (see `checkpoint_file`). Beside what `load_encoder` reads itself this accepts files that hold
objects of unknown classes: their tensors are kept and the rest is left, by name, in a warning.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from alignlab.files import write_tensors
from alignlab.models import beit_pth, dalle, taming, weights
from alignlab.models.assemble import Stored, from_checkpoint
from alignlab.models.checkpoint_file import open_checkpoint, unknown_to
from alignlab.models.llm import load_llm
from alignlab.models.vision import load_vision, read_json

log = logging.getLogger(__name__)

# A folder's own settings, a tokenizer's files among them, which go with the weights.
SETTINGS = (*weights.SETTINGS, "generation_config.json", "*.jinja")


def convert(path: Path, out: Path | None = None) -> Path:
    """Convert a checkpoint to a folder that `load_encoder` reads, and return the folder.

    `path` is a BEiT `.pth`, OpenAI's dVAE (the folder of `encoder.pkl` and `decoder.pkl`, or one of them), a VQGAN
    (`.ckpt` with its YAML, or their folder) or the folder of an encoder or a language model with `pytorch_model*.bin`.
    `out` is by default beside it, with "-safetensors" after its name. The folder is there whole or not at all. Raises
    ValueError for what is none of these (with its first tensors' names), for a pickle that would run code, and where
    `out` is not empty.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise ValueError(f"there is no {path}")
    target = Path(out).expanduser() if out is not None else _beside(path)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} is not empty; give another folder with --out")
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        _warn(path, _write(path, scratch))
        _check(scratch, path)
        scratch.chmod(0o755)  # mkdtemp makes it its owner's alone
        if target.exists():
            target.rmdir()  # empty, as above
        os.replace(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _check(folder: Path, path: Path) -> None:
    """ValueError that names the original where `load_encoder`, or `load_llm` for a language model, would not read it."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    try:
        if str(read_json(folder / "config.json").get("model_type")) in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            load_llm(str(folder))
        else:
            load_vision(str(folder), path.name)
    except ValueError as error:
        raise ValueError(str(error).replace(str(folder), str(path))) from error


def _beside(path: Path) -> Path:
    if path.suffix == ".pkl":
        path = path.resolve().parent
    named = path.resolve()
    return named.with_name(f"{named.name if named.is_dir() else named.stem}-safetensors")


def _warn(path: Path, foreign: tuple[str, ...]) -> None:
    if left := unknown_to(foreign):
        log.warning("%s: left out, and never called: objects of %s", path, ", ".join(left))


def _write(path: Path, folder: Path) -> tuple[str, ...]:
    """Fill the folder and return the foreign names in what was read."""
    if (path.parent if path.suffix == ".pkl" else path).joinpath(dalle.FILES[0]).is_file():
        dvae, stored, foreign = dalle.read(path if path.is_dir() else path.parent, convert=True)
        _save(folder, {"model_type": "dvae", **asdict(dvae)}, _read(stored))
        return foreign
    if path.is_dir() and (bins := sorted(path.glob("pytorch_model*.bin"))):
        return _write_bins(path, bins, folder)
    if path.suffix == ".ckpt" or (path.is_dir() and any(path.rglob("*.ckpt"))):
        ckpt, yaml = taming.find(path)
        config = taming.read_config(yaml)
        stored, foreign = taming.read_weights(ckpt, convert=True)
        _save(folder, {"model_type": "vqgan", **asdict(config)}, _read(stored))
        return foreign
    if path.is_file():
        sizes, stored, foreign = beit_pth.read(path, convert=True)
        _save(folder, beit_pth.config(sizes).to_dict(), beit_pth.state(stored))
        return foreign
    raise ValueError(
        f"{path} holds nothing to convert; give a .pth of BEiT, a .ckpt of a VQGAN, or a folder with "
        f"{' and '.join(dalle.FILES)} or pytorch_model.bin"
    )


def _write_bins(path: Path, bins: list[Path], folder: Path) -> tuple[str, ...]:
    read_json(path / "config.json")  # there must be one
    stored: dict[str, Stored] = {}
    foreign: dict[str, None] = {}
    for file in bins:
        checkpoint = open_checkpoint(file, convert=True)
        stored |= from_checkpoint(checkpoint, checkpoint.value)
        foreign |= dict.fromkeys(checkpoint.foreign)
    for file in {file for pattern in SETTINGS for file in path.glob(pattern) if file.is_file()}:
        shutil.copyfile(file, folder / file.name)
    _save(folder, None, _read(stored))
    return tuple(foreign)


def _read(stored: Mapping[str, Stored]) -> dict[str, Tensor]:
    return {name: tensor.read() for name, tensor in stored.items()}


def _save(folder: Path, config: dict[str, Any] | None, state: dict[str, Tensor]) -> None:
    write_tensors(folder / "model.safetensors", state, {"format": "pt"})
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
