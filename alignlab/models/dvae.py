"""The discrete VAE of DALL-E (Ramesh et al. 2021), BEiT's tokenizer: images <-> a grid of codes.

The architecture and the parameter names are those of OpenAI's published encoder and decoder; `DVAEConfig()` gives
their sizes, and `dvae-tiny` is the same thing, smaller. Four groups of residual bottleneck blocks, halving the
resolution three times: one code stands for 8 x 8 pixels.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class DVAEConfig:
    hidden: int = 256
    blocks_per_group: int = 2
    vocab: int = 8192
    decoder_init: int = 128
    image_size: int = 112

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
    """Encoder and decoder together. Images are float [B, 3, H, W] in 0..1, codes int64 [B, H/8, W/8]."""

    def __init__(self, config: DVAEConfig) -> None:
        super().__init__()
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
