"""Which principal components of an encoder's tokens a restorer writes, and which of them the picture needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from alignlab.analysis.words import COMPARED, percent
from alignlab.data import resize
from alignlab.data.degradations import TASKS, pair
from alignlab.models.pca import moments, principal
from alignlab.restoration.coordinates import CODE_WIDTH, Positioned, Whitened
from alignlab.restoration.quality import mean, psnr
from alignlab.restoration.restorer import Restorer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIRST = 16  # components of the first band; each other one ends at twice as many as the one before
DRAWS = 1000  # bootstrap samples of pictures


@dataclass(frozen=True)
class Read:
    """An encoder's own tokens `[N, T, D]` (no code of position, no whitening) of one task on `N` pictures.

    `truth`: of the answer. `given`: of what was degraded, None for tasks that move the picture. `written`: the restorer's.
    `told`: the restorer's where it reads the true ones so far, None where it reads none of its own. `answer`: the answers
    themselves `[N, 3, H, W]`, of the size that `decode` paints.
    """

    truth: Tensor
    given: Tensor | None
    written: Tensor
    told: Tensor | None
    answer: Tensor
    decode: Callable[[Tensor], Tensor]

    def each(self) -> dict[str, Tensor | None]:
        """What is compared with the truth."""
        return {"given": self.given, "written": self.written, "told": self.told}


def own(encoder: Any, tokens: Tensor) -> tuple[Any, Tensor]:
    """The encoder inside, and its tokens in place of those with a code of position or evened out variances."""
    if isinstance(encoder, Whitened):
        return own(encoder.encoder, encoder.back(tokens.float()))
    if isinstance(encoder, Positioned):
        return own(encoder.encoder, tokens[..., :-CODE_WIDTH])
    return encoder, tokens


def _check_enough(n: int, count: int, width: int) -> None:
    if n * count <= width:
        raise ValueError(
            f"{n} pictures have {n * count} tokens, too few for {width} components; give {width // count + 1} or more"
        )


@torch.no_grad()
def read(
    model: Restorer,
    pictures: Callable[[int, int], Tensor],
    n: int,
    task: str,
    *,
    seed: int = 0,
    batch_size: int = 64,
    tick: Callable[[int], None] = lambda done: None,
) -> Read:
    """Degrade `n` images, `pictures(start, end)` of the encoder's size, as an evaluation does, and restore them.

    Raises ValueError for fewer than `analyse` needs.
    """
    parts: list[dict[str, Tensor]] = []
    inside, tokens = own(model.encoder, torch.zeros(1, 1, model.width))
    _check_enough(n, model.visual, tokens.shape[-1])
    for start in range(0, n, batch_size):
        clean = pictures(start, min(start + batch_size, n))
        low, high = pair(clean, task, seed=seed, first=start)
        tokens, answers = model.encoder.encode(low), model.encoder.encode(high)
        found = {"truth": answers, "written": model.write(tokens, task)}
        if not TASKS[task].spatial:
            found["given"] = tokens
        if (told := model.told(tokens, answers, task)) is not None:
            found["told"] = told
        parts.append({name: own(model.encoder, x)[1].cpu() for name, x in found.items()} | {"answer": high})
        tick(start + len(clean))
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    device = tokens.device

    def decode(tokens: Tensor) -> Tensor:
        painted: list[Tensor] = [
            inside.decode(batch.to(device)).cpu().clamp(0, 1) for batch in tokens.float().split(batch_size)
        ]
        return torch.cat(painted)

    size = decode(whole["truth"][:1]).shape[-1]
    answer = whole["answer"] if whole["answer"].shape[-1] == size else resize(whole["answer"], size)
    return Read(whole["truth"], whole.get("given"), whole["written"], whole.get("told"), answer, decode)


def bands(width: int) -> list[tuple[int, int]]:
    """Components by size of their variance in bands `(first, last)`, counted from 1.

    >>> bands(192), bands(12)
    ([(1, 16), (17, 32), (33, 64), (65, 128), (129, 192)], [(1, 12)])
    """
    found, first, last = [], 1, min(FIRST, width)
    while first <= width:
        found.append((first, last))
        first, last = last + 1, min(2 * last, width)
    return found


@torch.no_grad()
def analyse(tokens: Read, seed: int = 0) -> dict[str, Any]:
    """How much of each component is written, and what it is worth in dB; plain values.

    Components are the principal ones of the true tokens about their mean over pictures and positions, the largest first.
    `unexplained` is the sum of squared errors over that of the true tokens' deviations from the mean: 0 exact, 1 no better
    than the mean, above 1 worse. `carried` is the sum over components of 1 minus it, of none less than 0: how many
    components' worth arrives. Tokens that are not there have None. Intervals are of a bootstrap over pictures. `psnr` of
    each band, in dB against the answer: the true tokens cut off after it (the mean beyond), the written ones cut likewise,
    and the true ones with this band alone as written; of the whole: the true, given, written and told tokens.

    Raises ValueError for fewer than two pictures, for no more tokens than components, and for tokens that are the same everywhere.
    """
    n, count, width = tokens.truth.shape
    if n < 2:
        raise ValueError(f"components need two pictures or more, got {n}")
    _check_enough(n, count, width)
    middle, covariance = moments([tokens.truth.flatten(0, 1)])
    values, vectors = principal(covariance)
    values, vectors = values.double().clamp(min=0), vectors.double()
    level = float(values.sum())
    if level <= 0:
        raise ValueError("the true tokens are the same in every place of every picture; there is nothing to write")

    def turned(x: Tensor) -> Tensor:
        return (x.double() - middle) @ vectors  # [N, T, D]

    truth = turned(tokens.truth)
    varies = values > 1e-9 * level  # [D]
    total = truth.square().sum(1)  # [N, D]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(n, (DRAWS, n), generator=generator)
    weights = torch.zeros(DRAWS, n, dtype=torch.float64).scatter_add_(1, drawn, torch.ones(DRAWS, n).double())
    parts = bands(width)
    each: dict[str, list[float | None] | None] = {}
    carried: dict[str, dict[str, Any] | None] = {}
    of_bands: list[dict[str, Any]] = [
        {"first": first, "last": last, "share": float(values[first - 1 : last].sum()) / level, "unexplained": {}}
        for first, last in parts
    ]
    for name, x in tokens.each().items():
        if x is None:
            each[name] = carried[name] = None
            for band in of_bands:
                band["unexplained"][name] = None
            continue
        error = (turned(x) - truth).square().sum(1)  # [N, D]
        ratio = error.sum(0) / total.sum(0)
        each[name] = [float(one) if there else None for one, there in zip(ratio, varies, strict=True)]
        arrives = 1 - (weights @ error[:, varies]) / (weights @ total[:, varies])  # [draws, D]
        value, sums = float((1 - ratio[varies]).clamp(min=0).sum()), arrives.clamp(min=0).sum(1)
        # A draw has noise that the value has not, and what is cut off at 0 is not cut off above it: sums lie too high.
        carried[name] = {"value": value, "ci95": _middle(sums - sums.mean() + value)}
        for band, (first, last) in zip(of_bands, parts, strict=True):
            wrong, all_of_it = (y[:, first - 1 : last].sum(1) for y in (error, total))  # [N]
            there = bool(varies[first - 1 : last].any())
            band["unexplained"][name] = {
                "value": float(wrong.sum() / all_of_it.sum()) if there else None,
                "ci95": _middle((weights @ wrong) / (weights @ all_of_it)) if there else None,
            }
    written = turned(tokens.written)

    def quality(x: Tensor) -> dict[str, Any]:
        return mean(psnr(tokens.decode(x), tokens.answer), seed=seed).plain()

    def back(x: Tensor) -> Tensor:
        return x @ vectors.T + middle

    for band, (first, last) in zip(of_bands, parts, strict=True):
        cut = torch.arange(width) < last
        inside = cut & (torch.arange(width) >= first - 1)
        band["psnr"] = {
            "true": quality(back(truth * cut)),
            "written": quality(back(written * cut)),
            "alone": quality(back(torch.where(inside, written, truth))),
        }
    return {
        "n": n,
        "width": width,
        "components": int(varies.sum()),
        "carried": carried,
        "bands": of_bands,
        "unexplained": each,
        "psnr": {
            name: None if x is None else quality(x) for name, x in {"true": tokens.truth, **tokens.each()}.items()
        },
    }


def _middle(draws: Tensor) -> list[float]:
    """The middle 95%."""
    low, high = draws.quantile(torch.tensor([0.025, 0.975], dtype=draws.dtype)).tolist()
    return [low, high]


def reading(found: dict[str, Any]) -> str:
    """One checkpoint's result in a sentence."""
    carried, total = found["carried"]["written"]["value"], found["components"]
    text = f"{found['checkpoint']}, {found['task']}: it writes {carried:.0f} of {total} components' worth"
    vary = [band for band in found["bands"] if band["unexplained"]["written"]["value"] is not None]
    first, last = (percent(band["unexplained"]["written"]["value"]) for band in (vary[0], vary[-1]))
    if len(vary) > 1:
        text += f"; of the variance {first} is left unexplained in the first {vary[0]['last']}, {last} in "
        text += f"{vary[-1]['first']} to {vary[-1]['last']}"
    return text + "."


COLOURS = {"given": "#8a8f98", "written": "#1f6fb4", "told": "#d1660f"}


def curves(found: dict[str, Any], title: str) -> Figure:
    """What is left unexplained of every component, and what the first so many are worth in dB."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.2, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, values in found["unexplained"].items():
        if values is None:
            continue
        left.plot(
            range(1, len(values) + 1),
            [float("nan") if x is None else x for x in values],
            color=COLOURS[name],
            label=COMPARED[name],
        )
    left.set_ylim(0, 1.5)
    left.axhline(1, color="#8a8f98", linestyle="--", linewidth=1)
    left.set_ylabel("share of the variance unexplained")
    for name, label, colour in (("true", "true tokens", "#2f855a"), ("written", "as written", "#1f6fb4")):
        at = [
            (band["last"], band["psnr"][name]["mean"])
            for band in found["bands"]
            if band["psnr"][name]["mean"] is not None
        ]
        right.plot(*zip(*at, strict=True), color=colour, marker="o", label=label)
    right.set_ylabel("PSNR of the first ones alone (dB)")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xlabel("principal component")
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10)
    return figure
