"""Load a vision encoder from its published layout, a folder, a file or a hub id: MAE, BEiT, VQGAN, dVAE, PCA, ViT-like models.

| given | read as |
|---|---|
| a folder with `config.json`, or a hub id | transformers' model of that type, or alignlab's VQGAN, dVAE or PCA |
| a `.ckpt`, or a folder with one `.ckpt` and one `.yaml` somewhere in it | taming-transformers' VQGAN |
| a `.pth` | BEiT of microsoft/unilm |
| a folder with `encoder.pkl` and `decoder.pkl`, or one of the two | OpenAI's dVAE |

Pickles are read by `checkpoint_file`, which runs nothing of them. No memory is taken for a model before its configuration fits
the tensors in its file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from alignlab import paths
from alignlab.models import beit_pth, dalle, taming, weights
from alignlab.models.assemble import assemble, check_affordable, check_counts, check_loaded, fresh, from_safetensors
from alignlab.models.beit import BEiTEncoder
from alignlab.models.dvae import DVAE, DVAEConfig, DVAEEncoder
from alignlab.models.encoder import IMAGENET_MEAN, IMAGENET_STD, Encoder, sha256_state
from alignlab.models.mae import MAEEncoder
from alignlab.models.pca import PCA, PCAConfig, PCAEncoder
from alignlab.models.vit import ViTEncoder
from alignlab.models.vqgan import VQGAN, VQGANConfig, VQGANEncoder
from alignlab.paths import shipped

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
IMAGENET: Statistics = (IMAGENET_MEAN, IMAGENET_STD)
HALF: Statistics = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

DALLE = "dall-e"  # the name of OpenAI's dVAE, and of its folder in the cache
FILES = (".ckpt", ".pth", ".pkl")  # of encoders that are one file
# What files of older versions hold beside the weights; the model computes these itself.
COMPUTED = ("relative_position_index", "position_ids")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; ValueError with the file's name where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path.parent} has no {path.name}; a model's folder has its configuration there") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds {type(value).__name__}, expected an object")
    return value


def set_position_codes(model: Any) -> None:
    """Give a new `ViTMAEForPreTraining` its two fixed sine-cosine position codes.

    transformers 5.23 leaves both at zero. Without them every hidden patch gets the same prediction, and training stops
    at the mean colour of what is visible.
    """
    from timm.layers import build_sincos2d_pos_embed

    for positions in (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed):
        grid = math.isqrt(positions.shape[1] - 1)
        positions.data[0, 1:] = build_sincos2d_pos_embed([grid, grid], dim=positions.shape[-1])


# alignlab's own modules by the model type in their config.json, with the encoder around them.
OWN: dict[str, tuple[Callable[[dict[str, Any]], Any], Callable[[str, str, Any], Encoder]]] = {
    "vqgan": (lambda config: VQGAN(VQGANConfig(**config)), VQGANEncoder),
    "dvae": (lambda config: DVAE(DVAEConfig(**config)), DVAEEncoder),
    "pca": (lambda config: PCA(PCAConfig(**config)), PCAEncoder),
}


def _own(folder: Path, kind: str, random: bool) -> Any:
    """A module of alignlab: `config.json` with its sizes and `model.safetensors`, which a random one does not need."""
    config = {k: tuple(v) if isinstance(v, list) else v for k, v in read_json(folder / "config.json").items()}
    config.pop("model_type", None)
    build = partial(OWN[kind][0], config)
    where = f"{folder} ({kind})"
    return fresh(build, where) if random else assemble(build, from_safetensors(folder / "model.safetensors"), where)


def load_dvae(source: str, device: str = "cpu", dtype: str = "float32") -> DVAE:
    """A dVAE by the name of a shipped checkpoint, "dall-e", or the folder of one, converted or as published.

    "dall-e" is read from the cache, `weights/dall-e`. Raises ValueError where it is not there.
    """
    folder, known = shipped("checkpoints", source), source == DALLE
    if known:
        folder = paths.home() / "weights" / DALLE
    elif not folder.is_dir():
        folder = Path(source).expanduser()
    if (folder / "config.json").is_file():
        model = _own(folder, "dvae", random=False)
        model.checkpoint = weights.folder_checkpoint(folder)
    elif (folder / dalle.FILES[0]).is_file():
        model = _dalle(folder, random=False)
        model.checkpoint = _files_checkpoint(folder.resolve().name, [folder / file for file in dalle.FILES])
    elif known:
        raise ValueError(f"OpenAI's dVAE is not in {folder}; fetch it with: alignlab models fetch {DALLE}")
    else:
        raise ValueError(
            f"{source} is no dVAE; give dvae-tiny, {DALLE}, or a folder with config.json or {dalle.FILES[0]}"
        )
    return model.to(device, weights.torch_dtype(dtype))


def _dalle(folder: Path, random: bool) -> DVAE:
    config, stored, _ = dalle.read(folder)
    build = partial(DVAE, config)
    return fresh(build, str(folder)) if random else assemble(build, stored, str(folder))


def _pretrained(cls: Any, source: str | None, name: str, dtype: str, *, whole: bool = True, **given: Any) -> Any:
    """transformers' `from_pretrained`, safely: no pickled code, no weight left at a random value.

    With `whole` the file must hold nothing beside the model either; without it a classifier's head may be left out.
    """
    model, info = cls.from_pretrained(
        source,
        dtype=weights.torch_dtype(dtype),
        output_loading_info=True,
        weights_only=True,
        trust_remote_code=False,
        ignore_mismatched_sizes=True,  # they are refused below, by name
        **given,
    )
    check_loaded(info, name, lambda key: _is_read(model, key))
    if whole and (extra := sorted(key for key in info["unexpected_keys"] if not key.endswith(COMPUTED))):
        raise ValueError(
            f"{name} holds {len(extra)} tensors that the model has no place for, the first of them {extra[0]}"
        )
    return model.eval().requires_grad_(False)


def _is_read(model: Any, key: str) -> bool:
    """Whether a weight decides any feature: a text tower does not, nor does what pools the tokens after the last layer."""
    tower = "vision_model." if hasattr(model, "vision_model") else ""
    return key.startswith(tower) and not key.removeprefix(tower).startswith(("pooler.", "head."))


def _statistics(source: str, default: Statistics) -> Statistics:
    """Mean and standard deviation of the checkpoint's image processor, the family's where it has none that alignlab may read."""
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError):  # none there, or one that would run the repository's own code
        return default
    return tuple(processor.image_mean), tuple(processor.image_std)


def load_vision(
    source: str, name: str, device: str = "cpu", dtype: str = "float32", *, random: bool = False
) -> Encoder:
    """Load an encoder from a local folder or file, or a hub id ("org/name").

    With `random` it has the same architecture and fresh weights from a fixed seed; of the source only what gives its
    sizes is needed: `config.json`, the YAML of a VQGAN, or the file of a BEiT or dVAE, whose numbers are not read.
    Raises ValueError for a source that cannot be read, RuntimeError for a hub that cannot be reached.
    """
    path = Path(source).expanduser()
    weights.torch_dtype(dtype)
    name = f"{name}@random" if random else name
    local = _local(path, name, dtype, random) if path.exists() else None
    if local is not None:
        encoder = local
    else:
        folder = path if path.is_dir() else None
        checkpoint = weights.folder_checkpoint(folder) if folder and not random else None
        with weights.from_hub(source):
            encoder = _of_transformers(str(folder or source), name, checkpoint, dtype, random)
    if random:
        return _placed_random(encoder, device, dtype)
    _put(encoder, device, dtype)
    return encoder


def _put(encoder: Encoder, device: str, dtype: str) -> None:
    """Where it is to be, in the dtype that it is to run in; PCA in float32, as half of its digits are not its inverse."""
    model: Any = encoder
    model.model.to(device, weights.torch_dtype("float32" if isinstance(encoder, PCAEncoder) else dtype))


def random_vqgan(name: str, device: str = "cpu", dtype: str = "float32") -> Encoder:
    """A published VQGAN (a name of `taming.PUBLISHED`) with fresh weights from a fixed seed; nothing is downloaded."""
    model = fresh(partial(VQGAN, taming.PUBLISHED[name]), name)
    return _placed_random(VQGANEncoder(f"{name}@random", "", model), device, dtype)


def _placed_random(encoder: Encoder, device: str, dtype: str) -> Encoder:
    """Named by its weights, which are made in float32, and put where it is to be."""
    model: Any = encoder
    model.checkpoint = f"{model.name}@sha256:{sha256_state(model.model.state_dict())}"
    if isinstance(encoder, MAEEncoder):
        encoder.decoder_checkpoint = encoder.checkpoint
    _put(encoder, device, dtype)
    return encoder


def _local(path: Path, name: str, dtype: str, random: bool) -> Encoder | None:
    """The encoder of a file or folder that is not transformers'."""
    if path.is_dir() and (path / "config.json").is_file():
        kind = str(read_json(path / "config.json").get("model_type"))
        if kind not in OWN:
            return None
        checkpoint = "" if random else weights.folder_checkpoint(path)
        return OWN[kind][1](name, checkpoint, _own(path, kind, random))
    if path.suffix == ".pth" and path.is_file():
        return _beit(path, name, dtype, random)
    if (path.parent if path.suffix == ".pkl" else path).joinpath(dalle.FILES[0]).is_file():
        folder = path if path.is_dir() else path.parent
        return DVAEEncoder(name, _files_checkpoint(name, [folder / f for f in dalle.FILES]), _dalle(folder, random))
    if path.suffix == ".ckpt" or (path.is_dir() and any(path.rglob("*.ckpt"))):
        return _vqgan(path, name, random)
    if path.is_dir():
        return None
    raise ValueError(f"{path} is no encoder that alignlab reads; a file must end in {', '.join(FILES)}")


def _files_checkpoint(name: str, files: list[Path]) -> str:
    if missing := [file for file in files if not file.is_file()]:
        raise ValueError(f"{missing[0].parent} has no {missing[0].name}")
    return f"{name}@sha256:{weights.sha256_files(files)}"


def _vqgan(path: Path, name: str, random: bool) -> Encoder:
    ckpt, yaml = taming.find(path)
    build = partial(VQGAN, taming.read_config(yaml))
    if random:
        return VQGANEncoder(name, "", fresh(build, str(yaml)))
    stored, _ = taming.read_weights(ckpt)
    return VQGANEncoder(name, _files_checkpoint(name, [ckpt, yaml]), assemble(build, stored, str(ckpt)))


def _beit(path: Path, name: str, dtype: str, random: bool) -> Encoder:
    from transformers import BeitForMaskedImageModeling

    sizes, stored, _ = beit_pth.read(path)
    config = beit_pth.config(sizes)
    with weights.quiet_transformers():
        if random:
            model = fresh(partial(BeitForMaskedImageModeling, config), str(path))
        else:
            state = beit_pth.state(stored)
            model = _pretrained(BeitForMaskedImageModeling, None, str(path), dtype, config=config, state_dict=state)
    checkpoint = "" if random else _files_checkpoint(name, [path])
    return BEiTEncoder(name, checkpoint, model, DALLE, *HALF)


def _of_transformers(source: str, name: str, checkpoint: str | None, dtype: str, random: bool) -> Encoder:
    """A model of transformers' from a folder (whose `checkpoint` is known unless it is random) or the hub."""
    with weights.quiet_transformers():
        import transformers

        check_counts(transformers.PretrainedConfig.get_config_dict(source)[0], source)
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
        known: dict[str, Any] = {
            "vit_mae": transformers.ViTMAEForPreTraining,
            "beit": transformers.BeitForMaskedImageModeling,
        }
        cls = known.get(config.model_type, transformers.AutoModel)

        def build() -> Any:
            return cls(config) if config.model_type in known else cls.from_config(config, trust_remote_code=False)

        mean, std = _statistics(source, HALF if config.model_type == "beit" else IMAGENET)
        if random:
            model = fresh(build, source)
            if config.model_type == "vit_mae":
                set_position_codes(model)
        else:
            if checkpoint:
                check_affordable(build, Path(source))
            model = _pretrained(cls, source, source, dtype, whole=config.model_type in known)
    if checkpoint is None:
        checkpoint = "" if random else f"{source}@{config._commit_hash}"
    if config.model_type == "vit_mae":
        return MAEEncoder(name, checkpoint, model, mean, std)
    if config.model_type == "beit":
        tokenizer = config.to_dict().get("tokenizer_checkpoint") or DALLE
        return BEiTEncoder(name, checkpoint, model, str(tokenizer), mean, std)
    return ViTEncoder(name, checkpoint, model, mean, std)
