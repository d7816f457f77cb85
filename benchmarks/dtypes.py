"""What bfloat16 costs on a device, against float32: products of matrices, a training step of LM4LV.

    python benchmarks/dtypes.py [--encoder mae] [--llm smollm2] [--batch 1] [--device cpu] [--out FILE]

`--dtype auto` takes bfloat16 where this finds it quick: processors with its instructions (AVX-512 BF16, AMX) and most GPUs.
Elsewhere it is emulated. Both types take turns, three times each, the median counts; a step is forward and backward, degraded and
clean pictures encoded in it. Prints ratios of one run on one machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from alignlab.data import load_dataset, resize, to_tensor
from alignlab.data.degradations import pair
from alignlab.models import load_encoder, load_llm
from alignlab.models.weights import work_dtype
from alignlab.provenance import environment
from alignlab.restoration.estimate import matmul_rate
from alignlab.restoration.lm4lv import LM4LV

DTYPES = ("float32", "bfloat16")
ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="mae")
    parser.add_argument("--llm", default="smollm2")
    parser.add_argument("--batch", type=int, default=1, help="pictures a step")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "dtypes.json")
    options = parser.parse_args()
    encoder = load_encoder(options.encoder, device=options.device)
    scenes = load_dataset("scenes", n=options.batch)
    clean = torch.cat([resize(to_tensor(item.image)[None], encoder.image_size) for item in scenes])
    low, high = (images.to(options.device) for images in pair(clean, "denoise", seed=0))
    models = {dtype: LM4LV(encoder, load_llm(options.llm, device=options.device, dtype=dtype)) for dtype in DTYPES}

    def step(dtype: str) -> float:
        began = time.perf_counter()
        lq, hq = encoder.encode(torch.cat([low, high])).chunk(2)  # [B, T, D] each
        total = models[dtype](lq, hq, "denoise").total
        total.backward()
        float(total.detach())  # reading a number waits for a card
        return time.perf_counter() - began

    rates: dict[str, list[float]] = {dtype: [] for dtype in DTYPES}
    seconds: dict[str, list[float]] = {dtype: [] for dtype in DTYPES}
    for at in range(1 + ROUNDS):
        for dtype in DTYPES:
            rate, spent = matmul_rate(options.device, dtype), step(dtype)
            if at:  # the first round warms up
                rates[dtype].append(rate)
                seconds[dtype].append(spent)
    found: dict[str, Any] = {
        dtype: {
            "matmul_flop_a_second": statistics.median(rates[dtype]),
            "step_seconds": statistics.median(seconds[dtype]),
        }
        for dtype in DTYPES
    }
    quick, other = found["float32"], found["bfloat16"]
    ratios = {
        "products, float32 over bfloat16": quick["matmul_flop_a_second"] / other["matmul_flop_a_second"],
        "training step, float32 over bfloat16": other["step_seconds"] / quick["step_seconds"],
    }
    auto = work_dtype("auto", options.device)
    for dtype, one in found.items():
        rate = one["matmul_flop_a_second"] / 1e9
        print(f"{dtype}: products {rate:,.1f} GFLOP/s, a step of {options.batch} image(s) {one['step_seconds']:.2f} s")
    for what, ratio in ratios.items():
        print(f"{what}: {ratio:.2f} times as fast")
    print(f"--dtype auto takes {auto} here")
    report = {
        "options": {key: value for key, value in vars(options).items() if key != "out"},
        "dtypes": found,
        "ratios": ratios,
        "auto": auto,
        "instructions": None if options.device.startswith("cuda") else torch.backends.cpu.get_cpu_capability(),
        "environment": environment(options.device),
    }
    report["environment"].pop("command")
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
