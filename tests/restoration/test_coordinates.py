"""Encoders seen through other coordinates: what comes back is what went in, and the adapters fold."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from alignlab.models.registry import load_encoder
from alignlab.restoration.coordinates import Positioned, Whitened, open_encoder, position_code, whitened
from alignlab.restoration.lm4lv import LM4LV

IMAGES = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def mae(small_mae: Path) -> object:
    return load_encoder(str(small_mae))


@pytest.fixture(scope="module")
def vqgan() -> object:
    return load_encoder("vqgan")


# --- position ---


def test_every_cell_has_its_own_code_of_the_same_size() -> None:
    for grid in (1, 2, 8, 14, 16):
        code = position_code(grid)
        assert code.shape == (grid**2, 16)
        torch.testing.assert_close(code.square().mean(1).sqrt(), torch.ones(grid**2))
        apart = torch.cdist(code, code) + 10 * torch.eye(grid**2)
        assert float(apart.min()) > 0.5


def test_the_first_half_is_the_row_and_the_second_the_column() -> None:
    code = position_code(5).view(5, 5, 16)
    assert torch.equal(code[:, 0, :8], code[:, 4, :8])
    assert torch.equal(code[0, :, 8:], code[4, :, 8:])
    assert not torch.allclose(code[0, 0, :8], code[1, 0, :8])
    assert torch.equal(code[2, 3, 8:], code[3, 2, :8])


def test_position_is_appended_and_dropped(mae, vqgan):
    for encoder, first in ((mae, 1), (vqgan, 0)):
        seen = Positioned(encoder)
        tokens, plain = seen.encode(IMAGES), encoder.encode(IMAGES)
        assert tokens.shape == (6, plain.shape[1], seen.width)
        assert seen.width == encoder.width + 16
        assert torch.equal(tokens[..., :-16], plain)
        assert bool((tokens[:, :first, -16:] == 0).all())
        grid = int((plain.shape[1] - first) ** 0.5)
        assert torch.equal(tokens[4, first:, -16:], position_code(grid))
        other = tokens.clone()
        other[..., -16:] = 7
        assert seen.name == f"{encoder.name}+position"
        assert seen.checkpoint == f"{encoder.checkpoint}+position"
        assert (seen.image_size, seen.pools, seen.model) == (encoder.image_size, encoder.pools, encoder.model)
        assert torch.equal(seen.layers(IMAGES), encoder.layers(IMAGES))
        if encoder is vqgan:
            assert torch.equal(seen.decode(other), encoder.decode(plain))


def test_tokens_that_fill_no_square_are_refused(mae):
    ragged = SimpleNamespace(
        **{k: getattr(mae, k) for k in ("checkpoint", "image_size", "num_layers", "pools", "model")}
    )
    ragged.name, ragged.width, ragged.decode = "ragged", 4, mae.decode
    for count in (3, 7, 12):
        ragged.encode = lambda images, count=count: torch.zeros(len(images), count, 4)
        with pytest.raises(ValueError, match=f"ragged gives {count} tokens"):
            Positioned(ragged).encode(IMAGES)
    with pytest.raises(ValueError, match=r"tokens must be \[B, T, 20\]"):
        Positioned(ragged).decode(torch.zeros(1, 4, 4))
    with pytest.raises(ValueError, match="multiple of 4"):
        position_code(4, 6)


def test_an_encoder_without_a_decoder_is_refused() -> None:
    with pytest.raises(ValueError, match="blind has no decoder"):
        Positioned(SimpleNamespace(name="blind"))


# --- whitening ---


def test_whitened_tokens_are_white(vqgan):
    images = torch.rand(20, 3, 64, 64, generator=torch.Generator().manual_seed(0)) ** 2
    seen = whitened(vqgan, images, floor=0.0, batch_size=7)
    z = seen.encode(images).flatten(0, 1).double()
    torch.testing.assert_close(z.mean(0), torch.zeros(seen.width, dtype=torch.float64), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.T @ z / len(z), torch.eye(seen.width, dtype=torch.float64), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("power", "floor"), [(0.0, 0.0), (0.25, 0.1), (0.5, 0.02), (1.0, 0.5)])
def test_components_follow_the_covariance(vqgan, power: float, floor: float):
    h = vqgan.encode(IMAGES).flatten(0, 1).double()
    values = torch.linalg.eigvalsh(torch.cov(h.T, correction=0)).flip(0)
    expected = values / (values + floor * values.mean()) ** (2 * power)
    seen = whitened(vqgan, IMAGES, power=power, floor=floor)
    z = seen.encode(IMAGES).flatten(0, 1).double()
    torch.testing.assert_close(z.square().mean(), torch.tensor(1.0, dtype=torch.float64), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.square().mean(0), expected / expected.mean(), atol=1e-3, rtol=1e-3)


def test_decode_takes_whitening_back(vqgan):
    seen = whitened(vqgan, IMAGES)
    plain = vqgan.encode(IMAGES)
    torch.testing.assert_close(seen.back(seen.encode(IMAGES)), plain, atol=1e-4, rtol=1e-4)
    assert float((seen.decode(seen.encode(IMAGES)) - vqgan.decode(plain)).abs().mean()) < 1e-3
    with pytest.raises(ValueError, match=r"tokens must be \[B, 64, 32\], got \(1, 64, 3\)"):
        seen.decode(torch.zeros(1, 64, 3))
    with pytest.raises(ValueError, match=r"tokens must be \[B, T, 32\]"):
        seen.decode(torch.zeros(64, 32))


def test_the_state_makes_the_same_encoder(vqgan):
    seen = whitened(vqgan, IMAGES)
    again = Whitened.from_state(vqgan, seen.state())
    assert again.checkpoint == seen.checkpoint
    assert again.name == "vqgan+whitened"
    assert seen.checkpoint.startswith(f"{vqgan.checkpoint}+whitened:")
    assert torch.equal(again.encode(IMAGES), seen.encode(IMAGES))
    assert whitened(vqgan, IMAGES, power=0.4).checkpoint != seen.checkpoint
    assert whitened(vqgan, IMAGES).checkpoint == seen.checkpoint


def test_a_state_that_does_not_fit_is_refused(vqgan):
    state = whitened(vqgan, IMAGES).state()
    cases = [
        ({"mean": torch.zeros(31)}, r"mean of vqgan must be \[32\], got \[31\]"),
        ({"components": torch.eye(31)}, r"components of vqgan must be \[32, 32\], got \[31, 31\]"),
        ({"scale": torch.ones(32, 1)}, r"scale of vqgan must be \[32\], got \[32, 1\]"),
        ({"scale": torch.zeros(32)}, "scale must be above 0"),
        ({"mean": torch.full((32,), float("nan"))}, "not finite"),
        ({"components": 2 * torch.eye(32)}, "orthonormal"),
        ({"more": torch.zeros(1)}, "expected the tensors components, mean, scale"),
    ]
    for change, message in cases:
        with pytest.raises(ValueError, match=message):
            Whitened.from_state(vqgan, {**state, **change})


def test_bad_fits_are_refused(vqgan, mae):
    with pytest.raises(ValueError, match="power must lie in"):
        whitened(vqgan, IMAGES, power=1.5)
    with pytest.raises(ValueError, match="floor be 0 or more"):
        whitened(vqgan, IMAGES, floor=-0.1)
    with pytest.raises(ValueError, match="N >= 1"):
        whitened(vqgan, IMAGES[:0])
    with pytest.raises(ValueError, match="fewer than 24 dimensions"):
        whitened(mae, IMAGES[:1], floor=0.0)  # 17 tokens
    assert bool(torch.isfinite(whitened(mae, IMAGES[:1]).encode(IMAGES)).all())


def test_whitening_a_positioned_encoder(vqgan):
    seen = whitened(Positioned(vqgan), IMAGES)
    z = seen.encode(IMAGES)
    assert seen.name == "vqgan+position+whitened"
    assert z.shape == (6, 64, 48)
    assert float(z.abs().max()) < 20
    torch.testing.assert_close(seen.back(z), seen.encoder.encode(IMAGES), atol=1e-4, rtol=1e-4)
    assert seen.decode(z).shape == (6, 3, 64, 64)
    assert seen.model is vqgan.model


def test_linear_adapters_can_do_the_whitening_themselves(vqgan):
    """So that it changes what is easy to learn, not what can be said."""
    torch.manual_seed(0)
    seen = whitened(vqgan, IMAGES)
    mean, components, scale = (x.double() for x in seen.state().values())
    inward, outward = nn.Linear(32, 40).double(), nn.Linear(40, 32).double()
    h, hidden = vqgan.encode(IMAGES), torch.randn(3, 5, 40)
    weight = (inward.weight * scale) @ components.T  # [40, 32]
    raw_in = h.double() @ weight.T + inward.bias - weight @ mean
    torch.testing.assert_close(raw_in.float(), inward(seen.forth(h).double()).float(), atol=1e-4, rtol=1e-4)
    inverse = components / scale  # [32, 32]: z as a column -> h - mean
    raw_out = hidden.double() @ (inverse @ outward.weight).T + inverse @ outward.bias + mean
    wanted = seen.back(outward(hidden.double()).float())
    torch.testing.assert_close(raw_out.float(), wanted, atol=1e-4, rtol=1e-4)


# --- in use ---


def test_lm4lv_takes_them_like_any_encoder(mae, small_llm: Path):
    from alignlab.models.llm import load_llm

    llm = load_llm(str(small_llm))
    for encoder in (Positioned(mae), whitened(Positioned(mae), IMAGES)):
        model = LM4LV(encoder, llm, task_tokens=2)
        tokens = encoder.encode(IMAGES)
        before = {k: v.clone() for k, v in mae.model.state_dict().items()}
        model(tokens, tokens, "denoise").total.backward()
        assert all(p.grad is not None for p in model.trainable())
        assert model.write(tokens[:2], "denoise").shape == (2, 17, 40)
        assert all(torch.equal(v, before[k]) for k, v in mae.model.state_dict().items())


def test_names() -> None:
    seen = open_encoder("vqgan+position")
    assert isinstance(seen, Positioned)
    assert seen.name == "vqgan+position"
    assert seen.checkpoint == load_encoder("vqgan").checkpoint + "+position"
    assert open_encoder("vqgan").name == "vqgan"
    assert open_encoder("mae+position").decoder_checkpoint.startswith("mae-tiny-r@")
    with pytest.raises(ValueError, match="unknown encoder 'nothing'"):
        open_encoder("nothing+position")
    with pytest.raises(ValueError, match="whitening is fitted to pictures"):
        open_encoder("mae+whitened")
