"""`extract`: the pooled features of every layer for every item of a data set, from the store where they are there."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from alignlab.data import ImageTextDataset, resize, to_tensor
from alignlab.features.store import Layers, Spec, is_complete, join, load_or_compute
from alignlab.models.registry import Handle
from alignlab.progress import Tick, progress

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Features:
    """Pooled features of N items: `layers` is float32 `[N, L, D]`, or L tensors `[N, D_l]` where widths differ."""

    name: str
    checkpoint: str
    pool: str
    layers: Layers

    def __len__(self) -> int:
        return len(self.layers) if isinstance(self.layers, Tensor) else len(self.layers[0])


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


def spec_of(handle: Handle, data: ImageTextDataset, pool: str | None) -> Spec:
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
    )


def extract(model: Any, data: ImageTextDataset, *, pool: str | None = None, batch_size: int = 64) -> Features:
    """Features of every layer for every item: images for an encoder, each item's first caption for a language model.

    `model` is what `load_encoder` or `load_llm` gives (or a `find_encoder` handle, which is loaded only if the store
    lacks something); any object with `name`, `checkpoint`, `pools`, `image_size` and `layers(images, pool)` will do.
    `pool` is one of the model's, by default its first. `batch_size` changes the speed, not the features (but for
    rounding).

    What is computed is kept in the store: a killed run goes on where it stopped, and runs that want the same features
    wait for one another.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
    handle = model if isinstance(model, Handle) else handle_of(model)
    spec = spec_of(handle, data, pool)
    loaded: list[Any] = []

    def compute(items: range, tick: Tick = _unseen) -> Layers:
        if not loaded:
            loaded.append(handle.load())
        # Captions of like length together, so that little is padded; pictures as they come.
        order = sorted(items, key=lambda i: len(data.captions[i][0])) if handle.reads == "text" else list(items)
        read = _read_captions if handle.reads == "text" else _read_images
        parts = []
        for at in range(0, len(order), batch_size):
            parts.append(read(loaded[0], data, order[at : at + batch_size], spec.pool))
            tick(items.start + min(at + batch_size, len(order)))
        back = torch.tensor(order).argsort()
        shard = join(parts)
        return shard[back] if isinstance(shard, Tensor) else [layer[back] for layer in shard]

    def waiting() -> None:
        log.warning("another run is extracting the features of %s on %s; waiting for it", spec.model, spec.data)

    if is_complete(spec):  # nothing to wait for, so nothing to show
        return Features(spec.model, spec.checkpoint, spec.pool, load_or_compute(spec, compute, _unseen, waiting))
    with progress(f"extract {spec.model}", spec.n) as tick:
        layers = load_or_compute(spec, partial(compute, tick=tick), tick, waiting)
    return Features(spec.model, spec.checkpoint, spec.pool, layers)


def _unseen(done: int, note: str = "") -> None:
    pass


def _read_captions(llm: Any, data: ImageTextDataset, items: list[int], pool: str) -> Layers:
    return llm.layers([data.captions[i][0] for i in items], pool=pool).cpu()


def _read_images(encoder: Any, data: ImageTextDataset, items: list[int], pool: str) -> Layers:
    # Resized one by one, as the pictures of a set differ in size; the encoder then leaves them as they are.
    images = [resize(to_tensor(data[i].image)[None], encoder.image_size) for i in items]
    layers = encoder.layers(torch.cat(images), pool=pool)
    return layers.cpu() if isinstance(layers, Tensor) else [layer.cpu() for layer in layers]
