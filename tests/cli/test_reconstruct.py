"""`alignlab reconstruct` and `alignlab restore decoder` from the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alignlab.cli import run


@pytest.fixture
def no_torch_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli-pictures")
    rng = np.random.default_rng(0)
    for i in range(10):
        small = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(small).resize((40, 40), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text("a blur\n")
    return folder


def test_a_result_with_pictures_and_what_was_left_out(tmp_path, capsys, no_torch_weights):
    pytest.importorskip("lpips")
    pytest.importorskip("torch_fidelity")
    command = [
        "reconstruct",
        "--encoder",
        "vqgan",
        "--encoder",
        "beit",
        "--features",
        "inception",
        "--features",
        "mae-tiny",
    ]
    assert run([*command, "--n", "8", "--out", str(tmp_path), "--json", str(tmp_path / "too.json")]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result == json.loads((tmp_path / "too.json").read_text())
    assert result["schema"] == "alignlab.reconstruct/1"
    assert result["laboratory"] == "embedded"
    assert [row["encoder"] for row in result["results"]] == ["vqgan", "beit"]
    for row in result["results"]:
        assert 10 < row["psnr"]["mean"] < 40
        assert row["psnr"]["ci95"][0] < row["psnr"]["mean"] < row["psnr"]["ci95"][1]
        assert row["lpips"] is None
        assert [one["name"] for one in row["sets"]] == ["FD(mae-tiny)"]
        assert (tmp_path / f"reconstruction-{row['encoder']}.jpg").stat().st_size > 1000
    assert {one["metric"] for one in result["left_out"]} == {"LPIPS", "FID"}
    printed = capsys.readouterr().out
    assert "left out: LPIPS: " in printed
    assert "alignlab models fetch inception" in printed
    assert "FD(mae-tiny) of 8 images in 256 dimensions is far from its limit" in printed


def test_bad_arguments_exit_2(capsys, no_torch_weights):
    for arguments, said in (
        (["--encoder", "nonsense"], "unknown encoder"),
        (["--encoder", "vqgan", "--decoder", "mae-tiny-r"], "behind a MAE only"),
        (["--batch-size", "0"], "--batch-size must be 1 or more"),
        (["--lpips", "resnet"], "--lpips must be one of vgg, alex, none"),
        (["--data", "nowhere"], "no data set 'nowhere'"),
    ):
        assert run(["reconstruct", "--n", "2", *arguments]) == 2
        assert said in capsys.readouterr().err


def test_the_decoder_from_the_command_line(tmp_path, capsys, small_mae, pictures):
    out, other = str(tmp_path / "decoder"), shutil.copytree(pictures, tmp_path / "others")
    for end in ("png", "txt"):
        (other / f"9.{end}").unlink()
    command = ["restore", "decoder", "--encoder", str(small_mae), "--data", str(pictures)]
    assert run([*command, "--test", str(pictures), "--steps", "1", "--out", out]) == 2
    assert "training learns from all of it; measure on pictures that it never sees" in capsys.readouterr().err
    assert not Path(out).exists()
    command += ["--test", str(other)]
    short = ["--recipe", "paper", "--epochs", "1.6", "--batch-size", "4", "--dtype", "float32"]
    assert run([*command, *short, "--out", out, "--json", str(tmp_path / "too.json")]) == 0
    result = json.loads((tmp_path / "too.json").read_text())
    assert result["recipe"]["steps"] == 4  # 1.6 times 10 pictures, 4 at a time
    assert result["recipe"]["lr"] == pytest.approx(1e-4 * 4 / 256)
    assert result == json.loads((tmp_path / "decoder" / "result.json").read_text())
    assert "PSNR (dB)" in capsys.readouterr().out
    assert run(["reconstruct", "--encoder", str(small_mae), "--decoder", out, "--data", str(pictures), "--lpips", "none",
                "--features", "none", "--out", str(tmp_path / "r")]) == 0  # fmt: skip
    (row,) = json.loads((tmp_path / "r" / "result.json").read_text())["results"]
    assert row["decoder_checkpoint"].startswith("decoder@sha256:")
    assert row["decoder_checkpoint"] != row["checkpoint"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--encoder", "vqgan"], "only a MAE has a decoder"),
        (["--loss", "l2"], "--loss must be one of"),
        (["--lr", "nan"], "--lr must be more than 0"),
        (["--recipe", "mine"], "--recipe must be embedded or paper"),
        (["--recipe", "paper"], "scenes is rendered without an end"),
        (["--steps", "2", "--epochs", "1"], "--steps and --epochs both say how long to train"),
        (["--test", "nowhere", "--steps", "1"], "no data set 'nowhere'"),
        (["--steps", "0"], "--steps must be more than 0"),
        (["--dtype", "float16"], "--dtype must be auto, bfloat16 or float32"),
        (["--workers", "-1"], "--workers must be 0 or more"),
    ],
)
def test_bad_arguments_of_the_decoder_exit_2(tmp_path, capsys, arguments, said):
    assert run(["restore", "decoder", "--out", str(tmp_path), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_perceptual_loss_without_its_networks_exits_1(tmp_path, capsys, no_torch_weights):
    assert run(["restore", "decoder", "--loss", "l1+lpips", "--out", str(tmp_path)]) == 1
    assert "LPIPS" in capsys.readouterr().err


def test_laboratories_are_never_mixed_up():
    from alignlab.paper import MODELS
    from alignlab.provenance import laboratory

    theirs = [MODELS["mae"], MODELS["beit"], MODELS["vqgan"]]
    assert laboratory(["mae", "beit"], "smollm2", "scenes") == "embedded"
    assert laboratory(theirs, MODELS["llm"], "wit1024:somewhere") == "paper"
    assert laboratory([MODELS["mae"]], None, "imagenet:val") == "paper"
    # What a laboratory's models are compared with is of the laboratory: random weights, first blocks, a code of the place.
    assert laboratory([f"{MODELS['mae']}@random"], f"{MODELS['llm']}[:8]", "wit1024") == "paper"
    assert laboratory([MODELS["mae"]], MODELS["llm"], "llava595k:here", "nocaps") == "paper"
    assert laboratory(["mae+position", "beit@random+position"], "smollm2@random", "scenes") == "embedded"
    for mixed in (
        (["mae"], MODELS["llm"], "wit1024"),
        (theirs, "smollm2", "wit1024"),
        (theirs, MODELS["llm"], "scenes"),
        (["mae"], "smollm2", "photos"),
        (["mae"], "smollm2", "scenes", "photos"),
        (theirs, MODELS["llm"], "llava595k", "photos"),
    ):
        assert laboratory(*mixed) == "own"


def test_three_images_are_measured_one_by_one_only(tmp_path, capsys):
    command = ["reconstruct", "--encoder", "vqgan", "--n", "3", "--lpips", "none", "--features", "mae-tiny"]
    assert run([*command, "--out", str(tmp_path)]) == 0
    assert "left out: FD(mae-tiny): it compares sets of 4 images or more, got 3" in capsys.readouterr().out


def test_encoders_of_one_name_do_not_overwrite_each_other(tmp_path, small_mae):
    import shutil

    shutil.copytree(small_mae, tmp_path / "other" / small_mae.name)
    encoders = ["--encoder", str(small_mae), "--encoder", str(tmp_path / "other" / small_mae.name)]
    command = ["reconstruct", *encoders, "--n", "4", "--lpips", "none", "--features", "none"]
    assert run([*command, "--out", str(tmp_path / "out")]) == 0
    pictures = [row["picture"] for row in json.loads((tmp_path / "out" / "result.json").read_text())["results"]]
    assert len(set(pictures)) == 2
    assert all((tmp_path / "out" / picture).is_file() for picture in pictures)


def test_groups_of_encoders():
    from alignlab.models.registry import expand

    assert expand(["mae", "all"]) == ["mae", "beit", "vqgan"]
    prh = expand(["prh"])
    assert len(prh) == 17
    assert "timm:vit_giant_patch14_dinov2.lvd142m" in prh
