"""VQGAN (Esser et al. 2021): a convolutional autoencoder whose latents are rounded to a codebook.

The architecture and the parameter names are those of taming-transformers, so that its checkpoints fit;
`vqgan-tiny` is the same thing, smaller. The tokens that alignment and LM4LV use are the latents *before*
quantisation, in raster order; `decode` quantises them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignlab.models.assemble import check_sizes
from alignlab.models.encoder import check_tokens, prepare

GROUPS = 32  # of channels, normalised together


@dataclass(frozen=True)
class VQGANConfig:
    channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    residual_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (16,)
    latent_channels: int = 256
    embedding: int = 256
    codes: int = 16384
    image_size: int = 256
    gumbel: bool = False  # codes by a learnt projection (GumbelVQ) instead of the nearest vector

    def __post_init__(self) -> None:
        sizes = {
            "channels": self.channels,
            "residual_blocks": self.residual_blocks,
            "latent_channels": self.latent_channels,
            "embedding": self.embedding,
            "codes": self.codes,
            "image_size": self.image_size,
        }
        check_sizes(sizes, most={"residual_blocks": 64, "image_size": 4096})
        if not 1 <= len(self.channel_multipliers) <= 12:
            raise ValueError(f"a VQGAN has 1 to 12 channel multipliers, got {len(self.channel_multipliers)}")
        check_sizes({f"channel multiplier {i}": m for i, m in enumerate(self.channel_multipliers)})
        check_sizes({f"attention resolution {i}": r for i, r in enumerate(self.attention_resolutions[:99])})
        if self.image_size % 2 ** (len(self.channel_multipliers) - 1):
            halvings = len(self.channel_multipliers) - 1
            raise ValueError(f"an image size of {self.image_size} cannot be halved {halvings} times")
        if any(self.channels * m % GROUPS for m in (1, *self.channel_multipliers)):
            raise ValueError(f"every level's channels must be a multiple of {GROUPS}")

    @property
    def grid(self) -> int:
        return self.image_size // 2 ** (len(self.channel_multipliers) - 1)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(n_in), nn.Conv2d(n_in, n_out, 3, padding=1)
        self.norm2, self.conv2 = _norm(n_out), nn.Conv2d(n_out, n_out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(n_in, n_out, 1) if n_in != n_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.nin_shortcut(x) + h


class AttnBlock(nn.Module):
    """One head of full self-attention over the cells of the map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q, self.k = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)
        self.v, self.proj_out = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (f(h).flatten(2).transpose(1, 2) for f in (self.q, self.k, self.v))  # [B, HW, C]
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)  # [B, C, H, W]
        return x + self.proj_out(out)


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # [B, C, H, W] -> [B, C, H/2, W/2]


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))  # [B, C, H, W] -> [B, C, 2H, 2W]


class Level(nn.Module):
    """The blocks of one resolution; `upsample` or `downsample` exists only where there is a next one."""

    downsample: Downsample
    upsample: Upsample

    def __init__(self, widths: list[int], attention: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(a, b) for a, b in pairwise(widths))
        self.attn = nn.ModuleList(AttnBlock(b) for b in widths[1:] if attention)

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        if hasattr(self, "downsample"):
            x = self.downsample(x)
        if hasattr(self, "upsample"):
            x = self.upsample(x)
        return x


class Middle(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels)
        self.attn_1 = AttnBlock(channels)
        self.block_2 = ResnetBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    def __init__(self, c: VQGANConfig) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, c.channels, 3, padding=1)
        self.down = nn.ModuleList()
        width, resolution = c.channels, c.image_size
        for i, multiplier in enumerate(c.channel_multipliers):
            out = c.channels * multiplier
            level = Level([width] + [out] * c.residual_blocks, resolution in c.attention_resolutions)
            if i + 1 < len(c.channel_multipliers):
                level.downsample = Downsample(out)
                resolution //= 2
            self.down.append(level)
            width = out
        self.mid = Middle(width)
        self.norm_out = _norm(width)
        self.conv_out = nn.Conv2d(width, c.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)  # [B, ch, H, W]
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))  # [B, z, H/f, W/f]


class Decoder(nn.Module):
    def __init__(self, c: VQGANConfig) -> None:
        super().__init__()
        width, resolution = c.channels * c.channel_multipliers[-1], c.grid
        self.conv_in = nn.Conv2d(c.latent_channels, width, 3, padding=1)
        self.mid = Middle(width)
        levels = []  # from the coarsest to the finest; stored the other way round, as in the published files
        for i, multiplier in reversed(list(enumerate(c.channel_multipliers))):
            out = c.channels * multiplier
            level = Level([width] + [out] * (c.residual_blocks + 1), resolution in c.attention_resolutions)
            if i > 0:
                level.upsample = Upsample(out)
                resolution *= 2
            levels.append(level)
            width = out
        self.up = nn.ModuleList(reversed(levels))
        self.norm_out = _norm(width)
        self.conv_out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))  # [B, C, h, w]
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))  # [B, 3, f h, f w]


class Codebook(nn.Module):
    def __init__(self, codes: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, width)
        nn.init.uniform_(self.embedding.weight, -1 / codes, 1 / codes)

    def nearest(self, z: Tensor) -> Tensor:
        """Latents [..., E] -> the index of the nearest code [...], in float32 whatever the latents' dtype."""
        flat, book = z.reshape(-1, z.shape[-1]).float(), self.embedding.weight.float()
        # |z - e|^2 without |z|^2, which does not change the order
        index = (book.square().sum(1) - 2 * flat @ book.T).argmin(1)  # [N, codes] -> [N]
        return index.reshape(z.shape[:-1])

    def vectors(self, index: Tensor) -> Tensor:
        """Codes [...] -> their vectors [..., E]."""
        return self.embedding(index)


class GumbelCodebook(nn.Module):
    """The code of a latent is the largest of `codes` linear functions of it; the code's vector is separate."""

    def __init__(self, codes: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(codes, width)
        self.proj = nn.Conv2d(width, codes, 1)  # as in the published files, though it is applied to every vector alone

    def nearest(self, z: Tensor) -> Tensor:
        """Latents [..., E] -> the likeliest code [...], without training's noise, in float32 whatever their dtype."""
        score = z.float() @ self.proj.weight[:, :, 0, 0].float().T  # [..., E] -> [..., codes]
        return (score if self.proj.bias is None else score + self.proj.bias.float()).argmax(-1)

    def vectors(self, index: Tensor) -> Tensor:
        """Codes [...] -> their vectors [..., E]."""
        return self.embed(index)


class VQGAN(nn.Module):
    """Images are float [B, 3, H, W] in 0..1; latents [B, T, E] in raster order; codes int64 [B, h, w]."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize: Any = (GumbelCodebook if config.gumbel else Codebook)(config.codes, config.embedding)
        self.quant_conv = nn.Conv2d(config.latent_channels, config.embedding, 1)
        self.post_quant_conv = nn.Conv2d(config.embedding, config.latent_channels, 1)

    def latents(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in 0..1 -> [B, T, E], before quantisation."""
        z = self.quant_conv(self.encoder(images * 2 - 1))  # [B, E, h, w]
        return z.flatten(2).transpose(1, 2)

    def codes(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in 0..1 -> [B, h, w]."""
        index = self.quantize.nearest(self.latents(images))  # [B, T]
        return index.reshape(len(index), self.config.grid, self.config.grid)

    def pixels(self, z: Tensor) -> Tensor:
        """Latents [B, T, E], taken as they are -> images [B, 3, H, W], about 0..1, not clamped."""
        grid = z.transpose(1, 2).reshape(len(z), -1, self.config.grid, self.config.grid)  # [B, E, h, w]
        return self.decoder(self.post_quant_conv(grid)) / 2 + 0.5

    def decode(self, z: Tensor) -> Tensor:
        """Latents [B, T, E], rounded to the codebook first -> images [B, 3, H, W] in 0..1."""
        return self.pixels(self.quantize.vectors(self.quantize.nearest(z))).clamp(0, 1)


class VQGANEncoder:
    """A VQGAN as an encoder: one layer, the latents, pooled by concatenation as the LM4LV paper does."""

    pools = ("concat", "mean")
    num_layers = 1

    def __init__(self, name: str, checkpoint: str, model: VQGAN) -> None:
        self.name, self.checkpoint, self.model = name, checkpoint, model
        self.image_size = model.config.image_size
        self.width = model.config.embedding

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images `[B, 3, H, W]` in 0..1 -> `[B, T, E]` float32, the latents before quantisation, raster order."""
        like = self.model.quant_conv.weight
        return self.model.latents(prepare(images, self.image_size, (0.0,) * 3, (1.0,) * 3, like)).float()

    @torch.no_grad()
    def codes(self, tokens: Tensor) -> Tensor:
        """Tokens of `encode` `[B, T, E]` -> their codes, int64 `[B, h, w]`."""
        grid = self.model.config.grid
        check_tokens(tokens, grid**2, self.width)
        return self.model.quantize.nearest(tokens).reshape(-1, grid, grid)

    def layers(self, images: Tensor, pool: str | None = None) -> Tensor:
        """Images `[B, 3, H, W]` in 0..1 -> `[B, 1, T E]` (concat) or `[B, 1, E]` (mean), float32."""
        pool = pool or self.pools[0]
        if pool not in self.pools:
            raise ValueError(f"pool must be one of {', '.join(self.pools)}, got {pool!r}")
        tokens = self.encode(images)  # [B, T, E]
        return (tokens.flatten(1) if pool == "concat" else tokens.mean(1))[:, None]

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Latents `[B, T, E]` -> images `[B, 3, H, W]` in 0..1, through the code book."""
        check_tokens(tokens, self.model.config.grid**2, self.width)
        return self.model.decode(tokens.to(self.model.quant_conv.weight)).float()
