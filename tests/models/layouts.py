"""Small random checkpoints in exactly the layouts that are published, each with the model that they were made from."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn


@contextmanager
def package(*classes: type, within: str) -> Iterator[None]:
    """`classes` are those of the module `within` while this lasts, so that pickles name them there."""
    names = [".".join(within.split(".")[: i + 1]) for i in range(within.count(".") + 1)]
    before = {name: sys.modules.get(name) for name in names}
    for name in names:
        sys.modules.setdefault(name, ModuleType(name))
    for c in classes:
        c.__module__ = within
        setattr(sys.modules[within], c.__qualname__, c)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]


# openai/DALL-E: modules whose parameters are called w and b.


class Conv2d(nn.Module):
    def __init__(self, n_in: int, n_out: int, kw: int) -> None:
        super().__init__()
        self.n_in, self.n_out, self.kw, self.use_float16, self.device = n_in, n_out, kw, True, torch.device("cpu")
        self.w = nn.Parameter(torch.randn(n_out, n_in, kw, kw) / (n_in * kw**2) ** 0.5)
        self.b = nn.Parameter(0.1 * torch.randn(n_out))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.w, self.b, padding=(self.kw - 1) // 2)


class EncoderBlock(nn.Module):
    kernels = (3, 3, 3, 1)

    def __init__(self, n_in: int, n_out: int, n_layers: int) -> None:
        super().__init__()
        self.post_gain = 1 / n_layers**2
        self.id_path = Conv2d(n_in, n_out, 1) if n_in != n_out else nn.Identity()
        self.res_path = nn.Sequential()
        for i, kernel in enumerate(self.kernels, start=1):
            self.res_path.add_module(f"relu_{i}", nn.ReLU())
            width = n_out // 4
            ends = (n_in if i == 1 else width, n_out if i == 4 else width)
            self.res_path.add_module(f"conv_{i}", Conv2d(*ends, kernel))

    def forward(self, x: Tensor) -> Tensor:
        return self.id_path(x) + self.post_gain * self.res_path(x)


class DecoderBlock(EncoderBlock):
    kernels = (1, 3, 3, 3)


class Encoder(nn.Module):
    def __init__(self, n_hid: int, n_blk_per_group: int, vocab_size: int) -> None:
        super().__init__()
        self.n_hid, self.vocab_size, self.blocks = n_hid, vocab_size, nn.Sequential()
        self.blocks.add_module("input", Conv2d(3, n_hid, 7))
        widths = (n_hid, n_hid, 2 * n_hid, 4 * n_hid, 8 * n_hid)
        for g in range(4):
            group = _group(EncoderBlock, widths[g : g + 2], n_blk_per_group)
            if g < 3:
                group.add_module("pool", nn.MaxPool2d(kernel_size=2))
            self.blocks.add_module(f"group_{g + 1}", group)
        self.blocks.add_module("output", nn.Sequential())
        self.blocks.output.add_module("relu", nn.ReLU())
        self.blocks.output.add_module("conv", Conv2d(8 * n_hid, vocab_size, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class Decoder(nn.Module):
    def __init__(self, n_init: int, n_hid: int, n_blk_per_group: int, vocab_size: int) -> None:
        super().__init__()
        self.n_hid, self.vocab_size, self.blocks = n_hid, vocab_size, nn.Sequential()
        self.blocks.add_module("input", Conv2d(vocab_size, n_init, 1))
        widths = (n_init, 8 * n_hid, 4 * n_hid, 2 * n_hid, n_hid)
        for g in range(4):
            group = _group(DecoderBlock, widths[g : g + 2], n_blk_per_group)
            if g < 3:
                group.add_module("upsample", nn.Upsample(scale_factor=2, mode="nearest"))
            self.blocks.add_module(f"group_{g + 1}", group)
        self.blocks.add_module("output", nn.Sequential())
        self.blocks.output.add_module("relu", nn.ReLU())
        self.blocks.output.add_module("conv", Conv2d(n_hid, 6, 1))

    def forward(self, z: Tensor) -> Tensor:
        return self.blocks(z)


def _group(block: type, ends: tuple[int, ...], count: int) -> nn.Sequential:
    group = nn.Sequential()
    for i in range(count):
        group.add_module(f"block_{i + 1}", block(ends[0] if i == 0 else ends[1], ends[1], 4 * count))
    return group


def write_dalle(folder: Path, *, zipped: bool = True, codes: int = 40) -> tuple[Encoder, Decoder]:
    """`encoder.pkl` and `decoder.pkl` with the class names of openai/DALL-E."""
    torch.manual_seed(0)
    encoder, decoder = Encoder(8, 2, codes), Decoder(12, 8, 2, codes)
    with (
        package(Encoder, EncoderBlock, within="dall_e.encoder"),
        package(Decoder, DecoderBlock, within="dall_e.decoder"),
        package(Conv2d, within="dall_e.utils"),
    ):
        torch.save(encoder, folder / "encoder.pkl", _use_new_zipfile_serialization=zipped)
        torch.save(decoder, folder / "decoder.pkl", _use_new_zipfile_serialization=zipped)
    return encoder.eval(), decoder.eval()


# microsoft/unilm: timm's BEiT has the same names, but for the mask token and the head of masked image modelling.


def beit() -> tuple[nn.Module, dict[str, Tensor]]:
    """timm's BEiT with a shared position bias, 32 px in patches of 8, and unilm's state dict of it with 40 codes."""
    from timm.models.beit import Beit

    torch.manual_seed(0)
    sizes = {"embed_dim": 24, "depth": 3, "num_heads": 2, "mlp_ratio": 2}
    positions = {"use_abs_pos_emb": False, "use_rel_pos_bias": False, "use_shared_rel_pos_bias": True}
    model = Beit(img_size=32, patch_size=8, init_values=0.1, num_classes=0, global_pool="", **sizes, **positions).eval()
    for parameter in model.parameters():  # relative positions and biases start at zero: make them count
        parameter.data += 0.1 * torch.randn_like(parameter)
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("fc_norm") and "k_bias" not in k}
    state["mask_token"] = torch.randn(1, 1, 24)
    state["lm_head.weight"], state["lm_head.bias"] = torch.randn(40, 24), torch.randn(40)
    state.setdefault("rel_pos_bias.relative_position_index", torch.zeros(17, 17, dtype=torch.long))
    return model, state


# CompVis/taming-transformers: a Lightning checkpoint and a YAML. diffusers' VQModel is the same network.

DDCONFIG: dict[str, Any] = {
    "double_z": False,
    "z_channels": 6,
    "resolution": 32,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [16],
    "dropout": 0.0,
}


def vqgan_yaml(gumbel: bool = False, **changes: Any) -> str:
    """The configuration of a small VQGAN; `changes` go into ddconfig."""
    target = f"taming.models.vqgan.{'GumbelVQ' if gumbel else 'VQModel'}"
    loss = {"target": "taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator", "params": {"disc_start": 1}}
    sizes = {"embed_dim": 6, "n_embed": 50, "ddconfig": {**DDCONFIG, **changes}, "lossconfig": loss}
    return yaml.safe_dump({"model": {"base_learning_rate": 4.5e-6, "target": target, "params": sizes}})


def vqgan() -> tuple[Any, dict[str, Tensor]]:
    """diffusers' VQModel of the sizes of `vqgan_yaml`, and taming's state dict of it."""
    from diffusers import VQModel

    torch.manual_seed(0)
    model = VQModel(
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(32, 64),
        layers_per_block=1,
        latent_channels=6,
        num_vq_embeddings=50,
        vq_embed_dim=6,
    ).eval()
    model.quantize.embedding.weight.data.normal_()
    return model, {_taming_name(k): _as_convolution(k, v) for k, v in model.state_dict().items()}


def _as_convolution(name: str, x: Tensor) -> Tensor:
    return x[:, :, None, None] if "attentions" in name and x.ndim == 2 else x


RENAMES = (  # from diffusers' names to taming's, which counts the decoder's levels up from the finest
    (r"down_blocks\.", "down."),
    (r"up_blocks\.0", "up.1"),
    (r"up_blocks\.1", "up.0"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0", "mid.attn_1"),
    (r"resnets", "block"),
    (r"attentions", "attn"),
    (r"(down|up)samplers\.0", r"\1sample"),
    (r"conv_norm_out", "norm_out"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"group_norm", "norm"),
    (r"to_out\.0", "proj_out"),
    (r"to_([qkv])", r"\1"),
)


def _taming_name(name: str) -> str:
    for pattern, to in RENAMES:
        name = re.sub(pattern, to, name)
    return name
