"""The metrics on neighbourhoods, item by item and in plain loops, as their definitions put it.

`cycle_knn`, `mutual_knn`, `lcs_knn` and `edit_distance_knn` are those of the Platonic Representation Hypothesis code; the
others are those of the ReSi benchmark. Neighbours by inner product, nearest first, the item itself left out.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def neighbours(x: np.ndarray, k: int) -> list[list[int]]:
    """Each item's k nearest others."""
    out = []
    for i in range(len(x)):
        others = [j for j in range(len(x)) if j != i]
        out.append(sorted(others, key=lambda j: -float(x[i] @ x[j]))[:k])
    return out


def mean_over_items(of_two: Callable[[list[int], list[int]], float], x: np.ndarray, y: np.ndarray, k: int) -> float:
    return float(np.mean([of_two(a, b) for a, b in zip(neighbours(x, k), neighbours(y, k), strict=True)]))


def cycle_knn(x: np.ndarray, y: np.ndarray, k: int = 10) -> float:
    """From an item to its neighbours in Y, and on to theirs in X: the share of items that get back to themselves."""
    in_x, in_y = neighbours(x, k), neighbours(y, k)
    return float(np.mean([any(i in in_x[j] for j in in_y[i]) for i in range(len(x))]))


def mutual_knn(x: np.ndarray, y: np.ndarray, k: int = 10) -> float:
    return mean_over_items(lambda a, b: len(set(a) & set(b)) / k, x, y, k)


def longest_common_subsequence(a: list[int], b: list[int]) -> int:
    if not a or not b:
        return 0
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            if a[i - 1] == b[j - 1]:
                table[i, j] = table[i - 1, j - 1] + 1
            else:
                table[i, j] = max(table[i - 1, j], table[i, j - 1])
    return int(table[-1, -1])


def lcs_knn(x: np.ndarray, y: np.ndarray, k: int = 10) -> float:
    return mean_over_items(longest_common_subsequence, x, y, k)


def levenshtein(a: list[int], b: list[int]) -> int:
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    table[:, 0], table[0] = range(len(a) + 1), range(len(b) + 1)
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            substituted = table[i - 1, j - 1] + (a[i - 1] != b[j - 1])
            table[i, j] = min(substituted, table[i - 1, j] + 1, table[i, j - 1] + 1)
    return int(table[-1, -1])


def edit_distance_knn(x: np.ndarray, y: np.ndarray, k: int = 10) -> float:
    return 1 - mean_over_items(levenshtein, x, y, k) / k


def jaccard(a: list[int], b: list[int]) -> float:
    return len(set(a) & set(b)) / len(set(a) | set(b))


def jaccard_knn(x: np.ndarray, y: np.ndarray, k: int = 10) -> float:
    return mean_over_items(jaccard, x, y, k)


def rank_agreement(a: list[int], b: list[int]) -> float:
    """Sum over shared neighbours of 2 / ((1 + |r - s|) (r + s)), r and s the ranks from 1, over its largest value."""
    shared = set(a) & set(b)
    if not shared:
        return 0.0
    total = 0.0
    for j in shared:
        r, s = a.index(j) + 1, b.index(j) + 1
        total += 2 / ((1 + abs(r - s)) * (r + s))
    return total / sum(1 / m for m in range(1, len(shared) + 1))


def rank_similarity(x: np.ndarray, y: np.ndarray, k: int = 10) -> float:
    return mean_over_items(rank_agreement, x, y, k)


def joint_rank_knn(x: np.ndarray, y: np.ndarray, k: int = 10) -> float:
    return mean_over_items(lambda a, b: jaccard(a, b) * rank_agreement(a, b), x, y, k)


def second_order_cosine(x: np.ndarray, y: np.ndarray, k: int = 10) -> float:
    """The cosine of an item's similarities to the neighbours it has in either representation."""
    cosines = []
    for i, (a, b) in enumerate(zip(neighbours(x, k), neighbours(y, k), strict=True)):
        either = sorted(set(a) | set(b))
        s, t = x[either] @ x[i], y[either] @ y[i]
        cosines.append(s @ t / (np.linalg.norm(s) * np.linalg.norm(t)))
    return float(np.mean(cosines))


REFERENCES: dict[str, Callable[..., float]] = {
    f.__name__: f
    for f in (
        cycle_knn,
        mutual_knn,
        lcs_knn,
        edit_distance_knn,
        jaccard_knn,
        rank_similarity,
        joint_rank_knn,
        second_order_cosine,
    )
}
