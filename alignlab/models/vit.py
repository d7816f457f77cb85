"""Any ViT-like vision model of transformers (ViT, DeiT, DINOv2, ...) as an encoder for alignment."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from alignlab.models.encoder import pool_tokens, prepare


class ViTEncoder:
    """Reads the hidden states that transformers gives; [CLS] first. There is no decoder."""

    pools = ("cls", "mean")

    def __init__(self, name: str, checkpoint: str, model: Any, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.name, self.checkpoint, self.model = name, checkpoint, model
        self.mean, self.std = mean, std
        size = getattr(model.config, "image_size", None)
        if not isinstance(size, int):
            raise ValueError(f"{name} ({model.config.model_type}) names no square image size; alignlab cannot feed it")
        self.image_size = size

    def _run(self, images: Tensor) -> Any:
        like = next(self.model.parameters())
        pixels = prepare(images, self.image_size, self.mean, self.std, like)
        out = self.model(pixels, output_hidden_states=True)
        if out.hidden_states is None or out.hidden_states[0].ndim != 3:
            raise ValueError(f"{self.name} ({self.model.config.model_type}) gives no token sequence; use timm:NAME")
        return out

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images `[B, 3, H, W]` in 0..1 -> the last hidden state `[B, 1 + T, D]`, float32."""
        return self._run(images).last_hidden_state.float()

    @torch.no_grad()
    def layers(self, images: Tensor, pool: str | None = None) -> Tensor:
        """Images `[B, 3, H, W]` in 0..1 -> `[B, L, D]` float32: the embedding output and every block's."""
        return pool_tokens(self._run(images).hidden_states, pool or self.pools[0], self.pools)
