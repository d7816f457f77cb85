"""Single layers between two linear ones: each family's block beside one called by hand, what learns, the intervals, the folder."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers

from alignlab.models import load_llm
from alignlab.models.llm import LanguageModel
from alignlab.probing import between, layers, single
from alignlab.probing.layers_result import Arm, over_images_and_seeds
from alignlab.restoration.fit import plain_attention

BLOCKS = 3
PLAIN: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
ENDS = {"bos_token_id": 1, "eos_token_id": 2}
GPT = {"vocab_size": 60, "n_embd": 32, "n_layer": BLOCKS, "n_head": 4, "n_positions": 64, **ENDS}
OWN = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": BLOCKS, **ENDS}
WINDOW = {"sliding_window": 2}  # shorter than what is read here
MIXED = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], **WINDOW}
QWEN = {"use_sliding_window": True, "max_window_layers": 1, **WINDOW}
# By whose arguments its block is called: rotation by nothing, positions that are all the first, or neither.
FAMILIES: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama": ("Llama", PLAIN, "rotated"),
    "mistral": ("Mistral", PLAIN | WINDOW, "rotated"),
    "qwen2": ("Qwen2", PLAIN | QWEN, "rotated"),
    "qwen3": ("Qwen3", PLAIN, "rotated"),
    "gemma": ("Gemma", PLAIN, "rotated"),
    "gemma2": ("Gemma2", PLAIN | WINDOW, "rotated"),
    "gemma3": ("Gemma3Text", PLAIN | MIXED, "rotated"),
    "phi3": ("Phi3", PLAIN, "rotated"),
    "gpt-neox": ("GPTNeoX", PLAIN | {"rotary_pct": 0.5}, "half rotated"),
    "gpt-j": ("GPTJ", GPT | {"rotary_dim": 4}, "first place"),
    "gpt2": ("GPT2", GPT, "nothing"),
    "opt": ("OPT", OWN | {"ffn_dim": 48, "num_attention_heads": 4, "word_embed_proj_dim": 16}, "nothing"),
}
NO_SET: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom": ("Bloom", {"vocab_size": 60, "hidden_size": 32, "n_layer": 2, "n_head": 4}),  # ALiBi
    "gpt-neo": (
        "GPTNeo",
        OWN | {"num_layers": 3, "num_heads": 4, "attention_types": [[["global"], 3]]},  # a mask of its own
    ),
    "mamba": ("Mamba", OWN | {"state_size": 4}),  # recurrent
}
TOKENS = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(0))


def language_model(kind: str, taken: dict[str, Any]) -> LanguageModel:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, f"{kind}Config")(**taken)).eval()
    with torch.no_grad():  # so that attention attends, and where a token stands would matter
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and any(part in name for part in ("q_proj", "k_proj", "qkv", "c_attn", "query_key")):
                weight *= 15
            if weight.ndim == 1:  # norms and biases as if they were trained
                weight += 0.3
    tokenizer: Any = None  # no text is read
    return LanguageModel("small", "small@random", model.requires_grad_(False), tokenizer)


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> tuple[LanguageModel, str]:
    kind, taken, called = FAMILIES[request.param]
    return language_model(kind, taken), called


def by_hand(module: torch.nn.Module, called: str, hidden: torch.Tensor) -> torch.Tensor:
    """The block's own forward."""
    b, s = hidden.shape[:2]
    options: dict[str, Any] = {"attention_mask": torch.zeros(b, 1, s, s)}
    if "rotated" in called:
        turned = torch.ones(b, s, 4 if called == "half rotated" else 8)
        options["position_embeddings"] = (turned, torch.zeros_like(turned))  # cosines and sines of 0
    if called == "first place":
        options["position_ids"] = torch.zeros(b, s, dtype=torch.long)
    with torch.no_grad():
        found = module(hidden, **options)
    return found[0] if isinstance(found, tuple) else found


def blocks_of(llm: LanguageModel) -> torch.nn.ModuleList:
    body: Any = llm.model.get_decoder()
    return body.h if hasattr(body, "h") else body.layers


def test_a_layer_is_its_block_called_by_hand(family):
    llm, called = family
    made = [single.take(llm, number)(TOKENS) for number in (1, 2, 3)]
    for found, module in zip(made, blocks_of(llm), strict=True):
        torch.testing.assert_close(found, by_hand(module, called, TOKENS), atol=1e-5, rtol=1e-4)
    assert (made[0] - made[1]).abs().amax() > 1e-2  # and they are different ones


def test_every_token_sees_every_other_and_none_knows_its_place(family):
    llm, _ = family
    order = torch.randperm(7, generator=torch.Generator().manual_seed(1))
    changed = TOKENS.clone()
    changed[:, -1] *= -1
    for number in (1, 2, 3):
        block = single.take(llm, number)
        torch.testing.assert_close(block(TOKENS[:, order]), block(TOKENS)[:, order], atol=1e-5, rtol=1e-4)
        assert ((block(changed) - block(TOKENS)).abs().amax((0, 2)) > 1e-4).all()  # past every window


def test_the_language_model_stays_as_it_is(family):
    llm, _ = family
    ids = torch.arange(5)[None]
    before, weights = llm.model(ids).logits, {k: v.clone() for k, v in llm.model.state_dict().items()}
    parts, depth = [id(m) for m in llm.model.modules()], llm.num_layers
    block = single.take(llm, 2)
    hidden = TOKENS.clone().requires_grad_(True)
    block(hidden).square().sum().backward()
    single.fresh(llm, 2, 0)(TOKENS)
    assert hidden.grad is not None
    assert hidden.grad.abs().sum() > 0
    assert [id(m) for m in llm.model.modules()] == parts
    assert llm.num_layers == depth == BLOCKS + 1
    assert block.llm.num_layers == 2
    assert block.module is blocks_of(llm)[1]  # no copy
    assert all(torch.equal(v, weights[k]) for k, v in llm.model.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in llm.model.parameters())
    assert torch.equal(llm.model(ids).logits, before)


def test_a_random_layer_is_of_the_models_own_initialisation(family):
    llm, _ = family
    torch.manual_seed(3)
    state = torch.get_rng_state()
    one, same, other = (single.fresh(llm, 2, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(llm.model.config)
    made = dict(blocks_of(LanguageModel("fresh", "", model, llm.tokenizer))[1].named_parameters())
    ours = blocks_of(llm)[1]
    assert torch.equal(one(TOKENS), same(TOKENS))
    drawn = zip(one.module.named_parameters(), other.module.parameters(), ours.parameters(), strict=True)
    for (name, p), q, mine in drawn:
        assert not p.requires_grad
        if p.ndim > 1:
            assert not torch.equal(p, q)
            assert not torch.equal(p, mine)
            assert float(p.std()) == pytest.approx(float(made[name].detach().std()), rel=0.1)
        else:
            assert torch.equal(p, made[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", list(NO_SET))
def test_what_cannot_be_read_as_a_set_is_refused(name, dtype):
    llm = language_model(*NO_SET[name])
    llm.model.to(dtype)
    with pytest.raises(ValueError, match="cannot be read as a set: its causal mask or its positions cannot be"):
        single.take(llm, 1)


@pytest.fixture(scope="module")
def small(small_llm) -> LanguageModel:
    return load_llm(str(small_llm))


def test_a_cut_model_has_the_same_layers_and_bfloat16_nearly_the_same(small, small_llm):
    x = torch.randn(1, 5, 24, generator=torch.Generator().manual_seed(0))
    expected = single.take(small, 1)(x)
    cut = load_llm(f"{small_llm}[:1]")
    assert single.count(cut) == 1
    torch.testing.assert_close(single.take(cut, 1)(x), expected)
    rounded = load_llm(str(small_llm), dtype="bfloat16")
    with plain_attention(rounded):
        found = single.take(rounded, 1)(x)
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).norm() < 0.02 * expected.norm()
    assert torch.equal(single.fresh(rounded, 2, 5).module.mlp.up_proj.weight, _half(single.fresh(small, 2, 5)))
    for number in (0, 3):
        with pytest.raises(ValueError, match=f"small-llm has the layers 1 to 2, got {number}"):
            single.take(small, number)


def _half(block: single.Block) -> torch.Tensor:
    module: Any = block.module
    return module.mlp.up_proj.weight.bfloat16()


def pictures(n: int = 12, t: int = 9, d: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens of noisy pictures and clean ones, which an affine map undoes in part: they bend."""
    generator = torch.Generator().manual_seed(0)
    high = torch.randn(n, t, d, generator=generator) * torch.linspace(0.2, 2, d) + 1
    bent = high + 0.5 * high.sin()
    return bent @ torch.randn(d, d, generator=generator) + 0.1 * torch.randn(n, t, d, generator=generator), high


def test_ridge_is_least_squares(monkeypatch):
    low, high = pictures(40)
    monkeypatch.setattr(between, "RIDGE", 1e-9)
    weight, bias = between.ridge(low.split(7), high.split(7))
    with_ones = np.concatenate([low.flatten(0, 1), np.ones((360, 1))], 1)
    expected = np.linalg.lstsq(with_ones.astype(np.float64), high.flatten(0, 1).double().numpy(), rcond=None)[0]
    np.testing.assert_allclose(weight.T, expected[:-1], atol=1e-4)
    np.testing.assert_allclose(bias, expected[-1], atol=1e-4)
    again, _ = between.ridge(low.split(40), high.split(40))
    torch.testing.assert_close(weight, again, atol=1e-3, rtol=1e-3)
    layer = between.best_linear(low, high)
    torch.testing.assert_close(layer.weight.detach(), weight, atol=1e-3, rtol=1e-3)
    with pytest.raises(ValueError, match="no pictures to learn from"):
        between.ridge([], [])


def test_a_feature_that_never_changes_harms_no_ridge():
    low, high = pictures(40)
    low[:, :, 3] = 5.0
    weight, bias = between.ridge(low.split(8), high.split(8))
    assert bool(torch.isfinite(weight).all() and torch.isfinite(bias).all())


def test_two_linear_layers_begin_at_least_squares_and_learn(small):
    low, high = pictures(20)
    block = single.take(small, 1)
    model = between.begin(block, low, high, small, seed=4)
    names = {name for name, _ in model.named_parameters()}
    assert names == set(model.state_dict()) == {"into.weight", "into.bias", "out.weight", "out.bias"}
    assert sum(p.numel() for p in model.parameters()) == 2 * 10 * 24 + 24 + 10
    with torch.no_grad():
        read = model.into(low) * model.scale
        added = block(read) - read
        assert float(added.norm() / read.norm()) == pytest.approx(between.SHARE, rel=0.2)
        made = model.out(block(read) / model.scale)
        torch.testing.assert_close(model(low), made)
        # No other layer out is better, but for the ridge.
        first = F.mse_loss(made, high)
        for way in torch.randn(3, 10, 24, generator=torch.Generator().manual_seed(0)):
            nudged = F.mse_loss(made + 0.3 * F.linear(model.features(low), way), high)
            assert nudged > first
    before = {k: v.clone() for k, v in small.model.state_dict().items()}
    recipe = replace(layers.RECIPE, steps=60, batch=6, lr=1e-2, warmup=5, dtype="float32")
    between.learn(model, low, high, recipe)
    with torch.no_grad():
        learnt = F.mse_loss(model(low), high)
        between.solve(model, low, high)
        assert F.mse_loss(model(low), high) < learnt < first
    assert all(torch.equal(v, before[k]) for k, v in small.model.state_dict().items())
    assert all(p.grad is None for p in small.model.parameters())
    same, other = (between.begin(block, low, high, small, seed) for seed in (4, 5))
    assert model.scale == same.scale
    assert not torch.equal(same.into.weight, other.into.weight)


def test_learning_follows_from_its_seed(small):
    low, high = pictures(10)

    def learnt(seed: int) -> torch.Tensor:
        model = between.begin(F.gelu, low, high, small, 0, 0.1)
        between.learn(model, low, high, replace(layers.RECIPE, steps=5, batch=4, seed=seed))
        return model.into.weight.detach()

    assert torch.equal(learnt(1), learnt(1))
    assert not torch.equal(learnt(1), learnt(2))


def test_a_loss_that_is_not_finite_is_named(small):
    low, high = pictures(10)
    model = between.begin(F.gelu, low, high, small, 0, 0.1)
    with pytest.raises(RuntimeError, match="not finite at step 1; give a lower --lr, and another --out"):
        between.learn(model, low, high * math.inf, layers.RECIPE)


def test_all_arms_learn_as_many_parameters_and_the_mlp_has_no_more_within(small):
    low, high = pictures(10)
    random = single.fresh(small, 1, 0)
    found = [between.begin(middle, low, high, small, 0, 1.0) for middle in (single.take(small, 1), random, F.gelu)]
    assert len({sum(p.numel() for p in model.parameters()) for model in found}) == 1
    mlp = found[2]
    expected = mlp.out(F.gelu(mlp.into(low)))
    torch.testing.assert_close(mlp(low), expected)


def test_interval_by_hand():
    values = torch.tensor([[20.0, 22.0, 24.0, 21.0], [21.0, 23.5, 24.0, 22.0], [20.5, 22.0, 25.0, 23.0]])
    found = over_images_and_seeds(values)
    images, seeds = values.double().mean(0), values.double().mean(1)
    a, b = float(images.var() / 4), float(seeds.var() / 3)
    freedom = (a + b) ** 2 / (a**2 / 3 + b**2 / 2)
    from scipy.stats import t

    half = t.ppf(0.975, freedom) * (a + b) ** 0.5
    assert found.mean == pytest.approx(float(values.mean()))
    assert found.ci95 == pytest.approx((float(values.mean()) - half, float(values.mean()) + half))
    assert found.seed_sd == pytest.approx(float(seeds.std()))
    assert (found.seeds, found.n, found.infinite) == (3, 4, 0)


def test_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    for image_sd, seed_sd, rest in ((3.0, 0.2, 0.3), (0.3, 1.0, 0.1)):
        held = 0
        for _ in range(400):
            values = 25 + rng.normal(0, image_sd, (1, 24)) + rng.normal(0, seed_sd, (3, 1))
            low, high = over_images_and_seeds(torch.tensor(values + rng.normal(0, rest, (3, 24)))).ci95 or (0, 0)
            held += low <= 25 <= high
        assert 0.9 < held / 400 <= 0.99


def test_interval_of_one_seed_infinite_images_and_bad_values():
    values = torch.tensor([[20.0, math.inf, 22.0, 24.0]])
    found = over_images_and_seeds(values)
    assert (found.mean, found.seed_sd, found.n, found.infinite) == (22.0, None, 3, 1)
    assert found.ci95 == pytest.approx((22 - 4.302653 * 2 / 3**0.5, 22 + 4.302653 * 2 / 3**0.5))
    whole = over_images_and_seeds(torch.full((1, 3), math.inf))
    assert (whole.mean, whole.ci95, whole.infinite) == (None, None, 3)
    assert over_images_and_seeds(torch.full((2, 3), 5.0)).ci95 == (5.0, 5.0)
    for bad in (torch.zeros(2, 1), torch.zeros(3), torch.tensor([[1.0, math.nan]])):
        with pytest.raises(ValueError, match="of two images or more"):
            over_images_and_seeds(bad)


@pytest.mark.parametrize(
    ("told", "expected"), [("all", ()), ("3", (3,)), ("12, 1,5-7,6", (1, 5, 6, 7, 12)), ("2-2", (2,))]
)
def test_layers_as_they_are_told(told, expected):
    assert layers.numbers(told) == expected


@pytest.mark.parametrize("told", ["", "a", "1,,2", "5-3", "-1", "1-", "1.5", "²"])
def test_what_are_no_layers(told):
    with pytest.raises(ValueError, match="layers must be all, or numbers and ranges"):
        layers.numbers(told)


def test_a_range_without_end_is_no_memory_hog():
    with pytest.raises(ValueError, match="more than any language model has"):
        layers.numbers("1-999999999999")


def test_arms_come_baselines_first_and_seed_by_seed():
    found = [arm.name for arm in layers.arms(layers.Plan(seeds=2), (1, 30))]
    assert found == [
        *("linear", "mlp-seed-0", "mlp-seed-1", "random-seed-0", "random-seed-1"),
        *("layer-001-seed-0", "layer-030-seed-0", "layer-001-seed-1", "layer-030-seed-1"),
    ]
    assert Arm("layer", 1, 7).name == "layer-007-seed-1"


@pytest.fixture(scope="module")
def plan(small_mae, small_llm, blurs) -> layers.Plan:
    recipe = replace(layers.RECIPE, steps=3, batch=3, warmup=1, dtype="float32")
    where = {"encoder": str(small_mae), "llm": str(small_llm), "data": str(blurs("pictures", 15))}
    return layers.Plan(**where, layers=(2,), seeds=2, recipe=recipe, train_n=8, n=3)


@pytest.fixture(scope="module")
def done(plan, tmp_path_factory):
    folder = tmp_path_factory.mktemp("probe") / "layers"
    return folder, layers.run(plan, folder)


def test_an_arm_is_what_its_parts_make(plan, done, small):
    """Layer 2, seed 1, from the start to the PSNR, with the evaluation of restoration for the columns."""
    from alignlab.restoration.evaluation import evaluate
    from alignlab.restoration.experiment import TEST_SEED, open_test
    from alignlab.restoration.experts import Linear
    from alignlab.restoration.fit import named_data
    from alignlab.restoration.quality import psnr

    folder, result = done
    test = open_test(plan.data, [named_data(plan.data)], plan.n)
    material = layers.gather(plan, layers.open_encoder(plan.encoder), test.pictures, len(test))
    assert material.low.shape == material.high.shape == (8, 17, 24)
    assert float(material.high.square().mean()) == pytest.approx(1, abs=0.02)  # whitened on these very tokens
    model = between.begin(single.take(small, 2), material.low, material.high, small, 1)
    between.learn(model, material.low, material.high, replace(plan.recipe, seed=1))
    between.solve(model, material.low, material.high)
    with torch.no_grad():
        made = psnr(material.encoder.decode(model(material.test_low)).clamp(0, 1), material.truth)
    kept = json.loads((folder / "pairs" / "layer-002-seed-1.json").read_text())
    np.testing.assert_allclose(kept["psnr"], made, atol=0.02)  # rounded to 8 bits
    assert kept["parameters"] == result["parameters"]["layer"] == result["parameters"]["mlp"] == 2 * 24 * 24 + 48
    expected = evaluate(Linear(material.encoder), test.pictures(32), 3, "denoise", seed=TEST_SEED)
    for name in ("degraded", "alone"):
        assert result[name]["psnr"]["mean"] == pytest.approx(getattr(expected, name).psnr.value, abs=1e-6)
        assert result[name]["ssim"]["mean"] == pytest.approx(getattr(expected, name).ssim.value, abs=1e-6)


def test_what_stands_in_a_result(plan, done, small):
    folder, result = done
    (row,) = result["layers"]
    files = {path.stem: json.loads(path.read_text()) for path in (folder / "pairs").glob("*.json")}
    assert set(files) == {"given", *(arm.name for arm in layers.arms(plan, (2,)))}
    ours = torch.tensor([files[f"layer-002-seed-{s}"]["psnr"] for s in (0, 1)])
    theirs = torch.tensor([files[f"mlp-seed-{s}"]["psnr"] for s in (0, 1)])
    single_one = torch.tensor([files["linear"]["psnr"]])
    for found, values in (("psnr", ours), ("over_mlp", ours - theirs), ("over_linear", ours - single_one)):
        estimate = row["psnr"] if found == "psnr" else row[found]["psnr"]
        assert estimate["mean"] == pytest.approx(float(values.mean()), abs=1e-4)
        assert (estimate["seeds"], estimate["n"]) == (2, 3)
    assert result["linear"]["psnr"]["seeds"] == 1
    assert result["mlp"]["over_linear"]["psnr"]["mean"] == pytest.approx(float((theirs - single_one).mean()), abs=1e-4)
    assert result["frozen"]["llm"] == small.checkpoint
    assert result["data"]["fingerprint"] == result["test"]["fingerprint"]
    assert result["data"]["name"] == "pictures"  # no folder of anybody's machine
    assert result["best"] == 2
    assert result["seconds"]["trained"] == 7


def test_a_folder_goes_on_and_holds_one_run(plan, done):
    folder, first = done
    kept = {path: path.stat().st_mtime_ns for path in (folder / "pairs").iterdir()}
    again = layers.run(plan, folder)
    assert again["seconds"]["trained"] == 0
    assert {k: v for k, v in again.items() if k not in ("seconds", "environment")} == {
        k: v for k, v in first.items() if k not in ("seconds", "environment")
    }
    lost = folder / "pairs" / "layer-002-seed-1.json"
    before = json.loads(lost.read_text())
    lost.unlink()  # as if it had been interrupted there
    more = layers.run(replace(plan, layers=(1, 2)), folder)
    assert more["seconds"]["trained"] == 3
    assert [row["layer"] for row in more["layers"]] == [1, 2]
    found = json.loads(lost.read_text())
    assert {k: v for k, v in found.items() if k != "seconds"} == {k: v for k, v in before.items() if k != "seconds"}
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items() if path.stem not in ("given", lost.stem))
    longer = replace(plan, recipe=replace(plan.recipe, steps=4))
    with pytest.raises(ValueError, match=r"holds another run: its recipe steps is 3, not 4; choose another --out"):
        layers.run(longer, folder)
    with pytest.raises(ValueError, match=r"holds another run: its task is denoise, not mask"):
        layers.run(replace(plan, task="mask"), folder)
    lost.write_text("{}")
    with pytest.raises(ValueError, match=r"layer-002-seed-1.json is damaged; delete it"):
        layers.run(plan, folder)
    lost.write_text(json.dumps(before))


def test_a_spatial_task_is_measured_against_its_answer(plan, tmp_path):
    result = layers.run(replace(plan, task="rotate", layers=(1,), seeds=1), tmp_path / "rotate")
    assert result["degraded"]["psnr"] == {
        **{"mean": None, "ci95": None, "seed_sd": None},
        **{"seeds": 1, "n": 0, "infinite": 3},
    }
    assert result["degraded"]["ssim"]["mean"] == pytest.approx(1)
    assert result["layers"][0]["psnr"]["seed_sd"] is None


def test_the_mlp_is_the_best_of_its_beginnings(plan, small):
    low, high = pictures(12)
    material = layers.Material(None, low, high, low, low, low, low)
    errors = {}
    for bent in between.BENT:
        model = between.begin(F.gelu, low, high, small, 1, bent)
        between.learn(model, low, high, replace(plan.recipe, seed=1))
        between.solve(model, low, high)
        with torch.no_grad():
            errors[bent] = float(F.mse_loss(model(low), high))
        assert between.error(model, low, high) == pytest.approx(errors[bent], rel=1e-4)
    chosen = layers.probe(Arm("mlp", 1), plan, small, material)
    assert chosen.scale == min(errors, key=errors.get)
    assert len({round(e, 6) for e in errors.values()}) == 3


def test_the_picture_shows_every_layer_and_leaves_out_what_is_infinite(done):
    from alignlab.probing.layers_figure import curve

    _, result = done
    other = json.loads(json.dumps(result))
    other["layers"] += [{**other["layers"][0], "layer": 3}]
    above, below = curve(other).axes
    points = [line for line in above.get_lines() if line.get_marker() == "o" and len(line.get_xdata()) == 2]
    assert [list(line.get_xdata()) for line in points] == [[2, 3]]
    assert points[0].get_ydata()[0] == result["layers"][0]["psnr"]["mean"]
    assert below.get_ylabel() == "dB over one linear layer"
    whole = len(above.get_legend_handles_labels()[1])
    other["degraded"]["psnr"]["mean"] = None
    assert len(curve(other).axes[0].get_legend_handles_labels()[1]) == whole - 1


def test_wrong_plans_are_named(plan, tmp_path):
    for wrong, message in (
        ({"task": "blur"}, "task must be one of denoise"),
        ({"seeds": 0}, "seeds must be 1 or more, got 0"),
        ({"train_n": 1}, "train-n must be 2 or more"),
        ({"n": 1}, "n must be 2 or more"),
        ({"layers": (0, 1)}, "got 0; layer 0 is the embedding"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(plan, **wrong)
    for wrong, message in (
        ({"layers": (1, 3)}, "small-llm has the layers 1 to 2, got 3"),
        ({"encoder": "timm:test_vit.r160_in1k@random"}, "has no decoder; --encoder takes a MAE"),
    ):
        with pytest.raises(ValueError, match=message):
            layers.run(replace(plan, **wrong), tmp_path / "none")
    assert not (tmp_path / "none").exists()
