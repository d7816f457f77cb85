"""Induction heads: who attends from a token to the one after its earlier occurrence, and what breaks without them.

Such heads copy in context (Elhage et al. 2021; Olsson et al. 2022, In-context Learning and Induction Heads). They are
looked for on random tokens repeated once, which nothing but copying can predict, and then on LM4LV's own sequences: HQ
token t resembles LQ token t, and the next one is wanted, which is what LQ token t + 1 says. Attention alone shows what a
head could do; `ablate` switches heads off and shows what they do.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from alignlab.models.llm import LanguageModel
from alignlab.probing import attention
from alignlab.probing.attention import Attention
from alignlab.progress import Tick, progress
from alignlab.restoration.quality import psnr

if TYPE_CHECKING:
    from alignlab.restoration.lm4lv import LM4LV

Head = tuple[int, int]  # block and head, both from 1
TOKENS_AT_ONCE = 512  # of a forward pass; logits of large vocabularies are the most of its memory


@dataclass(frozen=True)
class Attended:
    """Mean attention of every head, one row an item (a text, an image): float32 `[n, blocks, heads]`.

    `successor`: from a token to the one after its earlier occurrence (LM4LV: from HQ token t to LQ token t + 1). `same`:
    to the earlier occurrence itself (to LQ token t). `source`: to the average token of the first copy (of the LQ image).
    `chance` is what a head gets that attends to all visible positions alike. `blocks` are the blocks' numbers, from 1.
    """

    blocks: tuple[int, ...]
    successor: Tensor
    same: Tensor
    source: Tensor
    chance: float

    def top(self, count: int) -> list[Head]:
        """The heads that attend most to the successor, the strongest first. ValueError for more than there are."""
        mean = self.successor.mean(0)  # [blocks, heads]
        if not 1 <= count <= mean.numel():
            raise ValueError(f"there are {mean.numel()} heads, got a wish for the top {count}")
        order = mean.flatten().argsort(descending=True, stable=True)[:count].tolist()
        return [(self.blocks[place // mean.shape[1]], place % mean.shape[1] + 1) for place in order]


@dataclass(frozen=True)
class Copying:
    """Cross-entropy of every text, nats a token, `[n]`: over the first copy of its tokens and over the second, the first
    token of either left out (what comes before that one says nothing)."""

    first: Tensor
    second: Tensor


def repeated_text(llm: LanguageModel, n: int, length: int, seed: int = 0) -> tuple[Tensor, int]:
    """`n` texts of `length` random tokens, none twice, and the same again: ids `[n, start + 2 length]` and the `start`.

    BOS comes first where the tokenizer has one; special tokens are not among the others. Raises ValueError for a length
    below 2, one that the model cannot read, and fewer than one text.
    """
    if n < 1:
        raise ValueError(f"n must be 1 or more, got {n}")
    tokenizer = llm.tokenizer
    special = set(tokenizer.all_special_ids)
    ordinary = torch.tensor([i for i in range(min(len(tokenizer), _rows(llm))) if i not in special])
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    most = len(ordinary) if llm.context is None else min(len(ordinary), (llm.context - len(bos)) // 2)
    if not 2 <= length <= most:
        raise ValueError(f"length must be in 2..{most} for {llm.name}, whose context holds it twice, got {length}")
    generator = torch.Generator().manual_seed(seed)
    texts = []
    for _ in range(n):
        drawn = ordinary[torch.randperm(len(ordinary), generator=generator)[:length]]
        texts.append(torch.cat([torch.tensor(bos, dtype=torch.long), drawn, drawn]))
    return torch.stack(texts), len(bos)


def _rows(llm: LanguageModel) -> int:
    return len(llm.model.get_input_embeddings().weight)  # type: ignore[arg-type]


class _Reader:
    """Gathers attention at (query, key) places of each pass over a batch, block by block."""

    def __init__(self, queries: Tensor, keys: Tensor, source: slice) -> None:
        self.queries, self.keys, self.source = queries, keys, source
        self.found: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = {}

    def __call__(self, place: int, weights: Tensor) -> None:
        queries, keys = self.queries.to(weights.device), self.keys.to(weights.device)
        rows = weights[:, :, queries]  # [B, heads, S, S] -> [B, heads, Q, S]
        at = torch.arange(len(keys), device=weights.device)
        successor, same = rows[:, :, at, keys].mean(2), rows[:, :, at, keys - 1].mean(2)  # [B, heads]
        source = rows[..., self.source].mean((2, 3))  # [B, heads]
        self.found.setdefault(place, []).append((successor.cpu(), same.cpu(), source.cpu()))

    def attended(self, attentions: list[Attention]) -> Attended:
        successor, same, source = (
            torch.stack([torch.cat([batch[kind] for batch in self.found[i]]) for i in range(len(attentions))], 1)
            for kind in range(3)
        )  # [n, blocks, heads] each
        chance = float((1 / (self.queries + 1).double()).mean())
        return Attended(tuple(one.block for one in attentions), successor, same, source, chance)


@torch.no_grad()
def copying(llm: LanguageModel, ids: Tensor, start: int, tick: Tick | None = None) -> Copying:
    """How well repeated texts `[n, start + 2 length]` are predicted."""
    length = (ids.shape[1] - start) // 2
    losses = []
    for batch in ids.split(max(1, TOKENS_AT_ONCE // ids.shape[1])):
        tokens = batch.to(llm.device)
        logits = llm.model(input_ids=tokens, use_cache=False).logits[:, :-1].float()  # [B, S - 1, V]
        each = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
        losses.append(each.view(len(batch), -1).cpu())  # [B, S - 1]: entry i is token i + 1
        if tick is not None:
            tick(sum(map(len, losses)))
    loss = torch.cat(losses)
    return Copying(loss[:, start : start + length - 1].mean(1), loss[:, start + length :].mean(1))


def read_text(llm: LanguageModel, attentions: list[Attention], ids: Tensor, start: int) -> tuple[Attended, Copying]:
    """Attention and copying on what `repeated_text` gave; weights are averaged over all tokens of the second copy that have
    a successor in the first."""
    length = (ids.shape[1] - start) // 2
    earlier = torch.arange(start, start + length - 1)
    reader = _Reader(earlier + length, earlier + 1, slice(start, start + length))
    with attention.watched(llm, attentions, reader), progress(f"read repeated text with {llm.name}", len(ids)) as tick:
        found = copying(llm, ids, start, tick)
    return reader.attended(attentions), found


def image_places(model: LM4LV) -> tuple[Tensor, Tensor, slice]:
    """Where LM4LV's sequence holds what: queries (HQ token t, whose output is token t + 1), keys (LQ token t + 1), both for
    t = 0..T-2, and the LQ image."""
    words, visual = model.words, model.visual
    low = len(words.opening)
    count = next(iter(model.task_tokens.values())).shape[-2]
    high = words.prompt_length(visual, count) + len(words.open)
    t = torch.arange(visual - 1)
    return high + t, low + t + 1, slice(low, low + visual)


@torch.no_grad()
def restored_psnr(model: LM4LV, degraded: Tensor, clean: Tensor, task: str) -> Tensor:
    """PSNR in dB of every image that LM4LV writes, `[n]`, from `[n, 3, H, W]`: one token after the other, each from its own
    answer so far."""
    return psnr(model.restore(degraded, task), clean.cpu())


@torch.no_grad()
def visual_loss(model: LM4LV, low: Tensor, high: Tensor, task: str, tick: Tick | None = None) -> Tensor:
    """LM4LV's visual loss of every image, `[n]`, from tokens `[n, T, D]`: teacher forcing, so that each token is predicted
    with the right ones before it at hand. What generation makes of its own errors is not in it."""
    made: list[Tensor] = []
    watch = model.adapter_out.register_forward_hook(lambda module, inputs, output: made.append(output))
    batch = max(1, TOKENS_AT_ONCE // (2 * model.visual))
    losses: list[Tensor] = []
    try:
        for some, wanted in zip(low.split(batch), high.split(batch), strict=True):
            model(some, wanted, task)
            losses.append((made.pop() - wanted.to(model.adapter_out.weight)).square().mean((1, 2)).cpu())
            if tick is not None:
                tick(sum(map(len, losses)))
    finally:
        watch.remove()
    return torch.cat(losses)


def read_images(
    model: LM4LV, attentions: list[Attention], low: Tensor, high: Tensor, task: str
) -> tuple[Attended, Tensor]:
    """Attention on LM4LV's sequences of tokens `[n, T, D]`, and the visual loss `[n]`."""
    reader = _Reader(*image_places(model))
    with attention.watched(model.llm, attentions, reader), progress("read LM4LV's sequences", len(low)) as tick:
        loss = visual_loss(model, low, high, task, tick)
    return reader.attended(attentions), loss


# --- switching heads off ---


def random_heads(
    chosen: list[Head],
    attentions: list[Attention],
    generator: torch.Generator,
    *,
    same_blocks: bool,
    avoid: Collection[Head] = (),
) -> list[Head]:
    """As many heads as `chosen`, none of them nor of `avoid`: of the same blocks, as many in each where it has them (what is
    missing comes from any block), or of blocks that have none of either. An empty list where there are too few."""
    taken = {*chosen, *avoid}
    theirs = {block for block, _ in (chosen if same_blocks else taken)}
    every = [(one.block, head) for one in attentions for head in range(1, one.heads + 1)]
    free = [head for head in every if head not in taken]

    def draw(heads: list[Head], count: int) -> list[Head]:
        order = torch.randperm(len(heads), generator=generator)[:count].tolist()
        return [heads[i] for i in order]

    if not same_blocks:
        others = [head for head in free if head[0] not in theirs]
        return draw(others, len(chosen)) if len(others) >= len(chosen) else []
    if len(free) < len(chosen):
        return []
    drawn: list[Head] = []
    for block in sorted(theirs):
        drawn += draw([head for head in free if head[0] == block], sum(head[0] == block for head in chosen))
    rest = [head for head in free if head not in drawn]
    return drawn + draw(rest, len(chosen) - len(drawn))


@dataclass(frozen=True)
class Ablated:
    """What is left without some heads. `group` says which: "none", those of a map, or random ones; `copied` is the loss of
    every text's second copy, `[n]`, `visual` the visual loss of every image, `[m]`, and `restored` the PSNR in dB of every
    image that was written anew, None without LM4LV."""

    group: str
    heads: list[Head]
    copied: Tensor
    visual: Tensor | None
    restored: Tensor | None


def ablate(
    llm: LanguageModel,
    attentions: list[Attention],
    chosen: dict[str, list[Head]],
    ids: Tensor,
    start: int,
    loss_of_images: Callable[[], Tensor] | None = None,
    quality: Callable[[], Tensor] | None = None,
    *,
    draws: int = 5,
    seed: int = 0,
) -> list[Ablated]:
    """Copying and restoring with all heads, without each group of `chosen`, and without as many random heads.
    `loss_of_images` and `quality` give LM4LV's visual loss and the PSNR of what it writes.

    Random heads are drawn `draws` times of the blocks of each group ("random, blocks of NAME") and of blocks without
    any chosen head ("random, other blocks"), where there are enough. A head's output is replaced by zeros, which may do
    more harm than its absence would in a model trained so: that is what the random heads are for.
    """
    generator = torch.Generator().manual_seed(seed)
    plans: list[tuple[str, list[Head]]] = [("none", []), *chosen.items()]
    everyone = {head for heads in chosen.values() for head in heads}
    for same_blocks in (True, False):
        for name, heads in chosen.items() if same_blocks else list(chosen.items())[:1]:
            group = f"random, blocks of {name}" if same_blocks else "random, other blocks"
            for _ in range(draws):
                drawn = random_heads(heads, attentions, generator, same_blocks=same_blocks, avoid=everyone)
                plans.append((group, drawn))
    found = []
    known: dict[frozenset[Head], tuple[Tensor, Tensor | None, Tensor | None]] = {}  # two maps may name the same heads
    with progress("switch heads off", len(plans), "groups") as tick:
        for group, heads in plans:
            if heads or group == "none":
                if (them := frozenset(heads)) not in known:
                    with attention.without(attentions, heads):
                        copied = copying(llm, ids, start).second
                        visual, restored = (None if one is None else one() for one in (loss_of_images, quality))
                    known[them] = (copied, visual, restored)
                found.append(Ablated(group, heads, *known[them]))
            tick(len(found))
    return found
