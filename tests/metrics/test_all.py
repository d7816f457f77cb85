"""Every registered metric against every check, on random shapes against a plain reference; and the tester itself."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignlab import metrics
from alignlab.metrics import check
from alignlab.metrics.check import CHECKS, Subject, check_metric
from alignlab.metrics.registry import REGISTRY, metric

MODULES = [importlib.import_module(path.stem) for path in sorted(Path(__file__).parent.glob("reference_*.py"))]
REFERENCES: dict[str, Callable[..., float]] = {n: f for module in MODULES for n, f in module.REFERENCES.items()}
OPTIONS: dict[str, list[dict[str, Any]]] = {
    n: o for module in MODULES for n, o in getattr(module, "OPTIONS", {}).items()
}

shapes = st.tuples(st.integers(12, 40), st.integers(2, 30), st.integers(2, 30))
# two features of an item correlate by 1 or -1: rsa may have nothing to compare
wider = st.tuples(st.integers(12, 40), st.integers(3, 30), st.integers(3, 30))
seeds = st.integers(0, 10_000)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Arrays this small cost more to share out than to compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("claim", CHECKS, ids=lambda c: c.__name__.removeprefix("check_"))
@pytest.mark.parametrize("name", metrics.NAMES)
def test_metric(name: str, claim: check.Check) -> None:
    if claim is check.check_cuda and not torch.cuda.is_available():
        pytest.skip("no GPU")
    claim(Subject(REGISTRY[name]))


@pytest.mark.parametrize("name", metrics.NAMES)
@settings(max_examples=8, deadline=None)
@given(shape=wider, seed=seeds)
def test_claims_hold_on_any_shape(name: str, shape: check.Shape, seed: int) -> None:
    subject = Subject(REGISTRY[name], seed=seed, shapes=(shape,))
    for claim in (check.check_number, check.check_self, check.check_invariant, check.check_symmetric):
        claim(subject)


@pytest.mark.parametrize("name", metrics.NAMES)
@settings(max_examples=10, deadline=None)
@given(shape=shapes, seed=seeds, data=st.data())
def test_agrees_with_the_reference(name: str, shape: check.Shape, seed: int, data: st.DataObject) -> None:
    assert name in REFERENCES, f"write a plain {name}(x, y, **options) in tests/metrics/reference_*.py, in REFERENCES"
    options = dict(data.draw(st.sampled_from([{}, *OPTIONS.get(name, [])])))
    if "k" in REGISTRY[name].options:
        options["k"] = data.draw(st.integers(2, 10))
    check.check_reference(Subject(REGISTRY[name], options, seed=seed, shapes=(shape,)), REFERENCES[name])


def test_every_reference_is_one_metrics() -> None:
    names = [name for module in MODULES for name in module.REFERENCES]
    assert len(names) == len(set(names))
    assert set(names) <= set(metrics.NAMES)
    assert set(OPTIONS) <= set(names)


# --- the tester itself ------------------------------------------------------------------------------------------------

FACTS: dict[str, Any] = {
    "formula": "(<Kc, Lc> / (|Kc| |Lc|))^2",
    "range": "0..1",
    "chance": "grows with D / N",
    "cost": "N^2 (Dx + Dy)",
    "source": "this test",
    "invariant": ("scale", "shift", "permutation", "rotation"),
}


@pytest.fixture
def declared() -> Iterator[Callable[..., Callable[..., float]]]:
    """Registers functions as metrics, with `FACTS` unless told otherwise; the registry is put back afterwards."""
    before = dict(REGISTRY)
    yield lambda core, **facts: metric(**{**FACTS, **facts})(core)
    REGISTRY.clear()
    REGISTRY.update(before)


def plain(X: torch.Tensor, Y: torch.Tensor) -> torch.Tensor:
    """The square of the linear CKA."""
    a, b = X - X.mean(0), Y - Y.mean(0)
    k, l = a @ a.T, b @ b.T
    return ((k * l).sum() / (k.norm() * l.norm())) ** 2


def test_a_new_metric_costs_one_function_and_one_decorator(declared: Callable[..., Any]) -> None:
    def reference(x: np.ndarray, y: np.ndarray) -> float:
        return metrics.cka(x, y) ** 2

    function = declared(plain)
    check_metric(function, reference, trials=10)
    check_metric("plain", trials=10, seed=1)
    assert "plain" in metrics.NAMES
    with pytest.raises(AssertionError, match=r"plain\(X, Y\) = 0\.\d+, but the reference is 0\.\d+ \(X \(24, 5\)"):
        check_metric(function, metrics.cka)


def directed(X: torch.Tensor, Y: torch.Tensor) -> torch.Tensor:
    """The share of Y's variance along the directions of X, which weigh as much as they vary in X."""
    a, b = X - X.mean(0), Y - Y.mean(0)
    return (a.T @ b).norm() ** 2 / (a.norm() ** 2 * (b.T @ b).norm())


def uncentred(X: torch.Tensor, Y: torch.Tensor) -> torch.Tensor:
    """The cosine of two linear kernels."""
    k, l = X @ X.T, Y @ Y.T
    return (k * l).sum() / (k.norm() * l.norm())


def uncentred_dot(X: torch.Tensor, Y: torch.Tensor) -> torch.Tensor:
    """The share of X's kernel in Y's: larger for a larger Y."""
    return (X @ X.T * (Y @ Y.T)).sum() / (X @ X.T).norm() ** 2


def spread(X: torch.Tensor, Y: torch.Tensor) -> torch.Tensor:
    """The ratio of the two sizes, whichever item is which."""
    a, b = (X - X.mean(0)).norm(), (Y - Y.mean(0)).norm()
    return torch.minimum(a / b, b / a)


def undefined_for_wide(X: torch.Tensor, Y: torch.Tensor) -> torch.Tensor:
    """Divides by zero once there are more features than items."""
    return plain(X, Y) / (X.shape[1] < len(X))


def centring_in_place(X: torch.Tensor, Y: torch.Tensor) -> torch.Tensor:
    """Subtracts the mean from the features it was lent."""
    X -= X.mean(0)
    return plain(X, Y)


def drawn(X: torch.Tensor, Y: torch.Tensor) -> torch.Tensor:
    """Leaves out an item drawn with torch's global generator."""
    items = torch.randperm(len(X))[1:]
    return plain(X[items], Y[items])


def first_item_twice(X: torch.Tensor, Y: torch.Tensor) -> torch.Tensor:
    """Counts the item that happens to come first as two."""
    return plain(torch.cat([X[:1], X]), torch.cat([Y[:1], Y]))


def as_distance(X: torch.Tensor, Y: torch.Tensor) -> torch.Tensor:
    """A distance that was not turned into a score."""
    return 1 - plain(X, Y)


def with_distance(X: torch.Tensor, Y: torch.Tensor, distance: bool = False) -> torch.Tensor:
    """Offers a distance that is another score."""
    return plain(X, Y)


def rounded(X: torch.Tensor, Y: torch.Tensor) -> torch.Tensor:
    """Computes in bfloat16 unless it is given float64."""
    if X.dtype == torch.float64:
        return plain(X, Y)
    return plain(X.bfloat16(), Y.bfloat16())


def cut_off(X: torch.Tensor, Y: torch.Tensor) -> torch.Tensor:
    """Takes six features to be there."""
    return plain(X[:, [0, 5]], Y[:, [0, 5]])


def zealous(X: torch.Tensor, Y: torch.Tensor, word: str = "linear") -> torch.Tensor:
    """Never looks at its option."""
    return plain(X, Y)


def dividing(X: torch.Tensor, Y: torch.Tensor) -> torch.Tensor:
    """Gives each feature a variance of 1, and nan to a feature without any."""
    return plain(X / X.std(0), Y / Y.std(0))


def untiring() -> Callable[[torch.Tensor, torch.Tensor], float]:
    calls = itertools.count()

    def tiring(X: torch.Tensor, Y: torch.Tensor) -> float:
        """Scores less with each call: what is measured before its nulls always beats them."""
        return float(plain(X, Y)) - next(calls)

    return tiring


Lie = tuple[Callable[..., Any], dict[str, Any], check.Check, str]
LIES: dict[str, Lie] = {
    "a range exceeded": (plain, {"range": "0..0.5"}, check.check_number, r"is outside its range 0\.\.0\.5"),
    "nan": (undefined_for_wide, {}, check.check_number, r"is not defined for these X and Y .* \(X \(20, 30\)"),
    "another exception": (cut_off, {}, check.check_number, "raised IndexError"),
    "another ceiling": (plain, {"ceiling": 2.0}, check.check_self, r"for X itself, but its ceiling is 2\.0"),
    "a rival above itself": (uncentred_dot, {"ceiling": 1.0}, check.check_self, "above .* for X itself"),
    "a distance as a score": (as_distance, {"ceiling": 0.0}, check.check_larger_is_more_alike, "with 5 % noise"),
    "a score as a distance": (with_distance, {}, check.check_distance, r"has distance 1\.\d+ from X to itself"),
    "an invariance that is none": (uncentred, {}, check.check_invariant, "claims invariance to shift, but goes from"),
    "too large an invariance": (plain, {"invariant": ["linear"]}, check.check_invariant, "claims invariance to linear"),
    "an invariance left out": (
        plain,
        {"invariant": ["scale", "rotation"]},
        check.check_not_invariant,
        "does not claim invariance to shift, but never changes",
    ),
    "no symmetry": (directed, {}, check.check_symmetric, "claims symmetry, but is"),
    "symmetry left out": (plain, {"symmetric": False}, check.check_not_symmetric, "does not claim symmetry, but never"),
    "a pairing left out": (plain, {"paired": False}, check.check_paired, "is not paired, but goes from"),
    "no pairing": (spread, {}, check.check_paired, "is paired, but never changes"),
    "an order of items": (first_item_twice, {}, check.check_item_order, "items of both are shuffled alike"),
    "digits thrown away": (rounded, {}, check.check_precision, "in float32"),
    "its input modified": (centring_in_place, {}, check.check_inputs_kept, "modifies its input X"),
    "chance": (drawn, {}, check.check_deterministic, "at first, then|random state of torch"),
    "an unknown word": (zealous, {}, check.check_bad_options, "for word='no such'; it must raise a ValueError"),
    "a dead feature": (dividing, {}, check.check_redundant_features, "is not defined for these X and Y"),
    "too liberal a test": (untiring(), {}, check.check_type_one_error, "rejects 40 of 40 true nulls"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_caught(lie: str, declared: Callable[..., Any]) -> None:
    core, facts, claim, message = LIES[lie]
    function = declared(core, **facts)
    with pytest.raises(AssertionError, match=message) as caught:
        claim(Subject(REGISTRY[core.__name__]))
    assert "seed 0" in str(caught.value)
    with pytest.raises(AssertionError):
        check_metric(function, trials=10)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0..1", (0, 1)),
        ("-1..1", (-1, 1)),
        ("-0.5..0.25, rarely less", (-0.5, 0.25)),
        ("(-inf..1]", (-np.inf, 1)),
        ("0..k", (0, 3)),
        ("0..inf", (0, np.inf)),
        ("about -1..1", (-np.inf, np.inf)),
        ("any number", (-np.inf, np.inf)),
    ],
)
def test_ranges_are_read(text: str, expected: tuple[float, float], declared: Callable[..., Any]) -> None:
    declared(neighbourly, range=text)
    assert check.bounds(Subject(REGISTRY["neighbourly"])) == expected


def neighbourly(X: torch.Tensor, Y: torch.Tensor, k: int = 10) -> float:
    """Has a k."""
    return float(k)


def test_what_cannot_be_checked_is_refused(declared: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="unknown metric 'ckaa'"):
        check_metric("ckaa")
    with pytest.raises(ValueError, match=r"'plain' is no metric; put @metric\(...\) above it"):
        check_metric(plain)
    with pytest.raises(ValueError, match="exempt names no check: check_nothing"):
        check_metric("cka", exempt=["check_nothing"])
    with pytest.raises(ValueError, match="cka is not checked with the option k"):
        check_metric("cka", k=3)
    with pytest.raises(ValueError, match="not checked with the option distance"):
        check_metric("rsm_difference", distance=True)


def test_a_check_can_be_left_out(declared: Callable[..., Any]) -> None:
    function = declared(first_item_twice)
    check_metric(function, trials=10, exempt=["check_item_order"])
