"""The published layouts (BEiT's .pth, OpenAI's dVAE, taming's VQGAN) against independent forward passes, and `convert`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import layouts
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from transformers import BeitConfig, BeitForMaskedImageModeling, ViTConfig, ViTModel

from alignlab.models import find_encoder, load_encoder, load_llm, taming
from alignlab.models.convert import convert
from alignlab.models.vision import load_dvae
from alignlab.paths import home

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class ModelCheckpoint:
    """Stands for Lightning's callback, whose class Lightning uses as a key."""


class AttributeDict(dict):  # type: ignore[type-arg]
    """Stands for Lightning's hyper-parameters, a dictionary of a class of its own."""


class Trainer:
    """Stands for a class that nobody knows."""

    def __init__(self) -> None:
        self.step, self.of = 3, {"a": torch.ones(2)}


@contextmanager
def lightning() -> Iterator[dict[str, Any]]:
    """What Lightning leaves in a checkpoint."""
    with (
        layouts.package(ModelCheckpoint, within="pytorch_lightning.callbacks.model_checkpoint"),
        layouts.package(AttributeDict, within="pytorch_lightning.utilities.parsing"),
    ):
        yield {
            "epoch": 11,
            "global_step": 1234,
            "pytorch-lightning_version": "1.0.8",
            "callbacks": {ModelCheckpoint: {"best_model_path": Path("x.ckpt"), "best": torch.tensor(0.5)}},
            "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-4}]}],
            "hyper_parameters": AttributeDict(lr=1e-4),
        }


def write_vqgan(folder: Path, state: dict[str, Tensor], yaml: str, *, zipped: bool = True) -> Path:
    """The layout of taming's logs: checkpoints/last.ckpt and configs/model.yaml."""
    for name in ("checkpoints", "configs"):
        (folder / name).mkdir(parents=True)
    loss = {"loss.perceptual_loss.lin0.model.1.weight": torch.ones(1, 4, 1, 1), "loss.logvar": torch.zeros(())}
    with lightning() as rest:
        path = folder / "checkpoints" / "last.ckpt"
        torch.save({"state_dict": state | loss, **rest}, path, _use_new_zipfile_serialization=zipped)
    (folder / "configs" / "model.yaml").write_text(yaml)
    return folder


# VQGAN


@pytest.fixture(scope="module")
def vqgan(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    pytest.importorskip("diffusers")
    reference, state = layouts.vqgan()
    folder = tmp_path_factory.mktemp("taming") / "vqgan-small"
    return write_vqgan(folder, state, layouts.vqgan_yaml()), reference


@torch.no_grad()
def test_taming_checkpoint_is_diffusers_vqmodel(vqgan: tuple[Path, Any]) -> None:
    folder, reference = vqgan
    encoder = load_encoder(str(folder))
    latents = reference.encode(IMAGES * 2 - 1).latents  # [2, 6, 16, 16], before quantisation
    tokens = encoder.encode(IMAGES)
    torch.testing.assert_close(tokens, latents.flatten(2).transpose(1, 2), **CLOSE)
    codes = reference.quantize(latents)[2][2].reshape(2, 16, 16)
    assert (encoder.codes(tokens) == codes).all()
    torch.testing.assert_close(
        encoder.decode(tokens), (reference.decode(latents).sample / 2 + 0.5).clamp(0, 1), **CLOSE
    )
    assert (encoder.num_layers, encoder.width, encoder.image_size, encoder.pools) == (1, 6, 32, ("concat", "mean"))


def test_a_checkpoint_file_finds_its_yaml(vqgan: tuple[Path, Any], tmp_path: Path) -> None:
    folder, _ = vqgan
    whole = load_encoder(str(folder))
    file = load_encoder(str(folder / "checkpoints" / "last.ckpt"))  # its YAML is in ../configs
    assert (whole.name, file.name) == ("vqgan-small", "last.ckpt")
    assert whole.checkpoint.split("@")[1] == file.checkpoint.split("@")[1]  # of the same two files
    shutil.copy(folder / "checkpoints" / "last.ckpt", tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"a\.ckpt needs its configuration, one \.yaml beside it, found 0"):
        load_encoder(str(tmp_path / "a.ckpt"))
    for name in ("a.yaml", "b.yaml"):
        shutil.copy(folder / "configs" / "model.yaml", tmp_path / name)
    assert torch.equal(
        load_encoder(str(tmp_path / "a.ckpt")).encode(IMAGES), whole.encode(IMAGES)
    )  # the one of its name
    with pytest.raises(ValueError, match=r"holds 2 \.yaml files: a\.yaml, b\.yaml"):
        load_encoder(str(tmp_path))


def test_the_format_before_zip_gives_the_same(vqgan: tuple[Path, Any], tmp_path: Path) -> None:
    _, state = layouts.vqgan()
    old = write_vqgan(tmp_path / "old", state, layouts.vqgan_yaml(), zipped=False)
    assert torch.equal(load_encoder(str(old)).encode(IMAGES), load_encoder(str(vqgan[0])).encode(IMAGES))


@torch.no_grad()
def test_gumbel_codes_are_a_projection(vqgan: tuple[Path, Any], tmp_path: Path) -> None:
    _, reference = vqgan
    _, state = layouts.vqgan()
    del state["quantize.embedding.weight"]
    projection, bias, book = torch.randn(50, 6, 1, 1), torch.randn(50), torch.randn(50, 6)
    state |= {"quantize.proj.weight": projection, "quantize.proj.bias": bias, "quantize.embed.weight": book}
    encoder = load_encoder(str(write_vqgan(tmp_path / "gumbel", state, layouts.vqgan_yaml(gumbel=True))))
    latents = reference.encode(IMAGES * 2 - 1).latents
    tokens = encoder.encode(IMAGES)
    torch.testing.assert_close(tokens, latents.flatten(2).transpose(1, 2), **CLOSE)
    codes = F.conv2d(latents, projection, bias).argmax(1)  # [2, 50, 16, 16] -> [2, 16, 16]
    assert (encoder.codes(tokens) == codes).all()
    quantised = book[codes].permute(0, 3, 1, 2)
    painted = reference.decoder(reference.post_quant_conv(quantised)) / 2 + 0.5
    torch.testing.assert_close(encoder.decode(tokens), painted.clamp(0, 1), **CLOSE)


@pytest.mark.parametrize(
    ("yaml", "why"),
    [
        (layouts.vqgan_yaml(double_z=True), "double_z must be False"),
        (layouts.vqgan_yaml(in_channels=1), "in_channels must be 3"),
        (layouts.vqgan_yaml().replace("VQModel", "VQNoDiscModel"), "is of a VQNoDiscModel"),
        (layouts.vqgan_yaml().replace("ch_mult", "mult"), "does not say 'ch_mult'"),
        (layouts.vqgan_yaml(z_channels=8, gumbel=True), "embed_dim and z_channels must be equal"),
        (layouts.vqgan_yaml(resolution=33), "33 cannot be halved 1 times"),
        (layouts.vqgan_yaml(ch=24), "multiple of 32"),
        (layouts.vqgan_yaml(ch=64), "encoder.conv_in.weight has shape|encoder.conv_in.bias has shape"),
        (layouts.vqgan_yaml(num_res_blocks=2), "lacks .* the first of them"),
        ("model: {target: taming.models.cond_transformer.Net2NetTransformer}", "no VQGAN's configuration"),
        ("[1, 2]", "holds list, expected a mapping"),
    ],
)
def test_a_yaml_that_does_not_fit_is_explained(vqgan: tuple[Path, Any], tmp_path: Path, yaml: str, why: str) -> None:
    shutil.copytree(vqgan[0], tmp_path / "v")
    (tmp_path / "v" / "configs" / "model.yaml").write_text(yaml)
    with pytest.raises(ValueError, match=why):
        load_encoder(str(tmp_path / "v"))


# OpenAI's dVAE


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")  # which the old format wants to store
@pytest.mark.parametrize("zipped", [True, False])
@torch.no_grad()
def test_dalle_pickles_are_the_published_modules(tmp_path: Path, zipped: bool) -> None:
    encoder, decoder = layouts.write_dalle(tmp_path, zipped=zipped)
    dvae = load_dvae(str(tmp_path))
    logits = encoder(0.8 * IMAGES + 0.1)
    torch.testing.assert_close(dvae.logits(IMAGES), logits, **CLOSE)
    codes = logits.argmax(1)
    one_hot = F.one_hot(codes, 40).permute(0, 3, 1, 2).float()
    pixels = ((torch.sigmoid(decoder(one_hot)[:, :3]) - 0.1) / 0.8).clamp(0, 1)
    torch.testing.assert_close(dvae.decode(codes), pixels, **CLOSE)

    known = load_encoder(str(tmp_path))
    tokens = known.encode(torch.rand(1, 3, 50, 60))
    assert tokens.shape == (1, 14 * 14, 40)  # at the 112 pixels that BEiT gives it
    assert known.decode(tokens).shape == (1, 3, 112, 112)
    assert torch.equal(known.decode(tokens), dvae.decode(known.codes(tokens)))
    assert known.layers(IMAGES).shape == (2, 1, 40)
    assert torch.equal(load_encoder(str(tmp_path / "decoder.pkl")).encode(IMAGES), known.encode(IMAGES))


# BEiT


@pytest.fixture(scope="module")
def beit(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, dict[str, Tensor]]:
    reference, state = layouts.beit()
    path = tmp_path_factory.mktemp("beit") / "beit_small_patch8_32_pt22k.pth"
    optimiser = {"state": {0: {"step": 3, "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]}
    torch.save({"model": state, "optimizer": optimiser, "epoch": 7, "args": argparse.Namespace(lr=1e-3)}, path)
    return path, reference, state


@torch.no_grad()
def test_beit_pth_is_timms_beit(beit: tuple[Path, Any, dict[str, Tensor]]) -> None:
    path, reference, state = beit
    encoder = load_encoder(str(path))
    tokens = encoder.encode(IMAGES)
    expected = reference.forward_features(IMAGES * 2 - 1)  # after the final norm
    assert tokens.shape == (2, 17, 24)
    torch.testing.assert_close(tokens, expected, **CLOSE)
    codes = (expected[:, 1:] @ state["lm_head.weight"].T + state["lm_head.bias"]).argmax(-1)
    assert (encoder.codes(tokens) == codes.view(2, 4, 4)).all()
    assert encoder.layers(IMAGES).shape == (2, 4, 24)
    assert encoder.checkpoint.startswith("beit_small_patch8_32_pt22k.pth@sha256:")
    assert (encoder.num_layers, encoder.width, encoder.image_size) == (4, 24, 32)
    assert encoder.model.config.layer_norm_eps == 1e-6


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"module": state}])
def test_beit_pth_bare_or_under_module(beit: tuple[Path, Any, dict[str, Tensor]], tmp_path: Path, wrap: Any) -> None:
    torch.save(wrap(beit[2]), tmp_path / "b.pth")
    assert torch.equal(load_encoder(str(tmp_path / "b.pth")).encode(IMAGES), load_encoder(str(beit[0])).encode(IMAGES))


def test_beit_without_a_dvae_encodes_and_says_how_to_decode(
    beit: tuple[Path, Any, dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ALIGNLAB_HOME", str(tmp_path))
    encoder = load_encoder(str(beit[0]))
    tokens = encoder.encode(IMAGES)
    with pytest.raises(ValueError, match="alignlab models fetch dall-e"):
        encoder.decode(tokens)
    folder = home() / "weights" / "dall-e"
    folder.mkdir(parents=True)
    layouts.write_dalle(folder, codes=48)
    with pytest.raises(ValueError, match=r"names 40 codes, its dVAE \(dall-e\) paints 48"):
        encoder.decode(tokens)
    layouts.write_dalle(folder)
    decoded = encoder.decode(tokens)
    torch.testing.assert_close(decoded, load_dvae("dall-e").decode(encoder.codes(tokens)))
    assert decoded.shape == (2, 3, 32, 32)
    for file in folder.iterdir():
        file.rename(tmp_path / file.name)
    convert(tmp_path / "encoder.pkl", folder)  # the other form in which the cache holds it
    torch.testing.assert_close(load_encoder(str(beit[0])).decode(tokens), decoded)


def test_a_fine_tuned_beit_is_sent_to_timm(beit: tuple[Path, Any, dict[str, Tensor]], tmp_path: Path) -> None:
    state = {k: v for k, v in beit[2].items() if not k.startswith("lm_head")}
    torch.save({"model": state | {"head.weight": torch.zeros(10, 24)}}, tmp_path / "ft.pth")
    with pytest.raises(ValueError, match=r"no lm_head\.weight.*timm:NAME"):
        load_encoder(str(tmp_path / "ft.pth"))
    torch.save({"model": {"pos_embed": torch.zeros(1, 2, 3), "norm.bias": torch.zeros(3)}}, tmp_path / "mae.pth")
    with pytest.raises(ValueError, match=r"its first tensors are norm\.bias, pos_embed"):
        load_encoder(str(tmp_path / "mae.pth"))


# convert


def test_convert_makes_folders_that_give_the_same(
    vqgan: tuple[Path, Any], beit: tuple[Path, Any, dict[str, Tensor]], tmp_path: Path
) -> None:
    layouts.write_dalle(tmp_path)
    for number, source in enumerate((vqgan[0], vqgan[0] / "checkpoints" / "last.ckpt", beit[0], tmp_path)):
        out = convert(source, tmp_path / f"out-{number}")
        assert sorted(p.name for p in out.iterdir()) == ["config.json", "model.safetensors"]
        assert torch.equal(load_encoder(str(out)).encode(IMAGES), load_encoder(str(source)).encode(IMAGES)), source
    with pytest.raises(ValueError, match="out-3 is not empty"):
        convert(tmp_path, tmp_path / "out-3")


def test_convert_goes_beside_the_file_by_default(beit: tuple[Path, Any, dict[str, Tensor]]) -> None:
    out = convert(beit[0])
    assert out == beit[0].parent / "beit_small_patch8_32_pt22k-safetensors"
    assert json.loads((out / "config.json").read_text())["architectures"] == ["BeitForMaskedImageModeling"]


def test_unknown_classes_are_left_behind_by_convert_only(
    beit: tuple[Path, Any, dict[str, Tensor]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "b.pth"
    with layouts.package(Trainer, within="somebody.training"):
        torch.save({"model": beit[2], "trainer": Trainer()}, path)
    with pytest.raises(ValueError, match=f"objects of somebody.training.Trainer.*alignlab models convert {path}"):
        load_encoder(str(path))
    out = convert(path)
    assert "never called: objects of somebody.training.Trainer" in caplog.text
    assert torch.equal(load_encoder(str(out)).encode(IMAGES), load_encoder(str(beit[0])).encode(IMAGES))


@pytest.mark.parametrize("kind", ["vit", "beit"])
def test_convert_of_a_transformers_folder_with_bin(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    sizes = {"image_size": 32, "patch_size": 8, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    model: Any = ViTModel(ViTConfig(**sizes)) if kind == "vit" else None
    if model is None:
        config = BeitConfig(**sizes, vocab_size=40, use_mask_token=True, use_shared_relative_position_bias=True)
        model = BeitForMaskedImageModeling(config)
    source = tmp_path / "old"
    model.save_pretrained(source)
    (source / "model.safetensors").unlink()
    torch.save(model.state_dict(), source / "pytorch_model.bin")
    expected = load_encoder(str(source)).encode(IMAGES)
    out = convert(source)
    assert out.name == "old-safetensors"
    assert torch.equal(load_encoder(str(out)).encode(IMAGES), expected)


def test_convert_of_a_language_models_folder_with_bin(tmp_path: Path, small_llm: Path) -> None:
    source = tmp_path / "old"
    shutil.copytree(small_llm, source)
    torch.save(load_file(source / "model.safetensors"), source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    expected = load_llm(str(source)).layers(["a red cube"])
    out = convert(source)
    assert torch.equal(load_llm(str(out)).layers(["a red cube"]), expected)
    assert {p.name for p in out.iterdir()} == {p.name for p in small_llm.iterdir()}
    rewritten = json.loads((source / "config.json").read_text()) | {"vocab_size": 50}
    (source / "config.json").write_text(json.dumps(rewritten))
    with pytest.raises(ValueError, match=r"old: lm_head\.weight has shape \(98, 24\)"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", list(taming.PUBLISHED))
def test_published_vqgans_need_no_download_at_random(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.setenv("ALIGNLAB_HOME", str(tmp_path))
    made = []
    config = taming.PUBLISHED[name]
    # The same levels and kind of code book on a quarter of the channels: the whole takes seconds.
    small = dataclasses.replace(config, channels=32, latent_channels=64, embedding=64)
    monkeypatch.setitem(taming.PUBLISHED, name, small)
    for _ in range(2):
        made.append(find_encoder(f"{name}@random", dtype="bfloat16"))
    assert made[0].checkpoint == made[1].checkpoint != ""
    assert made[0].checkpoint.startswith(f"{name}@random@sha256:")
    assert made[0].load().model.quant_conv.weight.dtype == torch.bfloat16
    encoder = find_encoder(f"{name}@random").load()  # in bfloat16 a machine without its instructions takes a minute
    assert encoder.encode(torch.rand(1, 3, 256, 256)).shape == (1, config.grid**2, 64)
    assert not list(tmp_path.iterdir())


def test_a_vqgan_reads_in_bfloat16() -> None:
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    exact, rounded = (find_encoder("vqgan", dtype=dtype).load().encode(images) for dtype in ("float32", "bfloat16"))
    assert exact.shape == rounded.shape == (2, 64, 32)
    assert 0 < float((rounded - exact).norm()) < 0.05 * float(exact.norm())


def test_convert_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no"):
        convert(tmp_path / "nothing")
    with pytest.raises(ValueError, match="holds nothing to convert"):
        convert(tmp_path, tmp_path / "out")
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "resnet.pth")
    with pytest.raises(ValueError, match=r"its first tensors are conv1\.weight"):
        convert(tmp_path / "resnet.pth")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["resnet.pth"]  # nothing half-written is left


# @random


def test_random_encoders_need_no_weights(
    vqgan: tuple[Path, Any], beit: tuple[Path, Any, dict[str, Tensor]], small_mae: Path, tmp_path: Path
) -> None:
    layouts.write_dalle(tmp_path)
    (tmp_path / "v").mkdir()
    shutil.copy(vqgan[0] / "configs" / "model.yaml", tmp_path / "v" / "model.yaml")
    (tmp_path / "v" / "last.ckpt").write_bytes(b"nothing is read of this")
    (tmp_path / "mae").mkdir()
    shutil.copy(small_mae / "config.json", tmp_path / "mae" / "config.json")
    trained = {"v": vqgan[0], "mae": small_mae}
    for source in (tmp_path / "v", tmp_path / "mae", beit[0], tmp_path):
        state = torch.get_rng_state()
        first, second = load_encoder(f"{source}@random"), load_encoder(f"{source}@random")
        assert torch.equal(torch.get_rng_state(), state)
        assert first.name == f"{source.name}@random"
        assert first.checkpoint.startswith(f"{source.name}@random@sha256:")
        assert first.checkpoint == second.checkpoint
        tokens = first.encode(IMAGES)
        assert torch.equal(tokens, second.encode(IMAGES))
        known = load_encoder(str(trained.get(source.name, source)))
        assert known.encode(IMAGES).shape == tokens.shape
        assert not torch.allclose(known.encode(IMAGES), tokens, atol=1e-3)
        assert known.checkpoint != first.checkpoint


@pytest.mark.parametrize("name", ["mae", "beit", "vqgan"])
def test_shipped_encoders_at_random(name: str) -> None:
    encoder = load_encoder(f"{name}@random")
    assert encoder.checkpoint.startswith(f"{name}@random@sha256:")
    assert encoder.checkpoint != find_encoder(name).checkpoint
    assert encoder.layers(IMAGES).shape[1] == encoder.num_layers
    assert encoder.decode(encoder.encode(IMAGES)).shape == (2, 3, 64, 64)


def test_a_random_mae_has_its_position_codes() -> None:
    model = load_encoder("mae@random").model
    for positions in (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed):
        assert len(torch.unique(positions[0, 1:], dim=0)) == 64  # every patch has its own


def test_encoders_are_not_cut() -> None:
    with pytest.raises(ValueError, match=r"\[:3\] cuts language models"):
        find_encoder("mae[:3]")
