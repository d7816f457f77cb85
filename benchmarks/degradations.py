"""How degraded each task's images are, beside the paper's Table 2, and how long degrading takes.

    python benchmarks/degradations.py [DATA ...] [--size 224 64] [--n 200] [--seeds 3] [--out FILE]

DATA is what `alignlab.load_dataset` takes: folders, .jsonl files, names; by default the shipped scenes. Prints, for each
set, size and task, mean PSNR (identical images left out and counted) and SSIM of the degraded input against the clean
image, with 95% intervals over images and draws, and milliseconds an image. rotate, flip and repeat lose nothing: their
rows compare what is to be answered with itself, as the paper's do. Table 2's images are NoCaps' at 224 px, so only that
size is comparable.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignlab.data import load_dataset, resize, to_tensor
from alignlab.data.degradations import TASKS, degrade, pair
from alignlab.paper import TABLE2_DEGRADED
from alignlab.provenance import environment
from alignlab.restoration import quality

AT_ONCE = 1  # images; the measures are in float64, and batches spend their time on getting memory


def measure(images: list[Tensor], task: str, seeds: int) -> dict[str, Any]:
    """One row: every image with every seed."""
    decibels, similar, spent = [], [], 0.0
    for seed in range(seeds):
        for at in range(0, len(images), AT_ONCE):
            clean = torch.stack(images[at : at + AT_ONCE])
            began = time.perf_counter()
            low, high = pair(clean, task, seed=seed, first=at)
            spent += time.perf_counter() - began
            if TASKS[task].spatial:
                low = degrade(low, task)
            decibels.append(quality.psnr(low, high))
            similar.append(quality.ssim(low, high))
    psnr, ssim = quality.mean(torch.cat(decibels)), quality.mean(torch.cat(similar))
    return {
        "parameters": asdict(TASKS[task]),  # type: ignore[call-overload]
        "PSNR": _rounded(psnr.value, 2),
        "PSNR_ci95": [_rounded(end, 2) for end in psnr.ci95],
        "identical": psnr.infinite / psnr.n,
        "SSIM": round(ssim.value, 3),
        "SSIM_ci95": [round(end, 3) for end in ssim.ci95],
        "ms_an_image": round(1000 * spent / seeds / len(images), 2),
    }


def _rounded(value: float, digits: int) -> float | str:
    return round(value, digits) if math.isfinite(value) else "inf"  # JSON has no infinity


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="*", default=["scenes"])
    parser.add_argument("--size", type=int, nargs="+", default=[224])
    parser.add_argument("--n", type=int, default=200, help="images of each set, evenly spread")
    parser.add_argument("--seeds", type=int, default=3, help="draws of each image's strength and places")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "degradations.json")
    arguments = parser.parse_args()
    results = []
    for source in arguments.data:
        data = load_dataset(source)
        count = min(arguments.n, len(data))
        chosen = [i * len(data) // count for i in range(count)]
        for size in arguments.size:
            images = [resize(to_tensor(data[i].image)[None], size)[0] for i in chosen]
            print(f"\n{data.name}, {count} images of {size} px, {arguments.seeds} draws")
            print("task      PSNR                    identical  SSIM                   ms     Table 2")
            rows = {}
            for task in TASKS:
                row = rows[task] = measure(images, task, arguments.seeds)
                paper = TABLE2_DEGRADED.get(task)
                if paper:
                    row["table2"] = {"PSNR": _rounded(paper["PSNR"], 2), "SSIM": paper["SSIM"]}
                print(
                    f"{task:8}  {row['PSNR']!s:>5} {row['PSNR_ci95']!s:17} {row['identical']:9.3f}  "
                    f"{row['SSIM']:.3f} {row['SSIM_ci95']!s:14}  {row['ms_an_image']:5.2f}  "
                    + (f"{paper['PSNR']:.2f} / {paper['SSIM']:.2f}" if paper else "-"),
                    flush=True,
                )
            about = {"data": data.name, "fingerprint": data.fingerprint, "n": count, "size": size}
            results.append({**about, "seeds": arguments.seeds, "tasks": rows})
    described = environment("cpu")
    described.pop("command")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"results": results, "environment": described}, indent=1) + "\n")


if __name__ == "__main__":
    main()
