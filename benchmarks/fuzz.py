"""Thousands of hostile inputs: does every one end in an answer of one line, in time, with no file outside its folder?

    python benchmarks/fuzz.py [--inputs 10000] [--only KIND ...] [--seed 0] [--out FILE]

The kinds are those of tests/fuzz/ (images, sets of data and those of the hub, checkpoints, features, result files, command
lines), of which the tests try a few; the inputs are spread over the kinds, more of those that are cheap. Prints for each kind
how many were tried, how many ended in exit 0, 1 and 2, and of each finding the smallest input that shows it. Exits 1 where
there is one.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import os
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "fuzz"))

import fuzz_checkpoints  # noqa: E402
import fuzz_commands  # noqa: E402
import fuzz_datasets  # noqa: E402
import fuzz_features  # noqa: E402
import fuzz_hub  # noqa: E402
import fuzz_images  # noqa: E402
import fuzz_results  # noqa: E402
import hypothesis  # noqa: E402
from fuzzing import Kind, try_one  # noqa: E402
from hypothesis import HealthCheck, Phase, given, settings  # noqa: E402

from alignlab.provenance import environment  # noqa: E402

# Shares of the inputs.
SHARES = {
    **dict.fromkeys((kind.name for kind in fuzz_images.KINDS), 36),
    **dict.fromkeys((kind.name for kind in fuzz_datasets.KINDS), 14),
    **dict.fromkeys((kind.name for kind in fuzz_hub.KINDS), 6),
    **dict.fromkeys((kind.name for kind in fuzz_checkpoints.KINDS), 3),
    **{"correlation": 1, "reproduce": 3, "report": 1, "command line": 16, "working line": 2},
    **{"features file": 14, "store": 1},
}
MODULES = (fuzz_images, fuzz_datasets, fuzz_hub, fuzz_checkpoints, fuzz_features, fuzz_results, fuzz_commands)
KINDS = tuple(kind for module in MODULES for kind in module.KINDS)
assert SHARES.keys() == {kind.name for kind in KINDS}, "every kind has its share"
STUCK = 600.0  # seconds after which an input that cannot be interrupted ends the script, with where it is


def attack(kind: Kind, inputs: int, seed: int) -> dict[str, Any]:
    """So many inputs of one kind, and more to make smaller what shows a finding; all are counted."""
    counts: Counter[str] = Counter()
    smallest: dict[str, str] = {}

    @hypothesis.seed(seed)
    @settings(
        max_examples=inputs,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    @given(kind.inputs)
    def every(one: Any) -> None:
        faulthandler.dump_traceback_later(STUCK, exit=True)
        counts["tried"] += 1
        try:
            counts[f"exit {try_one(kind, one)}"] += 1
        except Exception as error:
            what = re.sub(r"\S*/above/middle/input", "INPUT", f"{type(error).__name__}: {error}"[:400])
            if len(repr(one)) < len(smallest.get(what, "x" * 2_000)):
                smallest[what] = repr(one)
            raise
        finally:
            faulthandler.cancel_dump_traceback_later()

    began = time.perf_counter()
    with contextlib.suppress(Exception):  # hypothesis' account of what is kept above
        every()
    findings = [{"what": what, "smallest": one} for what, one in smallest.items()]
    return {**counts, "seconds": round(time.perf_counter() - began, 1), "findings": findings}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--only", nargs="+", choices=[kind.name for kind in KINDS], default=None, metavar="KIND")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "fuzz.json")
    arguments = parser.parse_args()
    chosen = [kind for kind in KINDS if arguments.only is None or kind.name in arguments.only]
    shares = sum(SHARES[kind.name] for kind in chosen)
    rows: dict[str, Any] = {}
    print("kind                           tried  exit 0  exit 1  exit 2  findings  seconds")
    with tempfile.TemporaryDirectory(prefix="fuzz-home-") as home:
        os.environ["ALIGNLAB_HOME"] = home
        for kind in chosen:
            row = rows[kind.name] = attack(kind, -(-arguments.inputs * SHARES[kind.name] // shares), arguments.seed)
            cells = [row.get(name, 0) for name in ("tried", "exit 0", "exit 1", "exit 2")]
            print(
                f"{kind.name:28}",
                *(f"{x:7}" for x in cells),
                f"{len(row['findings']):9} {row['seconds']:8}",
                flush=True,
            )
            for one in row["findings"]:
                print(f"    {one['what']}\n        {one['smallest']}", flush=True)
            _write(arguments.out, arguments.seed, rows)  # what was tried counts, should this be stopped
    total = {name: sum(row.get(name, 0) for row in rows.values()) for name in ("tried", "exit 0", "exit 1", "exit 2")}
    found = sum(len(row["findings"]) for row in rows.values())
    print(f"{'in all':28}", *(f"{x:7}" for x in total.values()), f"{found:9}")
    sys.exit(1 if found else 0)


def _write(path: Path, seed: int, rows: dict[str, Any]) -> None:
    described = environment("cpu")
    described.pop("command")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"seed": seed, "kinds": rows, "environment": described}, indent=1) + "\n")


if __name__ == "__main__":
    main()
