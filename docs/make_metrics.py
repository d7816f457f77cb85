"""Write docs/metrics.md, the table of all metrics, and its figure: `python docs/make_metrics.py [--text-only]`."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from alignlab import metrics
from alignlab.metrics.registry import REGISTRY, Metric

HERE = Path(__file__).parent
FAMILIES = {
    "neighbours": "Neighbourhoods: are the same items next to one another?",
    "kernels": "Kernels: are the similarities between all items the same?",
    "rsa": "Dissimilarities: are all pairs of items ordered alike?",
    "cca": "Canonical correlations: which directions can be mapped onto each other?",
    "procrustes": "Shapes: how well does one cloud of items lie on the other?",
    "matching": "Features: which of them correspond?",
    "regression": "Regression: can one be predicted from the other?",
    "statistics": "Statistics of each representation, which know nothing of the pairing of items",
    "topology": "Topology: are the clouds of items connected alike?",
}
ITEMS, WIDTH, STEPS, SEEDS, SHUFFLES = 256, 32, 11, 3, 10

HEAD = """# The metrics

*Made by `python docs/make_metrics.py` from the metrics' docstrings; `al.metrics.table()` is the same as a DataFrame.*

Every metric is a function `(X [N, Dx], Y [N, Dy], **options) -> float` on numpy or torch, and a name for
`al.metrics.score(name, X, Y)`, `al.align(x, y, metrics=[name])` and `alignlab measure --metric name`. Larger means more
alike; identical representations score the upper end of the range (`cycle_knn` and `linear_regression` may stay below it;
`unbiased_cka` and `cknna` do by what their `eps` takes). What the field measures as a distance is offered as a score too: its
docstring says how one comes from the other, and `distance=True` gives the distance itself, where smaller is more alike.

**Chance** is what unrelated representations score. Only `unbiased_cka` and the correlations of `rsa` have it at 0 whatever N
and D are, so `align` gives every score together with a null: the same maximum over layer pairs for shuffled
pairings. `calibrated` is 0 at that null's mean and 1 for identical representations.

**Invariant to** names what may be done to either side alone: *scale*, one positive factor; *shift*, one vector added to all
items; *permutation* of the features; *rotation*, any orthogonal matrix; *linear*, any invertible matrix. What is not
named changes the score; the tests hold every metric to both.

![all metrics on pairs whose similarity runs from 0 to 1](metrics.png)

The figure: X has {items} items and {width} features with a spectrum that falls as 1/k, Y = s X + sqrt(1 - s^2) X' with X' an
independent copy of X, rows of length 1, mean of {seeds} draws. Blue: Y as it is. Orange: Y rotated at random. Grey:
mean and two standard deviations for shuffled items. Blue runs from chance to the upper end; where orange
leaves blue the metric asks for more than the same geometry (and so does any metric after `prepare`'s clamping, which is done
feature by feature). Few run straight, so no score is a share of anything, and scores of two metrics do not compare. `magnitude`,
`concentricity`, `uniformity` and `imd` do not know which item is which: shuffling leaves them where they were.
"""

TAIL = """
## Where the definitions come from

`cycle_knn`, `mutual_knn`, `lcs_knn`, `edit_distance_knn`, `cka`, `unbiased_cka`, `cknna` and `svcca` are those of the code of
the Platonic Representation Hypothesis, same names, same numbers on the same prepared features, `svcca` excepted: that code draws
random numbers and iterates, ours is the exact value that it approaches. `prepare` clamps at the exact 0.95 quantile over the
whole tensor, as that code does when told to be exact.

The rest of ReSi's representational measures are here too: where its code departs from the definition it names (second-order
cosine, RSM norm difference, PWCCA, linear regression in sample), the docstring says so. Its geometry score, which its paper does
not include, is not.

## One of your own

```python
import torch
import alignlab as al


@al.metrics.metric(
    formula="correlation of |x_i - mean x| and |y_i - mean y|",
    range="-1..1",
    chance="0",
    invariant=("scale", "shift", "permutation", "rotation"),
    cost="N (Dx + Dy)",
    source="this page",
)
def eccentricity(X: torch.Tensor, Y: torch.Tensor) -> torch.Tensor:
    \"\"\"Whether the same items lie far out in both representations.\"\"\"
    far = [(z - z.mean(0)).norm(dim=1) for z in (X, Y)]
    return torch.corrcoef(torch.stack(far))[0, 1]


al.metrics.check_metric("eccentricity")
```

That registers it: `al.align(x, y, metrics=["eccentricity"])` gives it nulls and intervals. `check_metric` runs what our own
metrics must pass (claimed invariances hold and unclaimed ones do not, symmetry, dtypes, bad input, type-I error) and raises an
AssertionError that says what does not hold.
"""


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def row(m: Metric) -> str:
    options = ", ".join(f"`{name}={value!r}`" for name, value in m.options.items())
    cells = (
        f"`{m.name}`" + (f"<br>{options}" if options else ""),
        f"{cell(m.summary)}.<br>{cell(m.formula)}",
        m.range + ("" if m.symmetric else "<br>not symmetric") + ("" if m.paired else "<br>unpaired"),
        cell(m.chance),
        ", ".join(m.invariant) or "nothing",
        cell(m.cost),
        cell(m.source),
    )
    return "| " + " | ".join(cells) + " |"


def text() -> str:
    parts = [HEAD.format(items=ITEMS, width=WIDTH, seeds=SEEDS)]
    for family, title in FAMILIES.items():
        members = [m for m in REGISTRY.values() if m.family == family]
        parts.append(f"\n## {title}\n")
        parts.append("| metric | what it says, formula | range | chance | invariant to | cost | source |")
        parts.append("|---|---|---|---|---|---|---|")
        parts.extend(row(m) for m in members)
    return "\n".join(parts) + "\n" + TAIL


def pair(similarity: float, rng: np.random.Generator, rotate: bool) -> tuple[np.ndarray, np.ndarray]:
    scale = 1 / np.sqrt(np.arange(1, WIDTH + 1))
    mix = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0]
    x, other = (rng.normal(size=(ITEMS, WIDTH)) * scale @ mix for _ in "xy")
    y = similarity * x + np.sqrt(1 - similarity**2) * other
    if rotate:
        y = y @ np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0]
    return metrics.prepare(x, q=1), metrics.prepare(y, q=1)


def figure(path: Path) -> None:
    from matplotlib.figure import Figure

    names = [m.name for family in FAMILIES for m in REGISTRY.values() if m.family == family]
    columns = 6
    rows = -(-len(names) // columns)
    drawing = Figure(figsize=(2.1 * columns, 1.75 * rows), layout="constrained")
    grid = drawing.subplots(rows, columns, sharex=True).ravel()
    steps = np.linspace(0, 1, STEPS)
    for axes, name in zip(grid, names, strict=False):
        for rotate, colour in ((False, "#2a6f97"), (True, "#e07a2f")):
            curve = [
                np.mean([metrics.score(name, *pair(s, np.random.default_rng(seed), rotate)) for seed in range(SEEDS)])
                for s in steps
            ]
            axes.plot(steps, curve, color=colour, linewidth=1.4, linestyle="-" if not rotate else (0, (3, 1.5)))
        rng = np.random.default_rng(99)
        x, y = pair(1.0, rng, rotate=False)
        null = [metrics.score(name, x, y[rng.permutation(ITEMS)]) for _ in range(SHUFFLES)]
        middle, spread = np.mean(null), 2 * np.std(null)
        axes.axhspan(middle - spread, middle + spread, color="0.8", zorder=0)
        axes.axhline(middle, color="0.55", linewidth=0.8, zorder=0)
        axes.set_title(name, fontsize=8)
        axes.tick_params(labelsize=6)
        axes.set_xlim(0, 1)
    for axes in grid[len(names) :]:
        axes.set_axis_off()
    drawing.supxlabel("s, the share of Y that is X", fontsize=9)
    drawing.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text-only", action="store_true", help="leave the figure as it is")
    arguments = parser.parse_args()
    (HERE / "metrics.md").write_text(text())
    if not arguments.text_only:
        figure(HERE / "metrics.png")


if __name__ == "__main__":
    main()
