"""Components of what is written: against what is known of tokens made for it."""

from __future__ import annotations

import math

import pytest
import torch

from alignlab.analysis.components import Read, analyse, bands, own, read, reading
from alignlab.models.pca import PCA, PCAConfig, PCAEncoder
from alignlab.restoration.coordinates import Positioned, whitened
from alignlab.restoration.quality import psnr

N, SIDE = 12, 32


def pictures(seed: int = 0, n: int = N) -> torch.Tensor:
    rough = torch.rand(n, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(rough, size=(SIDE, SIDE), mode="bilinear")


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return PCAEncoder("pca", "pca", PCA(PCAConfig(image_size=SIDE, patch=4, width=48)).eval())


def tokens_of(encoder, written, told=None):
    answer = pictures()
    truth = encoder.encode(answer)
    return Read(truth, None, written(truth), None if told is None else told(truth), answer, encoder.decode)


def test_a_perfect_answer_leaves_nothing_and_the_mean_everything(encoder):
    exact = analyse(tokens_of(encoder, lambda x: x, told=lambda x: x.mean((0, 1)).expand_as(x)))
    assert exact["width"] == exact["components"] == 48
    assert exact["carried"]["written"]["value"] == pytest.approx(48)
    assert exact["carried"]["told"]["value"] == pytest.approx(0, abs=1e-3)
    for band in exact["bands"]:
        assert band["unexplained"]["written"]["value"] == pytest.approx(0, abs=1e-9)
        assert band["unexplained"]["told"]["value"] == pytest.approx(1, abs=1e-3)
        assert band["psnr"]["written"] == band["psnr"]["true"]
        assert band["psnr"]["alone"] == exact["psnr"]["true"]
    worth = [band["psnr"]["true"]["mean"] or math.inf for band in exact["bands"]]
    assert worth == sorted(worth)
    assert sum(band["share"] for band in exact["bands"]) == pytest.approx(1)


def test_what_is_lost_is_found_in_its_component(encoder):
    """The components are scikit-learn's; one of them halved leaves a quarter of it, and nothing of the others."""
    from sklearn.decomposition import PCA as Reference

    truth = encoder.encode(pictures()).double()
    reference = Reference().fit(truth.flatten(0, 1).numpy())
    direction = torch.from_numpy(reference.components_[20])

    def halved(x):
        x = x.double()
        along = ((x - x.mean((0, 1))) @ direction)[..., None] * direction
        return x - 0.5 * along

    found = analyse(tokens_of(encoder, halved))
    rest = [value for i, value in enumerate(found["unexplained"]["written"]) if i != 20]
    assert found["unexplained"]["written"][20] == pytest.approx(0.25, rel=1e-3)
    assert max(rest) < 1e-4
    assert found["carried"]["written"]["value"] == pytest.approx(47.75, rel=1e-4)
    shares = reference.explained_variance_ratio_
    assert [band["share"] for band in found["bands"]] == pytest.approx(
        [shares[first - 1 : last].sum() for first, last in bands(48)], rel=1e-6
    )
    first, second, third = (band["unexplained"]["written"]["value"] for band in found["bands"])
    assert second == pytest.approx(0.25 * shares[20] / shares[16:32].sum(), rel=1e-3)
    assert max(first, third) < 1e-5
    spoilt = [band["psnr"]["alone"]["mean"] for band in found["bands"]]
    assert spoilt[0] == spoilt[2] == found["psnr"]["true"]["mean"]  # none where nothing was lost
    assert spoilt[1] == pytest.approx(found["psnr"]["written"]["mean"], abs=1e-3)


def test_cut_tokens_are_decoded_with_the_mean_beyond(encoder):
    answer = pictures()
    truth = encoder.encode(answer).double()
    rows = truth.flatten(0, 1) - truth.mean((0, 1))
    _, _, directions = torch.linalg.svd(rows, full_matrices=False)
    kept = (rows @ directions[:16].T @ directions[:16] + truth.mean((0, 1))).reshape(truth.shape)
    expected = psnr(encoder.decode(kept.float()), answer).mean()
    found = analyse(tokens_of(encoder, lambda x: x))
    assert found["bands"][0]["psnr"]["true"]["mean"] == pytest.approx(float(expected), abs=1e-4)


def test_components_without_variance_count_for_nothing(encoder):
    answer = pictures()
    truth = encoder.encode(answer)
    truth[..., 30:] = 0.5
    found = analyse(Read(truth, None, truth + 0.1, None, answer, encoder.decode))
    assert found["components"] == 30
    assert found["unexplained"]["written"][30:] == [None] * 18
    assert found["carried"]["written"]["value"] <= 30
    assert found["bands"][-1]["unexplained"]["written"] == {"value": None, "ci95": None}
    text = reading({**found, "checkpoint": "mine", "task": "denoise"})
    assert text.startswith(
        f"mine, denoise: it writes {found['carried']['written']['value']:.0f} of 30 components' worth; of"
    )
    assert text.endswith(" in 17 to 32.")  # the last that vary


def test_intervals_hold_the_value_and_narrow_with_pictures(encoder):
    generator = torch.Generator().manual_seed(3)

    def width(n):
        answer = pictures(1, n)
        truth = encoder.encode(answer)
        noise = torch.rand(n, 1, 1, generator=generator) * torch.randn(truth.shape, generator=generator)
        found = analyse(Read(truth, None, truth + 0.1 * noise, None, answer, encoder.decode))
        one = found["bands"][0]["unexplained"]["written"]
        assert one["ci95"][0] < one["value"] < one["ci95"][1]
        return one["ci95"][1] - one["ci95"][0]

    assert width(256) < 0.5 * width(8)


def test_the_interval_of_components_worth_is_not_moved_by_what_is_cut_off_at_nought(encoder):
    """Each component's error is as large as itself, so that nothing arrives; by chance half of the draws find a little."""
    answer = pictures(1, 8)
    truth = encoder.encode(answer)
    other = truth.roll(1, 0) - truth.mean((0, 1))
    one = analyse(Read(truth, None, truth + other, None, answer, encoder.decode))["carried"]["written"]
    assert one["value"] == pytest.approx(0, abs=1e-4)
    assert one["ci95"][0] < one["value"] < one["ci95"][1]


def test_too_little_is_refused(encoder):
    answer = pictures(n=1)
    truth = encoder.encode(answer)
    with pytest.raises(ValueError, match="two pictures or more, got 1"):
        analyse(Read(truth, None, truth, None, answer, encoder.decode))
    few = torch.rand(2, 20, 48)
    with pytest.raises(ValueError, match="2 pictures have 40 tokens, too few for 48 components; give 3 or more"):
        analyse(Read(few, None, few, None, pictures(n=2), encoder.decode))
    same = torch.ones(N, 16, 48)
    with pytest.raises(ValueError, match="the same in every place"):
        analyse(Read(same, None, same, None, pictures(), encoder.decode))


def test_tokens_are_the_encoders_own_whatever_is_around_it(encoder):
    clean = pictures()
    around = whitened(Positioned(encoder), clean)
    inside, tokens = own(around, around.encode(clean))
    assert inside is encoder
    assert torch.allclose(tokens, encoder.encode(clean), atol=1e-4)


def test_reading_is_an_evaluations(encoder):
    """The decoded pictures of what is read have the PSNR that an evaluation finds."""
    from alignlab.restoration.evaluation import evaluate
    from alignlab.restoration.experts import MLP

    clean = pictures(2)
    model = MLP(whitened(encoder, clean), 5000, tasks=("denoise", "rotate"), seed=0).eval()

    def some(start, end):
        return clean[start:end]

    for task in ("denoise", "rotate"):
        found = analyse(read(model, some, N, task, seed=4, batch_size=5))
        evaluated = evaluate(model, some, N, task, seed=4)
        assert found["psnr"]["written"]["mean"] == pytest.approx(evaluated.restored.psnr.value, abs=1e-3)
        there = [name for name, one in found["carried"].items() if one is not None]
        assert there == (["given", "written"] if task == "denoise" else ["written"])
        if task == "denoise":
            assert found["psnr"]["given"]["mean"] == pytest.approx(evaluated.alone.psnr.value, abs=1e-3)
