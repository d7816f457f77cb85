"""Is anything lost when a run is killed? Extraction and training, killed with SIGKILL again and again, against undisturbed runs.

    python benchmarks/kills.py [--kills 100] [--only extraction training] [--small] [--seed 0] [--out FILE]

Each work is a command line on small models, done once undisturbed. Then it is started, killed at a moment drawn uniformly
from the time that a run takes, and started again in the same folders, until a start reaches the end before
its moment; what it left is compared with the undisturbed run's, byte by byte; then from the beginning, until as many kills
were made as asked for. Processes are forked from one that has imported everything: a kill falls into work, never into
imports. The training saves its state after every step, so that kills fall into saving, too.

* extraction: `extract` of 1,000 pictures by a random MAE, four shards: the store's files, and `cache verify`.
* training: `restore train` of 12 steps on random models, and its measurement: adapters, log, scores.

Needs a system that forks (not Windows). Exits 1 where anything differs.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads would not live through a fork

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

import matplotlib.figure  # noqa: E402, F401  what commands import when they need it
import small  # noqa: E402  the models of the tests
import timm  # noqa: E402, F401
import torch  # noqa: E402
import torch.utils.tensorboard  # noqa: E402
from transformers import AutoImageProcessor, LlamaForCausalLM, ViTMAEForPreTraining  # noqa: E402, F401

from alignlab import curves, training  # noqa: E402
from alignlab.cli import run  # noqa: E402
from alignlab.provenance import environment  # noqa: E402

TICK = 0.001  # seconds between two looks at a running process
HANGS = 300.0  # seconds after which a start that nobody kills counts as one that never ends
TRAINED = ("adapters.safetensors", "coordinates.safetensors")


@dataclass(frozen=True)
class Work:
    """A command line and what it leaves in a folder that counts: names of things -> their hashes or values."""

    name: str
    arguments: Callable[[Path], list[str]]
    outcome: Callable[[Path], dict[str, Any]]


@dataclass
class Tally:
    """What became of the starts of one work."""

    kills: int = 0
    finished: int = 0
    failed: list[str] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)  # files that each kill left behind
    seconds_undisturbed: float = 0.0


def fork(work: Callable[[], int], words: Path) -> int:
    """Do something in a process of its own, whose exit status it gives and whose words go to a file."""
    child = os.fork()
    if child:
        return child
    status = 70
    with contextlib.suppress(BaseException):  # the child must not go on with what its parent does
        said = os.open(words, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(said, 1)
        os.dup2(said, 2)
        status = work()
        sys.stdout.flush()
    os._exit(status)


def start(arguments: list[str], folder: Path) -> int:
    """Run a command line in a process of its own; its features go to `folder/home`."""

    def work() -> int:
        os.environ["ALIGNLAB_HOME"] = str(folder / "home")
        training.SAVE_EVERY = -1.0
        curves.SAMPLES = 3  # drawing pictures takes most of the time of a training as small as this
        return run(arguments)

    return fork(work, folder / "words")


def finish(child: int, within: float = HANGS) -> int | None:
    """The exit status of a process, or None where it was killed `within` seconds after now."""
    end = time.monotonic() + within
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(TICK)
    os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return None if status == -signal.SIGKILL else status  # it may have ended just then


def attack(work: Work, kills: int, folder: Path, rng: random.Random) -> Iterator[Tally]:
    """Kill `work` that often, and compare what every start that reaches the end has left; what is known after each of those."""
    tally, whole, again = Tally(), folder / "whole", folder / "again"
    whole.mkdir(parents=True)
    began = time.monotonic()
    status = finish(start(work.arguments(whole), whole))
    tally.seconds_undisturbed = time.monotonic() - began
    if status != 0:
        raise SystemExit(f"{work.name} fails undisturbed: {(whole / 'words').read_text()}")
    print(f"{work.name}: {tally.seconds_undisturbed:.2f} s undisturbed", flush=True)
    wanted = work.outcome(whole)
    again.mkdir()
    usual = tally.seconds_undisturbed  # as the machine is now: others may be at work on it
    while tally.kills < kills or any(again.iterdir()):
        last = tally.kills >= kills  # let it reach the end
        within = HANGS if last else rng.uniform(0, usual)
        fresh, began = not any(again.iterdir()), time.monotonic()
        status = finish(start(work.arguments(again), again), within)
        if status is None and not last:
            tally.kills += 1
            usual *= 1.2  # or a busy machine never gets a shard done in time
            tally.kept.append(sum(path.is_file() for path in again.rglob("*")))
            continue
        if fresh:
            usual = time.monotonic() - began
        found = work.outcome(again) if status == 0 else {}
        differs = [key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key)]
        if status != 0:
            said = (again / "words").read_text().strip().splitlines() or [""]
            tally.failed.append(f"{'hangs' if status is None else f'exit {status}'}: {said[-1]}")
        elif differs:
            tally.failed.append(f"differs: {', '.join(sorted(differs))}")
        tally.finished += 1
        shutil.rmtree(again)
        again.mkdir()
        print(f"{work.name}: {tally.kills} kills, {tally.finished} ends, {len(tally.failed)} of them wrong", flush=True)
        yield tally


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def features(folder: Path) -> dict[str, Any]:
    """Every file of the store, the manifest included; nothing may be beside it."""
    store = folder / "home" / "features"
    files = {str(path.relative_to(store)): digest(path) for path in sorted(store.rglob("*")) if path.is_file()}
    return {**files, "cache verify": finish(start(["cache", "verify"], folder))}


def trained(folder: Path) -> dict[str, Any]:
    """Parameters, curve and scores; the seconds it took are its own."""
    out = folder / "out"
    result = json.loads((out / "result.json").read_text())
    left = [path.name for path in out.iterdir() if path.name.startswith(".") or path.suffix == ".tmp"]
    return {
        **{name: digest(out / name) for name in TRAINED},
        "log": result["learnt"]["log"],
        "scores": result["evaluations"],
        "half-written files": left,
    }


def works(models: Path, steps: int = 12, n: int = 1000) -> dict[str, Work]:
    """What is killed; `models` is a folder for the small models and pictures that it works on."""
    mae, llm, many, few = (models / name for name in ("small-mae", "small-llm", "many", "few"))

    def make() -> int:
        small.write_mae(mae)
        small.write_llm(llm)
        small.write_blurs(many, n)
        small.write_blurs(few, 40)
        return 0

    # Elsewhere, as writing models starts a thread, and a process that has several must not be forked.
    if finish(fork(make, models / "words")) != 0:
        raise SystemExit((models / "words").read_text())

    def extraction(folder: Path) -> list[str]:
        return ["extract", "--encoder", str(mae), "--data", str(many), "--device", "cpu", "--out", str(folder / "out")]

    def restoring(folder: Path) -> list[str]:
        names = ["--encoder", str(mae), "--llm", str(llm), "--data", str(few), "--task", "denoise", "--task", "mask"]
        size = ["--steps", str(steps), "--batch-size", "4", "--warmup", "2", "--task-tokens", "2"]
        return [
            "restore",
            "train",
            *names,
            *size,
            "--dtype",
            "float32",
            "--device",
            "cpu",
            "--out",
            str(folder / "out"),
        ]

    return {"extraction": Work("extraction", extraction, features), "training": Work("training", restoring, trained)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="of each work")
    parser.add_argument("--only", nargs="+", choices=["extraction", "training"], default=["extraction", "training"])
    parser.add_argument("--small", action="store_true", help="works of a second, as the tests have them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "kills.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # before any thread is there that a fork would lose
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="kills-") as scratch:
        known = works(Path(scratch), *((2, 300) if arguments.small else ()))
        for name in arguments.only:
            for tally in attack(known[name], arguments.kills, Path(scratch) / name, random.Random(arguments.seed)):
                rows[name] = {
                    "kills": tally.kills,
                    "undisturbed_seconds": round(tally.seconds_undisturbed, 2),
                    "reached_the_end": tally.finished,
                    "same_as_undisturbed": tally.finished - len(tally.failed),
                    "kills_that_left_files": sum(count > 1 for count in tally.kept),  # the first is its words
                    "wrong": tally.failed,
                }
                _write(arguments.out, arguments.seed, rows)  # what was done counts, should this be stopped
    print("\nwork        kills  undisturbed  reached the end  the same as undisturbed")
    for name, row in rows.items():
        print(
            f"{name:10}  {row['kills']:5}  {row['undisturbed_seconds']:9.2f} s  {row['reached_the_end']:15}  "
            f"{row['same_as_undisturbed']:23}"
        )
        print("".join(f"  wrong: {one}\n" for one in row["wrong"]), end="")
    sys.exit(1 if any(row["wrong"] for row in rows.values()) else 0)


def _write(path: Path, seed: int, rows: dict[str, Any]) -> None:
    described = environment("cpu")
    described.pop("command")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"seed": seed, "works": rows, "environment": described}, indent=1) + "\n")


if __name__ == "__main__":
    main()
