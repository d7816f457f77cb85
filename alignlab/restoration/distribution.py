"""Are two sets of images alike as sets? Fréchet distance, precision and recall, on the features of a named network.

With Inception-v3's 2,048 pooled features the first is the FID (and rFID, where the second set is a reconstruction of the
first). With any other network the formulas are the same and the numbers are not: they are called FD(network).
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 4096  # rows of a distance matrix at a time: 4,096 x 50,000 in float64 are 1.6 GB


def _check(x: Tensor, y: Tensor, least: int) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < least:
        raise ValueError(
            f"x and y must be [N, D] and [M, D] with N, M >= {least}, got {list(x.shape)} and {list(y.shape)}"
        )
    if not (bool(x.isfinite().all()) and bool(y.isfinite().all())):
        raise ValueError("features must be finite, got NaN or inf")


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Fréchet distance of two Gaussians fitted to features `[N, D]` and `[M, D]` (Heusel et al. 2017); 0 is the least.

    |mean difference|^2 + tr(Cx + Cy - 2 (Cx Cy)^(1/2)). It is biased upwards by few samples: compare only at the same
    N and M. Computed in float64 from singular values of the centred features, so that no matrix root is needed and
    N < D does no harm: tr((Cx Cy)^(1/2)) is the sum of the singular values of Y X^T, up to the normalisation.
    Raises ValueError for shapes that do not fit, fewer than 2 rows, and values that are not finite.
    """
    _check(x, y, 2)
    x, y = x.double(), y.double()
    mean_x, mean_y = x.mean(0), y.mean(0)
    x, y = (x - mean_x) / (len(x) - 1) ** 0.5, (y - mean_y) / (len(y) - 1) ** 0.5  # Cx = x^T x
    # tr((Cx Cy)^(1/2)) is the nuclear norm of x y^T; with more rows than columns, that of the square factors' product.
    rx, ry = (torch.linalg.qr(z, mode="r").R if len(z) > z.shape[1] else z for z in (x, y))
    cross = torch.linalg.svdvals(rx @ ry.T).sum()
    distance = (mean_x - mean_y).square().sum() + x.square().sum() + y.square().sum() - 2 * cross
    return max(float(distance), 0.0)


def precision_recall(real: Tensor, made: Tensor, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019) of features `[N, D]` and `[M, D]`, each in 0..1.

    Precision is the share of `made` that lies within some `real` item's distance to its k-th neighbour among the real
    ones; recall is the same with the roles exchanged. Raises ValueError for shapes that do not fit and for k outside
    1..N-1.
    """
    if k < 1:
        raise ValueError(f"k must be 1 or more, got {k}")
    _check(real, made, k + 1)
    real, made = real.double(), made.double()
    return _share_inside(made, real, _radii(real, k)), _share_inside(real, made, _radii(made, k))


def _radii(x: Tensor, k: int) -> Tensor:
    """The distance of every row to its k-th neighbour among the others, `[N]`."""
    # k + 1 smallest: the row itself is at distance 0
    return torch.cat([torch.cdist(part, x).kthvalue(k + 1, dim=1).values for part in x.split(CHUNK)])


def _share_inside(x: Tensor, centres: Tensor, radii: Tensor) -> float:
    inside = torch.cat([(torch.cdist(part, centres) <= radii).any(1) for part in x.split(CHUNK)])
    return float(inside.double().mean())
