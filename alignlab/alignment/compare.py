"""Several encoders by several language models: alignments that may stand beside each other, as tables and pictures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from alignlab.alignment.result import Alignment, Best

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

VALUES = tuple(f.name for f in fields(Best) if f.name != "ci95")
RANKED = ("score", "calibrated", "z")  # larger is more alike, and an interval of scores is one of theirs too


@dataclass(frozen=True)
class Standing:
    """One pair's place in a ranking: a value, its interval and the null's mean, all on the value's scale."""

    encoder: str
    value: float
    interval: tuple[float, float] | None
    null_mean: float | None


@dataclass(frozen=True)
class Comparison:
    """Encoders by language models, over the same number of items. Names are in the order of the results.

    `metrics` are those that every result has.
    """

    results: tuple[Alignment, ...]
    metrics: tuple[str, ...]
    encoders: tuple[str, ...]
    llms: tuple[str, ...]
    n: int

    def matrix(self, metric: str, value: str = "score") -> pd.DataFrame:
        """One number a pair, of its best layers: floats, encoders x language models.

        `value` is a field of `Best`: score, calibrated, null_mean, p, z, chance, x_layer, y_layer, held_out and so on. NaN
        for a pair that is not among the results, and where the value is None (p without nulls). Raises ValueError for an
        unknown metric or value.
        """
        self._check(metric, value, VALUES)
        found = {(r.x_name, r.y_name): getattr(r.best(metric), value) for r in self.results}
        rows = [[_number(found.get((encoder, llm))) for llm in self.llms] for encoder in self.encoders]
        return self._frame(rows)

    def intervals(self, metric: str) -> pd.DataFrame:
        """The 95% intervals of the scores: floats, encoders x (language model, low or high).

        `low, high = frame.loc[encoder, llm]`. NaN for a pair that is not among the results or has no interval.
        """
        import pandas as pd

        self._check(metric)
        found = {(r.x_name, r.y_name): r.best(metric).ci95 for r in self.results}
        rows = [
            [bound for llm in self.llms for bound in found.get((encoder, llm)) or (float("nan"), float("nan"))]
            for encoder in self.encoders
        ]
        columns = pd.MultiIndex.from_product([self.llms, ("low", "high")], names=("llm", "bound"))
        return pd.DataFrame(rows, pd.Index(self.encoders, name="encoder"), columns, dtype="float64")

    def ranks(self, metric: str, value: str = "score") -> pd.DataFrame:
        """Each encoder's rank for each language model: encoders x language models, 1 for the most alike.

        Equal values share the better rank; <NA> for a pair that is not among the results. `value` is score, calibrated
        or z.
        """
        self._check(metric, value, RANKED)
        return self.matrix(metric, value).rank(ascending=False, method="min").astype("Int64")

    def to_frame(self) -> pd.DataFrame:
        """One row a pair and metric: encoder, llm, metric, n, what `Best` holds, ci_low, ci_high."""
        import pandas as pd

        rows = []
        for result in self.results:
            for metric in self.metrics:
                best = result.best(metric)
                low, high = best.ci95 or (None, None)
                about = {"encoder": result.x_name, "llm": result.y_name, "metric": metric, "n": result.n}
                rows.append({**about, **{v: getattr(best, v) for v in VALUES}, "ci_low": low, "ci_high": high})
        layers = ("x_layer", "y_layer")
        return pd.DataFrame(rows).astype({v: "float64" for v in (*VALUES, "ci_low", "ci_high") if v not in layers})

    def standings(self, metric: str, llm: str, value: str = "score") -> list[Standing]:
        """The encoders measured with one language model, the most alike first; `value` is score, calibrated or z."""
        self._check(metric, value, RANKED)
        if llm not in self.llms:
            raise ValueError(f"llm must be one of {', '.join(self.llms)}, got {llm!r}")
        placed = [_standing(r, metric, value) for r in self.results if r.y_name == llm]
        return sorted((s for s in placed if s is not None), key=lambda s: -s.value)

    def clustermap(self, metric: str, value: str = "calibrated") -> Figure:
        """The matrix as an annotated heatmap, encoders and language models of like values beside each other.

        A plain heatmap in the order of the results with fewer than two encoders or language models, or a pair missing.
        Returns a matplotlib figure (`.savefig(path)`). Raises ValueError where no pair has the value.
        """
        from alignlab.alignment.figures import clustermap

        matrix = self.matrix(metric, value)
        _check_any(bool(matrix.notna().to_numpy().any()), value)
        return clustermap(matrix, f"{metric}   {value}   N = {self.n}", value)

    def rank_plot(self, metric: str, value: str = "score") -> Figure:
        """Encoders ranked for each language model: value, 95% interval, and the mean of the null.

        A bar at the right joins ranks whose intervals all overlap each other. `value` is score, calibrated or z. Raises
        ValueError where no pair has the value.
        """
        from alignlab.alignment.figures import rank_plot

        panels = {llm: self.standings(metric, llm, value) for llm in self.llms}
        _check_any(any(panels.values()), value)
        return rank_plot(panels, self.encoders, f"{metric}   N = {self.n}", value)

    def _check(self, metric: str, value: str = "score", values: tuple[str, ...] = VALUES) -> None:
        if metric not in self.metrics:
            raise ValueError(f"metric must be one of {', '.join(self.metrics)}, got {metric!r}")
        if value not in values:
            raise ValueError(f"value must be one of {', '.join(values)}, got {value!r}")

    def _frame(self, rows: list[list[float]]) -> pd.DataFrame:
        import pandas as pd

        index, columns = pd.Index(self.encoders, name="encoder"), pd.Index(self.llms, name="llm")
        return pd.DataFrame(rows, index, columns, dtype="float64")


def compare(results: Iterable[Alignment]) -> Comparison:
    """Put alignments of several encoders (x) with several language models (y) side by side.

    Not every encoder needs a result with every language model. Compared are the metrics that all results have. Scores
    depend on the number of items and on a metric's options, so these must be the same in all results.

    Raises ValueError when there are no results, for two of one pair, for different N or options, and when no metric is in
    all of them.

    >>> import dataclasses
    >>> import numpy as np
    >>> from alignlab.alignment import align
    >>> x, y = np.random.default_rng(0).normal(size=(2, 40, 3, 8))
    >>> first = align(x, x + y, ["cka"], nulls=19, resamples=10)
    >>> second = dataclasses.replace(align(y, y[:, ::-1], ["cka"], nulls=19, resamples=10), x_name="other")
    >>> both = compare([first, second])
    >>> both.ranks("cka")["y"].to_dict()
    {'x': 2, 'other': 1}
    """
    if isinstance(results, Alignment):
        raise ValueError(f"results must be several alignments, got one of {results.x_name}; write [result]")
    given = tuple(results)
    if not given:
        raise ValueError("results is empty; give one alignment at least")
    for r in given:
        if not isinstance(r, Alignment):
            raise ValueError(f"results must hold what align returns, got {type(r).__name__}")
    _check_pairs(given)
    _check_items(given)
    metrics = tuple(m for m in given[0].metrics if all(m in r.metrics for r in given))
    if not metrics:
        each = "; ".join(f"{_pair(r)}: {', '.join(r.metrics)}" for r in given)
        raise ValueError(f"results have no metric in common ({each})")
    for metric in metrics:
        _check_params(given, metric)
    return Comparison(
        results=given,
        metrics=metrics,
        encoders=tuple(dict.fromkeys(r.x_name for r in given)),
        llms=tuple(dict.fromkeys(r.y_name for r in given)),
        n=given[0].n,
    )


def _check_pairs(results: tuple[Alignment, ...]) -> None:
    seen = set()
    for r in results:
        if (r.x_name, r.y_name) in seen:
            raise ValueError(f"results has {_pair(r)} twice; leave one out or rename it with dataclasses.replace")
        seen.add((r.x_name, r.y_name))


def _check_items(results: tuple[Alignment, ...]) -> None:
    for r in results:
        if r.n != results[0].n:
            raise ValueError(
                f"results must have one number of items, as scores depend on it: {_pair(results[0])} has "
                f"{results[0].n}, {_pair(r)} has {r.n}"
            )


def _check_params(results: tuple[Alignment, ...], metric: str) -> None:
    expected = results[0].metrics[metric].params
    for r in results:
        params = r.metrics[metric].params
        if params != expected:
            raise ValueError(
                f"results must have {metric} with the same options: {_pair(results[0])} has {_written(expected)}, "
                f"{_pair(r)} has {_written(params)}"
            )


def _check_any(known: bool, value: str) -> None:
    if not known:
        raise ValueError(f"no result has a value for {value!r}; measure with nulls, or take value='score'")


def _written(params: dict[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in params.items()) or "none"


def _pair(result: Alignment) -> str:
    return f"{result.x_name} by {result.y_name}"


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _standing(result: Alignment, metric: str, value: str) -> Standing | None:
    """None where the value is not known. Calibrated scores and z are the score in other units, and so are intervals."""
    best = result.best(metric)
    at = getattr(best, value)
    if at is None:
        return None
    if value == "score":
        zero, unit = 0.0, 1.0
    else:
        zero = _number(best.null_mean)
        unit = result.metrics[metric].ceiling - zero if value == "calibrated" else _number(best.null_std)
    interval = None if best.ci95 is None else ((best.ci95[0] - zero) / unit, (best.ci95[1] - zero) / unit)
    null_mean = None if best.null_mean is None else (best.null_mean - zero) / unit
    return Standing(encoder=result.x_name, value=at, interval=interval, null_mean=null_mean)
