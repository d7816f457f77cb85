"""The prepared layers of one model, and what metrics share of them: one Gram matrix and one neighbour graph a layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from alignlab.metrics.neighbours import neighbourhood, top

Search = Callable[[Tensor, int], tuple[Tensor, Tensor]]  # as `metrics.neighbours.neighbourhood`


class Layers:
    """Prepared features, a list of `[N, D_l]`; none may be the same for every item.

    With `keep_grams` the centred Gram matrices `[L, N, N]` are computed once, for neighbours and kernels alike. `search`
    finds neighbours where there is no Gram matrix to read them off. `order`, a permutation of the items, says in which
    order those that are equally near are listed; without one it is the order of the items.
    """

    def __init__(
        self,
        features: Sequence[Tensor],
        keep_grams: bool = False,
        search: Search = neighbourhood,
        order: Tensor | None = None,
    ) -> None:
        self.features = list(features)
        self.order = order
        self.n = len(self.features[0])
        self.keep_grams = keep_grams
        self.search = search
        self._grams: Tensor | None = None
        self._near: tuple[Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.features)

    def some(self, which: Sequence[int]) -> Layers:
        """A few of the layers, on their own."""
        return Layers([self.features[i] for i in which], self.keep_grams, self.search, self.order)

    def rows(self, items: Tensor) -> Layers:
        """All layers of a few of the items."""
        return Layers([f[items] for f in self.features], self.keep_grams, self.search)

    def grams(self) -> Tensor:
        """Centred linear kernels `[L, N, N]`."""
        if self._grams is not None:
            return self._grams
        first = self.features[0]
        out = torch.empty(len(self), self.n, self.n, dtype=first.dtype, device=first.device)
        scratch = first.new_empty(0)
        for gram, features in zip(out, self.features, strict=True):
            # the centred features are wanted for a moment only: fresh memory for each layer's would cost a third more
            scratch.resize_(features.shape)
            symmetric_product(torch.sub(features, features.mean(0), out=scratch), gram)
        if self.keep_grams:
            self._grams = out
        return out

    def neighbours(self, length: int) -> tuple[Tensor, Tensor]:
        """Inner products with the nearest items and which they are, nearest first: `[L, N, length]` twice."""
        if self._near is None or self._near[0].shape[2] < length:
            found = [self._search(i, length) for i in range(len(self))]
            self._near = torch.stack([v for v, _ in found]), torch.stack([i for _, i in found])
        return self._near[0][:, :, :length], self._near[1][:, :, :length]

    def _search(self, layer: int, length: int) -> tuple[Tensor, Tensor]:
        features = self.features[layer]
        if self.order is not None:
            values, index = self.search(features[self.order], length)
            back = self.order.argsort()
            return values[back], self.order[index[back]]
        if not self.keep_grams or self.search is not neighbourhood:
            return self.search(features, length)
        mean = features.mean(0)
        towards = (features - mean) @ mean
        values, index = top(self.grams()[layer].clone(), towards, 0, length)
        return values + towards[:, None] + mean @ mean, index


def repeated(x: Tensor) -> float:
    """The share of items whose features `[N, D]` another item has too, exactly."""
    generator = torch.Generator().manual_seed(0)
    line = x @ torch.randn(x.shape[1], generator=generator).to(x)
    places, order = line.sort()  # equal features stand side by side on any line, and few others do
    close = (places[1:] - places[:-1] <= 1e-5 * places.abs().amax()).nonzero().flatten()
    equal = close[(x[order[close]] == x[order[close + 1]]).all(1)]
    return len(torch.cat([equal, equal + 1]).unique()) / len(x)


def symmetric_product(z: Tensor, out: Tensor, block: int = 256) -> None:
    """z z' `[N, D]` -> `[N, N]` into `out`; only the blocks on and above the diagonal are multiplied."""
    for start in range(0, len(z), block):
        stop = start + block
        torch.matmul(z[start:stop], z[start:].T, out=out[start:stop, start:])
        out[stop:, start:stop] = out[start:stop, stop:].T
