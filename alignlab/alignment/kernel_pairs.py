"""Metrics that compare matrices of items by items, over all layer pairs: one matrix, or one narrow factor, a layer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from alignlab.alignment.layers import Layers
from alignlab.metrics import kernels
from alignlab.metrics.inputs import blocks, spans
from alignlab.metrics.kernels import Form, unbiased
from alignlab.metrics.preparation import Prepared, whole
from alignlab.metrics.rsa import RSA

BLOCK = 32  # rows of a matrix that are multiplied at once: what is gathered for them stays in the processor's cache
TOGETHER = 8  # permutations that are gathered at once

FORMS = {
    "cka": kernels.CKA,
    "unbiased_cka": kernels.UNBIASED_CKA,
    "rbf_cka": kernels.RBF_CKA,
    "rsa": RSA,
    "distance_correlation": kernels.DISTANCE_CORRELATION,
    "rsm_difference": kernels.RSM_DIFFERENCE,
    "eigenspace_overlap": kernels.EIGENSPACE_OVERLAP,
    "gulp": kernels.GULP,
}


class KernelPairs:
    """A `Form` on matrices `[L, N, N]`. They are symmetric: only what is on and above the diagonal is multiplied."""

    def __init__(self, x: Layers, y: Layers, form: Form, options: dict[str, Any] | None = None) -> None:
        self.layers_x, self.layers_y = x, y
        self.form, self.options = form.bound(options or {})
        self.n = x.n
        self.x, self.y = self._matrices(x), self._matrices(y)

    def _matrices(self, layers: Layers) -> Tensor:
        if self.form.linear:  # rows that `prepare` made have length 1: nothing is rescaled
            return layers.grams()
        return torch.stack([self.form.matrix(whole(f), **self.options) for f in layers.features])

    @cached_property
    def _diagonals(self) -> tuple[Tensor, Tensor]:
        """`[L, N]`, float64."""
        x, y = (m.diagonal(dim1=1, dim2=2).double() for m in (self.x, self.y))
        return x, y

    @cached_property
    def _own(self) -> tuple[Tensor, Tensor]:
        """<M, M> of each layer, `[L]`, as the form counts it."""
        own = []
        for matrices, diagonal in zip((self.x, self.y), self._diagonals, strict=True):
            squares = torch.stack([_inner(m, m) for m in matrices])
            own.append(self._counted(squares, diagonal.square().sum(1), diagonal.sum(1) ** 2))
        return own[0], own[1]

    def _counted(self, products: Tensor, diagonals: Tensor, traces: Tensor) -> Tensor:
        return unbiased(products, diagonals, traces, self.n) if self.form.hollow else products

    def _combined(self, products: Tensor, diagonals: Tensor) -> Tensor:
        """Scores from <Mx, My> and the products of diagonals, both `[..., L_x, L_y]`."""
        (x, y), (own_x, own_y) = self._diagonals, self._own
        counted = self._counted(products, diagonals, x.sum(1)[:, None] * y.sum(1))
        return self.form.combine(counted, own_x[:, None], own_y)

    def matrix(self) -> Tensor:
        products = torch.zeros(len(self.x), len(self.y), dtype=torch.float64, device=self.x.device)
        for start in range(0, self.n, BLOCK):  # a sum of N^2 numbers in one float32 would lose digits
            rows = slice(start, start + BLOCK)
            products += (self.x[:, rows].flatten(1) @ self.y[:, rows].flatten(1).T).double()
        x, y = self._diagonals
        return self._combined(products, x @ y.T)

    @cached_property
    def _layers_last(self) -> tuple[Tensor, bool]:
        """The matrices of the model with fewer layers, `[N N, L]`: one index fetches all of them. And whether it is x's."""
        moves_x = len(self.x) <= len(self.y)
        moving = self.x if moves_x else self.y
        return moving.permute(1, 2, 0).contiguous().view(self.n**2, -1), moves_x

    def permuted(self, perms: Tensor) -> Tensor:
        moving, moves_x = self._layers_last
        fixed = self.y if moves_x else self.x  # [L, N, N]
        inverse = perms.argsort(1)
        # item i of x moves to perm[i]: what stands at (a, b) came from inverse[a], inverse[b]; or y is moved back
        source = inverse if moves_x else perms
        out = torch.zeros(len(fixed), len(perms), moving.shape[1], dtype=torch.float64, device=perms.device)
        # one buffer for all that is gathered: fresh memory for each would cost more than the products
        width = moving.shape[1]
        buffer = moving.new_empty(min(BLOCK, self.n) * self.n * min(TOGETHER, len(perms)), width)
        for start in range(0, self.n, BLOCK):
            rows = slice(start, start + BLOCK)
            block = fixed[:, rows, start:].clone()  # [L, b, c], the block row from the diagonal on
            block[:, :, BLOCK:] *= 2  # what lies above the diagonal stands for both sides
            flat = block.flatten(1)  # [L, b c]
            for at in range(0, len(perms), TOGETHER):
                some = source[at : at + TOGETHER]
                index = (some[:, rows, None] * self.n + some[:, None, start:]).permute(1, 2, 0)  # [b, c, P]
                gathered = torch.index_select(moving, 0, index.flatten(), out=buffer[: index.numel()])
                products = flat @ gathered.view(flat.shape[1], -1)  # [L, P L']
                out[:, at : at + TOGETHER] += products.view(len(fixed), len(some), width)
        scores = out.permute(1, 2, 0) if moves_x else out.permute(1, 0, 2)  # [P, L_x, L_y]
        x, y = self._diagonals
        return self._combined(scores, x.T[inverse].transpose(1, 2) @ y.T)

    def subsampled(self, subsets: Tensor) -> Tensor:
        if self.form.linear:
            return self._recentred(subsets)
        few = (KernelPairs(self.layers_x.rows(s), self.layers_y.rows(s), self.form, self.options) for s in subsets)
        return torch.stack([pairs.matrix() for pairs in few])

    def _recentred(self, subsets: Tensor) -> Tensor:
        """Linear kernels on subsets `[S, m]`, centred again on each.

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

        sums = [row_sums(k) for k in (self.x, self.y)]
        totals = [r.sum(2) for r in sums]  # [S, L]
        inside = chosen.T[:, None].double()  # [S, 1, N]
        diagonals = [
            (d - 2 / m * r + t[:, :, None] / m**2) * inside
            for d, r, t in zip(self._diagonals, sums, totals, strict=True)
        ]  # [S, L, N]
        traces = [d.sum(2) for d in diagonals]

        def counted(products: Tensor, diagonal: Tensor, trace: Tensor) -> Tensor:
            return unbiased(products, diagonal, trace, m) if self.form.hollow else products

        (rx, ry), (tx, ty), (dx, dy), (sx, sy) = sums, totals, diagonals, traces
        cross = torch.stack([torch.stack([form(k, l) for l in self.y], 1) for k in self.x], 1)  # [S, L_x, L_y]
        cross += tx[:, :, None] * ty[:, None] / m**2 - 2 / m * rx @ ry.transpose(1, 2)
        cross = counted(cross, dx @ dy.transpose(1, 2), sx[:, :, None] * sy[:, None])
        own = []
        for grams, r, t, d, s in zip((self.x, self.y), sums, totals, diagonals, traces, strict=True):
            squares = torch.stack([form(k, k) for k in grams], 1) + t**2 / m**2 - 2 / m * r.square().sum(2)
            own.append(counted(squares, d.square().sum(2), s**2))
        return self.form.combine(cross, own[0][:, :, None], own[1][:, None])

    def chance(self) -> Tensor | None:
        sums = [m.sum(2).sum(1, dtype=torch.float64) for m in (self.x, self.y)]
        return _chance(self.form, self._own, self._diagonals, sums)


class FactorPairs:
    """A `Form` on factors `[N, r]`, r below N: <Mx, My> is |Zx' Zy|^2, and no N x N matrix exists.

    A linear form's factors are the features themselves, which may lie on disk: all that is asked of them is some rows.
    """

    def __init__(self, x: Layers, y: Layers, form: Form, options: dict[str, Any] | None = None) -> None:
        self.layers_x, self.layers_y = x, y
        self.form, self.options = form.bound(options or {})
        self.n = x.n
        self.x, self.y = self._factors(x), self._factors(y)

    def _factors(self, layers: Layers) -> list[Tensor | Prepared]:
        if self.form.linear:  # centred some rows at a time: a copy of all would take longer than the products
            return layers.features
        assert self.form.factor is not None
        return [self.form.factor(whole(f), **self.options) for f in layers.features]

    @cached_property
    def _means(self) -> tuple[list[Tensor], list[Tensor]]:
        """What is still to be taken off each factor, `[L]` of `[r]`."""

        def mean(z: Tensor | Prepared) -> Tensor:
            total = torch.zeros(z.shape[1], dtype=torch.float64, device=z.device)
            for rows in blocks(z) if self.form.linear else ():
                total += rows.sum(0)
            return (total / len(z)).to(z.dtype)

        return [mean(z) for z in self.x], [mean(z) for z in self.y]

    @cached_property
    def _diagonals(self) -> tuple[Tensor, Tensor]:
        """Of the matrices, `[L, N]`, float64."""

        def squares(z: Tensor | Prepared, mean: Tensor) -> Tensor:
            # one tensor from the start: small ones, made between blocks and kept, would leave holes that no block fits again
            out = torch.empty(len(z), dtype=torch.float64, device=z.device)
            for span in spans(len(z)):
                out[span] = (z[span] - mean).norm(dim=1).double().square()
            return out

        x, y = (
            torch.stack([squares(z, m) for z, m in zip(side, means, strict=True)])
            for side, means in zip((self.x, self.y), self._means, strict=True)
        )
        return x, y

    @cached_property
    def _own(self) -> tuple[Tensor, Tensor]:
        own = []
        for side, means, diagonal in zip((self.x, self.y), self._means, self._diagonals, strict=True):
            squares = torch.stack([_cross([z], [z], ([m], [m]))[0, 0] for z, m in zip(side, means, strict=True)])
            own.append(self._counted(squares, diagonal.square().sum(1), diagonal.sum(1) ** 2))
        return own[0], own[1]

    def _counted(self, products: Tensor, diagonals: Tensor, traces: Tensor) -> Tensor:
        return unbiased(products, diagonals, traces, self.n) if self.form.hollow else products

    def _scores(self, back: Tensor | None = None) -> Tensor:
        """With x's items in that order."""
        (x, y), (own_x, own_y) = self._diagonals, self._own
        products = _cross(self.x, self.y, self._means, back)
        diagonals = (x if back is None else x[:, back]) @ y.T
        counted = self._counted(products, diagonals, x.sum(1)[:, None] * y.sum(1))
        return self.form.combine(counted, own_x[:, None], own_y)

    def matrix(self) -> Tensor:
        return self._scores()

    def permuted(self, perms: Tensor) -> Tensor:
        return torch.stack([self._scores(perm.argsort()) for perm in perms])

    def subsampled(self, subsets: Tensor) -> Tensor:
        # in the order of the items: on disk, those that lie together are read together
        ordered = (s.sort().values for s in subsets)
        few = (FactorPairs(self.layers_x.rows(s), self.layers_y.rows(s), self.form, self.options) for s in ordered)
        return torch.stack([pairs.matrix() for pairs in few])

    def chance(self) -> Tensor | None:
        sums = [
            torch.stack([_total(z, m).square().sum() for z, m in zip(side, means, strict=True)])
            for side, means in zip((self.x, self.y), self._means, strict=True)
        ]
        return _chance(self.form, self._own, self._diagonals, sums)


def _total(z: Tensor | Prepared, mean: Tensor) -> Tensor:
    """The sum of rows less their mean, `[N, r]` -> float64 `[r]`."""
    out = torch.zeros(len(mean), dtype=torch.float64, device=mean.device)
    for rows in blocks(z):
        out += (rows - mean).sum(0)
    return out


def _inner(k: Tensor, l: Tensor) -> Tensor:
    return torch.stack([(k[i : i + BLOCK] * l[i : i + BLOCK]).sum().double() for i in range(0, len(k), BLOCK)]).sum()


def _cross(
    x: Sequence[Tensor | Prepared],
    y: Sequence[Tensor | Prepared],
    means: tuple[Sequence[Tensor], Sequence[Tensor]],
    order: Tensor | None = None,
) -> Tensor:
    """|Zx' Zy|^2 of each pair of layers, `[L_x]` of `[N, r]` and `[L_y]` of `[N, r]` -> float64 `[L_x, L_y]`.

    Zx and Zy are x and y less their means `[r]`; x's items stand in that order.
    """
    widths = [[len(m) for m in side] for side in means]
    total = torch.zeros(sum(widths[0]), sum(widths[1]), dtype=torch.float64, device=x[0].device)
    for rows in spans(len(x[0])):
        total += _abreast(x, means[0], rows if order is None else order[rows]).T @ _abreast(y, means[1], rows)
    total.square_()
    starts = [list(accumulate(width, initial=0)) for width in widths]
    by_row = torch.stack([total[a:b].sum(0) for a, b in zip(starts[0], starts[0][1:], strict=False)])
    return torch.stack([by_row[:, a:b].sum(1) for a, b in zip(starts[1], starts[1][1:], strict=False)], 1)


def _abreast(layers: Sequence[Tensor | Prepared], means: Sequence[Tensor], rows: slice | Tensor) -> Tensor:
    """Some rows of all layers less their means, side by side."""
    parts = [z[rows] - mean for z, mean in zip(layers, means, strict=True)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _chance(
    form: Form, own: tuple[Tensor, Tensor], diagonals: tuple[Tensor, Tensor], sums: list[Tensor]
) -> Tensor | None:
    """The exact mean over all permutations, where the score is proportional to <Mx, My>.

    A permutation moves diagonal entries among themselves and the others among themselves, each to each place alike.
    """
    if not form.proportional:
        return None
    n = diagonals[0].shape[1]
    trace_x, trace_y = (d.sum(1) for d in diagonals)
    rest_x, rest_y = sums[0] - trace_x, sums[1] - trace_y
    mean = trace_x[:, None] * trace_y / n + rest_x[:, None] * rest_y / (n * (n - 1))
    if form.hollow:  # rows and diagonals of what is compared sum to 0
        mean = torch.zeros_like(mean)
    return form.combine(mean, own[0][:, None], own[1])
