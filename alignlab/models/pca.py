"""Principal components of image patches: an encoder that is a linear map, and a decoder that is its inverse.

Nothing is trained. What LM4LV does with these tokens is what it can do without features that somebody learnt, as they say no
more and no less than the pixels: a control for MAE's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignlab.models.assemble import check_sizes
from alignlab.models.encoder import check_tokens, prepare

# Standard deviation of what rounding pixels of 0..1 to 8 bits adds to any direction; less than that is no signal.
ROUNDING = 1 / (255 * 12**0.5)


@dataclass(frozen=True)
class PCAConfig:
    image_size: int = 64
    patch: int = 8
    width: int = 192  # components that are kept, of 3 * patch^2

    def __post_init__(self) -> None:
        sizes = {"image_size": self.image_size, "patch": self.patch, "width": self.width}
        check_sizes(sizes, most={"image_size": 4096})
        if self.image_size % self.patch:
            raise ValueError(f"an image size of {self.image_size} cannot be cut into patches of {self.patch}")
        if self.width > 3 * self.patch**2:
            raise ValueError(f"a patch of {self.patch} has {3 * self.patch**2} components, not {self.width}")

    @property
    def grid(self) -> int:
        return self.image_size // self.patch


def to_patches(images: Tensor, patch: int) -> Tensor:
    """`[B, 3, H, W]` -> `[B, T, 3 patch^2]`, patches in raster order, each a colour after the other."""
    return F.pixel_unshuffle(images, patch).flatten(2).transpose(1, 2)  # [B, 3 p^2, h, w] -> [B, T, 3 p^2]


def to_images(patches: Tensor, patch: int, grid: int) -> Tensor:
    """The inverse of `to_patches` for a square: `[B, grid^2, 3 patch^2]` -> `[B, 3, H, W]`."""
    maps = patches.transpose(1, 2).reshape(len(patches), -1, grid, grid)  # [B, 3 p^2, h, w]
    return F.pixel_shuffle(maps, patch)


class PCA(nn.Module):
    """Images are float [B, 3, H, W] in 0..1, tokens [B, T, D] in raster order. A new one has a random orthonormal basis."""

    def __init__(self, config: PCAConfig) -> None:
        super().__init__()
        self.config = config
        numbers = 3 * config.patch**2
        self.mean = nn.Parameter(torch.full((numbers,), 0.5))
        self.components = nn.Parameter(torch.empty(numbers, config.width))
        self.scale = nn.Parameter(torch.ones(()))
        nn.init.orthogonal_(self.components)

    def tokens(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, T, D], all components divided by one number: distances are those of pixels."""
        return (to_patches(images, self.config.patch) - self.mean) @ self.components / self.scale

    def pixels(self, tokens: Tensor) -> Tensor:
        """Tokens [B, T, D] -> images [B, 3, H, W], about 0..1, not clamped."""
        patches = (tokens * self.scale) @ self.components.T + self.mean  # [B, T, 3 p^2]
        return to_images(patches, self.config.patch, self.config.grid)


class PCAEncoder:
    """PCA as an encoder: one layer, the components, pooled by concatenation as a VQGAN's latents are."""

    pools = ("concat", "mean")
    num_layers = 1

    def __init__(self, name: str, checkpoint: str, model: PCA) -> None:
        self.name, self.checkpoint, self.model = name, checkpoint, model
        self.image_size = model.config.image_size
        self.width = model.config.width

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images `[B, 3, H, W]` in 0..1 -> `[B, T, D]` float32, raster order."""
        return self.model.tokens(prepare(images, self.image_size, (0.0,) * 3, (1.0,) * 3, self.model.mean)).float()

    def layers(self, images: Tensor, pool: str | None = None) -> Tensor:
        """Images `[B, 3, H, W]` in 0..1 -> `[B, 1, T D]` (concat) or `[B, 1, D]` (mean), float32."""
        pool = pool or self.pools[0]
        if pool not in self.pools:
            raise ValueError(f"pool must be one of {', '.join(self.pools)}, got {pool!r}")
        tokens = self.encode(images)  # [B, T, D]
        return (tokens.flatten(1) if pool == "concat" else tokens.mean(1))[:, None]

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens `[B, T, D]` -> images `[B, 3, H, W]` in 0..1; what `encode` read where all components are kept."""
        check_tokens(tokens, self.model.config.grid**2, self.width)
        return self.model.pixels(tokens.to(self.model.mean)).clamp(0, 1).float()


def moments(rows: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean `[D]` and covariance `[D, D]` of all rows of tensors `[n, D]`, read once; float64, on the CPU
    (the products are made where the rows are).

    Raises ValueError where there is no row.
    """
    count = 0
    total = products = torch.zeros((), dtype=torch.float64)
    for batch in rows:
        x = batch.double()
        count, total, products = count + len(x), total + x.sum(0), products + x.T @ x
    if count == 0:
        raise ValueError("no pictures to find components in; give one at least")
    mean = total / count
    return mean.cpu(), (products / count - mean[:, None] * mean).cpu()


def principal(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues `[D]` of a covariance, the largest first, none below 0, and its eigenvectors, the columns of `[D, D]`."""
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    # An eigenvector's sign is arbitrary: its largest number is made positive, so that it is the same everywhere.
    return values, vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()


def fit_pca(batches: Iterable[Tensor], patch: int, width: int) -> dict[str, Tensor]:
    """The tensors of a `PCA` from training pictures, batches `[B, 3, H, W]` in 0..1 whose sides are multiples of `patch`.

    "mean" `[3 patch^2]`, "components" `[3 patch^2, width]`, "scale" `[]`, float32. The one scale gives these pictures' tokens
    a mean square of 1. A component's own standard deviation would blow up those that hardly vary, and with them whatever
    noise a picture has. Pictures that all but do not vary are divided by the rounding of 8-bit pixels. Raises ValueError
    for sizes that do not fit and where there is no picture.
    """
    PCAConfig(image_size=patch, patch=patch, width=width)  # refuses what cannot be

    def rows() -> Iterator[Tensor]:
        for images in batches:
            if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] % patch or images.shape[3] % patch:
                raise ValueError(
                    f"images must be [B, 3, H, W] with sides that are multiples of {patch}, got {tuple(images.shape)}"
                )
            yield to_patches(images, patch).flatten(0, 1)  # [B, T, 3 p^2] -> [B T, 3 p^2]

    mean, covariance = moments(rows())
    values, vectors = principal(covariance)
    scale = values[:width].mean().sqrt().clamp(min=ROUNDING)
    found = {"mean": mean, "components": vectors[:, :width], "scale": scale}
    return {name: x.float().contiguous() for name, x in found.items()}
