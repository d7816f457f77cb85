"""What a captioning probe and an alignment will cost, told from the sizes in the catalogue alone: rough on purpose."""

from __future__ import annotations

from alignlab.captioning.experiment import Experiment
from alignlab.restoration.estimate import (
    ACTIVATIONS,
    ENCODER_BYTES,
    EVALUATED,
    HEAD,
    LLM_BYTES,
    OVERHEAD,
    SCORES,
    Cost,
    size_of,
)

TEXT = 50  # tokens of a probe's sequence that are no picture: some 25 around it, and a caption
WORDS = 32  # tokens of a caption when it is aligned

FORMULAS = (
    f"Training a captioning probe on an image: 4 x (T + {TEXT}) x parameters of the language model (forward, and backward to its "
    "inputs; it is frozen), "
    "2 x T x parameters of the encoder, 6 x T x parameters of the linear layer; T visual tokens.",
    f"Captioning an image: 2 x (T + {TEXT}) x parameters of the language model, keys and values kept, and the encoder. Aligning an "
    f"item: 2 x {WORDS} tokens x parameters of the language model, and the encoder.",
    f"Memory: encoder in float32 + language model + the larger of training ({ACTIVATIONS} bytes x tokens x blocks x "
    f"width, and {SCORES} x tokens squared x blocks x heads of {HEAD}, for each image of a part of the batch) and measuring (keys "
    f"and values of {EVALUATED} images) + {OVERHEAD / 1e9:.1f} GB for everything else; by activations in bfloat16, half of those "
    "in float32.",
)


def cost(one: Experiment, accumulate: int = 1, dtype: str = "bfloat16") -> Cost | None:
    """Of one probe, whatever of it is done already; None where the catalogue does not know its models. `dtype` is the
    language model's.
    """
    size = LLM_BYTES[dtype]
    encoder, llm = size_of(one.design.encoder), size_of(one.design.llm)
    if encoder is None or llm is None:
        return None
    learnt = (encoder.width + 1) * llm.width
    read = encoder.tokens + TEXT
    seen = 2 * encoder.tokens * encoder.parameters
    train = 4 * read * llm.parameters + seen + 6 * encoder.tokens * learnt
    part = -(-one.recipe.batch // accumulate)
    activations = part * read * llm.blocks * (ACTIVATIONS * llm.width + SCORES * llm.width / HEAD * read)
    kept = EVALUATED * read * llm.blocks * 2 * llm.width * size
    return Cost(
        one.recipe.steps * one.recipe.batch * train,
        one.n * (2 * read * llm.parameters + seen),
        ENCODER_BYTES * (encoder.parameters + 4 * learnt)  # with gradients and two moments
        + size * llm.parameters
        + max(activations * size // 2, kept)
        + OVERHEAD,
    )


def alignment_flop(encoder: str, llm: str, items: int) -> float:
    """Of reading a set's items with both; 0 for a model that the catalogue does not know."""
    images, texts = size_of(encoder), size_of(llm)
    parts = [
        2 * items * one.parameters * n for one, n in ((texts, WORDS), (images, images.tokens if images else 0)) if one
    ]
    return float(sum(parts))
