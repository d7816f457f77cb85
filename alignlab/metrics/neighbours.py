"""Metrics on neighbourhoods: do two representations put the same items next to one another?

Every one of them needs only the graph of nearest neighbours, lists `[N, k]`, nearest first. The functions on lists take
leading dimensions too, so that many layers can be compared at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from alignlab.metrics.inputs import check_k
from alignlab.metrics.registry import metric

ENTRIES_AT_ONCE = 2**24  # of the similarity matrix: blocks of 64 MB in float32
PRH = "Huh et al. 2024, The Platonic Representation Hypothesis"
RESI = "Klabunde et al. 2024, ReSi: A Comprehensive Benchmark for Representational Similarity Measures"


def nearest(x: Tensor, k: int) -> Tensor:
    """The k items with the largest inner product with each item, itself left out: `[N, D]` -> int64 `[N, k]`.

    Nearest first. Computed block by block, so that no N x N matrix exists for large N.
    """
    return neighbourhood(x, k)[1]


def neighbourhood(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Inner products with the k nearest items `[N, k]`, largest first, and which items these are, int64 `[N, k]`."""
    mean = x.mean(0)
    centred = x - mean
    # x_i . x_j is (x_i - m) . (x_j - m) + x_j . m and something of i alone, which orders nothing: where all features
    # point the same way, the differences that decide about neighbours keep their digits.
    towards, offset = centred @ mean, mean @ mean
    values, found = [], []
    rows = min(len(x), max(1, ENTRIES_AT_ONCE // len(x)))
    buffer = x.new_empty(rows, len(x))  # once: fresh memory for each block would cost as much as the product
    for start in range(0, len(x), rows):
        block = centred[start : start + rows]
        value, index = top(torch.matmul(block, centred.T, out=buffer[: len(block)]), towards, start, k)
        values.append(value + towards[start : start + rows, None] + offset)
        found.append(index)
    return torch.cat(values), torch.cat(found)


def top(gram: Tensor, towards: Tensor, start: int, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of `gram[i] + towards` for each row i `[b, N]`, without item start + i itself; `gram` is used up."""
    gram += towards
    rows = torch.arange(len(gram), device=gram.device)
    gram[rows, rows + start] = -torch.inf
    return gram.topk(k, dim=1)


def agreement(a: Tensor, b: Tensor) -> Tensor:
    """Where two lists name the same item: `[..., N, k]` twice -> bool `[..., N, k, k]`."""
    return a[..., :, None] == b[..., None, :]


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """How many items two lists share: `[..., N, k]` twice -> int64 `[..., N]`."""
    return agreement(a, b).sum((-1, -2))


@metric(
    formula="mean over items of |N_X(i) & N_Y(i)| / k",
    range="0..1",
    chance="k / (N - 1)",
    invariant=("scale", "permutation", "rotation"),
    cost="N^2 (Dx + Dy)",
    source=f"{PRH}, appendix A",
)
def mutual_knn(X: Tensor, Y: Tensor, k: int = 10) -> Tensor:
    """The mean share of an item's k nearest neighbours that both representations agree on.

    X `[N, Dx]`, Y `[N, Dy]`, numpy or torch; neighbours by inner product, so normalise the rows first (`prepare`)
    unless lengths are meant to count. Local: it says nothing about how far the clusters of items lie from one another.
    Raises ValueError for k outside [1, N-1].

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(100, 8))
    >>> mutual_knn(X, 3 * X)
    1.0
    """
    return overlap(nearest(X, k), nearest(Y, k)).double().mean() / k


@metric(
    formula="mean over items of |N_X(i) & N_Y(i)| / |N_X(i) | N_Y(i)|",
    range="0..1",
    chance="about k / (2 (N - 1) - k)",
    invariant=("scale", "permutation", "rotation"),
    cost="N^2 (Dx + Dy)",
    source=f"{RESI}, Jaccard similarity; Wang et al. 2022",
)
def jaccard_knn(X: Tensor, Y: Tensor, k: int = 10) -> Tensor:
    """The mean Jaccard index of an item's neighbourhoods in both representations.

    X `[N, Dx]`, Y `[N, Dy]`. As `mutual_knn`, but half of the neighbours in common count a third. Neighbours by inner
    product: on normalised rows (`prepare`) they are ReSi's cosine neighbours.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(100, 8))
    >>> jaccard_knn(X, X) > jaccard_knn(X, X[::-1])
    True
    """
    return jaccard(overlap(nearest(X, k), nearest(Y, k)).double(), k).mean()


def jaccard(shared: Tensor, k: int) -> Tensor:
    """The Jaccard index of two sets of k with so many members in common."""
    return shared / (2 * k - shared)


@metric(
    formula="share of items i with i in N_X(j) for some j in N_Y(i)",
    range="0..1",
    chance="about 1 - (1 - k / (N - 1))^k, less where few items are neighbours of many",
    invariant=("scale", "permutation", "rotation"),
    cost="N^2 (Dx + Dy)",
    source=f"{PRH}, code",
    symmetric=False,
    self_maximal=False,
)
def cycle_knn(X: Tensor, Y: Tensor, k: int = 10) -> Tensor:
    """The share of items that are found again by going to a neighbour in Y and on to one of its neighbours in X.

    X `[N, Dx]`, Y `[N, Dy]`. One way back is enough, so it is high by chance already for k near sqrt(N). X with itself
    scores less than 1 where an item is no neighbour of any of its neighbours.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(100, 8))
    >>> cycle_knn(X, X) > 0.9
    True
    """
    return cycle(nearest(X, k), nearest(Y, k)).double().mean()


def cycle(a: Tensor, b: Tensor) -> Tensor:
    """Which items lie among the a-neighbours of their b-neighbours: int64 `[N, k]` twice -> bool `[N]`."""
    there_and_back = a[b]  # [N, k, k]
    return (there_and_back == torch.arange(len(a), device=a.device)[:, None, None]).any(2).any(1)


@metric(
    formula="mean over items of the length of the longest common subsequence of N_X(i) and N_Y(i)",
    range="0..k",
    ceiling="k",
    chance="below k^2 / (N - 1), by a quarter where that is 2",
    invariant=("scale", "permutation", "rotation"),
    cost="N^2 (Dx + Dy) + N k^2",
    source=f"{PRH}, code",
)
def lcs_knn(X: Tensor, Y: Tensor, k: int = 10) -> Tensor:
    """How many neighbours, in order of nearness, both representations list in the same order.

    X `[N, Dx]`, Y `[N, Dy]`. A length in 0..k, not a share, as the code of the Platonic Representation Hypothesis has it.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(100, 8))
    >>> lcs_knn(X, X, k=5)
    5.0
    """
    return common_subsequence(nearest(X, k), nearest(Y, k)).double().mean()


def common_subsequence(a: Tensor, b: Tensor) -> Tensor:
    """The length of the longest common subsequence of two lists: `[..., N, k]` twice -> int64 `[..., N]`."""
    equal = agreement(a, b)
    length = equal.any(-1).any(-1).long()  # 0 without, 1 with anything in common; the few rest need the table
    several = equal.sum((-1, -2)) > 1
    some = equal[several].long()  # [M, k, k]
    best = some.new_zeros(len(some), some.shape[-1] + 1)  # [M, k + 1]: of the first i of a and the first j of b
    for row in some.unbind(1):
        best[:, 1:] = torch.maximum(best[:, 1:], best[:, :-1] + row).cummax(1).values
    length[several] = best[:, -1]
    return length


@metric(
    formula="1 - mean over items of Levenshtein(N_X(i), N_Y(i)) / k",
    range="0..1",
    chance="about 1 / (N - 1): only a neighbour at the same place saves an edit",
    invariant=("scale", "permutation", "rotation"),
    cost="N^2 (Dx + Dy) + N k^2",
    source=f"{PRH}, code",
)
def edit_distance_knn(X: Tensor, Y: Tensor, k: int = 10) -> Tensor:
    """How few insertions, deletions and substitutions turn one list of nearest neighbours into the other.

    X `[N, Dx]`, Y `[N, Dy]`. 1 for equal lists, 0 where each of the k places must be changed.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(100, 8))
    >>> edit_distance_knn(X, X)
    1.0
    """
    return 1 - edits(nearest(X, k), nearest(Y, k)).double().mean() / k


def edits(a: Tensor, b: Tensor) -> Tensor:
    """The Levenshtein distance of two lists: `[..., N, k]` twice -> int64 `[..., N]`."""
    k = a.shape[-1]
    equal = agreement(a, b)
    distance = torch.full(equal.shape[:-2], k, device=a.device)  # nothing in common: all k are replaced
    related = equal.any(-1).any(-1)
    some = equal[related].long()  # [M, k, k]
    steps = torch.arange(k + 1, device=a.device)
    best = steps.expand(len(some), k + 1).clone()  # [M, k + 1]: of the first i of a and the first j of b
    for i, row in enumerate(some.unbind(1)):
        replaced = torch.minimum(best[:, 1:] + 1, best[:, :-1] + 1 - row)
        best = torch.cat([torch.full_like(best[:, :1], i + 1), replaced], 1)
        best = (best - steps).cummin(1).values + steps  # an insertion costs one for each step to the right
    distance[related] = best[:, -1]
    return distance


@metric(
    formula="mean over items of sum over j in both of 2 / ((1 + |r - s|)(r + s)) / H(c); r, s ranks of j, c shared, H harmonic",
    range="0..1",
    chance="about w k^2 / (N - 1) for k^2 well below N, w the mean weight of two places (0.08 for k = 10)",
    invariant=("scale", "permutation", "rotation"),
    cost="N^2 (Dx + Dy) + N k^2",
    source=f"{RESI}, rank similarity; Wang et al. 2022",
)
def rank_similarity(X: Tensor, Y: Tensor, k: int = 10) -> Tensor:
    """How alike the ranks of the neighbours are that both representations list; the nearest count most.

    X `[N, Dx]`, Y `[N, Dy]`. Blind to how many neighbours are shared: one in common, first in both lists, gives 1.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(100, 8))
    >>> round(rank_similarity(X, X), 6)
    1.0
    """
    return ranks_alike(nearest(X, k), nearest(Y, k)).mean()


def ranks_alike(a: Tensor, b: Tensor) -> Tensor:
    """Rank similarity of two lists: `[..., N, k]` twice -> float64 `[..., N]`."""
    equal = agreement(a, b)
    rank = torch.arange(1, a.shape[-1] + 1, device=a.device, dtype=torch.float64)
    weight = 2 / ((1 + (rank[:, None] - rank).abs()) * (rank[:, None] + rank))  # [k, k]
    harmonic = torch.cat([rank.new_ones(1), (1 / rank).cumsum(0)])  # of nothing shared: 0 / 1
    return (equal * weight).sum((-1, -2)) / harmonic[equal.sum((-1, -2))]


@metric(
    formula="mean over items of the Jaccard index times the rank similarity of their neighbourhoods",
    range="0..1",
    chance="about w k^2 / ((N - 1) (2 k - 1)), w as in rank_similarity",
    invariant=("scale", "permutation", "rotation"),
    cost="N^2 (Dx + Dy) + N k^2",
    source=f"{RESI}, joint rank and Jaccard similarity; Wang et al. 2022",
)
def joint_rank_knn(X: Tensor, Y: Tensor, k: int = 10) -> Tensor:
    """Whether the same neighbours are listed, and in the same order: Jaccard index times rank similarity.

    X `[N, Dx]`, Y `[N, Dy]`.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(100, 8))
    >>> round(joint_rank_knn(X, X), 6)
    1.0
    """
    return joint_rank(nearest(X, k), nearest(Y, k)).mean()


def joint_rank(a: Tensor, b: Tensor) -> Tensor:
    """Jaccard index times rank similarity of two lists: `[..., N, k]` twice -> float64 `[..., N]`."""
    return jaccard(overlap(a, b).double(), a.shape[-1]) * ranks_alike(a, b)


@metric(
    formula="mean over items of the cosine of the similarities to N_X(i) | N_Y(i), in X and in Y",
    range="-1..1",
    chance="far above 0 where similarities are mostly positive: compare with a null",
    invariant=("scale", "permutation", "rotation"),
    cost="N^2 (Dx + Dy) + N k (Dx + Dy)",
    source=f"{RESI}, second-order cosine similarity; Hamilton et al. 2016",
)
def second_order_cosine(X: Tensor, Y: Tensor, k: int = 10) -> Tensor:
    """Whether an item's similarities to the neighbours it has in either representation are proportional.

    X `[N, Dx]`, Y `[N, Dy]`. Similarities are inner products, cosines on normalised rows (`prepare`). (ReSi's code takes
    these numbers from other pairs of items than the definition names; this is the definition.)

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(100, 8))
    >>> round(second_order_cosine(X, X), 6)
    1.0
    """
    a, b = nearest(X, k), nearest(Y, k)
    return second_order(a, b, [to_neighbours(X, near) for near in (a, b)], [to_neighbours(Y, near) for near in (a, b)])


def second_order(a: Tensor, b: Tensor, in_x: list[Tensor], in_y: list[Tensor]) -> Tensor:
    """Second-order cosine from neighbours a and b and the inner products with both, in X and in Y: all `[N, k]`."""
    only_b = ~agreement(a, b).any(-2)  # [N, k]: what a has not counted already
    total = torch.zeros(3, len(a), dtype=torch.float64, device=a.device)  # x.y, x.x and y.y over the union
    for x, y, counts in zip(in_x, in_y, (torch.ones_like(only_b), only_b), strict=True):
        total += torch.stack([(p * q * counts).sum(1, dtype=torch.float64) for p, q in ((x, y), (x, x), (y, y))])
    return (total[0] / (total[1] * total[2]).sqrt()).mean()


def to_neighbours(x: Tensor, near: Tensor) -> Tensor:
    """Inner products of each item with those listed for it: `[N, D]`, int64 `[N, k]` -> `[N, k]`."""
    rows = max(1, ENTRIES_AT_ONCE // (near.shape[1] * x.shape[1]))
    blocks = zip(x.split(rows), near.split(rows), strict=True)
    return torch.cat([torch.einsum("nd,nkd->nk", part, x[listed]) for part, listed in blocks])


@metric(
    formula="HSIC(M K, M L) / (sqrt(HSIC(M_X K, M_X K) HSIC(M_Y L, M_Y L)) + eps); M keeps neighbours in both, HSIC unbiased",
    range="about -1..1",
    chance="about k / (N - 1) for features without a common direction",
    invariant=("scale", "permutation", "rotation"),
    cost="N^2 (Dx + Dy) + N k^2",
    source=f"{PRH}, appendix A and code; Song et al. 2012, eq. 5",
    symmetric=False,
    self_maximal=False,
)
def cknna(X: Tensor, Y: Tensor, k: int = 10, eps: float = 1e-6) -> Tensor:
    """CKA that counts only neighbours: the kernels are cut to the pairs that are nearest neighbours in both.

    X `[N, Dx]`, Y `[N, Dy]`; linear kernels. `eps` is in the reference's denominator: X with itself scores a little
    less than 1. It is meant for rows of length 1 and shrinks with shorter ones, so that scale does not matter. Not
    exactly symmetric, because being a neighbour is not. Raises ValueError for k outside [2, N-1], and where the
    estimator's denominator is no real number (k close to N, similarities nearly all alike).

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(100, 8))
    >>> cknna(X, X) > 0.999
    True
    """
    (u, a), (v, b) = neighbourhood(X, k), neighbourhood(Y, k)
    for z in (X, Y):
        eps *= min(1.0, float(z.square().sum(1).mean()))
    return neighbour_kernels(a, u.double(), b, v.double(), eps)


def neighbour_kernels(a: Tensor, u: Tensor, b: Tensor, v: Tensor, eps: float) -> Tensor:
    """CKNNA from lists `[N, k]` of neighbours a, b and of their inner products u, v, without any N x N matrix."""
    check_k(a.shape[1], len(a), least=2)
    equal = agreement(a, b)
    both = equal.any(-1)  # [N, k]: which of a's are b's too
    theirs = (equal * v[:, None, :]).sum(-1)  # [N, k]: b's inner product with a's neighbour
    everywhere = torch.ones_like(both)
    cross = _masked_hsic(a, both, u, theirs)
    return cross / ((_masked_hsic(a, everywhere, u, u) * _masked_hsic(b, everywhere, v, v)).sqrt() + eps)


def _masked_hsic(near: Tensor, kept: Tensor, k: Tensor, l: Tensor) -> Tensor:
    """Unbiased HSIC of two N x N matrices that are zero but for the kept entries (i, near[i]): k and l `[N, k]`."""
    n = len(near)
    row = torch.arange(n, device=near.device)[:, None].expand_as(near)[kept]  # [E]
    column, k, l = near[kept], k[kept], l[kept]  # [E]
    returned = torch.isin(column * n + row, row * n + column)  # the entry (j, i) is kept too
    product = (k * l * returned).sum()  # of K and L transposed, as the two are not symmetric once cut
    out_of_rows = l.new_zeros(n).index_add(0, row, l)
    into_columns = k.new_zeros(n).index_add(0, column, k)
    product = product + k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 * (into_columns @ out_of_rows) / (n - 2)
    return product / (n * (n - 3))
