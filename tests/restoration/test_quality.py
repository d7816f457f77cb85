"""PSNR and SSIM against the same formulas written out with numpy and scipy; means with intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from alignlab.restoration import l1, psnr, ssim
from alignlab.restoration.quality import mean

GENERATOR = torch.Generator().manual_seed(0)
A = torch.rand(3, 3, 40, 36, generator=GENERATOR)
B = (A + 0.1 * torch.randn(A.shape, generator=GENERATOR)).clamp(0, 1)


def eight_bits(images):
    return np.rint(images.numpy().astype(np.float64) * 255)[:, :, 4:-4, 4:-4]


def ssim_of_channel(x, y):
    def blur(z):  # 11 x 11, sigma 1.5, then only where the window fits whole
        return gaussian_filter(z, 1.5, radius=5)[5:-5, 5:-5]

    c1, c2 = 6.5025, 58.5225
    mx, my = blur(x), blur(y)
    vx, vy, cov = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    return (((2 * mx * my + c1) * (2 * cov + c2)) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean()


def test_psnr_is_basicsrs():
    error = ((eight_bits(A) - eight_bits(B)) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(psnr(A, B), 10 * np.log10(255**2 / error), rtol=1e-12)
    assert psnr(A, B).shape == (3,)


def test_ssim_is_basicsrs():
    x, y = eight_bits(A), eight_bits(B)
    expected = [np.mean([ssim_of_channel(x[i, c], y[i, c]) for c in range(3)]) for i in range(3)]
    np.testing.assert_allclose(ssim(A, B), expected, rtol=1e-9)


def test_the_border_does_not_count():
    changed = A.clone()
    changed[:, :, :4] = 1 - changed[:, :, :4]
    changed[:, :, :, -4:] = 0
    assert psnr(A, changed).isinf().all()
    assert (psnr(A, changed, border=0) < 20).all()


def test_identical_images_are_infinitely_alike():
    assert psnr(A, A).isinf().all()
    torch.testing.assert_close(ssim(A, A), torch.ones(3, dtype=torch.float64))
    assert (l1(A, A) == 0).all()
    # a difference that 8 bits cannot hold is none
    assert psnr(A, (A + 1e-6).clamp(0, 1)).isinf().sum() >= 1


def test_l1_is_of_the_images_as_they_are():
    torch.testing.assert_close(l1(A, B), (A - B).double().abs().mean((1, 2, 3)), rtol=1e-6, atol=0)


def test_a_mean_says_how_many_were_infinite():
    values = torch.tensor([20.0, math.inf, 30.0, 40.0])
    found = mean(values)
    assert (found.value, found.infinite, found.n) == (30.0, 1, 4)
    assert 20 <= found.ci95[0] < 30 < found.ci95[1] <= 40
    assert mean(torch.full((2,), math.inf)).value == math.inf
    assert mean(values) == mean(values)


def test_an_interval_shrinks_with_the_root_of_n():
    values = torch.randn(1600, generator=torch.Generator().manual_seed(1))
    low, high = mean(values).ci95
    assert (high - low) / 2 == pytest.approx(1.96 * float(values.std()) / 40, rel=0.1)


@pytest.mark.parametrize("measure", [psnr, ssim, l1])
@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (A, B[:2], r"\[3, 3, 40, 36\] and \[2, 3, 40, 36\]"),
        (A[0], B[0], r"must both be \[B, 3, H, W\]"),
        (A * 255, B * 255, r"a must be in 0\.\.1"),
        (A, B.masked_fill(B > 0.5, math.nan), r"b must be in 0\.\.1"),
        ((A * 255).byte(), (B * 255).byte(), "floats in 0..1"),
    ],
)
def test_wrong_images_are_named(measure, a, b, message):
    with pytest.raises(ValueError, match=message):
        measure(a, b)


def test_too_small_for_the_window():
    with pytest.raises(ValueError, match="less than 11 pixels"):
        ssim(A[:, :, :18, :18], B[:, :, :18, :18])


def test_no_values_and_nan_have_no_mean():
    with pytest.raises(ValueError, match="got 0"):
        mean(torch.tensor([]))
    with pytest.raises(ValueError, match="1 NaN"):
        mean(torch.tensor([1.0, math.nan]))
