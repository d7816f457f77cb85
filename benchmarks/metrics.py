"""How fast the metrics and the engine are, as ratios of times measured in one run.

    python benchmarks/metrics.py [--out benchmarks/results/metrics.json] [--quick]

(a) mutual k-NN and CKA of all 825 layer pairs at N = 1,024 (33 layers of 4,096 features, 25 of 1,024; rows of length 1
    already, so without the search for the 0.95 quantile): `align` against the
    definitions written out pair by pair, against the metric functions pair by pair, and against the Gram products alone.
(b) The same with 200 shuffled pairings.
(c) Growth with N up to 50,000 at 256 features, time and peak memory of a fresh process each, with a plot beside the result.
(d) Every other metric once, at N = 1,024 and 256 features.

`--quick` is for seeing that it runs: fewer layers, smaller N; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from alignlab import metrics
from alignlab.alignment import align
from alignlab.provenance import environment

HERE = Path(__file__).parent
K = 10


def seconds(run: Callable[[], object], repeat: int = 1) -> float:
    """The least of a few runs: what the machine can do when nothing else wants it."""
    took = []
    for _ in range(repeat):
        began = time.perf_counter()
        run()
        took.append(time.perf_counter() - began)
    return min(took)


def layers(count: int, n: int, d: int, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.functional.normalize(torch.randn(n, d, generator=generator), dim=1) for _ in range(count)]


def written_out_knn(x: torch.Tensor, y: torch.Tensor) -> float:
    """Mutual k-NN by its definition: rank all similarities, mark the neighbours, count the marks in common."""
    marks = []
    for z in (x, y):
        near = (z @ z.T).fill_diagonal_(-1e8).argsort(dim=1, descending=True)[:, :K]
        marks.append(torch.zeros(len(z), len(z)).scatter_(1, near, 1.0))
    return float((marks[0] * marks[1]).sum(1).mean() / K)


def written_out_cka(x: torch.Tensor, y: torch.Tensor) -> float:
    """CKA by its definition, with the centring matrix as a matrix."""
    k, l = x @ x.T, y @ y.T
    h = torch.eye(len(x)) - 1 / len(x)

    def hsic(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.trace(a @ h @ b @ h)

    return float(hsic(k, l) / (hsic(k, k) * hsic(l, l)).sqrt())


def all_pairs(quick: bool) -> dict[str, Any]:
    shape = ((3, 256), (2, 128)) if quick else ((33, 4096), (25, 1024))
    n = 256 if quick else 1024
    x, y = (layers(count, n, d, seed) for seed, (count, d) in enumerate(shape))
    pairs = len(x) * len(y)

    def grams() -> None:
        for z in (*x, *y):
            z @ z.T

    def run(nulls: int) -> Callable[[], object]:
        return lambda: align(x, y, ["mutual_knn", "cka"], k=K, q=1, nulls=nulls, resamples=0)

    few = [(x[0], y[0]), (x[1], y[1])]
    grams()
    products = seconds(grams, 3)
    without = seconds(run(0), 3)
    shuffled = seconds(run(200), 2)
    written = seconds(lambda: [(written_out_knn(a, b), written_out_cka(a, b)) for a, b in few], 2) / len(few) * pairs
    functions = seconds(lambda: [(metrics.mutual_knn(a, b), metrics.cka(a, b)) for a, b in few], 2) / len(few) * pairs
    return {
        "pairs": pairs,
        "n": n,
        "align_s": round(without, 2),
        "gram_products_s": round(products, 2),
        "written_out_s_estimated": round(written, 1),
        "functions_s_estimated": round(functions, 1),
        "written_out_over_align": round(written / without, 1),
        "functions_over_align": round(functions / without, 1),
        "align_over_gram_products": round(without / products, 2),
        "align_200_nulls_s": round(shuffled, 2),
        "nulls_over_align": round((shuffled - without) / without, 2),
    }


SERIES = ("mutual_knn", "cka")


def growth(quick: bool) -> list[dict[str, Any]]:
    """One process an entry, so that each peak is its own."""
    sizes = (250, 500, 1000) if quick else (1_562, 3_125, 6_250, 12_500, 25_000, 50_000)
    rows = []
    for metric in SERIES:
        for n in sizes:
            command = [sys.executable, __file__, "--one", metric, str(n)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(rows[-1], flush=True)
    return rows


def one(metric: str, n: int) -> dict[str, Any]:
    def peak() -> float:
        """In GB, of this process alone; the operating system's other figure counts the parent's before it."""
        (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
        return round(int(line.split()[1]) / 1e6, 2)

    x, y = (layers(1, n, 256, seed) for seed in range(2))
    small = [f[:64] for f in x], [f[:64] for f in y]
    align(*small, [metric], k=K, nulls=0, resamples=0)  # what is loaded on first use is not the metric's
    before = peak()
    took = seconds(lambda: align(x, y, [metric], k=K, nulls=0, resamples=0), 7 if metric == "cka" else 2)
    return {"metric": metric, "n": n, "seconds": round(took, 3), "peak_GB": peak(), "before_GB": before}


def exponents(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Time grows as N to this power, between the two largest sizes four times apart."""
    found = {}
    for series in SERIES:
        mine = [r for r in rows if r["metric"] == series]
        if len(mine) >= 3:
            low, high = mine[-3], mine[-1]
            found[series] = round(math.log(high["seconds"] / low["seconds"]) / math.log(high["n"] / low["n"]), 2)
    return found


def every_metric(quick: bool) -> dict[str, float]:
    n = 128 if quick else 1024
    (x,), (y,) = layers(1, n, 256, 0), layers(1, n, 256, 1)
    took = {}
    for name in metrics.NAMES:
        if name in ("mutual_knn", "cka"):
            continue
        options = (
            {"batch": n} if name == "rtd" else {}
        )  # all items at once: exact, and no slower than ten draws of half
        try:
            took[name] = round(seconds(lambda n=name, o=options: metrics.score(n, x, y, **o), 2), 4)  # type: ignore[misc]
        except ImportError as error:
            print(f"{name}: left out, {error}")
    return took


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    figure = Figure(figsize=(7.5, 3.2), layout="constrained")
    time_axes, memory_axes = figure.subplots(1, 2)
    for series, colour in zip(SERIES, ("#2a6f97", "#c1666b"), strict=True):
        mine = [r for r in rows if r["metric"] == series]
        n = [r["n"] for r in mine]
        time_axes.loglog(n, [r["seconds"] for r in mine], "o-", color=colour, label=series)
        power = 2 if series == "mutual_knn" else 1
        last = mine[-1]
        time_axes.loglog(
            n, [last["seconds"] * (m / last["n"]) ** power for m in n], ":", color=colour, label=f"N^{power}"
        )
        memory_axes.semilogx(n, [r["peak_GB"] for r in mine], "o-", color=colour)
    time_axes.set(xlabel="items", ylabel="seconds")
    memory_axes.set(xlabel="items", ylabel="peak memory, GB")
    for axes in (time_axes, memory_axes):
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xticks([2_000, 5_000, 10_000, 20_000, 50_000], ["2,000", "5,000", "10,000", "20,000", "50,000"])
    memory_axes.axhline(3, color="grey", linewidth=1, linestyle="--")
    memory_axes.set_ylim(0, 3.3)
    time_axes.legend(fontsize=8, loc="upper left")
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "results" / "metrics.json")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--one", nargs=2, metavar=("METRIC", "N"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(arguments.one[0], int(arguments.one[1]))))
        return
    pairs = all_pairs(arguments.quick)
    print(json.dumps(pairs, indent=1), flush=True)
    rows = growth(arguments.quick)
    powers = exponents(rows)
    print(f"time grows as N to the power {powers}", flush=True)
    others = every_metric(arguments.quick)
    print(json.dumps(others, indent=1))
    described = environment("cpu")
    described.pop("command")
    result = {"all_pairs": pairs, "growth": rows, "power": powers, "others_s": others, "environment": described}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    plot(rows, arguments.out.with_name(arguments.out.stem + "-growth.png"))


if __name__ == "__main__":
    main()
