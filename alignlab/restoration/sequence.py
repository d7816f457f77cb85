"""The conversation that LM4LV puts an image into (section 3.3 of the paper), and where in it what is predicted.

    ### Human: <Img>LQ tokens</Img> TASK tokens
    ### Assistant: <Img>HQ tokens</Img>
    ###

The markers are ordinary text, tokenised by the language model's own tokenizer. Of the text, only the assistant's turn is
learnt: the marker that opens its image, and what follows the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OPENING, CLOSE_IMAGE, ANSWER = "### Human: <Img>", "</Img>", " \n### Assistant:"
OPEN_IMAGE, ENDING = " <Img>", "</Img>\n###"


@dataclass(frozen=True)
class Conversation:
    """Token ids of the texts between the embeddings, in order: opening, LQ, close, TASK, answer, open, HQ, ending."""

    opening: tuple[int, ...]  # with BOS where the tokenizer has one
    close: tuple[int, ...]
    answer: tuple[int, ...]
    open: tuple[int, ...]
    ending: tuple[int, ...]

    def prompt_length(self, visual: int, task: int) -> int:
        """How many positions come before the assistant's turn."""
        return len(self.opening) + visual + len(self.close) + task + len(self.answer)


def conversation(tokenizer: PreTrainedTokenizerBase) -> Conversation:
    """The texts as ids. Raises ValueError for a tokenizer that makes nothing of one of them."""

    def ids(text: str) -> tuple[int, ...]:
        found = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
        if not found:
            raise ValueError(f"the tokenizer makes no token of {text!r}, so that the conversation cannot be written")
        return found

    bos = (tokenizer.bos_token_id,) if tokenizer.bos_token_id is not None else ()
    answer, both = ids(ANSWER), ids(ANSWER + OPEN_IMAGE)
    # As the tokenizer writes it after the colon, where that is the same text with more at its end.
    follows = both[: len(answer)] == answer and len(both) > len(answer)
    return Conversation(
        opening=bos + ids(OPENING),
        close=ids(CLOSE_IMAGE),
        answer=answer,
        open=both[len(answer) :] if follows else ids(OPEN_IMAGE),
        ending=ids(ENDING),
    )
