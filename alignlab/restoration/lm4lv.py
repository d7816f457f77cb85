"""LM4LV (Zheng et al. 2024): a frozen language model reads an image's tokens and writes a better image's, one by one.

Two linear layers and a few task tokens are all that trains. Visual tokens are regressed: the language model's hidden
state, through the output layer, is the encoder's next token, and that token, through the input layer, is the next input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignlab.models.llm import LanguageModel
from alignlab.restoration.adapters import adapters
from alignlab.restoration.adapters import task_tokens as task_tokens_for
from alignlab.restoration.restorer import Losses, Restorer
from alignlab.restoration.sequence import Conversation, conversation

MODES = ("forced", "free")
MOST_TEXT = 32  # tokens that a free answer may spend before its image, and after it


@dataclass(frozen=True)
class Generated:
    """`tokens` `[B, T, D]`, the encoder's; `written` is false where a free answer never opened an image (its tokens are
    zeros); `texts` holds what each answer said before and after its image, markers included.
    """

    tokens: Tensor
    written: Tensor
    texts: tuple[str, ...]


class LM4LV(Restorer):
    """The adapters and task tokens round a frozen `encoder` (one with a decoder) and a frozen `llm`.

    `tasks` share the adapters, and each has `task_tokens` tokens of its own. Parameters are float32 whatever the language
    model is held in, and `begin` as `adapters.adapters` says. With `lora`, a rank, the language model learns too, through
    low-rank updates: an ablation. Raises ValueError for an encoder without a decoder and for a sequence longer than the
    model's context.
    """

    how = "lm4lv"
    says_words = True

    def __init__(
        self,
        encoder: Any,
        llm: LanguageModel,
        task_tokens: int = 10,
        *,
        tasks: Sequence[str] = ("denoise",),
        seed: int = 0,
        sample: Tensor | None = None,
        lora: int = 0,
        begin: str = "fitted",
    ) -> None:
        super().__init__(encoder, tasks, llm, sample)
        if task_tokens < 1:
            raise ValueError(f"task_tokens must be 1 or more, got {task_tokens}")
        if lora < 0:
            raise ValueError(f"lora must be a rank of 1 or more, or 0 for none, got {lora}")
        llm.model.requires_grad_(False)  # LoRA's own weights come later
        self.words: Conversation = conversation(llm.tokenizer)
        length = (
            self.words.prompt_length(self.visual, task_tokens)
            + len(self.words.open)
            + self.visual
            + len(self.words.ending)
        )
        if llm.context is not None and length > llm.context:
            raise ValueError(
                f"a conversation of {length} tokens is longer than the {llm.context} that {llm.name} can read"
            )
        generator = torch.Generator().manual_seed(seed)
        self.adapter_in, self.adapter_out = adapters(self.sample, llm, generator, begin)
        self.task_tokens = task_tokens_for(tasks, task_tokens, llm, generator)
        self.lora = add_lora(llm.model, lora, seed) if lora else None
        self.to(llm.device)

    # --- the sequence ---

    def _embed(self, ids: Sequence[int], batch: int) -> Tensor:
        """Token ids -> `[B, n, D_llm]`."""
        embedding: Any = self.llm.model.get_input_embeddings()
        found = embedding(torch.tensor(ids, device=self.llm.device))  # [n, D_llm]
        return found.expand(batch, -1, -1)

    def _visual(self, tokens: Tensor) -> Tensor:
        """The encoder's tokens `[B, n, D]` -> `[B, n, D_llm]` in the language model's dtype."""
        return self.adapter_in(tokens.to(self.adapter_in.weight)).to(self.llm.dtype)

    def _prompt(self, tokens: Tensor, task: str) -> Tensor:
        """Everything before the assistant's turn, `[B, P, D_llm]`."""
        self.check(tokens, task)
        b = len(tokens)
        task_tokens = self.task_tokens[task].to(self.llm.dtype).expand(b, -1, -1)
        words = self.words
        parts = (self._embed(words.opening, b), self._visual(tokens), self._embed(words.close, b), task_tokens)
        return torch.cat([*parts, self._embed(words.answer, b)], dim=1)

    def _body(self, embeddings: Tensor, **options: Any) -> Any:
        """The language model without its vocabulary, which is projected to at text positions only."""
        return self.llm.model.base_model(inputs_embeds=embeddings, return_dict=True, **options)

    def _logits(self, hidden: Tensor) -> Tensor:
        head: Any = self.llm.model.get_output_embeddings()
        return head(hidden).float()

    # --- training ---

    def forward(self, low: Tensor, high: Tensor, task: str) -> Losses:
        """The losses of writing `high` after reading `low`, both tokens of the encoder `[B, T, D]` (teacher forcing)."""
        predicted, spoken = self._answer(low, high, task)
        words = self.words
        truth = torch.tensor([*words.open, *words.ending], device=spoken.device).expand(len(low), -1)  # [B, n]
        text = F.cross_entropy(self._logits(spoken).flatten(0, 1), truth.flatten())
        return Losses(F.mse_loss(predicted, high.to(predicted)), text)

    @torch.no_grad()
    def told(self, low: Tensor, high: Tensor, task: str) -> Tensor:
        return self._answer(low, high, task)[0]

    def _answer(self, low: Tensor, high: Tensor, task: str) -> tuple[Tensor, Tensor]:
        """The tokens `[B, T, D]` that are written where those of `high` are read, and the hidden states `[B, n, D_llm]` that
        predict the assistant's words.
        """
        prompt = self._prompt(low, task)
        b, words = len(low), self.words
        answer = (self._embed(words.open, b), self._visual(high), self._embed(words.ending, b))
        hidden = self._body(torch.cat([prompt, *answer], dim=1), use_cache=False).last_hidden_state  # [B, S, D_llm]
        # Each position predicts the next one, so that everything is read one position earlier.
        opens = prompt.shape[1] - 1
        image = opens + len(words.open)
        closes = image + self.visual
        predicted = self.adapter_out(hidden[:, image:closes].to(self.adapter_out.weight))  # [B, T, D]
        return predicted, torch.cat([hidden[:, opens:image], hidden[:, closes : closes + len(words.ending)]], dim=1)

    # --- generation ---

    @torch.no_grad()
    def generate(self, low: Tensor, task: str, mode: str = "forced", *, cache: bool = True) -> Generated:
        """Write an image's tokens after reading `low` `[B, T, D]`, each fed back before the next.

        "forced" puts the opening marker there and reads exactly T tokens, as the authors' evaluation does; "free" lets the
        model speak until it opens an image itself, and go on after it (at most 32 tokens before and after). `cache` keeps
        keys and values, which changes the time and, but for rounding, nothing else.
        """
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
        reader = _Reader(self, cache)
        hidden = reader(self._prompt(low, task))  # [B, D_llm]: the last position's
        return self._forced(reader, len(low)) if mode == "forced" else self._free(reader, hidden)

    def _forced(self, reader: _Reader, batch: int) -> Generated:
        hidden = reader(self._embed(self.words.open, batch))
        written: list[Tensor] = []
        while True:
            written.append(self.adapter_out(hidden.to(self.adapter_out.weight)))  # [B, D]
            if len(written) == self.visual:
                break
            hidden = reader(self._visual(written[-1][:, None]))
        return Generated(torch.stack(written, 1), torch.ones(batch, dtype=torch.bool), ("",) * batch)

    def _free(self, reader: _Reader, hidden: Tensor) -> Generated:
        """Every answer is somewhere of its own: in text, in its image, in text again or done; all take one step together."""
        batch, marker, end = len(hidden), list(self.words.open), list(self.words.ending)
        said: list[list[int]] = [[] for _ in range(batch)]  # token ids; after the image from `after` on
        after: list[int | None] = [None] * batch
        images: list[list[Tensor]] = [[] for _ in range(batch)]
        done = [False] * batch
        eos = self.llm.tokenizer.eos_token_id
        while True:
            tokens = self._logits(hidden).argmax(-1).tolist()  # [B]
            features = self.adapter_out(hidden.to(self.adapter_out.weight))  # [B, D]
            words = self._embed(tokens, 1)[0]  # [B, D_llm]
            pictures = self._visual(features[:, None])[:, 0]  # [B, D_llm]
            steps = []
            for i in range(batch):
                if 0 < len(images[i]) < self.visual or (not images[i] and said[i][-len(marker) :] == marker):
                    images[i].append(features[i])
                    if len(images[i]) == self.visual:
                        after[i] = len(said[i])
                    steps.append(pictures[i])
                    continue
                if not done[i]:
                    said[i].append(tokens[i])
                    spent = len(said[i]) - (after[i] or 0)
                    finished = tokens[i] == eos or (after[i] is not None and said[i][after[i] :][-len(end) :] == end)
                    opening = not images[i] and said[i][-len(marker) :] == marker
                    done[i] = finished or (spent >= MOST_TEXT and not opening)
                steps.append(words[i])
            full = self.llm.context is not None and reader.length >= self.llm.context
            if all(done) or full:
                break
            hidden = reader(torch.stack(steps)[:, None])
        nothing = torch.zeros(self.visual, features.shape[1], device=features.device)
        whole = [len(image) == self.visual for image in images]
        tokens_of = [torch.stack(image) if ok else nothing for image, ok in zip(images, whole, strict=True)]
        texts = tuple(str(self.llm.tokenizer.decode(ids)) for ids in said)
        return Generated(torch.stack(tokens_of), torch.tensor(whole), texts)

    def write(self, low: Tensor, task: str, *, mode: str = "forced") -> Tensor:
        """The tokens that `generate` writes in a mode; zeros where a free answer never opened an image."""
        return self.generate(low, task, mode).tokens


class _Reader:
    """Feeds embeddings `[B, n, D_llm]` to the language model, one piece after another; the last position's hidden state
    `[B, D_llm]`. Without a cache all that came before is read again each time."""

    def __init__(self, model: LM4LV, cache: bool) -> None:
        self.model, self.cache = model, cache
        self.past: Any = None
        self.length = 0  # positions read
        self.seen: list[Tensor] = []

    def __call__(self, embeddings: Tensor) -> Tensor:
        self.length += embeddings.shape[1]
        if not self.cache:
            self.seen.append(embeddings)
            return self.model._body(torch.cat(self.seen, dim=1), use_cache=False).last_hidden_state[:, -1]
        out = self.model._body(embeddings, past_key_values=self.past, use_cache=True)
        self.past = out.past_key_values
        return out.last_hidden_state[:, -1]


def add_lora(model: nn.Module, rank: int, seed: int) -> nn.ParameterDict:
    """Low-rank updates (Hu et al. 2021) beside every linear layer of a language model's blocks, in place; what they learn.

    An ablation: the language model is then no longer frozen. They start as zero. Raises ValueError without peft.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError('LoRA needs peft; pip install "alignlab[lora]"') from error

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"), model)
    learnt = {name: p for name, p in model.named_parameters() if "lora_" in name}
    for p in learnt.values():
        p.data = p.data.float()
        p.requires_grad_(True)
    return nn.ParameterDict({name.replace(".", "/"): p for name, p in learnt.items()})
