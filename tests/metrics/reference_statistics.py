"""Regression, statistics and topology as their definitions read, with scikit-learn and scipy where they have the thing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.linalg import expm
from scipy.sparse import csgraph
from scipy.spatial.distance import cdist
from sklearn.dummy import DummyRegressor
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.metrics import pairwise_distances, r2_score
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.neighbors import kneighbors_graph


def linear_regression(x: np.ndarray, y: np.ndarray, ridge: float = 1e-2, folds: int = 5) -> float:
    folded = PredefinedSplit(np.arange(len(x)) % folds)
    errors = 0.0
    for train, test in folded.split():
        eigenvalues = np.linalg.eigvalsh(np.cov(x[train].T, bias=True).reshape(x.shape[1], x.shape[1]))
        penalty = ridge * eigenvalues.mean() * len(train)  # scikit-learn's is on the sum over items
        model = Ridge(alpha=penalty, solver="svd") if ridge else LinearRegression()
        errors += np.sum((y[test] - model.fit(x[train], y[train]).predict(x[test]).reshape(len(test), -1)) ** 2)
    means = cross_val_predict(DummyRegressor(), x, y, cv=folded).reshape(y.shape)
    return float(1 - errors / np.sum((y - means) ** 2))


def linear_fit(x: np.ndarray, y: np.ndarray) -> float:
    predicted = LinearRegression().fit(y, x).predict(y).reshape(x.shape)
    return float(r2_score(x, predicted, multioutput="variance_weighted"))


def magnitude(x: np.ndarray, y: np.ndarray, distance: bool = False) -> float:
    a, b = (float(np.linalg.norm(z.mean(axis=0))) for z in (x, y))
    return abs(a - b) if distance else min(a, b) / max(a, b)


def concentricity(x: np.ndarray, y: np.ndarray, distance: bool = False) -> float:
    a, b = (float(np.mean(1 - pairwise_distances(z, z.mean(axis=0, keepdims=True), metric="cosine"))) for z in (x, y))
    return abs(a - b) if distance else 1 - abs(a - b) / 2


def uniformity(x: np.ndarray, y: np.ndarray, t: float = 2.0, distance: bool = False) -> float:
    u, v = (float(np.log(np.exp(-t * cdist(z, z, "sqeuclidean")).sum() / len(z) ** 2)) for z in (x, y))
    return abs(u - v) if distance else float(np.exp(-abs(u - v)))


TIMES = np.logspace(-1, 1, 256)


def heat_trace(x: np.ndarray, k: int) -> np.ndarray:
    directed = kneighbors_graph(x, k).toarray()
    laplacian = csgraph.laplacian(np.maximum(directed, directed.T), normed=True)
    return np.array([np.trace(expm(-t * laplacian)) for t in TIMES]) / len(x)


def imd(x: np.ndarray, y: np.ndarray, k: int = 5, distance: bool = False) -> float:
    weight = np.exp(-2 * (TIMES + 1 / TIMES))
    a, b = heat_trace(x, k), heat_trace(y, k)
    difference = float(np.max(weight * np.abs(a - b)))
    if distance:
        return 1e6 * difference
    structure = max(float(np.max(weight * (h - np.exp(-TIMES)))) for h in (a, b))
    return 1 - difference / structure


def first_homology(graph: np.ndarray) -> float:
    """The summed lengths of the bars of dimension 1, by reducing the matrix of triangles' boundaries modulo 2."""
    n = len(graph)
    i, j = np.triu_indices(n, 1)
    weights = graph[i, j]
    order = np.argsort(weights, kind="stable")
    order = order[np.isfinite(weights[order])]
    place = {(int(i[e]), int(j[e])): p for p, e in enumerate(order)}
    births = weights[order]
    tree = csgraph.connected_components(np.isfinite(graph))[0]
    loops = len(order) - (n - tree)  # edges that close a loop: each is filled by some triangle

    a, b, c = np.array([(p, q, r) for p in range(n) for q in range(p) for r in range(q)]).T
    deaths = np.maximum(np.maximum(graph[a, b], graph[a, c]), graph[b, c])
    columns: dict[int, int] = {}
    total = 0.0
    for t in np.argsort(deaths, kind="stable"):
        if len(columns) == loops or not np.isfinite(deaths[t]):
            break
        p, q, r = int(a[t]), int(b[t]), int(c[t])
        column = (1 << place[q, p]) ^ (1 << place[r, p]) ^ (1 << place[r, q])
        while column and (low := column.bit_length() - 1) in columns:
            column ^= columns[low]
        if column:
            columns[low] = column
            total += deaths[t] - births[low]
    assert len(columns) == loops
    return float(total)


def cross_barcode(w: np.ndarray, v: np.ndarray) -> float:
    """The package rtd's graph: the first n at distance 0 from one another, the others at the smaller distance."""
    return first_homology(np.block([[np.zeros_like(w), w.T], [w, np.minimum(w, v)]]))


def rtd(
    x: np.ndarray, y: np.ndarray, batch: int = 500, trials: int = 10, seed: int = 0, distance: bool = False
) -> float:
    n = len(x)
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randperm(n, generator=generator)[:batch].numpy() for _ in range(trials)]
    values = []
    for items in draws if n > batch else [np.arange(n)]:
        w, v = (cdist(z[items], z[items]) for z in (x, y))
        w, v = w / np.quantile(w, 0.9), v / np.quantile(v, 0.9)
        values.append((cross_barcode(w, v) + cross_barcode(v, w)) / 2)
    value = float(np.mean(values))
    return value if distance else 1 / (1 + value)


REFERENCES: dict[str, Callable[..., float]] = {
    "linear_regression": linear_regression,
    "linear_fit": linear_fit,
    "magnitude": magnitude,
    "concentricity": concentricity,
    "uniformity": uniformity,
    "imd": imd,
    "rtd": rtd,
}
# besides the defaults
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "linear_regression": [{"ridge": 1.0, "folds": 3}, {"ridge": 0.0, "folds": 2}, {"ridge": 1e-9, "folds": 4}],
    "uniformity": [{"t": 0.1}],
    "rtd": [{"batch": 8, "trials": 2, "seed": 3}],
}
