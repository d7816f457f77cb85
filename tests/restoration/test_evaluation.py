"""Evaluation: every column as computed by hand, whatever the batch; misaligned outputs found and bad ones not mistaken."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from alignlab.data import load_dataset, resize, to_tensor
from alignlab.data.degradations import Denoise, pair
from alignlab.models import load_encoder, load_llm
from alignlab.models.pca import to_images, to_patches
from alignlab.restoration.evaluation import evaluate, misaligned
from alignlab.restoration.experts import Linear
from alignlab.restoration.lm4lv import LM4LV
from alignlab.restoration.quality import psnr, ssim
from alignlab.restoration.restorer import Restorer

N = 60


@pytest.fixture(scope="module")
def scenes():
    data = load_dataset("scenes")
    return torch.cat([resize(to_tensor(data[i * len(data) // N].image)[None], 64) for i in range(N)])


@pytest.fixture(scope="module")
def mae(small_mae):
    return load_encoder(str(small_mae))


def of(images):
    return lambda start, end: images[start:end]


@pytest.mark.parametrize("task", ["denoise", "pepper", "rotate", "repeat"])
def test_columns_are_those_computed_by_hand(mae, small_llm, scenes, task):
    images = F.interpolate(scenes[:5], (32, 32), mode="area")
    model = LM4LV(mae, load_llm(str(small_llm)), task_tokens=2, tasks=(task,))
    found = evaluate(model, of(images), 5, task, seed=7, batch_size=2)
    low, high = pair(images, task, seed=7)
    made = mae.decode(model.generate(mae.encode(low), task).tokens)
    told = mae.decode(model.told(mae.encode(low), mae.encode(high), task))
    assert found.told.psnr.value == pytest.approx(float(psnr(told, high).mean()), abs=1e-3)
    spatial = task in ("rotate", "repeat")
    alone = mae.decode(mae.encode(high if spatial else low))
    assert found.restored.psnr.value == pytest.approx(float(psnr(made, high).mean()), abs=1e-3)
    assert found.restored.ssim.value == pytest.approx(float(ssim(made, high).mean()), abs=1e-4)
    assert found.alone.psnr.value == pytest.approx(float(psnr(alone, high).mean()), abs=1e-3)
    assert found.gain.psnr.value == pytest.approx(float((psnr(made, high) - psnr(alone, high)).mean()), abs=1e-3)
    assert found.gain.ssim.value == pytest.approx(float((ssim(made, high) - ssim(alone, high)).mean()), abs=1e-4)
    if spatial:
        assert found.degraded.psnr.value == math.inf
        assert (found.degraded.ssim.value, found.degraded.psnr.infinite, found.lift) == (pytest.approx(1), 5, None)
    else:
        assert found.degraded.psnr.value == pytest.approx(float(psnr(low, high).mean()), abs=1e-3)
        assert found.lift.psnr.value == pytest.approx(float((psnr(made, high) - psnr(low, high)).mean()), abs=1e-3)
    assert torch.equal(found.shown["given"], low)
    assert torch.equal(found.shown["truth"], high)
    torch.testing.assert_close(found.shown["lm4lv"], made, atol=1e-4, rtol=0)


def test_a_model_that_reads_nothing_of_its_own_has_no_teacher(mae, scenes):
    assert evaluate(Linear(mae), of(F.interpolate(scenes[:2], (32, 32), mode="area")), 2, "denoise").told is None


def test_the_batch_size_changes_nothing(mae, scenes):
    images = F.interpolate(scenes[:9], (32, 32), mode="area")
    model = Linear(mae, tasks=("deblur",))
    whole, cut = (evaluate(model, of(images), 9, "deblur", batch_size=size) for size in (64, 4))
    for column in ("degraded", "alone", "restored"):
        for figure in ("psnr", "ssim"):
            one, other = (getattr(getattr(e, column), figure) for e in (whole, cut))
            assert (one.n, one.infinite) == (other.n, other.infinite)
            assert one.value == pytest.approx(other.value, rel=1e-5)
    assert whole.shown.keys() == cut.shown.keys()
    for row, pictures in whole.shown.items():
        assert len(pictures) == 8
        torch.testing.assert_close(pictures, cut.shown[row], atol=1e-5, rtol=0)


def test_infinite_figures_are_left_out_and_counted(mae, scenes):
    images = F.interpolate(scenes[:12], (32, 32), mode="area")
    low, high = pair(images, "deblur", seed=0)  # a window of 1 leaves an image as it is
    endless = int(psnr(low, high).isinf().sum())
    assert 0 < endless < 12
    found = evaluate(Linear(mae, tasks=("deblur",)), of(images), 12, "deblur")
    assert found.degraded.psnr.infinite == found.lift.psnr.infinite == endless
    assert found.degraded.psnr.value == pytest.approx(float(psnr(low, high)[psnr(low, high).isfinite()].mean()))
    # The identity before training: what it restores is what encoder and decoder make of it.
    assert abs(found.gain.psnr.value) < 1e-3


class Given(Restorer):
    """Writes what it read."""

    how = "given"

    def write(self, low, task):
        return low


def test_a_decoder_that_gives_pictures_back_unchanged(scenes):
    model = Given(load_encoder("pca"), ("repeat",))  # all components are kept
    eight_bits = (scenes[:4] * 255).round() / 255
    found = evaluate(model, of(eight_bits), 4, "repeat")
    assert found.restored.psnr.value == found.alone.psnr.value == math.inf
    assert found.gain is None
    assert found.lift is None
    assert found.misaligned == 0


def test_other_strengths_than_those_trained_on(mae, scenes):
    images = F.interpolate(scenes[:4], (32, 32), mode="area")
    strong = Denoise(sigma=(90, 90))
    found = evaluate(Linear(mae), of(images), 4, "denoise", parameters=strong, seed=3)
    low, high = pair(images, "denoise", seed=3, parameters=strong)
    assert found.degraded.psnr.value == pytest.approx(float(psnr(low, high).mean()), abs=1e-6)
    assert found.degraded.psnr.value < evaluate(Linear(mae), of(images), 4, "denoise", seed=3).degraded.psnr.value - 3


def test_training_goes_on_in_its_mode(mae, scenes):
    model = Linear(mae).train()
    evaluate(model, of(F.interpolate(scenes[:1], (32, 32), mode="area")), 1, "denoise")
    assert model.training


# --- misaligned outputs ---


def moved(images, start, by):
    """The patches from `start` on come `by` places too early (a token was lost) or late (doubled)."""
    patches = to_patches(images, 8)
    place = torch.arange(64)
    place[start:] = (place[start:] + by).clamp(0, 63)
    return to_images(patches[:, place], 8, 8)


def blurred(images, sigma):
    reach = int(3 * sigma) + 1
    line = torch.exp(-(torch.arange(-reach, reach + 1.0) ** 2) / (2 * sigma**2))
    window = (line[:, None] * line / line.sum() ** 2).expand(3, 1, -1, -1)
    return F.conv2d(F.pad(images, (reach,) * 4, mode="replicate"), window, groups=3)


def noisy(images, sigma):
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + sigma * noise).clamp(0, 1)


@pytest.mark.parametrize("by", [1, -1, 2])
@pytest.mark.parametrize(("start", "least"), [(0, 1.0), (16, 1.0), (21, 0.95), (32, 0.95), (43, 0.8), (48, 0.7)])
def test_a_lost_or_doubled_token_is_found_wherever_it_is(scenes, start, by, least):
    assert float(misaligned(moved(scenes, start, by), scenes, 8).double().mean()) >= least


@pytest.mark.parametrize("spoil", [lambda x: noisy(x, 0.1), lambda x: blurred(x, 2), lambda x: 0.8 * x + 0.1])
def test_it_is_found_in_outputs_that_are_no_perfect_copies(scenes, spoil):
    assert float(misaligned(spoil(moved(scenes, 20, 1)), scenes, 8).double().mean()) >= 0.85


def test_bad_outputs_in_place_are_not_mistaken(scenes):
    outputs = {
        "itself": scenes,
        **{f"noise {sigma}": noisy(scenes, sigma) for sigma in (0.1, 0.3)},
        **{f"blur {sigma}": blurred(scenes, sigma) for sigma in (1, 3, 8, 16)},
        "brighter": (scenes + 0.2).clamp(0, 1),
        "darker": scenes / 2,
        "mean colour": scenes.mean((2, 3), keepdim=True).expand_as(scenes),
        "mean picture": scenes.mean(0, keepdim=True).expand_as(scenes),
        "another picture": scenes.roll(1, 0),
        "negative": 1 - scenes,
        "grey": torch.full_like(scenes, 0.5),
        "patches' means": F.interpolate(F.interpolate(scenes, (8, 8), mode="area"), (64, 64)),
    }
    found = {name: int(misaligned(output, scenes, 8).sum()) for name, output in outputs.items()}
    assert max(found.values()) <= 2, found
    assert sum(found.values()) <= 0.005 * N * len(outputs), found


def test_a_flat_picture_looks_the_same_when_moved():
    flat = torch.full((1, 3, 64, 64), 0.3)
    assert not misaligned(flat, flat, 8).any()


def test_a_picture_of_one_row_of_patches_has_none_after_it():
    assert not misaligned(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8), 8).any()


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"the same \[B, 3, H, W\] in patches of 8, got \[1, 3, 60, 64\]"):
        misaligned(torch.zeros(1, 3, 60, 64), torch.zeros(1, 3, 60, 64), 8)
    with pytest.raises(ValueError, match=r"\[1, 3, 64, 64\] and \[2, 3, 64, 64\]"):
        misaligned(torch.zeros(1, 3, 64, 64), torch.zeros(2, 3, 64, 64), 8)


def test_misaligned_outputs_are_counted(scenes):
    model = Given(load_encoder("pca"), ("repeat",))
    model.write = lambda low, task: torch.cat([low[:, :16], low[:, 17:], low[:, -1:]], 1)
    assert evaluate(model, of(scenes[:6]), 6, "repeat", batch_size=4).misaligned == 6
