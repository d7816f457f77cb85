"""MAE's decoder: normalised patches, hidden patches, a decoder of another checkpoint."""

from __future__ import annotations

import shutil

import pytest
import torch
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from alignlab.models import load_encoder
from alignlab.models.mae import read_decoder, write_decoder

IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
SIZES = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 32,
}
MEAN, STD = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def saved(folder, seed=0, **changes):
    torch.manual_seed(seed)
    model = ViTMAEForPreTraining(ViTMAEConfig(**{**SIZES, **changes}))
    for parameter in model.parameters():  # zeros at initialisation must count too
        parameter.data += 0.02 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return str(folder)


def test_hidden_patches_are_filled_as_transformers_does(tmp_path):
    folder = saved(tmp_path)
    reference = ViTMAEForPreTraining.from_pretrained(folder).eval()
    hidden = torch.zeros(16, dtype=torch.bool)
    hidden[[0, 5, 10, 15]] = True
    reference.config.mask_ratio = 0.25
    with torch.no_grad():
        out = reference((IMAGES - MEAN) / STD, noise=(torch.arange(16) + 100.0 * hidden).expand(3, -1))
    assert (out.mask.bool() == hidden).all()
    expected = (reference.unpatchify(out.logits) * STD + MEAN).clamp(0, 1)
    encoder = load_encoder(folder)
    torch.testing.assert_close(encoder.fill(IMAGES, hidden), expected, atol=1e-5, rtol=1e-4)
    # the encoder must not see what is hidden, and afterwards it sees everything again
    changed = IMAGES.clone()
    changed[:, :, :8, :8] = 0.5
    torch.testing.assert_close(encoder.fill(changed, hidden), encoder.fill(IMAGES, hidden))
    assert encoder.encode(IMAGES).shape == (3, 17, 24)
    torch.testing.assert_close(encoder.fill(IMAGES, ~hidden & hidden), encoder.decode(encoder.encode(IMAGES)))


def test_more_patches_than_bfloat16_can_count(tmp_path):
    encoder = load_encoder(saved(tmp_path, image_size=192), dtype="bfloat16")
    assert encoder.patches == 24 * 24
    images = torch.rand(1, 3, 192, 192, generator=torch.Generator().manual_seed(0))
    hidden = torch.zeros(24, 24, dtype=torch.bool)
    hidden[::2, ::3] = True  # the first one too: its number is next to the last one's
    seen = images.clone()  # what is hidden must not count
    seen.view(3, 24, 8, 24, 8)[:, ::2, :, ::3] = 0
    assert torch.equal(encoder.fill(seen, hidden.flatten()), encoder.fill(images, hidden.flatten()))
    nothing = torch.zeros(576, dtype=torch.bool)
    torch.testing.assert_close(encoder.fill(images, nothing), encoder.decode(encoder.encode(images)))


@pytest.mark.parametrize(
    "hidden", [torch.ones(16, dtype=torch.bool), torch.zeros(9, dtype=torch.bool), torch.zeros(16)]
)
def test_wrong_choices_of_patches_are_named(tmp_path, hidden):
    with pytest.raises(ValueError, match=r"hidden must be bool \[16\], not all true"):
        load_encoder(saved(tmp_path)).fill(IMAGES, hidden)


def test_every_number_of_hidden_patches_is_hidden(tmp_path):
    encoder = load_encoder(saved(tmp_path))
    for count in range(1, 16):
        hidden = torch.arange(16) < count
        seen = IMAGES.clone()
        for patch in range(count):  # raster order, 4 patches a row
            row, column = divmod(patch, 4)
            seen[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 0
        torch.testing.assert_close(encoder.fill(seen, hidden), encoder.fill(IMAGES, hidden), msg=str(count))


def test_normalised_patches_take_their_brightness_from_images(tmp_path):
    encoder = load_encoder(saved(tmp_path, norm_pix_loss=True))
    tokens = encoder.encode(IMAGES)
    with pytest.raises(ValueError, match="give brightness_of=images"):
        encoder.decode(tokens)
    decoded = encoder.decode(tokens, brightness_of=IMAGES)
    with torch.no_grad():
        raw = encoder.model.decoder(tokens, torch.arange(16).expand(3, -1)).logits
    patches = encoder.model.patchify((IMAGES - MEAN) / STD)
    expected = raw * (patches.var(-1, keepdim=True) + 1e-6) ** 0.5 + patches.mean(-1, keepdim=True)
    torch.testing.assert_close(decoded, (encoder.model.unpatchify(expected) * STD + MEAN).clamp(0, 1))


def test_plain_pixels_need_no_brightness(tmp_path):
    encoder = load_encoder(saved(tmp_path))
    with pytest.raises(ValueError, match="predicts plain pixels"):
        encoder.decode(encoder.encode(IMAGES), brightness_of=IMAGES)


def test_a_decoder_of_another_checkpoint(tmp_path):
    ours, theirs = (
        saved(tmp_path / "a"),
        saved(tmp_path / "b", seed=1, decoder_hidden_size=32, decoder_num_hidden_layers=2),
    )
    plain, mixed, other = load_encoder(ours), load_encoder(ours, decoder=theirs), load_encoder(theirs)
    tokens = plain.encode(IMAGES)
    torch.testing.assert_close(mixed.encode(IMAGES), tokens, atol=0, rtol=0)
    torch.testing.assert_close(mixed.decode(tokens), other.decode(tokens))
    assert not torch.allclose(mixed.decode(tokens), plain.decode(tokens), atol=1e-3)
    assert mixed.checkpoint == plain.checkpoint  # features do not depend on it
    assert mixed.decoder_checkpoint == other.checkpoint != plain.decoder_checkpoint
    assert not any(p.requires_grad for p in mixed.model.parameters())


def test_a_random_decoder_has_a_name(tmp_path):
    encoder = load_encoder(f"{saved(tmp_path)}@random")
    assert encoder.decoder_checkpoint == encoder.checkpoint != ""


def test_a_decoder_alone_comes_back(tmp_path):
    encoder = load_encoder(saved(tmp_path / "whole"))
    write_decoder(encoder, tmp_path / "decoder")
    back = load_encoder(str(tmp_path / "whole"), decoder=str(tmp_path / "decoder"))
    tokens = encoder.encode(IMAGES)
    torch.testing.assert_close(back.decode(tokens), encoder.decode(tokens), atol=2e-3, rtol=0)  # float16
    assert back.decoder_checkpoint.startswith("decoder@sha256:")


def test_a_decoder_that_does_not_fit_is_refused(tmp_path):
    ours = saved(tmp_path / "a")
    with pytest.raises(ValueError, match="is for patch_size 16, but a has 8"):
        load_encoder(ours, decoder=saved(tmp_path / "b", patch_size=16))
    with pytest.raises(ValueError, match="is for hidden_size 48"):
        load_encoder(ours, decoder=saved(tmp_path / "c", hidden_size=48))
    with pytest.raises(ValueError, match="behind a MAE only"):
        load_encoder("vqgan", decoder=ours)
    with pytest.raises(ValueError, match="no decoder 'nonsense'"):
        load_encoder(ours, decoder="nonsense")


def test_damaged_decoders_are_explained(tmp_path):
    whole = saved(tmp_path / "whole")
    encoder = load_encoder(whole)
    write_decoder(encoder, tmp_path / "cut")
    file = tmp_path / "cut" / "decoder.safetensors"
    shutil.copytree(tmp_path / "cut", tmp_path / "lacking")
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(ValueError, match="cannot be read as a model"):
        load_encoder(whole, decoder=str(tmp_path / "cut"))
    from safetensors.torch import load_file, save_file

    state = load_file(tmp_path / "lacking" / "decoder.safetensors")
    del state["decoder_pred.weight"]
    save_file(state, tmp_path / "lacking" / "decoder.safetensors")
    with pytest.raises(ValueError, match=r"does not fit its configuration.*decoder_pred"):
        load_encoder(whole, decoder=str(tmp_path / "lacking"))


def test_decoder_names_are_known(tmp_path):
    checkpoint, config, state = read_decoder(saved(tmp_path))
    assert checkpoint.startswith(f"{tmp_path.name}@sha256:")
    assert (config.hidden_size, config.decoder_hidden_size) == (24, 16)
    assert "decoder_pred.weight" in state
