"""BEiT (Bao et al. 2022) as an encoder: any `BeitForMaskedImageModeling`, with its tokenizer's decoder."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from alignlab.models.encoder import check_tokens, pool_tokens, prepare

if TYPE_CHECKING:
    from alignlab.models.dvae import DVAE


class BEiTEncoder:
    """`decode` names each patch's code with the masked-image-modelling head and lets the dVAE paint it.

    `tokenizer` is the dVAE's name or folder, as `load_dvae` takes it; it is loaded by the first `decode`.
    """

    pools = ("cls", "mean")

    def __init__(
        self,
        name: str,
        checkpoint: str,
        model: Any,
        tokenizer: str,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        self.name, self.checkpoint, self.model = name, checkpoint, model
        self._tokenizer = tokenizer
        self.mean, self.std = mean, std
        for size in (model.config.image_size, model.config.patch_size):
            if not isinstance(size, int):
                raise ValueError(f"{name} has sizes of {size}; alignlab reads squares, one number")
        self.image_size: int = model.config.image_size
        self.grid = model.config.image_size // model.config.patch_size
        self.width: int = model.config.hidden_size
        self.num_layers: int = model.config.num_hidden_layers + 1

    @cached_property
    def tokenizer(self) -> DVAE:
        """The dVAE that paints. ValueError where it is not there, or names its codes otherwise than the encoder."""
        from alignlab.models.vision import load_dvae

        weight = self.model.lm_head.weight
        dvae = load_dvae(self._tokenizer, str(weight.device), str(weight.dtype).removeprefix("torch."))
        if dvae.config.vocab != len(weight):
            raise ValueError(
                f"{self.name} names {len(weight)} codes, its dVAE ({self._tokenizer}) paints {dvae.config.vocab}"
            )
        return dvae

    @property
    def decoder_checkpoint(self) -> str:
        """The dVAE's, which paints. Errors as `tokenizer`."""
        return self.tokenizer.checkpoint

    def _run(self, images: Tensor, every_layer: bool) -> Any:
        pixels = prepare(images, self.image_size, self.mean, self.std, self.model.lm_head.weight)
        return self.model.beit(pixels, output_hidden_states=every_layer)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images `[B, 3, H, W]` in 0..1 -> `[B, 1 + T, D]` float32, after the final norm, [CLS] first."""
        return self.model.layernorm(self._run(images, every_layer=False).last_hidden_state).float()

    @torch.no_grad()
    def layers(self, images: Tensor, pool: str | None = None) -> Tensor:
        """Images `[B, 3, H, W]` in 0..1 -> `[B, L, D]` float32: the embedding output and every block's."""
        hidden = self._run(images, every_layer=True).hidden_states  # L of [B, 1 + T, D], before the final norm
        return pool_tokens(hidden, pool or self.pools[0], self.pools)

    @torch.no_grad()
    def codes(self, tokens: Tensor) -> Tensor:
        """Tokens of `encode` `[B, 1 + T, D]` -> the likeliest code of each patch, int64 `[B, h, w]`."""
        check_tokens(tokens, self.grid**2 + 1, self.width)
        scores = self.model.lm_head(tokens[:, 1:].to(self.model.lm_head.weight))  # [B, T, codes]
        return scores.argmax(-1).reshape(-1, self.grid, self.grid)

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens of `encode` `[B, 1 + T, D]` -> images `[B, 3, 8 h, 8 w]` in 0..1.

        Raises ValueError where the dVAE is missing: OpenAI's is fetched with `alignlab models fetch dall-e`.
        """
        return self.tokenizer.decode(self.codes(tokens))
