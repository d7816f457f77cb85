"""MAE (He et al. 2021) as an encoder with a decoder: any `ViTMAEForPreTraining` of transformers."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from alignlab.files import write_tensors
from alignlab.models import weights
from alignlab.models.assemble import check_affordable, check_counts, check_loaded, sketch
from alignlab.models.encoder import check_tokens, pool_tokens, prepare
from alignlab.paths import shipped

# Shipped decoders that were fine-tuned to reproduce what the encoder saw.
DECODERS = ("mae-tiny-r",)
DECODER_FILE = "decoder.safetensors"

EPS = 1e-6  # under the root of a patch's variance, as in training with norm_pix_loss


class MAEEncoder:
    """Nothing is masked and the patches keep their raster order; [CLS] is the first token.

    `mean` and `std` are those of the checkpoint's image processor (ImageNet's for every published one).
    `decoder_checkpoint` names the decoder's weights: the checkpoint's own, unless `use_decoder` put others there.
    """

    pools = ("cls", "mean")

    def __init__(self, name: str, checkpoint: str, model: Any, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.name, self.checkpoint, self.model = name, checkpoint, model
        self.decoder_checkpoint = checkpoint
        self.mean, self.std = mean, std
        self.model.config.mask_ratio = 0.0
        if not isinstance(model.config.image_size, int):
            raise ValueError(
                f"{name} has an image size of {model.config.image_size}; alignlab reads squares, one number"
            )
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
    def decode(self, tokens: Tensor, brightness_of: Tensor | None = None) -> Tensor:
        """Tokens of `encode` `[B, 1 + T, D]` -> images `[B, 3, H, W]` in 0..1.

        A decoder that predicts patches normalised one by one (`norm_pix_loss`) says nothing of a patch's mean and
        contrast; they are then taken from the patches of `brightness_of`, images `[B, 3, H', W']` in 0..1, as MAE's
        authors do for their figures. Raises ValueError where such a decoder is given none, or another is given one.
        """
        if self.model.config.norm_pix_loss == (brightness_of is None):
            hint = (
                "predicts normalised patches (norm_pix_loss), whose brightness is not in the tokens: give "
                "brightness_of=images, or use a decoder that was fine-tuned for reconstruction"
                if brightness_of is None
                else "predicts plain pixels; brightness_of is for decoders with norm_pix_loss"
            )
            raise ValueError(f"the decoder {self.decoder_checkpoint} of {self.name} {hint}")
        check_tokens(tokens, self.patches + 1, self.width)
        weight = self.model.vit.layernorm.weight
        order = torch.arange(self.patches, device=weight.device).expand(len(tokens), -1)
        return self._paint(tokens.to(weight), order, brightness_of)

    @torch.no_grad()
    def fill(self, images: Tensor, hidden: Tensor, brightness_of: Tensor | None = None) -> Tensor:
        """What the model paints when it does not see the patches where `hidden` (bool `[T]`, raster order) is true.

        Images `[B, 3, H, W]` in 0..1 -> `[B, 3, H', W']` in 0..1, every patch as the decoder has it.
        """
        if hidden.shape != (self.patches,) or hidden.dtype != torch.bool or bool(hidden.all()):
            raise ValueError(
                f"hidden must be bool [{self.patches}], not all true, got {hidden.dtype} {tuple(hidden.shape)}"
            )
        weight = self.model.vit.layernorm.weight
        pixels = prepare(images, self.image_size, self.mean, self.std, weight)
        # Patches are kept in the order of their noise: the visible ones first, each group in raster order.
        # In float32: bfloat16 has no room for so many numbers, and equal ones come in any order.
        noise = torch.arange(self.patches) + self.patches * hidden.cpu().float()
        # Half a patch less, so that no rounding of 1 - ratio loses one.
        self.model.config.mask_ratio = max(float(hidden.sum()) - 0.5, 0.0) / self.patches
        try:
            seen = self.model.vit(pixels, noise=noise.to(weight.device).expand(len(pixels), -1))
        finally:
            self.model.config.mask_ratio = 0.0
        return self._paint(seen.last_hidden_state, seen.ids_restore, brightness_of)

    def _paint(self, tokens: Tensor, order: Tensor, brightness_of: Tensor | None) -> Tensor:
        patches = self.model.decoder(tokens, order).logits  # [B, T, 3 * patch * patch]
        if brightness_of is not None:
            like = prepare(brightness_of, self.image_size, self.mean, self.std, patches)
            true = self.model.patchify(like)  # [B, T, 3 * patch * patch]
            patches = patches * (true.var(-1, keepdim=True) + EPS).sqrt() + true.mean(-1, keepdim=True)
        return self.to_images(patches).clamp(0, 1)

    def to_images(self, patches: Tensor) -> Tensor:
        """What the decoder predicts `[B, T, 3 * patch * patch]` -> images `[B, 3, H, W]` float32, not clamped."""
        pixels = self.model.unpatchify(patches).float()  # [B, 3, H, W], normalised
        shape = (1, 3, 1, 1)
        return pixels * pixels.new_tensor(self.std).view(shape) + pixels.new_tensor(self.mean).view(shape)

    def use_decoder(self, checkpoint: str, config: Any, state: dict[str, Tensor]) -> None:
        """Put another decoder behind this encoder: `state` holds its tensors by transformers' names in `.decoder`.

        Raises ValueError where its patches or the width that it reads are not this encoder's.
        """
        from transformers.models.vit_mae.modeling_vit_mae import ViTMAEDecoder

        ours = self.model.config
        for what in ("hidden_size", "patch_size", "image_size", "num_channels"):
            if getattr(config, what) != getattr(ours, what):
                raise ValueError(
                    f"the decoder {checkpoint} is for {what} {getattr(config, what)}, but {self.name} has "
                    f"{getattr(ours, what)}"
                )
        config._attn_implementation = ours._attn_implementation  # not stored; without it transformers warns
        # Without memory until it is clear that the tensors fit.
        decoder: Any = sketch(partial(ViTMAEDecoder, config, num_patches=self.patches), f"the decoder {checkpoint}")
        if reason := _misfit(decoder.state_dict(), state):
            raise ValueError(f"the decoder {checkpoint} does not fit its configuration: {reason}")
        like = self.model.vit.layernorm.weight
        # Copied, so that whoever trains this decoder leaves `state` as it is.
        decoder.load_state_dict({key: x.to(like, copy=True) for key, x in state.items()}, assign=True)
        self.model.decoder = decoder.eval().requires_grad_(False)
        self.model.config.norm_pix_loss = config.norm_pix_loss
        self.decoder_checkpoint = checkpoint


def _misfit(wanted: dict[str, Tensor], state: dict[str, Tensor]) -> str | None:
    """The first name or shape in which two state dicts differ, in words."""
    if missing := sorted(wanted.keys() - state.keys()):
        return f"it lacks {missing[0]}"
    if extra := sorted(state.keys() - wanted.keys()):
        return f"there is no place for {extra[0]}"
    wrong = next((key for key, tensor in wanted.items() if state[key].shape != tensor.shape), None)
    return wrong and f"{wrong} has shape {tuple(state[wrong].shape)}, not {tuple(wanted[wrong].shape)}"


def read_decoder(source: str) -> tuple[str, Any, dict[str, Tensor]]:
    """Checkpoint name, configuration and tensors of a decoder, as `MAEEncoder.use_decoder` takes them.

    `source` is a shipped checkpoint's name, a folder or a hub id ("org/name") with a whole `ViTMAEForPreTraining`, or a
    folder with a decoder alone, as `alignlab restore decoder` writes it. Raises ValueError for what cannot be read,
    RuntimeError where the hub cannot be reached.
    """
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    folder = shipped("checkpoints", source) if source in DECODERS else Path(source).expanduser()
    if not folder.is_dir() and not weights.HUB_ID.fullmatch(source):
        raise ValueError(
            f"no decoder {source!r}; known: {', '.join(DECODERS)} (a folder or a hub id, org/name, will do too)"
        )
    with weights.from_hub(source), weights.quiet_transformers():
        alone = folder / DECODER_FILE
        where = str(folder) if folder.is_dir() else source
        check_counts(ViTMAEConfig.get_config_dict(where)[0], source)
        config = ViTMAEConfig.from_pretrained(where)
        if alone.is_file():
            return f"{folder.name}@sha256:{weights.sha256_file(alone)}", config, load_file(alone)
        if folder.is_dir():
            check_affordable(partial(ViTMAEForPreTraining, config), folder)
        loaded: Any = ViTMAEForPreTraining.from_pretrained(
            where, output_loading_info=True, weights_only=True, ignore_mismatched_sizes=True
        )
        model, info = loaded
        check_loaded(info, source, lambda key: key.startswith("decoder."))
        checkpoint = weights.folder_checkpoint(folder) if folder.is_dir() else f"{source}@{model.config._commit_hash}"
        return checkpoint, model.config, model.decoder.state_dict()


def write_decoder(encoder: MAEEncoder, folder: Path) -> None:
    """The decoder alone, in float16, with the configuration of the whole: `decoder.safetensors`, `config.json`."""
    state = {key: x.half() for key, x in encoder.model.decoder.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / DECODER_FILE, state, {"format": "pt", "encoder": encoder.checkpoint})
    encoder.model.config.save_pretrained(folder)
