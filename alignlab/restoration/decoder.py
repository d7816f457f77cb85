"""Fine-tune MAE's decoder to reproduce what its frozen encoder saw (LM4LV, section 3.2 and App. A.2).

MAE is trained to fill in hidden patches, and its loss never looks at a visible one, so that a decoder fresh from
pretraining paints those badly. Here nothing is hidden, the encoder stays as it is and the decoder alone learns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alignlab.models.mae import MAEEncoder, write_decoder
from alignlab.paper import DECODER_RECIPE
from alignlab.restoration.batches import picture_batches
from alignlab.training import Processes, Recipe, adamw, autocast, descend, processes, train

LOSSES = ("l1", "l1+lpips")

# The paper's recipe in a size for one CPU: as many steps and as large a batch as an hour allows. The rate is the one
# that the paper's rule gives for its batch of 4,096; Adam's steps depend little on the batch.
RECIPE = Recipe(
    steps=3000,
    batch=64,
    lr=DECODER_RECIPE["lr"],
    warmup=DECODER_RECIPE["warmup"],
    weight_decay=DECODER_RECIPE["weight_decay"],
    betas=DECODER_RECIPE["betas"],
)


def paper_recipe(items: int, batch: int = DECODER_RECIPE["batch"], epochs: float = DECODER_RECIPE["epochs"]) -> Recipe:
    """The paper's recipe for a set of `items` pictures: 28 epochs, and a rate of 1e-4 for every 256 pictures of a batch."""
    lr = DECODER_RECIPE["lr"] * batch / DECODER_RECIPE["batch"]
    return replace(RECIPE, steps=max(math.ceil(epochs * items / batch), 1), batch=batch, lr=lr)


@dataclass(frozen=True)
class Run:
    """One fine-tuning: on what, how, to where. `crops` and `workers` are those of `picture_batches`; of a batch one part
    in `accumulate` is in memory at a time.
    """

    data: tuple[str, ...]
    out: Path
    recipe: Recipe = field(default_factory=lambda: RECIPE)
    loss: str = "l1"
    crops: int | None = None
    all_items: bool = False
    accumulate: int = 1
    device: str = "cpu"
    workers: int = 0


class DecoderTuning:
    """What `train` runs: the decoder's parameters learn from `|x - y| + LPIPS(x, y)`, both terms of images in -1..1.

    `perceptual(x, y)` gives the second term, `[B]` (None: without it). The encoder runs without gradients; the
    mask token and the fixed position codes are not trained. A decoder that predicted normalised patches learns to
    predict plain pixels. `among` several processes each is given its block of a batch.
    """

    def __init__(
        self,
        encoder: MAEEncoder,
        recipe: Recipe,
        perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
        accumulate: int = 1,
        among: Processes | None = None,
    ) -> None:
        self.encoder, self.recipe, self.perceptual, self.accumulate = encoder, recipe, perceptual, accumulate
        self.among = among or Processes()
        self.among.check(recipe.batch)
        encoder.model.config.norm_pix_loss = False
        decoder = encoder.model.decoder.requires_grad_(True)
        for fixed in (decoder.decoder_pos_embed, decoder.mask_token):
            fixed.requires_grad_(False)
        self.modules = nn.ModuleDict({"decoder": decoder})
        self.optimisers: dict[str, torch.optim.Optimizer] = {"decoder": adamw(decoder, recipe)}

    def step(self, images: Tensor, done: float) -> dict[str, float]:
        found = torch.zeros(2, device=images.device)

        def losses() -> Iterator[Tensor]:
            for part in images.chunk(self.accumulate):
                share = len(part) / self.recipe.batch
                l1, perceptual = self._compare(part)
                found.add_(share * torch.stack([l1 + perceptual, l1]).detach())
                yield share * (l1 + perceptual)

        descend(self.optimisers["decoder"], losses(), self.recipe.clip, self.among)
        loss, l1 = self.among.total(found).tolist()
        return {"loss": loss, "l1": l1}

    def _compare(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The absolute error of `[B, 3, H, W]` as the decoder paints it, and LPIPS (0 without)."""
        order = torch.arange(self.encoder.patches, device=images.device).expand(len(images), -1)
        with autocast(images.device.type, self.recipe.dtype):
            tokens = self.encoder.encode(images)  # [B, 1 + T, D]
            painted = self.encoder.to_images(self.modules["decoder"](tokens, order).logits)  # [B, 3, H, W]
        x, y = images * 2 - 1, painted * 2 - 1
        distance = (x - y).abs().mean()
        return distance, distance.new_zeros(()) if self.perceptual is None else self.perceptual(x, y).mean()


def tune(encoder: Any, run: Run) -> dict[str, Any]:
    """Fine-tune `encoder`'s decoder (resuming what `run.out` holds), write it to `run.out`; what `train` returns.

    The encoder is changed: it decodes with the new decoder. Raises ValueError for an encoder that is no MAE and for an
    unknown loss, RuntimeError where LPIPS is asked for and its networks are not here.
    """
    if not isinstance(encoder, MAEEncoder):
        raise ValueError(f"only a MAE has a decoder that is trained apart from its encoder; {encoder.name} is none")
    if run.loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {run.loss!r}")
    perceptual = None
    if run.loss == "l1+lpips":
        from alignlab.restoration.perceptual import load_lpips

        perceptual = load_lpips("vgg", run.device)
    among = processes(run.device)
    batches = picture_batches(
        run.data,
        encoder.image_size,
        run.recipe.batch,
        run.recipe.seed,
        crops=run.crops,
        all_items=run.all_items,
        workers=run.workers,
        among=among,
    )
    about = {
        "encoder": encoder.checkpoint,
        "decoder": encoder.decoder_checkpoint,
        "data": run.data,
        "loss": run.loss,
        "crops": run.crops,
        "held out": not run.all_items,
    }
    goal = DecoderTuning(encoder, run.recipe, perceptual, run.accumulate, among)
    history = train(goal, batches, run.recipe, run.out, "fine-tune decoder", run.device, about)
    encoder.model.decoder.requires_grad_(False)
    if among.rank == 0:
        write_decoder(encoder, run.out)
    return history
