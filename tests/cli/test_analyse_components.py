"""`alignlab analyse components` from the command line, on adapters that were trained for a step."""

from __future__ import annotations

import json

import pytest

from alignlab.cli import run

TRAINED = ["--steps", "1", "--batch-size", "2", "--warmup", "0", "--n", "0", "--dtype", "float32", "--device", "cpu"]
HERE = ["--dtype", "float32", "--device", "cpu"]


@pytest.fixture(scope="module")
def pictures(blurs):
    return str(blurs("pictures", 16))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, small_mae, small_llm, pictures):
    folder = tmp_path_factory.mktemp("trained")
    words = ["restore", "train", "--encoder", f"{small_mae}+position", "--llm", str(small_llm), "--data", pictures]
    several = ("--task", "denoise", "--task", "rotate")
    for name, options in (("both", several), ("mlp", ("--how", "mlp"))):
        assert run([*words, *TRAINED, *options, "--out", str(folder / name)]) == 0
    return folder


def test_a_table_a_picture_and_a_page_of_every_task(trained, pictures, tmp_path, capsys, report_of):
    names = [str(trained / "both"), str(trained / "mlp")]
    words = ["analyse", "components", *names, "--data", pictures, "--out", str(tmp_path / "out"), *HERE]
    assert run([*words, "--json", str(tmp_path / "too.json")]) == 0
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result == json.loads((tmp_path / "too.json").read_text())
    assert result["schema"] == "alignlab.analyse-components/1"
    found = result["checkpoints"]
    compared = [
        (one["checkpoint"], one["task"], [name for name, x in one["carried"].items() if x is not None]) for one in found
    ]
    assert compared == [
        ("both", "denoise", ["given", "written", "told"]),
        ("both", "rotate", ["written", "told"]),
        ("mlp", "denoise", ["given", "written"]),
    ]
    assert {one["n"] for one in found} == {4}  # every fifth of sixteen was held out
    assert {one["width"] for one in found} == {24}  # without the code of position
    assert [(band["first"], band["last"]) for band in found[0]["bands"]] == [(1, 16), (17, 24)]
    page = " ".join(report_of(tmp_path / "out").split())
    for one in found:
        assert (tmp_path / "out" / one["picture"]).stat().st_size > 5000
        assert one["reading"] in " ".join(printed.split())
        assert f"{one['checkpoint']}, {one['task']}: " in page
        assert f"{one['bands'][0]['psnr']['alone']['mean']:.2f}" in page
    assert "What is written of the tokens" in page

    assert (
        run(["restore", "eval", "--checkpoint", names[1], "--data", pictures, "--out", str(tmp_path / "e"), *HERE]) == 0
    )
    (evaluated,) = json.loads((tmp_path / "e" / "result.json").read_text())["results"]
    assert found[2]["psnr"]["written"]["mean"] == pytest.approx(evaluated["restored"]["psnr"]["mean"], abs=1e-3)


def test_one_task_alone(trained, pictures, tmp_path):
    words = ["analyse", "components", str(trained / "both"), "--task", "rotate", "--data", pictures, *HERE]
    assert run([*words, "--n", "2", "--out", str(tmp_path)]) == 0
    (one,) = json.loads((tmp_path / "result.json").read_text())["checkpoints"]
    assert (one["task"], one["n"]) == ("rotate", 2)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--task", "derain"], "--task derain: {} has learnt denoise, rotate"),
        (["--n", "1"], "--n 1: components need two images or more"),
        (["--batch-size", "0"], "batch-size must be"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(trained, tmp_path, capsys, more, message):
    name = str(trained / "both")
    assert run(["analyse", "components", name, *more, "--out", str(tmp_path / "out"), *HERE]) == 2
    said = capsys.readouterr().err
    assert message.format(name) in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()
