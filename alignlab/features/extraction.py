"""`extract`: the pooled features of every layer for every item of a data set, from the store where they are there."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alignlab.data import ImageTextDataset, resize, to_tensor
from alignlab.features import files
from alignlab.features.store import Layers, Spec, fill, is_complete, join, load_or_compute
from alignlab.models.registry import Handle
from alignlab.progress import Tick, progress

log = logging.getLogger(__name__)

BATCH = 64  # items that are computed at once


@dataclass(frozen=True)
class Features:
    """Pooled features of N items: `layers` is float32 `[N, L, D]`, or L tensors `[N, D_l]` where widths differ.

    Those of a file are numpy arrays that stay on disk.
    """

    name: str
    checkpoint: str
    pool: str
    layers: Layers | np.ndarray | list[np.ndarray]

    def __len__(self) -> int:
        return len(self.layers[0]) if isinstance(self.layers, list) else len(self.layers)


def handle_of(model: Any) -> Handle:
    """A loaded model as a handle. Whatever has an `image_size` reads images, the others read captions."""
    inner = getattr(model, "model", None)
    dtype = next(inner.parameters()).dtype if isinstance(inner, torch.nn.Module) else torch.float32
    return Handle(
        name=model.name,
        checkpoint=model.checkpoint,
        pools=tuple(model.pools),
        dtype=str(dtype).removeprefix("torch."),
        reads="image" if hasattr(model, "image_size") else "text",
        load=lambda: model,
    )


def spec_of(handle: Handle, data: ImageTextDataset, pool: str | None, batch_size: int = BATCH) -> Spec:
    """What the store knows the features by. Raises ValueError for a pool that the model does not have."""
    chosen = pool or handle.pools[0]
    if chosen not in handle.pools:
        raise ValueError(f"pool must be one of {', '.join(handle.pools)} for {handle.name}, got {pool!r}")
    return Spec(
        model=handle.name,
        checkpoint=handle.checkpoint,
        reads=handle.reads,
        pool=chosen,
        dtype=handle.dtype,
        data=data.name,
        fingerprint=data.fingerprint,
        n=len(data),
        batch=None if handle.dtype == "float32" else batch_size,
    )


def extract(
    model: Any,
    data: ImageTextDataset,
    *,
    pool: str | None = None,
    batch_size: int = BATCH,
    file: str | Path | None = None,
) -> Features:
    """Features of every layer for every item: images for an encoder, each item's first caption for a language model.

    `model` is what `load_encoder` or `load_llm` gives (or a `find_encoder` handle, which is loaded only if the store
    lacks something); any object with `name`, `checkpoint`, `pools`, `image_size` and `layers(images, pool)` will do.
    `pool` is one of the model's, by default its first. `batch_size` changes the speed, and of the features the last digits
    in float32; in bfloat16 and the like it moves them by about a hundredth, so that the store keeps them apart by it.

    What is computed is kept in the store: a killed run goes on where it stopped, and runs (or the processes of
    `accelerate launch`) that want the same features share the work.

    For sets larger than memory: with `file` the features are written to that safetensors file too, as `alignlab extract
    --save` does, and those returned lie there (`open_features`); no more than 256 items' are in memory.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
    if file is not None:
        files.write(extract_to_store(model, data, pool=pool, batch_size=batch_size), file)
        return open_features(file)
    handle = model if isinstance(model, Handle) else handle_of(model)
    spec = spec_of(handle, data, pool, batch_size)
    if is_complete(spec):  # nothing to compute, so nothing to show
        layers = load_or_compute(spec, _computing(handle, data, spec, batch_size), _unseen, partial(_waiting, spec))
    else:
        with progress(f"extract {spec.model}", spec.n) as tick:
            layers = load_or_compute(spec, *_shown(handle, data, spec, batch_size, tick), partial(_waiting, spec))
    return Features(spec.model, spec.checkpoint, spec.pool, layers)


def open_features(file: str | Path) -> Features:
    """The features in a file that `extract` or `alignlab extract --save` wrote, mapped from disk: nothing is read yet.

    `align` takes them. Raises ValueError for a file that holds none, FileNotFoundError for one that is not there.
    """
    layers, about = files.read(file)
    return Features(about.get("model", Path(file).stem), about.get("checkpoint", ""), about.get("pool", ""), layers)


def extract_to_store(model: Any, data: ImageTextDataset, *, pool: str | None = None, batch_size: int = BATCH) -> Spec:
    """What `extract` does, but that the features stay on disk: no more than 256 items of them are in memory."""
    handle = model if isinstance(model, Handle) else handle_of(model)
    spec = spec_of(handle, data, pool, batch_size)
    with progress(f"extract {spec.model}", spec.n) as tick:
        fill(spec, *_shown(handle, data, spec, batch_size, tick), partial(_waiting, spec))
    return spec


def _computing(
    handle: Handle, data: ImageTextDataset, spec: Spec, batch_size: int, tick: Tick | None = None
) -> Callable[[range], Layers]:
    """The features of some items; `tick(items done of these)`. The model is loaded when it is first needed."""
    loaded: list[Any] = []
    texts = [said[0] for said in data.captions] if handle.reads == "text" else []

    def read(order: list[int]) -> Layers:
        if handle.reads == "text":
            return loaded[0].layers([texts[i] for i in order], pool=spec.pool).cpu()
        return _read_images(loaded[0], data, order, spec.pool)

    def compute(items: range) -> Layers:
        if not loaded:
            loaded.append(handle.load())
        # Captions of like length together, so that little is padded; pictures as they come.
        order = sorted(items, key=lambda i: len(texts[i])) if texts else list(items)
        parts = []
        for at in range(0, len(order), batch_size):
            parts.append(read(order[at : at + batch_size]))
            if tick is not None:
                tick(min(at + batch_size, len(order)))
        back = torch.tensor(order).argsort()
        shard = join(parts)
        return shard[back] if isinstance(shard, Tensor) else [layer[back] for layer in shard]

    return compute


def _shown(
    handle: Handle, data: ImageTextDataset, spec: Spec, batch_size: int, tick: Tick
) -> tuple[Callable[[range], Layers], Callable[[int], None]]:
    """`compute` and `progress` of the store, which tell `tick` of all items that are done, other processes' too."""
    finished = [0]

    def progressed(done: int) -> None:
        finished[0] = done
        tick(done)

    return _computing(handle, data, spec, batch_size, lambda done: tick(finished[0] + done)), progressed


def _waiting(spec: Spec) -> None:
    log.warning("other runs are extracting the last features of %s on %s; waiting for them", spec.model, spec.data)


def _unseen(done: int, note: str = "") -> None:
    pass


def _read_images(encoder: Any, data: ImageTextDataset, items: list[int], pool: str) -> Layers:
    # Resized one by one, as the pictures of a set differ in size; the encoder then leaves them as they are.
    images = [resize(to_tensor(data[i].image)[None], encoder.image_size) for i in items]
    layers = encoder.layers(torch.cat(images), pool=pool)
    return layers.cpu() if isinstance(layers, Tensor) else [layer.cpu() for layer in layers]
