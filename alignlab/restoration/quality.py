"""How like two images are: PSNR and SSIM as BasicSR computes them (the toolbox behind most restoration papers), L1.

Images are float `[B, 3, H, W]` in 0..1; they are rounded to 8 bits first, as a file would hold them, and a border of 4
pixels is left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BORDER = 4
WINDOW, SIGMA = 11, 1.5


def _eight_bits(images: Tensor, border: int) -> Tensor:
    """Float images in 0..1 -> float64 in 0..255, whole numbers, without the border."""
    grey_levels = images.detach().double().clamp(0, 1).mul(255).round()
    return grey_levels[:, :, border : images.shape[2] - border, border : images.shape[3] - border]


def _check(a: Tensor, b: Tensor, border: int, least: int) -> None:
    if a.ndim != 4 or a.shape != b.shape or a.shape[1] != 3 or len(a) == 0:
        raise ValueError(f"a and b must both be [B, 3, H, W] with B >= 1, got {list(a.shape)} and {list(b.shape)}")
    if not (a.is_floating_point() and b.is_floating_point()):
        raise ValueError(f"images must be floats in 0..1, got {a.dtype} and {b.dtype}; divide 8-bit images by 255")
    if border < 0 or min(a.shape[2:]) < 2 * border + least:
        raise ValueError(f"a border of {border} leaves less than {least} pixels of {a.shape[2]} x {a.shape[3]}")
    for name, images in (("a", a), ("b", b)):
        low, high = float(images.min()), float(images.max())
        if not (low >= -1e-3 and high <= 1 + 1e-3):  # false for NaN too
            raise ValueError(f"{name} must be in 0..1, got {low:g}..{high:g}")


def psnr(a: Tensor, b: Tensor, border: int = BORDER) -> Tensor:
    """Peak signal-to-noise ratio in dB, float64 `[B]`: 10 log10(255^2 / mean squared error over pixels and channels).

    inf for images that are identical at 8 bits. Raises ValueError for shapes that differ, integers, values outside 0..1.

    >>> psnr(torch.zeros(2, 3, 16, 16), torch.full((2, 3, 16, 16), 0.1)).shape
    torch.Size([2])
    """
    _check(a, b, border, 1)
    error = (_eight_bits(a, border) - _eight_bits(b, border)).square().flatten(1).mean(1)  # [B]
    return 10 * torch.log10(255**2 / error)


def ssim(a: Tensor, b: Tensor, border: int = BORDER) -> Tensor:
    """Structural similarity (Wang et al. 2004), float64 `[B]` in -1..1, 1 for identical images.

    A Gaussian window of 11 x 11 with sigma 1.5 over 8-bit channels, where it fits whole (no padding), averaged over
    pixels, then channels; C1 = (0.01 x 255)^2, C2 = (0.03 x 255)^2. Errors as `psnr`, and for images too small for the
    window.
    """
    _check(a, b, border, WINDOW)
    pairs = zip(_eight_bits(a, border).split(1), _eight_bits(b, border).split(1), strict=True)
    return torch.cat([_similarity(x, y) for x, y in pairs])  # one at a time stays in the processor's cache


def _similarity(x: Tensor, y: Tensor) -> Tensor:
    """`[B, C, H, W]` twice, in 0..255 -> `[B]`."""
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mx, my = _blur(x), _blur(y)
    vx, vy, cov = _blur(x * x) - mx**2, _blur(y * y) - my**2, _blur(x * y) - mx * my
    similarity = ((2 * mx * my + c1) * (2 * cov + c2)) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return similarity.flatten(1).mean(1)


def _blur(x: Tensor) -> Tensor:
    """`[B, C, H, W]` -> `[B, C, H - 10, W - 10]`: one Gaussian pass down, one across."""
    weights = [math.exp(-((i - WINDOW // 2) ** 2) / (2 * SIGMA**2)) for i in range(WINDOW)]
    for side in (2, 3):  # sums of shifted images: PyTorch's convolutions are slow in float64
        inside = x.shape[side] - WINDOW + 1
        total = torch.zeros_like(x.narrow(side, 0, inside))
        for i, weight in enumerate(weights):
            total.add_(x.narrow(side, i, inside), alpha=weight / sum(weights))
        x = total
    return x


def l1(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference `[B]`, float64, in units of 0..1, of the images as they are: no rounding, no border."""
    _check(a, b, 0, 1)
    return (a.double() - b.double()).abs().flatten(1).mean(1)


@dataclass(frozen=True)
class Mean:
    """The mean over images with a 95% bootstrap interval; `infinite` of the `n` values were infinite and left out."""

    value: float
    ci95: tuple[float, float]
    n: int
    infinite: int = 0

    def plain(self) -> dict[str, Any]:
        """As JSON, which has no inf: None where every value was infinite."""
        if self.infinite == self.n:
            return {"mean": None, "ci95": None, "infinite": self.infinite}
        return {"mean": self.value, "ci95": list(self.ci95), "infinite": self.infinite}


def mean(values: Tensor, resamples: int = 2000, seed: int = 0) -> Mean:
    """Average one figure an image `[N]`; the interval is over images (a percentile bootstrap).

    The mean is inf where every value is. Raises ValueError for no values and for NaN.

    >>> mean(torch.tensor([20.0, 30.0, float("inf")])).value
    25.0
    """
    flat = values.detach().double().cpu().flatten()
    if not len(flat) or bool(flat.isnan().any()):
        raise ValueError(f"values must be numbers, one an image, got {len(flat)} with {int(flat.isnan().sum())} NaN")
    finite = flat[flat.isfinite()]
    infinite = len(flat) - len(finite)
    if not len(finite):
        return Mean(math.inf, (math.inf, math.inf), len(flat), infinite)
    generator = torch.Generator().manual_seed(seed)
    means = torch.stack(
        [finite[torch.randint(len(finite), (len(finite),), generator=generator)].mean() for _ in range(resamples)]
    )
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=means.dtype)).tolist()
    return Mean(float(finite.mean()), (low, high), len(flat), infinite)
