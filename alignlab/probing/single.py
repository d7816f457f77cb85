"""One block of a frozen language model, taken out of it: a map from a set of vectors to a set of vectors.

No block is called by hand, whose arguments differ from one architecture and version of transformers to the next. The model
itself runs, cut down to that block, its causal mask and its positions cancelled as in `restoration.vit_llm`; hooks put what is
to be read at the block's door and take what it writes before anything comes after it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from alignlab.models.llm import LanguageModel
from alignlab.restoration.vit_llm import read


@dataclass(eq=False)
class Block:
    """Hidden states `[B, S, D_llm]` -> what the block makes of them `[B, S, D_llm]`, its residual connections included.

    Every vector sees every other, and none knows where it stands. `llm` holds no other block, and shares this one's weights
    with the language model that it was taken from; they are frozen, gradients flow through. `number` counts from 1.
    """

    number: int
    llm: LanguageModel
    module: nn.Module

    def __call__(self, hidden: Tensor) -> Tensor:
        hidden = hidden.to(self.llm.dtype)
        table: Any = self.llm.model.get_input_embeddings()  # not always as wide as the block
        ignored = hidden.new_zeros(*hidden.shape[:2], table.weight.shape[1])  # [B, S, D_embedding]
        with _tapped(self.module, hidden) as written:
            read(self.llm, ignored, bidirectional=True, rotary=False)
        if len(written) != 1 or written[0].shape != hidden.shape:
            raise ValueError(
                f"{_kind(self.llm)}: its block {self.number} is no map from hidden states to hidden states"
            )
        return written[0]


def count(llm: LanguageModel) -> int:
    """How many blocks the language model has."""
    return llm.num_layers - 1


def take(llm: LanguageModel, number: int) -> Block:
    """Block `number` of 1..K. Raises ValueError for another number, and where blocks cannot be read without mask and positions
    (ALiBi, recurrent ones, a mask of their own).
    """
    return _checked(_alone(llm, number, _blocks(llm)[1][_index(llm, number)]))


def fresh(llm: LanguageModel, number: int, seed: int) -> Block:
    """A block as `take` gives it, with weights that the model's own initialisation draws anew from `seed`.

    Drawn in float32 on the CPU, so that neither dtype nor device changes a number; PyTorch's random state is as before.
    Errors as `take`, and for weights that the initialisation leaves as they were.
    """
    source: Any = _blocks(llm)[1][_index(llm, number)]
    module = copy.deepcopy(source).float().cpu()
    body: Any = llm.model.get_decoder()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(seed)
        module.apply(body._init_weights)  # the inner parts first, as transformers does: GPT-2 scales some afterwards
    for (name, new), old in zip(module.named_parameters(), source.parameters(), strict=True):
        if new.ndim > 1 and torch.equal(new, old.float().cpu()):
            raise ValueError(f"{_kind(llm)}: no random weights can be drawn for {name} of its block {number}")
    module = module.to(llm.device, llm.dtype).requires_grad_(False).eval()
    return _checked(_alone(llm, number, module))


def _kind(llm: LanguageModel) -> str:
    return f"{llm.name} ({llm.model.config.get_text_config().model_type})"


def _index(llm: LanguageModel, number: int) -> int:
    if not 1 <= number <= count(llm):
        raise ValueError(f"{llm.name} has the layers 1 to {count(llm)}, got {number}")
    return number - 1


def _blocks(llm: LanguageModel) -> tuple[str, nn.ModuleList]:
    """The list of blocks and its name within the body: of the lists as long as the model is deep, the outermost."""
    body: Any = llm.model.get_decoder()
    found = [
        (name, m) for name, m in body.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count(llm) and name
    ]
    if not found:
        raise ValueError(f"{_kind(llm)}: its blocks are not in one list, and none can be taken out")
    return min(found, key=lambda one: one[0].count("."))


def _alone(llm: LanguageModel, number: int, module: nn.Module) -> Block:
    """The language model's body with `module` for all its blocks; `llm` itself stays as it is."""
    path, _ = _blocks(llm)
    body: Any = _twin(llm.model.get_decoder())
    body.config = _config_of_one(body.config, count(llm), number - 1)
    *outer, last = path.split(".")
    holder = body
    for name in outer:
        holder._modules[name] = holder = _twin(holder._modules[name])
    holder._modules[last] = nn.ModuleList([module])
    body.requires_grad_(False)
    return Block(number, replace(llm, name=f"{llm.name}, layer {number}", model=body.eval()), module)


def _twin(module: nn.Module) -> nn.Module:
    """The same module, whose parts can be exchanged without exchanging those of the other."""
    found = copy.copy(module)
    found.__dict__["_modules"] = dict(module._modules)
    return found


def _config_of_one(config: Any, whole: int, index: int) -> Any:
    """The configuration of block `index` alone, as `models.llm_load` cuts one: some list what kind each block is."""
    found = copy.deepcopy(config)
    text = found.get_text_config()
    for key, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == whole and not key.endswith("token_id"):
            setattr(text, key, value[index : index + 1])
    text.num_hidden_layers = 1
    return found


@contextmanager
def _tapped(module: nn.Module, hidden: Tensor) -> Iterator[list[Tensor]]:
    """Within, `module` reads `hidden` whatever it is given (embeddings may be scaled or have positions added on their way),
    and what it writes is in the list.
    """
    written: list[Tensor] = []

    def enter(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return ((hidden, *args[1:]), named) if args else (args, {**named, "hidden_states": hidden})

    def leave(_: nn.Module, __: Any, out: Any) -> None:
        written.append(out[0] if isinstance(out, tuple) else out)

    handles = [module.register_forward_pre_hook(enter, with_kwargs=True), module.register_forward_hook(leave)]
    try:
        yield written
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _checked(block: Block) -> Block:
    """The block; ValueError unless tokens in another order come back as they were, in it."""
    refusal = f"{_kind(block.llm)} cannot be read as a set: its causal mask or its positions cannot be cancelled"
    try:
        exact = _exact(block)
        llm = exact.llm
        tokens = torch.randn(1, 6, llm.width, generator=torch.Generator().manual_seed(0)).to(llm.device, llm.dtype)
        plain, turned = ((exact(t) - t).float() for t in (tokens, tokens.flip(1)))  # what it adds
    except (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError) as error:
        raise ValueError(refusal) from error
    # Rounding moves all of them a little; what minds the order leaves none of an even number in its place.
    off = ((turned.flip(1) - plain).norm(dim=-1) / plain.norm(dim=-1)).min()
    if not off < torch.finfo(llm.dtype).eps ** 0.5:
        raise ValueError(refusal)
    return block


def _exact(block: Block) -> Block:
    """A copy in float32, in which a block's rounding cannot hide what it adds; of quantised weights the block itself."""
    if getattr(block.llm.model, "is_quantized", False):
        return block
    llm = replace(block.llm, model=copy.deepcopy(block.llm.model).float())
    return Block(block.number, llm, _blocks(llm)[1][0])
