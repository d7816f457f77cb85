"""`align`: metrics over all layer pairs of two models, with the null of their maximum and an interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alignlab.alignment.pairs import KernelPairs, LayerPairs, NeighbourPairs
from alignlab.alignment.result import Alignment, MetricResult
from alignlab.metrics import check_name
from alignlab.metrics.inputs import as_tensor, check_count, check_finite, check_k, is_same, prepare

# What the Gram matrices or neighbour tables of one group of layers may take; more layers are done group by group.
BYTES_AT_ONCE = 1_200_000_000


def align(
    x: Any,
    y: Any,
    metrics: Sequence[str] = ("mutual_knn", "cka"),
    *,
    k: int = 10,
    q: float = 0.95,
    nulls: int = 200,
    resamples: int = 200,
    seed: int = 0,
    device: str = "cpu",
) -> Alignment:
    """Measure how alike two models represent the same N items, over all pairs of their layers.

    `x` and `y` are what `extract` returns, arrays `[N, L, D]` (numpy or torch), or lists of `[N, D_l]`, item for item
    the same. Features are prepared as the field does (`metrics.prepare` with quantile `q`).

    The best of all layer pairs is a maximum, so it is judged against the same maximum over `nulls` shuffled pairings
    (all layers of x permuted alike); its interval comes from `resamples` halves of the items, drawn without
    replacement. 0 switches either off. Scores are computed in float32 or more; the same `seed` gives the same result.

    A layer that is the same for every item scores 0, with a note in the result. Raises ValueError for an unknown
    metric, different N, fewer than 4 items, nan or inf, and for k outside [1, N/2 - 1] (halves need k neighbours too;
    [1, N-1] without resamples).

    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(60, 3, 8))
    >>> result = align(x, x[:, :2], ["cka"], nulls=19, resamples=0)
    >>> result.matrix("cka").shape
    (3, 2)
    >>> round(result.best("cka").score, 4), result.best("cka").p
    (1.0, 0.05)
    """
    if isinstance(metrics, str):
        raise ValueError(f"metrics must be a list of names, got {metrics!r}; write [{metrics!r}]")
    for name in metrics:
        check_name(name)
    if not metrics:
        raise ValueError("metrics is empty; name one metric at least")
    for name, value in (("nulls", nulls), ("resamples", resamples), ("seed", seed)):
        if not isinstance(value, int | np.integer) or value < 0:
            raise ValueError(f"{name} must be a whole number, 0 or more, got {value}")
    x_layers, y_layers = _layers(x, "x", q, device), _layers(y, "y", q, device)
    n = len(x_layers[0])
    if n != len(y_layers[0]):
        raise ValueError(f"x and y must have the same items, got {n} and {len(y_layers[0])}")
    half = n // 2
    if "mutual_knn" in metrics:
        check_k(k, n)
        if resamples and k > half - 1:
            raise ValueError(
                f"k must be at most {half - 1} for intervals from halves of N={n} items, got {k}; "
                "lower k, add items, or use resamples=0"
            )
    rng = np.random.default_rng(seed)
    perms = torch.from_numpy(np.stack([rng.permutation(n) for _ in range(nulls)]) if nulls else np.empty((0, n), int))
    subsets = torch.from_numpy(
        np.stack([rng.permutation(n)[:half] for _ in range(resamples)]) if resamples else np.empty((0, half), int)
    )
    perms, subsets = perms.to(device), subsets.to(device)

    notes = []
    kept = []
    for name, layers in (("x", x_layers), ("y", y_layers)):
        same = [i for i, layer in enumerate(layers) if is_same(layer)]
        kept.append([i for i in range(len(layers)) if i not in same])
        if same:
            numbers = ", ".join(map(str, same))
            label = getattr(x if name == "x" else y, "name", name)
            notes.append(f"layer {numbers} of {label} is the same for every item; its scores are 0")
    results = {}
    for name in metrics:
        build, params = _ENGINES[name](k)
        results[name] = _measure(
            build, {**params, "q": q}, x_layers, y_layers, kept, perms, subsets, _bytes_a_layer(name, n)
        )
    return Alignment(
        x_name=getattr(x, "name", "x"),
        y_name=getattr(y, "name", "y"),
        n=n,
        seed=seed,
        metrics=results,
        notes=tuple(notes),
    )


Build = Callable[[list[Tensor], list[Tensor]], LayerPairs]


def _neighbours(k: int) -> tuple[Build, dict[str, Any]]:
    return lambda x, y: NeighbourPairs(x, y, k), {"k": k}


def _kernels(k: int) -> tuple[Build, dict[str, Any]]:
    return KernelPairs, {}


_ENGINES: dict[str, Callable[[int], tuple[Build, dict[str, Any]]]] = {"mutual_knn": _neighbours, "cka": _kernels}


def _bytes_a_layer(metric: str, n: int) -> int:
    return n * n * (1 if metric == "mutual_knn" else 8)  # a byte an item pair; float32, and its triangle again


def _layers(features: Any, name: str, q: float, device: str) -> list[Tensor]:
    """Prepared layers, a list of `[N, D_l]`."""
    given: Any = getattr(features, "layers", features)
    if isinstance(given, list | tuple):
        tensors = [as_tensor(f, name) for f in given]
        if not tensors or any(t.ndim != 2 for t in tensors) or len({len(t) for t in tensors}) != 1:
            shapes = [tuple(t.shape) for t in tensors]
            raise ValueError(f"{name} must be a list of [N, D_l] with one N, got shapes {shapes}")
        for i, t in enumerate(tensors):
            check_finite(t, f"{name}[{i}]")
        prepared = prepare(tensors, q)
    else:
        t = as_tensor(given, name)
        if t.ndim != 3:
            raise ValueError(f"{name} must be [N, L, D] or a list of [N, D_l], got shape {tuple(t.shape)}")
        check_finite(t, name)
        prepared = list(prepare(t, q).unbind(1))
    check_count(len(prepared[0]), name)
    return [t.to(device).contiguous() for t in prepared]


def _measure(
    build: Build,
    params: dict[str, Any],
    x: list[Tensor],
    y: list[Tensor],
    kept: list[list[int]],
    perms: Tensor,
    subsets: Tensor,
    bytes_a_layer: int,
) -> MetricResult:
    shape = (len(x), len(y))
    matrix, chance = np.zeros(shape), np.zeros(shape)
    # 0 where no pair can be measured: all layers of one side are the same for every item
    least = -np.inf if kept[0] and kept[1] else 0.0
    null_max, subset_max = np.full(len(perms), least), np.full(len(subsets), least)
    at_once = max(1, BYTES_AT_ONCE // bytes_a_layer // 2)
    for rows in _groups(kept[0], at_once):
        for columns in _groups(kept[1], at_once):
            pairs = build([x[i] for i in rows], [y[i] for i in columns])
            block = np.ix_(rows, columns)
            matrix[block] = pairs.matrix().cpu().numpy()
            chance[block] = pairs.chance().numpy()
            if len(perms):
                null_max = np.maximum(null_max, pairs.permuted(perms).amax((1, 2)).cpu().numpy())
            if len(subsets):
                subset_max = np.maximum(subset_max, pairs.subsampled(subsets).amax((1, 2)).cpu().numpy())
    return MetricResult(params=params, matrix=matrix, chance=chance, null_max=null_max, subset_max=subset_max)


def _groups(items: Sequence[int], size: int) -> list[list[int]]:
    return [list(items[i : i + size]) for i in range(0, len(items), size)]
