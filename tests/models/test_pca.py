"""The PCA encoder: components against a singular value decomposition, an exact inverse, and everything a name can be asked for."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from alignlab.features.extraction import handle_of
from alignlab.models import load_encoder
from alignlab.models.pca import PCA, ROUNDING, PCAConfig, PCAEncoder, fit_pca, to_images, to_patches
from alignlab.models.registry import encoder_names, expand, find_encoder
from alignlab.models.weights import folder_checkpoint
from alignlab.paths import shipped
from alignlab.pretrain.evaluate import components
from alignlab.pretrain.run import save

IMAGES = torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(0)).cumsum(3) / 16  # neighbours agree


def small(width=48, images=IMAGES):
    model = PCA(PCAConfig(image_size=16, patch=4, width=width))
    model.load_state_dict(fit_pca(images.split(5), 4, width))
    return PCAEncoder("small", "small@0", model.eval().requires_grad_(False))


def test_patches_are_those_of_the_image_in_raster_order():
    patches = to_patches(IMAGES, 4)
    assert patches.shape == (12, 16, 48)
    torch.testing.assert_close(patches[3, 6], IMAGES[3, :, 4:8, 8:12].flatten())  # row 1, column 2
    assert torch.equal(to_images(patches, 4, 4), IMAGES)


def test_components_are_those_of_a_singular_value_decomposition():
    rows = to_patches(IMAGES, 4).flatten(0, 1).double().numpy()
    centred = rows - rows.mean(0)
    _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    found = {k: v.double().numpy() for k, v in fit_pca(IMAGES.split(5), 4, 10).items()}
    np.testing.assert_allclose(found["mean"], rows.mean(0), atol=1e-6)
    np.testing.assert_allclose(found["scale"], np.sqrt((sizes[:10] ** 2).mean() / len(rows)), rtol=1e-5)
    agreement = np.abs((found["components"] * axes[:10].T).sum(0))
    np.testing.assert_allclose(agreement, 1, atol=1e-4)
    assert (found["components"].max(0) > -found["components"].min(0)).all()  # the sign that is always taken


def test_tokens_vary_apart_and_are_as_far_from_each_other_as_their_pixels():
    encoder = small()
    tokens = encoder.encode(IMAGES).flatten(0, 1).double()
    covariance = tokens.T @ tokens / len(tokens)
    torch.testing.assert_close(covariance, covariance.diag().diag(), atol=1e-3, rtol=0)
    assert (covariance.diag().diff() <= 1e-4).all()  # the largest first
    assert float(covariance.diag().mean()) == pytest.approx(1, rel=1e-4)
    pixels = to_patches(IMAGES, 4).flatten(0, 1).double()
    torch.testing.assert_close(
        torch.pdist(tokens) * float(encoder.model.scale), torch.pdist(pixels), atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(tokens.mean(0), torch.zeros(48, dtype=torch.float64), atol=1e-3, rtol=0)


def test_what_does_not_vary_is_not_blown_up():
    flat = torch.full((4, 3, 16, 16), 0.5)
    flat[:, 0] += torch.linspace(-0.1, 0.1, 4).view(4, 1, 1)
    encoder = small(images=flat)
    same = small(images=flat[:1])
    assert float(same.model.scale) == pytest.approx(ROUNDING)
    noise = (torch.randint(0, 256, flat.shape, generator=torch.Generator().manual_seed(1)) - 128) / 255 / 256
    assert float((encoder.encode(flat + noise) - encoder.encode(flat)).abs().max()) < 10


def test_decode_is_the_inverse():
    encoder = small()
    torch.testing.assert_close(encoder.decode(encoder.encode(IMAGES)), IMAGES, atol=1e-5, rtol=0)
    beyond = encoder.decode(10 * encoder.encode(IMAGES))
    assert beyond.min() == 0
    assert beyond.max() == 1


def test_fewer_components_lose_the_least_varying_part():
    rows = to_patches(IMAGES, 4).flatten(0, 1).double()
    varies = torch.linalg.eigvalsh(rows.T.cov(correction=0)).flip(0)
    errors = []
    for width in (6, 24, 47):
        encoder = small(width)
        patches = to_patches(encoder.decode(encoder.encode(IMAGES)) - IMAGES, 4)
        errors.append(float(patches.square().sum(-1).mean()))
        assert errors[-1] <= float(varies[width:].sum()) + 1e-6  # clamping can only help
    assert errors[0] > errors[1] > errors[2] > 0


def test_layers_and_pools():
    encoder = small(10)
    tokens = encoder.encode(IMAGES)
    assert encoder.encode(torch.rand(2, 3, 30, 20)).shape == (2, 16, 10)
    assert torch.equal(encoder.layers(IMAGES), tokens.flatten(1)[:, None])
    torch.testing.assert_close(encoder.layers(IMAGES, "mean"), tokens.mean(1, keepdim=True))
    assert handle_of(encoder).pools == ("concat", "mean")


def test_bad_input():
    encoder = small(10)
    with pytest.raises(ValueError, match="pool must be one of concat, mean, got 'cls'"):
        encoder.layers(IMAGES, "cls")
    with pytest.raises(ValueError, match=r"tokens must be \[B, 16, 10\], got \(1, 16, 9\)"):
        encoder.decode(torch.zeros(1, 16, 9))
    with pytest.raises(ValueError, match=r"images must be \[B, 3, H, W\]"):
        encoder.encode(torch.zeros(3, 16, 16))
    with pytest.raises(ValueError, match="sides that are multiples of 8"):
        fit_pca([torch.zeros(2, 3, 16, 12)], 8, 4)
    with pytest.raises(ValueError, match="no pictures to find components in"):
        fit_pca([], 8, 4)
    with pytest.raises(ValueError, match="a patch of 2 has 12 components, not 13"):
        fit_pca([IMAGES], 2, 13)
    with pytest.raises(ValueError, match="an image size of 20 cannot be cut into patches of 8"):
        PCAConfig(image_size=20)
    with pytest.raises(ValueError, match="patch must be a whole number from 1"):
        PCAConfig(patch=0)


def test_a_folder_is_read_and_its_errors_are_told(tmp_path):
    encoder = small(10)
    save(encoder.model, tmp_path)
    again = load_encoder(str(tmp_path))
    assert isinstance(again, PCAEncoder)
    assert again.checkpoint == folder_checkpoint(tmp_path)
    assert torch.equal(again.encode(IMAGES), encoder.encode(IMAGES))
    assert not any(p.requires_grad for p in again.model.parameters())
    config = json.loads((tmp_path / "config.json").read_text())
    assert config == {"model_type": "pca", "image_size": 16, "patch": 4, "width": 10}
    (tmp_path / "config.json").write_text(json.dumps({**config, "width": 11}))
    with pytest.raises(ValueError, match=r"components has shape \(48, 10\), its configuration asks for \(48, 11\)"):
        load_encoder(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({**config, "colours": 4}))
    with pytest.raises(ValueError, match="its configuration does not make a model"):
        load_encoder(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(config))
    state = {k: v.clone() for k, v in encoder.model.state_dict().items()}
    save_file({"mean": state["mean"]}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="lacks 2 of the model's weights, the first of them components"):
        load_encoder(str(tmp_path))


def test_the_shipped_one():
    assert {"pca", "pca-tiny"} <= set(encoder_names())
    assert expand(["all"]) == ["mae", "beit", "vqgan"]
    folder = shipped("checkpoints", "pca-tiny")
    handle = find_encoder("pca")
    assert handle.checkpoint == folder_checkpoint(folder) == find_encoder("pca-tiny").checkpoint
    encoder = load_encoder("pca")
    assert (encoder.name, encoder.checkpoint, encoder.pools) == (handle.name, handle.checkpoint, handle.pools)
    assert handle_of(encoder).checkpoint == handle.checkpoint
    product = encoder.model.components.T.double() @ encoder.model.components.double()
    torch.testing.assert_close(product, torch.eye(192, dtype=torch.float64), atol=1e-5, rtol=0)
    images = torch.rand(2, 3, 64, 64)
    assert encoder.encode(images).shape == (2, 64, 192)
    torch.testing.assert_close(encoder.decode(encoder.encode(images)), images, atol=1e-5, rtol=0)


def test_half_precision_does_not_cost_the_inverse():
    images = torch.rand(2, 3, 64, 64)
    encoder = load_encoder("pca", dtype="bfloat16")
    torch.testing.assert_close(encoder.decode(encoder.encode(images)), images, atol=1e-5, rtol=0)


def test_a_random_one_has_another_basis_and_is_always_the_same():
    encoder, again = load_encoder("pca@random"), load_encoder("pca@random")
    assert encoder.checkpoint == again.checkpoint
    assert encoder.checkpoint.startswith("pca@random@sha256:")
    basis = encoder.model.components
    assert float((basis * load_encoder("pca").model.components).sum(0).abs().max()) < 0.7
    torch.testing.assert_close(basis.T @ basis, torch.eye(192), atol=1e-5, rtol=0)
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(encoder.decode(encoder.encode(images)), images, atol=1e-5, rtol=0)


def test_figures_of_the_card_are_what_they_say():
    model = small().model
    figures, pictures = components(model, IMAGES)
    assert figures["mean square of the tokens"] == pytest.approx(1, abs=1e-3)
    assert figures["largest error of a decoded pixel"] < 1e-5
    lost = to_patches(pictures - IMAGES, 4).square().sum(-1).mean()
    varies = torch.linalg.eigvalsh(to_patches(IMAGES, 4).flatten(0, 1).double().T.cov(correction=0)).flip(0)
    assert float(lost) <= float(varies[3:].sum()) + 1e-6  # 48 // 16 = 3 are kept
    assert "PSNR of the first 3 components (dB)" in figures
