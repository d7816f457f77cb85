"""The paper's own configurations, built without memory: parameters and tokens against counts written out by hand.

Published: ViT-L/16 without a head 303.3 M (timm's card of `vit_large_patch16_224.mae`), Llama-2-7B 6,738,415,616
(the index of its safetensors, 13,476,831,232 bytes of bfloat16). The others follow from the published code.
"""

from __future__ import annotations

from typing import Any

import layouts
import pytest
import torch
from torch import nn
from transformers import BeitForMaskedImageModeling, LlamaConfig, LlamaForCausalLM, ViTMAEConfig, ViTMAEForPreTraining

from alignlab.models import beit_pth, taming
from alignlab.models.beit import BEiTEncoder
from alignlab.models.catalogue import BY_NAME
from alignlab.models.dvae import DVAE, DVAEConfig
from alignlab.models.mae import MAEEncoder
from alignlab.models.vqgan import VQGAN, VQGANConfig, VQGANEncoder

PATCHES = (224 // 16) ** 2
IMAGE = torch.empty(1, 3, 224, 224, device="meta")


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def linear(n_in: int, n_out: int, bias: bool = True) -> int:
    return n_in * n_out + bias * n_out


def block(d: int, hidden: int) -> int:
    """Two norms, queries, keys, values and output, and the two layers of the MLP."""
    return 2 * 2 * d + 4 * linear(d, d) + linear(d, hidden) + linear(hidden, d)


@pytest.fixture(scope="module")
def mae() -> Any:
    sizes = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    with torch.device("meta"):
        return ViTMAEForPreTraining(ViTMAEConfig(**sizes)).eval()  # the decoder's sizes are transformers' defaults


def test_mae_large(mae: Any) -> None:
    d, e = 1024, 512
    encoder = linear(3 * 16**2, d) + d + (1 + PATCHES) * d + 24 * block(d, 4 * d) + 2 * d  # patches, [CLS], positions
    assert count(mae.vit) == encoder == 303_301_632
    decoder = linear(d, e) + e + (1 + PATCHES) * e + 8 * block(e, 4 * e) + 2 * e + linear(e, 3 * 16**2)
    assert count(mae.decoder) == decoder
    listed = BY_NAME["facebook/vit-mae-large"]
    assert (listed.parameters, listed.layers, listed.tokens, listed.width) == (encoder + decoder, 25, 197, 1024)
    assert BY_NAME["bytetriper/vit-mae-r"].parameters == listed.parameters
    known = MAEEncoder("mae", "", mae, (0.0,) * 3, (1.0,) * 3)
    assert (known.image_size, known.patches, known.width, known.num_layers) == (224, 196, 1024, 25)
    noise = torch.empty(1, 196, device="meta")
    assert mae.vit(IMAGE, noise=noise).last_hidden_state.shape == (1, 197, 1024)


def test_beit_large() -> None:
    sizes = beit_pth.Sizes(width=1024, depth=24, heads=16, hidden=4096, patch=16, grid=14, codes=8192, absolute=False)
    with torch.device("meta"):
        model = BeitForMaskedImageModeling(beit_pth.config(sizes)).eval()
    d = 1024
    # Keys have no bias; each block has two scales; 27^2 distances and 3 for [CLS] in each head.
    blocks = 24 * (block(d, 4 * d) - d + 2 * d)
    expected = linear(3 * 16**2, d) + 2 * d + blocks + (27**2 + 3) * 16 + 2 * d + linear(d, 8192)
    assert count(model) == expected == 311_534_016
    listed = BY_NAME["microsoft/beit-large-patch16-224-pt22k"]
    assert (listed.parameters, listed.layers, listed.tokens, listed.width) == (expected, 25, 197, 1024)
    published = beit_pth.layout(sizes)  # the same tensors in the .pth, queries, keys and values in one
    assert sum(int(torch.Size(shape).numel()) for shape in published.values()) == expected
    known = BEiTEncoder("beit", "", model, "dall-e", (0.5,) * 3, (0.5,) * 3)
    assert (known.image_size, known.grid, known.width, known.num_layers) == (224, 14, 1024, 25)
    assert model.lm_head.weight.shape == (8192, 1024)


@pytest.mark.parametrize(("codes", "gumbel", "grid"), [(16384, False, 16), (1024, False, 16), (8192, True, 32)])
def test_vqgan(tmp_path: Any, codes: int, gumbel: bool, grid: int) -> None:
    levels = (1, 1, 2, 4) if gumbel else (1, 1, 2, 2, 4)
    text = layouts.vqgan_yaml(
        gumbel, z_channels=256, resolution=256, ch=128, ch_mult=list(levels), num_res_blocks=2, attn_resolutions=[grid]
    )
    (tmp_path / "model.yaml").write_text(text.replace("n_embed: 50", f"n_embed: {codes}").replace("m: 6", "m: 256"))
    config = taming.read_config(tmp_path / "model.yaml")
    assert config == VQGANConfig(codes=codes, channel_multipliers=levels, attention_resolutions=(grid,), gumbel=gumbel)
    assert taming.PUBLISHED["vqgan-gumbel-f8" if gumbel else f"vqgan-f16-{codes}"] == config
    with torch.device("meta"):
        model = VQGAN(config)
    known = VQGANEncoder("vqgan", "", model)
    assert (known.image_size, config.grid**2, known.width) == (256, grid**2, 256)
    assert model.quant_conv(model.encoder(torch.empty(1, 3, 256, 256, device="meta"))).shape == (1, 256, grid, grid)

    def convolution(n_in: int, n_out: int, kernel: int = 3) -> int:
        return linear(n_in * kernel**2, n_out)

    def residual(n_in: int, n_out: int) -> int:
        parts = 2 * n_in + convolution(n_in, n_out) + 2 * n_out + convolution(n_out, n_out)
        return parts + (convolution(n_in, n_out, 1) if n_in != n_out else 0)

    def attention(n: int) -> int:
        return 2 * n + 4 * convolution(n, n, 1)

    widths = [128 * m for m in levels]
    last = widths[-1]
    middle = 2 * residual(last, last) + attention(last)
    down = sum(residual(a, b) + residual(b, b) for a, b in zip([128, *widths], widths, strict=False))
    down += sum(convolution(w, w) for w in widths[:-1]) + 2 * attention(last)
    encoder = convolution(3, 128) + down + middle + 2 * last + convolution(last, 256)
    up = sum(residual(a, b) + 2 * residual(b, b) for a, b in zip([last, *widths[::-1]], widths[::-1], strict=False))
    up += sum(convolution(w, w) for w in widths[1:]) + 3 * attention(last)
    decoder = convolution(256, last) + middle + up + 2 * 128 + convolution(128, 3)
    assert (count(model.encoder), count(model.decoder)) == (encoder, decoder)
    book = codes * 256 + gumbel * linear(256, codes)
    assert count(model) == encoder + decoder + 2 * linear(256, 256) + book
    listed = BY_NAME["vqgan-gumbel-f8" if gumbel else f"vqgan-f16-{codes}"]
    assert (listed.parameters, listed.tokens, listed.width) == (count(model), grid**2, 256)


def test_vqgan_is_as_large_as_diffusers_has_it() -> None:
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        reference = diffusers.VQModel(
            down_block_types=(*["DownEncoderBlock2D"] * 4, "AttnDownEncoderBlock2D"),
            up_block_types=("AttnUpDecoderBlock2D", *["UpDecoderBlock2D"] * 4),
            block_out_channels=(128, 128, 256, 256, 512),
            layers_per_block=2,
            latent_channels=256,
            num_vq_embeddings=16384,
            vq_embed_dim=256,
        )
        assert count(VQGAN(VQGANConfig())) == count(reference)


def test_dvae() -> None:
    with torch.device("meta"):
        model = DVAE(DVAEConfig())
        encoder, decoder = layouts.Encoder(256, 2, 8192), layouts.Decoder(128, 256, 2, 8192)
    shapes = {f"encoder.{k}": v.shape for k, v in encoder.state_dict().items()}
    shapes |= {f"decoder.{k}": v.shape for k, v in decoder.state_dict().items()}
    assert {k: v.shape for k, v in model.state_dict().items()} == shapes
    assert count(model) == BY_NAME["dall-e"].parameters
    assert round(count(model.encoder) / 1e6, 1) == 53.8
    assert round(count(model.decoder) / 1e6, 1) == 43.8
    assert model.config.grid**2 == PATCHES  # one code a patch of BEiT's


def test_llama_2_7b() -> None:
    config = LlamaConfig(vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    d = 4096
    blocks = 32 * (4 * linear(d, d, False) + 3 * linear(d, 11008, False) + 2 * d)
    assert count(model) == 2 * 32000 * d + blocks + d == 6_738_415_616
    assert 2 * count(model) == 13_476_831_232
    assert (len(model.model.layers), model.lm_head.in_features) == (32, 4096)


@pytest.mark.parametrize(
    ("name", "kind", "sizes"),
    [
        ("meta-llama/Llama-2-7b-chat-hf", "Llama", {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
         "num_hidden_layers": 32, "max_position_embeddings": 4096}),
        ("google/gemma-2b-it", "Gemma", {"vocab_size": 256000, "hidden_size": 2048, "intermediate_size": 16384,
         "num_hidden_layers": 18, "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 256}),
        ("microsoft/Phi-3-mini-4k-instruct", "Phi3", {"vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192,
         "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "pad_token_id": 32000}),
        ("EleutherAI/gpt-j-6b", "GPTJ", {}),
    ],
)  # fmt: skip
def test_the_catalogue_of_language_models(name: str, kind: str, sizes: dict[str, int]) -> None:
    import transformers

    config = getattr(transformers, f"{kind}Config")(**sizes)
    with torch.device("meta"):
        model = getattr(transformers, f"{kind}ForCausalLM")(config)
    listed = BY_NAME[name]
    context = config.max_position_embeddings
    assert (listed.parameters, listed.layers, listed.width, listed.tokens) == (
        count(model),
        config.num_hidden_layers + 1,
        config.hidden_size,
        context,
    )
