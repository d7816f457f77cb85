"""The image towers of open_clip as encoders for alignment, with the joint embedding that CLIP compares."""

from __future__ import annotations

import difflib
import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from alignlab.models import weights
from alignlab.models.encoder import prepare, refuse_blocks, seeded, sha256_state, stack
from alignlab.models.stages import StageReader
from alignlab.models.timm_encoder import timm_reader
from alignlab.models.variant import Variant, parse

PREFIX = "open_clip:"
CLIP_TINY = "clip-tiny"  # the architecture that `alignlab pretrain clip` trains, and the checkpoint that is shipped


class OpenCLIPEncoder:
    """A frozen image tower, read as `StageReader` says: a ViT's blocks, a ResNet's or a timm trunk's stages.

    `pools`, `widths` and `width` are `TimmEncoder`'s. `embed` gives the joint image embedding. Raises ValueError for a
    tower whose blocks cannot be found.
    """

    @torch.no_grad()
    def __init__(
        self, name: str, checkpoint: str, tower: Any, size: int, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        self.name, self.checkpoint, self.model, self.image_size = name, checkpoint, tower, size
        self.mean, self.std = mean, std
        trunk = getattr(tower, "trunk", None)
        if trunk is not None:
            self._reader = timm_reader(name, trunk, size)
        elif hasattr(tower, "transformer"):
            self._reader = StageReader(name, tower.transformer, self._normed_tokens, size, 1, True)
        else:
            self._reader = StageReader(name, tower, self._last_map, size, 0, False)
        self.pools, self.widths, self.width = self._reader.pools, self._reader.widths, self._reader.width

    @property
    def num_layers(self) -> int:
        return len(self.widths)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images `[B, 3, H, W]` in 0..1 of any size -> the tower's last tokens `[B, T, D]`, float32.

        A ViT's come after its final norm (CoCa's, which norms what it has pooled: before), [CLS] first; a convolutional
        network's are the cells of its last map in raster order.
        """
        return self._reader.tokens(self._pixels(images))

    @torch.no_grad()
    def layers(self, images: Tensor, pool: str | None = None) -> Tensor | list[Tensor]:
        """Images `[B, 3, H, W]` in 0..1 of any size -> one vector an image and layer, as `TimmEncoder.layers`."""
        return stack(self._reader.pooled(self._pixels(images), pool))

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """Images `[B, 3, H, W]` in 0..1 of any size -> the joint image embedding `[B, E]`, float32, not normalised."""
        out = self.model(self._pixels(images))
        return (out[0] if isinstance(out, tuple) else out).float()  # CoCa's tower gives its tokens too

    def _pixels(self, images: Tensor) -> Tensor:
        return prepare(images, self.image_size, self.mean, self.std, next(self.model.parameters()))

    def _normed_tokens(self, pixels: Tensor) -> Tensor:
        tokens = self._what_leaves(self.model.transformer, pixels)
        pools_first = self.model.attn_pool is not None or self.model.final_ln_after_pool
        return tokens if pools_first else self.model.ln_post(tokens)

    def _last_map(self, pixels: Tensor) -> Tensor:
        return self._what_leaves(self.model.layer4, pixels)

    def _what_leaves(self, module: nn.Module, pixels: Tensor) -> Tensor:
        seen: list[Tensor] = []
        hook = module.register_forward_hook(lambda module, inputs, out: seen.append(out))
        try:
            self.model(pixels)
        finally:
            hook.remove()
        return seen[0]


def load_open_clip(name: str, *, device: str = "cpu", dtype: str = "float32") -> OpenCLIPEncoder:
    """Load the image tower of "open_clip:ARCH/PRETRAINED", at its own image size and normalisation.

    PRETRAINED is one of open_clip's tags or a local file of weights. "open_clip:ARCH@random" is the same architecture
    with fresh weights from seed 0; nothing is downloaded. Raises ValueError for names that open_clip does not have
    (with the nearest it has) and for a file that cannot be read safely as this tower, RuntimeError where weights cannot be
    fetched.
    """
    import open_clip

    number_type = weights.torch_dtype(dtype)
    variant = parse(name)
    refuse_blocks(name, variant)
    architecture, _, pretrained = variant.base.removeprefix(PREFIX).partition("/")
    if architecture not in open_clip.list_models():
        raise ValueError(f"open_clip has no model {architecture!r}; {_near(architecture, open_clip.list_models())}")
    tag = _tag(name, variant, architecture, pretrained)
    settings = open_clip.get_model_config(architecture)
    published = open_clip.get_pretrained_cfg(architecture, tag) if tag else {}
    quick = bool(settings.get("quick_gelu", False) or published.get("quick_gelu", False))
    with seeded():
        tower = _build(name, settings, quick)
    if not variant.random:
        with weights.from_hub(name):
            path = open_clip.download_pretrained(published) if tag else str(Path(pretrained).expanduser())
        _fill(tower, path)
    height, width = tower.image_size if isinstance(tower.image_size, tuple) else (tower.image_size,) * 2
    if height != width:
        raise ValueError(f"{name} takes images of {height} x {width}; alignlab resizes to squares only")
    mean, std = _statistics(architecture, tag)
    label = variant.base + "@random" * variant.random
    checkpoint = f"{label}@sha256:{sha256_state(tower.state_dict())}"
    tower = tower.eval().requires_grad_(False).to(device, number_type)
    return OpenCLIPEncoder(label, checkpoint, tower, height, mean, std)


def register(folder: Path) -> Path:
    """Make the architecture in a folder of `alignlab pretrain clip` known to open_clip, as "clip-tiny"; its file of weights.

    Raises ValueError for a folder that holds no such thing.
    """
    import open_clip

    described, held = folder / f"{CLIP_TINY}.json", folder / "model.safetensors"
    for file in (described, held):
        if not file.is_file():
            raise ValueError(f"{folder} holds no {file.name}, which `alignlab pretrain clip` writes")
    try:
        config = json.loads(described.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{described} cannot be read: {weights.one_line(error)}") from error
    known = CLIP_TINY in open_clip.list_models()
    if not known or open_clip.get_model_config(CLIP_TINY) != config:
        open_clip.add_model_config(described)
    if open_clip.get_model_config(CLIP_TINY) != config:  # it passes over what is none
        raise ValueError(f"{described} is no model configuration of open_clip")
    return held


def _tag(name: str, variant: Variant, architecture: str, pretrained: str) -> str | None:
    """The tag that is asked for; None for a file and for random weights of no tag in particular."""
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if pretrained in tags:
        return pretrained
    if not pretrained and variant.random:
        return None
    if Path(pretrained).expanduser().is_file() and not variant.random:
        return None
    listed = f"one of {', '.join(tags)}" if tags else "it has none"
    if not pretrained:
        raise ValueError(f"{name!r} names no weights; add /TAG ({listed}), /FILE or @random")
    raise ValueError(f"open_clip has no weights {pretrained!r} for {architecture} ({listed}), and no such file is here")


def _statistics(architecture: str, tag: str | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of a tag; without one, those of all the architecture's tags, else OpenAI's."""
    import open_clip

    tags = [tag] if tag else open_clip.list_pretrained_tags_by_model(architecture)
    published = [open_clip.get_pretrained_cfg(architecture, each) for each in tags]
    found = {(tuple(entry["mean"]), tuple(entry["std"])) for entry in published}
    return found.pop() if len(found) == 1 else (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)


def _near(word: str, known: list[str]) -> str:
    folded = {entry.lower(): entry for entry in known}
    near = [folded[entry] for entry in difflib.get_close_matches(word.lower(), folded, n=3)]
    return f"did you mean {' or '.join(near)}?" if near else "open_clip.list_models() names them all"


def _build(name: str, settings: dict[str, Any], quick_gelu: bool) -> Any:
    """The image tower alone: the text tower would need a tokenizer and a configuration from the hub for some models."""
    from open_clip.model import _build_vision_tower

    vision = {**settings["vision_cfg"]}
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False
    try:
        return _build_vision_tower(settings["embed_dim"], vision, quick_gelu)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{name} cannot be built: {weights.one_line(error)}") from error


def _fill(tower: nn.Module, path: str) -> None:
    """Load the image tower's part of a CLIP checkpoint; ValueError for a file that is none or would run code."""
    from open_clip.convert import convert_state_dict
    from safetensors.torch import load_file

    try:
        # Not open_clip's own reader: it falls back to an unsafe load where PyTorch is old.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="'torch.load' received a zip file")  # it is refused below
            is_safe = path.endswith(".safetensors")
            held = load_file(path) if is_safe else torch.load(path, map_location="cpu", weights_only=True)
        state = held.get("state_dict", held) if isinstance(held, dict) else {}
        state = {str(key).removeprefix("module."): x for key, x in dict(state).items()}
        state = convert_state_dict(SimpleNamespace(visual=tower), state)  # the tower is all that it looks at
        visual = {key.removeprefix("visual."): x for key, x in state.items() if key.startswith("visual.")}
        if not visual:
            raise ValueError("it holds no tensor called visual.*")
        tower.load_state_dict(visual)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # of a damaged pickle PyTorch stumbles over anything
        raise ValueError(f"{path} cannot be read as this image tower: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    text = str(error)
    if "TorchScript" in text:
        return "it is a TorchScript archive, which would run code; use the published tag (open_clip:ARCH/openai)"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if lines and lines[0].startswith("Error(s) in loading state_dict") and len(lines) > 1:
        return lines[1][:200]
    return weights.one_line(error)
