"""Load a vision encoder from a folder in its published layout (or a hub id): MAE, BEiT, VQGAN, ViT-like models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alignlab.models import weights
from alignlab.models.beit import BEiTEncoder
from alignlab.models.dvae import DVAE, DVAEConfig
from alignlab.models.encoder import IMAGENET_MEAN, IMAGENET_STD, Encoder
from alignlab.models.mae import MAEEncoder
from alignlab.models.vit import ViTEncoder
from alignlab.models.vqgan import VQGAN, VQGANConfig, VQGANEncoder
from alignlab.paths import shipped

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
IMAGENET: Statistics = (IMAGENET_MEAN, IMAGENET_STD)
HALF: Statistics = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; ValueError with the file's name where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path.parent} has no {path.name}; a model's folder has its configuration there") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds {type(value).__name__}, expected an object")
    return value


def _own(folder: Path, build: Callable[[dict[str, Any]], Any], device: str, dtype: str) -> Any:
    """One of alignlab's own modules: `config.json` with its sizes and `model.safetensors`."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = {k: tuple(v) if isinstance(v, list) else v for k, v in read_json(folder / "config.json").items()}
    config.pop("model_type", None)
    try:
        model = build(config)
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except (TypeError, RuntimeError, OSError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{folder} cannot be read as {read_json(folder / 'config.json').get('model_type')}: {reason}"
        ) from error
    return model.eval().requires_grad_(False).to(device, weights.torch_dtype(dtype))


def load_dvae(source: str, device: str = "cpu", dtype: str = "float32") -> DVAE:
    """A dVAE by the name of a shipped checkpoint or the folder of one."""
    folder = shipped("checkpoints", source)
    if not folder.is_dir():
        folder = Path(source)
    return _own(folder, lambda config: DVAE(DVAEConfig(**config)), device, dtype)


def _pretrained(cls: Any, source: str, dtype: str) -> Any:
    """transformers' `from_pretrained`, safely: no pickled code, no weight left at a random value."""
    model, info = cls.from_pretrained(
        source, dtype=weights.torch_dtype(dtype), output_loading_info=True, weights_only=True
    )
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"{source} lacks {len(missing)} of the model's weights, the first of them {missing[0]}")
    return model.eval().requires_grad_(False)


def _statistics(source: str, default: Statistics) -> Statistics:
    """Mean and standard deviation of the checkpoint's image processor, the family's where it has none."""
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(source)
    except (OSError, ValueError):
        return default
    return tuple(processor.image_mean), tuple(processor.image_std)


def load_vision(source: str, name: str, device: str = "cpu", dtype: str = "float32") -> Encoder:
    """Load an encoder from a local folder or a hub id ("org/name"), by the model type in its `config.json`.

    Raises ValueError for a folder that cannot be read, RuntimeError for a hub that cannot be reached.
    """
    folder = Path(source).expanduser()
    checkpoint = weights.folder_checkpoint(folder) if folder.is_dir() else None
    with weights.from_hub(source):
        return _load(str(folder) if checkpoint else source, name, checkpoint, device, dtype)


def _load(source: str, name: str, checkpoint: str | None, device: str, dtype: str) -> Encoder:
    if checkpoint and read_json(Path(source) / "config.json").get("model_type") == "vqgan":
        vqgan = _own(Path(source), lambda config: VQGAN(VQGANConfig(**config)), device, dtype)
        return VQGANEncoder(name, checkpoint, vqgan)
    with weights.quiet_transformers():
        import transformers

        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
        default = HALF if config.model_type == "beit" else IMAGENET
        mean, std = _statistics(source, default)
        if config.model_type == "vit_mae":
            model = _pretrained(transformers.ViTMAEForPreTraining, source, dtype).to(device)
        elif config.model_type == "beit":
            model = _pretrained(transformers.BeitForMaskedImageModeling, source, dtype).to(device)
        else:
            model = _pretrained(transformers.AutoModel, source, dtype).to(device)
    checkpoint = checkpoint or f"{source}@{config._commit_hash}"
    if config.model_type == "vit_mae":
        return MAEEncoder(name, checkpoint, model, mean, std)
    if config.model_type == "beit":
        tokenizer = config.to_dict().get("tokenizer_checkpoint")
        dvae = load_dvae(tokenizer, device, dtype) if tokenizer else None
        return BEiTEncoder(name, checkpoint, model, dvae, mean, std)
    return ViTEncoder(name, checkpoint, model, mean, std)
