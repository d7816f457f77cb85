"""VQGAN as taming-transformers publishes it: a Lightning checkpoint (`last.ckpt`, `model.ckpt`) and a YAML beside it.

Of the checkpoint only the tensors of the autoencoder are read; those of its training loss (`loss.*`: LPIPS and the
discriminator) and of a moving average (`model_ema.*`) are left, and so is what Lightning put there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alignlab.models.assemble import Stored, from_checkpoint
from alignlab.models.checkpoint_file import open_checkpoint
from alignlab.models.vqgan import VQGANConfig

LEFT = ("loss.", "model_ema.")
PLAIN, GUMBEL = ("VQModel", "VQModelInterface"), ("GumbelVQ",)
FIXED = {"double_z": False, "in_channels": 3, "out_ch": 3, "resamp_with_conv": True, "attn_type": "vanilla"}
# The published ones, whose architecture `@random` needs without their files.
PUBLISHED = {
    "vqgan-f16-16384": VQGANConfig(),
    "vqgan-f16-1024": VQGANConfig(codes=1024),
    "vqgan-gumbel-f8": VQGANConfig(
        channel_multipliers=(1, 1, 2, 4), attention_resolutions=(32,), codes=8192, gumbel=True
    ),
}
LONGEST = 1 << 16  # bytes of YAML; the published ones have 2,000


def find(path: Path) -> tuple[Path, Path]:
    """The `.ckpt` and its `.yaml` for a folder that holds one of each, at any depth, or for a `.ckpt`.

    A `.ckpt`'s YAML has its name, or is the only one beside it or in `../configs`. Raises ValueError that says what was
    found instead.
    """
    if path.is_dir():
        return _only(path, ".ckpt"), _only(path, ".yaml", ".yml")
    same = [path.with_suffix(suffix) for suffix in (".yaml", ".yml")]
    for candidates in (same, _in(path.parent), _in(path.parent.parent / "configs")):
        if len(there := [p for p in candidates if p.is_file()]) == 1:
            return path, there[0]
    raise ValueError(f"{path} needs its configuration, one .yaml beside it, found {len(_in(path.parent))}")


def _in(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*.y*ml") if p.is_file())


def _only(folder: Path, *suffixes: str) -> Path:
    found = sorted(p for p in folder.rglob("*") if p.suffix in suffixes and p.is_file())
    if len(found) != 1:
        listing = f": {', '.join(str(p.relative_to(folder)) for p in found[:5])}" if found else ""
        raise ValueError(
            f"{folder} holds {len(found)} {suffixes[0]} files{listing}; a VQGAN's has one; or give the .ckpt"
        )
    return found[0]


def read_config(path: Path) -> VQGANConfig:
    """The sizes of a VQGAN from its YAML. ValueError for a file that is none, or asks for what alignlab does not have."""
    found = _yaml(path).get("model")
    parameters = found.get("params") if isinstance(found, dict) else None
    sizes = parameters.get("ddconfig") if isinstance(parameters, dict) else None
    if not isinstance(found, dict) or not isinstance(parameters, dict) or not isinstance(sizes, dict):
        raise ValueError(f"{path} is no VQGAN's configuration: there is no model.params.ddconfig in it")
    kind = str(found.get("target", PLAIN[0]))[:200].rpartition(".")[2]
    if kind not in PLAIN + GUMBEL:
        raise ValueError(f"{path} is of a {kind}; alignlab reads {', '.join(PLAIN + GUMBEL)}")
    for key, value in FIXED.items():
        if sizes.get(key, value) != value:
            raise ValueError(f"{path}: {key} must be {value}, which it is not; alignlab's VQGAN has no other")
    gumbel = kind in GUMBEL
    try:
        if gumbel and parameters["embed_dim"] != sizes["z_channels"]:
            raise ValueError("with Gumbel quantisation embed_dim and z_channels must be equal")
        return VQGANConfig(
            channels=sizes["ch"],
            channel_multipliers=tuple(sizes["ch_mult"]),
            residual_blocks=sizes["num_res_blocks"],
            attention_resolutions=tuple(sizes["attn_resolutions"]),
            latent_channels=sizes["z_channels"],
            embedding=parameters["embed_dim"],
            codes=parameters["n_embed"],
            image_size=sizes["resolution"],
            gumbel=gumbel,
        )
    except KeyError as error:
        raise ValueError(f"{path} does not say {error}") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _yaml(path: Path) -> dict[str, Any]:
    """A mapping from a YAML file that makes nothing but plain values, and no more of them than are written in it."""
    import yaml

    class Plain(yaml.SafeLoader):
        def flatten_mapping(self, node: Any) -> None:
            # Merging copies; nested merges of aliases grow without bound. An alias alone refers to what is there.
            if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
                raise yaml.YAMLError("merge keys (<<) are not read")

    if path.stat().st_size > LONGEST:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, too many for a configuration")
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), Loader=Plain)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = getattr(error, "problem", None) or (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} cannot be read as YAML: {reason}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds {type(found).__name__}, expected a mapping")
    return found


def read_weights(path: Path, *, convert: bool = False) -> tuple[dict[str, Stored], tuple[str, ...]]:
    """The autoencoder's tensors in a checkpoint, none read yet, and the foreign names in it; as `open_checkpoint`."""
    checkpoint = open_checkpoint(path, convert=convert)
    value = checkpoint.value
    state = value["state_dict"] if isinstance(value, dict) and "state_dict" in value else value
    if isinstance(state, dict):
        state = {name: tensor for name, tensor in state.items() if not str(name)[:99].startswith(LEFT)}
    return from_checkpoint(checkpoint, state), checkpoint.foreign
