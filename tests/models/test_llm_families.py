"""Every family of causal LMs: a small random one against transformers' plain forward, whole and cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from alignlab.models.llm import POOLS, load_llm

TEXTS = ["a red cube", "no", "x", "two blue balls"]
BLOCKS = 4
VOCABULARY = 120  # more than the tokenizer of single characters has
PLAIN: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
GPT = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": BLOCKS, "n_head": 4, "n_positions": 64}
OWN = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": BLOCKS}
WINDOW = {"sliding_window": 3}
MIXED = {"layer_types": ["sliding_attention", "full_attention"] * 2, **WINDOW}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 4, "mamba_n_groups": 1, "attn_layer_indices": [1]}
JAMBA = {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 4, "use_mamba_kernels": False}

# The name of transformers' configuration (without Config), what it is made with, its final norm.
FAMILIES: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama": ("Llama", PLAIN, "norm"),
    "mistral": ("Mistral", PLAIN | WINDOW, "norm"),
    "mixtral": ("Mixtral", PLAIN | EXPERTS, "norm"),
    "qwen2": ("Qwen2", PLAIN | WINDOW | {"use_sliding_window": True, "max_window_layers": 2}, "norm"),
    "qwen3": ("Qwen3", PLAIN, "norm"),
    "qwen3-moe": ("Qwen3Moe", PLAIN | EXPERTS, "norm"),
    "gemma": ("Gemma", PLAIN, "norm"),
    "gemma2": ("Gemma2", PLAIN | WINDOW, "norm"),
    "gemma3": ("Gemma3Text", PLAIN | MIXED, "norm"),
    "phi": ("Phi", PLAIN, "final_layernorm"),
    "phi3": ("Phi3", PLAIN, "norm"),
    "gpt2": ("GPT2", GPT, "ln_f"),
    "gpt-j": ("GPTJ", GPT | {"rotary_dim": 4}, "ln_f"),
    "gpt-neo": (
        "GPTNeo",
        OWN | {"num_layers": BLOCKS, "num_heads": 4, "attention_types": [[["global", "local"], 2]], "window_size": 3},
        "ln_f",
    ),
    "gpt-neox": ("GPTNeoX", PLAIN, "final_layer_norm"),
    "gpt-oss": ("GptOss", PLAIN | MIXED | EXPERTS, "norm"),
    "olmo": ("Olmo", PLAIN, "norm"),
    "olmo2": ("Olmo2", PLAIN, "norm"),
    "opt": ("OPT", OWN | {"ffn_dim": 48, "num_attention_heads": 4, "word_embed_proj_dim": 32}, "final_layer_norm"),
    "bloom": ("Bloom", {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": BLOCKS, "n_head": 4}, "ln_f"),
    "mpt": ("Mpt", {"vocab_size": VOCABULARY, "d_model": 32, "n_layers": BLOCKS, "n_heads": 4}, "norm_f"),
    "falcon": ("Falcon", OWN | {"num_attention_heads": 4}, "ln_f"),
    "falcon-alibi": ("Falcon", OWN | {"num_attention_heads": 4, "alibi": True}, "ln_f"),
    "stablelm": ("StableLm", PLAIN, "norm"),
    "mamba": ("Mamba", OWN | {"state_size": 4}, "norm_f"),
    "mamba2": ("Mamba2", OWN | {"state_size": 4, "num_heads": 4, "head_dim": 16, "n_groups": 1}, "norm_f"),
    "bamba": ("Bamba", PLAIN | MAMBA, "final_layernorm"),
    "jamba": ("Jamba", PLAIN | JAMBA | EXPERTS, "final_layernorm"),
    "rwkv": ("Rwkv", OWN | {"attention_hidden_size": 32, "context_length": 64}, "ln_out"),  # heeds no mask
}


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(
    request: pytest.FixtureRequest, small_llm: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    return request.param, save(request.param, small_llm, tmp_path_factory.mktemp("family") / request.param)


def save(family: str, small_llm: Path, folder: Path) -> Path:
    kind, options, _ = FAMILIES[family]
    taken = {key: value for key, value in options.items() if key != "head_dim" or kind not in ("Phi", "Phi3")}
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**taken)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # away from 0 and 1, so that a norm left out or put in twice shows
        for name, weight in model.named_parameters():
            if weight.ndim == 1 and ("norm" in name.lower() or ".ln_" in name):
                weight += torch.rand_like(weight)
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(small_llm).save_pretrained(folder)
    return folder


def states(folder: Path, text: str) -> torch.Tensor:
    """Every hidden state of one text, `[L, T, D]`: transformers alone, the whole causal LM, no padding."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = transformers.AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids
    with torch.no_grad():
        hidden = model(ids, output_hidden_states=True).hidden_states
        if model.config.model_type in ("mamba", "mamba2", "rwkv"):  # the blocks' outputs, then the last after the norm
            hidden = (model.get_input_embeddings()(ids), *hidden[:-2], hidden[-1])
        return torch.cat(hidden)


def test_layers_are_those_of_a_plain_forward(family: tuple[str, Path]) -> None:
    _, folder = family
    llm = load_llm(str(folder))
    assert (llm.num_layers, llm.width) == (BLOCKS + 1, 32)
    plain = [states(folder, text) for text in TEXTS]
    expected = {"mean": torch.stack([h.mean(1) for h in plain]), "last": torch.stack([h[:, -1] for h in plain])}
    for pool in POOLS:
        for batch_size in (1, 4):
            layers = llm.layers(TEXTS, pool, batch_size)
            assert layers.shape == (4, BLOCKS + 1, 32)
            torch.testing.assert_close(layers, expected[pool], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("blocks", [1, 3, BLOCKS])
def test_the_first_blocks_are_those_of_the_whole_and_the_final_norm(family: tuple[str, Path], blocks: int) -> None:
    name, folder = family
    if name == "rwkv" and blocks == 1:
        pytest.skip("transformers cannot make an RWKV of one block")
    whole, cut = load_llm(str(folder)), load_llm(f"{folder}[:{blocks}]")
    assert cut.name == f"{name}[:{blocks}]"
    assert cut.checkpoint == f"{whole.checkpoint}[:{blocks}]"
    assert cut.num_layers == blocks + 1
    of_whole, of_cut = whole.layers(TEXTS), cut.layers(TEXTS)
    torch.testing.assert_close(of_cut[:, :blocks], of_whole[:, :blocks], atol=1e-6, rtol=1e-6)

    parts: Any = cut.model
    assert count(parts) < count(whole.model) or blocks == BLOCKS
    # The last layer, by the whole model's own norm.
    norm = getattr(whole._body, FAMILIES[name][2])
    last = states(folder, TEXTS[0])[blocks]
    with torch.no_grad():
        normed = last if blocks == BLOCKS else norm(last)
    torch.testing.assert_close(of_cut[0, blocks], normed.mean(0), atol=1e-5, rtol=1e-5)


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_a_cut_model_generates_and_carries_gradients(family: tuple[str, Path]) -> None:
    name, folder = family
    cut = load_llm(f"{folder}[:2]")
    ids = cut.tokenizer("red", return_tensors="pt").input_ids
    options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with_cache = cut.model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    step = ids
    for _ in range(4):  # greedily, all over again for every token
        with torch.no_grad():
            step = torch.cat([step, cut.model(step, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(with_cache, step)

    if name == "rwkv":
        return  # whole or cut, transformers has no gradients for it outside training
    embedded = cut.model.get_input_embeddings()(ids).requires_grad_()
    cut.model(inputs_embeds=embedded).logits.sum().backward()
    assert embedded.grad is not None
    assert embedded.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt-neox", "bloom", "mamba"])
def test_half_precision_is_near(small_llm: Path, tmp_path: Path, name: str, dtype: str) -> None:
    folder = save(name, small_llm, tmp_path / name)
    exact, rough = load_llm(str(folder)).layers(TEXTS), load_llm(str(folder), dtype=dtype).layers(TEXTS)
    assert rough.dtype == torch.float32
    assert ((rough - exact).norm(dim=-1) / exact.norm(dim=-1)).max() < 0.05


def test_the_text_part_of_a_multimodal_model(small_llm: Path, tmp_path: Path) -> None:
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes = {"image_size": 8, "patch_size": 4}
    config = transformers.Gemma3Config(text_config=PLAIN | MIXED, vision_config=vision | sizes, mm_tokens_per_image=4)
    torch.manual_seed(0)
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path / "gemma3")
    transformers.AutoTokenizer.from_pretrained(small_llm).save_pretrained(tmp_path / "gemma3")
    llm = load_llm(str(tmp_path / "gemma3"))
    assert (llm.num_layers, llm.width, llm.context) == (BLOCKS + 1, 32, 64)
    for i, text_ in enumerate(TEXTS):
        ids = llm.tokenizer(text_, return_tensors="pt").input_ids
        with torch.no_grad():
            expected = torch.cat(model(ids, output_hidden_states=True).hidden_states).mean(1)
        torch.testing.assert_close(llm.layers(TEXTS)[i], expected, atol=1e-5, rtol=1e-5)
    cut = load_llm(f"{tmp_path}/gemma3[:2]")
    torch.testing.assert_close(cut.layers(TEXTS)[:, :2], llm.layers(TEXTS)[:, :2])


SMALL = {"vocab_size": 40, "d_model": 16, "num_layers": 1, "num_heads": 2, "d_ff": 16, "d_kv": 8}
SHORT = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.mark.parametrize(
    ("model", "config", "message"),
    [
        ("T5ForConditionalGeneration", transformers.T5Config(**SMALL), r"is an encoder-decoder \(t5\), no causal"),
        ("BertForMaskedLM", transformers.BertConfig(**SHORT), r"is a masked language model \(bert\), no causal"),
        (
            "ModernBertForMaskedLM",
            transformers.ModernBertConfig(pad_token_id=0, **SHORT),
            r"is a masked language model \(modernbert\)",
        ),
        ("ViTModel", transformers.ViTConfig(image_size=8, patch_size=4, **SHORT), r"is of the type vit, no causal"),
        (
            "Gemma3TextModel",
            transformers.Gemma3TextConfig(use_bidirectional_attention=True, **SHORT),
            r"is gemma3_text with attention in both directions, no causal",
        ),
    ],
)
def test_what_is_no_causal_lm_is_refused(
    small_llm: Path, tmp_path: Path, model: str, config: Any, message: str
) -> None:
    getattr(transformers, model)(config).save_pretrained(tmp_path / "other")
    transformers.AutoTokenizer.from_pretrained(small_llm).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=message) as caught:
        load_llm(str(tmp_path / "other"))
    assert "\n" not in str(caught.value)


def test_layers_of_different_widths_are_refused(small_llm: Path, tmp_path: Path) -> None:
    options = OWN | {"ffn_dim": 48, "num_attention_heads": 4, "word_embed_proj_dim": 16}
    config = transformers.OPTConfig(do_layer_norm_before=False, **options)  # as the OPT of 350 M
    transformers.OPTForCausalLM(config).save_pretrained(tmp_path / "opt")
    transformers.AutoTokenizer.from_pretrained(small_llm).save_pretrained(tmp_path / "opt")
    with pytest.raises(ValueError, match=r"opt \(opt\) does not give 5 layers of width 32 but \[16\]"):
        load_llm(str(tmp_path / "opt")).layers(TEXTS)


def test_a_tokenizer_of_more_tokens_than_the_model_knows_is_refused(small_llm: Path, tmp_path: Path) -> None:
    config = transformers.LlamaConfig(**PLAIN | {"vocab_size": 50})
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "less")
    transformers.AutoTokenizer.from_pretrained(small_llm).save_pretrained(tmp_path / "less")
    with pytest.raises(ValueError, match=r"the tokenizer of less gives token \d+, its model knows 50"):
        load_llm(str(tmp_path / "less")).layers(["abc~"])


def test_a_padding_token_that_the_model_lacks_does_no_harm(small_llm: Path, tmp_path: Path) -> None:
    # As Llama 2, to whose tokenizer people add a padding token.
    transformers.AutoModelForCausalLM.from_pretrained(small_llm).save_pretrained(tmp_path / "padded")
    tokenizer = transformers.AutoTokenizer.from_pretrained(small_llm)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(tmp_path / "padded")
    llm = load_llm(str(tmp_path / "padded"))
    assert llm.tokenizer.pad_token_id == 98
    assert llm.model.get_input_embeddings().weight.shape[0] == 98
    torch.testing.assert_close(llm.layers(TEXTS), load_llm(str(small_llm)).layers(TEXTS))


def test_a_tokenizer_without_any_special_token(small_llm: Path, tmp_path: Path) -> None:
    transformers.AutoModelForCausalLM.from_pretrained(small_llm).save_pretrained(tmp_path / "bare")
    backend = transformers.AutoTokenizer.from_pretrained(small_llm).backend_tokenizer
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(tmp_path / "bare")
    llm = load_llm(str(tmp_path / "bare"))
    assert llm.tokenizer.pad_token is None
    torch.testing.assert_close(llm.layers(TEXTS), load_llm(str(small_llm)).layers(TEXTS))
