"""The discrete VAE of DALL-E (Ramesh et al. 2021), BEiT's tokenizer: images <-> a grid of codes.

The architecture and the parameter names are those of OpenAI's published encoder and decoder; `DVAEConfig()` gives
their sizes, and `dvae-tiny` is the same thing, smaller. Four groups of residual bottleneck blocks, halving the
resolution three times: one code stands for 8 x 8 pixels.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignlab.models.assemble import check_sizes
from alignlab.models.encoder import check_tokens, prepare


@dataclass(frozen=True)
class DVAEConfig:
    hidden: int = 256
    blocks_per_group: int = 2
    vocab: int = 8192
    decoder_init: int = 128
    image_size: int = 112

    def __post_init__(self) -> None:
        check_sizes(asdict(self), most={"blocks_per_group": 64, "image_size": 4096})
        if self.hidden % 4 or self.image_size % 8:
            raise ValueError(
                f"hidden must be a multiple of 4 and image_size of 8, got {self.hidden} and {self.image_size}"
            )

    @property
    def grid(self) -> int:
        return self.image_size // 8


EPS = 0.1  # pixels are squeezed into 0.1..0.9, where the logistic is not flat


def map_pixels(x: Tensor) -> Tensor:
    return (1 - 2 * EPS) * x + EPS


def unmap_pixels(x: Tensor) -> Tensor:
    return ((x - EPS) / (1 - 2 * EPS)).clamp(0, 1)


class Conv(nn.Module):
    """A same-size convolution whose parameters are called `w` and `b`, as in the published files."""

    def __init__(self, n_in: int, n_out: int, kernel: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(n_out, n_in, kernel, kernel) / (n_in * kernel**2) ** 0.5)
        self.b = nn.Parameter(torch.zeros(n_out))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.w, self.b, padding=self.w.shape[-1] // 2)


def _bottleneck(n_in: int, n_out: int, kernels: tuple[int, int, int, int]) -> nn.Sequential:
    hidden = n_out // 4
    widths = (n_in, hidden, hidden, hidden, n_out)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, kernel in enumerate(kernels, start=1):
        layers[f"relu_{i}"] = nn.ReLU()
        layers[f"conv_{i}"] = Conv(widths[i - 1], widths[i], kernel)
    return nn.Sequential(layers)


class Block(nn.Module):
    def __init__(self, n_in: int, n_out: int, gain: float, kernels: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.id_path = Conv(n_in, n_out, 1) if n_in != n_out else nn.Identity()
        self.res_path = _bottleneck(n_in, n_out, kernels)
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        return self.id_path(x) + self.gain * self.res_path(x)


def _group(
    n_in: int,
    n_out: int,
    config: DVAEConfig,
    kernels: tuple[int, int, int, int],
    after: nn.Module | None,
    after_name: str,
) -> nn.Sequential:
    gain = 1 / (4 * config.blocks_per_group) ** 2
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i in range(config.blocks_per_group):
        layers[f"block_{i + 1}"] = Block(n_in if i == 0 else n_out, n_out, gain, kernels)
    if after is not None:
        layers[after_name] = after
    return nn.Sequential(layers)


class Encoder(nn.Module):
    def __init__(self, config: DVAEConfig) -> None:
        super().__init__()
        h, kernels = config.hidden, (3, 3, 3, 1)
        widths = (h, h, 2 * h, 4 * h, 8 * h)
        layers: OrderedDict[str, nn.Module] = OrderedDict(input=Conv(3, h, 7))
        for g in range(4):
            pool = nn.MaxPool2d(2) if g < 3 else None
            layers[f"group_{g + 1}"] = _group(widths[g], widths[g + 1], config, kernels, pool, "pool")
        layers["output"] = nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=Conv(8 * h, config.vocab, 1)))
        self.blocks = nn.Sequential(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)  # [B, 3, H, W] -> [B, vocab, H/8, W/8]


class Decoder(nn.Module):
    def __init__(self, config: DVAEConfig) -> None:
        super().__init__()
        h, kernels = config.hidden, (1, 3, 3, 3)
        widths = (config.decoder_init, 8 * h, 4 * h, 2 * h, h)
        layers: OrderedDict[str, nn.Module] = OrderedDict(input=Conv(config.vocab, config.decoder_init, 1))
        for g in range(4):
            grow = nn.Upsample(scale_factor=2, mode="nearest") if g < 3 else None
            layers[f"group_{g + 1}"] = _group(widths[g], widths[g + 1], config, kernels, grow, "upsample")
        layers["output"] = nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=Conv(h, 6, 1)))
        self.blocks = nn.Sequential(layers)

    def forward(self, z: Tensor) -> Tensor:
        return self.blocks(z)  # [B, vocab, h, w] -> [B, 6, 8h, 8w]: mean and log-scale of a logit-Laplace


class DVAE(nn.Module):
    """Encoder and decoder together. Images are float [B, 3, H, W] in 0..1, codes int64 [B, H/8, W/8].

    `checkpoint` names the weights and their hash, where they were read from a folder.
    """

    def __init__(self, config: DVAEConfig) -> None:
        super().__init__()
        self.checkpoint = ""
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def logits(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in 0..1 -> [B, vocab, H/8, W/8]."""
        return self.encoder(map_pixels(images))

    def codes(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in 0..1 -> [B, H/8, W/8], the most likely code of each cell."""
        return self.logits(images).argmax(1)

    def pixels(self, weights: Tensor) -> Tensor:
        """One-hot (or soft) codes [B, vocab, h, w] -> images [B, 3, 8h, 8w] in 0..1."""
        return unmap_pixels(torch.sigmoid(self.decoder(weights)[:, :3].float()))

    def decode(self, codes: Tensor) -> Tensor:
        """Codes [B, h, w] -> images [B, 3, 8h, 8w] in 0..1."""
        one_hot = F.one_hot(codes, self.config.vocab).permute(0, 3, 1, 2)
        return self.pixels(one_hot.to(next(self.decoder.parameters()).dtype))


class DVAEEncoder:
    """A dVAE as an encoder: its one layer is what it says of each cell, a score a code, in raster order."""

    pools = ("mean",)
    num_layers = 1

    def __init__(self, name: str, checkpoint: str, model: DVAE) -> None:
        self.name, self.checkpoint, self.model = name, checkpoint, model
        self.image_size = model.config.image_size
        self.width = model.config.vocab

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images `[B, 3, H, W]` in 0..1 -> scores `[B, T, codes]` float32, raster order."""
        like = next(self.model.parameters())
        pixels = prepare(images, self.image_size, (0.0,) * 3, (1.0,) * 3, like)
        return self.model.logits(pixels).flatten(2).transpose(1, 2).float()  # [B, codes, h, w] -> [B, T, codes]

    @torch.no_grad()
    def layers(self, images: Tensor, pool: str | None = None) -> Tensor:
        """Images `[B, 3, H, W]` in 0..1 -> `[B, 1, codes]` float32, the mean over the cells."""
        if (pool or "mean") not in self.pools:
            raise ValueError(f"pool must be one of {', '.join(self.pools)}, got {pool!r}")
        return self.encode(images).mean(1, keepdim=True)

    def codes(self, tokens: Tensor) -> Tensor:
        """Tokens of `encode` `[B, T, codes]` -> the likeliest code of each cell, int64 `[B, h, w]`."""
        grid = self.model.config.grid
        check_tokens(tokens, grid**2, self.width)
        return tokens.argmax(-1).reshape(-1, grid, grid)

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens of `encode` `[B, T, codes]` -> images `[B, 3, H, W]` in 0..1."""
        like = next(self.model.parameters())
        return self.model.decode(self.codes(tokens).to(like.device))
