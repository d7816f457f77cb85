"""Vision models of transformers: small random folders, against an independent forward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from alignlab.models import load_encoder
from alignlab.models.vit import ViTEncoder

IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
VIT = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}
TEXT = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48, "vocab_size": 99}


def build(config: Any) -> Any:
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config).eval().requires_grad_(False)
    for parameter in model.parameters():  # some start at zero: make them count
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def normalised(images: torch.Tensor) -> torch.Tensor:
    return (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def by_hooks(model: Any, blocks: Any, images: torch.Tensor) -> list[torch.Tensor]:
    """What enters the first block and what leaves each, `[B, T, D]`."""
    seen: list[torch.Tensor] = []
    hooks = [blocks[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))]
    for block in blocks:
        hooks.append(
            block.register_forward_hook(
                lambda module, inputs, out: seen.append(out[0] if isinstance(out, tuple) else out)
            )
        )
    model(normalised(images))
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize(
    ("config", "blocks", "extra"),
    [
        ("ViTConfig", "layers", 1),
        ("DeiTConfig", "layers", 2),  # a distillation token after the class token
        ("Dinov2Config", "encoder.layer", 1),
        ("Dinov2WithRegistersConfig", "encoder.layer", 5),
        ("CLIPVisionConfig", "encoder.layers", 1),
        ("Data2VecVisionConfig", "encoder.layer", 1),
        ("SiglipVisionConfig", "encoder.layers", 0),
        ("IJepaConfig", "layers", 0),
    ],
)
def test_layers_are_the_blocks_and_means_leave_extra_tokens_out(config: str, blocks: str, extra: int) -> None:
    model = build(getattr(transformers, config)(**VIT))
    encoder = ViTEncoder("small", "small@test", model, MEAN, STD)
    stream = by_hooks(model, model.get_submodule(blocks), IMAGES)
    assert stream[0].shape[1] == 16 + extra
    assert encoder.pools == (("cls", "mean") if extra else ("mean",))
    assert (encoder.image_size, encoder.num_layers, encoder.width) == (32, 4, 24)
    mean = torch.stack([x[:, extra:].mean(1) for x in stream], 1)
    torch.testing.assert_close(encoder.layers(IMAGES, "mean"), mean, atol=1e-5, rtol=1e-4)
    if extra:
        cls = torch.stack([x[:, 0] for x in stream], 1)
        torch.testing.assert_close(encoder.layers(IMAGES), cls, atol=1e-5, rtol=1e-4)
    else:
        torch.testing.assert_close(encoder.layers(IMAGES), mean, atol=1e-5, rtol=1e-4)
        with pytest.raises(ValueError, match="pool must be one of mean for small, got 'cls'"):
            encoder.layers(IMAGES, "cls")
    torch.testing.assert_close(encoder.encode(IMAGES), model(normalised(IMAGES)).last_hidden_state)


@pytest.mark.parametrize(("config", "pools"), [("CLIPConfig", ("cls", "mean")), ("SiglipConfig", ("mean",))])
def test_of_two_towers_the_image_tower_is_read(config: str, pools: tuple[str, ...], tmp_path: Path) -> None:
    build(getattr(transformers, config)(vision_config=VIT, text_config=TEXT)).save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path))
    reference = transformers.AutoModel.from_pretrained(tmp_path).eval().vision_model
    assert encoder.pools == pools
    pixels = (IMAGES - torch.tensor(encoder.mean)[:, None, None]) / torch.tensor(encoder.std)[:, None, None]
    with torch.no_grad():
        hidden = reference(pixels, output_hidden_states=True).hidden_states
    skip = len(pools) - 1
    expected = torch.stack([h[:, skip:].mean(1) for h in hidden], 1)
    torch.testing.assert_close(encoder.layers(IMAGES, "mean"), expected, atol=1e-5, rtol=1e-4)


def test_stages_of_a_convolutional_network_are_averaged() -> None:
    sizes = {"image_size": 32, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
    model = build(transformers.ConvNextV2Config(**sizes))
    encoder = ViTEncoder("small", "small@test", model, MEAN, STD)
    out = model(normalised(IMAGES), output_hidden_states=True)
    assert (encoder.pools, encoder.widths, encoder.width) == (("mean",), (8, 8, 16, 24, 32), 32)
    layers = encoder.layers(IMAGES)
    assert isinstance(layers, list)
    for layer, maps in zip(layers, out.hidden_states, strict=True):
        torch.testing.assert_close(layer, maps.mean((2, 3)), atol=1e-5, rtol=1e-4)
    assert encoder.encode(IMAGES).shape == (3, 1, 32)


def test_stages_of_a_pyramid_are_averaged() -> None:
    config = transformers.SwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4
    )
    encoder = ViTEncoder("small", "small@test", build(config), MEAN, STD)
    assert (encoder.pools, encoder.widths) == (("mean",), (8, 16, 16)[: encoder.num_layers])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_gives_float32(dtype: str, tmp_path: Path) -> None:
    build(transformers.ViTConfig(**VIT)).save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path), dtype=dtype)
    assert encoder.encode(IMAGES).dtype == encoder.layers(IMAGES).dtype == torch.float32
    full = load_encoder(str(tmp_path)).layers(IMAGES)
    torch.testing.assert_close(encoder.layers(IMAGES), full, atol=0.1, rtol=0.1)


def test_a_grey_image_gives_finite_layers() -> None:
    encoder = ViTEncoder("small", "small@test", build(transformers.ViTConfig(**VIT)), MEAN, STD)
    assert encoder.layers(torch.full((1, 3, 20, 40), 0.5)).isfinite().all()


def test_models_that_cannot_be_fed_are_refused() -> None:
    nothing = build(transformers.ResNetConfig(hidden_sizes=[8, 8], depths=[1, 1], embedding_size=8))
    with pytest.raises(ValueError, match=r"small \(resnet\) names no square image size; use timm:NAME"):
        ViTEncoder("small", "small@test", nothing, MEAN, STD)
    wide = build(transformers.ViTConfig(**{**VIT, "image_size": [32, 16]}))
    with pytest.raises(ValueError, match="names no square image size"):
        ViTEncoder("small", "small@test", wide, MEAN, STD)
    needs_more = build(transformers.Siglip2VisionConfig(**{k: v for k, v in VIT.items() if k != "image_size"}))
    needs_more.config.image_size = 32
    with pytest.raises(ValueError, match=r"cannot be fed images alone: .*pixel_attention_mask"):
        ViTEncoder("small", "small@test", needs_more, MEAN, STD)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("ViTForImageClassification", "ViTConfig"),
        ("DeiTForImageClassification", "DeiTConfig"),
        ("Dinov2ForImageClassification", "Dinov2Config"),
    ],
)
def test_classifiers_are_read_without_their_heads(kind: str, config: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = VIT if config != "Dinov2Config" else {k: v for k, v in VIT.items() if k != "intermediate_size"}
    classifier = getattr(transformers, kind)(getattr(transformers, config)(**settings)).eval()
    classifier.save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path))
    pixels = (IMAGES - torch.tensor(encoder.mean)[:, None, None]) / torch.tensor(encoder.std)[:, None, None]
    with torch.no_grad():
        hidden = classifier(pixels, output_hidden_states=True).hidden_states
    for i, layer in enumerate(hidden):
        torch.testing.assert_close(encoder.layers(IMAGES)[:, i], layer[:, 0], atol=1e-5, rtol=1e-4)


def test_a_siglip_classifier_is_read_without_a_text_tower(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.SiglipConfig(text_config=TEXT, vision_config=VIT)
    classifier = transformers.SiglipForImageClassification(config).eval()
    classifier.save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path))
    pixels = (IMAGES - torch.tensor(encoder.mean)[:, None, None]) / torch.tensor(encoder.std)[:, None, None]
    with torch.no_grad():
        hidden = classifier(pixels, output_hidden_states=True).hidden_states
    torch.testing.assert_close(encoder.layers(IMAGES)[:, -1], hidden[-1].mean(1), atol=1e-5, rtol=1e-4)


def test_a_missing_block_is_still_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    transformers.ViTModel(transformers.ViTConfig(**VIT)).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state[next(key for key in state if "layer" in key and "1." in key and key.endswith("weight"))]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 of the model's weights"):
        load_encoder(str(tmp_path))
