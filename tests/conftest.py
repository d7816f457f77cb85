"""What every test runs under."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def alignlab_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder of this session's own: shared by its tests, never the user's."""
    home = tmp_path_factory.mktemp("alignlab-home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGNLAB_HOME", str(home))
        yield home


@pytest.fixture(scope="session")
def blurs(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a folder of that name with smooth random pictures, 00.png and so on, each with a caption's file."""
    import numpy as np
    from PIL import Image

    def make(name: str, count: int, size: tuple[int, int] = (40, 40), caption: str = "a blur\n") -> Path:
        folder = tmp_path_factory.mktemp("blurs") / name
        folder.mkdir()
        rng = np.random.default_rng(0)
        for i in range(count):
            small = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(folder / f"{i:02}.png")
            (folder / f"{i:02}.txt").write_text(caption.format(i))
        return folder

    return make


@pytest.fixture(scope="session")
def small_judge(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a random CLIP that open_clip knows, as a judge of captions is named."""
    import json

    import open_clip
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("open_clip")
    vision = {"image_size": 32, "patch_size": 8, "width": 24, "layers": 2, "head_width": 12}
    text = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    (folder / "small-judge.json").write_text(json.dumps({"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(folder)
    torch.manual_seed(1)
    save_file(open_clip.create_model("small-judge", load_weights=False).state_dict(), folder / "judge.safetensors")
    return f"small-judge/{folder / 'judge.safetensors'}"


@pytest.fixture(scope="session")
def small_llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama of two blocks and a tokenizer of single characters."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("llm") / "small-llm"
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


@pytest.fixture(scope="session")
def small_mae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random MAE of two blocks for 32 px."""
    import torch
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    folder = tmp_path_factory.mktemp("mae") / "small-mae"
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


@pytest.fixture
def report_of(tmp_path: Path) -> Callable[..., str]:
    """Makes a report of result folders, of which nothing may be missing, and gives its text without tags."""
    import html
    import re

    from alignlab.report import write_report

    def make(*folders: Path) -> str:
        written = write_report(folders, tmp_path / "report.html")
        assert written.gaps == []
        page = re.sub(r"<(style|script)>.*?</\1>", "", written.path.read_text(encoding="utf-8"), flags=re.DOTALL)
        return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())

    return make
