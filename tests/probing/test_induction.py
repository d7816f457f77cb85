"""Induction heads and what switching heads off does, on small random models of many families and on one made to copy."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import transformers

from alignlab.models import load_encoder
from alignlab.models.llm import LanguageModel
from alignlab.probing import attention
from alignlab.probing.induction import (
    Attended,
    ablate,
    copying,
    image_places,
    random_heads,
    read_images,
    read_text,
    repeated_text,
    visual_loss,
)
from alignlab.probing.induction_result import ablation_bars, agreement, plain_ablated
from alignlab.restoration.lm4lv import LM4LV

VOCABULARY, BLOCKS, HEADS = 98, 2, 4
PLAIN = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
GPT = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": BLOCKS, "n_head": HEADS, "n_positions": 128}
FAMILIES = {
    "llama": ("Llama", PLAIN, "o_proj"),
    "gpt2": ("GPT2", GPT, "c_proj"),
    "gpt-j": ("GPTJ", GPT | {"rotary_dim": 4}, "out_proj"),
    "gpt-neox": ("GPTNeoX", PLAIN, "dense"),
    "gpt-neo": (
        "GPTNeo",
        {
            **{"vocab_size": VOCABULARY, "hidden_size": 32, "num_layers": BLOCKS, "num_heads": HEADS},
            **{"attention_types": [[["global", "local"], 1]], "window_size": 3, "max_position_embeddings": 128},
        },
        "out_proj",
    ),
    "gemma": ("Gemma", PLAIN | {"head_dim": 8}, "o_proj"),
    "gemma2": ("Gemma2", PLAIN | {"head_dim": 8, "sliding_window": 3}, "o_proj"),
    "phi3": ("Phi3", PLAIN | {"bos_token_id": 1, "eos_token_id": 2}, "o_proj"),
}


def make(family: str, small_llm) -> LanguageModel:
    kind, options, _ = FAMILIES[family]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, f"{kind}Config")(**options))
    with torch.no_grad():  # so that attention is not nearly flat, and biases count
        for name, weight in model.named_parameters():
            weight.mul_(8) if weight.ndim == 2 and "emb" not in name and "wte" not in name else weight.add_(0.1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(small_llm)
    return LanguageModel(family, f"{family}@test", model.eval().requires_grad_(False), tokenizer)


@pytest.fixture(scope="module", params=list(FAMILIES))
def llm(request, small_llm):
    return make(request.param, small_llm)


@pytest.fixture(scope="module")
def llama(small_llm):
    return make("llama", small_llm)


def test_attention_is_found_whatever_it_is_called(llm):
    found = attention.find(llm)
    assert [(one.block, one.heads) for one in found] == [(1, HEADS), (2, HEADS)]
    names = {module: name for name, module in llm.model.named_modules()}
    assert [names[one.projection].rpartition(".")[2] for one in found] == [FAMILIES[llm.name][2]] * 2


def test_scores_are_those_of_the_weights_that_transformers_returns(llm):
    before = llm.model.config._attn_implementation
    length, found = 6, attention.find(llm)
    ids, start = repeated_text(llm, 3, length, seed=1)
    attended, copied = read_text(llm, found, ids, start)
    assert llm.model.config._attn_implementation == before
    plain = transformers.AutoModelForCausalLM.from_config(llm.model.config, attn_implementation="eager")
    plain.load_state_dict(llm.model.state_dict())
    with torch.no_grad():
        out = plain.eval()(ids, output_attentions=True)
    for block, weights in enumerate(out.attentions):  # [B, heads, S, S]
        for t in range(length - 1):
            if t == 0:
                successor, same = torch.zeros(2, 3, HEADS)
            successor = successor + weights[:, :, start + length + t, start + t + 1] / (length - 1)
            same = same + weights[:, :, start + length + t, start + t] / (length - 1)
        torch.testing.assert_close(attended.successor[:, block], successor)
        torch.testing.assert_close(attended.same[:, block], same)
        rows = weights[:, :, start + length : start + 2 * length - 1, start : start + length]
        torch.testing.assert_close(attended.source[:, block], rows.mean((2, 3)))
    losses = F.cross_entropy(out.logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")  # entry i: token i + 1
    torch.testing.assert_close(copied.first, losses[:, start : start + length - 1].mean(1))
    torch.testing.assert_close(copied.second, losses[:, start + length :].mean(1))
    assert attended.chance == pytest.approx(sum(1 / (start + length + t + 1) for t in range(length - 1)) / (length - 1))


def test_a_head_switched_off_is_a_head_whose_output_weights_are_zero(llm):
    found = attention.find(llm)
    ids, _ = repeated_text(llm, 2, 5)
    other = transformers.AutoModelForCausalLM.from_config(llm.model.config)
    other.load_state_dict(llm.model.state_dict())
    names = {module: name for name, module in llm.model.named_modules()}
    with torch.no_grad():
        weight = dict(other.named_modules())[names[found[1].projection]].weight
        inputs = weight if type(found[1].projection).__name__ == "Conv1D" else weight.T  # [heads * d, D], a view
        inputs[16:24] = 0  # the third of four heads of width 8
        expected, whole = other.eval()(ids).logits, llm.model(ids).logits
        with attention.without(found, [(2, 3)]):
            torch.testing.assert_close(llm.model(ids).logits, expected)
        torch.testing.assert_close(llm.model(ids).logits, whole)  # and on again
    assert not torch.allclose(expected, whole)
    for missing in ((3, 1), (1, 0), (1, HEADS + 1)):
        with (
            pytest.raises(ValueError, match=f"no head {missing[1]} in block {missing[0]}"),
            attention.without(found, [missing]),
        ):
            pass


def test_models_without_attention_are_told_so(small_llm):
    config = transformers.MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4)
    tokenizer = transformers.AutoTokenizer.from_pretrained(small_llm)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(ValueError, match=r"mamba-like \(mamba\) shows no attention weights"):
        attention.find(LanguageModel("mamba-like", "x", model, tokenizer))


def test_repeated_text(llama):
    ids, start = repeated_text(llama, 4, 20, seed=3)
    assert (ids.shape, start) == ((4, 41), 1)
    assert (ids[:, 0] == llama.tokenizer.bos_token_id).all()
    assert (ids[:, 1:21] == ids[:, 21:]).all()
    assert all(len(set(row.tolist())) == 20 for row in ids[:, 1:21])
    assert not set(ids[:, 1:].flatten().tolist()) & set(llama.tokenizer.all_special_ids)
    assert (repeated_text(llama, 4, 20, seed=3)[0] == ids).all()
    assert (repeated_text(llama, 4, 20, seed=4)[0] != ids).any()
    for length in (1, 64):  # the context holds 128
        with pytest.raises(ValueError, match=r"length must be in 2\.\.63"):
            repeated_text(llama, 1, length)
    with pytest.raises(ValueError, match="n must be 1 or more"):
        repeated_text(llama, 0, 5)


def test_a_head_that_looks_at_the_successor_alone_is_found(llama):
    """Its attention is set by a hook: head 2 of block 2."""
    found = attention.find(llama)
    ids, start = repeated_text(llama, 3, 6)

    def point(module, inputs, output):
        weights = output[1].clone()
        weights[:, 1] = 0
        for t in range(5):
            weights[:, 1, start + 6 + t, start + t + 1] = 1
        return (output[0], weights)

    hook = found[1].module.register_forward_hook(point)
    try:
        attended, _ = read_text(llama, found, ids, start)
    finally:
        hook.remove()
    assert attended.top(1) == [(2, 2)]
    assert attended.successor[:, 1, 1].tolist() == [1, 1, 1]
    assert attended.same[:, 1, 1].tolist() == [0, 0, 0]


def test_random_heads_are_as_many_of_the_same_or_of_other_blocks(llama):
    found = attention.find(llama)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        same = random_heads([(2, 1), (2, 3)], found, generator, same_blocks=True)
        assert set(same) == {(2, 2), (2, 4)}
        other = random_heads([(2, 1), (2, 3)], found, generator, same_blocks=False)
        assert len(set(other)) == 2
        assert {block for block, _ in other} == {1}
        filled = random_heads([(2, 1), (2, 3), (2, 4)], found, generator, same_blocks=True)
        assert (2, 2) in filled
        assert len(set(filled)) == 3
        assert not set(filled) & {(2, 1), (2, 3), (2, 4)}
        avoiding = random_heads([(2, 1)], found, generator, same_blocks=True, avoid=[(2, 2), (2, 3)])
        assert avoiding == [(2, 4)]
    assert random_heads([(1, 1), (2, 1)], found, generator, same_blocks=False) == []


def test_ablation_reports_every_group(llama):
    found = attention.find(llama)
    ids, start = repeated_text(llama, 4, 6)
    groups = ablate(llama, found, {"text": [(2, 1), (2, 2)]}, ids, start, draws=3, seed=0)
    names = ["none", "text", *["random, blocks of text"] * 3, *["random, other blocks"] * 3]
    assert [one.group for one in groups] == names
    assert torch.equal(groups[0].copied, copying(llama, ids, start).second)
    with attention.without(found, [(2, 1), (2, 2)]):
        assert torch.equal(groups[1].copied, copying(llama, ids, start).second)
    plain = plain_ablated(groups)
    assert [one["draws"] for one in plain] == [1, 1, 3, 3]
    rise = float((groups[1].copied - groups[0].copied).mean())
    assert plain[1]["copied"]["rise"]["mean"] == pytest.approx(rise, rel=1e-4)
    assert plain[1]["visual"] is plain[1]["restored"] is None
    asked = []
    qualities = lambda: asked.append(1) or torch.tensor([20.0 - len(asked), 30.0])  # noqa: E731  of every picture
    same = ablate(llama, found, {"text": [(2, 1)], "images": [(2, 1)]}, ids, start, qualities, qualities, draws=0)
    assert len(asked) == 4  # none, and the one head that both maps name: its loss and its pictures
    assert torch.equal(same[1].restored, same[2].restored)
    assert plain_ablated(same)[2]["restored"]["rise"]["mean"] == pytest.approx(-1.0)
    mean_of_draws = sum(plain[3]["copied"]["rises"]) / 3
    assert plain[3]["copied"]["rise"]["mean"] == pytest.approx(mean_of_draws, abs=1e-5)
    assert ablation_bars(plain).axes[0].get_xlabel().startswith("second copy")


def test_top_and_agreement():
    successor = torch.tensor([[[0.1, 0.5], [0.3, 0.2]], [[0.1, 0.7], [0.3, 0.2]]])  # [n, blocks, heads]
    one = Attended((1, 3), successor, successor, successor, 0.1)
    assert one.top(2) == [(1, 2), (3, 1)]
    with pytest.raises(ValueError, match="there are 4 heads"):
        one.top(5)
    assert agreement(one, one, 2) == {"spearman": pytest.approx(1), "top": 2, "shared": 2}
    turned = Attended((1, 3), 1 - successor, successor, successor, 0.1)
    assert agreement(one, turned, 2) == {"spearman": pytest.approx(-1), "top": 2, "shared": 0}
    flat = Attended((1, 3), torch.ones_like(successor), successor, successor, 0.1)
    assert agreement(one, flat)["spearman"] is None


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def lm4lv(request, small_llm, small_mae):
    return LM4LV(load_encoder(str(small_mae)), _roomy(request.param, small_llm), task_tokens=3)


def _roomy(family, small_llm):
    """A model whose context holds the conversation of single characters."""
    kind, options, _ = FAMILIES[family]
    torch.manual_seed(0)
    context = "n_positions" if family == "gpt2" else "max_position_embeddings"
    model = transformers.AutoModelForCausalLM.from_config(
        getattr(transformers, f"{kind}Config")(**{**options, context: 512})
    )
    return LanguageModel(family, "x", model.eval(), transformers.AutoTokenizer.from_pretrained(small_llm))


def test_lm4lvs_places_and_losses(lm4lv):
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    low, high = lm4lv.encoder.encode(images), lm4lv.encoder.encode(images.flip(3))
    seen = []
    hook = lm4lv.llm.model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    loss = visual_loss(lm4lv, low, high, "denoise")
    hook.remove()
    queries, keys, source = image_places(lm4lv)
    sequence = torch.cat(seen)  # [n, S, D]
    # A key's token comes after the one that its query's token is the restored version of.
    torch.testing.assert_close(sequence[:, queries], lm4lv._visual(high)[:, :-1])
    torch.testing.assert_close(sequence[:, keys], lm4lv._visual(low)[:, 1:])
    torch.testing.assert_close(sequence[:, source], lm4lv._visual(low))
    for i in range(3):
        torch.testing.assert_close(loss[i], lm4lv(low[i : i + 1], high[i : i + 1], "denoise").visual.detach())
    attended, again = read_images(lm4lv, attention.find(lm4lv.llm), low, high, "denoise")
    torch.testing.assert_close(again, loss)
    assert attended.successor.shape == (3, BLOCKS, HEADS)
    lm4lv.llm.model.set_attn_implementation("eager")
    with torch.no_grad():
        out = lm4lv.llm.model.base_model(inputs_embeds=sequence, output_attentions=True)
    for block, weights in enumerate(out.attentions):
        torch.testing.assert_close(attended.successor[:, block], weights[:, :, queries, keys].mean(2))
        torch.testing.assert_close(attended.same[:, block], weights[:, :, queries, keys - 1].mean(2))
