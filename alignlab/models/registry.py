"""Names of models: what each stands for, and how to load it only when its features are not at hand already."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignlab.models import weights
from alignlab.paths import shipped

# Short names stand for the embedded laboratory's checkpoints.
EMBEDDED = {"mae": "mae-tiny", "beit": "beit-tiny", "vqgan": "vqgan-tiny"}
SHIPPED = tuple(EMBEDDED.values())
SHIPPED_POOLS = {"mae-tiny": ("cls", "mean"), "beit-tiny": ("cls", "mean"), "vqgan-tiny": ("concat", "mean")}
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
    return (*EMBEDDED, *SHIPPED, *EFFICIENTNETS)


def _check_named(name: str) -> None:
    if not name.strip():
        raise ValueError(f"a model needs a name, got {name!r}")


def _loaded(model: Any, dtype: str) -> Handle:
    return Handle(model.name, model.checkpoint, tuple(model.pools), dtype, "image", lambda: model)


def find_encoder(name: str, *, device: str = "cpu", dtype: str = "float32") -> Handle:
    """The encoder of a name, a local folder, a hub id ("org/name") or "timm:NAME".

    Those whose identity is known without their weights are loaded by `.load()` only. Raises ValueError for an unknown
    name (with the nearest known ones) or an unreadable folder, RuntimeError where weights cannot be fetched.
    """
    _check_named(name)
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
    if Path(name).expanduser().is_dir() or weights.HUB_ID.fullmatch(name):
        from alignlab.models.vision import load_vision

        folder_name = Path(name).expanduser().resolve().name if Path(name).expanduser().is_dir() else name
        return _loaded(load_vision(name, folder_name, device, dtype), dtype)
    near = difflib.get_close_matches(name, encoder_names(), n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(encoder_names())}"
    raise ValueError(f"unknown encoder {name!r}; {hint} (timm:NAME, a local folder or a hub id, org/name, will do too)")


def find_llm(name: str, *, device: str = "cpu", dtype: str = "float32") -> Handle:
    """The language model of a name, a local folder or a hub id; as `find_encoder`."""
    from alignlab.models import llm

    _check_named(name)
    if name == "smollm2":
        checkpoint = llm.smollm2_checkpoint()
        return Handle(
            name, checkpoint, llm.POOLS, dtype, "text", lambda: llm.load_llm(name, device=device, dtype=dtype)
        )
    weights.torch_dtype(dtype)
    model = llm.load_llm(name, device=device, dtype=dtype)
    return Handle(model.name, model.checkpoint, llm.POOLS, dtype, "text", lambda: model)


def load_encoder(name: str, *, device: str = "cpu", dtype: str = "float32") -> Any:
    """Load a vision encoder; names and errors as `find_encoder`.

    >>> import torch
    >>> encoder = load_encoder("mae")
    >>> encoder.encode(torch.rand(2, 3, 64, 64)).shape
    torch.Size([2, 65, 256])
    >>> encoder.layers(torch.rand(2, 3, 100, 80)).shape
    torch.Size([2, 7, 256])
    """
    return find_encoder(name, device=device, dtype=dtype).load()
