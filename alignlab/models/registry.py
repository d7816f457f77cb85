"""Names of models: what each stands for, and how to load it only when its features are not at hand already."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignlab.models import weights
from alignlab.models.catalogue import BY_NAME, CATALOGUE
from alignlab.models.encoder import refuse_blocks
from alignlab.models.variant import parse
from alignlab.paths import shipped

# Short names stand for the embedded laboratory's checkpoints.
EMBEDDED = {"mae": "mae-tiny", "beit": "beit-tiny", "vqgan": "vqgan-tiny", "pca": "pca-tiny"}
ALL = ("mae", "beit", "vqgan")  # what learnt to see; PCA is a control
SHIPPED = tuple(EMBEDDED.values())
TUNED = {"mae": "mae-tiny-r"}  # the decoder that a name comes with where it is not the checkpoint's own
SHIPPED_POOLS = {
    "mae-tiny": ("cls", "mean"),
    "beit-tiny": ("cls", "mean"),
    "vqgan-tiny": ("concat", "mean"),
    "pca-tiny": ("concat", "mean"),
}
EFFICIENTNETS = ("efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2")


@dataclass(frozen=True)
class Handle:
    """A model that may not be loaded yet: enough to know whether its features are in the store."""

    name: str
    checkpoint: str
    pools: tuple[str, ...]
    dtype: str
    reads: str  # "image" or "text"
    load: Callable[[], Any]


def encoder_names() -> tuple[str, ...]:
    """Names that stand for one encoder each, without "timm:" and hub ids."""
    downloaded = (known.name for known in CATALOGUE if known.urls and known.kind == "encoder")
    return (*EMBEDDED, *SHIPPED, *EFFICIENTNETS, *downloaded)


def expand(names: Sequence[str]) -> list[str]:
    """Names of encoders with groups in their members' place, each once: "all" is mae, beit and vqgan, "prh" the
    17 vision models of the Platonic Representation Hypothesis, from timm.
    """
    from alignlab.models.timm_encoder import PRH_VISION

    groups = {"all": ALL, "prh": tuple(f"timm:{name.removeprefix('timm:')}" for name in PRH_VISION)}
    return list(dict.fromkeys(member for name in names for member in groups.get(name, (name,))))


def _check_named(name: str) -> None:
    if not name.strip():
        raise ValueError(f"a model needs a name, got {name!r}")


def _loaded(model: Any, dtype: str) -> Handle:
    return Handle(model.name, model.checkpoint, tuple(model.pools), dtype, "image", lambda: model)


def find_encoder(name: str, *, device: str = "cpu", dtype: str = "float32") -> Handle:
    """The encoder of a name, a local folder or file, a hub id ("org/name"), "timm:NAME" or "open_clip:ARCH/TAG".

    What `models.vision` lists can be read from folders and files. With "@random" at the end it is the same architecture
    with fresh weights from a fixed seed, and no trained ones are needed.
    Those whose identity is known without their weights are loaded by `.load()` only. Raises ValueError for an unknown
    name (with the nearest known ones) or an unreadable folder, RuntimeError where weights cannot be fetched.
    """
    _check_named(name)
    variant = parse(name)
    refuse_blocks(name, variant)
    if variant.random and (variant.base in EMBEDDED or variant.base in SHIPPED):
        from alignlab.models.vision import load_vision

        folder = shipped("checkpoints", EMBEDDED.get(variant.base, variant.base))
        return _loaded(load_vision(str(folder), variant.base, device, dtype, random=True), dtype)
    if name in EMBEDDED or name in SHIPPED:
        from alignlab.models.vision import load_vision

        known = EMBEDDED.get(name, name)
        folder = shipped("checkpoints", known)
        return Handle(
            name,
            weights.folder_checkpoint(folder),
            SHIPPED_POOLS[known],
            dtype,
            "image",
            lambda: load_vision(str(folder), name, device, dtype),
        )
    if name in EFFICIENTNETS:
        from alignlab.models import timm_encoder

        checkpoint = f"{name}@sha256:{timm_encoder.EFFICIENTNETS[name][0].sha256}"
        return Handle(
            name,
            checkpoint,
            ("mean",),
            dtype,
            "image",
            lambda: timm_encoder.load_efficientnet(name, device=device, dtype=dtype),
        )
    if name.startswith("timm:"):
        from alignlab.models.timm_encoder import load_timm

        return _loaded(load_timm(name, device=device, dtype=dtype), dtype)
    if name.startswith("open_clip:"):
        from alignlab.models.open_clip_encoder import load_open_clip

        return _loaded(load_open_clip(name, device=device, dtype=dtype), dtype)
    if variant.random and variant.base in EFFICIENTNETS:
        from alignlab.models.timm_encoder import load_timm

        return _loaded(load_timm(f"timm:tf_{variant.base.replace('-', '_')}@random", device=device, dtype=dtype), dtype)
    if variant.random:
        from alignlab.models.taming import PUBLISHED
        from alignlab.models.vision import random_vqgan

        if variant.base in PUBLISHED:
            return _loaded(random_vqgan(variant.base, device, dtype), dtype)
    known_file = BY_NAME.get(variant.base)
    if known_file is not None and known_file.urls and known_file.kind == "encoder":
        from alignlab.models.catalogue import fetch
        from alignlab.models.vision import load_vision

        where = fetch(variant.base)
        return _loaded(load_vision(where, variant.base, device, dtype, random=variant.random), dtype)
    path = Path(variant.base).expanduser()
    if path.suffix in (".ckpt", ".pth", ".pkl") and not path.exists():
        raise ValueError(f"there is no file {path}")
    if path.exists() or weights.HUB_ID.fullmatch(variant.base):
        from alignlab.models.vision import load_vision

        label = path.resolve().name if path.exists() else variant.base
        return _loaded(load_vision(variant.base, label, device, dtype, random=variant.random), dtype)
    near = difflib.get_close_matches(name, encoder_names(), n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(encoder_names())}"
    others = "timm:NAME, open_clip:ARCH/TAG, a local folder or a hub id, org/name, will do too"
    raise ValueError(f"unknown encoder {name!r}; {hint} ({others})")


def find_llm(
    name: str,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    device_map: str | dict[str, Any] | None = None,
    quantise: str | None = None,
) -> Handle:
    """The language model of a name, a local folder or a hub id; names and options as `load_llm`, else as `find_encoder`."""
    from alignlab.models import llm

    _check_named(name)
    wanted = llm.resolve(name, device=device, dtype=dtype, device_map=device_map, quantise=quantise)
    if wanted.source in llm.NAMES and wanted.checkpoint:
        return Handle(wanted.name, wanted.checkpoint, llm.POOLS, dtype, "text", lambda: llm.load(wanted))
    model = llm.load(wanted)
    return Handle(model.name, model.checkpoint, llm.POOLS, dtype, "text", lambda: model)


def load_encoder(name: str, *, device: str = "cpu", dtype: str = "float32", decoder: str | None = None) -> Any:
    """Load a vision encoder; names and errors as `find_encoder`.

    `decoder` puts another decoder behind a MAE: one of `alignlab restore decoder` (a folder), or that of a hub id such as
    "bytetriper/vit-mae-r". "mae" comes with the one that was fine-tuned for it, "mae-tiny" with its own.

    >>> import torch
    >>> encoder = load_encoder("mae")
    >>> encoder.encode(torch.rand(2, 3, 64, 64)).shape
    torch.Size([2, 65, 256])
    >>> encoder.layers(torch.rand(2, 3, 100, 80)).shape
    torch.Size([2, 7, 256])
    """
    from alignlab.models.mae import MAEEncoder, read_decoder

    encoder = find_encoder(name, device=device, dtype=dtype).load()
    wanted = decoder or TUNED.get(name)
    if wanted is not None:
        if not isinstance(encoder, MAEEncoder):
            raise ValueError(f"a decoder can be put behind a MAE only; {name} is none")
        encoder.use_decoder(*read_decoder(wanted))
    return encoder
