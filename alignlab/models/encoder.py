"""What a vision encoder is to the rest of alignlab, and the two steps that all of them share."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from alignlab.data.images import resize
from alignlab.models.variant import Variant

# Per channel, of images in 0..1: what nearly every ImageNet model was trained with.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Encoder(Protocol):
    """A frozen vision encoder. Images are float `[B, 3, H, W]` in 0..1 of any size; what comes back is float32.

    `checkpoint` names the weights with their hash or revision; `pools` lists the ways to pool a layer, the default
    first.
    """

    name: str
    checkpoint: str
    image_size: int

    @property
    def pools(self) -> tuple[str, ...]: ...

    def encode(self, images: Tensor) -> Tensor:
        """`[B, T, D]`, the tokens that the decoder and LM4LV use."""
        ...

    def layers(self, images: Tensor, pool: str | None = None) -> Tensor | list[Tensor]:
        """`[B, L, D]`, one pooled vector an image and layer; a list of `[B, D_l]` where widths differ."""
        ...


def prepare(images: Tensor, size: int, mean: Sequence[float], std: Sequence[float], like: Tensor) -> Tensor:
    """Images of any size in 0..1 -> normalised `[B, 3, size, size]` on the device and in the dtype of `like`."""
    if images.ndim != 4 or images.shape[1] != 3 or len(images) == 0:
        raise ValueError(f"images must be [B, 3, H, W] with B >= 1, got {tuple(images.shape)}")
    pixels = resize(images.to(like.device, torch.float32), size)
    return normalise(pixels, mean, std).to(like.dtype)


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """`[B, 3, H, W]` minus a mean a channel, over a standard deviation a channel."""
    shape = (1, 3, 1, 1)
    return (images - images.new_tensor(mean).view(shape)) / images.new_tensor(std).view(shape)


def pool_tokens(hidden: Sequence[Tensor], pool: str, pools: tuple[str, ...]) -> Tensor:
    """Hidden states, one `[B, 1 + T, D]` a layer with [CLS] first -> `[B, L, D]` float32."""
    if pool not in pools:
        raise ValueError(f"pool must be one of {', '.join(pools)}, got {pool!r}")
    vectors = [h[:, 0] if pool == "cls" else h[:, 1:].float().mean(1) for h in hidden]
    return torch.stack(vectors, dim=1).float()


def check_tokens(tokens: Tensor, count: int, width: int) -> None:
    """ValueError unless `tokens` is `[B, count, width]`."""
    if tokens.ndim != 3 or tokens.shape[1:] != (count, width):
        raise ValueError(f"tokens must be [B, {count}, {width}], got {tuple(tokens.shape)}")


def stack(layers: list[Tensor]) -> Tensor | list[Tensor]:
    """L tensors `[B, D_l]` -> `[B, L, D]` where all widths are the same, as they are where not."""
    return torch.stack(layers, dim=1) if len({x.shape[1] for x in layers}) == 1 else layers


def sha256_state(state: Mapping[str, Tensor]) -> str:
    """One SHA-256 of a state dict: names, types, shapes and numbers, on the CPU."""
    digest = hashlib.sha256()
    for key, x in state.items():
        digest.update(f"{key} {x.dtype} {list(x.shape)}\n".encode())
        digest.update(x.flatten().view(torch.uint8).numpy().data)  # any dtype as its bytes
    return digest.hexdigest()


@contextmanager
def seeded() -> Iterator[None]:
    """Random numbers inside come from seed 0; outside nothing has been drawn. For `NAME@random`."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # the CPU's alone: torch.manual_seed would reset a GPU's as well
        yield


def refuse_blocks(name: str, variant: Variant) -> None:
    """ValueError for `NAME[:K]`, which is for language models."""
    if variant.blocks is not None:
        raise ValueError(f"{name!r}: [:{variant.blocks}] cuts language models, not encoders; leave it off")
