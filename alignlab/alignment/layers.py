"""The prepared layers of one model, and what metrics share of them: one Gram matrix and one neighbour graph a layer.

A layer is a tensor, or a `Prepared` where all of them together are too large for memory: then whoever goes over it sees a
block of rows at a time, and who needs it as one asks for one layer after another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from alignlab.metrics.inputs import spans
from alignlab.metrics.neighbours import neighbourhood, top
from alignlab.metrics.preparation import Prepared, some, whole

Search = Callable[[Tensor, int], tuple[Tensor, Tensor]]  # as `metrics.neighbours.neighbourhood`


class Layers:
    """Prepared features, a list of `[N, D_l]`; none may be the same for every item.

    With `keep_grams` the centred Gram matrices `[L, N, N]` are computed once, for neighbours and kernels alike. `search`
    finds neighbours where there is no Gram matrix to read them off. `order`, a permutation of the items, says in which
    order those that are equally near are listed; without one it is the order of the items.
    """

    def __init__(
        self,
        features: Sequence[Tensor | Prepared],
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
        return Layers([some(f, items) for f in self.features], self.keep_grams, self.search)

    @property
    def size(self) -> int:
        """Bytes of all layers."""
        return sum(f.shape.numel() * f.dtype.itemsize for f in self.features)

    def whole(self) -> Layers:
        """The same, all of it in memory."""
        return Layers([whole(f) for f in self.features], self.keep_grams, self.search, self.order)

    def grams(self) -> Tensor:
        """Centred linear kernels `[L, N, N]`."""
        if self._grams is not None:
            return self._grams
        first = self.features[0]
        out = torch.empty(len(self), self.n, self.n, dtype=first.dtype, device=first.device)
        scratch = torch.empty(0, dtype=first.dtype, device=first.device)
        for gram, layer in zip(out, self.features, strict=True):
            features = whole(layer)
            # the centred features are wanted for a moment only: fresh memory for each layer's would cost a third more
            scratch.resize_(features.shape)
            symmetric_product(torch.sub(features, features.mean(0), out=scratch), gram)
        if self.keep_grams:
            self._grams = out
        return out

    def neighbours(self, length: int) -> tuple[Tensor, Tensor]:
        """Inner products with the nearest items and which they are, nearest first: `[L, N, length]` twice."""
        if self._near is None or self._near[0].shape[2] < length:
            first = self.features[0]
            shape = len(self), self.n, length
            values = torch.empty(shape, dtype=first.dtype, device=first.device)
            near = torch.empty(shape, dtype=torch.int64, device=first.device)
            for i in range(len(self)):
                values[i], near[i] = self._search(i, length)
            self._near = values, near
        return self._near[0][:, :, :length], self._near[1][:, :, :length]

    def _search(self, layer: int, length: int) -> tuple[Tensor, Tensor]:
        features = self.features[layer]
        if self.order is not None:
            values, index = self.search(whole(some(features, self.order)), length)
            back = self.order.argsort()
            return values[back], self.order[index[back]]
        if not self.keep_grams or self.search is not neighbourhood:
            return self.search(whole(features), length)
        features = whole(features)
        mean = features.mean(0)
        towards = (features - mean) @ mean
        values, index = top(self.grams()[layer].clone(), towards, 0, length)
        return values + towards[:, None] + mean @ mean, index


def repeated(x: Tensor | Prepared) -> float:
    """The share of items whose features `[N, D]` another item has too, exactly."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(x.shape[1], generator=generator).to(x.device, x.dtype)
    line = torch.empty(len(x), dtype=x.dtype, device=x.device)
    for span in spans(len(x)):
        torch.matmul(x[span], direction, out=line[span])
    places, order = line.sort()  # equal features stand side by side on any line, and few others do
    close = (places[1:] - places[:-1] <= 1e-5 * places.abs().amax()).nonzero().flatten()
    equal = [c[(x[order[c]] == x[order[c + 1]]).all(1)] for c in (close[span] for span in spans(len(close)))]
    return len(torch.cat([close[:0], *equal, *(e + 1 for e in equal)]).unique()) / len(x)


def symmetric_product(z: Tensor, out: Tensor, block: int = 256) -> None:
    """z z' `[N, D]` -> `[N, N]` into `out`; only the blocks on and above the diagonal are multiplied."""
    for start in range(0, len(z), block):
        stop = start + block
        torch.matmul(z[start:stop], z[start:].T, out=out[start:stop, start:])
        out[stop:, start:stop] = out[start:stop, stop:].T
