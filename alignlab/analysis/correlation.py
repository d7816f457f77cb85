"""Does alignment predict restoration? The correlation of alignment scores with what LM4LV restores, over `points`.

Points of one encoder are not independent: whatever makes a deeper layer restore better may align it better as well. So
each correlation is given thrice: over all points as if they were independent; within encoders (every encoder's mean taken
off, points permuted within encoders only); and over encoders (their means; and all points, with whole encoders permuted).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from alignlab.analysis.points import Point
from alignlab.models import variant
from alignlab.restoration.coordinates import POSITION

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = ("spearman", "pearson")
LEAST = 3  # points; two always lie on a line
FEW = 5  # points; fewer conclude nothing
EXACT = 40_320  # arrangements that are all tried (8!); of more, so many are drawn
DRAWS = 9_999
RESAMPLES = 2_000


# --- statistics ---


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, equal values sharing their mean rank; along the last dimension."""
    from scipy.stats import rankdata

    found: np.ndarray = rankdata(values, axis=-1)
    return found


def correlate(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's r along the last dimension, `[..., n]` twice -> `[...]`; nan where one does not vary."""
    a, b = (v - v.mean(-1, keepdims=True) for v in (np.asarray(x, np.float64), np.asarray(y, np.float64)))
    size = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    # What is left of equal numbers after their mean is rounding.
    noise = 1e-12 * np.sqrt((np.asarray(x) ** 2).sum(-1) * (np.asarray(y) ** 2).sum(-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        found: np.ndarray = np.where(size > noise, (a * b).sum(-1) / size, np.nan)
    return found


def _centred(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """`[..., n]` minus the mean of its group; 0 where what is left is rounding."""
    out = np.array(values, dtype=np.float64)
    for group in np.unique(groups):
        here = groups == group
        out[..., here] -= out[..., here].mean(-1, keepdims=True)
    return np.where(np.abs(out) > 1e-12 * np.abs(values).max(-1, keepdims=True), out, 0.0)


@dataclass(frozen=True)
class Test:
    """A correlation and its two-sided p-value over permutations: `least` is the smallest that there can be, `exact` says that
    all `arrangements` were tried. `n` counts what is permuted: points, or encoders. p is None where nothing can be
    permuted, r where one side does not vary.
    """

    __test__ = False  # for pytest, by its name

    r: float | None
    p: float | None
    n: int
    arrangements: int
    exact: bool
    least: float
    ci95: tuple[float, float] | None = None


def permutation_test(
    x: np.ndarray,
    y: np.ndarray,
    statistic: Callable[[np.ndarray, np.ndarray], np.ndarray],
    blocks: Sequence[np.ndarray],
    whole: bool = False,
    seed: int = 0,
) -> Test:
    """Is the statistic of x and y, `[n]` each, extreme among those of permuted x? It works along the last dimension.

    The two-sided p is twice the smaller tail, so that it is 2 over the number of arrangements at least. `blocks` are the
    points' indices in groups: points change places within them, or, `whole`, the groups with one another (they must then be
    of one length, and in the same order within). All arrangements up to 40,320, else 9,999 drawn and the one that is.
    """
    observed = float(statistic(x, y))
    total = math.factorial(len(blocks)) if whole else math.prod(math.factorial(len(block)) for block in blocks)
    exact = total <= EXACT
    count = len(blocks) if whole else sum(map(len, blocks))
    if not math.isfinite(observed) or total < 2:
        return Test(observed if math.isfinite(observed) else None, None, count, total, exact, 1.0)
    orders = _all(blocks, whole, len(x)) if exact else _drawn(blocks, whole, len(x), seed)
    values = statistic(x[orders], np.broadcast_to(y, orders.shape))
    if not exact:  # the one that is counts among those that were drawn
        values = np.append(values, observed)
    tails = [float((values >= observed - 1e-9).mean()), float((values <= observed + 1e-9).mean())]
    ends = [float((values >= np.nanmax(values) - 1e-9).mean()), float((values <= np.nanmin(values) + 1e-9).mean())]
    return Test(observed, min(1.0, 2 * min(tails)), count, total, exact, min(1.0, 2 * min(ends)))


def _all(blocks: Sequence[np.ndarray], whole: bool, n: int) -> np.ndarray:
    """Every arrangement, `[arrangements, n]`."""
    orders = []
    if whole:
        for arrangement in itertools.permutations(range(len(blocks))):
            orders.append(_places(blocks, [blocks[i] for i in arrangement], n))
    else:
        for parts in itertools.product(*(itertools.permutations(block) for block in blocks)):
            orders.append(_places(blocks, [np.array(part) for part in parts], n))
    return np.stack(orders)


def _drawn(blocks: Sequence[np.ndarray], whole: bool, n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    orders = []
    for _ in range(DRAWS):
        if whole:
            orders.append(_places(blocks, [blocks[i] for i in rng.permutation(len(blocks))], n))
        else:
            orders.append(_places(blocks, [rng.permutation(block) for block in blocks], n))
    return np.stack(orders)


def _places(blocks: Sequence[np.ndarray], parts: Sequence[np.ndarray], n: int) -> np.ndarray:
    order = np.arange(n)
    for block, part in zip(blocks, parts, strict=True):
        order[block] = part
    return order


def bootstrap(
    x: np.ndarray,
    y: np.ndarray,
    statistic: Callable[[np.ndarray, np.ndarray], np.ndarray],
    units: Sequence[np.ndarray],
    seed: int = 0,
) -> tuple[float, float] | None:
    """The 2.5% and 97.5% quantiles of the statistic over samples with replacement of `units`, each the indices of as
    many points.

    None for fewer than five units: so few cannot stand for those that were not drawn. Samples in which one side does not
    vary are left out.
    """
    if len(units) < FEW:
        return None
    drawn = np.random.default_rng(seed).integers(0, len(units), (RESAMPLES, len(units)))
    picked = np.stack(units)[drawn].reshape(RESAMPLES, -1)  # [resamples, units, points of each] -> [resamples, n]
    values = statistic(x[picked], y[picked])
    finite = values[np.isfinite(values)]
    if len(finite) < RESAMPLES / 2:
        return None
    low, high = np.quantile(finite, (0.025, 0.975))
    return float(low), float(high)


@dataclass(frozen=True)
class Correlation:
    """One alignment score against restoration, by one coefficient.

    `points`: all as if independent. `within`: the partial correlation given the encoder (each encoder's means taken off; of
    Spearman, of the ranks), points permuted within encoders. `means`: of the encoders' means. `curves`: of all points, with
    whole encoders permuted; None unless every encoder has the same language models. `each`: by encoder, of those with three
    points or more.
    """

    score: str
    kind: str
    points: Test
    within: Test | None
    means: Test | None
    curves: Test | None
    each: dict[str, float | None] = field(default_factory=dict)


def correlation(points: Sequence[Point], score: str, kind: str, seed: int = 0) -> Correlation:
    """Of one score ("cka at") with restoration; `kind` is "spearman" or "pearson".

    Raises ValueError for fewer than three points and for a score that they do not have.
    """
    if len(points) < LEAST:
        names = ", ".join(point.name for point in points) or "none"
        raise ValueError(f"a correlation needs {LEAST} points at least, got {len(points)} ({names})")
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if any(score not in point.alignment for point in points):
        raise ValueError(f"score must be one of {', '.join(points[0].alignment)}, got {score!r}")
    x = np.array([point.alignment[score] for point in points])
    y = np.array([point.restoration for point in points])
    groups = np.array(owners(points))
    encoders = list(dict.fromkeys(groups.tolist()))
    members = [np.flatnonzero(groups == encoder) for encoder in encoders]
    as_ranks = kind == "spearman"

    def plain(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return correlate(ranks(a), ranks(b)) if as_ranks else correlate(a, b)

    everything = permutation_test(x, y, plain, [np.arange(len(x))], seed=seed)
    free = _with(everything, bootstrap(x, y, plain, [np.array([i]) for i in range(len(x))], seed))
    within = means = curves = None
    if len(encoders) > 1:
        deep = [i for i, block in enumerate(members) if len(block) > 1]
        if deep:
            kept = np.concatenate([members[i] for i in deep])
            a, b = ((ranks(v[kept]) if as_ranks else v[kept]) for v in (x, y))
            inside = groups[kept]

            def partial(p: np.ndarray, q: np.ndarray) -> np.ndarray:
                return correlate(_centred(p, inside), _centred(q, inside))

            blocks = [np.flatnonzero(inside == encoders[i]) for i in deep]
            within = permutation_test(a, b, partial, blocks, seed=seed)
        if LEAST <= len(encoders) < len(points):
            of = [np.array([v[block].mean() for block in members]) for v in (x, y)]
            means = permutation_test(of[0], of[1], plain, [np.arange(len(encoders))], seed=seed)
            means = _with(means, bootstrap(of[0], of[1], plain, [np.array([i]) for i in range(len(encoders))], seed))
        curves = _curves(points, members, x, y, plain, seed)
    each = {
        encoder: _or_none(float(plain(x[block], y[block])))
        for encoder, block in zip(encoders, members, strict=True)
        if len(block) >= LEAST
    }
    return Correlation(score, kind, free, within, means, curves, each)


def owners(points: Sequence[Point]) -> list[str]:
    """The encoder that each point's alignment is of: two that differ in a code of the place alone have one between them."""
    variants: dict[str, set[str]] = {}
    for point in points:
        variants.setdefault(point.encoder.removesuffix(POSITION), set()).add(point.encoder)
    plain = [point.encoder.removesuffix(POSITION) for point in points]
    return [point.encoder if len(variants[own]) == 1 else own for point, own in zip(points, plain, strict=True)]


def _curves(
    points: Sequence[Point],
    members: list[np.ndarray],
    x: np.ndarray,
    y: np.ndarray,
    statistic: Callable[[np.ndarray, np.ndarray], np.ndarray],
    seed: int,
) -> Test | None:
    """Whole encoders permuted, which keeps whatever ties the points of one together."""
    blocks = [np.array(sorted(block, key=lambda i: points[i].llm)) for block in members]
    llms = [[points[i].llm for i in block] for block in blocks]
    if len(blocks[0]) < 2 or any(names != llms[0] for names in llms):
        return None
    return _with(
        permutation_test(x, y, statistic, blocks, whole=True, seed=seed), bootstrap(x, y, statistic, blocks, seed)
    )


def _with(test: Test, ci95: tuple[float, float] | None) -> Test:
    return Test(**{**asdict(test), "ci95": ci95})


def _or_none(x: float) -> float | None:
    return x if math.isfinite(x) else None


# --- what it says ---


def readings(points: Sequence[Point], found: Sequence[Correlation]) -> list[str]:
    """Sentences: how far the points reach, and what the most careful test that there is says of every score."""
    whose = owners(points)
    encoders = list(dict.fromkeys(whose))
    said = []
    n = len(points)
    if n < FEW:
        least = 2 / math.factorial(n)
        said.append(
            f"{n} points are too few to conclude anything: even in perfect order a two-sided p cannot be below "
            f"{least:.2g} (2 / {n}!)"
        )
    else:
        said.append(answer(points, found))
    if len(encoders) < n:
        said.append(
            f"the {n} points are of {len(encoders)} encoder{'s' * (len(encoders) > 1)}: points of one encoder are not "
            "independent, and the p over all points is too small for a claim about encoders"
        )
        if len(encoders) == 1:
            said.append(f"all points are of {encoders[0]}: they say something about depth, nothing about encoders")
        elif 2 / math.factorial(len(encoders)) > 0.05:
            said.append(
                f"{len(encoders)} encoders are {len(encoders)} points: of their means no two-sided p can be below "
                f"{2 / math.factorial(len(encoders)):.2g} (2 / {len(encoders)}!), whatever the data"
            )
    for encoder in encoders:
        names = sorted({point.encoder for point, owner in zip(points, whose, strict=True) if owner == encoder})
        if len(names) > 1:
            said.append(f"{' and '.join(names)} have one alignment score between them and count as one encoder")
    depths = {
        tuple(sorted(p.llm for p, owner in zip(points, whose, strict=True) if owner == encoder)) for encoder in encoders
    }
    if len(depths) > 1 and any(one.means is not None for one in found):
        said.append(
            "the encoders do not stand before the same language models: part of what tells their means apart is depth"
        )
    if any(one.within is not None for one in found):
        said.append(
            "within encoders, depths are permuted as if any order of them were as likely: two curves that both rise with depth "
            "correlate by that alone"
        )
    if len(found) > 1:
        said.append(
            f"{len(found)} correlations were tried: by chance {0.05 * len(found):.1f} of them have a p below 0.05"
        )
    for one in found:
        if one.points.r is None:
            said.append(f"{one.score}, {one.kind}: no correlation, as one side is the same for all points")
    return said


def answer(points: Sequence[Point], found: Sequence[Correlation]) -> str:
    """Whether better aligned points restore better, in a sentence: by rank, within encoders where depths are compared.

    Clear is a p below 0.05 over the number of correlations tried (Bonferroni).
    """
    tests = []
    for one in found:
        test = one.within if one.within is not None else one.points
        if one.kind == "spearman" and test.r is not None and test.p is not None:
            tests.append((one.score, test, test.p * len(found) < 0.05))
    if not tests:
        return "no correlation can be tested"
    clear = {test.r > 0 for _, test, sure in tests if sure and test.r is not None}
    if clear == {True}:
        verdict = "yes, better aligned is better restored"
    elif clear == {False}:
        verdict = "no, where it is clear, better aligned is worse restored"
    elif clear:
        verdict = "the scores of alignment disagree"
    else:
        verdict = "no correlation is clear"
    encoders = len(set(owners(points)))
    where = "within encoders" if any(one.within is not None for one in found) else "over points"
    values = ", ".join(f"{score} {test.r:+.2f} (p {test.p:.2g})" for score, test, _ in tests)
    few = where == "within encoders" and encoders < FEW
    between = f"; {encoders} encoders are not enough to compare encoders" if few else ""
    return f"{verdict} (Spearman {where}: {values}){between}"


def scatter(points: Sequence[Point], found: Sequence[Correlation], label: str, title: str) -> Figure:
    """A panel for each score: alignment across, restoration upwards, an encoder a colour, its depths joined and named."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    scores = list(dict.fromkeys(one.score for one in found))
    columns = min(2, len(scores))
    lines = -(-len(scores) // columns)
    figure = Figure(figsize=(5.4 * columns, 4.0 * lines + 0.4), layout="constrained")
    encoders = list(dict.fromkeys(point.encoder for point in points))
    colours = {encoder: colormaps["tab10"](i % 10) for i, encoder in enumerate(encoders)}
    grid = figure.subplots(lines, columns, squeeze=False).flat
    named = tags([(point.encoder, point.llm) for point in points])
    names = dict(zip((point.name for point in points), named, strict=True))
    for axes, score in zip(grid, scores, strict=False):
        for encoder in encoders:
            ours = [point for point in points if point.encoder == encoder]
            trained = [p for p in ours if not variant.parse(p.llm).random]
            across = [p.alignment[score] for p in trained]
            axes.plot(across, [p.restoration for p in trained], "-", color=colours[encoder], linewidth=0.8, alpha=0.6)
            for number, p in enumerate(ours):
                at = p.alignment[score]
                if p.interval is not None:
                    axes.plot((at, at), p.interval, color=colours[encoder], linewidth=1.2, alpha=0.5)
                marker = "x" if variant.parse(p.llm).random else "o"
                axes.plot(at, p.restoration, marker, color=colours[encoder], markersize=5)
                beside = (4, 3 if number % 2 else -9)  # neighbours in depth often lie close together
                axes.annotate(names[p.name], (at, p.restoration), beside, textcoords="offset points", fontsize=7)
        told = [f"{one.kind} {one.points.r:+.2f}" for one in found if one.score == score and one.points.r is not None]
        axes.set_title(f"{score}   {', '.join(told)}   {len(points)} points", fontsize=9)
        axes.set_xlabel(score, fontsize=8)
        axes.set_ylabel(label, fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in itertools.islice(figure.axes, len(scores), None):
        axes.set_axis_off()
    figure.suptitle(title, fontsize=10)
    return figure


def tags(models: Sequence[tuple[str, str]]) -> list[str]:
    """Names of points, (encoder, language model) each, without what all share: a language model, a code of the place.

    Raises ValueError for a language model's name that is none.

    >>> tags([("mae+position", "smollm2[:6]"), ("beit+position", "smollm2")])
    ['mae [:6]', 'beit']
    """
    placed = all(encoder.endswith(POSITION) for encoder, _ in models)
    parsed = [variant.parse(llm) for _, llm in models]
    one = len({taken.base for taken in parsed}) == 1
    found = []
    for (encoder, _), taken in zip(models, parsed, strict=True):
        own = encoder.removesuffix(POSITION) if placed else encoder
        short = f"[:{taken.blocks}]" if taken.blocks is not None else ""
        llm = "" if one else taken.base.rpartition("/")[2]
        found.append(" ".join(filter(None, (own.rpartition("/")[2], llm, short, "random" if taken.random else ""))))
    return found
