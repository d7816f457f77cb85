"""Similarity of representations: functions `(X [N, Dx], Y [N, Dy]) -> float`, larger means more alike.

>>> import numpy as np
>>> X = np.random.default_rng(0).normal(size=(50, 8))
>>> score("mutual_knn", X, X, k=5)
1.0

`table()` lists them all with what is known about each; `@metric(...)` makes one of your own function.
"""

from __future__ import annotations

from typing import Any

from alignlab.metrics.inputs import prepare
from alignlab.metrics.kernels import cka
from alignlab.metrics.neighbours import mutual_knn
from alignlab.metrics.registry import REGISTRY, Metric, check_name, metric, score, table

NAMES: tuple[str, ...]

__all__ = ["NAMES", "Metric", "check_name", "cka", "metric", "mutual_knn", "prepare", "score", "table"]


def __getattr__(name: str) -> Any:
    if name == "NAMES":  # asked for anew each time: a metric of the user's own is one of them
        return tuple(REGISTRY)
    raise AttributeError(f"module 'alignlab.metrics' has no attribute {name!r}")
