"""Fréchet distance, precision and recall against torch-fidelity's and against cases known in closed form."""

from __future__ import annotations

import pytest
import torch

from alignlab.restoration import frechet_distance, precision_recall

fid = pytest.importorskip("torch_fidelity.metric_fid", reason="torch-fidelity is not installed")
prc = pytest.importorskip("torch_fidelity.metric_prc")


def features(n, d, seed, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator) @ torch.randn(d, d, generator=generator) + shift


@pytest.mark.parametrize(("n", "m", "d"), [(200, 150, 12), (40, 60, 30), (20, 25, 64)])
def test_frechet_is_torch_fidelitys(n, m, d):
    x, y = features(n, d, 0).double(), features(m, d, 1, 0.5).double()
    stats = [fid.fid_features_to_statistics(z) for z in (x, y)]
    expected = fid.fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-4)


def test_frechet_of_shifted_and_scaled_gaussians():
    x = features(500, 8, 0).double()
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x + 3) == pytest.approx(8 * 9, rel=1e-9)
    variance = float(x.var(0).sum())
    centred = x - x.mean(0)
    assert frechet_distance(centred, 2 * centred) == pytest.approx(variance, rel=1e-9)  # (2 - 1)^2 tr C


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_are_torch_fidelitys(k):
    real, made = features(80, 6, 0), features(60, 6, 0)[:50] * 0.7
    expected = prc.calculate_precision_recall_full(made.double(), real.double(), k)
    assert precision_recall(real, made, k) == pytest.approx(expected, abs=1e-6)
    assert 0 < expected[1] < 1


def test_disjoint_and_identical_sets():
    x = features(30, 5, 0)
    assert precision_recall(x, x) == (1.0, 1.0)
    assert precision_recall(x, x + 1000) == (0.0, 0.0)
    one_corner = x[:1] + 1e-3 * torch.randn(30, 5, generator=torch.Generator().manual_seed(2))
    precision, recall = precision_recall(x, one_corner)
    assert precision == 1.0
    assert recall < 0.1  # all of them real-looking, and one kind only


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.rand(5, 3), torch.rand(5, 4), r"\[5, 3\] and \[5, 4\]"),
        (torch.rand(5), torch.rand(5), r"\[N, D\]"),
        (torch.full((5, 3), torch.inf), torch.rand(5, 3), "finite"),
    ],
)
def test_wrong_features_are_named(x, y, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(x, y)
    with pytest.raises(ValueError, match=message):
        precision_recall(x, y)


def test_k_must_fit():
    with pytest.raises(ValueError, match="k must be 1 or more"):
        precision_recall(torch.rand(5, 3), torch.rand(5, 3), 0)
    with pytest.raises(ValueError, match="N, M >= 6"):
        precision_recall(torch.rand(5, 3), torch.rand(9, 3), 5)
