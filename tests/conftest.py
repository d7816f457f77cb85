"""What every test runs under."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import small

if "PYTEST_XDIST_WORKER" in os.environ:  # one of several side by side: two threads each would fight for the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def alignlab_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder of this session's own: shared by its tests and processes, never the user's."""
    base = tmp_path_factory.getbasetemp()
    home = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "alignlab-home"
    home.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGNLAB_HOME", str(home))
        yield home


@pytest.fixture(scope="session")
def blurs(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a folder of that name with smooth random pictures, 00.png and so on, each with a caption's file."""

    def make(name: str, *args: Any, **options: Any) -> Path:
        return small.write_blurs(tmp_path_factory.mktemp("blurs") / name, *args, **options)

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
    return small.write_llm(tmp_path_factory.mktemp("llm") / "small-llm")


@pytest.fixture(scope="session")
def small_mae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random MAE of two blocks for 32 px."""
    return small.write_mae(tmp_path_factory.mktemp("mae") / "small-mae")


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
