"""What a metric is: a function on two checked tensors, and what is known about it.

`@metric(...)` above a function is all the registration there is. The function gets two finite tensors `[N, Dx]` and
`[N, Dy]` of one dtype (float32 or float64) and device, neither the same for every item nor with a row of zeros, and
returns one number; the decorated function takes numpy or torch, checks it, and carries the facts in its docstring.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

from numpy.typing import ArrayLike
from torch import Tensor

from alignlab.metrics.inputs import Rows, as_tensor, blocks, check_k, check_pair, is_same

if TYPE_CHECKING:
    import pandas as pd

P = ParamSpec("P")
INVARIANCES = ("scale", "shift", "permutation", "rotation", "linear")


@dataclass(frozen=True)
class Metric:
    """A registered metric.

    `function` is the public one, `core` the same without checks. `ceiling` is the score of identical representations,
    or the name of the option that it equals. `invariant` names what may be done to either side without changing the
    score: scale (one positive factor), shift (one vector added to all items), permutation (of features), rotation (any
    orthogonal matrix, permutations among them), linear (any invertible matrix). `paired` is False where the score does
    not depend on which item of X belongs to which of Y: no shuffled pairing can be its null. `self_maximal` is False
    where another representation may score higher with X than X itself.
    """

    name: str
    function: Callable[..., float]
    core: Callable[..., Tensor | float]
    family: str
    summary: str
    formula: str
    range: str
    ceiling: float | str
    chance: str
    invariant: tuple[str, ...]
    symmetric: bool
    paired: bool
    self_maximal: bool
    is_distance: bool
    cost: str
    source: str

    @property
    def options(self) -> dict[str, Any]:
        """Names and default values of the options."""
        parameters = list(inspect.signature(self.core).parameters.values())[2:]
        return {p.name: p.default for p in parameters}

    def ceiling_of(self, options: dict[str, Any]) -> float:
        """The score of identical representations, under these options."""
        if isinstance(self.ceiling, str):
            return float({**self.options, **options}[self.ceiling])
        return self.ceiling


REGISTRY: dict[str, Metric] = {}


def metric(
    *,
    formula: str,
    range: str,
    chance: str,
    cost: str,
    source: str,
    invariant: Sequence[str] = (),
    ceiling: float | str = 1.0,
    symmetric: bool = True,
    paired: bool = True,
    self_maximal: bool = True,
) -> Callable[
    [Callable[Concatenate[Tensor, Tensor, P], Tensor | float]],
    Callable[Concatenate[Tensor | ArrayLike, Tensor | ArrayLike, P], float],
]:
    """Register a function `(X [N, Dx], Y [N, Dy], **options) -> number` as a metric of that name.

    The facts are those of `Metric`; they are written into the docstring, which needs a summary line of its own. A function
    with an option `distance` is a distance offered as a score too: `distance=True` gives the distance itself. Raises
    ValueError for a name that is taken and for an unknown invariance.
    """
    unknown = set(invariant) - set(INVARIANCES)
    if unknown:
        raise ValueError(f"invariant must be among {', '.join(INVARIANCES)}, got {', '.join(sorted(unknown))}")

    def register(
        core: Callable[Concatenate[Tensor, Tensor, P], Tensor | float],
    ) -> Callable[Concatenate[Tensor | ArrayLike, Tensor | ArrayLike, P], float]:
        name = core.__name__
        if name in REGISTRY:
            raise ValueError(f"a metric named {name!r} is registered already, in {REGISTRY[name].function.__module__}")
        signature = inspect.signature(core)
        options = list(signature.parameters)[2:]

        @functools.wraps(core)
        def public(X: Tensor | ArrayLike, Y: Tensor | ArrayLike, *args: P.args, **kwargs: P.kwargs) -> float:
            x, y = check_pair(X, Y)
            given = signature.bind(x, y, *args, **kwargs).arguments
            if "k" in options:
                check_k(given.get("k", signature.parameters["k"].default), len(x))
            for label, t, given_as in (("X", x, X), ("Y", y, Y)):
                if is_same(t, as_tensor(given_as, label).dtype):
                    if given.get("distance"):
                        raise ValueError(f"{label} is the same for every item: it has no distance from anything")
                    warnings.warn(f"{label} is the same for every item; its score is 0", stacklevel=2)
                    return 0.0
            check_rows(x, "X")
            check_rows(y, "Y")
            value = float(core(x, y, *args, **kwargs))
            if not math.isfinite(value):
                raise ValueError(
                    f"{name} is not defined for these X and Y (shapes {tuple(x.shape)} and {tuple(y.shape)}): {value}; "
                    "look for features that hardly vary, few items, or values near the largest or least of their dtype"
                )
            return value

        summary, _, rest = inspect.cleandoc(core.__doc__ or "").partition("\n")
        facts = [
            ("Formula", formula),
            ("Range", range),
            ("Chance", chance),
            ("Invariant to", ", ".join(invariant) or "nothing"),
            ("Symmetric", "yes" if symmetric else "no"),
            ("Cost", cost),
            ("Source", source),
        ]
        lines = "\n".join(f"{label}: {text}" for label, text in facts)
        # what help() shows: both take anything array-like, and a plain number comes back
        parameters = [
            p.replace(annotation="ArrayLike" if i < 2 else p.annotation)
            for i, p in enumerate(signature.parameters.values())
        ]
        public.__signature__ = inspect.Signature(parameters, return_annotation="float")  # type: ignore[attr-defined]
        public.__doc__ = f"{summary}\n{rest.rstrip()}\n\n{lines}\n"
        REGISTRY[name] = Metric(
            name=name,
            function=public,
            core=core,
            family=core.__module__.rpartition(".")[2],
            summary=summary.rstrip("."),
            formula=formula,
            range=range,
            ceiling=ceiling,
            chance=chance,
            invariant=tuple(invariant),
            symmetric=symmetric,
            paired=paired,
            self_maximal=self_maximal,
            is_distance="distance" in options,
            cost=cost,
            source=source,
        )
        return public

    return register


def check_rows(x: Rows, name: str) -> None:
    """ValueError where an item's feature is all zeros: it has no direction, and no neighbours."""
    before = 0
    for rows in blocks(x):
        zero = rows.norm(dim=1) == 0
        if zero.any():
            zero &= ~rows.any(1)  # the norm of very small numbers is 0 too
        if zero.any():
            item = before + int(zero.nonzero()[0, 0])
            raise ValueError(f"{name} has a row of zeros (item {item}); leave the item out or extract it again")
        before += len(rows)


def check_name(name: str) -> str:
    """The name itself; ValueError with near names for one that is no metric."""
    if name not in REGISTRY:
        near = difflib.get_close_matches(name, REGISTRY, n=2, cutoff=0.3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(REGISTRY)}"
        raise ValueError(f"unknown metric {name!r}; {hint}")
    return name


def score(name: str, X: Tensor | ArrayLike, Y: Tensor | ArrayLike, **options: Any) -> float:
    """Call the metric of that name, with its options passed on.

    Raises ValueError for an unknown name and for an option that the metric does not have.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(50, 8))
    >>> score("mutual_knn", X, X, k=5)
    1.0
    """
    entry = REGISTRY[check_name(name)]
    unknown = set(options) - set(entry.options)
    if unknown:
        known = ", ".join(entry.options) or "none"
        raise ValueError(f"{name} has no option {', '.join(sorted(unknown))}; its options: {known}")
    return entry.function(X, Y, **options)


def table() -> pd.DataFrame:
    """All metrics and what is known about them, one row each: a DataFrame indexed by name."""
    import pandas as pd

    columns = ("family", "summary", "formula", "range", "chance", "symmetric", "paired", "cost", "source")
    rows = [
        {
            "name": m.name,
            **{c: getattr(m, c) for c in columns},
            "invariant": ", ".join(m.invariant),
            "options": ", ".join(f"{k}={v!r}" for k, v in m.options.items()),
        }
        for m in REGISTRY.values()
    ]
    return pd.DataFrame(rows).set_index("name")
