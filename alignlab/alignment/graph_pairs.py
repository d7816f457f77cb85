"""Metrics on neighbour graphs over all layer pairs: one graph a layer, relabelled under permutations."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from alignlab.alignment.layers import Layers
from alignlab.metrics import kernels, neighbours
from alignlab.metrics.neighbours import overlap, second_order
from alignlab.metrics.preparation import some, whole

# From the neighbours a, b `[N, k]` of both and their inner products u, v to a score.
GRAPHS: dict[str, Callable[..., Tensor]] = {
    "cycle_knn": lambda a, u, b, v, k: neighbours.cycle(a, b).double().mean(),
    "lcs_knn": lambda a, u, b, v, k: neighbours.common_subsequence(a, b).double().mean(),
    "edit_distance_knn": lambda a, u, b, v, k: 1 - neighbours.edits(a, b).double().mean() / k,
    "rank_similarity": lambda a, u, b, v, k: neighbours.ranks_alike(a, b).mean(),
    "joint_rank_knn": lambda a, u, b, v, k: neighbours.joint_rank(a, b).mean(),
    "cknna": lambda a, u, b, v, k, eps=kernels.EPS: neighbours.neighbour_kernels(a, u.double(), b, v.double(), eps),
}

TABLE_BYTES = 500_000_000  # of the table of y's edges; with more items neighbour lists are compared instead


class GraphPairs:
    """A metric on two lists of neighbours: `score(a, u, b, v)` from x's neighbours a `[N, k]` and inner products u, y's b and v."""

    def __init__(self, x: Layers, y: Layers, k: int, score: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> None:
        self.x, self.y, self.n, self.k, self.score = x, y, x.n, k, score
        # Longer lists than k serve the subsets: half of the items keep about half of an item's neighbours.
        self.length = min(self.n - 1, 2 * k + round(6 * k**0.5) + 5)

    def _pairs(self, x: tuple[Tensor, Tensor], y: tuple[Tensor, Tensor]) -> Tensor:
        """Scores `[L_x, L_y]` from values and neighbours `[L, N, k]` of both."""
        return torch.stack(
            [
                torch.stack([self.score(a, u, b, v).double() for v, b in zip(*y, strict=True)])
                for u, a in zip(*x, strict=True)
            ]
        )

    def matrix(self) -> Tensor:
        return self._pairs(self.x.neighbours(self.k), self.y.neighbours(self.k))

    def permuted(self, perms: Tensor) -> Tensor:
        (u, a), y = self.x.neighbours(self.k), self.y.neighbours(self.k)
        out = []
        for perm in perms:
            back = perm.argsort()
            out.append(self._pairs((u[:, back], perm[a[:, back]]), y))
        return torch.stack(out)

    def subsampled(self, subsets: Tensor) -> Tensor:
        out = []
        for subset in subsets:
            (a, u), (b, v) = (self._within(side, subset, with_values=True) for side in (self.x, self.y))
            assert u is not None
            assert v is not None
            out.append(self._pairs((u, a), (v, b)))
        return torch.stack(out)

    def _within(self, layers: Layers, subset: Tensor, with_values: bool) -> tuple[Tensor, Tensor | None]:
        """The graph among the members of a subset, members counted from 0: neighbours and inner products `[L, m, k]`."""
        values, near = layers.neighbours(self.length)
        place = torch.full((self.n,), -1, device=near.device)
        place[subset] = torch.arange(len(subset), device=near.device)
        near = place[near[:, subset]]  # [L, m, length]; -1 for what is outside
        member = near >= 0
        keep = member & (member.cumsum(2, dtype=torch.int16) <= self.k)
        short = keep.sum(2) < self.k  # [L, m], the list ended too early: rare
        found = {}
        for layer in short.any(1).nonzero().flatten().tolist():
            f = whole(some(layers.features[layer], subset))
            mean = f.mean(0)
            centred = f - mean  # as in metrics.neighbours: differences keep their digits
            for row in short[layer].nonzero().flatten().tolist():
                similarity = centred @ (centred[row] + mean) + centred[row] @ mean + mean @ mean  # [m]
                similarity[row] = -torch.inf
                found[layer, row], near[layer, row, : self.k] = similarity.topk(self.k)
                keep[layer, row] = torch.arange(self.length, device=near.device) < self.k
        shape = (len(layers), len(subset), self.k)
        if not with_values:
            return near[keep].view(shape), None
        values = values[:, subset]
        for (layer, row), similarity in found.items():
            values[layer, row, : self.k] = similarity
        return near[keep].view(shape), values[keep].view(shape)

    def chance(self) -> Tensor | None:
        return None


class SecondOrderPairs(GraphPairs):
    """Second-order cosine: lists of neighbours, and inner products with both lists, read off one matrix a layer."""

    def __init__(self, x: Layers, y: Layers, k: int) -> None:
        super().__init__(x, y, k, lambda a, u, b, v: u.new_zeros(()))
        self.products = [[f @ f.T for f in map(whole, side.features)] for side in (x, y)]  # [L] of [N, N]

    def _at(self, products: Tensor, near: Tensor, origin: Tensor) -> Tensor:
        """Products of each item with those listed, items standing where `origin` had them: `[N, N]`, `[N, k]` -> `[N, k]`."""
        return products.view(-1)[origin[:, None] * self.n + origin[near]]

    def _all(self, perm: Tensor) -> Tensor:
        a, b = self.x.neighbours(self.k)[1], self.y.neighbours(self.k)[1]
        back = perm.argsort()
        here = torch.arange(self.n, device=perm.device)
        rows = []
        for near_x, in_x in zip(perm[a[:, back]], self.products[0], strict=True):
            row = []
            for near_y, in_y in zip(b, self.products[1], strict=True):
                both = (near_x, near_y)
                xs, ys = [self._at(in_x, near, back) for near in both], [self._at(in_y, near, here) for near in both]
                row.append(second_order(near_x, near_y, xs, ys))
            rows.append(torch.stack(row))
        return torch.stack(rows)

    def matrix(self) -> Tensor:
        return self._all(torch.arange(self.n, device=self.x.features[0].device))

    def permuted(self, perms: Tensor) -> Tensor:
        return torch.stack([self._all(perm) for perm in perms])

    def subsampled(self, subsets: Tensor) -> Tensor:
        few = (SecondOrderPairs(self.x.rows(s), self.y.rows(s), self.k) for s in subsets)
        return torch.stack([pairs.matrix() for pairs in few])


class OverlapPairs(GraphPairs):
    """A metric on how many neighbours an item's two lists share: the mean of `share(count)`, of count / k without it.

    y's graphs are one table of bytes, looked up along x's edges: all layers of y at once, eight to a machine word.
    """

    def __init__(self, x: Layers, y: Layers, k: int, share: Callable[[Tensor], Tensor] | None = None) -> None:
        self.plain = share is None
        self.share = of = (lambda counts: counts / k) if share is None else share
        super().__init__(x, y, k, lambda a, u, b, v: of(overlap(a, b)).double().mean())
        self.words = -(-len(y) // 8)

    @cached_property
    def _table(self) -> Tensor:
        return self._tabulate(self.y.neighbours(self.k)[1])

    def _tabulate(self, near: Tensor) -> Tensor:
        """Edges `[L, m, k]` -> which layers have the edge (i, j), a byte each: int64 `[m m, words]`."""
        layers, m, _ = near.shape
        edge = (torch.arange(m, device=near.device)[:, None] * m + near).flatten(1)  # [L, m k]
        table = torch.zeros(m * m, self.words, dtype=torch.int64, device=near.device)
        place = edge * (8 * self.words) + torch.arange(layers, device=near.device)[:, None]
        table.view(torch.uint8).view(-1)[place.flatten()] = 1
        return table

    def _look_up(self, table: Tensor, near: Tensor, item: Tensor) -> Tensor:
        """Scores `[L_x, L_y]` of x's edges from `item` `[m]` to `near` `[m, L_x, k]`.

        Items first: what is looked up for one of them lies close together in the table.
        """
        m, layers, k = near.shape
        edges = (item[:, None, None] * m + near).flatten()
        found = table.index_select(0, edges).view(m, layers, k, self.words).sum(2)  # eight sums a word: k < 256
        counts = found.view(torch.uint8)  # [m, L_x, 8 words]
        if self.plain:
            return counts.sum(0, dtype=torch.int32)[:, : len(self.y)].double() / (m * k)
        return self.share(counts.double()).mean(0)[:, : len(self.y)]

    def _tabular(self, m: int) -> bool:
        return self.k < 256 and m * m * 8 * self.words <= TABLE_BYTES

    def matrix(self) -> Tensor:
        return self.permuted(torch.arange(self.n, device=self.x.features[0].device)[None])[0]

    def permuted(self, perms: Tensor) -> Tensor:
        if not self._tabular(self.n):
            return super().permuted(perms)
        near = self.x.neighbours(self.k)[1].transpose(0, 1).contiguous()
        moved = (perm.index_select(0, near.flatten()).view(near.shape) for perm in perms)
        return torch.stack([self._look_up(self._table, m, perm) for m, perm in zip(moved, perms, strict=True)])

    def subsampled(self, subsets: Tensor) -> Tensor:
        if not self._tabular(subsets.shape[1]):
            return super().subsampled(subsets)
        members = torch.arange(subsets.shape[1], device=subsets.device)
        both = [[self._within(side, s, with_values=False)[0] for side in (self.x, self.y)] for s in subsets]
        return torch.stack(
            [self._look_up(self._tabulate(near_y), near_x.transpose(0, 1), members) for near_x, near_y in both]
        )

    def chance(self) -> Tensor:
        """The mean over what two random sets of k out of N - 1 share."""
        from scipy.stats import hypergeom

        shared = torch.arange(self.k + 1, dtype=torch.float64)
        probability = torch.from_numpy(hypergeom(self.n - 1, self.k, self.k).pmf(shared.numpy()))
        return (self.share(shared) * probability).sum().expand(len(self.x), len(self.y))
