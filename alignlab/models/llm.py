"""Language models: the pooled hidden states of every layer of any causal LM of transformers."""

from __future__ import annotations

import contextlib
import difflib
import gc
import inspect
import io
import json
import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from alignlab import paths
from alignlab.models import weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NAMES = ("smollm2",)
POOLS = ("mean", "last")

# Every layer's states of a batch are alive at once: 4.4 GB for 33 layers of width 4096 in bfloat16.
_TOKENS_A_BATCH = 16_384

# Written last, with the hash of every other file: a copy without it, or that differs from it, is made again.
_RECORD = "alignlab.json"


@dataclass(eq=False)
class LanguageModel:
    """A frozen causal language model, read layer by layer.

    `model` is transformers' causal LM in evaluation mode, no parameter of it trains; `checkpoint` names the
    exact weights.
    """

    name: str
    checkpoint: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def pools(self) -> tuple[str, ...]:
        """The ways to pool a layer, the default first."""
        return POOLS

    @property
    def num_layers(self) -> int:
        """The blocks and the embedding output."""
        return int(self.model.config.get_text_config().num_hidden_layers) + 1

    @property
    def width(self) -> int:
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def context(self) -> int | None:
        """The longest text in tokens, None where the model sets no limit."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @torch.no_grad()
    def layers(self, texts: list[str], pool: str = "mean", batch_size: int = 32) -> torch.Tensor:
        """One vector a text and layer, float32 `[B, L, D]` on the model's device, in the order of `texts`.

        Layer 0 is the embedding output, the last one comes after the model's final norm. `pool` is "mean"
        over a text's tokens (a BOS that the tokenizer adds counts) or "last". A batch holds at most
        `batch_size` texts, fewer when they are long; how they are batched changes nothing but rounding
        (relative: SmolLM2's first token reaches 10^4 in its middle layers, and its last digits move). A
        text longer than the model's context is cut, with a warning. Raises ValueError for no texts, a text
        without tokens, an unknown pool, and `batch_size` < 1.
        """
        if pool not in POOLS:
            raise ValueError(f"pool must be one of {', '.join(POOLS)}, got {pool!r}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        ids = self._tokenise(texts)
        longest_first = sorted(range(len(ids)), key=lambda i: -len(ids[i]))  # too little memory shows at once
        pooled = torch.empty(len(ids), self.num_layers, self.width, device=self.device)  # [B, L, D]
        while longest_first:
            n = max(1, min(batch_size, _TOKENS_A_BATCH // len(ids[longest_first[0]])))
            batch, longest_first = longest_first[:n], longest_first[n:]
            pooled[batch] = self._pooled([ids[i] for i in batch], pool)
        return pooled

    def _tokenise(self, texts: list[str]) -> list[list[int]]:
        if isinstance(texts, str):
            raise ValueError(f"texts must be a list of strings, got the string {texts!r}; put it in a list")
        if not texts:
            raise ValueError("texts is empty; give one text at least")
        # verbose=False: the warning about long texts is given below, once, with their number.
        ids = list(self.tokenizer(list(texts), verbose=False)["input_ids"])
        added = self.tokenizer.num_special_tokens_to_add()
        for i, tokens in enumerate(ids):
            if len(tokens) <= added:
                raise ValueError(f"texts[{i}] = {texts[i]!r} has no tokens; remove it or write something")
        context = self.context
        if context is not None and (cut := sum(len(tokens) > context for tokens in ids)):
            what = f"{cut} of {len(ids)} texts, longer than the {context} tokens that {self.name} can read"
            warnings.warn(f"cut {what}", stacklevel=4)
            ids = [tokens[:context] for tokens in ids]
        return ids

    def _pooled(self, ids: list[list[int]], pool: str) -> torch.Tensor:
        longest = max(map(len, ids))
        filler = self.tokenizer.pad_token_id or 0  # any token would do: it is masked
        padded = [[filler] * (longest - len(tokens)) + tokens for tokens in ids]
        tokens = torch.tensor(padded, device=self.device)  # [B, T]
        lengths = torch.tensor([len(tokens) for tokens in ids], device=self.device)  # [B]
        positions = torch.arange(longest, device=self.device) - (longest - lengths)[:, None]  # [B, T]
        valid = positions >= 0  # padding comes first, so that every text ends in the last column
        hidden = self._hidden_states(tokens, valid, positions.clamp(min=0))  # L times [B, T, D]
        if pool == "last":
            return torch.stack([h[:, -1].float() for h in hidden], dim=1)  # [B, L, D]
        # Filled, not multiplied by the mask: padding may hold NaN, and 0 x NaN is NaN.
        sums = [h.float().masked_fill(~valid[:, :, None], 0).sum(1) for h in hidden]
        return torch.stack(sums, dim=1) / lengths[:, None, None]  # [B, L, D]

    def _hidden_states(
        self, tokens: torch.Tensor, valid: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        # The body alone: nobody reads the logits, and a large vocabulary makes them dearer than a layer.
        body = self.model.base_model
        # Models with neither absolute nor rotary positions (ALiBi, recurrent ones) take none.
        takes_positions = "position_ids" in inspect.signature(body.forward).parameters
        out = body(
            input_ids=tokens,
            attention_mask=valid.long(),
            output_hidden_states=True,
            use_cache=False,
            return_dict=True,
            **({"position_ids": positions} if takes_positions else {}),
        )
        return out.hidden_states


def load_llm(name: str, *, device: str = "cpu", dtype: str = "float32") -> LanguageModel:
    """Load "smollm2", or the causal language model in a local folder or of a hub id ("org/name").

    `dtype` is "float32", "bfloat16" or "float16". A repository's own code is never run, nor a pickle's.
    Raises ValueError for an unknown name or dtype and for an unreadable model, RuntimeError where the weights
    cannot be fetched.
    """
    number_type = weights.torch_dtype(dtype)
    if name == "smollm2":
        model, tokenizer = _load(str(_smollm2_copy()), number_type)
        checkpoint = smollm2_checkpoint()
    elif (folder := Path(name).expanduser()).is_dir():
        checkpoint = weights.folder_checkpoint(folder)
        model, tokenizer = _load(str(folder), number_type)
        name = folder.resolve().name
    elif weights.HUB_ID.fullmatch(name):
        model, tokenizer = _load(name, number_type)
        checkpoint = f"{name}@{model.config._commit_hash}"
    else:
        near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(NAMES)}"
        others = "a local folder or a hub id, org/name, will do too"
        raise ValueError(f"unknown language model {name!r}; {hint} ({others})")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return LanguageModel(name, checkpoint, model.eval().requires_grad_(False).to(device), tokenizer)


def smollm2_checkpoint() -> str:
    """What names SmolLM2's weights; known without them."""
    return f"smollm2-135m-instruct-q4_1@sha256:{weights.SMOLLM2.sha256}"


def _load(source: str, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with weights.from_hub(source), weights.quiet_transformers():
        # Said outright because on a terminal transformers would ask whether to run a repository's code.
        safe = {"trust_remote_code": False, "weights_only": True}
        loaded: Any = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, output_loading_info=True, **safe)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        model, info = loaded
        missing = sorted(info["missing_keys"])
        if missing:  # transformers has given them random values
            raise ValueError(f"{len(missing)} of its weights are missing, the first of them {missing[0]}")
    return model, tokenizer


def _smollm2_copy() -> Path:
    """The folder with SmolLM2 unpacked to float32 safetensors: unpacking is slow, so it is done once."""
    from filelock import FileLock

    copy = paths.home() / "models" / f"smollm2-{weights.SMOLLM2.sha256[:8]}"
    if _is_intact(copy):
        return copy
    copy.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(copy.with_name(f"{copy.name}.lock")):
        if not _is_intact(copy):
            part = copy.with_name(f"{copy.name}.part")
            shutil.rmtree(part, ignore_errors=True)
            try:
                _unpack_gguf(weights.fetch(weights.SMOLLM2), part)
                shutil.rmtree(copy, ignore_errors=True)
                os.replace(part, copy)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    return copy


def _is_intact(copy: Path) -> bool:
    try:
        record: dict[str, str] = json.loads((copy / _RECORD).read_text())
        return all(weights.sha256_file(copy / name) == digest for name, digest in record.items())
    except (OSError, ValueError):
        return False


def _unpack_gguf(gguf: Path, folder: Path) -> None:
    import transformers

    options: dict[str, Any] = {}
    if hasattr(transformers, "GgufConfig"):  # older versions know no packed weights and always unpack
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    # Unpacking has a progress bar of its own that no setting turns off.
    with weights.quiet_transformers(), contextlib.redirect_stderr(io.StringIO()):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32, **options
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
        _split_digits(tokenizer)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    record = {}
    for path in sorted(folder.iterdir()):
        shutil.copymode(gguf, path)  # safetensors files come out readable to their owner alone
        record[path.name] = weights.sha256_file(path)
    (folder / _RECORD).write_text(json.dumps(record, indent=1))
    del model
    gc.collect()  # half a gigabyte that the caller is about to load again


def _split_digits(tokenizer: PreTrainedTokenizerBase) -> None:
    """Split off every digit before GPT-2's rule, as the GGUF asks: transformers knows the rule alone."""
    from tokenizers import pre_tokenizers

    backend = tokenizer.backend_tokenizer
    digits = pre_tokenizers.Digits(individual_digits=True)
    if not isinstance(backend.pre_tokenizer, pre_tokenizers.Sequence):
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])
