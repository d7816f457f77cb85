"""Peak memory where sets are large: `align` on features that stay on disk, and the extraction of many images.

    python benchmarks/large.py [--small] [--only cka] [--folder DIR] [--out benchmarks/results/large.json]

Each case runs in a process of its own, on one thread, on generated data: features of two models that share 16 directions,
float32 `[N, 1, 256]` in .npy files that are mapped; pictures of 32 x 32 pixels, each another, in WebDataset shards of 1,000 or
(extract_hf) Parquet files such as the hub's, read by an encoder of two layers that averages them. Prints the peak of each
process (what Linux counts as resident, mapped pages too) and, of extraction, what was resident at its first, middle and last
batch. Seconds are those of one run, on a machine that does other things too.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

LIMIT_GB = 4.0
BLOCK = 10_000  # items that are generated at once
SHARED = 16
SHARD = 1000  # pictures in a file
KINDS = ("extract", "extract_hf", "cka", "mutual_knn")


@dataclass(frozen=True)
class Size:
    """What is measured; `rounds` are the shuffled pairings, and as many halves."""

    cka: tuple[int, ...] = (100_000, 1_000_000)
    knn: tuple[int, ...] = (200_000,)
    pictures: tuple[int, ...] = (10_000, 100_000)
    width: int = 256
    rounds: int = 10


SMALL = Size(cka=(4_000,), knn=(2_000,), pictures=(300,), width=16, rounds=2)


def generate(folder: Path, n: int, width: int) -> None:
    """`x.npy` and `y.npy`, float32 `[n, 1, width]`."""
    rng = np.random.default_rng(0)
    mixes = [rng.standard_normal((SHARED, width), dtype=np.float32) for _ in "xy"]
    arrays = [np.lib.format.open_memmap(folder / f"{s}.npy", "w+", np.float32, (n, 1, width)) for s in "xy"]
    for start in range(0, n, BLOCK):
        count = min(BLOCK, n - start)
        shared = rng.standard_normal((count, SHARED), dtype=np.float32)
        for array, mix in zip(arrays, mixes, strict=True):
            noise = rng.standard_normal((count, width), dtype=np.float32)
            array[start : start + count, 0] = shared @ mix + 2 * noise


def pictures(start: int, n: int) -> list[tuple[bytes, str]]:
    """JPEG files with captions, numbers `start` to `start + n`."""
    from PIL import Image

    rng = np.random.default_rng(start)
    found = []
    for i in range(start, start + n):
        coded = io.BytesIO()
        coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse.repeat(8, 0).repeat(8, 1)).save(coded, "JPEG")
        found.append((coded.getvalue(), f"picture number {i}"))
    return found


def generate_shards(folder: Path, n: int) -> None:
    """WebDataset shards of 1,000 pictures."""
    for start in range(0, n, SHARD):
        with tarfile.open(folder / f"{start // SHARD:05d}.tar", "w") as tar:
            for i, (coded, caption) in enumerate(pictures(start, min(SHARD, n - start)), start):
                for suffix, content in (("jpg", coded), ("txt", caption.encode())):
                    info = tarfile.TarInfo(f"{i:08d}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


def generate_parquet(folder: Path, n: int) -> None:
    """The Parquet files of a set of the hub, 1,000 pictures in each."""
    import datasets

    kinds = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    for start in range(0, n, SHARD):
        rows = pictures(start, min(SHARD, n - start))
        columns = {"image": [{"bytes": c, "path": None} for c, _ in rows], "caption": [text for _, text in rows]}
        part = datasets.Dataset.from_dict(columns, features=kinds)
        part.to_parquet(folder / f"train-{start // SHARD:05d}.parquet")


def resident_gb() -> float:
    import psutil

    return psutil.Process().memory_info().rss / 1e9


def peak_gb() -> float:
    """The most that was resident of this process; what getrusage says begins at its parent's, which wrote the data."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024 / 1e9


def measure_align(folder: Path, n: int, size: Size, metric: str) -> dict[str, Any]:
    import alignlab as al

    x, y = (np.load(folder / f"{side}.npy", mmap_mode="r") for side in "xy")
    result = al.align(x, y, [metric], nulls=size.rounds, resamples=size.rounds)
    best = result.best(metric)
    found = {"score": round(best.score, 4), "null_mean": round(best.null_mean, 4), "chance": round(best.chance, 4)}
    return {"width": size.width, "features_GB": round((x.nbytes + y.nbytes) / 1e9, 2), **found}


def measure_extract(folder: Path, n: int, source: str) -> dict[str, Any]:
    import torch

    import alignlab as al

    seen: list[float] = []

    class Averages:
        name, checkpoint, pools, image_size = "averages", "averages@1", ("mean",), 32

        def layers(self, images: torch.Tensor, pool: str | None = None) -> torch.Tensor:
            seen.append(resident_gb())
            pooled = (torch.nn.functional.avg_pool2d(images, kernel) for kernel in (8, 4))
            return torch.stack([p.flatten(1)[:, :48] for p in pooled], 1)

    os.environ["ALIGNLAB_HOME"] = str(folder / "home")
    os.environ["HF_DATASETS_CACHE"] = str(folder / "cache")
    before = resident_gb()
    data = al.load_dataset(f"hf:{folder}" if source == "hf" else str(folder))
    listed = resident_gb()
    features = al.extract(Averages(), data, file=folder / "features.safetensors")
    assert features.layers.shape == (n, 2, 48)
    return {
        "list_bytes_an_item": round((listed - before) * 1e9 / n),
        "first_batch_GB": round(seen[0], 3),
        "middle_batch_GB": round(seen[len(seen) // 2], 3),
        "last_batch_GB": round(seen[-1], 3),
    }


def case(kind: str, n: int, size: Size, where: Path | None) -> dict[str, Any]:
    """One case in a process of its own."""
    with tempfile.TemporaryDirectory(dir=where) as scratch:
        if kind == "extract":
            generate_shards(Path(scratch), n)
        elif kind == "extract_hf":
            generate_parquet(Path(scratch), n)
        else:
            generate(Path(scratch), n, size.width)
        small = ["--small"] if size is SMALL else []
        command = [sys.executable, __file__, "--case", kind, "--items", str(n), "--folder", scratch, *small]
        done = subprocess.run(
            command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True, check=True
        )
    return json.loads(done.stdout.splitlines()[-1])


def run_case(kind: str, n: int, size: Size, folder: Path) -> None:
    """What the process of a case does; the last line that it prints is what it found."""
    import alignlab.alignment
    import alignlab.features  # noqa: F401  # imports are not what is timed

    start, began = resident_gb(), time.perf_counter()
    if kind.startswith("extract"):
        found = measure_extract(folder, n, kind.removeprefix("extract").removeprefix("_"))
    else:
        found = measure_align(folder, n, size, kind)
    seconds = time.perf_counter() - began
    used = resource.getrusage(resource.RUSAGE_SELF)
    times = {"seconds": round(seconds, 1), "cpu_seconds": round(used.ru_utime + used.ru_stime, 1)}
    print(
        json.dumps(
            {"case": kind, "items": n, "start_GB": round(start, 3), "peak_GB": round(peak_gb(), 3), **times, **found}
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a few thousand items: whether it runs at all")
    parser.add_argument("--folder", type=Path, help="where the generated data goes (10 GB), and is removed again")
    parser.add_argument("--only", choices=KINDS, help="measure these again, and keep what --out says of the others")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "large.json")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--items", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    size = SMALL if arguments.small else Size()
    if arguments.case:
        run_case(arguments.case, arguments.items, size, arguments.folder)
        return
    from alignlab.provenance import environment

    described = {**environment("cpu"), "threads": 1}
    described.pop("command")
    sizes = dict(zip(KINDS, (size.pictures, size.pictures, size.cka, size.knn), strict=True))
    rows = json.loads(arguments.out.read_text())["cases"] if arguments.only else []
    rows = [row for row in rows if row["case"] != arguments.only]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    asked = [arguments.only] if arguments.only else KINDS
    cases = [(what, count) for what in asked for count in sizes[what]]
    for kind, n in cases:
        rows.append(case(kind, n, size, arguments.folder))
        print(rows[-1], flush=True)
        rows.sort(key=lambda row: (KINDS.index(row["case"]), row["items"]))
        highest = max(row["peak_GB"] for row in rows)
        result = {"rounds": size.rounds, "limit_GB": LIMIT_GB, "highest_peak_GB": highest, "cases": rows}
        arguments.out.write_text(json.dumps({**result, "environment": described}, indent=1) + "\n")
    print(f"highest peak: {highest} GB, the limit is {LIMIT_GB} GB")


if __name__ == "__main__":
    main()
