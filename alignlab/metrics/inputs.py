"""What every metric asks of its input."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

# Relative spread below which a feature is the same for every item; the noise of batched products in float32 is under it.
SAME = {torch.float32: 1e-5, torch.float64: 1e-10}
ROWS_AT_ONCE = 4096  # items that are looked at together: their products are summed in float32 before they go to float64


class Rows(Protocol):
    """Features `[N, D]` some items of which can be had at a time: a tensor, or `preparation.Prepared`."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Tensor: ...


def blocks(x: Rows) -> Iterator[Tensor]:
    """All items, in order, some at a time."""
    return (x[span] for span in spans(len(x)))


def spans(n: int) -> Iterator[slice]:
    """The blocks of n items."""
    return (slice(start, start + ROWS_AT_ONCE) for start in range(0, n, ROWS_AT_ONCE))


def as_tensor(x: Tensor | ArrayLike, name: str) -> Tensor:
    """A floating-point tensor of float32 or more; lower precision is raised to float32, anything else is refused."""
    t = x.detach() if isinstance(x, Tensor) else _from_numpy(x, name)
    if t.layout != torch.strided:
        raise ValueError(f"{name} must be dense, got a tensor of layout {t.layout}; call .to_dense() first")
    if not t.is_floating_point():
        raise _not_numbers(name, str(t.dtype).removeprefix("torch."))
    return t if t.dtype in (torch.float32, torch.float64) else t.float()


def _from_numpy(x: ArrayLike, name: str) -> Tensor:
    try:
        array = np.asarray(x)
    except ValueError as error:
        raise ValueError(f"{name} must be an array [N, D]: {error}") from None
    if array.dtype.kind != "f":
        raise _not_numbers(name, str(array.dtype))
    if array.dtype.itemsize > 8 or not array.dtype.isnative or min(array.strides, default=0) < 0:
        array = array.astype(f"f{min(array.dtype.itemsize, 8)}")  # what torch cannot look at in place
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nothing here writes to its input
        return torch.from_numpy(array)


def _not_numbers(name: str, dtype: str) -> ValueError:
    return ValueError(f"{name} must hold floating-point numbers, got {dtype}; convert it, say with .astype('float32')")


def check_pair(X: Tensor | ArrayLike, Y: Tensor | ArrayLike) -> tuple[Tensor, Tensor]:
    """Two `[N, D]` tensors of one dtype and device; ValueError that names what is wrong with them."""
    x, y = as_tensor(X, "X"), as_tensor(Y, "Y")
    for name, t in (("X", x), ("Y", y)):
        if t.ndim != 2:
            hint = "; one feature an item is [N, 1]: write x[:, None]" if t.ndim == 1 else ""
            raise ValueError(f"{name} must be [N, D], got shape {tuple(t.shape)}{hint}")
        check_finite(t, name)
    if len(x) != len(y):
        raise ValueError(
            f"X and Y must have the same number of items, got {len(x)} and {len(y)}; row i of both is one item"
        )
    check_count(len(x), "X")
    dtype = torch.promote_types(x.dtype, y.dtype)
    return x.to(dtype), y.to(device=x.device, dtype=dtype)


def check_count(n: int, name: str) -> None:
    if n < 4:
        raise ValueError(f"{name} must have 4 items or more, got {n}")


def check_finite(t: Tensor, name: str, first: int = 0) -> None:
    """ValueError for no values, nan or inf; `first` is the number of t's first item."""
    if t.numel() == 0:
        raise ValueError(f"{name} is empty, got shape {tuple(t.shape)}")
    if not all(bound.isfinite() for bound in t.aminmax()):  # one pass, and no array of answers
        item = first + int((~torch.isfinite(t)).reshape(len(t), -1).any(1).nonzero()[0, 0])
        raise ValueError(
            f"{name} must be finite, but item {item} holds nan or inf; leave the item out or extract it again"
        )


def check_k(k: int, n: int, least: int = 1) -> None:
    """ValueError unless k is a whole number of neighbours that n items can have."""
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not least <= k <= n - 1:
        raise ValueError(f"k must be an int in [{least}, N-1], got {k} with N={n}")


def is_same(x: Rows, precision: torch.dtype | None = None) -> bool:
    """Whether all features `[N, D]` are the same for every item, each next to its own size; a large one hides no other.

    `precision` is the dtype that the features were computed in, where x is of a finer one.
    """
    low = high = x[:1][0]
    for rows in blocks(x):
        least, most = rows.aminmax(dim=0)
        low, high = torch.minimum(low, least), torch.maximum(high, most)
    precision = torch.float64 if precision in (None, torch.float64) and low.dtype == torch.float64 else torch.float32
    size = torch.maximum(high.abs(), low.abs())
    noise = 4 * torch.finfo(precision).eps * float(size.max())
    return not bool((high - low > (size * SAME[precision]).clamp(min=noise)).any())
