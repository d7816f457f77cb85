"""Similarity of representations: functions `(X [N, Dx], Y [N, Dy]) -> float`, larger means more alike.

>>> import numpy as np
>>> X = np.random.default_rng(0).normal(size=(50, 8))
>>> score("mutual_knn", X, X, k=5)
1.0
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from numpy.typing import ArrayLike
from torch import Tensor

from alignlab.metrics.inputs import prepare
from alignlab.metrics.kernels import cka
from alignlab.metrics.neighbours import mutual_knn

_METRICS: dict[str, Callable[..., float]] = {"mutual_knn": mutual_knn, "cka": cka}
NAMES = tuple(_METRICS)

__all__ = ["NAMES", "cka", "mutual_knn", "prepare", "score"]


def check_name(name: str) -> str:
    """The name itself; ValueError with near names for one that is no metric."""
    if name not in _METRICS:
        near = difflib.get_close_matches(name, NAMES, n=2, cutoff=0.3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(NAMES)}"
        raise ValueError(f"unknown metric {name!r}; {hint}")
    return name


def score(name: str, X: Tensor | ArrayLike, Y: Tensor | ArrayLike, **options: Any) -> float:
    """Call the metric of that name, with its options passed on. Raises ValueError for an unknown name."""
    return _METRICS[check_name(name)](X, Y, **options)
