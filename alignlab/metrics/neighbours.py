"""Metrics on neighbourhoods: do two representations put the same items next to one another?"""

from __future__ import annotations

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from alignlab.metrics.inputs import check_k, check_pair, zero_if_same

BLOCK = 4096  # rows of the similarity matrix that exist at once


def nearest(x: Tensor, k: int) -> Tensor:
    """The k items with the largest inner product with each item, itself left out: `[N, D]` -> int64 `[N, k]`.

    Nearest first. Computed block by block, so that no N x N matrix exists for large N.
    """
    found = []
    for start in range(0, len(x), BLOCK):
        similarity = x[start : start + BLOCK] @ x.T  # [b, N]
        rows = torch.arange(len(similarity), device=x.device)
        similarity[rows, rows + start] = -torch.inf
        found.append(similarity.topk(k, dim=1).indices)  # [b, k]
    return torch.cat(found)


def mutual_knn(X: Tensor | ArrayLike, Y: Tensor | ArrayLike, k: int = 10) -> float:
    """The mean share of an item's k nearest neighbours that both representations agree on.

    X `[N, Dx]`, Y `[N, Dy]`, numpy or torch; neighbours by inner product, so normalise the rows first (`prepare`)
    unless lengths are meant to count. Range 0..1, 1 for X against itself; unrelated features score k / (N - 1) on
    average. Invariant to rotation and to one positive factor for all items. Costs N^2 (Dx + Dy). Symmetric.

    Source: Huh et al. 2024, "The Platonic Representation Hypothesis", appendix A. Raises ValueError for inputs that are
    not `[N, D]`, differ in N, hold nan or inf, and for k outside [1, N-1]; features that are the same for every item
    score 0 with a warning.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(100, 8))
    >>> mutual_knn(X, 3 * X)
    1.0
    """
    x, y = check_pair(X, Y)
    check_k(k, len(x))
    if zero_if_same(x, y):
        return 0.0
    a, b = nearest(x, k), nearest(y, k)
    shared = (a[:, :, None] == b[:, None, :]).sum()  # [N, k, k] -> count
    return float(shared) / (len(x) * k)
