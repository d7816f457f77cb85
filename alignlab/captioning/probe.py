"""The captioning probe: one linear layer between a frozen encoder and a frozen language model.

LLaVA's first stage (Liu et al. 2023) and LiMBeR (Merullo et al. 2023), as the LM4LV paper uses them for its Table 4: how well
the language model describes an image that it is shown through a linear layer tells how alike the two represent the world.

    ### Human: <Img>visual tokens</Img>
    ### Assistant: caption
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignlab.models.llm import LanguageModel
from alignlab.restoration.adapters import layer_in
from alignlab.restoration.sequence import ANSWER, conversation

LONGEST = 64  # tokens of a caption that is generated


class CaptionProbe(nn.Module):
    """A linear `projector` from the tokens of `encoder` to the embeddings of `llm`; it alone learns.

    `prefix` stands before every caption and is not learnt ("A picture of" in LiMBeR). `sample` is `[N, T, D]`, the
    encoder's tokens of a few training pictures, whose mean and spread the layer begins with; without it a grey picture's
    say how large tokens are. Captions end with the language model's own end of text. Raises ValueError for a language
    model without one, and for a sequence longer than it can read.
    """

    def __init__(
        self, encoder: Any, llm: LanguageModel, *, prefix: str = "", seed: int = 0, sample: Tensor | None = None
    ) -> None:
        super().__init__()
        # Past nn.Module, which would take an encoder that is a module for a part of this one's state.
        self.__dict__.update(encoder=encoder, llm=llm)
        llm.model.requires_grad_(False)
        if sample is None:
            sample = encoder.encode(torch.full((1, 3, encoder.image_size, encoder.image_size), 0.5))
        self.visual, self.width = sample.shape[1:]
        if llm.tokenizer.eos_token_id is None:
            raise ValueError(f"the tokenizer of {llm.name} has no end of text, so that a caption could not end")
        self.end = int(llm.tokenizer.eos_token_id)
        words = conversation(llm.tokenizer)
        self.before = words.opening
        self.after = words.close + words.answer + tuple(self._said(prefix) if prefix.strip() else ())
        room = llm.context
        if room is not None and self.prompt_length + 2 > room:
            raise ValueError(
                f"{self.visual} visual tokens and their prompt are {self.prompt_length}, more than the {room} tokens that "
                f"{llm.name} can read"
            )
        self.projector = layer_in(sample, llm, torch.Generator().manual_seed(seed))
        self.to(llm.device)

    encoder: Any
    llm: LanguageModel
    visual: int
    width: int

    @property
    def prompt_length(self) -> int:
        """How many positions come before the caption."""
        return len(self.before) + self.visual + len(self.after)

    def trainable(self) -> Iterator[nn.Parameter]:
        """The projector's parameters; AssertionError where a frozen part would learn."""
        models = [getattr(self.encoder, "model", None), self.llm.model]
        frozen = [p for model in models if isinstance(model, nn.Module) for p in model.parameters()]
        assert not any(p.requires_grad for p in frozen), "the encoder and the language model are frozen"
        return self.projector.parameters()

    # --- the sequence ---

    def _said(self, text: str) -> list[int]:
        """The ids of a text as the tokenizer writes it after the assistant's colon."""
        tokenizer = self.llm.tokenizer

        def ids(part: str) -> list[int]:
            return list(tokenizer(part, add_special_tokens=False)["input_ids"])

        answer, both = ids(ANSWER), ids(f"{ANSWER} {text.strip()}")
        follows = both[: len(answer)] == answer and len(both) > len(answer)
        return both[len(answer) :] if follows else ids(f" {text.strip()}")

    def length(self, caption: str) -> int:
        """How many tokens of a caption are learnt, its end included."""
        room = len(self._said(caption)) + 1
        return room if self.llm.context is None else min(room, self.llm.context - self.prompt_length)

    def _embed(self, ids: Sequence[int] | Tensor) -> Tensor:
        """Token ids `[...]` -> `[..., D_llm]`."""
        embedding: Any = self.llm.model.get_input_embeddings()
        found: Tensor = embedding(torch.as_tensor(ids, device=self.llm.device))
        return found

    def prompt(self, tokens: Tensor) -> Tensor:
        """Everything before the caption, `[B, P, D_llm]`; `tokens` are the encoder's, `[B, T, D]`."""
        if tokens.ndim != 3 or tokens.shape[1:] != (self.visual, self.width):
            wanted = f"[B, {self.visual}, {self.width}]"
            raise ValueError(f"tokens must be {wanted}, as {self.encoder.name} gives them, got {list(tokens.shape)}")
        b = len(tokens)
        seen = self.projector(tokens.to(self.projector.weight)).to(self.llm.dtype)  # [B, T, D_llm]
        before, after = (self._embed(ids).expand(b, -1, -1) for ids in (self.before, self.after))
        return torch.cat([before, seen, after], dim=1)

    def forward(self, tokens: Tensor, captions: Sequence[str]) -> Tensor:
        """Cross-entropy in nats, the mean over all tokens of the `captions` of a batch and the end of each.

        `tokens` are the encoder's, `[B, T, D]`. A caption longer than the language model can read is cut. Raises
        ValueError for a caption without words and for another number of captions than images.
        """
        if len(captions) != len(tokens):
            raise ValueError(f"captions must be one an image, got {len(captions)} for {len(tokens)} images")
        prompt = self.prompt(tokens)
        room = None if self.llm.context is None else self.llm.context - prompt.shape[1]
        targets = []
        for i, caption in enumerate(captions):
            if not caption.strip():
                raise ValueError(f"captions[{i}] is empty; remove the item or describe it")
            targets.append([*self._said(caption), self.end][:room])
        longest = max(map(len, targets))
        # What follows a caption's end is seen by none of its tokens: any id will do there.
        ids = torch.tensor([one + [self.end] * (longest - len(one)) for one in targets], device=prompt.device)  # [B, n]
        lengths = torch.tensor([len(one) for one in targets], device=prompt.device)
        counts = torch.arange(longest, device=prompt.device) < lengths[:, None]  # [B, n]
        sequence = torch.cat([prompt, self._embed(ids[:, :-1])], dim=1)
        hidden = self.llm.model.base_model(inputs_embeds=sequence, use_cache=False, return_dict=True).last_hidden_state
        # Each position predicts the next one; the vocabulary is projected to where a caption's token is predicted only.
        said = hidden[:, prompt.shape[1] - 1 :][counts]  # [tokens, D_llm]
        head: Any = self.llm.model.get_output_embeddings()
        return F.cross_entropy(head(said).float(), ids[counts])

    # --- captions ---

    @torch.no_grad()
    def generate(self, tokens: Tensor, *, beams: int = 1, longest: int = LONGEST) -> list[str]:
        """A caption for each image, from the encoder's tokens `[B, T, D]`: greedily, or with so many `beams`.

        At most `longest` tokens, without the prefix, white space trimmed; one may be empty. Keys and values are kept.
        """
        if beams < 1 or longest < 1:
            raise ValueError(f"beams and longest must be 1 or more, got {beams} and {longest}")
        prompt = self.prompt(tokens)
        if self.llm.context is not None:
            longest = min(longest, self.llm.context - prompt.shape[1])
        ids = self.llm.model.generate(  # type: ignore[operator]
            inputs_embeds=prompt,
            attention_mask=torch.ones(prompt.shape[:2], dtype=torch.long, device=prompt.device),
            max_new_tokens=longest,
            num_beams=beams,
            do_sample=False,
            eos_token_id=self.end,
            pad_token_id=self.end,
            # What a checkpoint's own settings for chats would add has no place in a measurement.
            temperature=None,
            top_p=None,
            top_k=None,
            repetition_penalty=1.0,
        )
        return [text.strip() for text in self.llm.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def caption(self, images: Tensor, *, batch_size: int = 32, **options: Any) -> list[str]:
        """Images `[B, 3, H, W]` in 0..1 -> a caption each; `options` are those of `generate`."""
        return [
            text for batch in images.split(batch_size) for text in self.generate(self.encoder.encode(batch), **options)
        ]
