"""What is linear in the layers of a language model and of a vision encoder: each other's features, and what items show.

A ridge regression from caption features to image features, and back, says how much of one is a linear function of the other
on items it has not seen (`regress`); a logistic probe says whether a property of the scene or the class of a photograph can
be read off a layer, beside what the same probe learns by heart (`classify`).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alignlab.features.store import Layers
from alignlab.metrics.inputs import as_tensor, is_same
from alignlab.probing.labels import Label, control
from alignlab.probing.ridge import RANKS, Predicted, cross_validate, folds_of
from alignlab.progress import progress

RESAMPLES = 1000
STRENGTH = 100.0  # of a logistic probe: 1 / its penalty, for standardised features scaled to a mean square length of 1


def split(layers: Layers | np.ndarray | list[np.ndarray]) -> list[Tensor]:
    """Features of L layers, as `extract` gives them, as a list of `[N, D_l]`."""
    if isinstance(layers, list):
        return [as_tensor(layer, "layers") for layer in layers]
    return list(as_tensor(layers, "layers").unbind(1))


def draws_of(n: int, seed: int, resamples: int = RESAMPLES) -> Tensor:
    """Bootstrap samples of n items as how often each is drawn, `[resamples, n]`."""
    rng = np.random.default_rng([seed, n])
    return torch.from_numpy(rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64))


def interval(samples: Tensor) -> tuple[Tensor, Tensor]:
    """The middle 95% of the last axis."""
    ends = samples.quantile(torch.tensor([0.025, 0.975], dtype=samples.dtype), dim=-1)
    return ends[0], ends[1]


# --- features from features ---


@dataclass(frozen=True)
class Regression:
    """Predictions of one side's layers from the other's, with `nulls` the same for shuffled pairings.

    `null_r2` is `[nulls, Lx, Ly]`, `null_recall` `[nulls, Lx, Ly, ranks]`.
    """

    found: Predicted
    null_r2: Tensor
    null_recall: Tensor

    def curve(self, x: int | None, y: int | None, seed: int, judged: bool = True) -> dict[str, Any]:
        """Along the layers of the side that is None, as plain values: R2 and retrieval with 95% intervals over items
        (a bootstrap; the regressions and the gallery stay as they are), and the null's mean, maximum and p.

        `p` of a layer is of it alone, `best_p` of the best layer, whose null is the best layer of each shuffled pairing. Both
        are None unless `judged`, as where the other side's layer was chosen for its R2 on these items.
        """
        at = (slice(None), y) if x is None else (x, slice(None))
        shuffles = (slice(None), *at)
        missed, hits = self.found.missed[at], self.found.hits[at]  # [L, N], [L, ranks, N]
        spread = self.found.spread[slice(None) if y is None else y].expand_as(missed)
        known = spread.sum(1) > 0
        weights = draws_of(missed.shape[1], seed)  # [R, N]
        r2 = self.found.r2[at]
        low, high = interval(1 - (missed @ weights.T) / (spread @ weights.T).clamp(min=1e-300))
        null = self.null_r2[shuffles].nan_to_num()  # [nulls, L]
        curve: dict[str, Any] = {
            "r2": _numbers(r2, known),
            "ci95": _pairs(low, high, known),
            **_null(r2, null, known, judged),
            "recall": {},
        }
        n = missed.shape[1]
        for place, k in enumerate(RANKS):
            mean = hits[:, place].mean(1)
            low, high = interval(hits[:, place] @ weights.T / n)
            shuffled = self.null_recall[shuffles][..., place]
            curve["recall"][str(k)] = {
                "value": _numbers(mean, known),
                "ci95": _pairs(low, high, known),
                "chance": min(k / n, 1.0),
                **_null(mean, shuffled, known, judged),
            }
        return curve


def _null(values: Tensor, null: Tensor, known: Tensor, judged: bool) -> dict[str, Any]:
    if not len(null):
        return {"null_mean": None, "null_max": None, "p": None, "best_p": None}
    at_least = (null >= values.nan_to_num(-math.inf)).sum(0)
    best = int((null[:, known].max(1).values >= values[known].max()).sum()) if known.any() else len(null)
    return {
        "null_mean": _numbers(null.mean(0), known),
        "null_max": _numbers(null.max(0).values, known),
        "p": _numbers((1 + at_least) / (1 + len(null)), known) if judged else None,
        "best_p": (1 + best) / (1 + len(null)) if judged else None,
    }


def _numbers(values: Tensor, known: Tensor) -> list[float | None]:
    return [round(float(v), 6) if k else None for v, k in zip(values, known, strict=True)]


def _pairs(low: Tensor, high: Tensor, known: Tensor) -> list[list[float] | None]:
    ends = zip(low.tolist(), high.tolist(), known.tolist(), strict=True)
    return [[round(a, 6), round(b, 6)] if k else None for a, b, k in ends]


def regress(
    xs: Sequence[Tensor], ys: Sequence[Tensor], *, folds: int = 5, nulls: int = 0, seed: int = 0, what: str = "regress"
) -> Regression:
    """Ridge regressions from every layer of `xs` to every layer of `ys`, `[N, D]` each, of the same items.

    Both sides are standardised, and the penalty chosen, within each fold's training items; every item is predicted once,
    by a regression that has not seen it. R2 is over all features of a layer, each with variance 1, so that a few large ones
    do not rule; it is 0 for a prediction that knows nothing and below for one that has learnt noise. `nulls` times the same
    is done with items paired at random. Raises ValueError for folds outside 2..N / 2 and for features that are not finite.
    """
    n = len(xs[0])
    fold = folds_of(n, folds, seed)
    for name, layers in (("xs", xs), ("ys", ys)):
        for number, layer in enumerate(layers):
            if len(layer) != n:
                raise ValueError(f"all layers must have {n} items, but {name}[{number}] has {len(layer)}")
            if not bool(layer.isfinite().all()):
                raise ValueError(f"layer {number} of {name} holds nan or inf; extract it again, in float32")
    generator = torch.Generator().manual_seed(seed + 1)  # the folds are drawn from `seed` itself
    orders = [torch.randperm(n, generator=generator) for _ in range(nulls)]
    with progress(what, folds * (1 + nulls) * len(ys), "regressions") as tick:
        done = 0

        def one() -> None:
            nonlocal done
            done += 1
            tick(done)

        every = list(cross_validate(xs, ys, fold, orders=orders, tick=one))
    found, shuffled = every[0], every[1:]
    empty = (0, len(xs), len(ys))
    return Regression(
        found,
        torch.stack([one.r2 for one in shuffled]) if shuffled else torch.zeros(*empty),
        torch.stack([one.hits.mean(3) for one in shuffled]) if shuffled else torch.zeros(*empty, len(RANKS)),
    )


# --- labels from features ---


@dataclass(frozen=True)
class Probed:
    """Logistic probes of one label on every layer of one model, out of fold: `right` and `control_right` `[L, m]`, the latter
    a mean over control tasks. `majority` is the share of the largest class, `shared` that of items whose type another item
    has too: of the others nothing can be learnt by heart."""

    label: str
    classes: int
    majority: float
    control_majority: float
    shared: float
    right: Tensor
    control_right: Tensor

    def plain(self, seed: int) -> dict[str, Any]:
        """Accuracy, the control's, and selectivity (accuracy - control accuracy) of each layer with 95% intervals over items;
        the latter two None without control tasks."""
        weights = draws_of(self.right.shape[1], seed) / self.right.shape[1]  # [R, m]
        known = torch.ones(len(self.right), dtype=torch.bool)
        curves = {"accuracy": self.right, "control": self.control_right, "selectivity": self.right - self.control_right}
        return {
            name: {"value": _numbers(x.mean(1), known), "ci95": _pairs(*interval(x @ weights.T), known)}
            if bool(x.isfinite().all())
            else None
            for name, x in curves.items()
        }


def probe(width: int, seed: int = 0) -> Any:
    """The logistic probe, a scikit-learn pipeline: standardise, then multinomial logistic regression.

    Its penalty is fixed, and alike for features of every width: nothing is chosen, so that nothing can leak, and the
    control task is given the same probe.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=STRENGTH / width, max_iter=1000, random_state=seed))


def classify(
    layers: Sequence[Tensor], label: Label, *, folds: int = 5, controls: int = 3, seed: int = 0, what: str = "probe"
) -> tuple[Probed, list[str]]:
    """Probe every layer, `[N, D]` each, for a label; and what was left out.

    Folds are stratified by class, and the control tasks (`labels.control`, drawn `controls` times) have the same ones.
    Raises ValueError for a label with fewer than two classes of `folds` items.
    """
    from sklearn.model_selection import StratifiedKFold

    if folds < 2:
        raise ValueError(f"folds must be 2 or more, got {folds}")
    items, values, types, notes = label.usable(folds)
    if len(np.unique(np.stack([values, types]), axis=1).T) == len(np.unique(types)) == len(np.unique(values)):
        # A random answer by type is the label itself under other names.
        controls = 0
        notes.append(f"label {label.name}: every class is one type of item, so that there is no control task")
    rng = np.random.default_rng(seed)
    tasks = [values, *(control(values, types, rng) for _ in range(controls))]
    parts = list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(values, values))
    right = torch.zeros(len(tasks), len(layers), len(items), dtype=torch.float64)
    with progress(what, len(layers), "layers") as tick:
        for number, layer in enumerate(layers):
            features = layer[torch.from_numpy(items)].float().cpu().numpy()  # [m, D]
            for task, answers in enumerate(tasks):
                right[task, number] = torch.from_numpy(_out_of_fold(features, answers, parts, seed))
            tick(number + 1)
    sizes = np.bincount(types)
    majorities = [np.bincount(answers).max() / len(answers) for answers in tasks]
    return (
        Probed(
            label=label.name,
            classes=len(np.unique(values)),
            majority=float(majorities[0]),
            control_majority=float(np.mean(majorities[1:])) if controls else math.nan,
            shared=float((sizes[types] > 1).mean()),
            right=right[0],
            control_right=right[1:].mean(0) if controls else torch.full_like(right[0], math.nan),
        ),
        notes,
    )


def _out_of_fold(features: np.ndarray, answers: np.ndarray, parts: list[Any], seed: int) -> np.ndarray:
    """Whether each item's answer is found by the probe that has not seen it, `[m]` of 0 and 1."""
    from sklearn.exceptions import ConvergenceWarning

    right = np.zeros(len(answers))
    for train, test in parts:
        if len(np.unique(answers[train])) == 1:  # of a control task whose types are few
            right[test] = answers[test] == answers[train][0]
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a probe at 1,000 steps is a probe
            fitted = probe(features.shape[1], seed).fit(features[train], answers[train])
        right[test] = fitted.predict(features[test]) == answers[test]
    return right


def constant(layers: Sequence[Tensor]) -> list[int]:
    """The layers that are the same for every item, such as MAE's [CLS] before the first block."""
    return [number for number, layer in enumerate(layers) if is_same(layer)]
