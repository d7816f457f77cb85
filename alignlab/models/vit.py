"""Any vision model of transformers (ViT, DeiT, DINOv2, CLIP's and SigLIP's towers, ...) as an encoder for alignment."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from alignlab.models.encoder import prepare, stack
from alignlab.models.stages import as_tokens


class ViTEncoder:
    """Reads the hidden states that transformers gives. There is no decoder.

    Of a model with an image and a text tower (CLIP, SigLIP) it takes the image tower. Tokens beyond one a patch come
    first: the class token, then DeiT's distillation token or DINOv2's registers; a model without them (SigLIP, I-JEPA)
    has the pool "mean" only, and so have convolutional networks and pyramids (ConvNeXt, Swin), whose layers are the
    embedding and the stages. Raises ValueError for a model that names no square image size or gives no hidden states.
    """

    @torch.no_grad()
    def __init__(self, name: str, checkpoint: str, model: Any, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.name, self.checkpoint = name, checkpoint
        self.model = getattr(model, "vision_model", model)
        self.mean, self.std = mean, std
        size = self._square("image_size")
        if size is None:
            raise ValueError(f"{name} ({self._type}) names no square image size; use timm:NAME")
        self.image_size = size
        out = self._run(torch.zeros(1, 3, self.image_size, self.image_size))
        first = out.hidden_states[0]
        patch = self._square("patch_size")
        # As many as do not stand for a patch; all do where the embedding is a map.
        self._prefix = first.shape[1] - (self.image_size // patch) ** 2 if patch and first.ndim == 3 else 0
        if self._prefix < 0:
            raise ValueError(f"{name} ({self._type}) has fewer tokens than patches; use timm:NAME")
        self.pools: tuple[str, ...] = ("cls", "mean") if self._prefix else ("mean",)
        self.widths = tuple(self._pool(h, "mean").shape[1] for h in out.hidden_states)
        self.width = as_tokens(out.last_hidden_state).shape[2]

    @property
    def num_layers(self) -> int:
        return len(self.widths)

    @property
    def _type(self) -> str:
        return str(self.model.config.model_type)

    def _square(self, setting: str) -> int | None:
        """A size that the configuration gives as one number or as two equal ones."""
        value = getattr(self.model.config, setting, None)
        sides = [value] if isinstance(value, int) else list(value or [])
        return int(sides[0]) if sides and len(set(sides)) == 1 else None

    def _run(self, images: Tensor) -> Any:
        like = next(self.model.parameters())
        pixels = prepare(images, self.image_size, self.mean, self.std, like)
        try:
            out = self.model(pixels, output_hidden_states=True)
        except TypeError as error:  # it wants more than pixels
            raise ValueError(f"{self.name} ({self._type}) cannot be fed images alone: {error}") from error
        if getattr(out, "hidden_states", None) is None or out.hidden_states[0].ndim not in (3, 4):
            raise ValueError(f"{self.name} ({self._type}) gives no hidden states; use timm:NAME")
        return out

    def _pool(self, hidden: Tensor, pool: str) -> Tensor:
        tokens = as_tokens(hidden)
        return (tokens[:, 0] if pool == "cls" else tokens[:, self._prefix :].float().mean(1)).float()  # -> [B, D]

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images `[B, 3, H, W]` in 0..1 -> the last hidden state `[B, T, D]`, float32, the class token first."""
        return as_tokens(self._run(images).last_hidden_state).float()

    @torch.no_grad()
    def layers(self, images: Tensor, pool: str | None = None) -> Tensor | list[Tensor]:
        """Images `[B, 3, H, W]` in 0..1 -> `[B, L, D]` float32: the embedding output and every block's.

        A list of `[B, D_l]` where the layers' widths differ. Raises ValueError for a pool that the model does not have.
        """
        chosen = pool or self.pools[0]
        if chosen not in self.pools:
            raise ValueError(f"pool must be one of {', '.join(self.pools)} for {self.name}, got {pool!r}")
        return stack([self._pool(h, chosen) for h in self._run(images).hidden_states])
