"""The preparation that the field applies before measuring, of arrays in memory and of those that do not fit it.

What is clamped at is found, and rows are prepared, some items at a time: `Prepared` is the whole that is never there.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import overload

import numpy as np
import torch
from torch import Tensor

from alignlab.metrics.inputs import as_tensor, blocks, check_finite

VALUES_AT_ONCE = 2**20  # that are looked at together for the quantile: they stay in the processor's cache
ROWS_APART = 64  # that are read from anywhere in a file before its pages are given back
DIGIT = 16  # bits of a number that are settled in one pass over all of them


@dataclass(frozen=True)
class Prepared:
    """Features `[N, ..., D]` that are prepared some items at a time, whenever these are asked for.

    `source` is a numpy array, mapped from disk or not, or a tensor; of a mapped one no more than what is asked for stays
    in memory. `[rows]`, a slice or indices, gives those items as a tensor of `dtype` on `device`, clamped to ±`limit` and
    with rows of length 1. `items` says which of the source's items there are, in which order; None is all.
    """

    source: np.ndarray | Tensor
    limit: float
    name: str
    dtype: torch.dtype
    device: torch.device
    items: Tensor | None = None

    def __len__(self) -> int:
        return len(self.source) if self.items is None else len(self.items)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self), *self.source.shape[1:]))

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        picked = rows if self.items is None else self.items[rows]
        return prepare_rows(_read(self.source, picked, self.name).to(self.device), self.limit).to(self.dtype)

    def some(self, items: Tensor) -> Prepared:
        """Those of the items, in that order; nothing is read."""
        return replace(self, items=items if self.items is None else self.items[items])

    def layer(self, number: int) -> Prepared:
        """`[N, L, D]` -> `[N, D]`, clamped as all layers together are."""
        return replace(self, source=self.source[:, number])

    def whole(self) -> Tensor:
        """All of it in memory, and nothing beside it."""
        out = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        done = 0
        for rows in blocks(self):
            out[done : done + len(rows)] = rows
            done += len(rows)
        return out


def prepared(source: np.ndarray | Tensor, q: float, name: str, device: str | torch.device) -> Prepared:
    """What `prepare` makes of an array `[N, ..., D]`, to be asked for item by item. Reads it three times: is it finite,
    and what is clamped at. Raises ValueError as `prepare` does.
    """
    if not 0 < q <= 1:
        raise ValueError(f"q must be in (0, 1], got {q}")
    if source.ndim < 2:
        raise ValueError(f"{name} must be [N, D] or [N, L, D], got shape {tuple(source.shape)}")
    if not all(source.shape):
        raise ValueError(f"{name} is empty, got shape {tuple(source.shape)}")
    count = int(np.prod(source.shape))
    step = max(1, VALUES_AT_ONCE * len(source) // count)

    def parts() -> Iterable[Tensor]:
        return (_read(source, slice(at, at + step), name) for at in range(0, len(source), step))

    any_value = False
    for number, part in enumerate(parts()):
        check_finite(part, name, first=number * step)
        any_value = any_value or bool(part.any())
    dtype = _read(source, slice(1), name).dtype
    limit = select(parts, int(q * count), dtype) if q < 1 else float("inf")
    if limit == 0 and any_value:
        raise ValueError(
            f"{name} is 0 in {q:.0%} of its values or more: clamping at that quantile would leave nothing; use q=1"
        )
    return Prepared(source, limit, name, dtype, torch.device(device))


def prepare_rows(t: Tensor, limit: float) -> Tensor:
    """Clamp to ±limit, then give rows `[..., D]` length 1; a row of zeros stays one."""
    return torch.nn.functional.normalize(t.clamp(-limit, limit), dim=-1)


def select(parts: Callable[[], Iterable[Tensor]], index: int, dtype: torch.dtype) -> float:
    """The value at `index` of the sorted absolute values of tensors that `parts()` gives, the same each time it is called.

    Exact, in memory that does not grow with them. Positive floats are in the order of their bits read as whole numbers:
    each pass counts how often the next 16 bits are what, among the values that begin with the bits known so far.
    """
    bits = torch.int32 if dtype == torch.float32 else torch.int64
    known = 0
    for shift in range(bits.itemsize * 8 - DIGIT, -1, -DIGIT):
        counts = torch.zeros(2**DIGIT + 2, dtype=torch.int64)  # with a place for all below and one for all above
        for part in parts():
            digits = (part.abs().view(bits) >> shift).sub_(known << DIGIT).clamp_(-1, 2**DIGIT).add_(1)
            counts += digits.flatten().bincount(minlength=len(counts)).cpu()
        upto = counts[:-1].cumsum(0)
        place = int(torch.searchsorted(upto, index, right=True))
        known = (known << DIGIT) + place - 1
        # the values below those that begin alike are counted anew in each pass: index stays as it is
    return float(torch.tensor(known, dtype=bits).view(dtype))


def _read(source: np.ndarray | Tensor, rows: slice | Tensor, name: str) -> Tensor:
    """Some items of an array as a tensor of float32 or more."""
    if isinstance(source, Tensor):
        return as_tensor(source[rows.to(source.device) if isinstance(rows, Tensor) else rows], name)
    picked = rows.cpu().numpy() if isinstance(rows, Tensor) else rows
    mapping = _mapping(source)
    if mapping is None:
        return as_tensor(source[picked], name)
    parts = []
    # Pages that were read count as this process's memory for as long as the system leaves them there, and with one row it
    # may map 2 MB around it; it keeps a copy of its own of what is soon read again.
    for few in [picked] if isinstance(picked, slice) else np.split(picked, range(ROWS_APART, len(picked), ROWS_APART)):
        parts.append(np.array(source[few], subok=False))
        mapping.madvise(mmap.MADV_DONTNEED)
    return as_tensor(np.concatenate(parts), name)


def _mapping(array: np.ndarray) -> mmap.mmap | None:
    """The file mapping that an array lies in, if its pages may be given back: a private one would lose what was written."""
    mode = None
    at: object = array
    while isinstance(at, np.ndarray):
        mode = at.mode if isinstance(at, np.memmap) else mode
        at = at.base
    shared = isinstance(at, mmap.mmap) and mode in ("r", "r+", "w+")
    return at if shared and hasattr(mmap, "MADV_DONTNEED") else None  # type: ignore[return-value]


@overload
def prepare(F: Tensor, q: float = 0.95) -> Tensor: ...
@overload
def prepare(F: np.ndarray, q: float = 0.95) -> np.ndarray: ...
@overload
def prepare(F: Sequence[Tensor], q: float = 0.95) -> list[Tensor]: ...
def prepare(F: Tensor | np.ndarray | Sequence[Tensor], q: float = 0.95) -> Tensor | np.ndarray | list[Tensor]:
    """Clamp outliers, then L2-normalise each row: the preparation of the Platonic Representation Hypothesis code.

    Values are clamped to ±(the q-quantile of |F|), taken over the whole array `[N, L, D]` or `[N, D]`; of a list
    `[N, D_l]` over each layer's array. The quantile is the value at index floor(q n) of the sorted absolute values, as
    that code has it. q=1 switches clamping off. A row of zeros stays zero.

    Returns what it got (numpy, torch or list) in float32 or more. Raises ValueError for q outside (0, 1], an empty
    array, nan or inf, and for features so sparse that the quantile is 0.

    >>> prepare(np.array([[3.0, 4.0], [0.0, 2.0]]), q=1)
    array([[0.6, 0.8],
           [0. , 1. ]])
    """
    if isinstance(F, list | tuple):
        return [_prepared_whole(f, q, f"F[{i}]") for i, f in enumerate(F)]
    out = _prepared_whole(F, q, "F")
    return out if isinstance(F, Tensor) else out.numpy()


def some(x: Tensor | Prepared, items: Tensor) -> Tensor | Prepared:
    """Those of the items, in that order; of a `Prepared` nothing is read."""
    return x.some(items) if isinstance(x, Prepared) else x[items]


def whole(x: Tensor | Prepared) -> Tensor:
    """All of it in memory."""
    return x.whole() if isinstance(x, Prepared) else x


def _prepared_whole(F: object, q: float, name: str) -> Tensor:
    source = as_source(F, name)
    return prepared(source, q, name, source.device if isinstance(source, Tensor) else "cpu").whole()


def as_source(x: object, name: str) -> np.ndarray | Tensor:
    """What parts can be read of without reading all of it: an array or a tensor as it is, anything else as a tensor.

    Raises ValueError as `as_tensor` does, for a tensor that is not dense and for anything but floating-point numbers.
    """
    if not isinstance(x, np.ndarray | Tensor):
        return as_tensor(x, name)  # type: ignore[arg-type]
    as_tensor(x[:1] if x.ndim and not (isinstance(x, Tensor) and x.layout != torch.strided) else x, name)
    return x.detach() if isinstance(x, Tensor) else x
