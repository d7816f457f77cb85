"""What LM4LV is compared with (sections 5.1 and 5.3 of its paper): small models, without a language model, between the
encoder's LQ tokens and its HQ ones.

All begin as the identity: what they restore before training is what the encoder and its decoder make of the degraded
image (MAE-r). What an MLP or a Transformer learns is added to the tokens that it reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignlab.restoration.adapters import linear, rms
from alignlab.restoration.restorer import Losses, Restorer

HEAD = 32  # the width of an attention head, as in MAE's decoder


def like_lm4lv(width: int, llm_width: int, task_tokens: int, tasks: Sequence[str]) -> int:
    """How many parameters LM4LV trains: the layers `D -> D_llm` and `D_llm -> D` with bias, and each task's tokens."""
    return 2 * width * llm_width + llm_width + width + len(tasks) * task_tokens * llm_width


class _Expert(Restorer):
    """All weights are shared by the tasks; of several, each has one vector `[D]`, zeros at first, added to every token."""

    def __init__(self, encoder: Any, tasks: Sequence[str], sample: Tensor | None) -> None:
        super().__init__(encoder, tasks, sample=sample)
        named = self.tasks if len(self.tasks) > 1 else ()
        self.task_vectors = nn.ParameterDict({task: nn.Parameter(torch.zeros(self.width)) for task in named})

    @property
    def _of_tasks(self) -> int:
        return len(self.task_vectors) * self.width

    def _map(self, tokens: Tensor) -> Tensor:
        """Tokens `[B, T, D]`, what tells the task added -> tokens `[B, T, D]`."""
        raise NotImplementedError

    def _restored(self, low: Tensor, task: str) -> Tensor:
        self.check(low, task)
        low = low.to(next(self.parameters()))
        return self._map(low + self.task_vectors[task] if task in self.task_vectors else low)

    def forward(self, low: Tensor, high: Tensor, task: str) -> Losses:
        """The mean squared error of making `high` of `low`, both tokens of the encoder `[B, T, D]`; there is no text."""
        made = self._restored(low, task)
        return Losses(F.mse_loss(made, high.to(made)), made.new_zeros(()))

    @torch.no_grad()
    def write(self, low: Tensor, task: str) -> Tensor:
        """Tokens `[B, T, D]` of what `low` should have been, float32."""
        return self._restored(low, task)


class Linear(_Expert):
    """One linear layer with bias on every token (section 5.1). It begins as the identity; `seed` draws nothing."""

    how = "linear"

    def __init__(
        self, encoder: Any, *, tasks: Sequence[str] = ("denoise",), seed: int = 0, sample: Tensor | None = None
    ) -> None:
        super().__init__(encoder, tasks, sample)
        self.layer = linear(self.width, self.width, 0.0, torch.Generator().manual_seed(seed))
        nn.init.eye_(self.layer.weight)
        self.to(self.sample.device)

    def _map(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.layer(tokens)
        return found


class MLP(_Expert):
    """Token + a 2-layer MLP (GELU) of it, each token by itself (section 5.3), with about `parameters` to train.

    The first layer is drawn so that it feeds the GELU values of spread 1, whatever the tokens' scale (and, with a `sample`
    of several pictures, their mean); the second is zero, so that the whole begins as the identity.
    """

    how = "mlp"

    def __init__(
        self,
        encoder: Any,
        parameters: int,
        *,
        tasks: Sequence[str] = ("denoise",),
        seed: int = 0,
        sample: Tensor | None = None,
    ) -> None:
        super().__init__(encoder, tasks, sample)
        self.hidden = round((parameters - self._of_tasks - self.width) / (2 * self.width + 1))
        if self.hidden < 1:
            raise ValueError(f"{parameters} parameters are too few for an MLP on tokens of width {self.width}")
        generator = torch.Generator().manual_seed(seed)
        # A single picture says nothing about how pictures differ, only how large tokens are.
        mean = self.sample.mean((0, 1)).cpu() if len(self.sample) > 1 else torch.zeros(self.width)
        scale = rms(self.sample.cpu() - mean)
        self.rise = linear(self.width, self.hidden, 1 / (scale * self.width**0.5), generator)
        self.rise.bias.data -= self.rise.weight.data @ mean
        self.fall = linear(self.hidden, self.width, 0.0, generator)
        self.to(self.sample.device)

    def _map(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.fall(F.gelu(self.rise(tokens)))  # [B, T, H] within
        return tokens + found


class Transformer(_Expert):
    """One pre-norm Transformer block over all T tokens, every one seeing every other (section 5.3), with about
    `parameters` to train.

    Attention is as wide as the tokens where that leaves an MLP at least as wide, and both are narrower where it does
    not; the MLP takes what is left. What each branch adds begins at zero, so that the whole begins as the identity. It has
    no position code of its own: MAE's and BEiT's tokens carry their place, VQGAN's do not, and there it can only
    treat the image as a set.
    """

    how = "transformer"

    def __init__(
        self,
        encoder: Any,
        parameters: int,
        *,
        tasks: Sequence[str] = ("denoise",),
        seed: int = 0,
        sample: Tensor | None = None,
    ) -> None:
        super().__init__(encoder, tasks, sample)
        d = self.width
        free = parameters - self._of_tasks - 6 * d  # but for two norms and the biases of the two layers out
        most = min(d, free // (6 * d + 4))  # attention and the MLP equally wide
        self.heads = max(1, most // HEAD)
        self.inner = most // self.heads * self.heads
        self.hidden = round((free - self.inner * (4 * d + 3)) / (2 * d + 1))
        if self.inner < 1 or self.hidden < 1:
            raise ValueError(f"{parameters} parameters are too few for a Transformer on tokens of width {d}")
        generator = torch.Generator().manual_seed(seed)
        self.norm_attention, self.norm_mlp = nn.LayerNorm(d), nn.LayerNorm(d)
        self.attend = linear(d, 3 * self.inner, d**-0.5, generator)
        self.gather = linear(self.inner, d, 0.0, generator)
        self.rise = linear(d, self.hidden, d**-0.5, generator)
        self.fall = linear(self.hidden, d, 0.0, generator)
        self.to(self.sample.device)

    def _map(self, tokens: Tensor) -> Tensor:
        # [B, T, 3 A] -> three of [B, heads, T, A / heads]
        query, key, value = (
            self.attend(self.norm_attention(tokens)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )
        seen = F.scaled_dot_product_attention(query, key, value)
        tokens = tokens + self.gather(seen.transpose(1, 2).flatten(2))  # [B, T, A] within
        found: Tensor = self.fall(F.gelu(self.rise(self.norm_mlp(tokens))))  # [B, T, H] within
        return tokens + found
