"""The metrics on kernels and on dissimilarities, with every matrix of their definitions written out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.spatial.distance import pdist, squareform
from scipy.stats import pearsonr, spearmanr


def centring(n: int) -> np.ndarray:
    return np.eye(n) - np.ones((n, n)) / n


def biased_hsic(k: np.ndarray, l: np.ndarray) -> float:
    h = centring(len(k))
    return float(np.trace(k @ h @ l @ h))


def unbiased_hsic(k: np.ndarray, l: np.ndarray) -> float:
    """Song et al. 2012, eq. 5, for kernels that need not be symmetric, as the Platonic code has it."""
    n = len(k)
    k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))
    one = np.ones(n)
    terms = (
        np.trace(k @ l) + (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2)) - 2 * (one @ k @ l @ one) / (n - 2)
    )
    return float(terms / (n * (n - 3)))


def aligned(hsic: Callable[[np.ndarray, np.ndarray], float], k: np.ndarray, l: np.ndarray, eps: float = 0.0) -> float:
    return hsic(k, l) / (np.sqrt(hsic(k, k) * hsic(l, l)) + eps)


def cka(x: np.ndarray, y: np.ndarray) -> float:
    return float(aligned(biased_hsic, x @ x.T, y @ y.T))


def unbiased_cka(x: np.ndarray, y: np.ndarray, eps: float = 1e-6) -> float:
    return float(aligned(unbiased_hsic, x @ x.T, y @ y.T, eps))


def cknna(x: np.ndarray, y: np.ndarray, k: int = 10, eps: float = 1e-6) -> float:
    """Each kernel is cut to the pairs (i, j) of which j is among the k nearest of i in both representations."""

    def is_near(gram: np.ndarray) -> np.ndarray:
        mask = np.zeros_like(gram)
        for i, row in enumerate(gram):
            others = [j for j in range(len(row)) if j != i]
            mask[i, sorted(others, key=lambda j: -row[j])[:k]] = 1
        return mask

    def cut(first: np.ndarray, second: np.ndarray) -> float:
        both = is_near(first) * is_near(second)
        return unbiased_hsic(both * first, both * second)

    return float(aligned(cut, x @ x.T, y @ y.T, eps))


def distances(x: np.ndarray) -> np.ndarray:
    return squareform(pdist(x))


def rbf_cka(x: np.ndarray, y: np.ndarray, sigma: float = 1.0) -> float:
    def gaussian(z: np.ndarray) -> np.ndarray:
        bandwidth = sigma * np.median(pdist(z))
        return np.exp(-(distances(z) ** 2) / (2 * bandwidth**2))

    return float(aligned(biased_hsic, gaussian(x), gaussian(y)))


def distance_correlation(x: np.ndarray, y: np.ndarray) -> float:
    h = centring(len(x))
    a, b = h @ distances(x) @ h, h @ distances(y) @ h
    return float(np.sqrt(np.mean(a * b) / np.sqrt(np.mean(a * a) * np.mean(b * b))))


def rsm_difference(x: np.ndarray, y: np.ndarray, distance: bool = False) -> float:
    s, t = distances(x), distances(y)
    if distance:
        return float(np.linalg.norm(s - t))
    return float(2 * np.sum(s * t) / (np.sum(s * s) + np.sum(t * t)))


def eigenspace_overlap(x: np.ndarray, y: np.ndarray) -> float:
    u, v = (np.linalg.svd(z)[0][:, : np.linalg.matrix_rank(z)] for z in (x, y))
    return float(np.linalg.norm(u.T @ v) ** 2 / max(u.shape[1], v.shape[1]))


def gulp(x: np.ndarray, y: np.ndarray, ridge: float = 1e-2, distance: bool = False) -> float:
    def hat(z: np.ndarray) -> np.ndarray:
        n, d = z.shape
        z = z - z.mean(0)
        z = np.sqrt(n) * z / np.linalg.norm(z)
        return z @ np.linalg.inv(z.T @ z / n + ridge * np.eye(d)) @ z.T / n

    a, b = hat(x), hat(y)
    aa, bb, ab = np.trace(a @ a), np.trace(b @ b), np.trace(a @ b)
    return float(aa + bb - 2 * ab) if distance else float(2 * ab / (aa + bb))


def rsa(x: np.ndarray, y: np.ndarray, dissimilarity: str = "correlation", compare: str = "spearman") -> float:
    # two features correlate by 1 or -1 exactly: without rounding, noise would order what is tied
    a, b = (pdist(z, metric=dissimilarity).round(12) for z in (x, y))
    if min(np.ptp(a), np.ptp(b)) == 0 and compare != "cosine":
        return np.nan
    if compare == "spearman":
        return float(spearmanr(a, b).statistic)
    if compare == "pearson":
        return float(pearsonr(a, b).statistic)
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


REFERENCES: dict[str, Callable[..., float]] = {
    f.__name__: f
    for f in (
        cka,
        unbiased_cka,
        cknna,
        rbf_cka,
        distance_correlation,
        rsm_difference,
        eigenspace_overlap,
        gulp,
        rsa,
    )
}

# What to compare beside the defaults.
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "rbf_cka": [{"sigma": 0.5}, {"sigma": 3.0}],
    "cknna": [{"eps": 0.1}],
    "gulp": [{"ridge": 1.0}, {"ridge": 1e-4}],
    "rsa": [
        {"dissimilarity": dissimilarity, "compare": compare}
        for dissimilarity in ("correlation", "cosine", "euclidean")
        for compare in ("spearman", "pearson", "cosine")
    ],
}
