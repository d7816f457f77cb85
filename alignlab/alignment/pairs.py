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

    The matrices are symmetric, so only the blocks on and above the diagonal are multiplied.
    """

    block = 128

    def __init__(self, x: list[Tensor], y: list[Tensor]) -> None:
        self.n = len(x[0])
        self.x = self._grams(x)  # [L_x, N, N]
        self.y = self._grams(y)  # [L_y, N, N]

    @staticmethod
    def _grams(layers: list[Tensor]) -> Tensor:
        n = len(layers[0])
        out = torch.empty(len(layers), n, n, dtype=layers[0].dtype, device=layers[0].device)
        for gram, features in zip(out, layers, strict=True):
            gram.copy_(centred_gram(features))
            gram /= gram.norm()
        return out

    def matrix(self) -> Tensor:
        return (self.x.flatten(1) @ self.y.flatten(1).T).double()

    def permuted(self, perms: Tensor, together: int = 8) -> Tensor:
        inverse = perms.argsort(
            1
        )  # item i of x moves to perm[i]: what stands at (a, b) came from inverse[a], inverse[b]
        layers_last = self.x.permute(1, 2, 0).contiguous()  # [N, N, L_x]: one index fetches all layers
        out = torch.zeros(len(perms), len(self.x), len(self.y), dtype=torch.float64, device=perms.device)
        for start in range(0, self.n, self.block):
            rows = slice(start, start + self.block)
            y = self.y[:, rows, start:].clone()  # [L_y, b, c], the block row from the diagonal on
            y[:, :, self.block :] *= 2  # what lies above the diagonal stands for both sides
            flat = y.flatten(1).T  # [b c, L_y]
            for at in range(0, len(perms), together):
                some = inverse[at : at + together]
                moved = [layers_last[p[rows]].index_select(1, p[start:]).flatten(0, 1) for p in some]  # P of [b c, L_x]
                products = torch.cat(moved, 1).T @ flat  # [P L_x, L_y]
                out[at : at + together] += products.view(len(some), len(self.x), -1)
        return out

    def subsampled(self, subsets: Tensor) -> Tensor:
        """CKA on subsets `[S, m]`, centred again on each.

        With s the subset's indicator, a sum of K L over its pairs is the quadratic form s' (K * L) s, and centring takes
        away what the row sums K s and L s say: all subsets at once, in matrix products.
        """
        m = subsets.shape[1]
        chosen = torch.zeros(self.n, len(subsets), dtype=self.x.dtype, device=self.x.device)
        chosen.scatter_(0, subsets.T, 1.0)  # [N, S]

        def form(k: Tensor, l: Tensor) -> Tensor:
            return (((k * l) @ chosen) * chosen).sum(0, dtype=torch.float64)  # [S]

        def row_sums(grams: Tensor) -> Tensor:
            return ((grams @ chosen) * chosen).permute(2, 0, 1).double()  # [S, L, N], zero outside the subset

        rx, ry = row_sums(self.x), row_sums(self.y)
        total_x, total_y = rx.sum(2), ry.sum(2)  # [S, L]

        cross = torch.stack([torch.stack([form(k, l) for l in self.y], 1) for k in self.x], 1)  # [S, L_x, L_y]
        cross += total_x[:, :, None] * total_y[:, None] / m**2 - 2 / m * rx @ ry.transpose(1, 2)
        own_x = torch.stack([form(k, k) for k in self.x], 1) + total_x**2 / m**2 - 2 / m * rx.square().sum(2)
        own_y = torch.stack([form(l, l) for l in self.y], 1) + total_y**2 / m**2 - 2 / m * ry.square().sum(2)
        return cross / (own_x[:, :, None] * own_y[:, None]).sqrt()

    def chance(self) -> Tensor:
        """The exact mean over all permutations: tr(Kc) tr(Lc) / ((N - 1) |Kc| |Lc|)."""
        traces = [g.diagonal(dim1=1, dim2=2).sum(1, dtype=torch.float64) for g in (self.x, self.y)]
        return (traces[0][:, None] * traces[1] / (self.n - 1)).cpu()
