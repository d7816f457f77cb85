"""How much of an image survives an encoder and its decoder (the LM4LV paper's Table 1 and Fig. 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from alignlab.data import ImageTextDataset, resize, to_tensor
from alignlab.progress import progress
from alignlab.restoration import quality
from alignlab.restoration.distribution import frechet_distance, precision_recall

FIDELITY_K = 3  # neighbours of precision and recall


@dataclass(frozen=True)
class SetDistance:
    """Fréchet distance, precision and recall between the originals and the reconstructions as sets.

    `name` is FID for Inception-v3's features, FD(<network>) for any other's.
    """

    name: str
    distance: float
    precision: float
    recall: float
    width: int
    k: int = FIDELITY_K


@dataclass(frozen=True)
class Reconstruction:
    """What `reconstruct` measured. `size` is the side at which both were compared; figures are means over images."""

    encoder: str
    checkpoint: str
    decoder_checkpoint: str
    size: int
    n: int
    psnr: quality.Mean
    ssim: quality.Mean
    l1: quality.Mean
    lpips: quality.Mean | None
    sets: tuple[SetDistance, ...]
    shown: tuple[Tensor, Tensor] = field(repr=False)  # originals and reconstructions of the first images


def pictures(data: ImageTextDataset, batch_size: int) -> Iterator[list[Tensor]]:
    """A set's images as they are, in batches of float32 `[1, 3, H, W]` in 0..1."""
    for at in range(0, len(data), batch_size):
        yield [to_tensor(data[i].image)[None] for i in range(at, min(at + batch_size, len(data)))]


def squares(images: list[Tensor], size: int) -> Tensor:
    """Images `[1, 3, H, W]` -> `[B, 3, size, size]`, resized without a crop."""
    return torch.cat([resize(image, size) for image in images])


def reconstruct(
    encoder: Any,
    data: ImageTextDataset,
    *,
    lpips: Callable[[Tensor, Tensor], Tensor] | None = None,
    features: dict[str, Callable[[Tensor], Tensor]] | None = None,
    batch_size: int = 64,
    shown: int = 8,
    seed: int = 0,
) -> Reconstruction:
    """Encode and decode every image, and compare it with the original resized to the decoder's size.

    `lpips(x, y)` is what `load_lpips` gives; `features` names networks for the comparison of the two sets, each a function
    of images `[B, 3, H, W]` in 0..1 -> `[B, D]`. A decoder of normalised patches (MAE's `norm_pix_loss`) is lent the
    original patches' brightness, which flatters it. Sets of fewer than 4
    images are not compared. Raises ValueError for an encoder without a decoder.
    """
    if not hasattr(encoder, "decode"):
        raise ValueError(f"{encoder.name} has no decoder; reconstruction needs a MAE, a BEiT with its dVAE or a VQGAN")
    needs_brightness = bool(getattr(getattr(encoder.model, "config", None), "norm_pix_loss", False))
    enough = len(data) > FIDELITY_K  # fewer images are no set
    figures: dict[str, list[Tensor]] = {"psnr": [], "ssim": [], "l1": [], "lpips": []}
    seen: dict[str, tuple[list[Tensor], list[Tensor]]] = {name: ([], []) for name in features or {}}
    first: tuple[list[Tensor], list[Tensor]] = ([], [])
    size, done = 0, 0
    with progress(f"reconstruct with {encoder.name}", len(data)) as tick:
        for originals in pictures(data, batch_size):
            images = squares(originals, encoder.image_size)
            tokens = encoder.encode(images)
            made = (encoder.decode(tokens, brightness_of=images) if needs_brightness else encoder.decode(tokens)).cpu()
            size = made.shape[-1]
            truth = images if size == encoder.image_size else squares(originals, size)
            figures["psnr"].append(quality.psnr(truth, made))
            figures["ssim"].append(quality.ssim(truth, made))
            figures["l1"].append(quality.l1(truth, made))
            if lpips is not None:
                with torch.no_grad():
                    figures["lpips"].append(lpips(truth * 2 - 1, made * 2 - 1).cpu())
            for name, network in features.items() if features and enough else ():
                seen[name][0].append(network(truth).cpu())
                seen[name][1].append(network(made).cpu())
            if done < shown:
                first[0].append(truth[: shown - done])
                first[1].append(made[: shown - done])
            done += len(images)
            tick(done)
    means = {name: quality.mean(torch.cat(parts), seed=seed) for name, parts in figures.items() if parts}
    return Reconstruction(
        encoder=encoder.name,
        checkpoint=encoder.checkpoint,
        decoder_checkpoint=getattr(encoder, "decoder_checkpoint", encoder.checkpoint),
        size=size,
        n=done,
        psnr=means["psnr"],
        ssim=means["ssim"],
        l1=means["l1"],
        lpips=means.get("lpips"),
        sets=tuple(_compare(name, torch.cat(a), torch.cat(b)) for name, (a, b) in seen.items()) if enough else (),
        shown=(torch.cat(first[0]), torch.cat(first[1])),
    )


def _compare(name: str, real: Tensor, made: Tensor) -> SetDistance:
    precision, recall = precision_recall(real, made, FIDELITY_K)
    return SetDistance(name, frechet_distance(real, made), precision, recall, real.shape[1])
