"""MAE, BEiT, VQGAN, dVAE and ViT: small random checkpoints, against an independent forward pass of transformers."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BeitConfig,
    BeitForMaskedImageModeling,
    ViTConfig,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTModel,
)

from alignlab.features.extraction import handle_of
from alignlab.models import load_encoder
from alignlab.models.dvae import DVAE, DVAEConfig
from alignlab.models.vision import load_dvae, load_vision
from alignlab.models.vqgan import VQGAN, VQGANConfig
from alignlab.pretrain.run import save

IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
VIT = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}


def by_hand(images, mean, std):
    return (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


@pytest.fixture(scope="module")
def mae_folder(tmp_path_factory):
    torch.manual_seed(0)
    config = ViTMAEConfig(
        **VIT,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
    )
    folder = tmp_path_factory.mktemp("mae-small")
    ViTMAEForPreTraining(config).save_pretrained(folder)
    return folder


def test_mae_keeps_every_patch_in_raster_order(mae_folder):
    encoder = load_encoder(str(mae_folder))
    reference = ViTMAEForPreTraining.from_pretrained(mae_folder).eval()
    pixels = by_hand(IMAGES, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with torch.no_grad():
        # independent of ViTMAE's shuffling: embed the patches, add positions, run the blocks
        embeddings = reference.vit.embeddings
        patches = embeddings.patch_embeddings(pixels) + embeddings.position_embeddings[:, 1:]
        cls = embeddings.cls_token + embeddings.position_embeddings[:, :1]
        hidden = [torch.cat([cls.expand(3, -1, -1), patches], 1)]
        for block in reference.vit.layers:
            out = block(hidden[-1])
            hidden.append(out[0] if isinstance(out, tuple) else out)
        tokens = reference.vit.layernorm(hidden[-1])
    torch.testing.assert_close(encoder.encode(IMAGES), tokens, atol=1e-5, rtol=1e-4)
    layers = encoder.layers(IMAGES)
    assert layers.shape == (3, 4, 24)
    for i, h in enumerate(hidden):
        torch.testing.assert_close(layers[:, i], h[:, 0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(encoder.layers(IMAGES, "mean")[:, 2], hidden[2][:, 1:].mean(1), atol=1e-5, rtol=1e-4)


def test_mae_features_are_the_same_twice(mae_folder):
    encoder = load_encoder(str(mae_folder))
    torch.testing.assert_close(encoder.encode(IMAGES), encoder.encode(IMAGES), atol=0, rtol=0)


def test_mae_decodes_in_place(mae_folder):
    encoder = load_encoder(str(mae_folder))
    reference = ViTMAEForPreTraining.from_pretrained(mae_folder).eval()
    reference.config.mask_ratio = 0.0
    pixels = by_hand(IMAGES, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with torch.no_grad():
        out = reference.unpatchify(reference(pixels, noise=torch.arange(16.0).expand(3, -1)).logits)
    out = out * torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1) + torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)
    decoded = encoder.decode(encoder.encode(IMAGES))
    assert decoded.shape == (3, 3, 32, 32)
    torch.testing.assert_close(decoded, out.clamp(0, 1), atol=1e-5, rtol=1e-4)


def test_mae_with_normalised_patches_refuses_to_decode(tmp_path):
    config = ViTMAEConfig(**VIT, norm_pix_loss=True, decoder_hidden_size=16, decoder_num_hidden_layers=1,
                          decoder_num_attention_heads=2, decoder_intermediate_size=32)  # fmt: skip
    ViTMAEForPreTraining(config).save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path))
    with pytest.raises(ValueError, match="norm_pix_loss"):
        encoder.decode(encoder.encode(IMAGES))


@pytest.fixture(scope="module")
def dvae_folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("dvae-small")
    model = DVAE(DVAEConfig(hidden=8, blocks_per_group=2, vocab=40, decoder_init=8, image_size=32))
    save(model, folder)
    return folder


@pytest.fixture(scope="module")
def beit_folder(tmp_path_factory, dvae_folder):
    torch.manual_seed(0)
    config = BeitConfig(**VIT, vocab_size=40, use_mask_token=True, use_shared_relative_position_bias=True)
    config.tokenizer_checkpoint = str(dvae_folder)
    folder = tmp_path_factory.mktemp("beit-small")
    model = BeitForMaskedImageModeling(config)
    for parameter in model.parameters():  # relative positions and biases start at zero: make them count
        parameter.data += 0.02 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


def test_beit_tokens_codes_and_pixels(beit_folder, dvae_folder):
    encoder = load_encoder(str(beit_folder))
    reference = BeitForMaskedImageModeling.from_pretrained(beit_folder).eval()
    pixels = by_hand(IMAGES, (0.5,) * 3, (0.5,) * 3)
    captured = {}
    reference.lm_head.register_forward_pre_hook(lambda module, inputs: captured.update(tokens=inputs[0]))
    with torch.no_grad():
        logits = reference(pixels, bool_masked_pos=torch.zeros(3, 16, dtype=torch.bool)).logits
    tokens = encoder.encode(IMAGES)
    assert tokens.shape == (3, 17, 24)
    torch.testing.assert_close(tokens[:, 1:], captured["tokens"], atol=1e-5, rtol=1e-4)
    assert (encoder.codes(tokens) == logits.argmax(-1).view(3, 4, 4)).all()
    decoded = encoder.decode(tokens)
    torch.testing.assert_close(decoded, load_dvae(str(dvae_folder)).decode(encoder.codes(tokens)))
    assert decoded.shape == (3, 3, 32, 32)
    assert encoder.layers(IMAGES).shape == (3, 4, 24)


def test_dvae_decodes_one_hot_codes(dvae_folder):
    dvae = load_dvae(str(dvae_folder))
    codes = dvae.codes(IMAGES)
    assert codes.shape == (3, 4, 4)
    one_hot = torch.zeros(3, 40, 4, 4).scatter_(1, codes[:, None], 1)
    torch.testing.assert_close(dvae.decode(codes), dvae.pixels(one_hot))


def test_dvae_has_the_published_sizes():
    with torch.device("meta"):
        model = DVAE(DVAEConfig())
    names = dict(model.named_parameters())
    # encoder.pkl and decoder.pkl of the DALL-E release
    assert tuple(names["encoder.blocks.input.w"].shape) == (256, 3, 7, 7)
    assert tuple(names["encoder.blocks.group_4.block_1.res_path.conv_1.w"].shape) == (512, 1024, 3, 3)
    assert tuple(names["encoder.blocks.output.conv.w"].shape) == (8192, 2048, 1, 1)
    assert tuple(names["decoder.blocks.input.w"].shape) == (128, 8192, 1, 1)
    assert tuple(names["decoder.blocks.output.conv.w"].shape) == (6, 256, 1, 1)


VQGAN_SMALL = VQGANConfig(32, (1, 2), 1, (16,), 8, 6, 50, 32)


@pytest.fixture(scope="module")
def vqgan_folder(tmp_path_factory):
    torch.manual_seed(0)
    model = VQGAN(VQGAN_SMALL)
    model.quantize.embedding.weight.data.normal_()
    folder = tmp_path_factory.mktemp("vqgan-small")
    save(model, folder)
    return folder


def test_vqgan_tokens_are_latents_in_raster_order(vqgan_folder):
    encoder = load_encoder(str(vqgan_folder))
    tokens = encoder.encode(IMAGES)
    assert tokens.shape == (3, 256, 6)
    with torch.no_grad():
        grid = encoder.model.quant_conv(encoder.model.encoder(IMAGES * 2 - 1))  # [3, 6, 16, 16]
    torch.testing.assert_close(tokens[:, 16 * 5 + 3], grid[:, :, 5, 3], atol=1e-5, rtol=1e-4)
    assert encoder.layers(IMAGES).shape == (3, 1, 256 * 6)
    torch.testing.assert_close(encoder.layers(IMAGES)[:, 0], tokens.flatten(1))
    torch.testing.assert_close(encoder.layers(IMAGES, "mean")[:, 0], tokens.mean(1))


def test_vqgan_decode_rounds_to_the_nearest_code(vqgan_folder):
    encoder = load_encoder(str(vqgan_folder))
    tokens = encoder.encode(IMAGES)
    book = encoder.model.quantize.embedding.weight
    nearest = torch.cdist(tokens, book.expand(3, -1, -1)).argmin(-1)
    assert (encoder.model.codes(IMAGES).flatten(1) == nearest).all()
    torch.testing.assert_close(encoder.decode(tokens), encoder.decode(book[nearest]), atol=1e-5, rtol=1e-4)


def test_vqgan_has_taming_names_and_the_published_size():
    with torch.device("meta"):
        model = VQGAN(VQGANConfig(channel_multipliers=(1, 1, 2, 2, 4)))
    names = set(model.state_dict())
    expected = {
        "encoder.down.0.block.0.conv1.weight",
        "encoder.down.0.downsample.conv.weight",
        "encoder.down.4.attn.1.proj_out.weight",
        "encoder.mid.attn_1.q.weight",
        "decoder.up.4.upsample.conv.weight",
        "decoder.up.0.block.2.nin_shortcut.weight",
        "quantize.embedding.weight",
        "quant_conv.weight",
        "post_quant_conv.bias",
    }
    missing = {n for n in expected if n not in names} - {"decoder.up.0.block.2.nin_shortcut.weight"}
    assert not missing
    assert tuple(model.quantize.embedding.weight.shape) == (16384, 256)


def test_any_vit_of_transformers_reads_layer_by_layer(tmp_path):
    torch.manual_seed(0)
    ViTModel(ViTConfig(**VIT)).save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path))
    assert encoder.encode(IMAGES).shape == (3, 17, 24)
    assert encoder.layers(IMAGES).shape == (3, 4, 24)


@pytest.mark.parametrize("name", ["mae", "beit", "vqgan"])
def test_shipped_encoders(name):
    encoder = load_encoder(name)
    images = torch.rand(2, 3, 50, 90)
    tokens = encoder.encode(images)
    assert tokens.shape[:2] == (2, 64 if name == "vqgan" else 65)
    assert encoder.decode(tokens).shape == (2, 3, 64, 64)
    assert encoder.checkpoint.startswith(f"{name}-tiny@sha256:")
    assert handle_of(encoder).pools[0] in ("cls", "concat")
    assert not any(p.requires_grad for p in encoder.model.parameters())


def test_any_image_size_is_resized(mae_folder):
    encoder = load_encoder(str(mae_folder))
    assert encoder.encode(torch.rand(1, 3, 100, 60)).shape == (1, 17, 24)
    with pytest.raises(ValueError, match=r"images must be \[B, 3, H, W\].*got \(3, 32, 32\)"):
        encoder.encode(IMAGES[0])


def test_wrong_pool_and_tokens_are_named(mae_folder, vqgan_folder):
    mae, vqgan = load_encoder(str(mae_folder)), load_encoder(str(vqgan_folder))
    with pytest.raises(ValueError, match="pool must be one of cls, mean, got 'max'"):
        mae.layers(IMAGES, "max")
    with pytest.raises(ValueError, match="pool must be one of concat, mean, got 'cls'"):
        vqgan.layers(IMAGES, "cls")
    with pytest.raises(ValueError, match=r"tokens must be \[B, 17, 24\], got \(2, 16, 24\)"):
        mae.decode(torch.zeros(2, 16, 24))


def test_unknown_names_suggest_near_ones():
    with pytest.raises(ValueError, match="unknown encoder 'maee'; did you mean mae"):
        load_encoder("maee")
    with pytest.raises(ValueError, match="efficientnet-lite0"):
        load_encoder("efficientnet")


def test_broken_folders_are_explained(tmp_path, mae_folder, vqgan_folder):
    with pytest.raises(ValueError, match="has no weights"):
        load_vision(str(tmp_path), "empty")
    for source, name in ((mae_folder, "mae"), (vqgan_folder, "vqgan")):
        broken = tmp_path / name
        broken.mkdir()
        (broken / "config.json").write_text((source / "config.json").read_text())
        (broken / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes()[:5000])
        with pytest.raises(ValueError, match=name):
            load_vision(str(broken), name)
        (broken / "config.json").write_text("{")
        with pytest.raises(ValueError, match=r"config\.json"):
            load_vision(str(broken), name)


def test_missing_weights_are_not_left_random(tmp_path, mae_folder):
    state = load_file(mae_folder / "model.safetensors")
    del state[
        "vit.layers.1.attention.q_proj.weight" if "vit.layers.1.attention.q_proj.weight" in state else sorted(state)[5]
    ]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((mae_folder / "config.json").read_text())
    with pytest.raises(ValueError, match="lacks 1 of the model's weights"):
        load_vision(str(tmp_path), "mae")


def test_config_of_own_models_is_plain_json(vqgan_folder):
    config = json.loads((vqgan_folder / "config.json").read_text())
    assert config.pop("model_type") == "vqgan"
    assert config["codes"] == asdict(VQGAN_SMALL)["codes"]
