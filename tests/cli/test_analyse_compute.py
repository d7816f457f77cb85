"""`alignlab analyse compute` from the command line."""

from __future__ import annotations

import json

import pytest

from alignlab.cli import run
from alignlab.models import llm_load


def test_the_papers_laboratory_without_weights(tmp_path, capsys, monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(llm_load, "load", refuse)
    assert run(["analyse", "compute", "--lab", "paper", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["schema"], result["laboratory"]) == ("alignlab.analyse-compute/1", "paper")
    assert result["paper"]["added_up"]["llm_flop"] == pytest.approx(5.74e12, rel=0.01)
    assert result["paper"]["added_up"]["flop"] == pytest.approx(5.77e12, rel=0.01)
    assert result["tokens"]["prompt"] == 214
    rows = {row["part"]: row for row in result["parts"]}
    assert rows["language model"]["formula_flop"] == 2 * 410 * 6_738_415_616
    difference = rows["language model"]["torch_flop"] - rows["language model"]["formula_flop"]
    assert difference == result["llm"]["attention_flop"] - result["llm"]["not_in_products_flop"]
    assert all(row["seconds"] is None for row in result["parts"])
    assert result["memory_bytes"]["llm_weights"] == 2 * 6_738_415_616
    assert result["memory_bytes"]["kv_cache_a_token"] == 2 * 32 * 4096 * 2
    assert "5.74 T, and with its 25.56 G on MAE 5.77 T in all" in printed
    assert "25.56 G on MAE is none of these counts" in printed
    assert "share of" not in printed


def test_any_pair_with_times(small_mae, small_llm, tmp_path, capsys):
    words = ["analyse", "compute", "--encoder", str(small_mae), "--llm", str(small_llm), "--dtype", "float32"]
    words += ["--measured", "--task-tokens", "3", "--new-tokens", "5"]
    assert run([*words, "--out", str(tmp_path / "a"), "--json", str(tmp_path / "too.json")]) == 0
    result = json.loads((tmp_path / "too.json").read_text())
    assert result == json.loads((tmp_path / "a" / "result.json").read_text())
    tokens = result["tokens"]
    assert (tokens["visual"], tokens["task"], tokens["generated"], tokens["text_from"]) == (17, 3, 5, "the tokenizer")
    assert tokens["prompt"] == 17 + 3 + tokens["text"]
    rows = {row["part"]: row for row in result["parts"]}
    assert result["laboratory"] == "own"
    assert rows["all"]["seconds"] == pytest.approx(
        sum(rows[part]["seconds"] for part in ("encoder", "decoder", "prefill", "decoding"))
    )
    share = rows["prefill"]["torch_flop"] / rows["prefill"]["seconds"] / result["matmul_flop_a_second"]
    assert rows["prefill"]["share_of_peak"] == pytest.approx(share)
    assert result["memory_bytes"]["llm_weights"] == 4 * rows["prefill"]["parameters"]
    printed = capsys.readouterr().out
    assert "share of" in printed
    assert "none of these counts" not in printed
    assert str(small_mae.parent) not in (tmp_path / "too.json").read_text()  # nobody's folders
    assert run([*words, "--no-measured", "--prompt-tokens", "40", "--out", str(tmp_path / "b")]) == 0
    result = json.loads((tmp_path / "b" / "result.json").read_text())
    assert result["tokens"]["prompt"] == 40
    assert result["matmul_flop_a_second"] is None
    assert "40 prefilled (as told)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lab", "own"], "--lab must be one of embedded, paper"),
        (["--prompt-tokens", "0"], "--prompt-tokens must be more than 0"),
        (["--dtype", "int8"], "--dtype must be"),
        (["--llm", "smollm3"], "unknown language model 'smollm3'"),
        (["--llm", "smollm2[:31]"], "has 30 blocks"),
        (["--encoder", "mea"], "did you mean mae"),
    ],
)
def test_bad_arguments(tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    assert run(["analyse", "compute", "--no-measured", *words]) == 2
    assert message in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
