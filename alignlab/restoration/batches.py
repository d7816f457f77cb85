"""Training pictures for a network with square inputs: made once and kept, or read as they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alignlab.data import ImageTextDataset, load_dataset, resize, to_tensor
from alignlab.pretrain.pool import PoolConfig, batch, held_out, open_pool
from alignlab.training import Processes

KEPT_BYTES = 2 << 30  # of decoded pictures of one set


def picture_batches(
    sources: tuple[str, ...],
    size: int,
    count: int,
    seed: int,
    *,
    crops: int | None = None,
    all_items: bool = False,
    workers: int = 0,
    among: Processes | None = None,
) -> Callable[[int], Tensor]:
    """Step -> float32 `[count, 3, size, size]` in 0..1, equal shares of every source, a function of its arguments alone.

    `among` several processes each reads and gets its block of them.

    "scenes" gives crops of rendered scenes of the training split. Of any other set every fifth item is held out unless
    `all_items`; its pictures come whole, resized to a square, in an order drawn anew each epoch, or, with `crops`, from
    that many random square crops of them. Raises ValueError for a batch smaller than the number of sources.
    """
    if count < len(sources):
        raise ValueError(f"a batch of {count} cannot hold pictures of {len(sources)} sources")
    config = PoolConfig(size=size * 9 // 8, **({"count": crops} if crops else {}))
    pooled = [source for source in sources if source == "scenes" or crops]
    pools = [open_pool(source, config) for source in pooled]
    others = [source for source in sources if source not in pooled]
    # Whole pictures' sets first take what does not come out even, so that a batch is always full.
    shares = [count // len(sources) + (at < count % len(sources)) for at in range(len(sources))]
    among = among or Processes()
    mine = among.block(count)
    drawn = sum(shares[len(others) :])  # from pools; they come first
    readers, start = [], drawn
    for at, source in enumerate(others):
        data = load_dataset(source, captions=False)
        left_out = set() if all_items else set(held_out(data))
        items = [i for i in range(len(data)) if i not in left_out]
        if not items:
            raise ValueError(f"{source} has {len(data)} item(s); with every fifth held out none is left to learn from")
        chosen = _within(mine, start, shares[at])
        start += shares[at]
        if chosen:
            readers.append(WholePictures(data, items, size, shares[at], seed + at, workers, chosen, among.count))

    def step(number: int) -> Tensor:
        parts = [reader(number) for reader in readers]
        if chosen := _within(mine, 0, drawn):
            parts.insert(0, batch(pools, drawn, size, number, seed)[chosen.start : chosen.stop])
        return torch.cat(parts)

    return step


def _within(places: range, start: int, n: int) -> range:
    """Those of `n` places from `start` on that are among `places`, counted from `start`."""
    return range(max(places.start - start, 0), min(places.stop - start, n))


class WholePictures:
    """`reader(step)` gives the `count` pictures of a step, float32 `[count, 3, size, size]`, resized to squares, or those of
    them that are `chosen`; as many `processes` read the set.
    """

    def __init__(
        self,
        data: ImageTextDataset,
        items: list[int],
        size: int,
        count: int,
        seed: int,
        workers: int = 0,
        chosen: range | None = None,
        processes: int = 1,
    ) -> None:
        self.items, self.count, self.seed, self.workers = items, count, seed, workers
        self.chosen = range(count) if chosen is None else chosen
        self.pictures = SquarePictures(data, size, copies=processes * max(workers, 1))
        self.next_step = -1
        self.batches: Iterator[Tensor] = iter(())

    def __call__(self, step: int) -> Tensor:
        if step != self.next_step:
            self.batches, self.next_step = self._from(step), step
        self.next_step += 1
        return next(self.batches).float() / 255

    def _from(self, step: int) -> Iterator[Tensor]:
        from torch.utils.data import DataLoader

        return iter(DataLoader(self.pictures, batch_sampler=self._indices(step), num_workers=self.workers))

    def _indices(self, step: int) -> Any:
        while True:
            drawn = step * self.count + np.array(self.chosen)
            epochs, places = np.divmod(drawn, len(self.items))
            yield [self.items[self._order(int(epoch))[place]] for epoch, place in zip(epochs, places, strict=True)]
            step += 1

    def _order(self, epoch: int) -> np.ndarray:
        if getattr(self, "_epoch", None) != epoch:
            self._epoch = epoch
            self._shuffled = np.random.default_rng([self.seed, epoch]).permutation(len(self.items))
        return self._shuffled


class SquarePictures(torch.utils.data.Dataset):
    """Item -> uint8 `[3, size, size]`; the first ones are kept once decoded, up to `KEPT_BYTES` in all of its `copies`, as
    each worker and each process has its own.
    """

    def __init__(self, data: ImageTextDataset, size: int, copies: int = 1) -> None:
        self.data, self.size = data, size
        self.kept: dict[int, Tensor] = {}
        self.room = KEPT_BYTES // copies // (3 * size**2)

    def __getitem__(self, index: int) -> Tensor:
        if index in self.kept:
            return self.kept[index]
        picture = resize(to_tensor(self.data[index].image)[None], self.size)[0].mul(255).round().byte()
        if len(self.kept) < self.room:
            self.kept[index] = picture
        return picture
