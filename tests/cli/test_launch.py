"""Whole commands in several processes, as `accelerate launch` starts them: they come to what one comes to."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time

import pytest

ALONE = [sys.executable, "-m", "alignlab"]


def launched(count: int, *what: str) -> list[str]:
    # Without --multi_gpu accelerate starts one process where there is no GPU. Port 0 is any that is free.
    options = ["--multi_gpu", "--num_processes", str(count), "--main_process_port", "0"]
    return [sys.executable, "-m", "accelerate.commands.launch", *options, *(what or ("-m", "alignlab"))]


def surroundings() -> dict[str, str]:
    # One thread each, as the launcher has it: with another number of them sums are rounded differently. No Java: METEOR
    # takes seconds to start.
    path = os.path.dirname(sys.executable)
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def tried(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, timeout=600, env=surroundings()
    )


def done(*command: object) -> str:
    made = tried(*command)
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


LAST = """
import atexit, os, pathlib, sys
from alignlab.cli import run
def threads():
    folder = pathlib.Path(sys.argv[1])
    (folder / f"{os.environ['RANK']}").write_text(
        " ".join((task / "comm").read_text().strip() for task in pathlib.Path("/proc/self/task").iterdir())
    )
atexit.register(threads)  # after all that the command registers
raise SystemExit(run(sys.argv[2:]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads a process' threads from /proc")
def test_no_thread_of_the_other_processes_outlives_a_command(models, photos, tmp_path):
    """One that does can abort the interpreter at its end, and now and then did."""
    (tmp_path / "last.py").write_text(LAST)
    (tmp_path / "threads").mkdir()
    command = ["caption", "train", *models, "--data", photos, "--steps", 1, "--batch-size", 2, "--judge", "none"]
    done(*launched(2, str(tmp_path / "last.py")), tmp_path / "threads", *command, "--out", tmp_path / "run")
    for rank in ("0", "1"):
        left = (tmp_path / "threads" / rank).read_text().split()
        assert left
        assert not [name for name in left if "gloo" in name], left


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


def test_training_and_its_evaluation(training, alone, tmp_path):
    from safetensors.torch import load_file

    # Four do not share six pictures evenly.
    said = done(*launched(4), *training, "--steps", 4, "--batch-size", 6, "--warmup", 1, "--out", tmp_path / "together")
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
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=surroundings()) as run:
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


CRASHING = """
import os, sys
from pathlib import Path
from alignlab import training
from alignlab.cli import run
training.SAVE_EVERY = -1.0
crashed, steps, add = Path(sys.argv.pop(1)), [], training.Processes.add
def until_the_fifth(among, parameters):
    steps.append(among.rank)
    if len(steps) == 5 and among.rank == 1 and not crashed.exists():
        crashed.touch()
        raise RuntimeError("the second card is lost")
    add(among, parameters)
training.Processes.add = until_the_fifth
raise SystemExit(run(sys.argv[1:]))
"""


@pytest.mark.parametrize("train", ["caption train", "restore decoder"])
def test_a_crashed_process_ends_the_run_with_its_message_and_the_same_command_goes_on(train, models, photos, tmp_path):
    import torch

    script, out = tmp_path / "crashing.py", tmp_path / "together"
    script.write_text(CRASHING)
    other = shutil.copytree(photos, tmp_path / "others")
    for end in ("png", "txt"):
        (other / f"00.{end}").unlink()
    chosen = [*models, "--judge", "none"] if train == "caption train" else [*models[:2], *models[4:], "--test", other]
    # Four items of five are learnt from: a last part of the batch that is smaller.
    command = [*train.split(), *chosen, "--data", photos, "--steps", 12, "--batch-size", 5]
    launch = [*launched(2, str(script)), tmp_path / "crashed", *command, "--out", out]
    made = tried(*launch)
    assert made.returncode != 0
    assert "alignlab: the second card is lost" in made.stderr
    assert not (out / "result.json").exists()
    state = torch.load(out / "state.pt", weights_only=True)
    assert state["step"] in (3, 4)  # the last one may not have been written
    assert done(*launch).count("written:") == 1
    done(*ALONE, *command, "--out", tmp_path / "alone")
    assert files(out) == files(tmp_path / "alone")
    folders = (out, tmp_path / "alone")  # of which the state has all digits
    here, there = (torch.load(folder / "state.pt", weights_only=True)["modules"] for folder in folders)
    for name, x in there.items():  # a key's bias has no gradient but rounding
        assert float((here[name] - x).norm()) <= max(1e-5 * float(x.norm()), 1e-7), name
    if train == "restore decoder":
        for one in ("before", "after"):
            ours, theirs = (next(iter(result(folder)["held_out"].values()))[one] for folder in folders)
            assert ours == pytest.approx(theirs, rel=1e-5)


def test_what_is_not_shared_is_refused(tmp_path):
    told = tried(*launched(2), "data", "list")
    assert told.returncode != 0
    assert "alignlab: data list does all of its work in every process; run it without a launcher" in told.stderr
    assert told.stdout == ""


def test_extraction(models, photos, tmp_path, monkeypatch):
    """Into one store, a shard of two items at a time."""
    from safetensors.torch import load_file

    script = tmp_path / "shards.py"
    script.write_text(SHARDS)
    command = ["extract", *models, "--data", photos, "--save"]
    lines = {"alone": [sys.executable, script], "4": launched(4, str(script))}
    for name, line in lines.items():
        monkeypatch.setenv("ALIGNLAB_HOME", str(tmp_path / name / "home"))
        assert done(*line, *command, "--out", tmp_path / name / "out").count("written:") == 1
    there = tmp_path / "alone" / "out"
    assert len(list(there.glob("*.safetensors"))) == 2
    here = tmp_path / "4" / "out"
    assert files(here) == files(there)
    for path in there.glob("*.safetensors"):
        ours, theirs = load_file(here / path.name), load_file(path)
        assert ours.keys() == theirs.keys()
        assert all((ours[key] == x).all() for key, x in theirs.items())
    whose = [json.loads(path.read_text()) for path in (tmp_path / "4" / "home").rglob("manifest.json")]
    assert [len(one["shards"]) for one in whose] == [11, 11]


KILLED = """
import os, signal, sys, time
from pathlib import Path
from alignlab.cli import run
from alignlab.features import store
store.SHARD = 2
killed, vouch = Path(sys.argv.pop(1)), store._vouch
again = killed.exists()
def once(folder, *shard):
    if not again and os.environ["RANK"] == "1":
        while not (folder / "manifest.json").exists():  # until the other has a shard
            time.sleep(0.05)
        killed.touch()
        os.kill(os.getpid(), signal.SIGKILL)  # with a shard written that nobody vouches for
    vouch(folder, *shard)
    if not again:
        time.sleep(240)  # which the launcher does not wait for
store._vouch = once
raise SystemExit(run(sys.argv[1:]))
"""


def test_a_killed_process_ends_an_extraction_and_the_same_command_goes_on(models, photos, tmp_path, monkeypatch):
    from safetensors.torch import load_file

    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    command = ["extract", *models, "--data", photos, "--save", "--out"]
    launch = [*launched(2, str(script)), tmp_path / "killed", *command, tmp_path / "together"]
    monkeypatch.setenv("ALIGNLAB_HOME", str(tmp_path / "home"))
    made = tried(*launch)
    assert made.returncode != 0
    assert "SIGKILL" in made.stderr
    assert not (tmp_path / "together" / "result.json").exists()
    assert (tmp_path / "killed").exists()
    (begun,) = (tmp_path / "home").rglob("manifest.json")
    assert len(json.loads(begun.read_text())["shards"]) == 1  # the other process' own
    done(*launch)
    monkeypatch.setenv("ALIGNLAB_HOME", str(tmp_path / "alone" / "home"))
    done(*ALONE, *command, tmp_path / "alone")
    there = sorted((tmp_path / "alone").glob("*.safetensors"))
    assert len(there) == 2
    for path in there:
        ours, theirs = load_file(tmp_path / "together" / path.name), load_file(path)
        assert ours.keys() == theirs.keys()
        assert all((ours[key] == x).all() for key, x in theirs.items())


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
    out = tmp_path / "4"
    assert done(*launched(4), *command, "--out", out).count("written:") == 1
    for here, there in zip(result(out)["results"], result(tmp_path / "alone")["results"], strict=True):
        assert here["each"]["psnr"] == pytest.approx(there["each"]["psnr"], rel=1e-5)
        assert here["restored"]["psnr"]["mean"] == pytest.approx(there["restored"]["psnr"]["mean"], rel=1e-5)
    assert files(out) == files(tmp_path / "alone")


def test_restored_pictures(alone, photos, tmp_path):
    """Three by four processes, of which one has nothing to do."""
    import numpy as np
    from PIL import Image

    pictures = sorted(photos.glob("*.png"))[:3]
    command = ["restore", "apply", "--checkpoint", alone, "--dtype", "float32", "--device", "cpu", *pictures]
    done(*ALONE, *command, "--out", tmp_path / "alone")
    out = tmp_path / "4"
    assert done(*launched(4), *command, "--out", out).count("written:") == 1
    assert files(out) == files(tmp_path / "alone")
    assert result(out)["pictures"] == result(tmp_path / "alone")["pictures"]
    for path in (tmp_path / "alone").glob("*.png"):
        ours, theirs = (np.asarray(Image.open(folder / path.name)).astype(int) for folder in (out, path.parent))
        assert abs(ours - theirs).max() <= 1, path.name  # of 255: a rounding


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
    shared = ["--checkpoint", tmp_path / "alone", "--dtype", "float32", "--device", "cpu"]
    command = ["caption", "eval", *shared, "--data", photos, "--judge", "none"]
    assert done(*launched(2), *command, "--out", tmp_path / "eval").count("written:") == 1
    (again,) = result(tmp_path / "eval")["results"]
    assert again["captions"] == alone["captions"]
    assert again["scores"] == alone["scores"]

    command = ["caption", "generate", *shared, "--batch-size", 3]
    done(*launched(4), *command, "--data", photos, "--out", tmp_path / "four")
    done(*ALONE, *command, "--data", photos, "--out", tmp_path / "one")
    lines = (tmp_path / "one" / "captions.jsonl").read_text()
    assert (tmp_path / "four" / "captions.jsonl").read_text() == lines
    captions = {one["id"]: one["caption"] for one in map(json.loads, lines.splitlines())}
    assert len(captions) == 22
    pictures = sorted(photos.glob("*.png"))[:5]
    told = [f"{path}: {captions[path.name] or '(nothing)'}\n" for path in pictures]
    assert done(*launched(2), *command, *pictures) == "".join(told)


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
    with subprocess.Popen([sys.executable, str(script), str(folder), "20"], env=surroundings()) as first:
        deadline = time.monotonic() + 60
        while not (folder / ".lock").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        done(*launched(2, str(script)), folder, "0")
        assert first.wait(60) == 0
    told = {path.name: path.read_text() for path in folder.glob("*-*")}
    assert told == {"first-0": "False", "second-0": "True", "second-1": "True"}
