"""All layer pairs at once, and again under permutations and on subsets, from one pass over each layer.

A metric is a `LayerPairs`, built from the layers of both models. Nothing is recomputed that a permutation or a subset
leaves as it was: neighbours are relabelled (`graph_pairs`), kernels re-indexed (`kernel_pairs`), what an SVD says of a
layer is moved with its items (`StatePairs`). `EachPair` does it for any other metric, pair by pair.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from alignlab.alignment.layers import Layers
from alignlab.metrics import Metric
from alignlab.metrics.cca import components, correlation
from alignlab.metrics.preparation import Prepared, whole
from alignlab.metrics.procrustes import (
    aligned,
    nuclear,
    right_angles,
    shape,
    shape_cosine,
    squares_apart,
    unit_shape,
    wide,
)
from alignlab.metrics.regression import predictable, share_within, targets

# What is computed of a layer of x alone, of one of y, and how the two are scored.
STATES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "svcca": (components, components, correlation),
    "procrustes": (unit_shape, unit_shape, shape_cosine),
    "angular_shape": (unit_shape, unit_shape, lambda a, b: right_angles(shape_cosine(a, b))),
    "size_and_shape": (shape, shape, lambda a, b: squares_apart(a, b, nuclear(a, b), distance=False)),
    "aligned_cosine": (wide, wide, aligned),
    "linear_fit": (targets, predictable, share_within),
}


class LayerPairs(Protocol):
    """Scores of every layer pair, float64; a layer that is the same for every item must not be among them.

    `x` and `y` have a length, the number of layers.
    """

    x: Any
    y: Any

    def matrix(self) -> Tensor:
        """`[L_x, L_y]`."""

    def permuted(self, perms: Tensor) -> Tensor:
        """With the items of x permuted (item i becomes item perm[i], in all layers alike): `[P, N]` -> `[P, L_x, L_y]`."""

    def subsampled(self, subsets: Tensor) -> Tensor:
        """On some of the items: `[S, m]` -> `[S, L_x, L_y]`."""

    def chance(self) -> Tensor | None:
        """The exact mean over all permutations `[L_x, L_y]`, where it has a closed form."""


class EachPair:
    """Any metric, called pair by pair, permutation by permutation."""

    def __init__(self, x: Layers, y: Layers, metric: Metric, options: dict[str, Any]) -> None:
        self.x, self.y, self.metric, self.options = x, y, metric, options

    def _scores(self, x: list[Tensor | Prepared], y: list[Tensor | Prepared]) -> Tensor:
        rows = [[float(self.metric.core(a, b, **self.options)) for b in y] for a in x]
        out = torch.tensor(rows, dtype=torch.float64)
        if not out.isfinite().all():
            i, j = (~out.isfinite()).nonzero()[0].tolist()
            raise ValueError(f"{self.metric.name} is not defined for layers {i} and {j} (of those that vary)")
        return out

    @cached_property
    def _matrix(self) -> Tensor:
        return self._scores(self.x.features, self.y.features)

    def matrix(self) -> Tensor:
        return self._matrix

    def permuted(self, perms: Tensor) -> Tensor:
        if not self.metric.paired:  # which item is which does not matter: nothing changes
            return self._matrix.expand(len(perms), -1, -1)
        inverse = perms.argsort(1)
        return torch.stack([self._scores(self.x.rows(moved).features, self.y.features) for moved in inverse])

    def subsampled(self, subsets: Tensor) -> Tensor:
        few = [(self.x.rows(s).features, self.y.rows(s).features) for s in subsets]
        return torch.stack([self._scores(x, y) for x, y in few])

    def chance(self) -> Tensor | None:
        return None


class StatePairs:
    """A metric on what one layer alone says: states `[N, r]` of x's and y's features, moved with the items, and their score."""

    def __init__(
        self,
        x: Layers,
        y: Layers,
        states: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]],
        score: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        self.x, self.y, self.states, self.score = x, y, states, score
        self.states_x = [states[0](whole(f)) for f in x.features]
        self.states_y = [states[1](whole(f)) for f in y.features]

    def _scores(self, states: list[Tensor]) -> Tensor:
        return torch.stack([torch.stack([self.score(a, b).double() for b in self.states_y]) for a in states])

    def matrix(self) -> Tensor:
        return self._scores(self.states_x)

    def permuted(self, perms: Tensor) -> Tensor:
        return torch.stack([self._scores([a[back] for a in self.states_x]) for back in perms.argsort(1)])

    def subsampled(self, subsets: Tensor) -> Tensor:
        few = (StatePairs(self.x.rows(s), self.y.rows(s), self.states, self.score) for s in subsets)
        return torch.stack([pairs.matrix() for pairs in few])

    def chance(self) -> Tensor | None:
        return None
