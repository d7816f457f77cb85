"""All layer pairs at once, and again under permutations and on subsets, from one pass over each layer.

A metric is a class built from the prepared layers of both models, `x` and `y`, each a list of `[N, D_l]`:
`matrix()` gives its scores `[L_x, L_y]`, `permuted(perms)` those with the items of x permuted (all its layers
alike), `[P, L_x, L_y]`, and `subsampled(subsets)` those on subsets of the items, `[S, L_x, L_y]`. Nothing is
recomputed that a permutation or a subset leaves as it was: neighbours are relabelled, Gram matrices re-indexed.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from alignlab.metrics.inputs import check_k
from alignlab.metrics.kernels import centred_gram
from alignlab.metrics.neighbours import nearest


class LayerPairs(Protocol):
    """Scores of every layer pair; a layer that is the same for every item must not be among them."""

    def matrix(self) -> Tensor: ...

    def permuted(self, perms: Tensor) -> Tensor: ...

    def subsampled(self, subsets: Tensor) -> Tensor: ...

    def chance(self) -> Tensor: ...


class NeighbourPairs:
    """Mutual k-NN. One neighbour graph a layer; y's graphs as one table of bits, looked up along x's edges."""

    def __init__(self, x: list[Tensor], y: list[Tensor], k: int) -> None:
        self.n, self.k = len(x[0]), k
        check_k(k, self.n)
        self.x, self.y = x, y
        # Longer lists than k serve the subsets: half of the items keep about half of an item's neighbours.
        self.length = min(self.n - 1, 2 * k + round(9 * k**0.5) + 12)
        self.near_x = torch.stack([nearest(f, self.length) for f in x])  # [L_x, N, length]
        self.near_y = torch.stack([nearest(f, self.length) for f in y])  # [L_y, N, length]

    def _table(self, near: Tensor, rows: int) -> Tensor:
        """Edges `[L, rows, k]` -> a table of 0 and 1, uint8 `[rows * N, L]`."""
        layers = len(near)
        edge = torch.arange(rows, device=near.device)[:, None] * self.n + near  # [L, rows, k]
        table = torch.zeros(rows * self.n * layers, dtype=torch.uint8, device=near.device)
        table[(edge.flatten(1) * layers + torch.arange(layers, device=near.device)[:, None]).flatten()] = 1
        return table.view(rows * self.n, layers)

    def _count(self, table: Tensor, edges: Tensor) -> Tensor:
        """How many of x's edges `[L_x, E]` are edges of each of y's layers: `[L_x, L_y]`."""
        return torch.stack([table.index_select(0, e).sum(0, dtype=torch.int64) for e in edges])

    def matrix(self) -> Tensor:
        return self.permuted(torch.arange(self.n, device=self.near_x.device)[None])[0]

    def permuted(self, perms: Tensor) -> Tensor:
        table = self._table(self.near_y[:, :, : self.k], self.n)
        near = self.near_x[:, :, : self.k]
        out = []
        for perm in perms:
            # x's item i becomes item perm[i], and so do its neighbours
            edges = (perm[:, None] * self.n + perm[near]).flatten(1)  # [L_x, N k]
            out.append(self._count(table, edges))
        return torch.stack(out).double() / (self.n * self.k)

    def _within(self, near: Tensor, features: list[Tensor], subset: Tensor) -> Tensor:
        """The k nearest members of the subset, for each member: `[L, m, k]`."""
        member = torch.zeros(self.n, dtype=torch.bool, device=near.device)
        member[subset] = True
        listed = near[:, subset]  # [L, m, length]
        rank = member[listed]
        keep = rank & (rank.cumsum(2, dtype=torch.int16) <= self.k)
        short = keep.sum(2) < self.k  # [L, m]: the list ended too early
        if short.any():
            listed, keep = listed.clone(), keep.clone()
            for layer, row in short.nonzero().tolist():
                f = features[layer]
                similarity = f[subset] @ f[subset[row]]  # [m]
                similarity[row] = -torch.inf
                listed[layer, row, : self.k] = subset[similarity.topk(self.k).indices]
                keep[layer, row] = torch.arange(self.length, device=near.device) < self.k
        return listed[keep].view(len(near), len(subset), self.k)

    def subsampled(self, subsets: Tensor) -> Tensor:
        out = []
        for subset in subsets:
            m = len(subset)
            table = self._table(self._within(self.near_y, self.y, subset), m)
            near = self._within(self.near_x, self.x, subset)
            rows = torch.arange(m, device=near.device)[:, None] * self.n
            out.append(self._count(table, (rows + near).flatten(1)).double() / (m * self.k))
        return torch.stack(out)

    def chance(self) -> Tensor:
        """Unrelated neighbourhoods share k / (N - 1)."""
        return torch.full((len(self.x), len(self.y)), self.k / (self.n - 1), dtype=torch.float64)


class KernelPairs:
    """CKA. One centred Gram matrix a layer, of norm 1, so that a score is a sum of products.

    The matrices are symmetric: their upper triangles (layers last, so that one index fetches all layers) hold
    everything, the diagonals apart.
    """

    def __init__(self, x: list[Tensor], y: list[Tensor]) -> None:
        self.n = len(x[0])
        device = x[0].device
        self.above = torch.triu_indices(self.n, self.n, 1, device=device)  # [2, M]
        self.x, self.chance_x = self._grams(x)  # [N * N, L_x]
        self.y, self.chance_y = self._grams(y)
        self.diagonal = torch.arange(self.n, device=device) * (self.n + 1)

    def _grams(self, layers: list[Tensor]) -> tuple[Tensor, Tensor]:
        out = torch.empty(self.n, self.n, len(layers), dtype=layers[0].dtype, device=layers[0].device)
        traces = torch.empty(len(layers), dtype=torch.float64, device=layers[0].device)
        for i, features in enumerate(layers):
            gram = centred_gram(features)
            gram /= gram.norm()
            traces[i] = gram.diagonal().sum(dtype=torch.float64)
            out[:, :, i] = gram
        return out.view(-1, len(layers)), traces

    def matrix(self) -> Tensor:
        return self.permuted(torch.arange(self.n, device=self.x.device)[None])[0]

    def permuted(self, perms: Tensor, together: int = 4) -> Tensor:
        inverse = perms.argsort(1)  # item i of x moves to perm[i]: what stands at (a, b) came from inverse[a], inverse[b]
        y_above = self.y[self.above[0] * self.n + self.above[1]]  # [M, L_y]
        y_diagonal = self.y[self.diagonal]  # [N, L_y]
        out = []
        for some in inverse.split(together):
            moved = (some[:, self.above[0]] * self.n + some[:, self.above[1]]).T  # [M, P]
            x_above = self.x.index_select(0, moved.reshape(-1)).view(len(moved), -1)  # [M, P L_x]
            products = 2 * (x_above.T @ y_above)  # [P L_x, L_y]
            x_diagonal = self.x[(some * (self.n + 1)).T].flatten(1)  # [N, P L_x]
            out.append((products + x_diagonal.T @ y_diagonal).view(len(some), -1, y_above.shape[1]))
        return torch.cat(out).double()

    def subsampled(self, subsets: Tensor) -> Tensor:
        """CKA on subsets `[S, m]`: centred again on each, through the row sums instead of a second pass."""
        m = subsets.shape[1]
        above = torch.triu_indices(m, m, 1, device=self.x.device)
        chosen = torch.zeros(self.n, len(subsets), dtype=self.x.dtype, device=self.x.device)
        chosen.scatter_(0, subsets.T, 1.0)
        sums = [torch.einsum("ijl,js->sil", g.view(self.n, self.n, -1), chosen) for g in (self.x, self.y)]  # [S, N, L]
        out = []
        for s, subset in enumerate(subsets):
            at = subset[above[0]] * self.n + subset[above[1]]
            on = subset * (self.n + 1)
            x, y = (torch.cat([g[at] * 2**0.5, g[on]]) for g in (self.x, self.y))  # [m (m + 1) / 2, L]
            rx, ry = sums[0][s][subset].double(), sums[1][s][subset].double()  # [m, L]
            cross = (x.T @ y).double() - 2 / m * rx.T @ ry + rx.sum(0)[:, None] * ry.sum(0) / m**2
            own_x = x.square().sum(0).double() - 2 / m * rx.square().sum(0) + rx.sum(0) ** 2 / m**2
            own_y = y.square().sum(0).double() - 2 / m * ry.square().sum(0) + ry.sum(0) ** 2 / m**2
            out.append(cross / (own_x[:, None] * own_y).sqrt())
        return torch.stack(out)

    def chance(self) -> Tensor:
        """The exact mean over all permutations: tr(Kc) tr(Lc) / ((N - 1) |Kc| |Lc|)."""
        return (self.chance_x[:, None] * self.chance_y / (self.n - 1)).cpu()
