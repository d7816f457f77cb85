"""How often the 95% intervals of `align` hold the truth, metric by metric.

    python benchmarks/intervals.py [--samples 100] [--out benchmarks/results/intervals.json]

Samples of N items from one population of related features (6 shared directions in 12 and 16 features, and noise), an
interval from halves for each. The truth is the mean score of all samples of that size: what a score estimates depends on
N, and an interval speaks about another sample of as many items. Coverage within 0.91 to 0.98 of 100 samples is what
95% looks like.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from alignlab import metrics
from alignlab.alignment import align
from alignlab.provenance import environment

SLOW = ("rtd", "imd")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--items", type=int, default=150)
    parser.add_argument("--halves", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "intervals.json")
    arguments = parser.parse_args()
    names = [name for name in metrics.NAMES if name not in SLOW]
    rng = np.random.default_rng(0)
    mix_x, mix_y = rng.normal(size=(6, 12)), rng.normal(size=(6, 16))
    scores: dict[str, list[float]] = {name: [] for name in names}
    intervals: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for seed in range(arguments.samples):
        shared = rng.normal(size=(arguments.items, 6))
        x, y = (shared @ m + rng.normal(size=(arguments.items, m.shape[1])) for m in (mix_x, mix_y))
        result = align(x[:, None], y[:, None], names, q=1, nulls=0, resamples=arguments.halves, seed=seed)
        for name in names:
            best = result.best(name)
            assert best.ci95 is not None
            scores[name].append(best.score)
            intervals[name].append(best.ci95)
    rows = {}
    for name in names:
        truth, ends = float(np.mean(scores[name])), np.array(intervals[name])
        rows[name] = {
            "coverage": round(float(((ends[:, 0] <= truth) & (truth <= ends[:, 1])).mean()), 3),
            "mean_width_over_true_width": round(
                float((ends[:, 1] - ends[:, 0]).mean() / np.diff(np.quantile(scores[name], [0.025, 0.975]))[0]), 2
            ),
        }
        print(
            f"{name:24} {rows[name]['coverage']:.2f}  width {rows[name]['mean_width_over_true_width']:.2f} of the true one"
        )
    described = environment("cpu")
    described.pop("command")
    about = {"samples": arguments.samples, "items": arguments.items, "halves": arguments.halves}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({**about, "metrics": rows, "environment": described}, indent=1) + "\n")


if __name__ == "__main__":
    main()
