"""Ridge regressions from every layer of one model to every layer of another, cross-validated, from one decomposition a layer.

Each fold standardises both sides by its training items, decomposes each layer's training features once (the eigenvectors of
the smaller of their two Gram matrices), and reads every penalty and every target off that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PENALTIES = tuple(
    10.0**power for power in range(-4, 5)
)  # in units of the mean eigenvalue, of those that are not 0, of the training Gram matrix
RANKS = (1, 5, 10)
ROUNDING = 1e-5  # relative spread of float32 features below which they are the same for every item


@dataclass(frozen=True)
class Predicted:
    """Out-of-fold predictions of `[Ly]` layers from `[Lx]` layers, as what they are worth, item by item.

    `missed` `[Lx, Ly, N]` are squared errors, `spread` `[Ly, N]` the squared distances from the training mean, both in units
    of the training items' standard deviations. `hits` `[Lx, Ly, ranks, N]` is 1 where an item's own features are among the
    k nearest (cosine) of all N items' to the prediction, and a share of 1 where ties leave that open. `penalties`
    `[folds, Lx, Ly]` are those chosen.
    """

    missed: Tensor
    spread: Tensor
    hits: Tensor
    penalties: Tensor

    @property
    def r2(self) -> Tensor:
        """`[Lx, Ly]`; NaN for a layer that is the same for every item."""
        return 1 - self.missed.sum(2) / self.spread.sum(1).masked_fill(self.spread.sum(1) == 0, torch.nan)


def folds_of(n: int, folds: int, seed: int) -> Tensor:
    """Which fold holds each item out, `[N]`, in random order. Raises ValueError for N below 4 and folds outside 2..N / 2."""
    if n < 4:
        raise ValueError(f"{n} items are too few to hold some out; a probe needs 4 at least")
    if not 2 <= folds <= n // 2:
        raise ValueError(f"folds must be in 2..{n // 2} for {n} items, got {folds}")
    return (torch.arange(n) % folds)[torch.randperm(n, generator=torch.Generator().manual_seed(seed))]


def standardised(x: Tensor, train: Tensor) -> Tensor:
    """`[N, D]` with mean 0 and variance 1 over the training items (bool `[N]`); features that are the same for all of these
    become 0."""
    known = x[train].double()
    mean, spread = known.mean(0), known.std(0, correction=0)
    varies = spread > ROUNDING * known.abs().amax(0)
    return torch.where(varies, (x.double() - mean) / spread.where(varies, torch.ones_like(spread)), 0)


def fewer_columns(x: Tensor) -> Tensor:
    """`[N, D]` turned into N columns where D is larger, exactly: lengths, distances and squared errors stay."""
    if x.shape[1] <= len(x):
        return x
    return torch.linalg.qr(x.T, mode="r").R.T.contiguous()  # [N, N]


@dataclass(frozen=True)
class Decomposed:
    """Standardised features of a fold: `left` `[n, r]` orthonormal, `values` `[r]` the squared singular values, `new` `[m, r]`
    the held-out items in the same coordinates."""

    left: Tensor
    values: Tensor
    new: Tensor

    @classmethod
    def of(cls, x: Tensor, train: Tensor) -> Decomposed:
        known, new = x[train], x[~train]
        n, d = known.shape
        values, vectors = torch.linalg.eigh(known.T @ known if d <= n else known @ known.T)
        kept = values > values[-1].clamp(min=1e-300) * max(n, d) * torch.finfo(values.dtype).eps
        values, vectors = values[kept], vectors[:, kept]
        if d <= n:
            return cls(known @ vectors / values.sqrt(), values, new @ vectors)
        return cls(vectors, values, new @ (known.T @ vectors) / values.sqrt())

    def predict(self, y: Tensor) -> tuple[Tensor, float]:
        """Training targets `[n, q]` of mean 0 -> predictions of the held-out items `[m, q]`, and the penalty.

        One penalty for all targets, that of the least generalised cross-validation error (Golub, Heath and Wahba 1979) on
        the training items: leave-one-out with all items of equal leverage.
        """
        n = len(y)
        if not len(self.values):
            return y.new_zeros(len(self.new), y.shape[1]), PENALTIES[-1]
        z = self.left.T @ y  # [r, q]
        energy = z.square().sum(1)  # [r]
        outside = (y.square().sum() - energy.sum()).clamp(min=0)
        penalties = self.values.mean() * torch.tensor(PENALTIES, dtype=y.dtype, device=y.device)
        shrunk = self.values / (self.values + penalties[:, None])  # [P, r]
        left = outside + ((1 - shrunk).square() * energy).sum(1)
        free = (n - 1 - shrunk.sum(1)).clamp(min=1e-6)
        best = int((left / free.square()).argmin())
        weights = self.values.sqrt() / (self.values + penalties[best])
        return (self.new * weights) @ z, PENALTIES[best]


def nearest(predicted: Tensor, features: Tensor, own: Tensor) -> Tensor:
    """How surely an item is among the k nearest by cosine, for k of `RANKS`: `[m, q]`, `[N, q]`, own places `[m]` ->
    `[ranks, m]`. Of several equally near, each may come first."""
    unit = torch.nn.functional.normalize
    cosines = unit(predicted, dim=1) @ unit(features, dim=1).T  # [m, N]
    mine = cosines.gather(1, own[:, None])
    closer = (cosines > mine + 1e-9).sum(1).double()
    tied = ((cosines - mine).abs() <= 1e-9).sum(1).double()  # itself among them
    return torch.stack([((k - closer) / tied).clamp(0, 1) for k in RANKS])


def cross_validate(
    xs: Sequence[Tensor],
    ys: Sequence[Tensor],
    fold: Tensor,
    *,
    orders: Sequence[Tensor] = (),
    tick: Callable[[], None] = lambda: None,
) -> Iterator[Predicted]:
    """Every layer of `ys` from every layer of `xs`, `[N, D]` each; then the same for each of `orders`, permutations of the
    items that say whose targets an item is given. `tick` is called after each layer of `ys` in
    each pairing and fold.
    """
    n, device = len(fold), xs[0].device
    pairings = [torch.arange(n, device=device), *(order.to(device) for order in orders)]
    folds = int(fold.max()) + 1
    shape = (len(xs), len(ys))
    missed = [torch.zeros(*shape, n, dtype=torch.float64) for _ in pairings]
    spread = [torch.zeros(len(ys), n, dtype=torch.float64) for _ in pairings]
    hits = [torch.zeros(*shape, len(RANKS), n, dtype=torch.float64) for _ in pairings]
    penalties = [torch.zeros(folds, *shape, dtype=torch.float64) for _ in pairings]
    for part in range(folds):
        train = (fold != part).to(device)
        out = (~train).nonzero()[:, 0]
        decomposed = [Decomposed.of(standardised(x, train), train) for x in xs]
        for at, order in enumerate(pairings):
            for j, y in enumerate(ys):
                wanted = fewer_columns(standardised(y[order], train))
                spread[at][j, out.cpu()] = wanted[out].square().sum(1).cpu()
                for i, known in enumerate(decomposed):
                    predicted, penalties[at][part, i, j] = known.predict(wanted[train])
                    missed[at][i, j, out.cpu()] = (wanted[out] - predicted).square().sum(1).cpu()
                    hits[at][i, j][:, out.cpu()] = nearest(predicted, wanted, out).cpu()
                tick()
    for parts in zip(missed, spread, hits, penalties, strict=True):
        yield Predicted(*parts)
