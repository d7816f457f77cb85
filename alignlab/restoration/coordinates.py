"""An encoder's tokens in other coordinates: with their position appended, or with every direction of like size.

Both wrap an encoder that has a decoder, and are encoders that have one: LM4LV and what it is compared with take them like
any other. What alignment reads (`layers`) is the encoder's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from alignlab.models.encoder import check_tokens, sha256_state
from alignlab.models.pca import moments, principal

POSITION = "+position"
WHITENED = "+whitened"
CODE_WIDTH = 16  # numbers that say where a token is
SHORTEST = 3.0  # cells: the finest wave; at 2 or fewer the cells would sample it at its zeros


def position_code(grid: int, width: int = CODE_WIDTH) -> Tensor:
    """Sines and cosines of each cell's row and of its column, `[grid^2, width]` float32 in raster order.

    The waves are `width / 4` from twice the grid's side down to 3 cells, in equal ratios, so that a small grid's cells lie
    well apart. Every cell's numbers have a root mean square of 1. Raises ValueError for a width that is no multiple of 4.
    """
    if grid < 1 or width < 4 or width % 4:
        raise ValueError(f"a position code needs a grid and a width that is a multiple of 4, got {grid} and {width}")
    waves = torch.logspace(math.log10(max(2 * grid, SHORTEST)), math.log10(SHORTEST), width // 4, dtype=torch.float64)
    angle = 2 * math.pi * torch.arange(grid, dtype=torch.float64)[:, None] / waves  # [grid, width / 4]
    line = 2**0.5 * torch.cat([angle.sin(), angle.cos()], dim=1)  # [grid, width / 2]
    rows, columns = line[:, None].expand(-1, grid, -1), line[None].expand(grid, -1, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1).float()  # [grid, grid, width] -> [grid^2, width]


class _Seen:
    """What both have of the encoder behind them; frozen checks find its `model`."""

    width: int

    def __init__(self, encoder: Any, suffix: str) -> None:
        if not hasattr(encoder, "decode"):
            raise ValueError(
                f"{encoder.name} has no decoder; give an encoder that has one, as mae, beit, vqgan and pca"
            )
        self.encoder = encoder
        self.name: str = f"{encoder.name}{suffix}"
        self.checkpoint: str = f"{encoder.checkpoint}{suffix}"
        self.image_size: int = encoder.image_size
        self.num_layers: int = encoder.num_layers
        self.pools: tuple[str, ...] = encoder.pools
        self.model: Any = encoder.model

    @property
    def decoder_checkpoint(self) -> str:
        return str(getattr(self.encoder, "decoder_checkpoint", self.encoder.checkpoint))

    def layers(self, images: Tensor, pool: str | None = None) -> Tensor | list[Tensor]:
        """The encoder's own, as they are."""
        found: Tensor | list[Tensor] = self.encoder.layers(images, pool)
        return found


class Positioned(_Seen):
    """`encoder` with a fixed code of its position appended to every token; `decode` leaves the code out.

    MAE's tokens say where they are, a VQGAN's and those of PCA do not: this adds what they lack. Tokens must fill a square
    grid, with or without [CLS] before it, whose code is zeros; `encode` raises ValueError where they do not. The code's
    root mean square is that of `pca`'s tokens and about twice the spread of `vqgan-tiny`'s.
    """

    def __init__(self, encoder: Any) -> None:
        super().__init__(encoder, POSITION)
        self.width = encoder.width + CODE_WIDTH

    def code(self, count: int) -> Tensor:
        """The code of each of `count` tokens, `[T, 16]`."""
        grid = math.isqrt(count)
        if grid**2 == count:
            return position_code(grid)
        grid = math.isqrt(count - 1)
        if grid**2 != count - 1:
            raise ValueError(
                f"{self.encoder.name} gives {count} tokens; a position code needs a square of them, or [CLS] and a square"
            )
        return torch.cat([torch.zeros(1, CODE_WIDTH), position_code(grid)])

    def encode(self, images: Tensor) -> Tensor:
        """Images `[B, 3, H, W]` in 0..1 -> `[B, T, D + 16]` float32."""
        tokens: Tensor = self.encoder.encode(images)  # [B, T, D]
        code = self.code(tokens.shape[1]).to(tokens)
        return torch.cat([tokens, code.expand(len(tokens), -1, -1)], dim=2)

    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens of `encode` `[B, T, D + 16]` -> images `[B, 3, H, W]` in 0..1."""
        if tokens.ndim != 3 or tokens.shape[2] != self.width:
            raise ValueError(f"tokens must be [B, T, {self.width}], got {tuple(tokens.shape)}")
        painted: Tensor = self.encoder.decode(tokens[:, :, :-CODE_WIDTH])
        return painted


class Whitened(_Seen):
    """`encoder` with tokens `z = ((h - mean) @ components) * scale` in place of its `h`; `decode` takes them back.

    `mean` and `scale` are `[D]`, `components` `[D, D]` with orthonormal columns. `whitened` fits them. The checkpoint's
    name ends in a hash of the three. Raises ValueError for shapes that do not fit the encoder, for columns that are not
    orthonormal and for a scale that is not above 0.
    """

    def __init__(self, encoder: Any, mean: Tensor, components: Tensor, scale: Tensor) -> None:
        super().__init__(encoder, WHITENED)
        d = self.width = encoder.width
        found = {"mean": mean, "components": components, "scale": scale}
        for what, shape in (("mean", (d,)), ("components", (d, d)), ("scale", (d,))):
            if tuple(found[what].shape) != shape:
                raise ValueError(f"{what} of {encoder.name} must be {list(shape)}, got {list(found[what].shape)}")
            if not bool(torch.isfinite(found[what]).all()):
                raise ValueError(f"{what} holds numbers that are not finite")
        held = {what: x.detach().float().cpu().contiguous() for what, x in found.items()}
        self.mean, self.components, self.scale = held["mean"], held["components"], held["scale"]
        if bool((self.scale <= 0).any()):
            raise ValueError(f"scale must be above 0, its least number is {float(self.scale.min()):.3g}")
        product = self.components.T.double() @ self.components.double()
        if float((product - torch.eye(d, dtype=torch.float64)).abs().max()) > 1e-3:
            raise ValueError("the columns of components must be orthonormal")
        self.checkpoint += f":{sha256_state(self.state())[:16]}"

    @classmethod
    def from_state(cls, encoder: Any, state: Mapping[str, Tensor]) -> Whitened:
        """From the tensors of `state()`; ValueError where one is missing, unknown or of another shape."""
        names = {"mean", "components", "scale"}
        if set(state) != names:
            raise ValueError(
                f"expected the tensors {', '.join(sorted(names))}, got {', '.join(sorted(state)) or 'none'}"
            )
        return cls(encoder, state["mean"], state["components"], state["scale"])

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint has to hold: `mean` `[D]`, `components` `[D, D]`, `scale` `[D]`, float32 on the CPU."""
        return {"mean": self.mean.cpu(), "components": self.components.cpu(), "scale": self.scale.cpu()}

    def _follow(self, tokens: Tensor) -> None:
        """Go to where the tokens are, once."""
        if self.mean.device != tokens.device:
            self.mean, self.components, self.scale = (
                x.to(tokens.device) for x in (self.mean, self.components, self.scale)
            )

    def forth(self, h: Tensor) -> Tensor:
        """The encoder's tokens `[..., D]` -> whitened ones."""
        self._follow(h)
        return ((h - self.mean) @ self.components) * self.scale

    def back(self, z: Tensor) -> Tensor:
        """Whitened tokens `[..., D]` -> the encoder's."""
        self._follow(z)
        return (z / self.scale) @ self.components.T + self.mean

    def encode(self, images: Tensor) -> Tensor:
        """Images `[B, 3, H, W]` in 0..1 -> `[B, T, D]` float32."""
        return self.forth(self.encoder.encode(images))

    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens of `encode` `[B, T, D]` -> images `[B, 3, H, W]` in 0..1."""
        if tokens.ndim != 3:
            raise ValueError(f"tokens must be [B, T, {self.width}], got {tuple(tokens.shape)}")
        check_tokens(tokens, tokens.shape[1], self.width)
        painted: Tensor = self.encoder.decode(self.back(tokens.float()))
        return painted


@torch.no_grad()
def whitened(
    encoder: Any, images: Tensor, *, power: float = 0.5, floor: float = 0.02, batch_size: int = 64
) -> Whitened:
    """`encoder` with coordinates fitted to its tokens of `images` (clean training pictures, `[N, 3, H, W]` in 0..1).

    The components are the eigenvectors of the tokens' covariance about their mean over images and positions, the largest
    first, and the scale is `(eigenvalue + floor * mean eigenvalue)^-power`: at `power` 0.5 and no floor every direction
    gets the variance 1, at 0 they keep theirs; the floor keeps directions of little variance, which are mostly noise, from
    being blown up. In the end one number makes the mean square of all of `z` over these tokens 1.

    Raises ValueError for a power outside 0..1, a floor below 0, and tokens that do not vary or, without a floor, lie in
    fewer than D dimensions.
    """
    if not 0 <= power <= 1 or not 0 <= floor < math.inf:
        raise ValueError(f"power must lie in 0..1 and floor be 0 or more, got {power} and {floor}")
    if images.ndim != 4 or len(images) == 0:
        raise ValueError(f"images must be [N, 3, H, W] with N >= 1, got {tuple(images.shape)}")
    d = encoder.width
    mean, covariance = moments(encoder.encode(batch).flatten(0, 1) for batch in images.split(batch_size))
    values, vectors = principal(covariance)
    level = float(values.mean())
    if not 0 < level < math.inf:
        raise ValueError(f"the tokens of {encoder.name} do not vary over these images; give other ones")
    raised = values + floor * level
    if power > 0 and float(raised.min()) <= 1e-12 * level:
        raise ValueError(
            f"the tokens of {encoder.name} lie in fewer than {d} dimensions over these {len(images)} images; "
            "give more images or a floor above 0"
        )
    scale = raised**-power
    scale /= (values * scale.square()).mean().sqrt()
    return Whitened(encoder, mean, vectors, scale)


def open_encoder(name: str, device: str = "cpu", dtype: str = "float32", decoder: str | None = None) -> Any:
    """`load_encoder` of a name that may end in "+position", as "vqgan+position" does: names, options and errors as there."""
    from alignlab.models.registry import load_encoder

    if name.endswith(WHITENED):
        raise ValueError(f"{name!r}: whitening is fitted to pictures, it has no name of its own; leave {WHITENED} off")
    if name.endswith(POSITION):
        return Positioned(load_encoder(name.removesuffix(POSITION), device=device, dtype=dtype, decoder=decoder))
    return load_encoder(name, device=device, dtype=dtype, decoder=decoder)
