"""BEiT as its authors publish it: `beit_large_patch16_224_pt22k.pth`, a state dict under the key "model".

The sizes are read off the tensors; the names are those of `VisionTransformerForMaskedImageModeling` in microsoft/unilm,
and become those under which transformers' hub keeps the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from alignlab.models.assemble import Stored, from_checkpoint
from alignlab.models.checkpoint_file import open_checkpoint

INDEX = "rel_pos_bias.relative_position_index"  # computed, not learnt
TABLE = "rel_pos_bias.relative_position_bias_table"
EPS = 1e-6  # of every LayerNorm in unilm; transformers' default for BEiT is 1e-12


@dataclass(frozen=True)
class Sizes:
    width: int
    depth: int
    heads: int
    hidden: int
    patch: int
    grid: int
    codes: int
    absolute: bool  # learnt absolute positions beside the relative ones


def read(path: Path, *, convert: bool = False) -> tuple[Sizes, dict[str, Stored], tuple[str, ...]]:
    """Sizes and tensors of a `.pth`, none read yet, and the foreign names in it.

    Raises ValueError for what is no BEiT; `convert` as for `open_checkpoint`.
    """
    checkpoint = open_checkpoint(path, convert=convert)
    state = checkpoint.value
    for key in ("model", "module"):
        if isinstance(state, dict) and key in state:
            state = state[key]
    stored = from_checkpoint(checkpoint, state)
    if not is_beit(stored):
        first = ", ".join(sorted(stored)[:3])
        raise ValueError(
            f"{path} is no BEiT of unilm, the only .pth that alignlab reads; its first tensors are {first}"
        )
    return sizes(stored, str(path)), stored, checkpoint.foreign


def is_beit(stored: Mapping[str, Stored]) -> bool:
    return {"mask_token", "blocks.0.attn.q_bias", "patch_embed.proj.weight"} <= stored.keys()


def sizes(stored: Mapping[str, Stored], where: str) -> Sizes:
    """The sizes that the tensors have. ValueError where they contradict each other or a tensor is missing or unknown."""
    if "lm_head.weight" not in stored or TABLE not in stored:
        raise ValueError(
            f"{where} has no {'lm_head.weight' if TABLE in stored else TABLE}: it is no BEiT of masked image modelling "
            "(...pt22k.pth); the fine-tuned ones are read as timm:NAME"
        )
    try:
        distances, heads = stored[TABLE].shape  # (2 grid - 1)^2 and 3 for [CLS]
        found = Sizes(
            width=stored["mask_token"].shape[-1],
            depth=len({name.split(".")[1] for name in stored if name.startswith("blocks.")}),
            heads=heads,
            hidden=stored["blocks.0.mlp.fc1.weight"].shape[0],
            patch=stored["patch_embed.proj.weight"].shape[-1],
            grid=(math.isqrt(max(distances - 3, 0)) + 1) // 2,
            codes=stored["lm_head.weight"].shape[0],
            absolute="pos_embed" in stored,
        )
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"{where} is no BEiT of unilm: {error} is missing or misshapen") from error
    expected = layout(found)
    if missing := sorted(expected.keys() - stored.keys()):
        raise ValueError(f"{where} lacks {len(missing)} of BEiT's weights, the first of them {missing[0]}")
    if extra := sorted(stored.keys() - expected.keys() - {INDEX}):
        raise ValueError(f"{where} holds {len(extra)} tensors that BEiT has no place for, the first of them {extra[0]}")
    for name, shape in expected.items():
        if stored[name].shape != shape:
            raise ValueError(f"{where}: {name} has shape {stored[name].shape}, the other tensors ask for {shape}")
    if found.width % found.heads:
        raise ValueError(f"{where}: its width {found.width} is no multiple of its {found.heads} heads")
    return found


def layout(s: Sizes) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published file."""
    d = s.width
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, d),
        "mask_token": (1, 1, d),
        "patch_embed.proj.weight": (d, 3, s.patch, s.patch),
        "patch_embed.proj.bias": (d,),
        TABLE: ((2 * s.grid - 1) ** 2 + 3, s.heads),
        "norm.weight": (d,),
        "norm.bias": (d,),
        "lm_head.weight": (s.codes, d),
        "lm_head.bias": (s.codes,),
    }
    if s.absolute:
        shapes["pos_embed"] = (1, s.grid**2 + 1, d)
    for n in range(s.depth):
        block: dict[str, tuple[int, ...]] = {
            "attn.qkv.weight": (3 * d, d),
            "attn.q_bias": (d,),
            "attn.v_bias": (d,),
            "attn.proj.weight": (d, d),
            "attn.proj.bias": (d,),
            "gamma_1": (d,),
            "gamma_2": (d,),
            "mlp.fc1.weight": (s.hidden, d),
            "mlp.fc1.bias": (s.hidden,),
            "mlp.fc2.weight": (d, s.hidden),
            "mlp.fc2.bias": (d,),
        }
        block |= {f"{norm}.{kind}": (d,) for norm in ("norm1", "norm2") for kind in ("weight", "bias")}
        shapes |= {f"blocks.{n}.{name}": shape for name, shape in block.items()}
    return shapes


OUTER = {
    "cls_token": "beit.embeddings.cls_token",
    "mask_token": "beit.embeddings.mask_token",
    "pos_embed": "beit.embeddings.position_embeddings",
    "patch_embed.proj": "beit.embeddings.patch_embeddings.projection",
    TABLE: "beit.encoder.relative_position_bias.relative_position_bias_table",
    "norm": "layernorm",
    "lm_head": "lm_head",
}
INNER = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "attn.q_bias": "attention.attention.query.bias",
    "attn.v_bias": "attention.attention.value.bias",
    "gamma_1": "lambda_1",
    "gamma_2": "lambda_2",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


def state(stored: Mapping[str, Stored]) -> dict[str, Tensor]:
    """The tensors, read, under the names of transformers' hub checkpoints (`microsoft/beit-large-patch16-224-pt22k`)."""
    out: dict[str, Tensor] = {}
    for name in stored:
        if name == INDEX:
            continue
        tensor = stored[name].read()
        if not name.startswith("blocks."):
            out[_renamed(name, OUTER)] = tensor
            continue
        _, block, inner = name.split(".", 2)
        prefix = f"beit.encoder.layer.{block}"
        if inner == "attn.qkv.weight":
            for part, weight in zip(("query", "key", "value"), tensor.chunk(3), strict=True):  # 3 of [D, D]
                out[f"{prefix}.attention.attention.{part}.weight"] = weight.contiguous()
        else:
            out[f"{prefix}.{_renamed(inner, INNER)}"] = tensor
    return out


def _renamed(name: str, names: dict[str, str]) -> str:
    if name in names:
        return names[name]
    stem, kind = name.rsplit(".", 1)
    return f"{names[stem]}.{kind}"


def config(s: Sizes) -> Any:
    """The configuration of transformers' `BeitForMaskedImageModeling` for these sizes."""
    from transformers import BeitConfig

    return BeitConfig(
        image_size=s.grid * s.patch,
        patch_size=s.patch,
        hidden_size=s.width,
        num_hidden_layers=s.depth,
        num_attention_heads=s.heads,
        intermediate_size=s.hidden,
        vocab_size=s.codes,
        layer_norm_eps=EPS,
        use_mask_token=True,
        use_absolute_position_embeddings=s.absolute,
        use_shared_relative_position_bias=True,
        use_relative_position_bias=False,
        architectures=["BeitForMaskedImageModeling"],
    )
