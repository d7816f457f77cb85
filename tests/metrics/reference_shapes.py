"""The metrics on aligned features, matched features and canonical correlations, in the most obvious way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg
import scipy.spatial
from scipy.optimize import linear_sum_assignment


def centred(x: np.ndarray) -> np.ndarray:
    return x - x.mean(axis=0)


def padded(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features of zeros beside the narrower one."""
    width = max(x.shape[1], y.shape[1])
    x, y = (np.pad(z, ((0, 0), (0, width - z.shape[1]))) for z in (x, y))
    return x, y


def rotated(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """X, rotated as close to Y as can be, and Y."""
    x, y = padded(x, y)
    return x @ scipy.linalg.orthogonal_procrustes(x, y)[0], y


def procrustes(x: np.ndarray, y: np.ndarray, distance: bool = False) -> float:
    """scipy scales one of the two as well, which leaves 1 - cosine^2."""
    disparity = scipy.spatial.procrustes(*padded(x, y))[2]
    cosine = np.sqrt(1 - disparity)
    return float(np.sqrt(2 - 2 * cosine) if distance else cosine)


def angular_shape(x: np.ndarray, y: np.ndarray, distance: bool = False) -> float:
    a, b = rotated(centred(x), centred(y))
    angle = np.arccos(np.sum(a * b) / (np.linalg.norm(a) * np.linalg.norm(b)))
    return float(angle if distance else 1 - angle / (np.pi / 2))


def size_and_shape(x: np.ndarray, y: np.ndarray, distance: bool = False) -> float:
    a, b = rotated(centred(x), centred(y))
    apart = np.linalg.norm(a - b)
    return float(apart if distance else 1 - apart**2 / (np.sum(a**2) + np.sum(b**2)))


def permutation_procrustes(x: np.ndarray, y: np.ndarray, distance: bool = False) -> float:
    """The cost of a pair of features is their squared distance."""
    a, b = padded(x, y)
    costs = scipy.spatial.distance.cdist(a.T, b.T, "sqeuclidean")
    squared = costs[linear_sum_assignment(costs)].sum()
    return float(np.sqrt(squared) if distance else 1 - squared / (np.sum(a**2) + np.sum(b**2)))


def aligned_cosine(x: np.ndarray, y: np.ndarray) -> float:
    pairs = zip(*rotated(x, y), strict=True)
    return float(np.mean([1 - scipy.spatial.distance.cosine(a, b) for a, b in pairs]))


def correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        table = np.corrcoef(x, y, rowvar=False)[: x.shape[1], x.shape[1] :]
    return np.nan_to_num(table)


def hard_correlation_match(x: np.ndarray, y: np.ndarray) -> float:
    table = correlations(x, y)
    return float(table[linear_sum_assignment(-table)].mean())


def soft_correlation_match(x: np.ndarray, y: np.ndarray) -> float:
    table = correlations(x, y)
    return float((table.max(axis=0).mean() + table.max(axis=1).mean()) / 2)


def svcca(x: np.ndarray, y: np.ndarray, cca_dim: int = 10) -> float:
    """Canonical correlations are the cosines of the angles between the spans of the leading singular vectors."""

    def leading(z: np.ndarray) -> np.ndarray:
        standard = centred(z) / (z.std(axis=0, ddof=1) + 1e-12)
        return np.linalg.svd(standard)[0][:, : min(cca_dim, np.linalg.matrix_rank(standard))]

    return float(np.cos(scipy.linalg.subspace_angles(leading(x), leading(y))).mean())


def pwcca(x: np.ndarray, y: np.ndarray) -> float:
    """Canonical variates of X are what projecting on Y's span and back on X's only shortens, by the correlation squared."""
    x, y = centred(x), centred(y)
    on_x, on_y = x @ np.linalg.pinv(x), y @ np.linalg.pinv(y)
    shortened, variates = np.linalg.eigh(on_x @ on_y @ on_x)
    last = np.argsort(-shortened)[: min(np.linalg.matrix_rank(x), np.linalg.matrix_rank(y))]
    shortened, variates = shortened[last].clip(0, 1), variates[:, last]
    ties = shortened > 1 - 1e-9  # of correlation 1: any basis would do, the principal axes of X in it are taken
    axes = np.linalg.eigh(variates[:, ties].T @ x @ x.T @ variates[:, ties])[1]
    variates = np.concatenate([variates[:, ties] @ axes, variates[:, ~ties]], axis=1)
    return float(np.average(np.sqrt(shortened), weights=np.abs(variates.T @ x).sum(axis=1)))


REFERENCES: dict[str, Callable[..., float]] = {
    f.__name__: f
    for f in (
        procrustes,
        angular_shape,
        size_and_shape,
        permutation_procrustes,
        aligned_cosine,
        hard_correlation_match,
        soft_correlation_match,
        svcca,
        pwcca,
    )
}
OPTIONS: dict[str, list[dict[str, Any]]] = {"svcca": [{"cca_dim": 1}, {"cca_dim": 4}, {"cca_dim": 11}]}
