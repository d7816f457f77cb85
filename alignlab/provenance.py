"""Versions and hardware, for whoever wants the same numbers again."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def _commit(started: float) -> str | None:
    """The commit that the code is of, with a "+" where it was changed since, or after the process `started` (seconds since
    1970) and so loaded other code; None of an installed package.
    """
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return None
    # --no-optional-locks: git would keep what it found out about files.
    command = [
        "git",
        "--no-optional-locks",
        "-C",
        str(root),
        "describe",
        "--always",
        "--exclude=*",
        "--abbrev=12",
        "--dirty=+",
    ]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    later = any(path.stat().st_mtime > started for path in Path(__file__).parent.rglob("*.py"))
    return f"{found}+" if later and not found.endswith("+") else found


def environment(device: str) -> dict[str, Any]:
    """What a result or a card records of where it was made; `seconds` is how long the process had run by then."""
    from importlib.metadata import version

    import psutil
    import torch

    started = psutil.Process().create_time()
    packages = ("torch", "transformers", "timm", "numpy", "scipy")
    return {
        "command": shlex.join(["alignlab", *map(_told, sys.argv[1:])]),
        "python": platform.python_version(),
        "alignlab": _own_version(),
        "commit": _commit(started),
        **{package: version(package) for package in packages},
        "system": f"{platform.system()} {platform.machine()}",
        "processor": torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor(),
        "threads": torch.get_num_threads(),
        "device": device,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(time.time() - started, 1),
    }


def _told(argument: str) -> str:
    """An argument of a command line, a whole path's last part."""
    name, equals, value = argument.rpartition("=")
    return name + equals + (os.path.basename(value.rstrip("/")) if os.path.isabs(value) else value)


def _own_version() -> str:
    from alignlab import __version__

    return __version__


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def shown(source: str) -> str:
    """A set's name as it was typed, without the folders that it lies in: where they lay is nobody's business."""
    kind, colon, rest = source.rpartition(":")
    path = Path(rest)
    if path.is_file():
        return f"{kind}{colon}{path.resolve().parent.name}/{path.name}"
    return f"{kind}{colon}{path.resolve().name}" if path.is_dir() else source


def shown_model(name: str) -> str:
    """A model's name as it was typed, what follows it (`@random`, `[:8]`, `+position`) included, without its folders."""
    found = re.fullmatch(r"(.*?)((?:\+position|@[^/@]*|\[[^\]]*\])*)", name, re.DOTALL)
    assert found is not None, "the second part may be empty"
    return shown(found[1]) + found[2]


def laboratory(encoders: list[str], llm: str | None, *data: str) -> str:
    """Whose models and data a result is about: `embedded` or `paper` when every part is, `own` otherwise.

    `data` are all sets that were learnt from or measured on. `llm` is None where no language model takes part. A code of
    the place beside an encoder's tokens does not make it another's, and neither does what stands behind a name: the model
    with random weights, or its first blocks.
    """
    from alignlab import paper
    from alignlab.data.named import SCENES
    from alignlab.models import variant
    from alignlab.models.registry import EMBEDDED, SHIPPED

    encoders = [variant.parse(name.removesuffix("+position")).base for name in encoders]
    llm = llm and variant.parse(llm).base
    if all(e in EMBEDDED or e in SHIPPED for e in encoders) and llm in (None, "smollm2") and {*data} <= {*SCENES}:
        return "embedded"
    models, known = paper.MODELS.values(), all(source.partition(":")[0] in paper.DATA for source in data)
    if all(e in models for e in encoders) and llm in (None, paper.MODELS["llm"]) and known:
        return "paper"
    return "own"
