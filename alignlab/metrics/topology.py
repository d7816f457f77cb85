"""Metrics on shape: do two clouds of items have the same structure at all scales?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from alignlab.metrics.kernels import RESI, squared_distances
from alignlab.metrics.registry import metric

# The grid and the factor of the package msid, so that `imd(..., distance=True)` is the number that it estimates.
TIMES = 10 ** torch.linspace(-1, 1, 256, dtype=torch.float64)
MSID = 1e6


def laplacian_spectrum(x: Tensor, k: int) -> Tensor:
    """Eigenvalues of the normalised Laplacian of the k-NN graph, `[N, D]` -> float64 `[N]`.

    Items are joined, with weight 1, where either is among the other's k nearest by Euclidean distance.
    """
    d = squared_distances(x).fill_diagonal_(torch.inf)
    near = d.topk(k, dim=1, largest=False).indices
    joined = torch.zeros_like(d).scatter_(1, near, 1.0)
    joined = torch.maximum(joined, joined.T)
    root = joined.sum(1).sqrt()
    return 1 - torch.linalg.eigvalsh(joined / root / root[:, None])


def heat_trace(spectrum: Tensor) -> Tensor:
    """The mean of exp(-t eigenvalue) at each of `TIMES`: the heat kernel's trace over N, `[N]` -> `[256]`."""
    return (-TIMES.to(spectrum.device)[:, None] * spectrum).exp().mean(1)


def weighted_difference(a: Tensor, b: Tensor) -> Tensor:
    """The largest difference of two heat traces, weighted so that very short and very long times count little."""
    times = TIMES.to(a.device)
    return ((-2 * (times + 1 / times)).exp() * (a - b).abs()).amax()


@metric(
    formula="1 - d(h_X, h_Y) / max(d(h_X, h_0), d(h_Y, h_0)), d(h, h') = max_t e^{-2(t + 1/t)} |h(t) - h'(t)|, h_0 = e^-t",
    range="0..1",
    chance="0.85..1 for Gaussians with Dx = Dy and N of 200 or more; less the more Dx and Dy differ, 0.6..0.7 for 8 and 256",
    invariant=("scale", "shift", "permutation", "rotation"),
    cost="N^2 (Dx + Dy) + N^3",
    source=f"Tsitsulin et al. 2020, The Shape of Data, section 3; package msid; {RESI}, IMD score",
    paired=False,
)
def imd(X: Tensor, Y: Tensor, k: int = 5, distance: bool = False) -> Tensor:
    """How alike heat spreads on the two representations' k-NN graphs, from short to long times.

    X `[N, Dx]`, Y `[N, Dy]`. h(t) is the mean of exp(-t eigenvalue) over all eigenvalues of the graph's normalised
    Laplacian: it knows clusters, dimension and density of the cloud as a whole, and not which item is where.

    `distance=True` gives the Intrinsic Multi-scale Distance 10^6 d(h_X, h_Y) on the grid of times of the package msid
    (smaller is more alike), which that package estimates by random vectors and this computes exactly. The score divides it
    by the larger distance to a graph without structure, whose eigenvalues are all 1 (no h(t) is below its e^-t). Items
    with equal distances to several others are joined to any k of them. Raises ValueError for k outside [1, N-1].

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(100, 8))
    >>> round(imd(X, 3 * X[::-1] + 1), 6), imd(X, X, distance=True)
    (1.0, 0.0)
    """
    a, b = heat_trace(laplacian_spectrum(X, k)), heat_trace(laplacian_spectrum(Y, k))
    difference = weighted_difference(a, b)
    if distance:
        return MSID * difference
    none = (-TIMES.to(a.device)).exp()
    return 1 - difference / torch.maximum(weighted_difference(a, none), weighted_difference(b, none))


@metric(
    formula="1 / (1 + RTD), RTD = mean of the summed lengths of the R-Cross-Barcode_1 of (X, Y) and of (Y, X)",
    range="0..1",
    chance="falls with N (up to batch): RTD / N is about 0.1 for D up to 10, 0.03 for 256, 0.015 for 1024 of Gaussians",
    invariant=("scale", "shift", "permutation", "rotation"),
    cost="trials times batch^3 or so, on one CPU core; N in place of batch, once, for N <= batch",
    source=f"Barannikov et al. 2022, Representation Topology Divergence; package rtd; {RESI}, RTD",
)
def rtd(X: Tensor, Y: Tensor, batch: int = 500, trials: int = 10, seed: int = 0, distance: bool = False) -> float:
    """How few clusters and loops of the same items appear in one representation's cloud earlier than in the other's.

    X `[N, Dx]`, Y `[N, Dy]`. Distances are divided by their 0.9 quantile. The sum of lengths grows with the number of items:
    compare scores of one N (or one batch) only, and with a null. `distance=True` gives RTD itself (smaller is more alike;
    RTD = 1 / score - 1).

    With N up to `batch` all items are taken, as they are. Else RTD is the mean over `trials` draws of `batch` items without
    replacement; the package rtd draws anew with each call, here `seed` rules the draws, and the same items are drawn for
    any features. A batch of N or more gives the exact value of all items, for N of 1000 in less time than the draws.

    Needs the package gudhi. Raises ValueError without it, for a batch below 4, trials below 1, and where
    nine tenths of a batch's distances are 0.

    >>> import importlib.util, numpy as np
    >>> X = np.random.default_rng(0).normal(size=(30, 8))
    >>> rtd(X, 3 * X, distance=True) < 1e-6 if importlib.util.find_spec("gudhi") else True
    True
    """
    for name, count, least in (("batch", batch, 4), ("trials", trials, 1)):
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < least:
            raise ValueError(f"{name} must be an int >= {least}, got {count}")
    bars = _ripser()
    n = len(X)
    if n <= batch:
        drawn = [torch.arange(n)]
    else:
        generator = torch.Generator().manual_seed(int(seed))
        drawn = [torch.randperm(n, generator=generator)[:batch] for _ in range(trials)]
    sums = []
    for items in drawn:
        x, y = (_scaled_distances(z[items.to(z.device)], name) for z, name in ((X, "X"), (Y, "Y")))
        sums += [bars(cross_graph(x, y)), bars(cross_graph(y, x))]
    value = float(np.mean(sums))
    return value if distance else 1 / (1 + value)


def _ripser() -> Callable[[np.ndarray], float]:
    """The summed lengths of the bars of dimension 1, of a weighted graph `[M, M]`."""
    try:
        from gudhi.sklearn import RipsPersistence
    except ImportError:
        raise ValueError("rtd needs the package gudhi: pip install 'alignlab[topology]'") from None
    # collapsing edges first, its other way, takes ten times as long here
    rips = RipsPersistence(1, input_type="full distance matrix", num_collapses=0, homology_coeff_field=2)

    def bars(graph: np.ndarray) -> float:
        diagram = rips.fit_transform([graph])[0]
        return float((diagram[:, 1] - diagram[:, 0]).sum())

    return bars


def _scaled_distances(x: Tensor, name: str) -> np.ndarray:
    d = squared_distances(x).sqrt_().cpu().numpy()
    d = (d + d.T) / 2  # a last bit that differs between (i, j) and (j, i) makes gudhi run out of memory
    unit = np.quantile(d, 0.9)
    if not unit > 0:
        raise ValueError(f"{name} has hardly any two items that differ; leave equal items out, or take a larger batch")
    return d / unit


def cross_graph(w: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The graph whose bars of dimension 1 are the R-Cross-Barcode_1 of two distance matrices: `[n, n]` -> `[2n+1, 2n+1]`.

    Items as w has them, items with the smaller of both distances, and an apex that fills what w fills. The paper's form:
    the package rtd's, with all of the first n joined at 0 and no apex, has the same bars and takes three times as long.
    """
    n = len(w)
    upper = np.where(np.triu(np.ones((n, n), dtype=bool)), w, np.inf)
    graph = np.full((2 * n + 1, 2 * n + 1), np.inf)
    graph[:n, :n] = w
    graph[n:-1, :n], graph[:n, n:-1] = upper, upper.T
    graph[n:-1, n:-1] = np.minimum(w, v)
    graph[-1, :n] = graph[:n, -1] = 0
    np.fill_diagonal(graph, 0)
    return graph
