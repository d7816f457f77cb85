"""Language models: the pooled hidden states of every layer of any causal LM of transformers."""

from __future__ import annotations

import contextlib
import difflib
import gc
import inspect
import io
import json
import os
import re
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

# Every layer's states of a batch are alive at once: 16,384 tokens are 4.4 GB for 33 layers of width 4096 in bf16.
_TOKENS_A_BATCH = 16_384

# Written last, with the hash of every other file: a copy without it, or that differs from it, is made again.
_RECORD = "alignlab.json"


@dataclass(eq=False)
class LanguageModel:
    """A frozen causal language model, read layer by layer.

    `model` is transformers' causal LM in evaluation mode without gradients of its own, `checkpoint` names the exact
    weights.
    """

    name: str
    checkpoint: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

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

        Layer 0 is the embedding output, the last one comes after the model's final norm. `pool` is "mean" over a
        text's tokens (a BOS that the tokenizer adds counts) or "last". A batch holds at most `batch_size` texts, fewer
        when they are long; what it holds changes no vector but for rounding. A text longer than the model's context
        is cut, with a warning. Raises ValueError for no texts, an empty one, an unknown pool, or `batch_size` < 1.
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
            message = f"{cut} of {len(ids)} texts are longer than {self.name}'s context of {context} tokens; cut"
            warnings.warn(message, stacklevel=4)
            ids = [tokens[:context] for tokens in ids]
        return ids

    def _pooled(self, ids: list[list[int]], pool: str) -> torch.Tensor:
        longest = max(map(len, ids))
        filler = self.tokenizer.pad_token_id or 0  # any token would do: it is masked
        padded = [[filler] * (longest - len(tokens)) + tokens for tokens in ids]
        tokens = torch.tensor(padded, device=self.device)  # [B, T]
        lengths = torch.tensor([len(tokens) for tokens in ids], device=self.device)  # [B]
        place = torch.arange(longest, device=self.device) - (longest - lengths)[:, None]  # [B, T], negative: padding
        valid = place >= 0
        hidden = self._hidden_states(tokens, valid, place.clamp(min=0))  # L times [B, T, D]
        if pool == "last":
            return torch.stack([h[:, -1].float() for h in hidden], dim=1)  # [B, L, D]
        # Filled, not multiplied by the mask: padding may hold NaN, and 0 x NaN is NaN.
        sums = [h.float().masked_fill(~valid[:, :, None], 0).sum(1) for h in hidden]
        return torch.stack(sums, dim=1) / lengths[:, None, None]  # [B, L, D]

    def _hidden_states(
        self, tokens: torch.Tensor, valid: torch.Tensor, place: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        body = self.model.base_model  # without the head: logits over the vocabulary would cost more than all of this
        # Models without absolute or rotary positions (ALiBi, recurrent ones) take none.
        takes_positions = "position_ids" in inspect.signature(body.forward).parameters
        positions = {"position_ids": place} if takes_positions else {}
        out = body(
            input_ids=tokens,
            attention_mask=valid.long(),
            output_hidden_states=True,
            use_cache=False,
            return_dict=True,
            **positions,
        )
        return out.hidden_states


def load_llm(name: str, *, device: str = "cpu", dtype: str = "float32") -> LanguageModel:
    """Load "smollm2", a local folder or a hub id ("org/name") of a causal LM; weights are never unpickled as code.

    `dtype` is float32, bfloat16 or float16. Raises ValueError for an unknown name or dtype and for an unreadable
    folder, RuntimeError where the weights cannot be fetched.
    """
    number_type = weights.torch_dtype(dtype)
    if name == "smollm2":
        model, tokenizer = _from_folder(_smollm2_copy(), number_type)
        checkpoint = f"smollm2-135m-instruct-q4_1@sha256:{weights.SMOLLM2.sha256}"
    elif (folder := Path(name).expanduser()).is_dir():
        model, tokenizer = _from_folder(folder, number_type)
        checkpoint = f"{folder.resolve().name}@sha256:{weights.sha256_files(_weight_files(folder))}"
    elif re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        with weights.from_hub(name):
            model, tokenizer = _from_pretrained(name, number_type)
        checkpoint = f"{name}@{model.config._commit_hash}"
    else:
        near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(NAMES)};"
        raise ValueError(f"unknown language model {name!r}; {hint} (a local folder or a hub id, org/name, will do too)")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return LanguageModel(name, checkpoint, model.eval().requires_grad_(False).to(device), tokenizer)


def _from_folder(folder: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    _weight_files(folder)
    try:
        return _from_pretrained(str(folder), dtype)
    except Exception as error:  # configuration, tokenizer and weights each fail with types of their own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{folder} cannot be read as a causal language model: {reason}") from error


def _weight_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise ValueError(f"{folder} holds no weights; a model's folder has *.safetensors or pytorch_model*.bin")
    return files


def _from_pretrained(source: str, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # Said outright, because by default transformers asks on a terminal whether to run a repository's code.
    safe = {"trust_remote_code": False, "weights_only": True}
    with weights.quiet_transformers():
        model, info = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, output_loading_info=True, **safe
        )
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    missing = sorted(info["missing_keys"])
    if missing:  # transformers would leave them at random values
        raise ValueError(f"{source} lacks {len(missing)} of the model's weights, the first of them {missing[0]}")
    return model, tokenizer


def _smollm2_copy() -> Path:
    """The folder of SmolLM2's weights unpacked to float32 safetensors, made once: unpacking takes far longer."""
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
    """The GGUF asks for the "smollm" splitting, one digit a piece before GPT-2's rule; transformers does the latter."""
    from tokenizers import pre_tokenizers

    backend = tokenizer.backend_tokenizer
    digits = pre_tokenizers.Digits(individual_digits=True)
    if not isinstance(backend.pre_tokenizer, pre_tokenizers.Sequence):
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])
