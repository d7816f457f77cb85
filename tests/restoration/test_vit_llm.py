"""ViT-LLM generation: what the mask and the positions are, for each family of language models, and what trains."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers

from alignlab.models import load_encoder, load_llm
from alignlab.models.llm import LanguageModel
from alignlab.restoration.adapters import spread
from alignlab.restoration.lm4lv import LM4LV
from alignlab.restoration.vit_llm import ViTLLM, read

IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
WAYS = [(True, True), (True, False), (False, True), (False, False)]  # bidirectional, rotary

PLAIN: dict[str, Any] = {
    "vocab_size": 120,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
ENDS = {"bos_token_id": 1, "eos_token_id": 2}
GPT = {"vocab_size": 120, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, **ENDS}
OWN = {"vocab_size": 120, "hidden_size": 32, "num_hidden_layers": 2, **ENDS}
WINDOW = {"sliding_window": 3}  # shorter than what is read here
MIXED = {"layer_types": ["sliding_attention", "full_attention"], **WINDOW}
QWEN = {"use_sliding_window": True, "max_window_layers": 1, **WINDOW}
OPT = {"ffn_dim": 48, "num_attention_heads": 4, "word_embed_proj_dim": 32, "max_position_embeddings": 64}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
NEO = {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 3}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", PLAIN),
    "mistral": ("Mistral", PLAIN | WINDOW),
    "mixtral": ("Mixtral", PLAIN | EXPERTS),
    "qwen2": ("Qwen2", PLAIN | QWEN),
    "qwen3": ("Qwen3", PLAIN),
    "gemma": ("Gemma", PLAIN),
    "gemma2": ("Gemma2", PLAIN | WINDOW),
    "gemma3": ("Gemma3Text", PLAIN | MIXED),
    "phi": ("Phi", PLAIN),
    "phi3": ("Phi3", PLAIN),
    "gpt-neox": ("GPTNeoX", PLAIN),
    "gpt-j": ("GPTJ", GPT | {"rotary_dim": 4}),
    "gpt2": ("GPT2", GPT),
    "opt": ("OPT", OWN | OPT),
    "falcon": ("Falcon", OWN | {"num_attention_heads": 4}),
}
NO_VIT: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt-neo": ("GPTNeo", OWN | NEO),  # a mask of its own
    "bloom": ("Bloom", {"vocab_size": 120, "hidden_size": 32, "n_layer": 2, "n_head": 4}),  # ALiBi
    "mpt": ("Mpt", {"vocab_size": 120, "d_model": 32, "n_layers": 2, "n_heads": 4}),
    "falcon": ("Falcon", OWN | {"num_attention_heads": 4, "alibi": True}),
    "mamba": ("Mamba", OWN | {"state_size": 4}),  # recurrent
    "rwkv": ("Rwkv", OWN | {"attention_hidden_size": 32, "context_length": 64}),
}
ONLY_EAGER = ("gemma2", "gpt-j")


def language_model(kind: str, taken: dict[str, Any], attention: str | None = None) -> LanguageModel:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**taken)
    options = {} if attention is None else {"attn_implementation": attention}
    model = transformers.AutoModelForCausalLM.from_config(config, **options).eval()
    with torch.no_grad():  # so that attention attends, and where a token stands matters
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and any(part in name for part in ("q_proj", "k_proj", "qkv", "c_attn", "query_key")):
                weight *= 15
    tokenizer: Any = None  # no text is read
    return LanguageModel("small", "small@random", model, tokenizer)


@pytest.fixture(
    scope="module",
    params=[f"{name}-{attention}" for name in FAMILIES for attention in ("sdpa", "eager")],
)
def llm(request: pytest.FixtureRequest) -> LanguageModel:
    name, attention = request.param.rsplit("-", 1)
    if attention == "sdpa" and name in ONLY_EAGER:
        pytest.skip("transformers has it with eager attention alone")
    return language_model(*FAMILIES[name], attention)


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return 0.5 * torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def encoder(small_mae):
    return load_encoder(str(small_mae))


@pytest.fixture(scope="module")
def small(small_llm) -> LanguageModel:
    return load_llm(str(small_llm))


@torch.no_grad()
def seen(llm: LanguageModel, tokens: torch.Tensor, way: tuple[bool, bool]) -> torch.Tensor:
    return read(llm, tokens, bidirectional=way[0], rotary=way[1])


@torch.no_grad()
def plain(llm: LanguageModel, tokens: torch.Tensor) -> torch.Tensor:
    """The causal LM's own last hidden states."""
    return llm.model(inputs_embeds=tokens, output_hidden_states=True).hidden_states[-1]


def test_causal_and_rotary_is_the_language_model(llm, tokens):
    torch.testing.assert_close(seen(llm, tokens, (False, True)), plain(llm, tokens), atol=1e-6, rtol=1e-5)


def test_without_mask_and_positions_order_means_nothing(llm, tokens):
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    for way in WAYS:
        kept, moved = seen(llm, tokens, way)[:, order], seen(llm, tokens[:, order], way)
        if way == (True, False):
            torch.testing.assert_close(moved, kept, atol=1e-5, rtol=1e-4)
        else:
            assert (moved - kept).abs().amax() > 1e-2


def test_a_later_token_is_seen_by_an_earlier_one_when_bidirectional_alone(llm, tokens):
    changed = tokens.clone()
    changed[:, -1] *= -1
    for way in WAYS:
        difference = (seen(llm, changed, way) - seen(llm, tokens, way)).abs().amax((0, 2))  # [S]
        if way[0]:
            assert (difference > 1e-4).all()  # by the first, past every window, too
        else:
            assert (difference[:-1] < 1e-6).all()  # a mixture of experts sums in another order
            assert difference[-1] > 1e-4


def test_an_image_does_not_see_the_next(llm, tokens):
    for way in WAYS:
        torch.testing.assert_close(seen(llm, tokens[:1], way), seen(llm, tokens, way)[:1], atol=1e-5, rtol=1e-4)


def unturned(model: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    """The same model with its positions taken out of its own tables, angles or weights."""
    found = copy.deepcopy(model)
    changed = 0
    with torch.no_grad():
        for name, value in [*found.named_buffers(), *found.named_parameters()]:
            if name.endswith("inv_freq"):
                value.zero_()  # an angle of 0 everywhere
            elif name.endswith("attn.embed_positions"):  # GPT-J's sines, then cosines, of every place
                value[:] = value[:1].clone()
            elif name.endswith(("wpe.weight", "embed_positions.weight")):
                value.zero_()
            else:
                continue
            changed += 1
    assert changed
    return found


def test_causal_without_positions_is_the_language_model_with_its_own_taken_out(llm, tokens):
    without = LanguageModel("without", "without", unturned(llm.model), llm.tokenizer)
    expected = plain(without, tokens)
    torch.testing.assert_close(seen(llm, tokens, (False, False)), expected, atol=1e-5, rtol=1e-4)
    assert (plain(llm, tokens) - expected).abs().amax() > 1e-3  # and they mattered
    # Learned positions are back where they were.
    torch.testing.assert_close(seen(llm, tokens, (False, True)), plain(llm, tokens), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("rotary", [True, False])
def test_the_last_token_of_one_block_saw_everything_anyway(tokens, rotary):
    one = language_model("Llama", PLAIN | {"num_hidden_layers": 1})
    both, causal = seen(one, tokens, (True, rotary)), seen(one, tokens, (False, rotary))
    torch.testing.assert_close(both[:, -1], causal[:, -1], atol=1e-5, rtol=1e-4)
    assert (both[:, 0] - causal[:, 0]).abs().amax() > 1e-2


@pytest.mark.parametrize("name", list(NO_VIT))
def test_a_model_that_is_no_vit_is_refused_and_read_as_it_is(encoder, name, tokens):
    llm = language_model(*NO_VIT[name])
    for bidirectional, rotary in WAYS:
        if bidirectional or not rotary:
            with pytest.raises(ValueError, match=rf"small \({llm.model.config.model_type}\) cannot be read as a ViT"):
                ViTLLM(encoder, llm, bidirectional=bidirectional, rotary=rotary)
    assert not ViTLLM(encoder, llm, bidirectional=False, rotary=True).bidirectional
    if name != "rwkv":  # that one names its hidden states otherwise
        torch.testing.assert_close(seen(llm, tokens, (False, True)), plain(llm, tokens), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_losses_are_of_what_it_writes(encoder, small, way):
    model = ViTLLM(encoder, small, bidirectional=way[0], rotary=way[1])
    assert model.how == "vit-llm"
    low, high = encoder.encode(IMAGES), encoder.encode(1 - IMAGES)
    losses = model(low, high, "denoise")
    written = model.write(low, "denoise")
    assert written.shape == low.shape
    assert not written.requires_grad
    torch.testing.assert_close(losses.visual, (written - high).square().mean())
    assert losses.text == 0
    with torch.no_grad():
        hidden = seen(small, model.adapter_in(low), way)
        torch.testing.assert_close(written, model.adapter_out(hidden))
    restored = model.restore(IMAGES, batch_size=2)
    torch.testing.assert_close(restored, encoder.decode(written), atol=1e-4, rtol=1e-4)


def test_two_linear_layers_are_all_that_trains(encoder, small):
    before = {name: p.clone() for name, p in small.model.named_parameters()}
    model = ViTLLM(encoder, small)
    names = {"adapter_in.weight", "adapter_in.bias", "adapter_out.weight", "adapter_out.bias"}
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()} == names
    assert sum(p.numel() for p in model.trainable()) == 2 * 24 * 24 + 24 + 24
    low, high = encoder.encode(IMAGES), encoder.encode(1 - IMAGES)
    optimiser = torch.optim.Adam(model.trainable(), lr=1e-2)
    errors = []
    for _ in range(100):
        optimiser.zero_grad()
        losses = model(low, high, "denoise")
        losses.total.backward()
        optimiser.step()
        errors.append(float(losses.visual.detach()))
    assert errors[-1] < 0.5 * errors[0]
    assert all(torch.equal(p, before[name]) for name, p in small.model.named_parameters())
    small.model.lm_head.weight.requires_grad_(True)
    with pytest.raises(AssertionError, match="frozen"):
        model.trainable()
    small.model.requires_grad_(False)


def test_tasks_have_tokens_of_their_own_in_front(encoder, small):
    model = ViTLLM(encoder, small, 4, tasks=("denoise", "mask"))
    assert sum(p.numel() for p in model.trainable()) == 2 * 24 * 24 + 24 + 24 + 2 * 4 * 24
    low = encoder.encode(IMAGES)
    with torch.no_grad():
        sequence = torch.cat([model.task_tokens["mask"].expand(3, -1, -1), model.adapter_in(low)], dim=1)
        by_hand = model.adapter_out(seen(small, sequence, (True, False))[:, 4:])
    torch.testing.assert_close(model.write(low, "mask"), by_hand)
    assert not torch.allclose(model.write(low, "mask"), model.write(low, "denoise"))
    model(low, low, "mask").total.backward()
    assert model.task_tokens["mask"].grad.abs().sum() > 0
    assert model.task_tokens["denoise"].grad is None


def test_it_starts_as_lm4lv_does(encoder, small):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    model, other = ViTLLM(encoder, small, seed=3), ViTLLM(encoder, small, seed=4)
    assert torch.equal(before, torch.get_rng_state())
    theirs = LM4LV(encoder, small, seed=3).state_dict()
    for name, value in model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, theirs[name])
        assert "bias" in name or not torch.equal(value, other.state_dict()[name])


@pytest.mark.parametrize("name", ["llama", "gemma", "gemma3"])
def test_visual_tokens_start_with_the_spread_of_words(encoder, name):
    llm = language_model(*FAMILIES[name])
    words = llm.model.get_input_embeddings()(torch.arange(120)).detach().std()  # Gemma multiplies what it looks up
    assert spread(llm) == pytest.approx(float(words))
    model = ViTLLM(encoder, llm)
    assert 0.5 < float(model.adapter_in(encoder.encode(IMAGES)).detach().std() / words) < 2


def test_a_language_model_in_bfloat16(encoder, small_llm):
    exact = ViTLLM(encoder, load_llm(str(small_llm)))
    model = ViTLLM(encoder, load_llm(str(small_llm), dtype="bfloat16"))
    low = encoder.encode(IMAGES)
    exact.load_state_dict(model.state_dict())
    written = model.write(low, "denoise")
    assert written.dtype == torch.float32
    assert (written - exact.write(low, "denoise")).norm() < 0.1 * written.norm()


def test_wrong_use_is_named(encoder, small, small_llm):
    model = ViTLLM(encoder, small)
    low = encoder.encode(IMAGES)
    with pytest.raises(ValueError, match="task must be one of denoise, got 'blur'"):
        model(low, low, "blur")
    with pytest.raises(ValueError, match=r"tokens must be \[B, 17, 24\]"):
        model.write(low[:, 1:], "denoise")
    with pytest.raises(ValueError, match="task_tokens must be 1 or more"):
        ViTLLM(encoder, small, 0)
    short = language_model("Llama", PLAIN | {"max_position_embeddings": 16})
    with pytest.raises(ValueError, match="17 tokens are more than the 16 that small can read"):
        ViTLLM(encoder, short)
