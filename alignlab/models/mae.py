"""MAE (He et al. 2021) as an encoder with a decoder: any `ViTMAEForPreTraining` of transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from alignlab.models.encoder import check_tokens, pool_tokens, prepare


class MAEEncoder:
    """Nothing is masked and the patches keep their raster order; [CLS] is the first token.

    `mean` and `std` are those of the checkpoint's image processor (ImageNet's for every published one).
    """

    pools = ("cls", "mean")

    def __init__(self, name: str, checkpoint: str, model: Any, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.name, self.checkpoint, self.model = name, checkpoint, model
        self.mean, self.std = mean, std
        self.model.config.mask_ratio = 0.0
        self.image_size: int = model.config.image_size
        self.patches = (model.config.image_size // model.config.patch_size) ** 2
        self.width: int = model.config.hidden_size
        self.num_layers: int = model.config.num_hidden_layers + 1

    def _run(self, images: Tensor, every_layer: bool) -> Any:
        weight = self.model.vit.layernorm.weight
        pixels = prepare(images, self.image_size, self.mean, self.std, weight)
        # transformers shuffles the patches by noise even at mask ratio 0; rising noise leaves them in place
        noise = torch.arange(self.patches, device=weight.device).float().expand(len(pixels), -1)
        return self.model.vit(pixels, noise=noise, output_hidden_states=every_layer)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images `[B, 3, H, W]` in 0..1 -> `[B, 1 + T, D]` float32, after the final norm, [CLS] first."""
        return self._run(images, every_layer=False).last_hidden_state.float()

    @torch.no_grad()
    def layers(self, images: Tensor, pool: str | None = None) -> Tensor:
        """Images `[B, 3, H, W]` in 0..1 -> `[B, L, D]` float32: the embedding output and every block's."""
        hidden = self._run(images, every_layer=True).hidden_states  # L of [B, 1 + T, D], before the final norm
        return pool_tokens(hidden, pool or self.pools[0], self.pools)

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens of `encode` `[B, 1 + T, D]` -> images `[B, 3, H, W]` in 0..1.

        Raises ValueError for a checkpoint that predicts patches normalised one by one: their means are not in the
        tokens.
        """
        if self.model.config.norm_pix_loss:
            raise ValueError(
                f"{self.name} predicts normalised patches (norm_pix_loss); their brightness is not in the tokens: "
                "decode with a checkpoint that was fine-tuned for reconstruction"
            )
        check_tokens(tokens, self.patches + 1, self.width)
        weight = self.model.vit.layernorm.weight
        order = torch.arange(self.patches, device=weight.device).expand(len(tokens), -1)
        patches = self.model.decoder(tokens.to(weight), order).logits  # [B, T, 3 * patch * patch]
        pixels = self.model.unpatchify(patches).float()  # [B, 3, H, W], normalised
        shape = (1, 3, 1, 1)
        return (pixels * pixels.new_tensor(self.std).view(shape) + pixels.new_tensor(self.mean).view(shape)).clamp(0, 1)
