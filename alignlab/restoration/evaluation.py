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
from alignlab.restoration.restorer import Restorer, unwritten
from alignlab.training import Processes

# What a comparison with the truth moved by a patch must reach for an output to count as misaligned; see `misaligned`.
SHIFT_GAIN, SHIFT_SHARE, SHIFT_LIKE = 2.0, 0.3, 0.6
SHIFT_LEAST = 3e-3  # sum over channels of squared differences; less is a flat picture, which looks the same when moved


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
    minus degraded; either is None where one of the two is infinite for every image. `told`: the model where it reads the
    true answer so far in place of its own (teacher forcing), None where it reads none; what is lost from there to
    `restored` is lost by reading itself. `misaligned` counts outputs whose
    patches moved along the raster (App. C.1), `unwritten` answers without an image. `each` is PSNR and SSIM of every
    restored image, `[n]`.
    """

    task: str
    n: int
    degraded: Figures
    alone: Figures
    restored: Figures
    gain: Figures | None
    lift: Figures | None
    told: Figures | None
    misaligned: int
    unwritten: int
    each: dict[str, Tensor] = field(repr=False)
    shown: dict[str, Tensor] = field(repr=False)


def _figures(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return psnr(a, b), ssim(a, b)


def _joined(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([p for p, _ in parts]), torch.cat([s for _, s in parts])


def difference(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], seed: int = 0) -> Figures | None:
    """PSNR and SSIM `[n]` each of `a` minus those of `b`, image by image; None where no image has a finite PSNR in both.

    Where a PSNR is infinite the image counts as such and is left out of both figures' means.
    """
    finite = a[0].isfinite() & b[0].isfinite()
    if not finite.any():
        return None
    infinite = torch.full((int((~finite).sum()),), math.inf, dtype=a[0].dtype)
    return Figures(*(mean(torch.cat([x[finite] - y[finite], infinite]), seed=seed) for x, y in zip(a, b, strict=True)))


def misaligned(made: Tensor, truth: Tensor, patch: int) -> Tensor:
    """Whether an output shows the picture in the wrong place, bool `[B]`; images `[B, 3, H, W]` in 0..1.

    Autoregressive generation now and then loses or doubles a token, and whatever follows comes a patch too early or too
    late, in raster order: what leaves a row at one side enters the next at the other. So of every stretch from some patch
    on to the end (a row of patches at least) the output is compared with the truth as it is and moved by one or two
    patches. It is misaligned where a moved truth is better by `SHIFT_GAIN` dB and by `SHIFT_SHARE` of the squared
    difference between the two truths, and correlates with the output by `SHIFT_LIKE` or more: a blurred or a flat output,
    which is like neither, is only bad. A loss in the last row, or where the picture is flat, stays unseen.

    Raises ValueError for shapes that differ and sides that are no multiple of `patch`.
    """
    height, width = truth.shape[2:]
    if made.shape != truth.shape or height % patch or width % patch:
        raise ValueError(
            f"made and truth must be the same [B, 3, H, W] in patches of {patch}, got {list(made.shape)} and "
            f"{list(truth.shape)}"
        )
    x, y = _cells(made, patch), _cells(truth, patch)  # [B, T, 3, p^2]
    count, row = x.shape[1], width // patch
    found = torch.zeros(len(x), dtype=torch.bool)
    for by in (-2, -1, 1, 2):
        place = torch.arange(count) + by
        inside = ((place >= 0) & (place < count)).double()
        z = y[:, place.clamp(0, count - 1)]

        def tails(values: Tensor, inside: Tensor = inside) -> Tensor:
            """`[B, T, 3, p^2]` -> the means from each patch on to the end, `[B, starts, 3]`."""
            weights = inside.flip(0).cumsum(0).flip(0)[: count - row, None]
            sums = (values.mean(3) * inside[:, None]).flip(1).cumsum(1).flip(1)
            return sums[:, : count - row] / weights

        def covariance(a: Tensor, b: Tensor, tails: Callable[[Tensor], Tensor] = tails) -> Tensor:
            return (tails(a * b) - tails(a) * tails(b)).sum(2)  # [B, starts]; each channel about its own mean

        here, there, apart = (tails((a - b).square()).sum(2) for a, b in ((x, y), (x, z), (y, z)))
        like = covariance(x, z) / (covariance(x, x) * covariance(z, z)).clamp(min=1e-12).sqrt()
        better = (there * 10 ** (SHIFT_GAIN / 10) < here) & (here - there > SHIFT_SHARE * apart)
        found |= (better & (like > SHIFT_LIKE) & (apart > SHIFT_LEAST)).any(1)
    return found


def _cells(images: Tensor, patch: int) -> Tensor:
    """`[B, 3, H, W]` -> `[B, T, 3, p^2]`, patches in raster order, float64."""
    cells = images.detach().double().cpu().unfold(2, patch, patch).unfold(3, patch, patch)  # [B, 3, h, w, p, p]
    return cells.permute(0, 2, 3, 1, 4, 5).flatten(4).flatten(1, 2)


@dataclass(frozen=True)
class _Part:
    """What a batch comes to: PSNR and SSIM by column, and the first pictures of the set where they are in it."""

    first: int
    figures: dict[str, tuple[Tensor, Tensor]]
    misaligned: int
    unwritten: int
    shown: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.figures["restored"][0])


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
    among: Processes | None = None,
    **options: str,
) -> Evaluation:
    """Degrade, restore and compare `n` images, `pictures(start, end)` `[end - start, 3, size, size]` of the encoder's size.

    `parameters` are of other strengths than those trained on; `options` are those of the model's `write`. What happens to
    an image depends on `seed` and its number alone. A decoder that paints another size (OpenAI's dVAE behind BEiT: half of
    it) is compared at that size, with the others resized. `among` several processes each does some of the batches, and all
    come to the same.
    """
    encoder, among = model.encoder, among or Processes()
    parts: list[_Part] = []
    was_training = model.training
    model.eval()
    patch = encoder.image_size // max(math.isqrt(model.visual), 1)
    label, speaks = f"evaluate {model.how} on {task}", among.rank == 0
    with progress(label, n, "images", speaks=speaks) as tick, torch.no_grad():
        for items in among.batches(n, batch_size):
            clean = pictures(items.start, items.stop)
            low, high = pair(clean, task, seed=seed, first=items.start, parameters=parameters)
            tokens, answers = encoder.encode(low), encoder.encode(high)
            written = model.write(tokens, task, **options)
            made = encoder.decode(written).cpu().clamp(0, 1)
            spatial = TASKS[task].spatial
            alone = encoder.decode(answers if spatial else tokens).cpu()
            low, high = (x if x.shape == made.shape else resize(x, made.shape[-1]) for x in (low, high))
            given = high if spatial else low
            told = model.told(tokens, answers, task)
            painted = {} if told is None else {"told": encoder.decode(told).cpu().clamp(0, 1)}
            compared = {"degraded": given, "alone": alone, "restored": made, **painted}
            seen = {"given": low, "encoder + decoder": alone, model.how: made, "truth": high}
            parts.append(
                _Part(
                    first=items.start,
                    figures={name: _figures(images, high) for name, images in compared.items()},
                    misaligned=int(misaligned(made, high, patch * made.shape[-1] // encoder.image_size).sum()),
                    unwritten=unwritten(written),
                    shown={label: x[: max(shown - items.start, 0)].clone() for label, x in seen.items()},
                )
            )
            tick(min(among.count * sum(len(part) for part in parts), n))
    model.train(was_training)
    parts = sorted((part for some in among.gather(parts) for part in some), key=lambda part: part.first)
    whole = {name: _joined([part.figures[name] for part in parts]) for name in parts[0].figures}
    figures = {name: Figures(*(mean(x, seed=seed) for x in pair_)) for name, pair_ in whole.items()}
    return Evaluation(
        task=task,
        n=n,
        degraded=figures["degraded"],
        alone=figures["alone"],
        restored=figures["restored"],
        told=figures.get("told"),
        gain=difference(whole["restored"], whole["alone"], seed),
        lift=difference(whole["restored"], whole["degraded"], seed),
        misaligned=sum(part.misaligned for part in parts),
        unwritten=sum(part.unwritten for part in parts),
        each=dict(zip(("psnr", "ssim"), whole["restored"], strict=True)),
        shown={label: torch.cat([part.shown[label] for part in parts]) for label in parts[0].shown},
    )
