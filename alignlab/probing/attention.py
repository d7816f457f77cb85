"""What the heads of a language model attend to, and what it does without some of them.

Heads are found by what modules give, not by what they are called: transformers' models name attention and its parts in a
dozen ways, but each has a module that gives weights `[B, heads, S, S]` when asked for plain ("eager") attention, and in it
one linear map, called last, that reads the heads' outputs side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from alignlab.models.llm import LanguageModel

TRACED = 5  # tokens of the text that attention is looked for with


@dataclass(frozen=True, eq=False)
class Attention:
    """One block's attention. `block` counts from 1, as the layer that it gives; `module` gives the weights
    `[B, heads, S, S]`, `projection` reads the heads' outputs side by side, `[B, S, heads * d]`.
    """

    block: int
    module: nn.Module
    projection: nn.Module
    heads: int


@contextmanager
def eager(llm: LanguageModel) -> Iterator[None]:
    """Plain attention within: fused kernels keep their weights to themselves."""
    before = llm.model.config._attn_implementation
    llm.model.set_attn_implementation("eager")
    try:
        yield
    finally:
        llm.model.set_attn_implementation(before)


def _weights(output: Any, length: int | None = None) -> Tensor | None:
    """The attention weights among what a module gave, `[B, heads, S, S]`; of `length` S where that is told."""
    for part in output if isinstance(output, tuple | list) else ():
        if not isinstance(part, Tensor) or part.ndim != 4 or part.shape[2] != part.shape[3]:
            continue
        if length is None or (part.shape[2] == length and bool((part >= 0).all()) and not bool(part.triu(1).any())):
            return part
    return None


@torch.no_grad()
def find(llm: LanguageModel) -> list[Attention]:
    """The attention of every block that has one, in order, found by reading a short text.

    Raises ValueError for a model without attention (Mamba, RWKV) or one that does not show its weights, and where blocks
    differ in their number of heads.
    """
    gave: list[tuple[str, nn.Module, int]] = []  # modules that gave weights, inner ones first
    called: dict[nn.Module, list[tuple[nn.Module, int]]] = {}  # module -> its maps in the order of their calls
    parents = {child: module for module in llm.model.modules() for child in module.children()}
    names = {module: name for name, module in llm.model.named_modules()}

    def look(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if (found := _weights(output, TRACED)) is not None:
            gave.append((names[module], module, found.shape[1]))
        is_map = any(p.ndim >= 2 for p in module.parameters())
        if is_map and module in parents and inputs and isinstance(inputs[0], Tensor) and inputs[0].ndim == 3:
            called.setdefault(parents[module], []).append((module, inputs[0].shape[2]))

    tokens = torch.zeros(1, TRACED, dtype=torch.long, device=llm.device)  # [1, S]
    with eager(llm), ExitStack() as stack:
        for module in llm.model.modules():
            stack.callback(module.register_forward_hook(look).remove)
        llm.model.base_model(input_ids=tokens, use_cache=False)
    attentions: list[Attention] = []
    for name, module, heads in gave:
        if any(other is not module and other_name.startswith(f"{name}.") for other_name, other, _ in gave):
            continue  # it hands on what a module inside it gave
        maps = [child for child, width in called.get(module, []) if width % heads == 0]
        if maps:
            block = 1 + next((int(part) for part in name.split(".") if part.isdecimal()), len(attentions))
            attentions.append(Attention(block, module, maps[-1], heads))
    kind = llm.model.config.get_text_config().model_type
    if not attentions:
        raise ValueError(f"{llm.name} ({kind}) shows no attention weights; its heads cannot be looked at")
    if len({one.heads for one in attentions}) > 1:
        raise ValueError(f"the blocks of {llm.name} ({kind}) differ in their number of heads, which is not supported")
    return attentions


@contextmanager
def watched(llm: LanguageModel, attentions: list[Attention], see: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Within, `see(place in attentions, weights)` is called for every block of every forward pass.

    The weights are float32 `[B, heads, S, S]` (query, key) and are gone afterwards: those of all blocks would not fit in
    memory for long texts.
    """

    def hook(place: int) -> Callable[..., None]:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            found = _weights(output)
            assert found is not None, "plain attention gives its weights"
            see(place, found.float())

        return look

    with eager(llm), ExitStack() as stack:
        for place, one in enumerate(attentions):
            stack.callback(one.module.register_forward_hook(hook(place)).remove)
        yield


@contextmanager
def without(attentions: list[Attention], heads: Collection[tuple[int, int]]) -> Iterator[None]:
    """Within, these heads, (block, head) from 1, add nothing: their outputs are zeros. Raises ValueError for one that is
    not there.
    """
    by_block = {one.block: one for one in attentions}
    for block, head in heads:
        if block not in by_block or not 1 <= head <= by_block[block].heads:
            raise ValueError(f"there is no head {head} in block {block} with attention")

    def hook(one: Attention, off: list[int]) -> Callable[..., tuple[Any, ...]]:
        def silence(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            apart = inputs[0].unflatten(-1, (one.heads, -1)).clone()  # [B, S, heads * d] -> [B, S, heads, d]
            apart[:, :, off] = 0
            return (apart.flatten(-2), *inputs[1:])  # [B, S, heads * d]

        return silence

    with ExitStack() as stack:
        for one in attentions:
            off = [head - 1 for block, head in heads if block == one.block]
            if off:
                stack.callback(one.projection.register_forward_pre_hook(hook(one, off)).remove)
        yield
