"""Which items are shuffled where, and which are left out."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch
from torch import Tensor

ENTRIES_AT_ONCE = 2**24  # of the permutations or subsets in a chunk: with a million items they are 8 MB each


class Draws:
    """Which items are shuffled where, and which are left out: the same for every metric."""

    def __init__(self, n: int, nulls: int, resamples: int, splits: int, seed: int, device: str) -> None:
        rng = np.random.default_rng(seed)
        half = n // 2
        self.seed = seed
        self.perms = Drawn(rng, n, nulls, [slice(n)], device)
        self.subsets = Drawn(rng, n, resamples, [slice(half)], device)
        self.halves = Drawn(rng, n, splits, [slice(half), slice(half, 2 * half)], device)
        self.half_perms = Drawn(rng, half, 2 * splits, [slice(half)], device)

    @property
    def total(self) -> int:
        return 1 + len(self.perms) + len(self.subsets) + len(self.halves)


class Drawn:
    """`count` orders of n items at random, or `parts` of each, made anew whenever they are gone through.

    Kept, the 200 permutations of a million items would take more memory than the work on them.
    """

    def __init__(self, rng: np.random.Generator, n: int, count: int, parts: list[slice], device: str) -> None:
        self.n, self.count, self.parts, self.device = n, count, parts, device
        self._rng = copy.deepcopy(rng)
        for _ in range(count):  # what is drawn next from the same stream comes after these
            rng.permutation(n)

    def __len__(self) -> int:
        return self.count * len(self.parts)

    def __iter__(self) -> Iterator[Tensor]:
        rng = copy.deepcopy(self._rng)
        for _ in range(self.count):
            order = torch.from_numpy(rng.permutation(self.n)).to(self.device)
            yield from (order[part] for part in self.parts)

    def chunks(self, size: int) -> Iterator[Tensor]:
        """`[C, m]`, C of `size` or less."""
        each = iter(self)
        while some := list(islice(each, max(1, min(size, ENTRIES_AT_ONCE // self.n)))):
            yield torch.stack(some)
