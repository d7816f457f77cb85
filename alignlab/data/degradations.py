"""Spoiling images as the LM4LV paper does (section 4.1, "Degradation details"): eight tasks, one dataclass each.

`degrade` is what a task does to clean images, `pair` what a model of the task is given and what it shall answer. What the
paper leaves open (salt beside the pepper, the rain's streaks, the blur's sigma) is read so that its Table 2's "Degraded"
column comes out on photographs at 224 px; `benchmarks/degradations.py` prints both side by side.

Every image has a random stream of its own, which follows from the seed, the task and the image's index alone. Streams
are drawn on the CPU, and pixels see plain additions, multiplications, minima and maxima only, which round alike
everywhere: the result depends neither on the batch that an image is in nor on the device, to the last bit.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

PAPER_SIZE = 224  # of the images that the paper degrades
TOLERANCE = 1e-3  # what rounding may leave outside 0..1


def _is_number(value: Any) -> bool:
    real = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    return real and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _keep_range(task: Any, name: str, least: float, most: float, whole: bool = False) -> None:
    """Check that a dataclass's field is a pair (low, high) within bounds; store it as a tuple."""
    value = getattr(task, name)
    allowed = _is_whole if whole else _is_number
    if (
        not isinstance(value, list | tuple)
        or len(value) != 2
        or not all(allowed(v) for v in value)
        or not least <= value[0] <= value[1] <= most
    ):
        kind = "whole numbers" if whole else "numbers"
        within = f"{least} <= low <= high" + (f" <= {most}" if most < math.inf else "")
        raise ValueError(f"{name} must be two {kind} (low, high) with {within}, got {value!r}")
    object.__setattr__(task, name, tuple(value))


class Task(Protocol):
    """What spoils images, and how strongly. `spatial`: the result is what is wanted, not what is to be mended."""

    spatial: ClassVar[bool]

    def apply(self, images: Tensor, streams: Sequence[np.random.Generator]) -> Tensor:
        """`[B, 3, H, W]` in 0..1, one random stream an image -> the spoilt images, perhaps a little outside 0..1."""
        ...


@dataclass(frozen=True)
class Denoise:
    """Gaussian noise, independent for each pixel and channel; its standard deviation, in grey levels of 255, is uniform
    in `sigma` for each image.
    """

    sigma: tuple[float, float] = (0, 50)
    spatial: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _keep_range(self, "sigma", 0, math.inf)

    def apply(self, images: Tensor, streams: Sequence[np.random.Generator]) -> Tensor:
        sigmas = [stream.uniform(*self.sigma) / 255 for stream in streams]
        noise = np.empty(images.shape, np.float32)
        for stream, one in zip(streams, noise, strict=True):
            stream.standard_normal(dtype=np.float32, out=one)
        return images + _per_image(sigmas, images) * torch.from_numpy(noise).to(images.device)


@dataclass(frozen=True)
class Deblur:
    """Gaussian blur through a square window, one of `windows` for each image, all alike likely; 1 leaves the image as it
    is.

    `sigma` None is the one that OpenCV documents for a window: 0.3 ((window - 1) / 2 - 1) + 0.8 pixels. (Its code has
    rounded weights for windows of 3, 5 and 7; torchvision computes these.) Beyond the border the image is mirrored, the
    border pixel not repeated.
    """

    windows: tuple[int, ...] = (1, 3, 5, 7)
    sigma: float | None = None
    spatial: ClassVar[bool] = False

    def __post_init__(self) -> None:
        windows = tuple(self.windows) if isinstance(self.windows, list | tuple) else ()
        if not windows or not all(_is_whole(window) and window > 0 and window % 2 for window in windows):
            raise ValueError(
                f"windows must be odd whole numbers of at least 1, as in (1, 3, 5, 7), got {self.windows!r}"
            )
        if self.sigma is not None and not (_is_number(self.sigma) and self.sigma > 0):
            raise ValueError(f"sigma must be a number of pixels above 0, or None for OpenCV's, got {self.sigma!r}")
        object.__setattr__(self, "windows", windows)

    def apply(self, images: Tensor, streams: Sequence[np.random.Generator]) -> Tensor:
        if min(images.shape[2:]) <= max(self.windows) // 2:
            raise ValueError(
                f"a window of {max(self.windows)} needs images of more than {max(self.windows) // 2} pixels a side, "
                f"got {images.shape[2]} x {images.shape[3]}"
            )
        drawn = torch.tensor([self.windows[stream.integers(len(self.windows))] for stream in streams])
        blurred = images.clone()
        for window in set(drawn.tolist()) - {1}:
            chosen = (drawn == window).nonzero()[:, 0].to(images.device)
            blurred[chosen] = _blur(images[chosen], self._weights(window))
        return blurred

    def _weights(self, window: int) -> list[float]:
        sigma = self.sigma or 0.3 * ((window - 1) / 2 - 1) + 0.8
        weights = [math.exp(-((at - window // 2) ** 2) / (2 * sigma**2)) for at in range(window)]
        return [weight / sum(weights) for weight in weights]


@dataclass(frozen=True)
class Derain:
    """Straight streaks of rain, of one grey (0..255), at random places and angles; their edges are anti-aliased.

    Each image gets a whole number of streaks, uniform in `streaks`, each with its middle anywhere in the image. A streak
    is `length` times the image's width long (part of it falls outside) and as wide as is drawn from `width`, in pixels of
    an image 224 wide: other sizes get the same picture scaled, so that streaks hide the same share. The default width is
    solid for 1 to 2 such pixels, with half an edge on either side.
    """

    streaks: tuple[int, int] = (0, 20)
    width: tuple[float, float] = (2, 3)
    length: float = 1.0
    grey: float = 200
    spatial: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _keep_range(self, "streaks", 0, math.inf, whole=True)
        _keep_range(self, "width", 0, math.inf)
        if not (_is_number(self.length) and self.length > 0):
            raise ValueError(f"length must be a number above 0, in widths of the image, got {self.length!r}")
        if not (_is_number(self.grey) and 0 <= self.grey <= 255):
            raise ValueError(f"grey must be a number in 0..255, got {self.grey!r}")

    def apply(self, images: Tensor, streams: Sequence[np.random.Generator]) -> Tensor:
        height, width = images.shape[2:]
        drawn = [stream.random((int(stream.integers(*self.streaks, endpoint=True)), 4)) for stream in streams]
        # With the images that have the most streaks first, those that have a next one are always the first few.
        order = sorted(range(len(drawn)), key=lambda i: -len(drawn[i]))
        clear = images.new_ones(len(drawn), height, width)
        x = torch.arange(width, dtype=images.dtype, device=images.device) + 0.5
        y = (torch.arange(height, dtype=images.dtype, device=images.device) + 0.5)[:, None]  # [H, 1]
        for k in range(max(map(len, drawn))):
            place = np.stack([drawn[i][k] for i in order if len(drawn[i]) > k])  # [B', 4]
            angle = math.pi * place[:, 2]
            across, down, cos, sin, thick = (
                _per_image(values, images)[:, 0]  # [B', 1, 1]
                for values in (
                    place[:, 0] * width,
                    place[:, 1] * height,
                    np.cos(angle),
                    np.sin(angle),
                    (self.width[0] + (self.width[1] - self.width[0]) * place[:, 3]) * width / PAPER_SIZE,
                )
            )
            dx, dy = x - across, y - down  # [B', 1, W], [B', H, 1]
            along = (dx * cos + dy * sin).abs_()  # [B', H, W]
            aside = (dx * sin - dy * cos).abs_()
            # The share of a pixel under a streak of thickness t whose middle is d away, the edge taken as straight.
            inside = (thick / 2 + 0.5 - aside).clamp_(min=0).minimum(thick.clamp(max=1))
            inside *= (self.length * width / 2 + 0.5 - along).clamp_(0, 1)
            clear[: len(place)] *= 1 - inside
        clear = clear[torch.tensor(order).argsort().to(images.device)][:, None]  # [B, 1, H, W]
        return images * clear + (1 - clear) * (self.grey / 255)


@dataclass(frozen=True)
class Pepper:
    """Whole pixels turned white or black: a share of each image's pixels that is uniform in `rate`, `salt` of them white.

    The counts are exact, rounded down.
    """

    rate: tuple[float, float] = (0, 0.1)
    salt: float = 0.5
    spatial: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _keep_range(self, "rate", 0, 1)
        if not (_is_number(self.salt) and 0 <= self.salt <= 1):
            raise ValueError(f"salt must be a share in 0..1, got {self.salt!r}")

    def apply(self, images: Tensor, streams: Sequence[np.random.Generator]) -> Tensor:
        height, width = images.shape[2:]
        kept = np.ones((len(streams), 1, height, width), np.float32)
        white = np.zeros_like(kept)
        for i, stream in enumerate(streams):
            hit = _some(height * width, self.rate, stream)
            kept[i].reshape(-1)[hit] = 0
            white[i].reshape(-1)[hit[: int(self.salt * len(hit) + 0.5)]] = 1
        return images * torch.from_numpy(kept).to(images) + torch.from_numpy(white).to(images)


@dataclass(frozen=True)
class Mask:
    """Square cells of `cell` pixels turned black: a share of each image's cells that is uniform in `rate`.

    Cells lie in a grid that begins at the top left; those at the right and the bottom are cut where the side is no
    multiple of `cell`. The count is exact, rounded down. The paper's "masking rate of 0.1" is the most, not the share in
    every image: that would be `Mask(rate=(0.1, 0.1))`.
    """

    cell: int = 4
    rate: tuple[float, float] = (0, 0.1)
    spatial: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _keep_range(self, "rate", 0, 1)
        if not (_is_whole(self.cell) and self.cell >= 1):
            raise ValueError(f"cell must be a whole number of pixels of at least 1, got {self.cell!r}")

    def apply(self, images: Tensor, streams: Sequence[np.random.Generator]) -> Tensor:
        rows, columns = (-(-side // self.cell) for side in images.shape[2:])
        kept = np.ones((len(streams), rows * columns), np.float32)
        for i, stream in enumerate(streams):
            kept[i, _some(rows * columns, self.rate, stream)] = 0
        cells = torch.from_numpy(kept).view(-1, 1, rows, columns).to(images)
        pixels = cells.repeat_interleave(self.cell, 2).repeat_interleave(self.cell, 3)  # [B, 1, >= H, >= W]
        return images * pixels[:, :, : images.shape[2], : images.shape[3]]


@dataclass(frozen=True)
class Rotate:
    """A turn of the whole image by `turns` times 90 degrees, anticlockwise; an odd number swaps height and width."""

    turns: int = 1
    spatial: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not _is_whole(self.turns):
            raise ValueError(f"turns must be a whole number of quarter turns, got {self.turns!r}")

    def apply(self, images: Tensor, streams: Sequence[np.random.Generator]) -> Tensor:
        return images.rot90(self.turns, (2, 3)).contiguous()  # [B, 3, W, H] where turns is odd


@dataclass(frozen=True)
class Flip:
    """Left and right exchanged."""

    spatial: ClassVar[bool] = True

    def apply(self, images: Tensor, streams: Sequence[np.random.Generator]) -> Tensor:
        return images.flip(3)


@dataclass(frozen=True)
class Repeat:
    """The image itself (App. A.3)."""

    spatial: ClassVar[bool] = True

    def apply(self, images: Tensor, streams: Sequence[np.random.Generator]) -> Tensor:
        return images


# Every task with the strength that the paper trains and tests with.
TASKS: dict[str, Task] = {
    "denoise": Denoise(),
    "deblur": Deblur(),
    "derain": Derain(),
    "pepper": Pepper(),
    "mask": Mask(),
    "rotate": Rotate(),
    "flip": Flip(),
    "repeat": Repeat(),
}
NAMES = tuple(TASKS)


def degrade(images: Tensor, task: str, *, seed: int = 0, first: int = 0, parameters: Task | None = None) -> Tensor:
    """What a task does to images: `[B, 3, H, W]` in 0..1 -> a new tensor of the same shape, dtype and device, in 0..1.

    denoise, deblur, derain, pepper and mask spoil each image with a strength drawn for it, rotate and flip move its
    pixels, repeat changes nothing. Image i of the batch counts as number `first` + i of its set, and what happens to it
    follows from `seed`, the task and that number: `degrade(x[2:4], t, first=2)` equals `degrade(x, t)[2:4]`, on any device.

    `parameters`: the task's dataclass with other strengths, to test on what training has not seen, as in
    `degrade(x, "denoise", parameters=Denoise(sigma=(60, 60)))`. The same seed then gives the same noise, only stronger.

    Raises ValueError for an unknown task, parameters of another task, images that are not floats `[B, 3, H, W]` in 0..1
    (B >= 1), NaN, and a seed or `first` that is no whole number.

    >>> degrade(torch.rand(2, 3, 32, 32), "denoise", seed=1).shape
    torch.Size([2, 3, 32, 32])
    >>> degrade(torch.rand(2, 3, 32, 48), "rotate").shape
    torch.Size([2, 3, 48, 32])
    """
    used = _parameters(task, parameters)
    check_images(images)
    streams = _streams(task, seed, first, len(images))
    # Half precision is too coarse to compute in. Clamping copies, so the caller's images are never handed back.
    exact = (images if images.dtype == torch.float64 else images.float()).clamp(0, 1)
    return used.apply(exact, streams).clamp(0, 1).to(images.dtype)


def pair(
    images: Tensor, task: str, *, seed: int = 0, first: int = 0, parameters: Task | None = None
) -> tuple[Tensor, Tensor]:
    """What a model of the task is given, and what it shall answer: `(low, high)`, each `[B, 3, H, W]` in 0..1.

    From clean images: restoration is given the spoilt ones and shall answer the clean ones; rotate, flip and repeat are
    given the clean ones and shall answer them turned, mirrored, or as they are (paper, section 4.1). Arguments and
    errors as `degrade`.

    >>> clean = torch.rand(2, 3, 32, 32)
    >>> low, high = pair(clean, "mask")
    >>> bool((high == clean).all()), bool((low <= clean).all())
    (True, True)
    >>> low, high = pair(clean, "flip")
    >>> bool((low == clean).all()), bool((high == clean.flip(3)).all())
    (True, True)
    """
    done = degrade(images, task, seed=seed, first=first, parameters=parameters)
    clean = images.clamp(0, 1)
    return (clean, done) if _parameters(task, parameters).spatial else (done, clean)


def _parameters(task: str, given: Task | None) -> Task:
    if not isinstance(task, str) or task not in TASKS:
        near = difflib.get_close_matches(str(task), NAMES, n=2, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(NAMES)}"
        raise ValueError(f"unknown task {task!r}; {hint}")
    wanted = type(TASKS[task])
    if given is not None and type(given) is not wanted:
        raise ValueError(f"parameters of {task!r} must be a {wanted.__name__}, got {type(given).__name__}")
    return TASKS[task] if given is None else given


def check_images(images: Tensor) -> None:
    """ValueError unless `images` are floats `[B, 3, H, W]` in 0..1, B >= 1."""
    if not isinstance(images, Tensor):
        raise ValueError(f"images must be a tensor [B, 3, H, W], got {type(images).__name__}")
    if images.ndim != 4 or images.shape[1] != 3 or not images.numel():
        raise ValueError(f"images must be [B, 3, H, W] with B >= 1, got {list(images.shape)}")
    if not images.is_floating_point():
        raise ValueError(f"images must be floats in 0..1, got {images.dtype}; divide 8-bit images by 255")
    low, high = (float(value) for value in images.detach().aminmax())
    if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):  # false for NaN too
        raise ValueError(f"images must be in 0..1, got {low:g}..{high:g}")


def _streams(task: str, seed: int, first: int, count: int) -> list[np.random.Generator]:
    """One random stream an image. Hashing keeps the streams of near seeds and indices apart."""
    for name, value in (("seed", seed), ("first", first)):
        if not _is_whole(value) or (name == "first" and value < 0):
            raise ValueError(f"{name} must be a whole number{' of at least 0' * (name == 'first')}, got {value!r}")
    keys = (f"{operator.index(seed)} {task} {operator.index(first) + i}" for i in range(count))
    return [np.random.default_rng(int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "little")) for key in keys]


def _per_image(values: Any, images: Tensor) -> Tensor:
    """One number an image as `[B, 1, 1, 1]`, to multiply images with."""
    return torch.as_tensor(np.asarray(values), dtype=images.dtype).view(-1, 1, 1, 1).to(images.device)


def _some(count: int, rate: tuple[float, float], stream: np.random.Generator) -> np.ndarray:
    """Numbers below `count`, different ones in random order: at most the share drawn from `rate`."""
    most = int(stream.uniform(*rate) * count + 1e-9)  # 0.29 * 100 is 28.999...
    return stream.choice(count, most, replace=False)


def _blur(images: Tensor, weights: list[float]) -> Tensor:
    """Shifted copies added up, once down and once across: a convolution's sums depend on batch, device and TF32."""
    reach = len(weights) // 2
    for dim, sides in ((2, (0, 0, reach, reach)), (3, (reach, reach, 0, 0))):
        size = images.shape[dim]
        padded = F.pad(images, sides, mode="reflect")
        images = padded.narrow(dim, 0, size) * weights[0]
        for k in range(1, len(weights)):
            images = images + padded.narrow(dim, k, size) * weights[k]
    return images
