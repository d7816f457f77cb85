"""Any causal LM of transformers from a folder or the hub: whole or cut, trained or random, spread or quantised."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from alignlab.models import weights
from alignlab.models.assemble import check_affordable, check_counts, check_fresh, check_loaded
from alignlab.models.encoder import seeded

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

QUANTISED = ("8bit", "4bit")
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")

# Types that transformers loads as causal LMs although each token sees those after it.
_SEES_AHEAD = ("bert-generation", "xlnet")
MOST_RANDOM = 10**11  # parameters; no file bounds those of a random model
PACKED = 8  # numbers of 4 bits in one of 32, in a folder of quantised weights
# What files of older versions hold beside the weights; the model computes these itself.
_COMPUTED = ("inv_freq", "position_ids", ".attn.bias", "attention.bias", "masked_bias")


@dataclass(frozen=True)
class How:
    """What is wanted of a model beside its name; as in `load_llm`."""

    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    device_map: str | dict[str, Any] | None = None
    quantise: str | None = None
    random: bool = False
    blocks: int | None = None


def check(how: How) -> None:
    """Say what cannot be before anything is fetched. Raises ValueError."""
    if how.quantise is not None and how.quantise not in QUANTISED:
        raise ValueError(f"quantise must be one of {', '.join(QUANTISED)} or None, got {how.quantise!r}")
    if isinstance(how.device_map, str) and how.device_map not in DEVICE_MAPS:
        accepted = f"one of {', '.join(DEVICE_MAPS)}, or a dict"
        raise ValueError(f"device_map must be {accepted}, got {how.device_map!r}; device takes one device")
    # Both act while trained weights are read from files, and here there are none.
    if how.random and how.quantise:
        raise ValueError(f"a randomly initialised model (@random) cannot be quantised, got quantise={how.quantise!r}")
    if how.random and how.device_map:
        raise ValueError(f"a randomly initialised model (@random) takes no device_map, got {how.device_map!r}")
    if how.quantise and importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(f'quantise={how.quantise!r} needs bitsandbytes; pip install "alignlab[quant]"')


def check_blocks(name: str, blocks: int | None, whole: int) -> None:
    """Raises ValueError where a model of `whole` blocks is to give more."""
    if blocks is not None and blocks > whole:
        raise ValueError(
            f"{name} has {whole} blocks, so that its first {blocks} cannot be taken; use [:{whole}] or less"
        )


def load(source: str, how: How) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model, in evaluation mode and frozen, and its tokenizer; `source` is a folder or a hub id.

    Raises ValueError for a model that cannot be read or is no causal LM, and for more blocks than it has;
    RuntimeError where it cannot be fetched.
    """
    from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig

    with weights.from_hub(source), weights.quiet_transformers():
        check_counts(PreTrainedConfig.get_config_dict(source)[0], source)
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    _check_causal(config, source)
    whole = int(config.get_text_config().num_hidden_layers)
    check_blocks(source, how.blocks, whole)
    with weights.from_hub(source), weights.quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        model = _random(source, config, how) if how.random else _trained(source, cut(config, how.blocks), how)
    if how.quantise is None and how.device_map is None:
        model = model.to(how.device)  # type: ignore[arg-type]  # torch takes a string
    return model.eval().requires_grad_(False), tokenizer


def _check_causal(config: PreTrainedConfig, source: str) -> None:
    from transformers.models.auto import modeling_auto

    kind = config.model_type
    masked = {*modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, *_SEES_AHEAD}
    if getattr(config, "is_encoder_decoder", False):
        what = f"an encoder-decoder ({kind})"
    elif kind in masked and not getattr(config, "is_decoder", False):
        what = f"a masked language model ({kind})"
    elif getattr(config.get_text_config(), "use_bidirectional_attention", None) is True:
        what = f"{kind} with attention in both directions"
    elif kind not in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        what = f"of the type {kind}"
    else:
        return
    raise ValueError(f"{source} is {what}, no causal language model of transformers; give one, such as a Llama")


def cut(config: PreTrainedConfig, blocks: int | None) -> PreTrainedConfig:
    """The configuration of the first `blocks` blocks; changes `config` in place.

    A model built from it has no other blocks, keeps the final norm, and works in every way as one that was made so.
    """
    text = config.get_text_config()
    whole = text.num_hidden_layers
    if blocks is None or blocks == whole:
        return config
    for key, value in list(vars(text).items()):  # one entry a block: kinds of attention, sizes, experts
        if isinstance(value, list) and len(value) == whole and not key.endswith("token_id"):
            setattr(text, key, value[:blocks])
    text.num_hidden_layers = blocks
    return config


def _trained(source: str, config: PreTrainedConfig, how: How) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    is_packed = how.quantise is not None or hasattr(config, "quantization_config")
    if Path(source).is_dir():
        check_affordable(partial(_blank, config), Path(source), PACKED if is_packed else 1)
    options: dict[str, Any] = {"config": config, "dtype": how.dtype, "weights_only": True}
    # Weights of another shape are refused below, by name. Packed ones differ in shape in any case.
    options["ignore_mismatched_sizes"] = not is_packed
    if how.device_map is not None:
        options["device_map"] = how.device_map
    if how.quantise is not None:
        options["quantization_config"] = _quantisation(how.quantise, how.dtype)
        options.setdefault("device_map", {"": how.device})
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        source, output_loading_info=True, trust_remote_code=False, **options
    )
    model, info = loaded
    check_loaded(info, source)  # transformers has given random values to those that are missing
    if extra := sorted(key for key in info["unexpected_keys"] if not _is_expected(key, how.blocks)):
        what = f"{len(extra)} tensors that the model has no place for, the first of them {extra[0]}"
        warnings.warn(f"{source} holds {what}; they are not read", stacklevel=2)
    if how.quantise is not None:
        _check_computes(model, how.quantise)
    return model


def _is_expected(key: str, blocks: int | None) -> bool:
    """Whether a tensor that the model has no place for is no surprise: of a block left out, or one that it computes."""
    block = next((int(part) for part in key.split(".") if part.isdecimal()), -1)
    return key.endswith(_COMPUTED) or (blocks is not None and block >= blocks)


def _blank(config: PreTrainedConfig) -> PreTrainedModel:
    """A model in float32 with its own initialisation; `config` stays as it is."""
    from copy import deepcopy

    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(deepcopy(config), dtype=torch.float32, trust_remote_code=False)


def _check_computes(model: PreTrainedModel, quantise: str) -> None:
    """Read one token, as bitsandbytes says only then what it cannot do (on a CPU, matrices of some sizes)."""
    embedding: Any = model.get_input_embeddings()
    token = torch.zeros(1, 1, dtype=torch.long, device=embedding.weight.device)  # [1, 1]
    try:
        with torch.no_grad():
            model.eval()(token)
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        reason = f"bitsandbytes cannot compute in {quantise} with it here ({weights.one_line(error)})"
        raise ValueError(f"{reason}; use another quantisation, none, or a GPU") from error


def _quantisation(quantise: str, dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    # It says at every product of every forward pass that it computes in float16, and which fast kernels it lacks.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if quantise == "4bit":
        # NF4: closer to the unquantised model than FP4, and what QLoRA uses.
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    return BitsAndBytesConfig(load_in_8bit=True)


def _random(source: str, config: PreTrainedConfig, how: How) -> PreTrainedModel:
    """The architecture with the model's own initialisation, seed 0; no weights are read.

    Drawn in float32 on the CPU whatever `dtype` and `device` are, and all blocks of them, so that neither these nor
    `[:K]` change a number. PyTorch's random state is as before.
    """
    check_fresh(partial(_blank, config), source, MOST_RANDOM)
    with seeded():
        model: Any = _blank(config)
        if how.blocks is not None:
            whole, model = model, _blank(cut(config, how.blocks))
            missing, _ = model.load_state_dict(whole.state_dict(), strict=False)
            if missing:
                raise ValueError(
                    f"its blocks cannot be told apart: {missing[0]} is not among the whole model's weights"
                )
    return model.to(how.dtype)
