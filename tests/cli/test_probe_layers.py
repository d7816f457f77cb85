"""`alignlab probe layers` from the command line, on small random models and a folder of pictures."""

from __future__ import annotations

import json

import pytest

from alignlab.cli import run


@pytest.fixture(scope="module")
def command(small_mae, small_llm, blurs):
    models = ["--encoder", str(small_mae), "--llm", str(small_llm), "--data", str(blurs("photos", 15))]
    size = ["--steps", "3", "--batch-size", "3", "--train-n", "8", "--n", "3", "--seeds", "2"]

    def make(*more: object) -> list[str]:
        return ["probe", "layers", *models, *size, "--dtype", "float32", "--device", "cpu", *map(str, more)]

    return make


@pytest.fixture(scope="module")
def probed(command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("probe") / "layers"
    assert run(command("--out", folder, "--json", folder.parent / "copy.json")) == 0
    return folder


def test_what_is_written_and_printed(probed, command, capsys, report_of):
    result = json.loads((probed / "result.json").read_text())
    assert result == json.loads((probed.parent / "copy.json").read_text())
    assert result["schema"] == "alignlab.probe-layers/1"
    assert result["laboratory"] == "own"
    assert [row["layer"] for row in result["layers"]] == [1, 2]
    assert result["seeds"] == 2
    assert result["test"]["n"] == 3
    assert result["recipe"]["steps"] == 3
    assert result["recipe"]["dtype"] == "float32"
    assert result["environment"]["command"].startswith("alignlab")
    assert (probed / "layers.png").read_bytes().startswith(b"\x89PNG")
    assert str(probed.parent) not in (probed / "result.json").read_text()
    assert run(command("--out", probed)) == 0  # all is there
    shown = capsys.readouterr().out
    for line in ("degraded", "encoder + decoder", "one linear layer", "MLP", "random layer", "layer 1", "layer 2"):
        assert line in shown
    assert f"{result['layers'][0]['psnr']['mean']:.2f}" in shown
    clear = {side: len(result[f"clearly_{side}"]["mlp"]) for side in ("over", "under")}
    told = f"of 2 layer(s), with all of the difference's interval: {clear['over']} above and {clear['under']} below the MLP"
    assert told in shown
    assert "the paper, of its models: every layer is above the MLP" in shown
    assert json.loads((probed / "result.json").read_text())["seconds"]["trained"] == 0
    page = report_of(probed)
    assert f"{result['layers'][1]['psnr']['mean']:.2f} (" in page
    assert "below a random layer" in page


def test_one_layer_and_one_seed_say_so(command, tmp_path, capsys):
    assert run(command("--layers", "2", "--seeds", 1, "--task", "rotate", "--out", tmp_path / "one")) == 0
    shown = capsys.readouterr().out
    assert "one seed; the intervals are over images alone" in shown
    assert "inf" in shown
    assert "layer 1 " not in shown


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--layers", "3"], "small-llm has the layers 1 to 2, got 3"),
        (["--layers", "0-1"], "got 0; layer 0 is the embedding"),
        (["--layers", "x"], "--layers must be all, or numbers and ranges as 1,5,10-12, got 'x'"),
        (["--seeds", "0"], "--seeds must be 1 or more, got 0"),
        (["--steps", "0"], "--steps must be more than 0"),
        (["--lr", "nan"], "--lr must be more than 0"),
        (["--batch-size", "0"], "--batch-size must be more than 0"),
        (["--train-n", "0"], "--train-n must be 2 or more"),
        (["--n", "1"], "--n must be 2 or more"),
        (["--seed", "-1"], "--seed must be 0 or more"),
        (["--task", "blur"], "--task must be one of denoise"),
        (["--dtype", "float64"], "--dtype must be auto, bfloat16 or float32"),
        (["--device", "tpu"], "--device must be auto, cpu or cuda"),
        (["--encoder", "timm:test_vit.r160_in1k@random"], "has no decoder; --encoder takes a MAE"),
        (["--llm", "nonsense"], "unknown language model 'nonsense'"),
        (["--data", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_line(command, tmp_path, capsys, more, message):
    assert run(command("--out", tmp_path / "bad", *more)) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len([line for line in error.splitlines() if line.startswith("alignlab:")]) == 1
    assert "Traceback" not in error


def test_a_folder_of_another_run_is_refused(command, probed, capsys):
    assert run(command("--out", probed, "--steps", 5)) == 2
    assert "holds another run: its recipe steps is 3, not 5; choose another --out folder" in capsys.readouterr().err
