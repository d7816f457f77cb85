"""What probing layer by layer found: the mean of every arm with its interval, and each layer beside the baselines."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

SIZES = ("psnr", "ssim")
BASELINES = ("linear", "mlp", "random")


@dataclass(frozen=True)
class Arm:
    """What stands between the linear layers, once for a seed: "layer" with its number, "random", "mlp" or "linear" (which
    is a single layer itself, has a closed form and no seed).
    """

    kind: str
    seed: int = 0
    layer: int = 0

    @property
    def name(self) -> str:
        number = f"-{self.layer:03}" if self.kind == "layer" else ""
        return self.kind + number + (f"-seed-{self.seed}" if self.kind != "linear" else "")


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and images with its 95% interval; `seed_sd` is the spread of the seeds' means, None for one seed;
    `infinite` images, whose PSNR is infinite for some seed, are left out, and `mean` is None where that leaves fewer than two.
    """

    mean: float | None
    ci95: tuple[float, float] | None
    seed_sd: float | None
    seeds: int
    n: int
    infinite: int = 0


def over_images_and_seeds(values: Tensor) -> Estimate:
    """The mean of `[S, n]`, a figure a seed and image, as one would find with other images and other seeds.

    The variance of the mean is taken as that of the images' means over n and that of the seeds' means over S, together:
    both were drawn at random and every seed meets every image. What belongs to neither is counted in both, so that the
    interval is rather too wide. Student's t has Satterthwaite's degrees of freedom. Of one seed the interval is over images
    alone. Raises ValueError for NaN and for fewer than two images.
    """
    from scipy.stats import t

    if values.ndim != 2 or values.shape[1] < 2 or bool(values.isnan().any()):
        raise ValueError(f"values must be numbers, [seeds, images] of two images or more, got {list(values.shape)}")
    kept = values.double()[:, values.isfinite().all(0)]  # [S, n]
    seeds, n = kept.shape
    infinite = values.shape[1] - n
    if n < 2:
        return Estimate(None, None, None, seeds, n, infinite)
    parts = [(float(kept.mean(0).var()) / n, n - 1)]
    if seeds > 1:
        parts.append((float(kept.mean(1).var()) / seeds, seeds - 1))
    variance = sum(part for part, _ in parts)
    freedom = variance**2 / (sum(part**2 / df for part, df in parts) or 1.0)
    half = float(t.ppf(0.975, max(freedom, 1.0))) * variance**0.5
    mean = float(kept.mean())
    return Estimate(
        mean, (mean - half, mean + half), float(kept.mean(1).std()) if seeds > 1 else None, seeds, n, infinite
    )


def assemble(kept: Callable[[str], dict[str, Any]], seeds: int, layers: Sequence[int]) -> dict[str, Any]:
    """The figures of all arms, and each layer's against the baselines, over the same images and seeds.

    `kept(name)` is what was measured of an arm: "psnr" and "ssim" of every image, None for inf, and its "parameters"; of
    "given" it is that of the columns "degraded" and "alone".
    """

    def values(kind: str, layer: int = 0) -> Values:
        wanted = [Arm(kind, seed, layer) for seed in range(1 if kind == "linear" else seeds)]
        return {size: _tensor([kept(arm.name)[size] for arm in wanted]) for size in SIZES}  # [S, n]

    given = kept("given")
    columns = {name: {size: _tensor([given[name][size]]) for size in SIZES} for name in ("degraded", "alone")}
    baselines = {kind: values(kind) for kind in BASELINES}
    rows = []
    for number in layers:
        found = values("layer", number)
        against = {f"over_{kind}": _figures(found, less) for kind, less in baselines.items()}
        rows.append({"layer": number, **_figures(found), **against})
    over_linear = {
        kind: {"over_linear": _figures(found, baselines["linear"])}
        for kind, found in baselines.items()
        if kind != "linear"
    }
    learnt = {kind: kept(Arm(kind).name)["parameters"] for kind in BASELINES}
    return {
        "seeds": seeds,
        "parameters": {**learnt, "layer": kept(Arm("layer", 0, layers[0]).name)["parameters"]},
        **{name: _figures(found) | over_linear.get(name, {}) for name, found in {**columns, **baselines}.items()},
        "layers": rows,
        "best": max(rows, key=lambda row: row["psnr"]["mean"] or -math.inf)["layer"],
        "clearly_over": {kind: clearly(rows, kind, 1) for kind in BASELINES},
        "clearly_under": {kind: clearly(rows, kind, -1) for kind in BASELINES},
    }


def clearly(rows: Sequence[dict[str, Any]], kind: str, side: int) -> list[int]:
    """The layers whose PSNR's difference with a baseline lies above zero (`side` 1) or below it (-1) with all of its interval."""
    spans = {row["layer"]: row[f"over_{kind}"]["psnr"]["ci95"] for row in rows}
    return [layer for layer, span in spans.items() if span is not None and min(side * end for end in span) > 0]


Values = dict[str, Tensor]  # "psnr" and "ssim", [S, n] each


def _figures(found: Values, less: Values | None = None) -> dict[str, Any]:
    both = found if less is None else {size: _minus(found[size], less[size]) for size in SIZES}
    return {size: asdict(over_images_and_seeds(both[size])) for size in SIZES}


def _tensor(rows: list[list[float | None]]) -> Tensor:
    """None is inf."""
    return torch.tensor([[math.inf if x is None else x for x in row] for row in rows], dtype=torch.float64)


def _minus(a: Tensor, b: Tensor) -> Tensor:
    """`[S, n]` less `[S, n]` or `[1, n]`; inf where either is."""
    return torch.where(a.isfinite() & b.isfinite(), a - b, math.inf)
