"""One tester for every metric: does the function do what its facts claim, and what all metrics have in common?

`check_metric` is for a metric of anybody's own; `CHECKS` are its parts, each a function of a `Subject`, so that a test
suite can run (and name) them one by one.
"""

from __future__ import annotations

import random
import re
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from alignlab.metrics.registry import INVARIANCES, REGISTRY, Metric, check_name, score

Shape = tuple[int, int, int]  # N, Dx, Dy
Reference = Callable[..., float]

SHAPES: tuple[Shape, ...] = (
    (24, 5, 8),
    (30, 9, 4),
    (20, 30, 26),
)  # features narrower and wider than the items are many
TOLERANCE = 1e-4  # of invariances and the ceiling: some metrics add a small constant to a denominator
ROUNDING = 1e-6  # between two ways of computing one float64 number
IMPLIED = {"linear": ("rotation", "permutation", "scale"), "rotation": ("permutation",)}
ALPHA, NULLS = 0.05, 19
REGIMES = (5, 20, 60, 400)  # d below, at, above and far above the 20 items


@dataclass(frozen=True)
class Subject:
    """A metric, the options it is called with, and on what; calling it gives a score or an AssertionError.

    `options` are passed on; a metric with a `k` gets one that few items allow, unless it is given.
    """

    metric: Metric
    options: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    trials: int = 40
    rtol: float = 1e-3
    shapes: tuple[Shape, ...] = SHAPES

    def options_for(self, n: int) -> dict[str, Any]:
        small = {"k": min(3, n - 1)} if "k" in self.metric.options else {}
        return {**small, **self.options}

    def call(self, X: Tensor | ArrayLike, Y: Tensor | ArrayLike, **more: Any) -> float:
        """What the public function makes of it, errors included."""
        n = len(X) if isinstance(X, Tensor) else len(np.asarray(X))
        return self.metric.function(X, Y, **{**self.options_for(n), **more})

    def __call__(self, X: Tensor | np.ndarray, Y: Tensor | np.ndarray, **more: Any) -> float:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # on good input there is nothing to warn of
                warnings.filterwarnings("ignore", category=DeprecationWarning)
                warnings.filterwarnings("ignore", category=FutureWarning)
                return self.call(X, Y, **more)
        except Exception as error:
            raise AssertionError(self.says(f"raised {type(error).__name__}: {error}", X, Y)) from error

    def says(self, what: str, X: Tensor | np.ndarray, Y: Tensor | np.ndarray) -> str:
        options = "".join(f", {k}={v!r}" for k, v in self.options_for(len(X)).items())
        where = f"X {tuple(X.shape)} and Y {tuple(Y.shape)}, seed {self.seed}"
        return f"{self.metric.name}(X, Y{options}) {what} ({where})"

    def claim(self, holds: bool, what: str, X: Tensor | np.ndarray, Y: Tensor | np.ndarray) -> None:
        if not holds:
            raise AssertionError(self.says(what, X, Y))

    def rng(self, *more: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *more])

    def related(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """For each shape a pair of which Y is X through a random matrix, with noise; neither is centred."""
        for n, dx, dy in self.shapes:
            rng = self.rng(n, dx, dy)
            x = rng.normal(size=(n, dx)) + rng.normal(size=dx) / 2
            y = x @ rng.normal(size=(dx, dy)) / np.sqrt(dx) + rng.normal(size=(n, dy)) / 2 + rng.normal(size=dy) / 2
            yield x, y

    def independent(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for n, dx, dy in self.shapes:
            rng = self.rng(n, dx, dy, 1)
            yield rng.normal(size=(n, dx)), rng.normal(size=(n, dy))


Check = Callable[[Subject], None]


def near(a: float, b: float, tolerance: float) -> bool:
    """Within the tolerance, relative for scores above 1."""
    return abs(a - b) <= tolerance * max(1.0, abs(a), abs(b))


# --- what the number is -----------------------------------------------------------------------------------------------


def bounds(subject: Subject) -> tuple[float, float]:
    """The stated range "low..high" in numbers or options' names; infinite where it says neither."""
    ends = re.match(r"[\[(]?\s*([^\s.]+(?:\.\d+)?)\s*\.\.\s*([^\s,;\])]+)", subject.metric.range)
    if ends is None:
        return -np.inf, np.inf
    options = {**subject.metric.options, **subject.options_for(SHAPES[0][0])}

    def number(text: str, otherwise: float) -> float:
        try:
            return float(options.get(text, text))
        except ValueError:
            return otherwise

    return number(ends[1], -np.inf), number(ends[2], np.inf)


def check_number(subject: Subject) -> None:
    """A finite Python float in the stated range, for related, unrelated, equal and opposite representations."""
    low, high = bounds(subject)
    pairs = [*subject.related(), *subject.independent()]
    for x, y in [*pairs, *((x, x) for x, _ in pairs), *((x, -x) for x, _ in pairs)]:
        value = subject(x, y)
        subject.claim(type(value) is float, f"must return a float, got {type(value).__name__}", x, y)
        inside = low - ROUNDING <= value <= high + ROUNDING
        subject.claim(inside and np.isfinite(value), f"= {value} is outside its range {subject.metric.range}", x, y)


def check_self(subject: Subject) -> None:
    """X scores the ceiling with itself and nothing scores more with X, to within `TOLERANCE`; if it claims that."""
    if not subject.metric.self_maximal:
        return
    for (x, y), (_, other) in zip(subject.related(), subject.independent(), strict=True):
        rng = subject.rng(2)
        for a in (x, y):
            own = subject(a, a)
            ceiling = subject.metric.ceiling_of(subject.options_for(len(a)))
            subject.claim(near(own, ceiling, TOLERANCE), f"= {own} for X itself, but its ceiling is {ceiling}", a, a)
            rivals = {
                "a noisy copy": a + rng.normal(size=a.shape) / 10,
                "a larger copy": 10 * a,
                "a smaller copy": a / 10,
                "some features": a[:, : max(3, a.shape[1] // 2)],
                "features twice": np.concatenate([a, a], 1),
                "a related Y": y,
                "an independent Y": other,
            }
            for label, rival in rivals.items():
                value = subject(a, rival)
                most = own + TOLERANCE * max(1.0, abs(own))
                subject.claim(value <= most, f"= {value} for {label}, above {own} for X itself", a, rival)


def check_larger_is_more_alike(subject: Subject) -> None:
    """A copy with a little noise scores more than an independent representation does."""
    if not subject.metric.paired:
        return
    for x, copy, other in _copies(subject):
        alike, far = subject(x, copy), subject(x, other)
        subject.claim(alike > far, f"= {alike} for a copy with 5 % noise, {far} for an independent Y", x, copy)


def _copies(subject: Subject) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    for n, d in ((40, 4), (40, 8)):  # narrow: of wide features many metrics see nothing
        rng = subject.rng(3, n, d)
        x = rng.normal(size=(n, d))
        yield x, x + 0.05 * rng.normal(size=x.shape), rng.normal(size=x.shape)


def check_distance(subject: Subject) -> None:
    """With `distance=True`: 0 for X itself, never negative, smaller for what is more alike, symmetric if the score is."""
    if not subject.metric.is_distance:
        return
    for x, copy, other in _copies(subject):
        own, alike, far = (subject(x, z, distance=True) for z in (x, copy, other))
        subject.claim(abs(own) <= TOLERANCE * max(1.0, abs(far)), f"has distance {own} from X to itself", x, x)
        subject.claim(alike >= 0 and far >= 0, f"has a negative distance, {alike} or {far}", x, other)
        if subject.metric.paired:
            told = f"has distance {alike} to a copy with 5 % noise, {far} to an independent Y"
            subject.claim(alike < far, told, x, copy)
        if subject.metric.symmetric:
            back = subject(other, x, distance=True)
            subject.claim(near(back, far, ROUNDING), f"has distance {far} one way, {back} the other", x, other)


def check_reference(subject: Subject, reference: Reference) -> None:
    """The number of a plain implementation, to `ROUNDING` relative in float64; of the distance too, if it offers one.

    What the reference makes nan of, the metric must refuse.
    """
    variants: list[dict[str, Any]] = [{}, {"distance": True}] if subject.metric.is_distance else [{}]
    for x, y in [*subject.related(), *subject.independent()]:
        for variant in variants:
            expected = float(reference(x.copy(), y.copy(), **{**subject.options_for(len(x)), **variant}))
            if not np.isfinite(expected):
                _refuses(subject, "", x, y, f"what the reference makes {expected} of", **variant)
                continue
            value = subject(x, y, **variant)
            right = abs(value - expected) <= ROUNDING * abs(expected) + 1e-9
            subject.claim(right, f"= {value}, but the reference is {expected} {variant or ''}".rstrip(), x, y)


# --- what leaves it unchanged -----------------------------------------------------------------------------------------


def transformed(kind: str, x: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Versions of X that are the same representation to a metric with this invariance."""
    d = x.shape[1]
    if kind == "scale":
        yield from (factor * x for factor in (1e-2, 0.3, 7.0, 1e2))
    elif kind == "shift":
        yield from (x + size * rng.normal(size=d) for size in (1, 5))
    elif kind == "permutation":
        yield x[:, rng.permutation(d)]
        yield x[:, ::-1]
    elif kind == "rotation":
        yield x @ orthogonal(d, rng)
    else:  # singular values in 0.5..2: what an inverse of it loses is rounding only
        yield x @ orthogonal(d, rng) * rng.uniform(0.5, 2, d) @ orthogonal(d, rng)


def orthogonal(d: int, rng: np.random.Generator) -> np.ndarray:
    return np.linalg.qr(rng.normal(size=(d, d)))[0]


def claimed(metric: Metric) -> set[str]:
    """The invariances that a metric names, and those that follow from them."""
    return {*metric.invariant, *(kind for name in metric.invariant for kind in IMPLIED.get(name, ()))}


def _changes(subject: Subject, kind: str) -> Iterator[tuple[str, float, float, np.ndarray, np.ndarray]]:
    """The side transformed, the score before and after, and X and Y, for all examples of a transformation."""
    rng = subject.rng(4, INVARIANCES.index(kind))
    for x, y in subject.related():
        before = subject(x, y)
        for z in transformed(kind, x, rng):
            yield "X", before, subject(z, y), z, y
        for z in transformed(kind, y, rng):
            yield "Y", before, subject(x, z), x, z


def check_invariant(subject: Subject) -> None:
    """What it claims to be invariant to changes no score by more than `TOLERANCE`, on either side alone."""
    for kind in sorted(claimed(subject.metric)):
        for side, before, after, x, y in _changes(subject, kind):
            told = f"claims invariance to {kind}, but goes from {before} to {after} under one of {side}"
            subject.claim(near(before, after, TOLERANCE), told, x, y)


def check_not_invariant(subject: Subject) -> None:
    """What it does not claim to be invariant to changes some score: the list is complete."""
    for kind in sorted(set(INVARIANCES) - claimed(subject.metric)):
        if all(near(before, after, TOLERANCE) for _, before, after, _, _ in _changes(subject, kind)):
            x, y = next(subject.related())
            subject.claim(False, f"does not claim invariance to {kind}, but never changes under one", x, y)


def check_symmetric(subject: Subject) -> None:
    """Where it claims symmetry, f(X, Y) = f(Y, X)."""
    if not subject.metric.symmetric:
        return
    for x, y in [*subject.related(), *subject.independent()]:
        one, other = subject(x, y), subject(y, x)
        subject.claim(near(one, other, ROUNDING), f"claims symmetry, but is {one} one way, {other} the other", x, y)


def check_not_symmetric(subject: Subject) -> None:
    """Where it does not claim symmetry, some f(X, Y) differs from f(Y, X)."""
    if subject.metric.symmetric:
        return
    pairs = [*subject.related(), *subject.independent()]
    if all(near(subject(x, y), subject(y, x), ROUNDING) for x, y in pairs):
        subject.claim(False, "does not claim symmetry, but never differs", *pairs[0])


def check_paired(subject: Subject) -> None:
    """Shuffling the items of X alone changes some score if it is paired, and none if it is not."""
    rng = subject.rng(5)
    changed = False
    for x, y in subject.related():
        shuffled = x[rng.permutation(len(x))]
        before, after = subject(x, y), subject(shuffled, y)
        same = near(before, after, ROUNDING)
        told = f"is not paired, but goes from {before} to {after} when X is shuffled"
        subject.claim(same or subject.metric.paired, told, x, y)
        changed |= not same
    if subject.metric.paired and not changed:
        subject.claim(False, "is paired, but never changes when X is shuffled", *next(subject.related()))


def check_item_order(subject: Subject) -> None:
    """Shuffling the items of both alike changes nothing.

    Not asked of a metric with an option `folds`: which items are held out together depends on their order.
    """
    if "folds" in subject.metric.options:
        return
    rng = subject.rng(6)
    for x, y in subject.related():
        order = rng.permutation(len(x))
        before, after = subject(x, y), subject(x[order], y[order])
        told = f"goes from {before} to {after} when the items of both are shuffled alike"
        subject.claim(near(before, after, ROUNDING), told, x, y)


# --- what it is given -------------------------------------------------------------------------------------------------


def check_numpy_and_torch(subject: Subject) -> None:
    """The same number, to the last digit, for an array and a tensor."""
    for dtype in (np.float64, np.float32):
        for x, y in ((x.astype(dtype), y.astype(dtype)) for x, y in subject.related()):
            a, b = subject(x, y), subject(torch.from_numpy(x), torch.from_numpy(y))
            subject.claim(a == b, f"= {a} for numpy, {b} for torch, both {dtype.__name__}", x, y)


def check_precision(subject: Subject) -> None:
    """float32 gives float64's number to `rtol`; lower precisions give exactly what float32 makes of their numbers."""
    for x, y in subject.related():
        single = [z.astype(np.float32) for z in (x, y)]
        full = subject(x, y)
        for label, a, b in (("float32", single[0], single[1]), ("float32 and float64", single[0], y)):
            value = subject(a, b)
            same = abs(value - full) <= subject.rtol * abs(full) + 1e-5
            subject.claim(same, f"= {value} in {label}, {full} in float64", x, y)
        for dtype in (torch.float16, torch.bfloat16):
            low = [torch.from_numpy(z).to(dtype) for z in (x, y)]
            value, raised = subject(low[0], low[1]), subject(low[0].float(), low[1].float())
            subject.claim(value == raised, f"= {value} in {dtype}, {raised} for these numbers in float32", x, y)
        half = [z.astype(np.float16) for z in (x, y)]
        value, raised = subject(*half), subject(*(z.astype(np.float32) for z in half))
        subject.claim(value == raised, f"= {value} in numpy's float16, {raised} for these numbers in float32", x, y)


def check_layout(subject: Subject) -> None:
    """Views, reversed and read-only arrays, another byte order and tensors with a gradient give the same number."""
    for x, y in subject.related():
        expected = subject(x, y)
        read_only = x.copy()
        read_only.flags.writeable = False
        views: dict[str, Tensor | np.ndarray] = {
            "in Fortran order": np.asfortranarray(x),
            "every other column": np.repeat(x, 2, axis=1)[:, ::2],
            "reversed twice": np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1],
            "read-only": read_only,
            "in the other byte order": x.astype(x.dtype.newbyteorder()),
            "a transposed tensor": torch.from_numpy(np.ascontiguousarray(x.T)).T,
            "a tensor with a gradient": torch.from_numpy(x.copy()).requires_grad_(),
        }
        for label, view in views.items():
            other = torch.from_numpy(y) if isinstance(view, Tensor) else y
            value = subject(view, other)
            subject.claim(near(value, expected, ROUNDING), f"= {value} for X {label}, not {expected}", x, y)


def check_inputs_kept(subject: Subject) -> None:
    """What it is given is as it was afterwards."""
    variants: list[dict[str, Any]] = [{}, {"distance": True}] if subject.metric.is_distance else [{}]
    for x, y in subject.related():
        for dtype in (np.float64, np.float32):
            given = [z.astype(dtype) for z in (x, y)]
            kept = [z.copy() for z in given]
            for variant in variants:
                subject(*given, **variant)
                subject(*(torch.from_numpy(z) for z in given), **variant)
            for name, before, after in zip("XY", kept, given, strict=True):
                subject.claim(np.array_equal(before, after), f"modifies its input {name}", x, y)


def _random_states() -> dict[str, str]:
    return {
        "torch": str(torch.get_rng_state().tolist()),
        "numpy": repr(np.random.get_state()),  # noqa: NPY002
        "random": repr(random.getstate()),
    }


def check_deterministic(subject: Subject) -> None:
    """A second call gives the same number, whatever came between, and global random states are left alone."""
    for x, y in subject.related():
        states = _random_states()
        first = subject(x, y)
        subject(y, x)
        second = subject(x, y)
        touched = [name for name, state in _random_states().items() if state != states[name]]
        subject.claim(first == second, f"= {first} at first, then {second} for the same features", x, y)
        subject.claim(not touched, f"changes the global random state of {', '.join(touched)}", x, y)


def check_cuda(subject: Subject) -> None:
    """CPU and GPU agree, in float64 to `TOLERANCE` and in float32 to `rtol`; nothing to do without a GPU."""
    if not torch.cuda.is_available():
        return
    for x, y in subject.related():
        for dtype, tolerance in ((torch.float64, TOLERANCE), (torch.float32, subject.rtol)):
            a, b = (torch.from_numpy(z).to(dtype) for z in (x, y))
            here = subject(a, b)
            for there in (subject(a.cuda(), b.cuda()), subject(a.cuda(), b)):
                subject.claim(near(here, there, tolerance), f"= {here} on the CPU, {there} on the GPU, {dtype}", x, y)


# --- what it makes of bad input ---------------------------------------------------------------------------------------


def _refuses(subject: Subject, message: str, X: ArrayLike, Y: ArrayLike, case: str, **options: Any) -> None:
    """AssertionError unless the call raises a ValueError that matches the message."""
    x, y = np.asarray(X), np.asarray(Y)
    try:
        value = subject.call(X, Y, **options)
    except ValueError as error:
        told = f"refuses {case}, but says {str(error)!r}, not /{message}/"
        subject.claim(re.search(message, str(error)) is not None, told, x, y)
    except Exception as error:
        told = f"raised {type(error).__name__} for {case}, not a ValueError: {error}"
        raise AssertionError(subject.says(told, x, y)) from error
    else:
        subject.claim(False, f"= {value} for {case}; it must raise a ValueError", x, y)


def check_bad_input(subject: Subject) -> None:
    """Each kind of bad features, on either side, is a ValueError that names the argument."""
    n, d = 20, 6
    good = subject.rng(7).normal(size=(n, d))

    def with_(item: int, value: float) -> np.ndarray:
        out = good.copy()
        out[item] = value
        return out

    holed = good.copy()
    holed[3, 1] = np.nan
    cases: dict[str, tuple[np.ndarray, str]] = {
        "nan": (holed, "{} must be finite, but item 3"),
        "inf": (with_(5, np.inf), "{} must be finite, but item 5"),
        "one dimension": (good[:, 0], r"{} must be \[N, D\], got shape"),
        "three dimensions": (good[:, :, None], r"{} must be \[N, D\], got shape"),
        "integers": ((10 * good).astype(int), "{} must hold floating-point numbers"),
        "a row of zeros": (with_(4, 0.0), r"{} has a row of zeros \(item 4\)"),
        "no features": (np.empty((n, 0)), "{} is empty"),
    }
    for case, (bad, message) in cases.items():
        _refuses(subject, message.format("X"), bad, good, f"{case} in X")
        _refuses(subject, message.format("Y"), good, bad, f"{case} in Y")
    _refuses(subject, "X is empty", np.empty((0, d)), np.empty((0, d)), "no items", **_k(subject, 3))
    _refuses(subject, rf"same number of items, got {n - 1} and {n}", good[1:], good, "different N")
    for few in (1, 3):
        _refuses(
            subject, rf"must have 4 items or more, got {few}", good[:few], good[:few], "few items", **_k(subject, 1)
        )


def _k(subject: Subject, k: int) -> dict[str, Any]:
    return {"k": k} if "k" in subject.metric.options else {}


def check_bad_options(subject: Subject) -> None:
    """A k that does not fit, a word that an option does not know and an option that does not exist are ValueErrors."""
    n = 20
    x, y = subject.rng(8).normal(size=(2, n, 6))
    if "k" in subject.metric.options:
        for k in (0, -1, n, 2.0, True):
            _refuses(subject, rf"k must be an int in .*got {re.escape(str(k))} with N={n}", x, y, f"k={k}", k=k)
    for option, default in subject.metric.options.items():
        if isinstance(default, str):
            _refuses(subject, option, x, y, f"{option}='no such'", **{option: "no such"})
    try:
        score(subject.metric.name, x, y, **{**subject.options, "no_such_option": 1})
    except ValueError as error:
        told = f"refuses an unknown option, but says {str(error)!r}"
        subject.claim("has no option no_such_option" in str(error), told, x, y)
    else:
        subject.claim(False, "takes an unknown option through score", x, y)


def check_constant(subject: Subject) -> None:
    """Features that are the same for every item score exactly 0, with a warning that names them."""
    x = subject.rng(9).normal(size=(20, 6))
    same = np.full((20, 3), 2.5)
    for name, a, b in (("X", same, x), ("Y", x, same), ("X", same, same)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            value = subject.call(a, b)
        subject.claim(type(value) is float and value == 0, f"= {value!r}, not 0.0, for a constant {name}", a, b)
        told = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
        said = any(text.startswith(f"{name} is the same for every item") for text in told)
        subject.claim(said, f"gives no warning of a constant {name}, but {told}", a, b)


def check_small(subject: Subject) -> None:
    """Few items, a single feature, far more features than items, repeated items: a number or a ValueError, never nan."""
    shapes = ((4, 1, 1), (4, 2, 3), (5, 1, 40), (5, 4, 4), (6, 3, 2), (7, 7, 7), (8, 1, 1), (8, 200, 5), (8, 300, 300))
    for n, dx, dy in shapes:
        rng = subject.rng(10, n, dx, dy)
        x, y = rng.normal(size=(n, dx)), rng.normal(size=(n, dy))
        for a, b in ((x, y), (x, x), (x[np.arange(n) // 2], y), (np.abs(x) + 0.1, np.sign(y))):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    value = subject.call(a, b)
            except ValueError as error:
                subject.claim(bool(str(error)), "refuses without a message", a, b)
            except Exception as error:
                told = f"raised {type(error).__name__}, not a ValueError: {error}"
                raise AssertionError(subject.says(told, a, b)) from error
            else:
                subject.claim(type(value) is float and np.isfinite(value), f"= {value!r}", a, b)


def check_redundant_features(subject: Subject) -> None:
    """A feature that never changes and one that is there twice are common in networks: the score is a number."""
    for x, y in subject.related():
        for z in (np.concatenate([x, np.zeros((len(x), 1))], 1), np.concatenate([x, x[:, :1]], 1)):
            for value in (subject(z, y), subject(y, z), subject(z, z)):
                subject.claim(np.isfinite(value), f"= {value} with a redundant feature", z, y)


# --- what a permutation test makes of it ------------------------------------------------------------------------------


def check_type_one_error(subject: Subject) -> None:
    """A permutation test of independent features rejects as rarely as it says, for few and for many features.

    p = (1 + number of nulls >= score) / (nulls + 1) over shuffled items of X; at most so many of `trials` p-values are
    0.05 or less as a binomial variable exceeds with a probability of 1e-4. Without a pairing there is no null.
    """
    if not subject.metric.paired:
        return
    n = 20
    from scipy.stats import binom

    most = int(binom.isf(1e-4, subject.trials, ALPHA))
    options = subject.options_for(n)

    def value(x: Tensor, y: Tensor) -> float:
        out = float(subject.metric.core(x, y, **options))
        subject.claim(np.isfinite(out), f"= {out} in a permutation test", x, y)
        return out

    for d in REGIMES:
        rng = subject.rng(11, d)
        rejections = 0
        for _ in range(subject.trials):
            x, y = (torch.from_numpy(rng.normal(size=(n, d))) for _ in range(2))
            own = value(x, y)
            # of 19 nulls none may reach the score for p <= 0.05, so the first that does ends the trial
            shuffled = (x[torch.from_numpy(rng.permutation(n))] for _ in range(NULLS))
            rejections += not any(value(z, y) >= own for z in shuffled)
        told = f"rejects {rejections} of {subject.trials} true nulls at alpha = {ALPHA}; at most {most} may be chance"
        subject.claim(rejections <= most, told, x, y)


CHECKS: tuple[Check, ...] = (
    check_number,
    check_self,
    check_larger_is_more_alike,
    check_distance,
    check_invariant,
    check_not_invariant,
    check_symmetric,
    check_not_symmetric,
    check_paired,
    check_item_order,
    check_numpy_and_torch,
    check_precision,
    check_layout,
    check_inputs_kept,
    check_deterministic,
    check_cuda,
    check_bad_input,
    check_bad_options,
    check_constant,
    check_small,
    check_redundant_features,
    check_type_one_error,
)


def entry_of(metric: str | Callable[..., float]) -> Metric:
    """The registered metric of a name or of a decorated function; ValueError where there is none."""
    if isinstance(metric, str):
        return REGISTRY[check_name(metric)]
    for entry in REGISTRY.values():
        if entry.function is metric:
            return entry
    raise ValueError(f"{getattr(metric, '__name__', metric)!r} is no metric; put @metric(...) above it")


def check_metric(
    metric: str | Callable[..., float],
    reference: Reference | None = None,
    *,
    seed: int = 0,
    trials: int = 40,
    rtol: float = 1e-3,
    exempt: Collection[str] = (),
    **options: Any,
) -> None:
    """Check that a metric does what it claims, and what is asked of all metrics: see `CHECKS` for what that is.

    `metric` is a name or a function with `@metric` above it; `reference` a plain implementation `(X, Y, **options) ->
    float` on numpy, to agree with to 1e-6 relative in float64. `trials` is the number of permutation tests in each of
    four regimes of d to N (under 10 they show little), `rtol` what float32 may differ by from float64, `exempt` the names
    of checks that are not to be made. The options go to the metric; the claims are about its defaults, so others may make
    some untrue. An option `distance` is checked with and without, and is not to be given.

    Raises AssertionError with the claim that failed, on which shapes, with which numbers; ValueError for what is no
    metric, no check and no option.

    >>> check_metric("mutual_knn", trials=10)
    >>> check_metric("cka", lambda X, Y: 0.5)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    AssertionError: cka(X, Y) = 0.797..., but the reference is 0.5 (X (24, 5) and Y (24, 8), seed 0)
    """
    entry = entry_of(metric)
    unknown = set(exempt) - {check.__name__ for check in CHECKS}
    if unknown:
        raise ValueError(f"exempt names no check: {', '.join(sorted(unknown))}")
    unknown = set(options) - (set(entry.options) - {"distance"})
    if unknown:
        raise ValueError(f"{entry.name} is not checked with the option {', '.join(sorted(unknown))}")
    subject = Subject(entry, options, seed=seed, trials=trials, rtol=rtol)
    if reference is not None:
        check_reference(subject, reference)
    for check in CHECKS:
        if check.__name__ not in exempt:
            check(subject)
