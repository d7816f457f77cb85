"""What LM4LV and everything it is compared with have in common: a frozen encoder's tokens in, a better image's tokens out."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from alignlab.data.degradations import check_images

log = logging.getLogger(__name__)


def unwritten(tokens: Tensor) -> int:
    """How many of `tokens` `[B, T, D]` are all zeros: answers without an image, which only free generation can give."""
    return int((tokens == 0).flatten(1).all(1).sum())


@dataclass(frozen=True)
class Losses:
    """`visual`: mean squared error of the HQ tokens; `text`: cross-entropy of the assistant's words, 0 for a model that
    says none. They are added.
    """

    visual: Tensor
    text: Tensor

    @property
    def total(self) -> Tensor:
        return self.visual + self.text


class Restorer(nn.Module):
    """Tokens of a degraded image `[B, T, D]` -> tokens of a restored one, which the encoder's own decoder paints.

    A child trains the parameters it holds, and neither the encoder nor, where it has one, the language model `llm`: both
    are frozen, and no part of its state. `how` names it in results. `sample` is `[N, T, D]`, the encoder's tokens of a few
    training pictures, whose mean and spread the layers begin with; without it a grey picture's tokens say how large
    tokens are. Raises ValueError for an encoder without a decoder.
    """

    how: str
    says_words = False  # whether its text loss means anything
    encoder: Any
    llm: Any
    sample: Tensor
    visual: int
    width: int

    def __init__(self, encoder: Any, tasks: Sequence[str], llm: Any = None, sample: Tensor | None = None) -> None:
        super().__init__()
        if not hasattr(encoder, "decode"):
            raise ValueError(f"{encoder.name} has no decoder; LM4LV needs a MAE, a BEiT with its dVAE, a VQGAN or pca")
        if not tasks or len(set(tasks)) != len(tasks):
            raise ValueError(f"tasks must be different names, one at least, got {list(tasks)}")
        self.tasks = tuple(tasks)
        # Past nn.Module, which would take an encoder that is a module for a part of this one's state.
        self.__dict__.update(encoder=encoder, llm=llm)
        if sample is None:
            sample = encoder.encode(torch.full((1, 3, encoder.image_size, encoder.image_size), 0.5))
        self.__dict__["sample"] = sample.detach()
        self.visual, self.width = sample.shape[1:]

    def forward(self, low: Tensor, high: Tensor, task: str) -> Losses:
        """The losses of making `high` of `low`, both tokens of the encoder `[B, T, D]`."""
        raise NotImplementedError

    def write(self, low: Tensor, task: str, *args: Any, **options: Any) -> Tensor:
        """Tokens `[B, T, D]` of what `low` should have been."""
        raise NotImplementedError

    def told(self, low: Tensor, high: Tensor, task: str) -> Tensor | None:
        """What is written `[B, T, D]` where the true tokens so far are read in place of its own: teacher forcing. None of a
        model that reads nothing of its own.
        """
        return None

    def check(self, tokens: Tensor, task: str) -> None:
        """ValueError unless `tokens` are `[B, T, D]` of this encoder and `task` is one of this model's."""
        if tokens.ndim != 3 or tokens.shape[1:] != (self.visual, self.width):
            wanted = f"[B, {self.visual}, {self.width}]"
            raise ValueError(f"tokens must be {wanted}, as {self.encoder.name} gives them, got {list(tokens.shape)}")
        if task not in self.tasks:
            raise ValueError(f"task must be one of {', '.join(self.tasks)}, got {task!r}")

    def trainable(self) -> Iterator[nn.Parameter]:
        """The parameters that learn; AssertionError where a frozen part would."""
        models = [getattr(self.encoder, "model", None), getattr(self.llm, "model", None)]
        frozen = [p for model in models if isinstance(model, nn.Module) for p in model.parameters()]
        ours = {id(p) for p in self.parameters()}
        assert not any(p.requires_grad for p in frozen if id(p) not in ours), "the encoder and the LLM are frozen"
        return (p for p in self.parameters() if p.requires_grad)

    @torch.no_grad()
    def restore(self, images: Tensor, task: str | None = None, *, batch_size: int = 32, **options: Any) -> Tensor:
        """Images `[B, 3, H, W]` in 0..1 -> `[B, 3, H', W']` in 0..1, of the decoder's size. `task` is by default the first.

        `options` are those of `write`. Raises ValueError for images that are not floats in 0..1, and for a batch of none.
        """
        check_images(images)
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
        restored = []
        for batch in images.split(batch_size):
            tokens = self.write(self.encoder.encode(batch), task or self.tasks[0], **options)
            if missing := unwritten(tokens):
                log.warning("%d of %d answers never opened an image; their pictures say nothing", missing, len(batch))
            restored.append(self.encoder.decode(tokens).cpu())
        return torch.cat(restored)
