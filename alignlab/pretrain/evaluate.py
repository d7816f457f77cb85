"""What the embedded models can do, on scenes and photographs that training never saw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from alignlab.data import ImageTextDataset, resize, to_tensor
from alignlab.models.dvae import DVAE
from alignlab.models.encoder import IMAGENET_MEAN, IMAGENET_STD, normalise
from alignlab.pretrain.objectives import block_mask

BATCH = 64


def images_of(data: ImageTextDataset, indices: Sequence[int], size: int) -> Tensor:
    """Whole pictures, resized to a square: float32 `[N, 3, size, size]` in 0..1."""
    return torch.cat([resize(to_tensor(data[i].image)[None], size) for i in indices])


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of float images `[N, 3, H, W]` in 0..1, in dB, one an image."""
    return -10 * torch.log10((a - b).square().flatten(1).mean(1))


@torch.no_grad()
def reconstruction(model: Any, images: Tensor) -> tuple[dict[str, float], Tensor]:
    """dVAE and VQGAN: mean PSNR through the codes, and how many codes the images use; with the pictures."""
    codes, out = [], []
    for batch in images.split(BATCH):
        index = model.codes(batch)  # [B, h, w]
        codes.append(index.flatten())
        out.append(model.decode(index) if isinstance(model, DVAE) else model.decode(model.latents(batch)))
    pictures = torch.cat(out)
    used = torch.cat(codes).bincount().double()
    share = used[used > 0] / used.sum()
    figures = {
        "reconstruction PSNR (dB)": float(psnr(pictures, images).mean()),
        "codes used": float((used > 0).sum()),
        "perplexity of the codes": float((-(share * share.log()).sum()).exp()),
    }
    return figures, pictures


@torch.no_grad()
def masked_codes(model: Any, tokenizer: DVAE, images: Tensor) -> tuple[dict[str, float], Tensor]:
    """BEiT: accuracy on the hidden 40% of codes against always naming the images' most frequent code."""
    generator = torch.Generator().manual_seed(0)
    right = total = 0
    truth, out = [], []
    for batch in images.split(BATCH):
        codes = tokenizer.codes(batch).flatten(1)  # [B, T]
        mask = torch.stack([block_mask(tokenizer.config.grid, 0.4, generator) for _ in batch])
        logits = model(normalise(batch, (0.5,) * 3, (0.5,) * 3), bool_masked_pos=mask).logits  # [B, T, codes]
        right += int((logits.argmax(-1) == codes)[mask].sum())
        total += int(mask.sum())
        truth.append(codes[mask])
        filled = torch.where(mask, logits.argmax(-1), codes)
        out.append(tokenizer.decode(filled.view(-1, tokenizer.config.grid, tokenizer.config.grid)))
    most_frequent = float(torch.cat(truth).bincount().max()) / total
    figures = {
        "accuracy on masked codes (%)": 100 * right / total,
        "most frequent code (%)": 100 * most_frequent,
    }
    return figures, torch.cat(out)


@torch.no_grad()
def masked_pixels(model: Any, images: Tensor) -> tuple[dict[str, float], Tensor]:
    """MAE: squared error on masked patches, in units of 0..1 pixels, against the visible patches' mean colour."""
    generator = torch.Generator().manual_seed(0)
    model.config.mask_ratio = 0.75  # an encoder that was loaded for use hides nothing
    ours = filled = masked = 0.0
    out = []
    for batch in images.split(BATCH):
        shown = normalise(batch, IMAGENET_MEAN, IMAGENET_STD)
        patches = (model.config.image_size // model.config.patch_size) ** 2
        result = model(shown, noise=torch.rand(len(batch), patches, generator=generator))
        std, mean = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_STD, IMAGENET_MEAN))
        painted = model.unpatchify(result.logits) * std + mean  # [B, 3, H, W]
        hidden = model.unpatchify(result.mask[:, :, None].expand_as(result.logits))  # 1 where masked
        visible = 1 - hidden
        colour = (batch * visible).sum((2, 3), keepdim=True) / visible.sum((2, 3), keepdim=True)  # [B, 3, 1, 1]
        ours += float(((painted - batch).square() * hidden).sum())
        filled += float(((colour - batch).square() * hidden).sum())
        masked += float(hidden.sum())
        out.append((painted * hidden + batch * visible).clamp(0, 1))
    figures = {
        "squared error on masked patches": ours / masked,
        "squared error of the visible patches' mean": filled / masked,
        "ratio": ours / filled,
    }
    return figures, torch.cat(out)


@torch.no_grad()
def components(model: Any, images: Tensor) -> tuple[dict[str, float], Tensor]:
    """PCA: how large its tokens are on pictures that it was not fitted to, and what the first sixteenth of them keeps."""
    kept = max(model.config.width // 16, 1)
    squares = error = 0.0
    out = []
    for batch in images.split(BATCH):
        tokens = model.tokens(batch)  # [B, T, D]
        squares += float(tokens.square().mean()) * len(batch)
        error = max(error, float((model.pixels(tokens) - batch).abs().max()))
        tokens[:, :, kept:] = 0
        out.append(model.pixels(tokens).clamp(0, 1))
    pictures = torch.cat(out)
    figures = {
        "mean square of the tokens": squares / len(images),
        "largest error of a decoded pixel": error,
        f"PSNR of the first {kept} components (dB)": float(psnr(pictures, images).mean()),
    }
    return figures, pictures
