"""The linear layers between an encoder's tokens and a language model's embeddings, and the task tokens: how they start.

Everything is drawn from the generator that is given, float32 on the CPU; the global random state is neither read nor moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from alignlab.models.llm import LanguageModel

EVEN = 0.5  # of the mean variance, added to each direction's before they are evened out
QUIET = 0.1  # of the tokens' spread: what the layer out begins with, about its mean


def linear(inputs: int, outputs: int, std: float, generator: torch.Generator) -> nn.Linear:
    """A linear layer of weights from N(0, std^2) and no bias yet. A `std` of 0 draws nothing."""
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs)
    weight = std * torch.randn(outputs, inputs, generator=generator) if std else torch.zeros(outputs, inputs)
    layer.weight.data, layer.bias.data = weight, torch.zeros(outputs)
    return layer


def rms(sample: Tensor) -> float:
    """The root mean square of an encoder's tokens, 1 where they are all zero."""
    return float(sample.float().square().mean().sqrt()) or 1.0


@torch.no_grad()
def spread(llm: LanguageModel) -> float:
    """The standard deviation of the embeddings that the language model reads: Gemma's come out of its table enlarged."""
    table: Any = llm.model.get_input_embeddings()
    return float(table(torch.arange(len(table.weight), device=llm.device)).float().std())


@torch.no_grad()
def layer_in(sample: Tensor, llm: LanguageModel, generator: torch.Generator) -> nn.Linear:
    """The layer from an encoder's tokens to the language model, `D -> D_llm`, for tokens such as `sample` `[N, T, D]`.

    Visual tokens start with the spread of the language model's own embeddings. With tokens of several pictures, their
    mean is taken off, and every direction comes in with about the same weight (small ones are raised to half of the mean
    variance, not more).
    """
    width = sample.shape[-1]
    if len(sample) == 1:  # a single picture says nothing about how pictures differ
        return linear(width, llm.width, spread(llm) / (rms(sample) * width**0.5), generator)
    mean, variance, level = _moments(sample)
    layer = linear(width, llm.width, spread(llm) / width**0.5, generator)
    layer.weight.div_((variance + EVEN * level).sqrt())
    layer.bias.sub_(layer.weight @ mean)
    return layer


@torch.no_grad()
def adapters(sample: Tensor, llm: LanguageModel, generator: torch.Generator) -> tuple[nn.Linear, nn.Linear]:
    """The layers in, `D -> D_llm`, as `layer_in` has it, and out, `D_llm -> D`.

    With tokens of several pictures, what is written starts near their mean.
    """
    width, into = sample.shape[-1], layer_in(sample, llm, generator)
    if len(sample) == 1:
        return into, linear(llm.width, width, llm.width**-0.5, generator)
    mean, _, level = _moments(sample)
    out = linear(llm.width, width, QUIET * level**0.5 * llm.width**-0.5, generator)
    out.bias.add_(mean)
    return into, out


def _moments(sample: Tensor) -> tuple[Tensor, Tensor, float]:
    """Mean and variance of each direction of tokens `[N, T, D]`, and the mean variance."""
    tokens = sample.flatten(0, -2).float().cpu()  # [N T, D]
    variance = tokens.var(0)
    return tokens.mean(0), variance, float(variance.mean()) or 1.0


def task_tokens(tasks: Sequence[str], number: int, llm: LanguageModel, generator: torch.Generator) -> nn.ParameterDict:
    """`number` tokens `[n, D_llm]` for each task, with the spread of the language model's own embeddings."""
    scale = spread(llm)
    return nn.ParameterDict(
        {task: nn.Parameter(scale * torch.randn(number, llm.width, generator=generator)) for task in tasks}
    )
