"""What changes a number: `alignlab measure` and `restore eval` again with one thing changed at a time, on the same machine.

    python benchmarks/determinism.py [--n 512] [--images 16] [--out FILE]

Each row is a run of its own with a cache of its own (but "again", which has the first run's), compared with the first, or, of
the rows in bfloat16, with the first of those: the largest difference of any layer's feature, over the largest feature of that
layer, and the largest difference of any score of any pair of layers, of mutual k-NN and CKA. "restored" is the largest
difference of any of `--images` pictures' PSNR, in dB, as the shipped denoising adapters restore them (`restore eval`, bfloat16).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from safetensors import safe_open

from alignlab.models import weights
from alignlab.provenance import environment

TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
COARSE = ["--dtype", "bfloat16", "--llm-dtype", "bfloat16"]
# What is changed: threads, how many processes, options of the command.
ROWS: dict[str, tuple[int, list[str], list[str]]] = {
    "the first": (2, [], []),
    "again, cached": (2, [], []),
    "again, empty cache": (2, [], []),
    "batches of 7": (2, [], ["--batch-size", "7"]),
    "batches of 1": (2, [], ["--batch-size", "1"]),
    "1 thread": (1, [], []),
    "2 processes of 1 thread": (1, TWO, []),
    "the first, bfloat16": (2, [], COARSE),
    "batches of 7, bfloat16": (2, [], [*COARSE, "--batch-size", "7"]),
}


def measured(home: Path, out: Path, threads: int, launcher: list[str], options: list[str], n: int) -> dict:
    """The result of a run in its own process."""
    data = out.parent / "scenes.jsonl"
    command = [
        "-m",
        "alignlab",
        "measure",
        "--encoder",
        "mae",
        "--data",
        str(data),
        "--nulls",
        "20",
        "--resamples",
        "0",
    ]
    environ = {**os.environ, "ALIGNLAB_HOME": str(home), "OMP_NUM_THREADS": str(threads)}
    subprocess.run(
        [sys.executable, *launcher, *command, *options, "--out", str(out)],
        env=environ,
        check=True,
        capture_output=True,
    )
    return json.loads((out / "result.json").read_text())


def restored(home: Path, out: Path, threads: int, launcher: list[str], options: list[str], n: int) -> list[float]:
    """PSNR of each picture, restored in its own process."""
    few = out.parent / "few.jsonl"
    few.write_text("".join((out.parent / "scenes.jsonl").read_text().splitlines(keepends=True)[:n]))
    command = ["-m", "alignlab", "restore", "eval", "--checkpoint", "denoise-mae-smollm2", "--data", str(few)]
    command += ["--dtype", "bfloat16"]
    environ = {**os.environ, "ALIGNLAB_HOME": str(home), "OMP_NUM_THREADS": str(threads)}
    line = [sys.executable, *launcher, *command, *options, "--out", str(out)]
    subprocess.run(line, env=environ, check=True, capture_output=True)
    return json.loads((out / "result.json").read_text())["results"][0]["each"]["psnr"]


def features(home: Path) -> dict[str, dict]:
    """Every set of features in a cache: model -> shard -> tensor."""
    found = {}
    for manifest in sorted((home / "features").glob("*/manifest.json")):
        model = json.loads(manifest.read_text())["model"]
        for shard in sorted(manifest.parent.glob("*.safetensors")):
            with safe_open(shard, "pt") as file:
                found.update({(model, shard.name, key): file.get_tensor(key).double() for key in file.keys()})  # noqa: SIM118
    return found


def largest_apart(ours: dict, theirs: dict) -> float:
    """Over all layers `[n, L, D]`, the largest difference over the layer's largest feature."""
    assert ours.keys() == theirs.keys()
    apart = 0.0
    for key, x in ours.items():
        for layer, other in zip(x.unbind(1), theirs[key].unbind(1), strict=True):
            apart = max(apart, float((layer - other).abs().max() / other.abs().max().clamp(min=1e-30)))
    return apart


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=512)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    weights.fetch(weights.SMOLLM2)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        write_scenes(Path(scratch), given.n)
        first_home = Path(scratch) / "home-0"
        for number, (name, (threads, launcher, options)) in enumerate(ROWS.items()):
            home = first_home if "cached" in name else Path(scratch) / f"home-{number}"
            share_models(home)
            result = measured(home, Path(scratch) / f"out-{number}", threads, launcher, options, given.n)
            restores = "bfloat16" not in name  # those here always are
            each = (
                restored(home, Path(scratch) / f"restored-{number}", threads, launcher, options, given.images)
                if restores
                else []
            )
            if name.startswith("the first"):
                first, whole, painted = result, features(home), each
                continue
            row = {"changed": name, "features": largest_apart(features(home), whole)}
            for one, other in zip(result["pairs"], first["pairs"], strict=True):
                cells = [
                    (a, b)
                    for x, y in zip(one["matrix"], other["matrix"], strict=True)
                    for a, b in zip(x, y, strict=True)
                ]
                row[one["metric"]] = max(abs(a - b) for a, b in cells)
            if restores:
                row["restored"] = max(abs(a - b) for a, b in zip(each, painted, strict=True))
            rows.append(row)
            print(
                f"{name:26} " + "  ".join(f"{key} {value:.3g}" for key, value in row.items() if key != "changed"),
                flush=True,
            )
    if given.out:
        about = {"schema": "alignlab.benchmark-determinism/1", "n": given.n, "images": given.images, "rows": rows}
        described = environment("cpu")
        described.pop("command")  # that of a command of alignlab
        given.out.write_text(json.dumps({**about, "environment": described}, indent=1) + "\n")


def write_scenes(folder: Path, n: int) -> None:
    """The first scenes as a file of lines: the launcher of several processes takes --n for an option of its own."""
    from alignlab.data import load_dataset

    lines = []
    for i, item in enumerate(load_dataset("scenes").head(n)):
        item.image.save(folder / f"{i:04}.png")
        lines.append(json.dumps({"image": f"{i:04}.png", "captions": list(item.captions)}))
    (folder / "scenes.jsonl").write_text("\n".join(lines) + "\n")


def share_models(home: Path) -> None:
    """The downloaded language model, so that it is not fetched anew for every cache."""
    from alignlab.paths import home as usual

    home.mkdir(parents=True, exist_ok=True)
    for part in ("weights", "models"):
        if (usual() / part).is_dir() and not (home / part).exists():
            (home / part).symlink_to(usual() / part)


if __name__ == "__main__":
    main()
