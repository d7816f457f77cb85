"""What each embedded model learns: masked pixels (MAE), masked codes (BEiT), a code book (dVAE, VQGAN)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignlab.models.dvae import DVAE, map_pixels
from alignlab.models.encoder import IMAGENET_MEAN, IMAGENET_STD, normalise
from alignlab.models.vqgan import VQGAN
from alignlab.training import Recipe, adamw, autocast, descend


class MaskedPixels:
    """He et al. 2021: rebuild the three quarters of the patches that the encoder does not see."""

    def __init__(self, model: Any, recipe: Recipe) -> None:
        self.recipe = recipe
        self.modules = nn.ModuleDict({"model": model})
        self.optimisers: dict[str, torch.optim.Optimizer] = {"model": adamw(model, recipe)}

    def step(self, images: Tensor, done: float) -> dict[str, float]:
        with autocast(images.device.type, self.recipe.dtype):
            loss = self.modules["model"](normalise(images, IMAGENET_MEAN, IMAGENET_STD)).loss
        descend(self.optimisers["model"], loss, self.recipe.clip)
        return {"loss": float(loss.detach())}


def block_mask(grid: int, share: float, generator: torch.Generator | None = None) -> Tensor:
    """BEiT's blockwise mask: rectangles until `share` of the cells are hidden; bool [grid * grid]."""
    mask = torch.zeros(grid, grid, dtype=torch.bool)
    wanted = round(share * grid * grid)
    while int(mask.sum()) < wanted:
        area, aspect, down, across = torch.rand(4, generator=generator).tolist()
        size = 2 + area * max(wanted - int(mask.sum()) - 2, 0)
        ratio = math.exp((aspect * 2 - 1) * math.log(1 / 0.3))
        h = min(max(round(math.sqrt(size * ratio)), 1), grid)
        w = min(max(round(math.sqrt(size / ratio)), 1), grid)
        top, left = int(down * (grid - h + 1)), int(across * (grid - w + 1))
        mask[top : top + h, left : left + w] = True
    return mask.flatten()


class MaskedCodes:
    """Bao et al. 2022: name the tokenizer's codes of the hidden 40% of the patches."""

    def __init__(self, model: Any, tokenizer: DVAE, recipe: Recipe) -> None:
        self.recipe = recipe
        self.tokenizer = tokenizer.eval().requires_grad_(False)
        self.modules = nn.ModuleDict({"model": model})
        self.optimisers: dict[str, torch.optim.Optimizer] = {"model": adamw(model, recipe)}

    def step(self, images: Tensor, done: float) -> dict[str, float]:
        grid = self.tokenizer.config.grid
        mask = torch.stack([block_mask(grid, 0.4) for _ in images]).to(images.device)
        with autocast(images.device.type, self.recipe.dtype):
            with torch.no_grad():
                codes = self.tokenizer.to(images.device).codes(images).flatten(1)  # [B, grid * grid]
            shown = normalise(images, (0.5,) * 3, (0.5,) * 3)
            loss = self.modules["model"](shown, bool_masked_pos=mask, labels=codes[mask]).loss
        descend(self.optimisers["model"], loss, self.recipe.clip)
        return {"loss": float(loss.detach())}


class SoftCodes:
    """Ramesh et al. 2021: an autoencoder through a Gumbel-softmax that hardens from temperature 1 to 1/16.

    Their logit-Laplace likelihood is replaced by the squared error of its mean. A small pull of the batch's mean code
    distribution towards the uniform one keeps codes from dying.
    """

    def __init__(self, model: DVAE, recipe: Recipe) -> None:
        self.recipe = recipe
        # Faster on CPU in this layout; the VQGAN, with its group norms, is slower in it.
        self.modules = nn.ModuleDict({"model": model.to(memory_format=torch.channels_last)})
        self.optimisers: dict[str, torch.optim.Optimizer] = {"model": adamw(model, recipe)}

    def step(self, images: Tensor, done: float) -> dict[str, float]:
        model: Any = self.modules["model"]
        temperature = max(1 / 16, math.exp(-done / 0.6 * math.log(16)))
        with autocast(images.device.type, self.recipe.dtype):
            logits = model.logits(images.contiguous(memory_format=torch.channels_last)).float()
            soft = F.gumbel_softmax(logits, tau=temperature, dim=1)  # [B, vocab, h, w]
            out = model.decoder(soft)[:, :3].float()
        error = F.mse_loss(torch.sigmoid(out), map_pixels(images)) / 0.64  # in units of 0..1 pixels
        used = logits.softmax(1).mean((0, 2, 3))
        spread = (used * (used * len(used)).clamp_min(1e-9).log()).sum()  # KL to uniform, 0 when all are used alike
        descend(self.optimisers["model"], error + 5e-4 * spread, self.recipe.clip)
        return {"loss": float(error.detach()), "spread": float(spread.detach())}


class PatchDiscriminator(nn.Sequential):
    """Isola et al. 2017: says for each patch of a picture whether it looks real; [B, 3, H, W] -> [B, 1, h, w]."""

    def __init__(self, width: int = 32) -> None:
        super().__init__(
            nn.Conv2d(3, width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, 2, 1),
            nn.GroupNorm(8, 2 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 4 * width, 4, 1, 1),
            nn.GroupNorm(8, 4 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(4 * width, 1, 4, 1, 1),
        )


class CodeBook:
    """Esser et al. 2021: an autoencoder with rounded latents; a patch discriminator joins at `critic_from`.

    The first `plain_until` of the run learns without rounding; then the code book starts from the latents
    themselves, and codes that nothing uses start again from a batch's latents until the critic joins. Without a
    pretrained perceptual network the critic's weight is kept low: it sharpens, the pixels decide.
    """

    plain_until, critic_from, critic_weight, commitment = 0.06, 0.6, 0.08, 0.25

    def __init__(self, model: VQGAN, recipe: Recipe) -> None:
        self.recipe = recipe
        self.modules = nn.ModuleDict(
            {
                "model": model,
                "critic": PatchDiscriminator(),
            }
        )
        # How often each code was used of late, and whether the code book has been started: state, so in a module.
        self.counts = nn.Module()
        self.counts.register_buffer("usage", torch.ones(model.config.codes))
        self.counts.register_buffer("started", torch.zeros(()))
        self.modules["counts"] = self.counts
        self.optimisers: dict[str, torch.optim.Optimizer] = {
            "model": adamw(model, recipe),
            "critic": adamw(self.modules["critic"], recipe),
        }

    def _restart(self, z: Tensor, codes: Tensor) -> None:
        """Put codes at random latents of this batch."""
        chosen = torch.randint(len(z), (len(codes),), device=z.device)
        book: Any = self.modules["model"]
        book.quantize.embedding.weight.data[codes] = z[chosen].float() + 1e-3 * torch.randn_like(z[chosen].float())
        usage: Any = self.counts.usage
        usage[codes] = 1.0

    def step(self, images: Tensor, done: float) -> dict[str, float]:
        model: Any = self.modules["model"]
        counts: Any = self.counts
        with autocast(images.device.type, self.recipe.dtype):
            z = model.latents(images).float()  # [B, T, E]
        rounding = done >= self.plain_until
        quantisation = z.new_zeros(())
        fed = z
        if rounding:
            flat = z.detach().flatten(0, 1)  # [B T, E]
            if not counts.started:
                self._restart(flat, torch.arange(model.config.codes, device=z.device))
                counts.started.fill_(1)
            index = model.quantize.nearest(z)  # [B, T]
            counts.usage.mul_(0.98).add_(torch.bincount(index.flatten(), minlength=model.config.codes), alpha=0.02)
            if done < self.critic_from:
                dead = torch.nonzero(counts.usage < 0.02).flatten()
                if len(dead):
                    self._restart(flat, dead)
            chosen = model.quantize.embedding(index)
            quantisation = F.mse_loss(chosen, z.detach()) + self.commitment * F.mse_loss(z, chosen.detach())
            fed = z + (chosen - z).detach()
        with autocast(images.device.type, self.recipe.dtype):
            out = model.pixels(fed)
        out = out.float()
        error = F.mse_loss(out, images)
        loss = F.l1_loss(out, images) + 2 * error + quantisation
        log = {"loss": float(loss.detach()), "mse": float(error.detach())}
        if done >= self.critic_from:
            log |= self._judged(images, out, loss)
        else:
            descend(self.optimisers["model"], loss, self.recipe.clip)
        if rounding:
            log["codes"] = float((counts.usage > 0.02).sum())
        return log

    def _judged(self, images: Tensor, out: Tensor, loss: Tensor) -> dict[str, float]:
        critic: Any = self.modules["critic"]
        model: Any = self.modules["model"]
        critic.requires_grad_(False)
        with autocast(images.device.type, self.recipe.dtype):
            fooled = -critic(out).float().mean()
        # The critic's pull on the last layer is scaled to the pixels' pull on it (taming-transformers' adaptive weight).
        last = model.decoder.conv_out.weight
        pixel_pull = torch.autograd.grad(loss, last, retain_graph=True)[0].norm()
        critic_pull = torch.autograd.grad(fooled, last, retain_graph=True)[0].norm()
        weight = self.critic_weight * (pixel_pull / (critic_pull + 1e-4)).clamp(0, 1e4).detach()
        descend(self.optimisers["model"], loss + weight * fooled, self.recipe.clip)
        critic.requires_grad_(True)
        with autocast(images.device.type, self.recipe.dtype):
            real, fake = critic(images).float(), critic(out.detach()).float()
        hinge = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
        descend(self.optimisers["critic"], hinge, self.recipe.clip)
        return {"critic": float(hinge.detach())}
