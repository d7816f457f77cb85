"""What the commands share: the console, the output folder, the device, files written whole."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

MADE: list[Path] = []  # folders that were made for the running command's results


def console() -> Console:
    """For tables on stdout: as wide as the terminal, and wide enough for a table in a file or pipe."""
    from alignlab.cli.screen import Screen

    return Screen(highlight=False, width=None if sys.stdout.isatty() else 132)


def output_folder(out: Path | None, command: str) -> Path:
    """The folder for a command's results, made if need be: `out`, or `runs/<command>-<time>`."""
    folder = out or Path("runs") / f"{command}-{time.strftime('%Y%m%d-%H%M%S')}"
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out {folder} is a file; name a folder")
    check_writable(folder, "--out")
    return folder


def pick_device(device: str) -> str:
    """`auto` is a CUDA GPU where there is one. Raises ValueError for an unknown or absent device."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.split(":")[0] not in ("cpu", "cuda"):
        raise ValueError(f"--device must be auto, cpu or cuda, got {device!r}")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {device}: torch {torch.__version__} finds no CUDA GPU here; use --device cpu")
    return device


def check_positive(numbers: dict[str, float | None]) -> None:
    """ValueError unless the numbers of these options, where given, are above 0."""
    for name, value in numbers.items():
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"--{name} must be more than 0, got {value}")


def check_whole(numbers: dict[str, int | None]) -> None:
    """ValueError where one of these options is below 0."""
    for name, value in numbers.items():
        if value is not None and value < 0:
            raise ValueError(f"--{name} must be 0 or more, got {value}")


def check_dtype(dtype: str) -> None:
    if dtype not in ("auto", "bfloat16", "float32"):
        raise ValueError(f"--dtype must be auto, bfloat16 or float32, got {dtype!r}")


def pick_dtype(dtype: str, device: str) -> str:
    """`auto` is bfloat16 where the device is quick in it, float32 elsewhere. Raises ValueError for an unknown one."""
    from alignlab.models.weights import work_dtype

    check_dtype(dtype)
    return work_dtype(dtype, device)


def check_recipe(name: str, steps: int | None, epochs: float | None) -> None:
    """ValueError for a recipe that there is not, and for a training's length told twice."""
    if name not in ("embedded", "paper"):
        raise ValueError(f"--recipe must be embedded or paper, got {name!r}")
    if steps is not None and epochs is not None:
        raise ValueError("--steps and --epochs both say how long to train; give one")


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all; nan and inf are refused, as JSON has none."""
    from alignlab.files import whole

    with whole(path, several=True) as unfinished:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def check_told_apart(models: Sequence[Any]) -> None:
    """ValueError for two models, with a `name` and a `checkpoint` each, that are called alike: one's files would take the
    place of the other's."""
    from alignlab.files import slug

    called: dict[str, Any] = {}
    for model in models:
        other = called.setdefault(slug(model.name), model)
        if other.checkpoint != model.checkpoint:
            raise ValueError(
                f"two models are called {model.name} ({other.checkpoint} and {model.checkpoint}); rename one's folder, or take one "
                "at a time"
            )


def check_shared(out: Path | None, processes: int) -> None:
    """Of a training: a folder named after the time would be another one in each process. Raises ValueError."""
    if processes > 1 and out is None:
        raise ValueError("--out is needed under accelerate launch, whose processes share the folder")


def leave_nothing_empty() -> None:
    """Of a command that was refused or failed: the folders that it had made for its results, where nothing lies in them."""
    for folder in MADE:
        with contextlib.suppress(OSError):  # something lies there, or another process was first
            folder.rmdir()
    MADE.clear()


def check_writable(folder: Path, option: str) -> None:
    """Say that a result cannot be written before it is computed, not after. Raises OSError that names the option."""
    absent = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        MADE.extend(absent)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = f"cannot be written to ({error.strerror}); choose another {option}"
        raise OSError(error.errno, reason, str(folder)) from error
