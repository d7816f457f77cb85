"""Models and pictures that are small enough to be made in a second, for tests and for the scripts in benchmarks/."""

from __future__ import annotations

from pathlib import Path


def write_llm(folder: Path) -> Path:
    """A folder with a random Llama of two blocks and a tokenizer of single characters."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    characters = ["<unk>", "<s>", "</s>", *map(chr, range(32, 127))]
    tokenizer = Tokenizer(models.WordLevel({c: i for i, c in enumerate(characters)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(characters), max_position_embeddings=512, **sizes)).save_pretrained(
        folder
    )
    return folder


def write_mae(folder: Path) -> Path:
    """A folder with a random MAE of two blocks for 32 px."""
    import torch
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    torch.manual_seed(0)
    encoder = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    decoder = {
        "decoder_hidden_size": 16,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 32,
    }
    ViTMAEForPreTraining(ViTMAEConfig(image_size=32, patch_size=8, **encoder, **decoder)).save_pretrained(folder)
    return folder


def write_blurs(folder: Path, count: int, size: tuple[int, int] = (40, 40), caption: str = "a blur\n") -> Path:
    """A folder with smooth random pictures, 00.png and so on, each with a caption's file."""
    import numpy as np
    from PIL import Image

    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        small = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(folder / f"{i:02}.png")
        (folder / f"{i:02}.txt").write_text(caption.format(i))
    return folder
