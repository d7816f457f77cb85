"""What an alignment found: scores of every layer pair, the best of them, and what chance would have given."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from alignlab.features import Features

SCHEMA = "alignlab.alignment/1"
ARRAYS = ("matrix", "chance", "null_max", "subset_max", "held_out", "held_out_null")


@dataclass(frozen=True)
class Best:
    """The best of all layer pairs, judged against the same maximum over shuffled pairings.

    `chance` is what unrelated items give this pair of layers alone, on average; None for a metric without a closed form
    when there are no nulls. `calibrated` is 0 at the null's mean and 1 at the score of identical representations.
    `pair_p`, of CKA, is the closed-form p-value of this pair of layers as if no other had been tried, for up to 5,000
    items (`metrics.cka_test` takes more). `held_out` is the score of a pair chosen on the other half of the items,
    `held_out_null` the same with its items shuffled.

    `p`, `z`, `null_mean`, `null_std`, `calibrated` and `pair_p` are None without nulls, `ci95` without resamples,
    `held_out` without splits, and all of them where one model has no layer that varies.
    """

    score: float
    x_layer: int
    y_layer: int
    last_layer_score: float
    chance: float | None
    p: float | None
    z: float | None
    null_mean: float | None
    null_std: float | None
    ci95: tuple[float, float] | None
    calibrated: float | None
    held_out: float | None
    held_out_null: float | None
    pair_p: float | None


@dataclass(frozen=True)
class MetricResult:
    """One metric: its scores `[L_x, L_y]`, and the best score of each shuffled pairing and of each subset.

    `chance` `[L_x, L_y]` is nan where it is not known. `measured` lists the layers of both sides that vary between items;
    the others' scores are 0, and never the best.
    """

    params: dict[str, Any]
    matrix: np.ndarray
    chance: np.ndarray
    null_max: np.ndarray
    subset_max: np.ndarray
    ceiling: float
    measured: tuple[list[int], list[int]]
    held_out: np.ndarray = field(default_factory=lambda: np.empty(0))
    held_out_null: np.ndarray = field(default_factory=lambda: np.empty(0))
    pair_p: float | None = None

    def best(self) -> Best:
        x_layer, y_layer = self._place()
        score, chance = float(self.matrix[x_layer, y_layer]), float(self.chance[x_layer, y_layer])
        p = z = null_mean = null_std = calibrated = ci95 = None
        nulls = self.null_max[np.isfinite(self.null_max)]
        if len(nulls):
            null_mean, null_std = float(nulls.mean()), float(nulls.std())
            p = (1 + int((nulls >= score - self._rounding(score)).sum())) / (1 + len(nulls))
            z = (score - null_mean) / null_std if null_std > self._rounding(score) else None
            room = self.ceiling - null_mean
            calibrated = (score - null_mean) / room if room > 0 else None
        subsets = self.subset_max[np.isfinite(self.subset_max)]
        if len(subsets) > 1:
            # Half of the items, drawn without replacement, vary about their mean as all of the items vary about the
            # truth (the delete-half jackknife); their mean itself is biased, as fewer items have fewer neighbours.
            low, high = np.quantile(subsets - subsets.mean(), [0.025, 0.975])
            ci95 = (float(score + low), min(float(score + high), max(self.ceiling, score)))
        return Best(
            score=score,
            x_layer=x_layer,
            y_layer=y_layer,
            last_layer_score=float(self.matrix[-1, -1]),
            chance=None if np.isnan(chance) else chance,
            p=p,
            z=z,
            null_mean=null_mean,
            null_std=null_std,
            ci95=ci95,
            calibrated=calibrated,
            held_out=_mean(self.held_out),
            held_out_null=_mean(self.held_out_null),
            pair_p=self.pair_p,
        )

    def _place(self) -> tuple[int, int]:
        """The best pair of layers that vary; the first of all where there is none."""
        rows, columns = self.measured
        if not rows or not columns:
            return 0, 0
        inner = self.matrix[np.ix_(rows, columns)]
        i, j = np.unravel_index(int(inner.argmax()), inner.shape)
        return rows[int(i)], columns[int(j)]

    @staticmethod
    def _rounding(score: float) -> float:
        """A shuffle that does as well but for float32's rounding has done as well."""
        return 1e-6 * abs(score)


@dataclass(frozen=True)
class Alignment:
    """The result of `align`. Rows are layers of x (the encoder), columns layers of y (the language model)."""

    x_name: str
    y_name: str
    n: int
    seed: int
    metrics: dict[str, MetricResult]
    notes: tuple[str, ...] = field(default=())

    def _of(self, metric: str) -> MetricResult:
        if metric not in self.metrics:
            raise ValueError(f"metric must be one of {', '.join(self.metrics)}, got {metric!r}")
        return self.metrics[metric]

    def best(self, metric: str) -> Best:
        """The best layer pair by a metric. Raises ValueError for a metric that was not asked for."""
        return self._of(metric).best()

    def matrix(self, metric: str) -> np.ndarray:
        """Scores `[L_x, L_y]`."""
        return self._of(metric).matrix

    def to_frame(self) -> pd.DataFrame:
        """One row a metric and layer pair: metric, x_layer, y_layer, score, chance."""
        import pandas as pd

        frames = []
        for name, result in self.metrics.items():
            x_layer, y_layer = np.indices(result.matrix.shape)
            columns: dict[str, Any] = {
                "metric": name,
                "x_layer": x_layer.ravel(),
                "y_layer": y_layer.ravel(),
                "score": result.matrix.ravel(),
                "chance": result.chance.ravel(),
            }
            frames.append(pd.DataFrame(columns))
        return pd.concat(frames, ignore_index=True)

    def heatmap(self, metric: str) -> Figure:
        """Layers by layers, the best cell marked; a matplotlib figure (`.savefig(path)`)."""
        from alignlab.alignment.figures import heatmap

        return heatmap(self, metric)

    def profile(self, metric: str) -> Figure:
        """Score along depth: each layer's best and mean over the other model's layers; a matplotlib figure."""
        from alignlab.alignment.figures import profile

        return profile(self, metric)

    def save(self, path: str | Path) -> None:
        """Write everything as JSON, all at once or not at all."""
        target = Path(path)
        described = {
            "schema": SCHEMA,
            "x_name": self.x_name,
            "y_name": self.y_name,
            "n": self.n,
            "seed": self.seed,
            "notes": list(self.notes),
            "metrics": {
                name: {
                    "params": result.params,
                    "best": asdict(result.best()),
                    "ceiling": result.ceiling,
                    "measured": result.measured,
                    "pair_p": result.pair_p,
                    **{k: _plain(getattr(result, k)) for k in ARRAYS},
                }
                for name, result in self.metrics.items()
            },
        }
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(f".{target.name}.{os.getpid()}")
        unfinished.write_text(json.dumps(described))
        os.replace(unfinished, target)

    @classmethod
    def load(cls, path: str | Path) -> Alignment:
        """Read what `save` wrote. Raises ValueError for a file that is something else."""
        try:
            saved = json.loads(Path(path).read_text())
            if saved["schema"] != SCHEMA:
                raise ValueError(f"its schema is {saved['schema']!r}, expected {SCHEMA!r}")
            metrics = {
                name: MetricResult(
                    params=m["params"],
                    ceiling=float(m["ceiling"]),
                    measured=(list(m["measured"][0]), list(m["measured"][1])),
                    pair_p=m["pair_p"],
                    **{k: np.asarray(m[k], dtype=np.float64) for k in ARRAYS},  # None becomes nan
                )
                for name, m in saved["metrics"].items()
            }
            about = {k: saved[k] for k in ("x_name", "y_name", "n", "seed")}
            return cls(**about, metrics=metrics, notes=tuple(saved["notes"]))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ValueError(f"{path} is no saved alignment: {error}") from error


def plain_pair(x: Features, y: Features, result: Alignment, metric: str) -> dict[str, Any]:
    """What `result` says by one metric of an encoder's features `x` and a language model's `y`, as JSON."""
    best = result.best(metric)
    return {
        "encoder": x.name,
        "checkpoint": x.checkpoint,
        "pool": x.pool,
        "llm": y.name,
        "llm_checkpoint": y.checkpoint,
        "llm_pool": y.pool,
        "metric": metric,
        "params": result.metrics[metric].params,
        "score": best.score,
        "encoder_layer": best.x_layer,
        "llm_layer": best.y_layer,
        "last_layer_score": best.last_layer_score,
        "ci95": list(best.ci95) if best.ci95 else None,
        "chance": best.chance,
        "null_mean": best.null_mean,
        "null_std": best.null_std,
        "z": best.z,
        "p": best.p,
        "calibrated": best.calibrated,
        "pair_p": best.pair_p,
        "held_out": best.held_out,
        "held_out_null": best.held_out_null,
        "matrix": result.matrix(metric).tolist(),
    }


def _mean(values: np.ndarray) -> float | None:
    """Of what could be measured."""
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else None


def _plain(array: np.ndarray) -> Any:
    """Lists for JSON, which knows no nan."""
    flat = [None if np.isnan(value) else float(value) for value in array.ravel()]
    return np.array(flat, dtype=object).reshape(array.shape).tolist()
