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

CEILING = 1.0  # of every metric so far: the score of a representation against itself
SCHEMA = "alignlab.alignment/1"


@dataclass(frozen=True)
class Best:
    """The best of all layer pairs, judged against the same maximum over shuffled pairings.

    `p`, `z`, `null_mean`, `null_std` and `calibrated` are None without nulls, `ci95` without resamples.
    """

    score: float
    x_layer: int
    y_layer: int
    last_layer_score: float
    chance: float
    p: float | None
    z: float | None
    null_mean: float | None
    null_std: float | None
    ci95: tuple[float, float] | None
    calibrated: float | None


@dataclass(frozen=True)
class MetricResult:
    """One metric: its scores `[L_x, L_y]`, and the best score of each shuffled pairing and of each subset."""

    params: dict[str, Any]
    matrix: np.ndarray
    chance: np.ndarray
    null_max: np.ndarray
    subset_max: np.ndarray

    def best(self) -> Best:
        x_layer, y_layer = np.unravel_index(int(self.matrix.argmax()), self.matrix.shape)
        score = float(self.matrix[x_layer, y_layer])
        p = z = null_mean = null_std = calibrated = ci95 = None
        if len(self.null_max):
            null_mean, null_std = float(self.null_max.mean()), float(self.null_max.std())
            p = (1 + int((self.null_max >= score).sum())) / (1 + len(self.null_max))
            z = (score - null_mean) / null_std if null_std > 0 else None
            calibrated = (score - null_mean) / (CEILING - null_mean) if null_mean < CEILING else None
        if len(self.subset_max):
            # Half of the items, drawn without replacement, vary about their mean as all of the items vary about the
            # truth (the delete-half jackknife); their mean itself is biased, as fewer items have fewer neighbours.
            low, high = np.quantile(self.subset_max - self.subset_max.mean(), [0.025, 0.975])
            ci95 = (float(score + low), min(float(score + high), CEILING))
        return Best(
            score=score,
            x_layer=int(x_layer),
            y_layer=int(y_layer),
            last_layer_score=float(self.matrix[-1, -1]),
            chance=float(self.chance[x_layer, y_layer]),
            p=p,
            z=z,
            null_mean=null_mean,
            null_std=null_std,
            ci95=ci95,
            calibrated=calibrated,
        )


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
            columns = {
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
                    **{k: getattr(result, k).tolist() for k in ("matrix", "chance", "null_max", "subset_max")},
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
            arrays = ("matrix", "chance", "null_max", "subset_max")
            metrics = {
                name: MetricResult(params=m["params"], **{k: np.asarray(m[k], dtype=np.float64) for k in arrays})
                for name, m in saved["metrics"].items()
            }
            about = {k: saved[k] for k in ("x_name", "y_name", "n", "seed")}
            return cls(**about, metrics=metrics, notes=tuple(saved["notes"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no saved alignment: {error}") from error
