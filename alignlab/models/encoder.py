"""What a vision encoder is to the rest of alignlab, and the two steps that all of them share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from alignlab.data.images import resize


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
    shape = (1, 3, 1, 1)
    normalised = (pixels - pixels.new_tensor(mean).view(shape)) / pixels.new_tensor(std).view(shape)
    return normalised.to(like.dtype)


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
