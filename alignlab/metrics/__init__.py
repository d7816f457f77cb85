"""Similarity of representations: functions `(X [N, Dx], Y [N, Dy]) -> float`, larger means more alike.

>>> import numpy as np
>>> X = np.random.default_rng(0).normal(size=(50, 8))
>>> score("mutual_knn", X, X, k=5)
1.0

`table()` lists them all with what is known about each; `@metric(...)` makes one of your own function.
"""

from __future__ import annotations

from typing import Any

from alignlab.metrics.cca import pwcca, svcca
from alignlab.metrics.check import check_metric
from alignlab.metrics.kernels import (
    cka,
    distance_correlation,
    eigenspace_overlap,
    gulp,
    minibatch_cka,
    rbf_cka,
    rsm_difference,
    unbiased_cka,
)
from alignlab.metrics.matching import hard_correlation_match, soft_correlation_match
from alignlab.metrics.neighbours import (
    cknna,
    cycle_knn,
    edit_distance_knn,
    jaccard_knn,
    joint_rank_knn,
    lcs_knn,
    mutual_knn,
    rank_similarity,
    second_order_cosine,
)
from alignlab.metrics.permutation import PermutationTest, cka_test
from alignlab.metrics.preparation import prepare
from alignlab.metrics.procrustes import (
    aligned_cosine,
    angular_shape,
    permutation_procrustes,
    procrustes,
    size_and_shape,
)
from alignlab.metrics.registry import (
    REGISTRY,
    Metric,
    check_name,
    metric,
    score,
    table,
)
from alignlab.metrics.regression import linear_fit, linear_regression
from alignlab.metrics.rsa import rsa
from alignlab.metrics.statistics import concentricity, magnitude, uniformity
from alignlab.metrics.topology import imd, rtd

NAMES: tuple[str, ...]

__all__ = [
    "NAMES",
    "Metric",
    "PermutationTest",
    "aligned_cosine",
    "angular_shape",
    "check_metric",
    "check_name",
    "cka",
    "cka_test",
    "cknna",
    "concentricity",
    "cycle_knn",
    "distance_correlation",
    "edit_distance_knn",
    "eigenspace_overlap",
    "gulp",
    "hard_correlation_match",
    "imd",
    "jaccard_knn",
    "joint_rank_knn",
    "lcs_knn",
    "linear_fit",
    "linear_regression",
    "magnitude",
    "metric",
    "minibatch_cka",
    "mutual_knn",
    "permutation_procrustes",
    "prepare",
    "procrustes",
    "pwcca",
    "rank_similarity",
    "rbf_cka",
    "rsa",
    "rsm_difference",
    "rtd",
    "score",
    "second_order_cosine",
    "size_and_shape",
    "soft_correlation_match",
    "svcca",
    "table",
    "unbiased_cka",
    "uniformity",
]


def __getattr__(name: str) -> Any:
    if name == "NAMES":  # asked for anew each time: a metric of the user's own is one of them
        return tuple(REGISTRY)
    raise AttributeError(f"module 'alignlab.metrics' has no attribute {name!r}")
