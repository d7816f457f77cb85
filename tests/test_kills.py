"""benchmarks/kills.py on small works: two kills of an extraction and of a training, and what they left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "kills.py"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_killed_runs_end_as_undisturbed_ones(tmp_path):
    command = [sys.executable, str(SCRIPT), "--kills", "2", "--small", "--out", str(tmp_path / "kills.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    works = json.loads((tmp_path / "kills.json").read_text())["works"]
    for row in works.values():
        assert row["kills"] >= 2
        assert row["same_as_undisturbed"] == row["reached_the_end"] >= 1
