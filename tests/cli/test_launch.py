"""Whole commands in several processes, as `accelerate launch` starts them: they come to what one comes to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

ALONE = [sys.executable, "-m", "alignlab"]


def launched(count: int, *what: str) -> list[str]:
    # Without --multi_gpu accelerate starts one process where there is no GPU. Port 0 is any that is free.
    options = ["--multi_gpu", "--num_processes", str(count), "--main_process_port", "0"]
    return [sys.executable, "-m", "accelerate.commands.launch", *options, *(what or ("-m", "alignlab"))]


def done(*command: object) -> str:
    # One thread each, as the launcher has it: with another number of them sums are rounded differently.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    made = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, timeout=600, env=environment
    )
    assert made.returncode == 0, made.stderr[-3000:]
    return made.stdout


def result(folder):
    return json.loads((folder / "result.json").read_text())


def files(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if "tfevents" not in path.name}


def test_the_launcher_starts_as_many_as_it_is_told(tmp_path):
    """Or the tests below would compare one process with itself."""
    script = tmp_path / "who.py"
    script.write_text(
        "import pathlib, sys\nfrom alignlab.training import processes\nfound = processes('cpu')\n"
        "(pathlib.Path(sys.argv[1]) / f'rank-{found.rank}').write_text(str(found.count))\n"
    )
    done(*launched(2, str(script)), tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.glob("rank-*")} == {"rank-0": "2", "rank-1": "2"}


@pytest.fixture(scope="module")
def photos(blurs):
    return blurs("photos", 22)  # five of them held out: no even share for two or four


@pytest.fixture(scope="module")
def models(small_mae, small_llm):
    return ["--encoder", small_mae, "--llm", small_llm, "--dtype", "float32", "--device", "cpu"]


@pytest.fixture(scope="module")
def training(models, photos):
    return ["restore", "train", *models, "--data", photos, "--task", "denoise", "--task", "mask", "--task-tokens", 2]


@pytest.fixture(scope="module")
def alone(training, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone") / "run"
    done(*ALONE, *training, "--steps", 4, "--batch-size", 6, "--warmup", 1, "--out", folder)
    return folder


@pytest.mark.parametrize("count", [2, 4])
def test_training_and_its_evaluation(training, alone, tmp_path, count):
    from safetensors.torch import load_file

    # Four do not share six pictures evenly.
    said = done(
        *launched(count), *training, "--steps", 4, "--batch-size", 6, "--warmup", 1, "--out", tmp_path / "together"
    )
    assert said.count("written:") == 1  # one of them speaks
    one, together = result(alone), result(tmp_path / "together")
    assert files(tmp_path / "together") == files(alone)
    assert len(list((tmp_path / "together" / "logs").iterdir())) == 1  # of the first process alone
    for here, there in zip(together["learnt"]["log"], one["learnt"]["log"], strict=True):
        assert here == pytest.approx(there, rel=1e-5)
    here, there = (load_file(folder / "adapters.safetensors") for folder in (tmp_path / "together", alone))
    for name, x in there.items():  # every step's losses are behind them; the log smooths
        assert float((here[name] - x).norm()) <= 1e-5 * float(x.norm()), name
    assert len(one["evaluations"]) == 2
    for here, there in zip(together["evaluations"], one["evaluations"], strict=True):
        assert (here["task"], here["n"], here["misaligned"]) == (there["task"], 5, there["misaligned"])
        assert here["each"]["psnr"] == pytest.approx(there["each"]["psnr"], rel=1e-5)
        for column in ("degraded", "alone", "restored"):
            assert here[column]["psnr"]["mean"] == pytest.approx(there[column]["psnr"]["mean"], rel=1e-5)
            assert here[column]["psnr"]["ci95"] == pytest.approx(there[column]["psnr"]["ci95"], rel=1e-5)


OFTEN = """
import sys
from alignlab import training
from alignlab.cli import run
training.SAVE_EVERY = 0.0
raise SystemExit(run(sys.argv[1:]))
"""


def test_a_killed_process_ends_the_run_and_the_same_command_goes_on(training, tmp_path):
    import psutil
    from safetensors.torch import load_file

    script, out = tmp_path / "often.py", tmp_path / "together"
    script.write_text(OFTEN)
    sizes = ["--steps", 60, "--batch-size", 4, "--warmup", 1, "--n", 2]
    command = list(map(str, [*launched(2, str(script)), *training, *sizes, "--out", out]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as run:
        deadline = time.monotonic() + 240
        while not (out / "state.pt").exists() and run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        (second,) = (child for child in psutil.Process(run.pid).children() if child.environ().get("RANK") == "1")
        second.kill()
        _, told = run.communicate(timeout=240)
    assert run.returncode != 0
    assert "SIGKILL" in told
    assert not (out / "result.json").exists()
    done(*command)
    done(*ALONE, *training, *sizes, "--out", tmp_path / "alone")
    here, there = (load_file(folder / "adapters.safetensors") for folder in (out, tmp_path / "alone"))
    for name, x in there.items():
        assert float((here[name] - x).norm()) <= 1e-5 * float(x.norm()), name


def test_what_is_not_shared_is_refused(tmp_path):
    command = [*launched(2), "data", "list"]
    told = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    )
    assert told.returncode != 0
    assert "alignlab: data list does all of its work in every process; run it without a launcher" in told.stderr
    assert told.stdout == ""


def test_extraction(models, photos, tmp_path, monkeypatch):
    """Into one store, a shard of two items at a time."""
    from safetensors.torch import load_file

    script = tmp_path / "shards.py"
    script.write_text(SHARDS)
    command = ["extract", *models, "--data", photos, "--save"]
    lines = {"alone": [sys.executable, script], **{str(n): launched(n, str(script)) for n in (2, 4)}}
    for name, line in lines.items():
        monkeypatch.setenv("ALIGNLAB_HOME", str(tmp_path / name / "home"))
        assert done(*line, *command, "--out", tmp_path / name / "out").count("written:") == 1
    there = tmp_path / "alone" / "out"
    assert len(list(there.glob("*.safetensors"))) == 2
    for count in ("2", "4"):
        here = tmp_path / count / "out"
        assert files(here) == files(there)
        for path in there.glob("*.safetensors"):
            ours, theirs = load_file(here / path.name), load_file(path)
            assert ours.keys() == theirs.keys()
            assert all((ours[key] == x).all() for key, x in theirs.items())
        whose = [json.loads(path.read_text()) for path in (tmp_path / count / "home").rglob("manifest.json")]
        assert [len(one["shards"]) for one in whose] == [11, 11]


SHARDS = """
import sys
from alignlab.cli import run
from alignlab.features import store
store.SHARD = 2
raise SystemExit(run(sys.argv[1:]))
"""


def test_evaluations(alone, photos, tmp_path):
    command = ["restore", "eval", "--checkpoint", alone, "--data", photos, "--dtype", "float32", "--device", "cpu"]
    done(*ALONE, *command, "--out", tmp_path / "alone")
    for count in (2, 4):
        out = tmp_path / str(count)
        assert done(*launched(count), *command, "--out", out).count("written:") == 1
        for here, there in zip(result(out)["results"], result(tmp_path / "alone")["results"], strict=True):
            assert here["each"]["psnr"] == pytest.approx(there["each"]["psnr"], rel=1e-5)
            assert here["restored"]["psnr"]["mean"] == pytest.approx(there["restored"]["psnr"]["mean"], rel=1e-5)
        assert files(out) == files(tmp_path / "alone")


def test_captions(models, photos, tmp_path):
    sizes = ["--steps", 4, "--batch-size", 6, "--warmup", 1]
    training = ["caption", "train", *models, "--data", photos, *sizes, "--judge", "none"]
    done(*launched(4), *training, "--out", tmp_path / "together")
    done(*ALONE, *training, "--out", tmp_path / "alone")
    here, there = result(tmp_path / "together"), result(tmp_path / "alone")
    assert files(tmp_path / "together") == files(tmp_path / "alone")
    assert [one["loss"] for one in here["learnt"]["log"]] == pytest.approx(
        [one["loss"] for one in there["learnt"]["log"]], rel=1e-5
    )
    (said,), (alone,) = here["evaluations"], there["evaluations"]
    assert said["captions"] == alone["captions"]
    assert said["scores"] == alone["scores"]
    assert said["scores"]["generated"]
    command = [
        "caption",
        "eval",
        "--checkpoint",
        tmp_path / "alone",
        "--data",
        photos,
        "--judge",
        "none",
        "--dtype",
        "float32",
    ]
    assert done(*launched(2), *command, "--out", tmp_path / "eval").count("written:") == 1
    (again,) = result(tmp_path / "eval")["results"]
    assert again["captions"] == alone["captions"]
    assert again["scores"] == alone["scores"]


WAITING = """
import sys, time
from pathlib import Path
from alignlab.training import in_turn, processes
folder, seconds = Path(sys.argv[1]), float(sys.argv[2])
among = processes("cpu")
with in_turn(folder, among):
    there = (folder / "done").exists()
    time.sleep(seconds * (1 + among.rank))
    if among.rank == 0:
        (folder / "done").touch()
    (folder / f"{'first' if seconds else 'second'}-{among.rank}").write_text(str(there))
if among.count > 1:
    from accelerate import PartialState
    PartialState().destroy_process_group()
"""


def test_a_command_waits_for_another_with_all_its_processes(tmp_path):
    """Or its second process would work where its first one finds the work done, and wait for it for hours."""
    script, folder = tmp_path / "waiting.py", tmp_path / "run"
    script.write_text(WAITING)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen([sys.executable, str(script), str(folder), "20"], env=environment) as first:
        deadline = time.monotonic() + 60
        while not (folder / ".lock").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        done(*launched(2, str(script)), folder, "0")
        assert first.wait(60) == 0
    told = {path.name: path.read_text() for path in folder.glob("*-*")}
    assert told == {"first-0": "False", "second-0": "True", "second-1": "True"}
