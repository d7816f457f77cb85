"""open_clip's image towers: small random models against open_clip's own forward passes."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from alignlab.models import load_encoder
from alignlab.models.open_clip_encoder import OpenCLIPEncoder, load_open_clip

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TEXT = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
VIT = {"image_size": 32, "patch_size": 8, "width": 24, "layers": 3, "head_width": 12}
TOWERS: dict[str, dict[str, Any]] = {
    "small-vit": VIT,
    "small-vit-avg": {**VIT, "pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True},
    "small-coca": {
        **VIT,
        "attentional_pool": True,
        "attn_pooler_queries": 4,
        "attn_pooler_heads": 2,
        "output_tokens": True,
    },
    "small-resnet": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 32},
    "small-timm": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear"},
    "small-convnet": {"image_size": 64, "timm_model_name": "test_convnext", "timm_pool": "avg", "timm_proj": "linear"},
}


@pytest.fixture(scope="module", autouse=True)
def architectures(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("open_clip")
    for name, vision in TOWERS.items():
        config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": TEXT, "custom_text": True}
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


def full(name: str) -> Any:
    torch.manual_seed(1)
    return open_clip.create_model(name, load_weights=False).eval().requires_grad_(False)


def wrap(name: str, model: Any) -> OpenCLIPEncoder:
    size = TOWERS[name]["image_size"]
    return OpenCLIPEncoder(name, f"{name}@test", model.visual, size, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))


def pixels(encoder: OpenCLIPEncoder) -> torch.Tensor:
    size = (encoder.image_size, encoder.image_size)
    images = torch.nn.functional.interpolate(IMAGES, size, mode="bicubic", antialias=True).clamp(0, 1)
    return (images - torch.tensor(encoder.mean)[:, None, None]) / torch.tensor(encoder.std)[:, None, None]


@pytest.mark.parametrize("name", ["small-vit", "small-vit-avg", "small-coca", "small-timm"])
def test_layers_are_the_residual_stream(name: str) -> None:
    model = full(name)
    encoder = wrap(name, model)
    own = model.visual.forward_intermediates(
        pixels(encoder), output_fmt="NLC", output_extra_tokens=True, intermediates_only=True
    )
    cls, mean = encoder.layers(IMAGES), encoder.layers(IMAGES, "mean")
    assert encoder.pools == ("cls", "mean")
    assert cls.shape == mean.shape == (2, encoder.num_layers, encoder.width)
    blocks = zip(own["image_intermediates"], own["image_intermediates_prefix"], strict=True)
    for i, (patches, prefix) in enumerate(blocks, start=1):
        torch.testing.assert_close(cls[:, i], prefix[:, 0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(mean[:, i], patches.mean(1), atol=1e-5, rtol=1e-4)
    assert i == encoder.num_layers - 1


@pytest.mark.parametrize("name", list(TOWERS))
def test_the_embedding_is_the_one_that_clip_compares(name: str) -> None:
    model = full(name)
    encoder = wrap(name, model)
    pooled = model.visual(pixels(encoder))
    own = pooled[0] if name == "small-coca" else model.encode_image(pixels(encoder))
    embedding = encoder.embed(IMAGES)
    assert embedding.shape == (2, 16)
    torch.testing.assert_close(embedding, own, atol=1e-5, rtol=1e-4)


def test_vit_tokens_come_after_the_final_norm() -> None:
    model = full("small-vit")
    encoder = wrap("small-vit", model)
    own = model.visual.forward_intermediates(
        pixels(encoder),
        output_fmt="NLC",
        output_extra_tokens=True,
        intermediates_only=True,
        normalize_intermediates=True,
    )
    last = torch.cat([own["image_intermediates_prefix"][-1], own["image_intermediates"][-1]], 1)
    assert encoder.encode(IMAGES).shape == (2, 17, 24)
    torch.testing.assert_close(encoder.encode(IMAGES), last, atol=1e-5, rtol=1e-4)


def test_what_is_normed_after_pooling_is_left_as_it_is() -> None:
    encoder = wrap("small-vit-avg", full("small-vit-avg"))
    torch.testing.assert_close(encoder.encode(IMAGES)[:, 0], encoder.layers(IMAGES)[:, -1])


def test_resnet_layers_are_stem_and_stages() -> None:
    model = full("small-resnet")
    encoder = wrap("small-resnet", model)
    x = model.visual.stem(pixels(encoder))
    expected = [x]
    for stage in (model.visual.layer1, model.visual.layer2, model.visual.layer3, model.visual.layer4):
        x = stage(x)
        expected.append(x)
    layers = encoder.layers(IMAGES)
    assert encoder.pools == ("mean",)
    assert encoder.widths == (8, 32, 64, 128, 256)
    for layer, maps in zip(layers, expected, strict=True):
        torch.testing.assert_close(layer, maps.mean((2, 3)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(encoder.encode(IMAGES), x.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-4)


def test_a_convolutional_trunk_is_read_as_timm_models_are() -> None:
    encoder = wrap("small-convnet", full("small-convnet"))
    assert encoder.pools == ("mean",)
    assert len(encoder.widths) == encoder.num_layers == len(encoder.layers(IMAGES))


@pytest.mark.parametrize("form", ["state_dict.pt", "training.pt", "weights.safetensors"])
def test_a_local_file_gives_its_image_tower(form: str, tmp_path: Path) -> None:
    model = full("small-vit")
    path = tmp_path / form
    if form == "training.pt":  # as open_clip's training saves it, from several GPUs
        state = {f"module.{key}": x for key, x in model.state_dict().items()}
        torch.save({"epoch": 1, "name": "run", "state_dict": state, "optimizer": {"lr": 0.1}}, path)
    elif form == "state_dict.pt":
        torch.save(model.state_dict(), path)
    else:
        save_file(model.state_dict(), path)
    encoder = load_encoder(f"open_clip:small-vit/{path}")
    assert encoder.name == f"open_clip:small-vit/{path}"
    assert encoder.checkpoint.startswith(f"{encoder.name}@sha256:")
    assert encoder.mean == open_clip.OPENAI_DATASET_MEAN
    held, wanted = encoder.model.state_dict(), model.visual.state_dict()
    assert held.keys() == wanted.keys()
    assert all(torch.equal(x, wanted[key]) for key, x in held.items())
    assert not any(parameter.requires_grad for parameter in encoder.model.parameters())


def test_random_weights_are_the_same_each_time_and_disturb_nothing(tmp_path: Path) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, again = load_encoder("open_clip:small-vit@random"), load_encoder("open_clip:small-vit@random")
    assert torch.equal(torch.get_rng_state(), before)
    assert first.checkpoint == again.checkpoint
    assert first.checkpoint.startswith("open_clip:small-vit@random@sha256:")
    torch.testing.assert_close(first.layers(IMAGES), again.layers(IMAGES))
    path = tmp_path / "x.pt"
    torch.save({f"visual.{key}": x for key, x in first.model.state_dict().items()}, path)
    assert load_encoder(f"open_clip:small-vit/{path}").checkpoint != first.checkpoint


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_gives_float32(dtype: str) -> None:
    encoder, exact = (load_encoder("open_clip:small-vit@random", dtype=d) for d in (dtype, "float32"))
    for x in (encoder.encode(IMAGES), encoder.layers(IMAGES), encoder.embed(IMAGES)):
        assert x.dtype == torch.float32
        assert x.isfinite().all()
    assert encoder.checkpoint == exact.checkpoint
    torch.testing.assert_close(encoder.layers(IMAGES), exact.layers(IMAGES), atol=0.1, rtol=0.1)


def test_without_a_tag_the_statistics_are_those_of_all_tags() -> None:
    encoder = load_encoder("open_clip:MobileCLIP-S1@random")  # pixels as they are
    assert (encoder.image_size, encoder.mean, encoder.std) == (256, (0.0,) * 3, (1.0,) * 3)


def test_a_tag_trained_with_quick_gelu_gets_it() -> None:
    from open_clip.transformer import QuickGELU

    encoder = load_encoder("open_clip:ViT-B-32/openai@random")
    assert encoder.checkpoint.startswith("open_clip:ViT-B-32/openai@random@sha256:")
    assert sum(isinstance(module, QuickGELU) for module in encoder.model.modules()) == 12


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(ValueError, match="no model 'vit-b-32'; did you mean ViT-B-32"):
        load_open_clip("open_clip:vit-b-32")
    with pytest.raises(ValueError, match=r"no weights 'opnai' for RN50 .*openai, yfcc15m, cc12m.*no such file"):
        load_open_clip("open_clip:RN50/opnai")
    with pytest.raises(ValueError, match=r"'open_clip:RN50' names no weights; add /TAG .*@random"):
        load_open_clip("open_clip:RN50")
    with pytest.raises(ValueError, match=r"\[:3\] cuts language models, not encoders"):
        load_open_clip("open_clip:RN50/openai[:3]")
    with pytest.raises(ValueError, match="'int8'"):
        load_open_clip("open_clip:RN50/openai", dtype="int8")


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore:Detected pickle protocol")
@pytest.mark.parametrize("fault", ["other", "missing", "truncated", "pickle", "trap", "script", "text", "empty"])
def test_files_that_are_not_this_tower_are_refused(fault: str, tmp_path: Path) -> None:
    model, path, message = full("small-vit"), tmp_path / "weights.pt", "cannot be read as this image tower"
    state = model.state_dict()
    torch.save(state, path)
    if fault == "other":
        torch.save(full("small-resnet").state_dict(), path)
        message += ": .*(Missing|Unexpected) key"
    elif fault == "missing":
        state.pop("visual.proj")
        torch.save(state, path)
        message += ": Missing key.*proj"
    elif fault == "truncated":
        path.write_bytes(path.read_bytes()[:3000])
    elif fault == "pickle":
        path.write_bytes(pickle.dumps(Trap(tmp_path / "trapped")))
    elif fault == "trap":
        torch.save(state | {"x": Trap(tmp_path / "trapped")}, path)
        message += ": .*would run code"
    elif fault == "script":  # as OpenAI published its models
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
        message += ": .*TorchScript archive"
    elif fault == "text":
        torch.save({f"text.{i}": torch.zeros(1) for i in range(3)}, path)
        message += r": it holds no tensor called visual\.\*"
    else:
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=message) as caught:
        load_encoder(f"open_clip:small-vit/{path}")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "trapped").exists()


def test_a_hub_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RuntimeError, match="could not load 'open_clip:RN50/openai' from the hub: no network") as caught:
        load_open_clip("open_clip:RN50/openai")
    assert "\n" not in str(caught.value)


def test_grey_and_misshapen_images() -> None:
    encoder = load_encoder("open_clip:small-vit@random")
    assert encoder.layers(torch.full((1, 3, 20, 40), 0.5)).isfinite().all()
    with pytest.raises(ValueError, match=r"images must be \[B, 3, H, W\]"):
        encoder.embed(torch.rand(3, 32, 32))
