"""The linear layers between an encoder's tokens and a language model's embeddings, and the task tokens: how they start.

Everything is drawn from the generator that is given, float32 on the CPU; the global random state is neither read nor moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from alignlab.models.llm import LanguageModel

BEGINNINGS = ("fitted", "scaled", "plain")  # how the layers may start, as `adapters` says
SMALL = 0.01  # of the mean variance, added to each direction's before they are evened out
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
def layer_in(sample: Tensor, llm: LanguageModel, generator: torch.Generator, within: bool = False) -> nn.Linear:
    """The layer from an encoder's tokens to the language model, `D -> D_llm`, for tokens such as `sample` `[N, T, D]`.

    Visual tokens start with the spread of the language model's own embeddings. With tokens of several pictures, their
    mean is taken off and every direction comes in with the same variance (small ones with less), or, `within`, with the
    same variance among the tokens of one position: what tells positions apart then stands out, as in Fisher's
    discriminant.
    """
    width = sample.shape[-1]
    if len(sample) == 1:  # a single picture says nothing about how pictures differ
        return linear(width, llm.width, spread(llm) / (rms(sample) * width**0.5), generator)
    tokens = sample.double().cpu()  # [N, T, D]
    mean = tokens.mean((0, 1))
    centred = (tokens - (tokens.mean(0) if within else mean)).flatten(0, 1)  # [N T, D]
    covariance = centred.T @ centred / len(centred)
    values, vectors = torch.linalg.eigh(covariance)
    raised = values.clamp(min=0) + SMALL * float(values.mean()) + torch.finfo(torch.float32).tiny
    even = (vectors / raised.sqrt()) @ vectors.T  # [D, D]
    layer = linear(width, llm.width, 1.0, generator)
    weight = layer.weight.double() @ even
    weight *= spread(llm) / (rms((tokens - mean) @ even) * width**0.5)
    layer.weight.copy_(weight)
    layer.bias.copy_(-weight @ mean)
    return layer


def plain(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """A linear layer as `torch.nn.Linear` begins it: weights and bias uniform within 1 / sqrt(inputs)."""
    layer, bound = nn.utils.skip_init(nn.Linear, inputs, outputs), inputs**-0.5
    for values in (layer.weight.data, layer.bias.data):
        values.uniform_(-bound, bound, generator=generator)
    return layer


@torch.no_grad()
def adapters(
    sample: Tensor, llm: LanguageModel, generator: torch.Generator, begin: str = "fitted"
) -> tuple[nn.Linear, nn.Linear]:
    """The layers in, `D -> D_llm`, and out, `D_llm -> D`, of LM4LV.

    "fitted", with tokens of several pictures: the layer in makes positions stand out (`within` of `layer_in`), as the
    language model copies by finding where a token like the last one stood before, and in a flat part of a picture only its
    position tells a token from the next. What is written starts near the mean token. "scaled", and of a single picture:
    random, the tokens with the spread of the language model's embeddings. "plain": as torch begins any layer.
    """
    width = sample.shape[-1]
    if begin == "plain":
        return plain(width, llm.width, generator), plain(llm.width, width, generator)
    if begin == "scaled":
        sample = sample.flatten(0, 1)[None]  # as one picture, which says how large tokens are and no more
    into = layer_in(sample, llm, generator, within=True)
    if len(sample) == 1:
        return into, linear(llm.width, width, llm.width**-0.5, generator)
    tokens = sample.flatten(0, -2).float().cpu()  # [N T, D]
    level = float(tokens.var(0).mean()) or 1.0
    out = linear(llm.width, width, QUIET * level**0.5 * llm.width**-0.5, generator)
    out.bias.add_(tokens.mean(0))
    return into, out


def task_tokens(tasks: Sequence[str], number: int, llm: LanguageModel, generator: torch.Generator) -> nn.ParameterDict:
    """`number` tokens `[n, D_llm]` for each task, with the spread of the language model's own embeddings."""
    scale = spread(llm)
    return nn.ParameterDict(
        {task: nn.Parameter(scale * torch.randn(number, llm.width, generator=generator)) for task in tasks}
    )
