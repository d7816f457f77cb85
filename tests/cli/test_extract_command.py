"""`alignlab extract`: features that later commands find, files for other programs, and work shared by processes."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

import alignlab as al
from alignlab.cli import run
from alignlab.features.cache import entries


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGNLAB_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_features_are_kept_and_written_as_they_are(home, tmp_path, small_llm, capsys):
    out = tmp_path / "out"
    command = ["extract", "--encoder", "mae", "--encoder", "vqgan", "--llm", str(small_llm), "--n", "300"]
    assert run([*command, "--save", "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "[300, 7, 256]" in told
    result = json.loads((out / "result.json").read_text())
    assert [row["reads"] for row in result["features"]] == ["image", "image", "text"]
    data = al.load_dataset("scenes", n=300)
    assert result["ids"] == data.ids
    for name, row in zip(("mae", "vqgan"), result["features"], strict=False):
        expected = al.extract(al.load_encoder(name), data).layers
        assert row["shapes"] == [list(expected.shape)]
        assert torch.equal(load_file(out / row["file"])["layers"], expected)
    assert len(entries()) == 3  # `al.extract` found them


def test_without_saving_nothing_but_the_result_is_written(home, tmp_path):
    out = tmp_path / "out"
    assert run(["extract", "--encoder", "mae", "--n", "10", "--out", str(out)]) == 0
    assert [path.name for path in out.iterdir()] == ["result.json"]
    assert json.loads((out / "result.json").read_text())["features"][0]["file"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give an --encoder"),
        (["--encoder", "mae", "--n", "0"], "--n must be more than 0"),
        (["--encoder", "mae", "--pool", "max"], "pool must be one of"),
        (["--encoder", "mea"], "mea"),
        (["--encoder", "mae", "--data", "nothing"], "no data set"),
    ],
)
def test_bad_options(home, tmp_path, capsys, options, message):
    assert run(["extract", *options, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "alignlab"]


def hashes(home):
    """What the manifests of a store vouch for, by model: the SHA-256 of every shard of features."""
    manifests = [json.loads(path.read_text()) for path in (home / "features").glob("*/manifest.json")]
    return {one["model"]: one["shards"] for one in manifests}


def test_processes_share_one_store_and_come_to_the_same(home, tmp_path, small_llm, blurs, monkeypatch):
    pictures = str(blurs("pictures", 1100, (8, 8), "number {}\n"))  # five shards; the launcher trips over --n
    models = ["--encoder", "mae", "--llm", str(small_llm), "--data", pictures]
    command = ["-m", "alignlab", "measure", *models, "--nulls", "5", "--resamples", "5", "--out"]
    # As many threads as the launcher gives each: with another number of them sums are rounded differently.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    pairs = {}
    for count in (1, 4):
        options = ["--multi_gpu", "--num_processes", str(count), "--main_process_port", "0"]
        launch = ["-m", "accelerate.commands.launch", *options] if count > 1 else []
        monkeypatch.setenv("ALIGNLAB_HOME", str(tmp_path / f"home-{count}"))
        line = [sys.executable, *launch, *command, str(tmp_path / str(count))]
        done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=600)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count("Alignment with") == 1  # one of them speaks
        shards = hashes(tmp_path / f"home-{count}")
        assert {model: len(some) for model, some in shards.items()} == {"mae": 5, "small-llm": 5}
        assert shards == hashes(tmp_path / "home-1")
        pairs[count] = json.loads((tmp_path / str(count) / "result.json").read_text())["pairs"]
    assert pairs[1] == pairs[4]


def test_an_error_in_every_process_ends_the_launch_with_its_message(home, tmp_path):
    command = ["extract", "--encoder", "mea", "--out", str(tmp_path / "out")]
    done = subprocess.run([*LAUNCH, *command], capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode != 0
    assert "alignlab: " in done.stderr
    assert "mea" in done.stderr


def test_models_that_are_called_alike_are_not_mixed_up(home, tmp_path, small_mae, capsys):
    """One's file would take the place of the other's."""
    from safetensors.torch import save_file

    folders = [tmp_path / name / "model" for name in "ab"]
    for number, folder in enumerate(folders):
        shutil.copytree(small_mae, folder)
        weights = load_file(folder / "model.safetensors")
        shifted = {name: x + number for name, x in weights.items()}
        save_file(shifted, folder / "model.safetensors", metadata={"format": "pt"})
    models = [part for folder in folders for part in ("--encoder", str(folder))]
    for command in (["extract", "--save"], ["measure"]):
        assert run([*command, *models, "--n", "24", "--out", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert "two models are called model (model@sha256:" in error
        assert "rename one's folder" in error
    assert not (tmp_path / "out").exists()
