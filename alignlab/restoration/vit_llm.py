"""ViT-LLM generation (section 4.4 of the LM4LV paper): the frozen language model as a ViT, one forward pass for an image.

The encoder's tokens go in together, and the hidden state at each of them, through the output layer, is the restored one.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignlab.models.llm import LanguageModel
from alignlab.restoration.adapters import adapters, spread
from alignlab.restoration.adapters import task_tokens as task_tokens_for
from alignlab.restoration.restorer import Losses, Restorer

# What transformers calls a table of learned positions.
_POSITION_TABLES = ("wpe", "embed_positions")


class ViTLLM(Restorer):
    """The adapters round a frozen `encoder` (one with a decoder) and a frozen `llm` that is read as a ViT.

    `bidirectional` cancels the causal mask (and a sliding window with it), `rotary=False` cancels the positions: rotary
    ones and, in a model that has these instead, learned ones. The paper cancels both, and these are the defaults; with
    `bidirectional=False, rotary=True` the language model is as it was. A single task has no text and no task tokens; of
    several, each has `task_tokens` tokens of its own in front of the image. The layers start as LM4LV's do. Raises
    ValueError for an encoder without a decoder, for more tokens than the model can read, and for a model whose mask or
    positions cannot be cancelled (ALiBi, recurrent layers, a mask of its own).
    """

    how = "vit-llm"

    def __init__(
        self,
        encoder: Any,
        llm: LanguageModel,
        task_tokens: int = 10,
        *,
        bidirectional: bool = True,
        rotary: bool = False,
        tasks: Sequence[str] = ("denoise",),
        seed: int = 0,
        sample: Tensor | None = None,
        begin: str = "fitted",
    ) -> None:
        super().__init__(encoder, tasks, llm, sample)
        if task_tokens < 1:
            raise ValueError(f"task_tokens must be 1 or more, got {task_tokens}")
        llm.model.requires_grad_(False)
        several = len(self.tasks) > 1
        length = self.visual + several * task_tokens
        if llm.context is not None and length > llm.context:
            raise ValueError(f"{length} tokens are more than the {llm.context} that {llm.name} can read")
        if bidirectional or not rotary:
            _check_set(llm)
        self.bidirectional, self.rotary = bidirectional, rotary
        generator = torch.Generator().manual_seed(seed)
        self.adapter_in, self.adapter_out = adapters(self.sample, llm, generator, begin)
        self.task_tokens = task_tokens_for(self.tasks if several else (), task_tokens, llm, generator)
        self.to(llm.device)

    def _map(self, low: Tensor, task: str) -> Tensor:
        """Tokens `[B, T, D]` -> tokens `[B, T, D]`, float32."""
        self.check(low, task)
        embeddings = self.adapter_in(low.to(self.adapter_in.weight)).to(self.llm.dtype)  # [B, T, D_llm]
        if task in self.task_tokens:
            tokens = self.task_tokens[task].to(self.llm.dtype).expand(len(low), -1, -1)
            embeddings = torch.cat([tokens, embeddings], dim=1)  # [B, n + T, D_llm]
        hidden = read(self.llm, embeddings, bidirectional=self.bidirectional, rotary=self.rotary)
        return self.adapter_out(hidden[:, -self.visual :].to(self.adapter_out.weight))  # [B, T, D]

    def forward(self, low: Tensor, high: Tensor, task: str) -> Losses:
        """The mean squared error of making `high` of `low`, both tokens of the encoder `[B, T, D]`; no text is learnt."""
        made = self._map(low, task)
        return Losses(F.mse_loss(made, high.to(made)), made.new_zeros(()))

    @torch.no_grad()
    def write(self, low: Tensor, task: str) -> Tensor:
        """Tokens `[B, T, D]` of what `low` should have been, float32."""
        return self._map(low, task)


def read(llm: LanguageModel, embeddings: Tensor, *, bidirectional: bool, rotary: bool) -> Tensor:
    """Embeddings `[B, S, D_llm]` -> the last hidden states `[B, S, D_llm]`, after the model's final norm."""
    body: Any = llm.model.get_decoder()
    b, s = embeddings.shape[:2]
    options: dict[str, Any] = {"use_cache": False, "return_dict": True}
    if bidirectional:  # transformers adds a mask of four dimensions as it is, in every layer
        options["attention_mask"] = embeddings.new_zeros(1, 1, s, s).expand(b, -1, -1, -1)  # [B, 1, S, S]
    elif not rotary:  # without any mask, it takes positions that do not count up for those of several texts
        options["attention_mask"] = torch.ones(b, s, dtype=torch.long, device=embeddings.device)
    if (bidirectional or not rotary) and "position_ids" in inspect.signature(body.forward).parameters:
        # Given even where they count up: a few models would count them by the mask. Rotation by position 0 turns nothing.
        options["position_ids"] = (torch.arange(s, device=embeddings.device) * rotary).expand(b, -1)  # [B, S]
    with contextlib.nullcontext() if rotary else _without_tables(body):
        hidden: Tensor = body(inputs_embeds=embeddings, **options).last_hidden_state
    return hidden


@contextmanager
def _without_tables(body: nn.Module) -> Iterator[None]:
    """Learned positions are zeros within."""
    tables = [
        m for name, m in body.named_modules() if name.split(".")[-1] in _POSITION_TABLES and isinstance(m, nn.Embedding)
    ]
    handles = [table.register_forward_hook(lambda _module, _ids, found: torch.zeros_like(found)) for table in tables]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _check_set(llm: LanguageModel) -> None:
    """ValueError unless the model, its mask and positions cancelled, gives tokens in another order their outputs in it."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(1, 6, llm.width, generator=generator).to(llm.device, llm.dtype) * spread(llm)
    refusal = (
        f"{llm.name} ({llm.model.config.get_text_config().model_type}) cannot be read as a ViT: its causal mask or its "
        "positions cannot be cancelled; bidirectional=False, rotary=True reads it as the language model that it is"
    )
    try:
        plain, turned = (read(llm, t, bidirectional=True, rotary=False).float() for t in (tokens, tokens.flip(1)))
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise ValueError(refusal) from error
    # Of the token that comes back best: in bfloat16 a few layers' rounding moves some of them far, and no order that
    # matters leaves one of an even number in its place.
    off = ((turned.flip(1) - plain).norm(dim=-1) / plain.norm(dim=-1)).min()
    if not off < torch.finfo(llm.dtype).eps ** 0.5:
        raise ValueError(refusal)
