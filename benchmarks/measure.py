"""How long `alignlab measure --encoder mae` takes, and how much memory: with an empty cache, and again.

    python benchmarks/measure.py [--repeat 3] [--out benchmarks/results/measure.json]

Prints, for each run, wall seconds, the share spent on extraction and alignment, and the peak memory of the largest
process; then ratios, which say more than seconds on a noisy machine: again / empty, and the engine against a plain
computation of every layer pair, permutation by permutation, on the same features.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

COMMAND = [sys.executable, "-m", "alignlab", "measure", "--encoder", "mae"]


def timed(home: Path, out: Path) -> dict[str, float]:
    """One run as a whole process, by the operating system's account of it."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [*COMMAND, "--out", str(out)],
        env={**os.environ, "ALIGNLAB_HOME": str(home)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    if status:
        raise SystemExit(f"{' '.join(COMMAND)} failed with status {status}")
    parts = json.loads((out / "result.json").read_text())["seconds"]
    return {
        "wall_s": round(wall, 2),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 2),
        "extract_s": parts["extract"],
        "align_s": parts["align"],
        "peak_GB": round(usage.ru_maxrss / 1e6, 2),
    }


def plain(layers_x: Any, layers_y: Any, perms: Any) -> float:
    """Seconds that the two metrics, called pair by pair for each shuffled pairing, would take."""
    from alignlab import metrics

    began = time.perf_counter()
    for perm in perms:
        for x in layers_x:
            moved = x[perm]
            for y in layers_y:
                metrics.mutual_knn(moved, y, k=10)
                metrics.cka(moved, y)
    return time.perf_counter() - began


def engine_ratio() -> dict[str, float]:
    """200 shuffled pairings of random features of the embedded models' sizes: plain computation against `align`."""
    import numpy as np

    from alignlab.alignment import align

    rng = np.random.default_rng(0)
    x = rng.normal(size=(1024, 7, 256)).astype(np.float32)
    y = rng.normal(size=(1024, 31, 576)).astype(np.float32)
    began = time.perf_counter()
    align(x, y, nulls=200, resamples=0)
    ours = time.perf_counter() - began
    # one pairing of two layers each: 1 / (200 * 7 * 31 / 4) of the work
    few = plain(x[:, :2].swapaxes(0, 1), y[:, :2].swapaxes(0, 1), [rng.permutation(1024)])
    plainly = few * (7 * 31 / 4) * 201
    return {
        "align_s": round(ours, 2),
        "plain_s_estimated": round(plainly, 1),
        "plain_over_align": round(plainly / ours, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3, help="runs with a filled cache")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "measure.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch) / "home"
        empty = timed(home, Path(scratch) / "first")
        again = [timed(home, Path(scratch) / f"again{i}") for i in range(arguments.repeat)]
    from alignlab.provenance import environment

    result = {
        "command": "alignlab measure --encoder mae",
        "empty_cache": empty,
        "again": again,
        "again_over_empty": round(median(run["wall_s"] for run in again) / empty["wall_s"], 3),
        "engine": engine_ratio(),
        "environment": environment("cpu"),
    }
    result["environment"].pop("command")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"empty cache: {empty}")
    for run in again:
        print(f"again:       {run}")
    print(f"again / empty: {result['again_over_empty']}")
    print(f"engine: {result['engine']}")


if __name__ == "__main__":
    main()
