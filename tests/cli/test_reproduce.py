"""`alignlab reproduce` from the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from alignlab.cli import run
from alignlab.cli.common import console
from alignlab.cli.reproduce import show
from alignlab.models import llm_load, vision
from alignlab.restoration import estimate, targets
from alignlab.restoration.fit import RECIPE
from alignlab.restoration.targets import LABS, TARGETS, Lab


@pytest.fixture
def small_lab(tmp_path, small_mae, small_llm, monkeypatch):
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(20):
        small = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(small).resize((40, 40), Image.Resampling.BICUBIC).save(folder / f"{i:02}.png")
        (folder / f"{i:02}.txt").write_text("a blur\n")
    lab = Lab(
        "embedded",
        encoders={"mae": (str(small_mae), None)},
        llm=str(small_llm),
        others={"small": ("mae", str(small_llm))},
        data=(str(folder),),
        recipe=replace(RECIPE, steps=2, batch=4, warmup=1),
    )
    monkeypatch.setitem(targets.LABS, "embedded", lab)
    monkeypatch.chdir(tmp_path)
    return lab


@pytest.fixture
def nothing_loads(monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(vision, "load_vision", refuse)
    monkeypatch.setattr(llm_load, "load", refuse)
    monkeypatch.setattr(estimate, "matmul_rate", lambda device, dtype: 1e11)


@pytest.mark.parametrize("lab", LABS)
@pytest.mark.parametrize("target", TARGETS)
def test_every_plan_is_printed_without_weights_or_network(target, lab, tmp_path, monkeypatch, nothing_loads, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["reproduce", target, "--lab", lab, "--dry-run", "--json", "plan.json"]) == 0
    printed, plan = capsys.readouterr().out, json.loads((tmp_path / "plan.json").read_text())
    assert plan["schema"] == "alignlab.reproduce-plan/1"
    for row in plan["rows"]:
        assert row["name"] in printed
        assert (row["state"], row["steps_done"]) == ("to do", 0)
        assert row["hours_left"] > 0
        assert row["memory_gb"] > 1
    assert {path.name for path in tmp_path.iterdir()} == {"plan.json"}
    assert "Training an image: 4 x tokens x parameters" in printed
    if lab == "paper":
        assert "4 A100" in printed
        assert "meta-llama/Llama-2-7b-chat-hf: " in printed
        assert "gated" in printed
        assert "data to get: llava595k" in printed
    else:
        assert "0.10 TFLOP/s" in printed


def test_a_figure_from_nothing_to_its_result(small_lab, tmp_path, capsys):
    assert run(["reproduce", "fig6", "--n", "4", "--only", "linear", "--out", "one"]) == 0
    printed = capsys.readouterr().out
    assert "embedded laboratory (small models, not the paper's)" in printed
    result = json.loads((tmp_path / "one" / "result.json").read_text())
    assert [row["name"] for row in result["rows"]] == ["linear"]
    # The other row is missing until it is run; nothing is trained here.
    assert run(["reproduce", "fig6", "--n", "4", "--no-train", "--out", "two", "--json", "too.json"]) == 0
    assert "lm4lv: missing" in capsys.readouterr().out
    result = json.loads((tmp_path / "two" / "result.json").read_text())
    assert result == json.loads((tmp_path / "too.json").read_text())
    assert [(row["name"], row["status"]) for row in result["rows"]] == [("lm4lv", "missing"), ("linear", "done")]
    assert "evaluations" not in result["rows"][0]
    assert result["missing"] == ["lm4lv"]
    assert result["paper"]["rows"]["lm4lv"]["restored"] == {"PSNR": 26.77, "SSIM": 0.80}
    assert (result["schema"], result["laboratory"]) == ("alignlab.reproduce/1", "embedded")
    assert result["budget"] == {"images": [8], "one_for_all": True, "n": 4}
    assert torch.__version__.startswith(result["environment"]["torch"])
    assert (tmp_path / "two" / result["pictures"][0]).stat().st_size > 1000
    assert str(tmp_path) not in json.dumps([result["rows"][1]["data"], result["config"]])
    assert run(["reproduce", "fig6", "--n", "4", "--out", "three"]) == 0
    assert "here:" in (printed := capsys.readouterr().out)
    assert "the paper:" in printed
    assert "lm4lv minus linear: " in printed
    assert json.loads((tmp_path / "three" / "result.json").read_text())["missing"] == []
    assert run(["reproduce", "fig6", "--n", "4", "--dry-run"]) == 0
    assert capsys.readouterr().out.count("done") == 2


def test_a_row_is_added_to_a_result_whose_runs_are_gone(small_lab, tmp_path, capsys):
    command = ["reproduce", "fig6", "--n", "4", "--out", "o"]
    assert run([*command, "--only", "linear", "--runs", "first"]) == 0
    (linear,) = json.loads((tmp_path / "o" / "result.json").read_text())["rows"]
    capsys.readouterr()
    assert run([*command, "--dry-run", "--runs", "second", "--json", "plan.json"]) == 0
    states = [row["state"] for row in json.loads((tmp_path / "plan.json").read_text())["rows"]]
    assert states == ["to do", "kept"]
    capsys.readouterr()
    assert run([*command, "--only", "lm4lv", "--runs", "second"]) == 0
    told = capsys.readouterr().err
    assert "run 1 of 1: lm4lv -> second" in told
    assert "as no such run is under --runs: linear" in told
    result = json.loads((tmp_path / "o" / "result.json").read_text())
    assert (result["missing"], result["config"]["only"]) == ([], [])
    assert result["rows"][1] == linear
    assert any(line.startswith("lm4lv minus linear: ") for line in result["readings"])
    assert [path.name for path in (tmp_path / "second").iterdir() if path.is_dir()] == [result["rows"][0]["run"]]
    assert run([*command, "--runs", "third"]) == 0  # trains nothing
    assert not (tmp_path / "third").exists()


def test_made_again_a_result_of_some_rows_gets_no_others(small_lab, tmp_path):
    command = ["reproduce", "fig6", "--n", "4", "--out", "o", "--only", "linear"]
    for runs in ("first", "second"):
        assert run([*command, "--runs", runs]) == 0
        result = json.loads((tmp_path / "o" / "result.json").read_text())
        assert [row["name"] for row in result["rows"]] == result["config"]["only"] == ["linear"]
    assert not (tmp_path / "second").exists()


def test_infinite_figures_of_table_2_are_no_json_numbers(small_lab, tmp_path, capsys):
    assert run(["reproduce", "table2", "--n", "4", "--only", "rotate", "--out", "o"]) == 0
    row = json.loads((tmp_path / "o" / "result.json").read_text())["rows"][0]
    assert row["paper"]["degraded"] == {"PSNR": None, "SSIM": 1.0}
    assert row["evaluations"][0]["degraded"]["psnr"]["mean"] is None
    assert capsys.readouterr().out.count("inf / 1.00") == 2


def test_a_table_with_all_its_figures_fits_a_pipe(capsys):
    """132 columns, the longest of names and numbers: nothing is cut off."""
    figure = {"psnr": {"mean": 24.625, "ci95": [24.5, 24.75], "infinite": 0}, "ssim": {"mean": 0.7654}}
    gain = {"psnr": {"mean": -14.25, "ci95": [-14.5, -14.0], "infinite": 0}}
    columns = {"degraded": figure, "alone": figure, "restored": figure, "gain": gain}
    found = {**columns, "data": {"name": "scenes"}, "misaligned": 256, "n": 256}
    published = {column: {"PSNR": 24.62, "SSIM": 0.77} for column in ("degraded", "alone", "restored")}
    row = {
        "name": "first-24-of-30-blocks",
        "status": "done",
        "images": 30_008,
        "evaluations": [found],
        "paper": published,
    }
    whole = {"title": "T", "laboratory": "embedded", "rows": [row], "readings": [], "paper": {"says": "-"}}
    show(console(), whole, Path("o"))
    (line,) = [x for x in capsys.readouterr().out.splitlines() if "first-24" in x]
    assert "first-24-of-30-blocks" in line
    cells = [cell.strip() for cell in line.split("│")]
    assert cells[2:8] == ["30,008", *["24.62 / 0.77"] * 3, "-14.25 ±0.25", "256/256"]
    assert cells[8:11] == ["24.62 / 0.77"] * 3


def test_other_data_is_not_the_laboratorys(small_lab, tmp_path, capsys):
    (tmp_path / "pictures").rename(tmp_path / "others")
    command = ["reproduce", "fig6", "--n", "4", "--only", "linear", "--data", "others", "--out", "o"]
    assert run(command) == 0
    assert json.loads((tmp_path / "o" / "result.json").read_text())["laboratory"] == "own"
    assert "own data" in capsys.readouterr().out
    for more in ([], ["--dry-run"]):
        assert run([*command, "--test", "others", "--out", "p", *more]) == 2
        assert "others: training learns from all of it; measure on pictures that it never" in capsys.readouterr().err
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fig9"], "there is no target 'fig9'; there are table2, table3"),
        (["fig6", "--lab", "mine"], "--lab must be one of embedded, paper, got 'mine'"),
        (["fig6", "--images", "0"], "--images must be 1 or more"),
        (["fig6", "--accumulate", "0"], "--accumulate must be 1 or more"),
        (["fig6", "--seed", "-1"], "--seed must be 0 or more"),
        (["fig6", "--only", "mlp"], "--only mlp: fig6 has the rows lm4lv, linear"),
        (["fig6", "--longest"], "--longest: the rows of fig6 are compared"),
        (["fig6", "--data", "no-such-folder"], "no-such-folder"),
    ],
)
def test_bad_input(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["reproduce", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_papers_laboratory_says_at_once_what_it_lacks(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run(["reproduce", "fig4", "--lab", "paper"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for part in ("no CUDA GPU", "alignlab models fetch facebook/vit-mae-large", "dall-e", "vqgan-f16-16384"):
        assert part in error
    assert "meta-llama/Llama-2-7b-chat-hf: accept the licence" in error
    assert "llava595k:FOLDER" in error
