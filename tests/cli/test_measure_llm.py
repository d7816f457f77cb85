"""`alignlab measure` with variants of a language model and with its own number type."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from alignlab.cli import run

FAST = ["--data", "scenes", "--n", "24", "--k", "3", "--nulls", "0", "--resamples", "0", "--metric", "mutual_knn"]


@pytest.fixture
def measured(small_mae: Path, small_llm: Path, tmp_path: Path) -> Any:
    def measure(suffix: str = "", *more: str) -> tuple[int, dict[str, Any]]:
        out = tmp_path / "out"
        status = run(
            ["measure", "--encoder", str(small_mae), "--llm", f"{small_llm}{suffix}", "--out", str(out), *FAST, *more]
        )
        result = out / "result.json"
        return status, json.loads(result.read_text()) if result.exists() else {}

    return measure


def test_variants_of_a_model_are_told_apart(measured: Any) -> None:
    seen = set()
    for suffix, layers in (("", 3), ("[:1]", 2), ("@random", 3), ("[:1]@random", 2)):
        status, result = measured(suffix)
        assert status == 0
        assert result["config"]["llm"].endswith(f"small-llm{suffix}")
        assert result["config"]["llm_dtype"] == "float32"
        assert result["config"]["device_map"] is None
        pair = result["pairs"][0]
        assert pair["llm"] == f"small-llm{suffix}"
        assert len(pair["matrix"][0]) == layers
        assert result["laboratory"] == "own"
        seen.add(pair["llm_checkpoint"])
    assert len(seen) == 4


def test_a_number_type_of_the_language_models_own(measured: Any) -> None:
    status, result = measured("", "--llm-dtype", "bfloat16", "--device-map", "auto")
    assert status == 0
    assert (result["config"]["dtype"], result["config"]["llm_dtype"]) == ("float32", "bfloat16")
    assert result["config"]["device_map"] == "auto"
    _, exact = measured()
    assert result["pairs"][0]["matrix"] != exact["pairs"][0]["matrix"]


@pytest.mark.parametrize(
    ("suffix", "more", "message"),
    [
        ("[:9]", [], "has 2 blocks, so that its first 9 cannot be taken; use [:2] or less"),
        ("", ["--dtype", "4bit"], "--dtype 4bit is for a language model alone; use --llm-dtype 4bit"),
        ("", ["--llm-dtype", "int3"], "got 'int3'"),
        ("", ["--device-map", "moon"], "got 'moon'"),
        ("@random", ["--device-map", "auto"], "takes no device_map"),
        ("@random", ["--llm-dtype", "8bit"], "cannot be quantised"),
    ],
)
def test_bad_input_is_one_line(
    measured: Any, suffix: str, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _ = measured(suffix, *more)
    said = " ".join(capsys.readouterr().err.split())
    assert status == 2
    assert message in said
    assert "Traceback" not in said


def test_quantised(measured: Any, capsys: pytest.CaptureFixture[str]) -> None:
    status, result = measured("", "--llm-dtype", "8bit")
    if importlib.util.find_spec("bitsandbytes") is None:
        assert status == 2
        assert 'pip install "alignlab[quant]"' in " ".join(capsys.readouterr().err.split())
        return
    assert status == 0
    assert result["config"]["llm_dtype"] == "8bit"
    assert result["pairs"][0]["llm_checkpoint"].endswith(" (8bit)")
