"""What every metric asks of its input, and the preparation that the field applies before measuring."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import overload

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

# Relative spread below which a feature is the same for every item; the noise of batched products in float32 is under it.
SAME = {torch.float32: 1e-5, torch.float64: 1e-10}


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


def check_finite(t: Tensor, name: str) -> None:
    if t.numel() == 0:
        raise ValueError(f"{name} is empty, got shape {tuple(t.shape)}")
    if not all(bound.isfinite() for bound in t.aminmax()):  # one pass, and no array of answers
        item = int((~torch.isfinite(t)).reshape(len(t), -1).any(1).nonzero()[0, 0])
        raise ValueError(
            f"{name} must be finite, but item {item} holds nan or inf; leave the item out or extract it again"
        )


def check_k(k: int, n: int, least: int = 1) -> None:
    """ValueError unless k is a whole number of neighbours that n items can have."""
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not least <= k <= n - 1:
        raise ValueError(f"k must be an int in [{least}, N-1], got {k} with N={n}")


def is_same(x: Tensor, precision: torch.dtype | None = None) -> bool:
    """Whether all features `[N, D]` are the same for every item, each next to its own size; a large one hides no other.

    `precision` is the dtype that the features were computed in, where x is of a finer one.
    """
    precision = torch.float64 if precision in (None, torch.float64) and x.dtype == torch.float64 else torch.float32
    noise = 4 * torch.finfo(precision).eps * max(abs(float(bound)) for bound in x.aminmax())
    # two items mostly settle it, and spare a look at all of them
    for rows in (x[:2], x):
        low, high = rows.aminmax(dim=0)
        size = torch.maximum(high.abs(), low.abs()) * SAME[precision]
        if bool((high - low > size.clamp(min=noise)).any()):
            return False
    return True


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
        return [prepare_tensor(as_tensor(f, f"F[{i}]"), q, f"F[{i}]") for i, f in enumerate(F)]
    out = prepare_tensor(as_tensor(F, "F"), q, "F")
    return out if isinstance(F, Tensor) else out.numpy()


def prepare_tensor(t: Tensor, q: float, name: str) -> Tensor:
    """`prepare` of one tensor of float32 or more."""
    if not 0 < q <= 1:
        raise ValueError(f"q must be in (0, 1], got {q}")
    check_finite(t, name)
    if q < 1:
        limit = _select(t.abs().flatten(), int(q * t.numel()))
        if limit == 0 and t.any():
            raise ValueError(
                f"{name} is 0 in {q:.0%} of its values or more: clamping at that quantile would leave nothing; use q=1"
            )
        t = t.clamp(-limit, limit)
    return torch.nn.functional.normalize(t, dim=-1)


def _select(values: Tensor, index: int) -> float:
    """The value at `index` of the sorted values. Selection, because a sort of 10^8 numbers takes most of a minute."""
    if values.device.type == "cpu":
        flat = values.numpy()
        return float(np.partition(flat, index)[index])
    return float(values.kthvalue(index + 1).values)
