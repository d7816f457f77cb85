"""CLIPScore and RefCLIPScore (Hessel et al. 2021, arXiv 2104.08718), after the authors' code (jmhessel/clipscore).

There is no CLIPScore as such, only that of one CLIP model: a `ClipScores` names its judge.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from alignlab.data.images import read_image
from alignlab.models import weights
from alignlab.models.encoder import refuse_blocks, seeded, sha256_state
from alignlab.models.open_clip_encoder import CLIP_TINY, PREFIX, _near, _reason, _tag, register
from alignlab.models.variant import parse
from alignlab.paths import shipped

if TYPE_CHECKING:
    from PIL import Image

WEIGHT = 2.5
PROMPT = "A photo depicts "  # before candidates and references alike


def clip_score(image_emb: Tensor, text_emb: Tensor) -> Tensor:
    """CLIPScore of N captions: 2.5 x max(cos, 0), `[N]` in 0..2.5, in float32 (float64 of float64).

    `image_emb` and `text_emb` are `[N, D]`, normalised or not. Raises ValueError for shapes that differ, for none, and for
    numbers that are not finite.

    >>> clip_score(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[3.0, 4.0], [-1.0, 0.0]]))
    tensor([1.5000, 0.0000])
    """
    return WEIGHT * _cosine(*_pair(image_emb, text_emb)).clamp(min=0)


def ref_clip_score(image_emb: Tensor, text_emb: Tensor, ref_embs: Sequence[Tensor] | Tensor) -> Tensor:
    """RefCLIPScore `[N]`: the harmonic mean of the CLIPScore and the best cosine with a reference, or 0 where that is less.

    The CLIPScore in it carries its factor of 2.5, as in the authors' code and paper. `ref_embs` is a list of N
    `[R_i, D]` (R_i >= 1) or one `[N, R, D]`. 0 where both parts are 0. Errors as `clip_score`, and for a caption
    without references.

    >>> image, text = torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 4.0]])
    >>> ref_clip_score(image, text, [text])  # 2 x 1.5 x 1 / (1.5 + 1)
    tensor([1.2000])
    """
    image, text = _pair(image_emb, text_emb)
    if len(ref_embs) != len(text):
        raise ValueError(f"ref_embs must hold references for {len(text)} captions, got {len(ref_embs)}")
    best = []
    for i, refs in enumerate(ref_embs):
        if np.ndim(refs) != 2 or not len(refs) or refs.shape[1] != text.shape[1]:
            raise ValueError(f"ref_embs[{i}] must be [R, {text.shape[1]}] with R >= 1, got {list(np.shape(refs))}")
        best.append(_cosine(text[i : i + 1], _floats(f"ref_embs[{i}]", refs)).max())  # [1, D] and [R, D] -> [R]
    seen, told = WEIGHT * _cosine(image, text).clamp(min=0), torch.stack(best).clamp(min=0)
    total = seen + told
    return torch.where(total > 0, 2 * seen * told / total.where(total > 0, torch.ones_like(total)), 0)


def _pair(image_emb: Tensor, text_emb: Tensor) -> tuple[Tensor, Tensor]:
    if np.ndim(image_emb) != 2 or np.shape(image_emb) != np.shape(text_emb) or not len(image_emb):
        shapes = f"{list(np.shape(image_emb))} and {list(np.shape(text_emb))}"
        raise ValueError(f"image_emb and text_emb must both be [N, D] with N >= 1, got {shapes}")
    return _floats("image_emb", image_emb), _floats("text_emb", text_emb)


def _floats(name: str, x: Tensor) -> Tensor:
    x = torch.as_tensor(x).detach()
    x = x if x.dtype == torch.float64 else x.float()
    if not bool(x.isfinite().all()):
        raise ValueError(f"{name} must be finite, got NaN or inf")
    return x


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """`[N, D]` twice -> `[N]`, 0 for a vector of zeros."""
    return (normalize(a, dim=-1) * normalize(b, dim=-1)).sum(-1)


@dataclass(frozen=True)
class ClipScores:
    """Scores of N captions by one judge; `ref_clip_score` is None where an image has no references, `note` says so.

    `truncated` of the captions, and `truncated_references` of the references, were longer than the judge reads.
    """

    judge: str
    clip_score: Tensor
    ref_clip_score: Tensor | None
    truncated: int
    truncated_references: int
    note: str | None


class CLIPScorer:
    """A CLIP model of open_clip as the judge of captions, in float32.

    `CLIPScorer("ViT-B-32", "openai")`, or a local file of weights in place of the tag, or alignlab's own name
    `CLIPScorer("open_clip:ViT-B-32/openai")`. `CLIPScorer("clip-tiny")` is the embedded laboratory's, which comes with
    alignlab; a folder of `alignlab pretrain clip` will do too. The images go through open_clip's own preprocessing. `judge`
    names the model with the SHA-256 of its weights.

    Raises ValueError for names that open_clip does not have and for weights that cannot be read as this model,
    RuntimeError for weights that cannot be fetched.
    """

    def __init__(self, model: str, pretrained: str | None = None, *, device: str = "cpu", batch: int = 64) -> None:
        import open_clip
        from safetensors import SafetensorError

        if batch < 1:
            raise ValueError(f"batch must be 1 or more, got {batch}")
        base = model.removeprefix(PREFIX)
        folder = _folder(base) if pretrained is None else None
        if folder is not None:
            base, pretrained = CLIP_TINY, str(register(folder))
        name = PREFIX + (base if pretrained is None else f"{base}/{pretrained}")
        variant = parse(name)
        refuse_blocks(name, variant)
        if variant.random:
            raise ValueError(f"{name!r} has random weights, which judge nothing; give a tag or a file")
        architecture, _, source = variant.base.removeprefix(PREFIX).partition("/")
        if architecture not in open_clip.list_models():
            raise ValueError(f"open_clip has no model {architecture!r}; {_near(architecture, open_clip.list_models())}")
        tag = _tag(name, variant, architecture, source)
        if tag is None:
            source = str(Path(source).expanduser())
        with weights.from_hub(name):
            self._tokenizer = open_clip.get_tokenizer(architecture)
            if tag is not None:
                open_clip.download_pretrained(open_clip.get_pretrained_cfg(architecture, tag))
        try:
            with seeded(), weights.quiet_transformers():
                self._model, _, self._preprocess = open_clip.create_model_and_transforms(
                    architecture, pretrained=source, precision="fp32", pretrained_text=False, weights_only=True
                )
        except (
            AttributeError,
            EOFError,
            KeyError,
            OSError,
            RuntimeError,
            SafetensorError,
            TypeError,
            ValueError,
            pickle.UnpicklingError,
        ) as error:
            raise ValueError(f"{source} cannot be read as {architecture}: {_reason(error)}") from error
        shown = folder.resolve().name if folder else f"{PREFIX}{architecture}/{tag or Path(source).name}"
        self.judge = f"{shown}@sha256:{sha256_state(self._model.state_dict())}"
        self._model = self._model.float().eval().requires_grad_(False).to(device)
        self._device, self._batch = device, batch
        self.context_length: int = self._tokenizer.context_length

    def image_embeddings(self, images: Iterable[Image.Image | str | Path] | Tensor) -> Tensor:
        """PIL images, files, or a batch `[N, 3, H, W]` in 0..1 -> `[N, D]`, float32 on the CPU, not normalised."""
        parts = [
            self._encode("encode_image", torch.stack([self._preprocess(_picture(image)) for image in some]))
            for some in _batches(images, self._batch)
        ]
        if not parts:
            raise ValueError("there are no images")
        return torch.cat(parts)

    def text_embeddings(self, captions: Sequence[str]) -> Tensor:
        """Captions, without the prompt, which is put before them -> `[N, D]`, float32 on the CPU, not normalised.

        What is longer than the model's context is cut (`truncated` counts such captions). Raises ValueError for none and
        for an empty one.
        """
        texts = _prompted("captions", captions)
        parts = [self._encode("encode_text", self._tokenizer(list(some))) for some in _batches(texts, self._batch)]
        return torch.cat(parts)

    def truncated(self, captions: Sequence[str]) -> int:
        """How many of the captions, prompt included, are longer than the model's context."""
        longer = self._tokenizer(_prompted("captions", captions), context_length=self.context_length + 1)
        padding = getattr(getattr(self._tokenizer, "tokenizer", None), "pad_token_id", 0) or 0
        last = longer[:, -1]  # [N, context + 1] -> [N]
        return int(((last != 0) & (last != padding)).sum())

    def score(
        self,
        images: Iterable[Image.Image | str | Path] | Tensor,
        captions: Sequence[str],
        references: Sequence[Sequence[str]] | None = None,
    ) -> ClipScores:
        """Score one caption an image; with one or more references for every image, RefCLIPScore too.

        Raises ValueError for numbers of images, captions and references that differ, and for an empty caption or
        reference.
        """
        if references is not None and (isinstance(references, str) or len(references) != len(captions)):
            raise ValueError(f"{len(captions)} captions need as many lists of references, got {len(references)}")
        text = self.text_embeddings(captions)
        flat, note = self._references(references)
        told = self.text_embeddings(flat) if flat else None
        image = self.image_embeddings(images)
        if len(image) != len(text):
            raise ValueError(f"there must be one caption an image, got {len(image)} images and {len(text)} captions")
        best = None
        if told is not None and references is not None:
            best = ref_clip_score(image, text, told.split([len(group) for group in references]))
        return ClipScores(
            judge=self.judge,
            clip_score=clip_score(image, text),
            ref_clip_score=best,
            truncated=self.truncated(captions),
            truncated_references=self.truncated(flat) if flat else 0,
            note=note,
        )

    def _references(self, references: Sequence[Sequence[str]] | None) -> tuple[list[str], str | None]:
        """All references in a row, none where RefCLIPScore cannot be had, and why."""
        if references is None:
            return [], "RefCLIPScore is left out: there are no references"
        for i, group in enumerate(references):
            if isinstance(group, str):
                raise ValueError(f"references[{i}] must be a list of strings, got {group!r:.60}")
        without = sum(not len(group) for group in references)
        if without:
            return [], f"RefCLIPScore is left out: {without} of {len(references)} images have no references"
        return [reference for group in references for reference in group], None

    @torch.no_grad()
    def _encode(self, method: str, batch: Tensor) -> Tensor:
        kind = torch.device(self._device).type
        with torch.autocast(kind, enabled=False):  # half precision moves the score
            out: Tensor = getattr(self._model, method)(batch.to(self._device))
        return out.float().cpu()


def _folder(name: str) -> Path | None:
    """Where a judge lies that was trained here: the shipped one, or one of the user's."""
    if name == CLIP_TINY:
        return shipped("checkpoints", CLIP_TINY)
    folder = Path(name).expanduser()
    return folder if folder.is_dir() else None


def _batches(things: Iterable[Any], size: int) -> Iterator[tuple[Any, ...]]:
    left = iter(things)
    while some := tuple(islice(left, size)):
        yield some


def _picture(image: Image.Image | str | Path | Tensor) -> Image.Image:
    if not isinstance(image, Tensor):
        return read_image(image)
    from PIL import Image

    if image.ndim != 3 or image.shape[0] != 3 or not image.is_floating_point():
        raise ValueError(f"an image tensor must be [3, H, W], floats in 0..1, got {list(image.shape)} of {image.dtype}")
    low, high = float(image.min()), float(image.max())
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # false for NaN too
        raise ValueError(f"an image must be in 0..1, got {low:g}..{high:g}")
    pixels = image.detach().cpu().float().clamp(0, 1).mul(255).round().byte()
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())  # [3, H, W] -> [H, W, 3]


def _prompted(name: str, captions: Sequence[str]) -> list[str]:
    if isinstance(captions, str) or not len(captions):
        raise ValueError(f"{name} must be a list of one string or more, got {captions!r:.60}")
    for i, caption in enumerate(captions):
        if not isinstance(caption, str) or not caption.strip():
            raise ValueError(f"{name}[{i}] must be a string that is not empty, got {caption!r:.60}")
    return [PROMPT + caption for caption in captions]
