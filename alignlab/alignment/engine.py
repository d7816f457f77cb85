"""`align`: metrics over all layer pairs of two models, with the null of their maximum and an interval."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alignlab.alignment.draws import Drawn, Draws
from alignlab.alignment.graph_pairs import GRAPHS, GraphPairs, OverlapPairs, SecondOrderPairs
from alignlab.alignment.kernel_pairs import FORMS, FactorPairs, KernelPairs
from alignlab.alignment.layers import Layers, repeated
from alignlab.alignment.pairs import STATES, EachPair, LayerPairs, StatePairs
from alignlab.alignment.result import Alignment, Best, MetricResult
from alignlab.alignment.settings import LISTS, check_sizes, choose_approximations, entries_of, need_faiss, settle
from alignlab.metrics import Metric, kernels, neighbours
from alignlab.metrics.inputs import check_count, is_same
from alignlab.metrics.permutation import LEAST, feature_moments, kernel_moments, pearson3_p, permutation_moments
from alignlab.metrics.preparation import Prepared, as_source, prepared, whole
from alignlab.metrics.registry import check_rows
from alignlab.progress import Tick, progress

# What the matrices of one group of layers may take; more layers are done group by group. And what prepared features may
# take; more are prepared again, a block of rows after the other, whenever they are gone over.
BYTES_AT_ONCE = 1_200_000_000
# Above this share of items with the features of another, on both sides, equally near neighbours are listed at random: in
# the order of the items they would agree more often than in any shuffled pairing.
TIED = 0.02
MATRICES = 6  # of items by items in float64 that exist at once while two layers' are made and compared
COPIES = 3  # of features, where a metric works on whole layers: prepared, shuffled or halved, and what it makes of them
MOMENTS_UP_TO = 5_000  # items, for the closed-form p-value beside the shuffles': it costs N^2 D or N^3
CHUNK = 64  # permutations or subsets between two signs of progress; of what is done one by one, a few
FEW = 4


def align(
    x: Any,
    y: Any,
    metrics: Sequence[str] = ("mutual_knn", "cka"),
    *,
    k: int = 10,
    q: float = 0.95,
    nulls: int = 200,
    resamples: int = 200,
    split_half: int = 0,
    approximate: str | Sequence[str] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> Alignment:
    """Measure how alike two models represent the same N items, over all pairs of their layers.

    `x` and `y` are what `extract` returns, arrays `[N, L, D]` (numpy or torch), or lists of `[N, D_l]`, item for item
    the same. Features are prepared as the field does (`metrics.prepare` with quantile `q`). `metrics` are names of
    `al.metrics.table()`; `k` goes to all that have one, other options as `options={"rsa": {"compare": "pearson"}}`.

    The best of all layer pairs is a maximum, so it is judged against the same maximum over `nulls` shuffled pairings
    (all layers of x permuted alike); its interval comes from `resamples` halves of the items, drawn without
    replacement. `split_half` random splits pick the layer pair on one half and score it on the other, which takes the
    selection out of the score. 0 switches any of the three off. Scores are computed in float32 or more; the same `seed`
    gives the same result. Most metrics shuffle what they once computed of a layer; `pwcca`, `linear_regression`, the
    Procrustes family, the feature matches and `rtd` need work for each pair and shuffle, which takes minutes to hours with
    many wide layers: lower `nulls` and `resamples` there.

    Features of both that take more than 1.2 GB together when prepared are not held in memory: their rows are read, clamped
    and normalised some at a time, of arrays mapped from disk too (`np.load(mmap_mode="r")`, `open_features`). `cka`,
    `unbiased_cka` and "minibatch" then need memory for a few blocks of rows, for products of features and for a few numbers
    an item; metrics of neighbours hold one layer twice, and each layer's lists. All others need whole layers. The scores are
    the same, and so is the work: each null and half goes over all rows, which for `cka` costs N Dx Dy.

    Exact unless told otherwise: `approximate="faiss"` finds neighbours with an HNSW index (pip install
    "alignlab[faiss]"), "minibatch" estimates `unbiased_cka` from batches of 512 items; the result's params say so.

    A layer that is the same for every item scores 0, with a note in the result. Raises ValueError for an unknown
    metric or option, different N, fewer than 4 items, nan or inf, an item whose features are all zeros, for k outside
    [1, N/2 - 1] (halves need k neighbours too; [1, N-1] without resamples and splits), and for a metric that needs more
    memory than there is.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(60, 3, 8))
    >>> result = align(x, x[:, :2], ["cka"], nulls=19, resamples=0)
    >>> result.matrix("cka").shape
    (3, 2)
    >>> round(result.best("cka").score, 4), result.best("cka").p
    (1.0, 0.05)
    """
    entries = entries_of(metrics)
    for name, value in (("nulls", nulls), ("resamples", resamples), ("split_half", split_half), ("seed", seed)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
            raise ValueError(f"{name} must be a whole number, 0 or more, got {value}")
    k, seed = int(k) if isinstance(k, np.integer) else k, int(seed)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from None
    approximations = choose_approximations(approximate, entries)
    settings = {m.name: settle(m, k, options or {}) for m in entries}
    unknown = set(options or {}) - set(settings)
    if unknown:
        raise ValueError(f"options names {', '.join(sorted(unknown))}, which is not among metrics")
    given = _layers(x, "x", q, device), _layers(y, "y", q, device)
    precision = [[t.dtype for t in side] for side in given]
    n = len(given[0][0])
    if n != len(given[1][0]):
        raise ValueError(f"x and y must have the same items, got {n} and {len(given[1][0])}")
    x_layers, y_layers = _held(given)
    check_sizes(entries, settings, n, halves=bool(resamples or split_half))
    draws = Draws(n, nulls, resamples, split_half, seed, device)

    notes, kept = [], []
    for name, given, layers, dtypes in (("x", x, x_layers, precision[0]), ("y", y, y_layers, precision[1])):
        same = [i for i, layer in enumerate(layers) if is_same(layer, dtypes[i])]
        kept.append([i for i in range(len(layers)) if i not in same])
        for i in kept[-1]:
            check_rows(layers[i], f"{name}, layer {i},")
        if same:
            numbers = ", ".join(map(str, same))
            notes.append(
                f"layer {numbers} of {getattr(given, 'name', name)} is the same for every item; its scores are 0"
            )
    for m in entries:
        if not m.paired:
            notes.append(f"{m.name} does not ask which item is which: no shuffling can test it, and its p is 1")

    results = {}
    sides = _shared(entries, x_layers, y_layers, kept, draws, approximations)
    counts = (len(x_layers), len(y_layers))
    total = len(entries) * draws.total
    with progress("align", total, "rounds") as tick:
        for at, m in enumerate(entries):
            params = {**settings[m.name], "q": q}
            approximation = approximations.get(m.name)
            if approximation:
                params["approximate"] = approximation
            if approximation == "minibatch":
                params["batch"] = signature(kernels.minibatch_cka).parameters["batch"].default
            done = at * draws.total
            results[m.name] = _measure(
                m,
                settings[m.name],
                params,
                sides,
                kept,
                counts,
                draws,
                lambda d, note="", done=done: tick(done + d, note),
            )
            lost = int(np.isnan(results[m.name].subset_max).sum())
            if lost:
                notes.append(
                    f"{m.name} could not be measured on {lost} of {resamples} halves; the interval is without them"
                )
    if sides is not None:
        notes += _warnings(results, sides, kept)
    return Alignment(
        x_name=getattr(x, "name", "x"),
        y_name=getattr(y, "name", "y"),
        n=n,
        seed=seed,
        metrics=results,
        notes=tuple(notes),
    )


def _warnings(results: Mapping[str, MetricResult], sides: _Sides, kept: list[list[int]]) -> list[str]:
    """What a reader of the scores must know about the features they come from."""
    notes = []
    if "unbiased_cka" in results:
        eps, best = results["unbiased_cka"].params["eps"], results["unbiased_cka"].best()
        for name, side, layer, which in (("x", sides.x, best.x_layer, kept[0]), ("y", sides.y, best.y_layer, kept[1])):
            features = side.features[which.index(layer)]
            own = kernels.batched_cka(features, features, eps=eps)
            if eps and own < 0.99:
                notes.append(
                    f"unbiased_cka of layer {layer} of {name} with itself is {own:.2f}: its items are nearly alike and "
                    "the reference's eps takes the rest; options={'unbiased_cka': {'eps': 0}} leaves it out"
                )
    if sides.x.order is not None:
        notes.append(
            "items with the same features as another on both sides: of neighbours equally near, one side lists some at random, "
            "so that p holds; even identical representations score below the ceiling of metrics with a k"
        )
    return notes


def memory() -> int:
    """Bytes of main memory that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _layers(features: Any, name: str, q: float, device: str) -> list[Prepared]:
    """The layers, `[L]` of `[N, D_l]`, none of which is in memory yet (or once more)."""
    given: Any = getattr(features, "layers", features)
    if isinstance(given, list | tuple):
        sources = [as_source(f, name) for f in given]
        if not sources or any(s.ndim != 2 for s in sources) or len({len(s) for s in sources}) != 1:
            shapes = [tuple(s.shape) for s in sources]
            raise ValueError(f"{name} must be a list of [N, D_l] with one N, got shapes {shapes}")
        layers = [prepared(s, q, f"{name}[{i}]", device) for i, s in enumerate(sources)]
    else:
        source = as_source(given, name)
        if source.ndim != 3:
            hint = "; of a single layer, write [x]" if source.ndim == 2 else ""
            raise ValueError(f"{name} must be [N, L, D] or a list of [N, D_l], got shape {tuple(source.shape)}{hint}")
        together = prepared(source, q, name, device)
        layers = [together.layer(i) for i in range(source.shape[1])]
    check_count(len(layers[0]), name)
    return layers


def _held(given: tuple[list[Prepared], list[Prepared]]) -> list[list[Tensor | Prepared]]:
    """Both sides' layers in one precision: in memory if they all fit there, else as they are."""
    both = [*given[0], *given[1]]
    dtype = torch.float64 if any(f.dtype == torch.float64 for f in both) else torch.float32
    sides = [[dataclasses.replace(f, dtype=dtype) for f in side] for side in given]
    device = both[0].device
    room = torch.cuda.mem_get_info(device)[0] // COPIES if device.type == "cuda" else BYTES_AT_ONCE
    fits = sum(Layers(side).size for side in sides) <= room
    return [[whole(f) if fits else f for f in side] for side in sides]


@dataclasses.dataclass(frozen=True)
class _Sides:
    """The layers that vary, of both models, and the choice that was made for all metrics."""

    x: Layers
    y: Layers
    approximations: Mapping[str, str]


def _shared(
    entries: list[Metric],
    x: list[Tensor | Prepared],
    y: list[Tensor | Prepared],
    kept: list[list[int]],
    draws: Draws,
    approximations: Mapping[str, str],
) -> _Sides | None:
    if not kept[0] or not kept[1]:
        return None
    search = _faiss_search if "faiss" in approximations.values() else neighbours.neighbourhood
    few_x, few_y = [x[i] for i in kept[0]], [y[j] for j in kept[1]]
    plain_x, plain_y = Layers(few_x), Layers(few_y)
    linear = [m for m in entries if m.name in FORMS and FORMS[m.name].linear and m.name not in approximations]
    keep = _fits(plain_x, plain_y) and any(not _narrow(FORMS[m.name], plain_x, plain_y, draws) for m in linear)
    order = None
    sides = (few_x, few_y)
    if any(m.name in LISTS for m in entries) and all(any(repeated(f) > TIED for f in side) for side in sides):
        order = torch.from_numpy(np.random.default_rng(draws.seed).permutation(plain_x.n)).to(few_x[0].device)
    return _Sides(Layers(few_x, keep, search, order), Layers(few_y, keep, search), approximations)


def _fits(x: Layers, y: Layers) -> bool:
    return (len(x) + len(y)) * _matrix_bytes(x) <= BYTES_AT_ONCE


def _matrix_bytes(layers: Layers) -> int:
    """Of one matrix of items by items, and of its copy with layers last."""
    return layers.n**2 * layers.features[0].dtype.itemsize * 2


def _narrow(form: kernels.Form, x: Layers, y: Layers, draws: Draws) -> bool:
    """Whether factors `[N, r]` cost less than matrices `[N, N]`, in multiplications; so do matrices that do not fit."""
    if form.factor is None:
        return False
    n = x.n
    wide = [sum(min(f.shape[1], n) for f in side.features) for side in (x, y)]
    if max(f.shape[1] for side in (x, y) for f in side.features) >= n:
        return False
    rounds = draws.total
    through_factors = rounds * n * wide[0] * wide[1]
    # a matrix entry is fetched once a round, at the cost of about 30 multiplications
    through_matrices = n * n * (sum(wide) / 2 + rounds * (len(x) * len(y) + 30 * min(len(x), len(y))) / 2)
    return through_factors < through_matrices or not _fits(x, y)


def _builder(
    metric: Metric, settings: dict[str, Any], sides: _Sides, draws: Draws
) -> tuple[Callable[[Layers, Layers], LayerPairs], int]:
    """How layer pairs are measured, and how many layers of a side at once."""
    everything = max(len(sides.x), len(sides.y))
    name = metric.name
    if sides.approximations.get(name) == "minibatch":
        rough = dataclasses.replace(metric, core=kernels.batched_cka)
        return lambda x, y: EachPair(x, y, rough, settings), everything
    if name in FORMS:
        form = FORMS[name]
        if _narrow(form, sides.x, sides.y, draws):
            if not form.linear:
                _check_whole(name, sides)
            return lambda x, y: FactorPairs(x, y, form, settings), _side_by_side(sides)
        needed = MATRICES * sides.x.n**2 * 8
        if needed > memory():
            raise ValueError(
                f"{name} compares matrices of N x N numbers and needs about {needed / 1e9:.0f} GB with N={sides.x.n}; "
                "take a sample of the items, or a metric of neighbours or (for D below N) cka"
            )
        at_once = everything if _fits(sides.x, sides.y) else max(1, BYTES_AT_ONCE // _matrix_bytes(sides.x) // 2)
        return lambda x, y: KernelPairs(x, y, form, settings), at_once
    if name == "mutual_knn":
        return lambda x, y: OverlapPairs(x, y, settings["k"]), everything
    if name == "jaccard_knn":
        k = settings["k"]
        return lambda x, y: OverlapPairs(x, y, k, lambda count: neighbours.jaccard(count, k)), everything
    if name in GRAPHS:
        score = GRAPHS[name]
        return lambda x, y: GraphPairs(
            x, y, settings["k"], lambda a, u, b, v: score(a, u, b, v, **settings)
        ), everything
    if name == "second_order_cosine" and _fits(sides.x, sides.y) and sides.x.search is neighbours.neighbourhood:
        return lambda x, y: SecondOrderPairs(x, y, settings["k"]), everything
    _check_whole(name, sides)
    if name in STATES:
        of_x, of_y, score_states = STATES[name]
        states = partial(of_x, **settings), partial(of_y, **settings)
        return lambda x, y: StatePairs(x, y, states, score_states), everything
    return lambda x, y: EachPair(x.whole(), y.whole(), metric, settings), everything


def _side_by_side(sides: _Sides) -> int:
    """How many layers of a side may stand side by side: the products of their features with one another are in memory."""
    wide = [sum(f.shape[1] for f in side.features) for side in (sides.x, sides.y)]
    if wide[0] * wide[1] * 8 <= BYTES_AT_ONCE:
        return max(len(sides.x), len(sides.y))
    widest = max(f.shape[1] for side in (sides.x, sides.y) for f in side.features)
    return max(1, int((BYTES_AT_ONCE / 8) ** 0.5) // widest)


def _check_whole(name: str, sides: _Sides) -> None:
    """ValueError where a metric that works on whole layers cannot have them."""
    apart = any(isinstance(f, Prepared) for side in (sides.x, sides.y) for f in side.features)
    needed = COPIES * (sides.x.size + sides.y.size)
    if apart and needed > memory():
        raise ValueError(
            f"{name} holds the features of all items and needs about {needed / 1e9:.0f} GB with N={sides.x.n}; take a sample "
            "of the items, fewer layers, or cka or unbiased_cka, which go over them a block at a time"
        )


def _measure(
    metric: Metric,
    settings: dict[str, Any],
    params: dict[str, Any],
    sides: _Sides | None,
    kept: list[list[int]],
    counts: tuple[int, int],
    draws: Draws,
    tick: Tick,
) -> MetricResult:
    ceiling = metric.ceiling_of(settings)
    if sides is None:  # all layers of one side are the same for every item: there is nothing to measure, or to shuffle
        empty = np.empty(0)
        return MetricResult(params, np.zeros(counts), np.zeros(counts), empty, empty, ceiling, ([], []))
    matrix, chance = np.zeros(counts), np.zeros(counts)
    null_max, subset_max = np.full(len(draws.perms), -np.inf), np.full(len(draws.subsets), -np.inf)
    halves = np.zeros((len(draws.halves), len(sides.x), len(sides.y)))
    build, at_once = _builder(metric, settings, sides, draws)
    groups = [(r, c) for r in _groups(len(sides.x), at_once) for c in _groups(len(sides.y), at_once)]
    for g, (rows, columns) in enumerate(groups):
        some = len(groups) > 1
        try:
            pairs = build(sides.x.some(rows) if some else sides.x, sides.y.some(columns) if some else sides.y)
        except ValueError as error:
            raise ValueError(f"{metric.name}: {error}") from error
        if (
            isinstance(pairs, GraphPairs)
            and not isinstance(pairs, SecondOrderPairs)
            and len(draws.subsets) + len(draws.halves)
        ):
            for side in (pairs.x, pairs.y):
                side.neighbours(pairs.length)  # what halves need, found in one search
        block = np.ix_([kept[0][i] for i in rows], [kept[1][j] for j in columns])
        matrix[block] = pairs.matrix().cpu().numpy()
        if not np.isfinite(matrix).all():
            i, j = np.argwhere(~np.isfinite(matrix))[0]
            raise ValueError(f"{metric.name} is not defined for layer {i} of x with layer {j} of y")
        done = 1

        def rounds(
            run: Callable[[Tensor], Tensor], draw: Drawn, g: int = g, pairs: LayerPairs = pairs
        ) -> Iterator[tuple[slice, np.ndarray]]:
            nonlocal done
            start = 0
            for some in draw.chunks(FEW if isinstance(pairs, EachPair | StatePairs) else CHUNK):
                scores = _attempt(run, some, (len(pairs.x), len(pairs.y)))  # [C, L_x, L_y]
                done += len(scores)
                tick((g * draws.total + done) // len(groups), metric.name)
                yield slice(start, start + len(scores)), scores
                start += len(scores)

        total = np.zeros(matrix[block].shape)
        for at, scores in rounds(pairs.permuted, draws.perms):
            null_max[at] = np.maximum(null_max[at], scores.max((1, 2)))
            total += scores.sum(0)
        exact = pairs.chance()
        if exact is not None:
            chance[block] = exact.cpu().numpy()
        else:  # no closed form: the mean of the shuffles
            chance[block] = total / len(draws.perms) if len(draws.perms) else np.nan
        for at, scores in rounds(pairs.subsampled, draws.subsets):
            subset_max[at] = np.maximum(subset_max[at], scores.max((1, 2)))  # nan where any pair is
        for at, scores in rounds(pairs.subsampled, draws.halves):
            halves[at, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = scores
    result = MetricResult(
        params=params,
        matrix=matrix,
        chance=chance,
        null_max=null_max,
        subset_max=subset_max,
        ceiling=ceiling,
        measured=(kept[0], kept[1]),
    )
    if metric.name == "cka" and len(draws.perms) and LEAST <= sides.x.n <= MOMENTS_UP_TO:
        result = dataclasses.replace(result, pair_p=_pair_p(result.best(), sides, kept))
    held_out, held_out_null = _held_out(build, sides, halves, draws)
    return dataclasses.replace(result, held_out=held_out, held_out_null=held_out_null)


def _attempt(run: Callable[[Tensor], Tensor], draws: Tensor, shape: tuple[int, ...]) -> np.ndarray:
    """Scores `[C, L_x, L_y]`; nan in a round that cannot be measured, such as a half in which a layer does not vary."""
    try:
        scores = run(draws).cpu().numpy()
    except (ValueError, ZeroDivisionError, torch.linalg.LinAlgError):
        if len(draws) == 1:
            return np.full((1, *shape), np.nan)
        return np.concatenate([_attempt(run, draws[i : i + 1], shape) for i in range(len(draws))])
    return np.where(np.isfinite(scores), scores, np.nan)


def _groups(count: int, size: int) -> list[list[int]]:
    return [list(range(count))[i : i + size] for i in range(0, count, size)]


def _pair_p(best: Best, sides: _Sides, kept: list[list[int]]) -> float:
    """Pearson III's p-value of CKA for the best pair of layers, as if it were the only one."""
    moments = []
    for side, layer, which in ((sides.x, best.x_layer, kept[0]), (sides.y, best.y_layer, kept[1])):
        place = which.index(layer)
        features = side.features[place]
        moments.append(kernel_moments(side.grams()[place]) if side.keep_grams else feature_moments(whole(features)))
    return float(pearson3_p(best.score, *permutation_moments(moments[0], moments[1], sides.x.n)))


def _held_out(
    build: Callable[[Layers, Layers], LayerPairs], sides: _Sides, halves: np.ndarray, draws: Draws
) -> tuple[np.ndarray, np.ndarray]:
    """Each half's score of the pair that was best on the other half, and the same with its items shuffled."""
    scores, nulls = np.zeros(len(halves)), np.zeros(len(halves))
    for h, (items, order) in enumerate(zip(draws.halves, draws.half_perms, strict=True)):
        chosen_on = np.nan_to_num(halves[h ^ 1], nan=-np.inf)  # halves come in twos
        i, j = np.unravel_index(int(chosen_on.argmax()), chosen_on.shape)
        scores[h] = halves[h, i, j]
        try:
            shuffled = build(sides.x.some([int(i)]).rows(items[order]), sides.y.some([int(j)]).rows(items))
            nulls[h] = float(shuffled.matrix())
        except (ValueError, ZeroDivisionError, torch.linalg.LinAlgError):
            nulls[h] = np.nan
    return scores, nulls


def _faiss_search(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Neighbours by inner product from an HNSW graph; exact ones fill up the few lists that it leaves short."""
    need_faiss()
    import faiss

    rows = x.detach().cpu().float().numpy()
    index = faiss.IndexHNSWFlat(rows.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efSearch = max(64, 2 * k)
    index.add(rows)
    values, found = map(torch.from_numpy, index.search(rows, k + 1))  # an item mostly finds itself too
    itself = found == torch.arange(len(found))[:, None]
    values[itself | (found < 0)] = -torch.inf
    values, order = values.sort(dim=1, descending=True, stable=True)
    values, found = values[:, :k].to(x), found.gather(1, order)[:, :k].to(x.device)
    for row in values.isinf().any(1).nonzero().flatten().tolist():
        similarity = x @ x[row]
        similarity[row] = -torch.inf
        values[row], found[row] = similarity.topk(k)
    return values, found
