"""The experts that LM4LV is compared with: what they compute, what they start from, how large they are, what they learn."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from alignlab.models import load_encoder, load_llm
from alignlab.restoration.experts import MLP, Linear, Transformer, like_lm4lv
from alignlab.restoration.lm4lv import LM4LV

IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
BUDGET = 5000
KINDS = ["linear", "mlp", "transformer"]


@pytest.fixture(scope="module")
def encoder(small_mae):
    return load_encoder(str(small_mae))


@pytest.fixture(scope="module")
def tiny():
    return load_encoder("mae-tiny")


def build(kind, encoder, parameters=BUDGET, **options):
    if kind == "linear":
        return Linear(encoder, **options)
    return {"mlp": MLP, "transformer": Transformer}[kind](encoder, parameters, **options)


def size(model):
    return sum(p.numel() for p in model.trainable())


def shaken(model):
    """Every parameter away from where it starts, so that nothing is zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def trained(model, low, high, steps=150, task="denoise"):
    optimiser = torch.optim.Adam(model.trainable(), lr=1e-2)
    for _ in range(steps):
        optimiser.zero_grad()
        losses = model(low, high, task)
        losses.total.backward()
        optimiser.step()
    return losses


@pytest.mark.parametrize("tasks", [("denoise",), ("denoise", "mask", "rotate")])
def test_like_lm4lv_counts_what_lm4lv_trains(encoder, small_llm, tasks):
    model = LM4LV(encoder, load_llm(str(small_llm)), task_tokens=4, tasks=tasks)
    assert like_lm4lv(24, 24, 4, tasks) == size(model)


def test_like_lm4lv_is_the_papers_number():
    # Its figures: MAE-L of width 1024, Llama 2 7B of 4096, ten task tokens.
    assert like_lm4lv(1024, 4096, 10, ["denoise"]) == (1024 * 4096 + 4096) + (4096 * 1024 + 1024) + 10 * 4096


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tasks", [("denoise",), ("mask", "denoise")])
def test_all_begin_as_the_identity(encoder, kind, tasks):
    model = build(kind, encoder, tasks=tasks)
    assert model.how == kind
    low = encoder.encode(IMAGES)
    torch.testing.assert_close(model.write(low, "denoise"), low)
    restored = model.restore(IMAGES, "denoise", batch_size=2)
    torch.testing.assert_close(restored, encoder.decode(low), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_of_what_it_writes(encoder, kind):
    model = shaken(build(kind, encoder))
    low, high = encoder.encode(IMAGES), encoder.encode(1 - IMAGES)
    losses = model(low, high, "denoise")
    written = model.write(low, "denoise")
    assert not written.requires_grad
    torch.testing.assert_close(losses.visual, (written - high).square().mean())
    assert losses.text == 0
    torch.testing.assert_close(losses.total, losses.visual)


@pytest.mark.parametrize("parameters", [1440, 5000, 25_001, 40_000])
@pytest.mark.parametrize("kind", ["mlp", "transformer"])
@pytest.mark.parametrize("tasks", [("denoise",), ("denoise", "mask")])
def test_the_size_is_as_near_as_whole_units_allow(encoder, kind, parameters, tasks):
    model = build(kind, encoder, parameters, tasks=tasks)
    assert abs(size(model) - parameters) <= (2 * 24 + 1) / 2  # a hidden unit more or less is 2 D + 1 parameters
    assert size(model) == sum(p.numel() for p in model.parameters())


def test_the_transformer_at_the_papers_size(encoder, monkeypatch):
    # As wide as MAE-L, of which nothing else is needed.
    monkeypatch.setattr(encoder, "encode", lambda images: torch.zeros(len(images), 197, 1024))
    parameters = like_lm4lv(1024, 4096, 10, ["denoise"])
    model = Transformer(encoder, parameters)
    assert (model.inner, model.heads) == (1024, 32)
    assert model.hidden > 2 * 1000
    assert abs(size(model) - parameters) < 1100
    narrow = Transformer(
        encoder, like_lm4lv(1024, 2048, 10, ["denoise"])
    )  # Gemma 2B: full attention alone would take it all
    assert narrow.inner % narrow.heads == 0
    assert 600 < narrow.inner <= narrow.hidden < 1024


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_too_small_a_budget_is_refused(encoder, kind):
    with pytest.raises(ValueError, match=r"30 parameters are too few for .* on tokens of width 24"):
        build(kind, encoder, 30)


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_alone_decides_and_the_global_state_stays(encoder, kind):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, same, other = (build(kind, encoder, seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert all(p.dtype == torch.float32 for p in one.values())
    drawn = any(not torch.equal(one[name], other[name]) for name in one)
    assert drawn == (kind != "linear")


def test_linear_is_one_linear_layer(encoder):
    model = shaken(Linear(encoder))
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == {
        "layer.weight": (24, 24),
        "layer.bias": (24,),
    }
    low = encoder.encode(IMAGES)
    by_hand = torch.stack(
        [torch.stack([model.layer.weight @ token + model.layer.bias for token in one]) for one in low]
    )
    torch.testing.assert_close(model.write(low, "denoise"), by_hand.detach(), atol=1e-5, rtol=1e-4)


def test_mlp_reads_each_token_by_itself(encoder):
    model = shaken(MLP(encoder, BUDGET))
    plain = nn.Sequential(model.rise, nn.GELU(), model.fall)
    low = encoder.encode(IMAGES)
    written = model.write(low, "denoise")
    torch.testing.assert_close(written[1, 3], (low[1, 3] + plain(low[1, 3])).detach(), atol=1e-5, rtol=1e-4)


def test_mlp_feeds_its_gelu_values_of_spread_one(encoder):
    for one in (encoder, load_encoder("vqgan-tiny")):  # of rms 1 and of a quarter
        model = MLP(one, 20_000)
        assert 0.5 < float(model.rise(model.sample).detach().std()) < 2
    far = encoder.encode(IMAGES) + 30  # tokens whose mean would drown what differs
    model = MLP(encoder, 20_000, sample=far)
    assert 0.5 < float(model.rise(far).detach().std()) < 2
    assert float(model.rise(far).detach().mean().abs()) < 0.5


def test_transformer_is_torchs_pre_norm_block(tiny):
    model = shaken(Transformer(tiny, 600_000))
    assert (model.inner, model.heads) == (256, 8)
    layer = nn.TransformerEncoderLayer(256, 8, model.hidden, 0.0, F.gelu, batch_first=True, norm_first=True)
    ours = {"self_attn.out_proj": "gather", "linear1": "rise", "linear2": "fall", "norm1": "norm_attention"}
    ours["norm2"] = "norm_mlp"
    state = {f"{a}.{k}": model.state_dict()[f"{b}.{k}"] for a, b in ours.items() for k in ("weight", "bias")}
    state |= {f"self_attn.in_proj_{k}": model.state_dict()[f"attend.{k}"] for k in ("weight", "bias")}
    layer.load_state_dict(state)
    low = tiny.encode(IMAGES)
    with torch.no_grad():
        torch.testing.assert_close(model.write(low, "denoise"), layer(low), atol=1e-3, rtol=1e-3)


def test_narrow_attention_head_by_head(tiny):
    model = shaken(Transformer(tiny, like_lm4lv(256, 576, 10, ["denoise"])))
    assert (model.inner, model.heads) == (192, 6)
    low = tiny.encode(IMAGES)
    with torch.no_grad():
        query, key, value = model.attend(model.norm_attention(low)).chunk(3, dim=-1)
        heads = []
        for h in range(6):
            q, k, v = (x[..., 32 * h : 32 * (h + 1)] for x in (query, key, value))
            heads.append(torch.softmax(q @ k.mT / 32**0.5, dim=-1) @ v)
        middle = low + model.gather(torch.cat(heads, dim=-1))
        by_hand = middle + model.fall(F.gelu(model.rise(model.norm_mlp(middle))))
    torch.testing.assert_close(model.write(low, "denoise"), by_hand, atol=1e-3, rtol=1e-3)


def test_transformer_sees_the_whole_image_as_a_set(encoder):
    model = shaken(Transformer(encoder, BUDGET))
    low = encoder.encode(IMAGES)
    torch.testing.assert_close(model.write(low.flip(1), "denoise").flip(1), model.write(low, "denoise"))
    changed = low.clone()
    changed[:, -1, :12] += 1
    difference = (model.write(changed, "denoise") - model.write(low, "denoise")).abs().amax(-1)  # [B, T]
    assert (difference > 1e-5).all()


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_what_it_can_see(encoder, kind):
    low = encoder.encode(IMAGES)
    high = 0.5 * low.roll(1, dims=2) + 0.1  # of each token alone
    first = float(build(kind, encoder)(low, high, "denoise").visual.detach())
    assert trained(build(kind, encoder), low, high).visual < 0.3 * first


def test_only_the_transformer_learns_what_lies_in_other_tokens(encoder):
    generator = torch.Generator().manual_seed(0)

    def batch():  # new ones at each step, so that none is learnt by heart
        low = torch.randn(32, 17, 24, generator=generator)
        return low, low + 17**0.5 * low.mean(1, keepdim=True)  # of variance 1, and a token tells 1 / 17 of it

    errors = {}
    for kind in KINDS:
        model = build(kind, encoder)
        optimiser = torch.optim.Adam(model.trainable(), lr=1e-2)
        for _ in range(200):
            optimiser.zero_grad()
            model(*batch(), "denoise").total.backward()
            optimiser.step()
        with torch.no_grad():
            errors[kind] = float(model(*batch(), "denoise").visual)
    assert errors["transformer"] < 0.5, errors
    assert min(errors["linear"], errors["mlp"]) > 0.85, errors


@pytest.mark.parametrize("kind", KINDS)
def test_several_tasks_share_all_but_one_vector(encoder, kind):
    model = build(kind, encoder, tasks=("same", "shifted"))
    assert {name for name, _ in model.named_parameters() if "task" in name} == {
        "task_vectors.same",
        "task_vectors.shifted",
    }
    low = encoder.encode(IMAGES)
    optimiser = torch.optim.Adam(model.trainable(), lr=1e-2)
    for _ in range(200):
        optimiser.zero_grad()
        (model(low, low, "same").total + model(low, low + 1, "shifted").total).backward()
        optimiser.step()
    assert model(low, low, "same").visual < 0.1
    assert model(low, low + 1, "shifted").visual < 0.1  # 1 at first
    assert not any("task" in name for name, _ in build(kind, encoder).named_parameters())


def test_wrong_use_is_named(encoder):
    model = build("linear", encoder)
    low = encoder.encode(IMAGES)
    with pytest.raises(ValueError, match="task must be one of denoise, got 'blur'"):
        model(low, low, "blur")
    with pytest.raises(ValueError, match=r"tokens must be \[B, 17, 24\]"):
        model.write(low[:, 1:], "denoise")
    with pytest.raises(ValueError, match="tasks must be different names"):
        MLP(encoder, BUDGET, tasks=("mask", "mask"))
