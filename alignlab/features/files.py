"""Features in one file: written a shard at a time, and read back as arrays that stay on disk.

The file is a safetensors file: `layers` `[N, L, D]`, or `layer.0000`, ... `[N, D_l]` where widths differ.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from alignlab.features.store import Layers, Spec, shards
from alignlab.files import whole

# safetensors' names of the dtypes that features have
NAMES = {torch.float16: "F16", torch.float32: "F32", torch.float64: "F64"}
DTYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}
LARGEST_HEADER = 100_000_000  # bytes, as safetensors itself has it


def write(spec: Spec, file: str | Path) -> list[list[int]]:
    """Write the features of a spec that the store has whole, of which one shard is in memory at a time.

    The file appears whole or not at all; several may write it at once. bfloat16, which numpy has not, becomes float32.
    Returns the shapes of its arrays. Raises RuntimeError where the store lacks some, and OSError as `whole`.
    """
    with whole(Path(file), several=True) as unfinished, open(unfinished, "wb") as out:
        shapes, places = [], []
        done = 0
        for number, shard in enumerate(shards(spec)):
            tensors = _named(shard)
            if number == 0:
                places = _write_header(out, spec, tensors)
                shapes = [[spec.n, *t.shape[1:]] for t in tensors.values()]
            for place, t in zip(places, tensors.values(), strict=True):
                content = t.contiguous().numpy()
                out.seek(place + done * content[0].nbytes)
                out.write(content.data)
            done += len(content)
    return shapes


def _named(layers: Layers) -> dict[str, Tensor]:
    named = {"layers": layers} if isinstance(layers, Tensor) else {f"layer.{i:04d}": t for i, t in enumerate(layers)}
    return {name: t.float() if t.dtype == torch.bfloat16 else t for name, t in named.items()}


def _write_header(out: BinaryIO, spec: Spec, tensors: dict[str, Tensor]) -> list[int]:
    """What stands before the numbers; where each array begins in the file."""
    about = {"model": spec.model, "checkpoint": spec.checkpoint, "pool": spec.pool, "data": spec.fingerprint}
    header: dict[str, Any] = {"__metadata__": about}
    end = 0
    for name, t in tensors.items():
        start, end = end, end + spec.n * t[0].nbytes
        header[name] = {"dtype": NAMES[t.dtype], "shape": [spec.n, *t.shape[1:]], "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    out.write(len(text).to_bytes(8, "little") + text)
    return [8 + len(text) + header[name]["data_offsets"][0] for name in tensors]


def read(file: str | Path) -> tuple[np.ndarray | list[np.ndarray], dict[str, str]]:
    """The arrays of a file that `write` made, mapped and not read, and what it says of them.

    Raises ValueError for a file that is none, or is cut off.
    """
    path = Path(file)
    try:
        with open(path, "rb") as content:
            length = int.from_bytes(content.read(8), "little")
            if length > LARGEST_HEADER:
                raise ValueError("its header is too long")
            header = json.loads(content.read(length))
        about = {str(k): str(v) for k, v in header.pop("__metadata__", {}).items()}
        arrays = {
            name: np.memmap(
                path,
                dtype=DTYPES[entry["dtype"]],
                mode="r",
                offset=8 + length + entry["data_offsets"][0],
                shape=tuple(entry["shape"]),
            )
            for name, entry in sorted(header.items())
        }
        if any(entry["data_offsets"][0] < 0 for entry in header.values()):
            raise ValueError("an array lies before the first")
        if "layers" not in arrays and set(arrays) != {f"layer.{i:04d}" for i in range(max(1, len(arrays)))}:
            raise ValueError(f"it holds {', '.join(arrays) or 'nothing'}, not layers or layer.0000, layer.0001, ...")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError(f"{path}: no features as alignlab extract --save writes them ({error})") from error
    return arrays.get("layers", list(arrays.values())), about
