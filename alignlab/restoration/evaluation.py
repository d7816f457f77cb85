"""How well a restorer restores: its pictures beside the degraded ones and those of the encoder and decoder alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from alignlab.data import resize
from alignlab.data.degradations import TASKS, Task, pair
from alignlab.progress import progress
from alignlab.restoration.quality import Mean, mean, psnr, ssim
from alignlab.restoration.restorer import Restorer

SHIFT_GAIN = 2.0  # dB by which a shifted comparison must be better for an output to count as misaligned


@dataclass(frozen=True)
class Figures:
    """PSNR in dB and SSIM over the images of a set; of a difference, over the same images in both."""

    psnr: Mean
    ssim: Mean


@dataclass(frozen=True)
class Evaluation:
    """One task on one set of images, as the columns of the paper's Table 2.

    `degraded`: what the model was given (of rotate, flip and repeat, what it should answer: the paper's "inf"). `alone`:
    the encoder and its decoder without anything between, MAE-r in the paper, of what was given (of rotate, flip and
    repeat, of the answer: the best that can be had). `restored`: the model. `gain`: restored minus alone, `lift`: restored
    minus degraded, None where that is infinite for every image. `misaligned` counts outputs that fit the truth better
    when shifted by a patch (App. C.1).
    """

    task: str
    n: int
    degraded: Figures
    alone: Figures
    restored: Figures
    gain: Figures
    lift: Figures | None
    misaligned: int
    shown: dict[str, Tensor] = field(repr=False)


def _figures(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return psnr(a, b), ssim(a, b)


def _difference(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], seed: int) -> Figures | None:
    """Image by image; where a PSNR is infinite the image counts as such and is left out of both figures' means."""
    finite = a[0].isfinite() & b[0].isfinite()
    if not finite.any():
        return None
    infinite = torch.full((int((~finite).sum()),), math.inf, dtype=a[0].dtype)
    return Figures(*(mean(torch.cat([x[finite] - y[finite], infinite]), seed=seed) for x, y in zip(a, b, strict=True)))


def misaligned(made: Tensor, truth: Tensor, patch: int, gain: float = SHIFT_GAIN) -> Tensor:
    """Whether an output shows the picture in the wrong place, bool `[B]`; images `[B, 3, H, W]` in 0..1.

    Autoregressive generation now and then loses or doubles a token, and whatever follows moves by a patch. So each
    output is compared with the truth as it is and moved by one patch in each of the eight directions, over what all of
    these cover, as a whole and over the lower half: it is misaligned where a moved one is better by `gain` dB.
    """
    height, width = truth.shape[2:]
    if made.shape != truth.shape or min(height, width) < 4 * patch:
        raise ValueError(
            f"made and truth must be the same [B, 3, H, W] of 4 patches a side or more, got {list(made.shape)} and "
            f"{list(truth.shape)} with patches of {patch}"
        )
    inner = slice(patch, height - patch), slice(patch, width - patch)
    errors = {}
    for down in (-patch, 0, patch):
        for right in (-patch, 0, patch):
            moved = truth.roll((down, right), (2, 3))[:, :, inner[0], inner[1]]
            square = (made[:, :, inner[0], inner[1]] - moved).square().mean((1, 3))  # [B, rows]
            errors[down, right] = torch.stack([square.mean(1), square[:, square.shape[1] // 2 :].mean(1)], 1)
    here = errors.pop((0, 0))  # [B, 2]: whole, lower half
    best = torch.stack(list(errors.values())).amin(0)
    return (best * 10 ** (gain / 10) < here).any(1)


def evaluate(
    model: Restorer,
    pictures: Callable[[int, int], Tensor],
    n: int,
    task: str,
    *,
    parameters: Task | None = None,
    batch_size: int = 64,
    shown: int = 8,
    seed: int = 0,
    **options: str,
) -> Evaluation:
    """Degrade, restore and compare `n` images, `pictures(start, end)` `[end - start, 3, size, size]` of the encoder's size.

    `parameters` are of other strengths than those trained on; `options` are those of the model's `write`. What happens to
    an image depends on `seed` and its number alone. A decoder that paints another size (OpenAI's dVAE behind BEiT: half of
    it) is compared at that size, with the others resized.
    """
    encoder = model.encoder
    columns: dict[str, list[tuple[Tensor, Tensor]]] = {"degraded": [], "alone": [], "restored": []}
    wrong, rows = 0, {}
    was_training = model.training
    model.eval()
    patch = encoder.image_size // max(math.isqrt(model.visual), 1)
    with progress(f"evaluate {model.how} on {task}", n, "images") as tick, torch.no_grad():
        for at in range(0, n, batch_size):
            clean = pictures(at, min(at + batch_size, n))
            low, high = pair(clean, task, seed=seed, first=at, parameters=parameters)
            tokens = encoder.encode(low)
            made = encoder.decode(model.write(tokens, task, **options)).cpu().clamp(0, 1)
            spatial = TASKS[task].spatial
            alone = encoder.decode(encoder.encode(high) if spatial else tokens).cpu()
            low, high = (x if x.shape == made.shape else resize(x, made.shape[-1]) for x in (low, high))
            given = high if spatial else low
            for name, images in (("degraded", given), ("alone", alone), ("restored", made)):
                columns[name].append(_figures(images, high))
            wrong += int(misaligned(made, high, patch * made.shape[-1] // encoder.image_size).sum())
            if at == 0:
                rows = {"given": low, "encoder + decoder": alone, model.how: made, "truth": high}
                rows = {label: images[:shown].clone() for label, images in rows.items()}
            tick(at + len(clean))
    model.train(was_training)
    whole = {
        name: (torch.cat([p for p, _ in parts]), torch.cat([s for _, s in parts])) for name, parts in columns.items()
    }
    figures = {name: Figures(*(mean(x, seed=seed) for x in pair_)) for name, pair_ in whole.items()}
    gain = _difference(whole["restored"], whole["alone"], seed)
    assert gain is not None, "no picture comes through a decoder unchanged"
    return Evaluation(
        task=task,
        n=n,
        **figures,
        gain=gain,
        lift=_difference(whole["restored"], whole["degraded"], seed),
        misaligned=wrong,
        shown=rows,
    )
