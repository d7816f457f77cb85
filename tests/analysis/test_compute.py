"""Operations of a restoration: the paper's numbers, torch's counter against sums by hand, and the cache."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    ViTMAEForPreTraining,
)

from alignlab import paper
from alignlab.analysis import compute
from alignlab.analysis.compute import PAPER_SEQUENCE, Flop, count, count_encoder, count_llm, sequence
from alignlab.models import load_encoder, load_llm
from alignlab.models.catalogue import BY_NAME
from alignlab.models.mae import MAEEncoder

H, I, N, V = 24, 40, 3, 50


def llama(**changed):
    sizes = {"hidden_size": H, "intermediate_size": I, "num_hidden_layers": N, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=V, max_position_embeddings=512, **{**sizes, **changed})
    with torch.device("meta"):
        return LlamaForCausalLM._from_config(config, attn_implementation="eager").eval()


# --- the paper's numbers ---


def test_the_papers_numbers_follow_from_its_tokens():
    assert (PAPER_SEQUENCE.prompt, PAPER_SEQUENCE.generated, PAPER_SEQUENCE.total) == (214, 196, 410)
    found = compute.papers_numbers()
    assert found["llm_flop"] == pytest.approx(5.74e12, rel=1e-3)
    assert found["mae_flop"] == pytest.approx(25.56e9)
    assert found["flop"] == pytest.approx(5.77e12, rel=1e-3)


def test_llama_2_7b_from_its_configuration():
    model = compute.sketch_llm(paper.MODELS["llm"])
    assert all(p.is_meta for p in model.parameters())
    found = count_llm(model, PAPER_SEQUENCE)
    assert found.parameters == 6_738_415_616
    matrices = found.parameters - 2 * 32000 * 4096 - 65 * 4096  # without the vocabulary and 65 norms
    d, seen = 4096, sum(range(215, 410))  # the last of the 196 is written, and not read
    attention = 32 * 4 * d * (214**2 + seen)
    total = found.prefill + found.decode
    assert total == Flop(2 * 409 * matrices + attention, attention)
    assert total.total == pytest.approx(5.74e12, rel=0.07)  # the formula's rounded parameters and vocabulary
    assert found.vocabulary.total == 2 * 32000 * d
    assert found.cached == 409 * 32 * 2 * d


def test_mae_large_by_every_reading():
    encoder = compute.sketch_encoder(paper.MODELS["mae"])
    parts = {part.name: part for part in count_encoder(encoder)}
    assert (parts["encoder"].parameters, parts["encoder"].tokens) == (303_301_632, 197)
    assert parts["decoder"].parameters == BY_NAME["facebook/vit-mae-large"].parameters - 303_301_632
    blocks = 24 * (12 * 1024**2 * 197 + 2 * 197**2 * 1024)  # multiplications with their additions
    assert parts["encoder"].counted.total == 2 * (blocks + 196 * 3 * 16**2 * 1024)
    readings = compute.mae_readings(encoder)
    assert readings["encoder, all patches, operations"] == parts["encoder"].counted.total
    both = parts["encoder"].counted.total + parts["decoder"].counted.total
    assert readings["encoder and decoder, all patches, multiply-adds"] == both / 2
    assert (
        readings["encoder, a quarter of the patches, operations"] < readings["encoder, all patches, operations"] / 3.9
    )
    assert encoder.model.config.mask_ratio == 0.0
    # What the paper has is none of them: it says no more than the number.
    assert min(abs(x / paper.COMPUTE["mae_flop"] - 1) for x in readings.values()) > 0.1
    with pytest.raises(ValueError, match="is no MAE"):
        compute.mae_readings(load_encoder("pca"))


@pytest.mark.parametrize("name", [name for name in compute.CONFIGURATIONS if name != paper.MODELS["mae decoder"]])
def test_configurations_are_those_of_the_catalogue(name):
    known = BY_NAME[name]
    if known.kind == "llm":
        model = compute.sketch_llm(name)
        assert model.config.num_hidden_layers + 1 == known.layers
        assert model.config.hidden_size == known.width
    else:
        encoder = compute.sketch_encoder(name)
        assert (encoder.num_layers, encoder.width, compute.tokens_of(encoder)) == (
            25 if "large" in name else 13,
            known.width,
            197,
        )
        model = encoder.model
    assert sum(p.numel() for p in model.parameters()) == known.parameters


# --- counting ---


def test_a_sequence_is_what_lm4lv_reads_and_writes():
    assert sequence(65, 10, 21).__dict__ == {"visual": 65, "task": 10, "text": 21, "prompt": 96, "generated": 65}
    assert (sequence(65, 10, 21, 300, 7).prompt, sequence(65, 10, 21, 300, 7).generated) == (300, 7)
    with pytest.raises(ValueError, match="tokens to read and to write"):
        sequence(0, 0, 0)


def test_count_sees_products_and_knows_attention():
    x = torch.zeros(2, 5, 7, device="meta")
    assert count(lambda: x @ torch.zeros(7, 3, device="meta")) == Flop(2 * 10 * 7 * 3, 0)
    found = count(lambda: torch.nn.functional.scaled_dot_product_attention(x, x, x))
    assert found == Flop(2 * 2 * 2 * 5 * 5 * 7, 2 * 2 * 2 * 5 * 5 * 7)
    assert count(lambda: x + 1) == Flop(0, 0)


@pytest.mark.parametrize("generated", [1, 2, 9])
def test_every_step_of_decoding_counted_one_by_one(generated):
    model, tokens = llama(num_key_value_heads=2), sequence(1, 4, 6, generated=generated)
    found = count_llm(model, tokens)
    past, steps = None, []
    for length in (tokens.prompt, *[1] * (generated - 1)):
        kept = []
        embeddings = torch.zeros(1, length, H, device="meta")
        steps.append(
            count(
                lambda e=embeddings, p=past, k=kept: k.append(
                    model.model(inputs_embeds=e, past_key_values=p, use_cache=True)
                )
            )
        )
        past = kept[0].past_key_values
    assert found.prefill == steps[0]
    assert found.decode == sum(steps[1:], Flop(0.0))
    assert found.cached == (tokens.total - 1) * N * 2 * (H // 2)
    assert found.vocabulary.total == 2 * H * V


def test_a_sliding_window_does_not_grow_for_ever():
    sizes = {"hidden_size": H, "intermediate_size": I, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = MistralConfig(vocab_size=V, num_key_value_heads=4, sliding_window=8, **sizes)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    tokens = sequence(4, 0, 0, generated=20)
    found = count_llm(model, tokens)
    most = 2 * 4 * H * 8 * 20  # a window at every step
    assert found.decode.attention <= most
    assert found.cached < tokens.total * 2 * 2 * H


def test_other_families_count_too():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            GPT2Config(vocab_size=V, n_embd=H, n_layer=2, n_head=4), attn_implementation="eager"
        )
    found = count_llm(model.eval(), sequence(4, 0, 0))
    matrices = 2 * 12 * H * H
    assert found.prefill.total == 2 * 4 * matrices + 2 * 4 * H * 16
    assert found.parameters == sum(p.numel() for p in model.parameters())


def test_a_model_here_counts_as_its_configuration_does(small_llm):
    tokens = sequence(4, 2, 3)
    here = count_llm(load_llm(str(small_llm)).model, tokens)
    assert here == count_llm(compute.sketch_llm(str(small_llm)), tokens)
    cut = count_llm(compute.sketch_llm(f"{small_llm}[:1]"), tokens)
    assert 2 * cut.prefill.total == here.prefill.total
    assert cut.cached * 2 == here.cached


def test_names_that_cannot_be_counted(small_llm, tmp_path):
    with pytest.raises(ValueError, match=r"unknown language model 'smollm3'; known: .*smollm2 \(a folder") as found:
        compute.sketch_llm("smollm3")
    assert "vit-mae" not in str(found.value)
    with pytest.raises(ValueError, match="facebook/vit-mae-large is no language model; known: "):
        compute.sketch_llm("facebook/vit-mae-large")
    with pytest.raises(ValueError, match="has 2 blocks"):
        compute.sketch_llm(f"{small_llm}[:3]")
    (tmp_path / "config.json").write_text('{"model_type": "vit_mae"}')
    with pytest.raises(ValueError, match="does not make a model"):
        compute.sketch_llm(str(tmp_path))


def test_parts_of_a_small_mae_by_hand(small_mae):
    encoder = load_encoder(str(small_mae))
    parts = {part.name: part for part in count_encoder(encoder)}
    model, tokens = encoder.model, 17
    assert parts["encoder"].parameters == sum(p.numel() for p in model.vit.parameters())
    assert parts["decoder"].parameters == sum(p.numel() for p in model.decoder.parameters())
    block = 2 * tokens * (4 * 24**2 + 2 * 24 * 48) + 2 * 2 * tokens**2 * 24
    assert parts["encoder"].counted.total == 2 * block + 2 * 16 * 24 * 3 * 64
    assert parts["encoder"].counted.attention == 2 * 4 * tokens**2 * 24
    assert parts["encoder"].formula == 2 * tokens * parts["encoder"].parameters
    with torch.device("meta"):
        sketched = MAEEncoder("m", "", ViTMAEForPreTraining(model.config).eval(), (0.5,) * 3, (0.5,) * 3)
    assert count_encoder(sketched) == list(parts.values())


@pytest.mark.parametrize("name", ["vqgan", "beit", "pca", "vqgan+position"])
def test_other_encoders_have_their_parts(name):
    parts = {part.name: part for part in count_encoder(compute.sketch_encoder(name))}
    assert set(parts) == {"encoder", "decoder"}
    assert all(part.counted.total > 0 for part in parts.values())


def test_a_published_vqgan_and_the_papers_beit_need_no_weights():
    for name, tokens, parameters in (("vqgan-f16-16384", 256, 29_363_968), (paper.MODELS["beit"], 197, None)):
        encoder = compute.sketch_encoder(name)
        found = count_encoder(encoder)
        assert (found[0].tokens, [part.name for part in found]) == (tokens, ["encoder", "decoder"])
        assert parameters is None or found[0].parameters == parameters
    assert found[1].parameters > 43e6  # the dVAE's decoder and the head that names its codes


def test_a_pair_adds_up(small_mae, small_llm):
    tokens = sequence(17, 4, 30)
    found = compute.count_pair(load_encoder(str(small_mae)), compute.sketch_llm(str(small_llm)), tokens)
    assert list(found.parts) == ["encoder", "decoder", "layer in", "layer out", "prefill", "decoding"]
    formula, flop = found.together()
    assert formula == sum(part.formula for part in found.parts.values())
    assert flop.total == sum(part.counted.total for part in found.parts.values())
    read, written = found.parts["layer in"], found.parts["layer out"]
    assert (read.tokens, written.tokens) == (17 + 16, 17)
    assert read.parameters + written.parameters == 2 * 24 * 24 + 24 + 24
    assert found.together("prefill", "decoding")[0] == 2 * found.llm.parameters * tokens.total
    each = [tokens.prompt + step for step in range(tokens.generated)]  # a step reads all before it again
    assert found.without_cache() == 2 * found.llm.parameters * sum(each)


def test_the_passes_of_the_authors_generation():
    """250 + 197 tokens: 68,556 token-forwards where every step reads all again, 446 with a cache."""
    tokens = sequence(1, 0, 0, 250, 197)
    assert tokens.prompt + tokens.steps == 446
    one = compute.LLMCount(1, Flop(0), Flop(0), Flop(0), None)
    assert compute.Counted({}, one, tokens).without_cache() == 2 * 68_556


def test_times_of_every_part(small_mae, small_llm):
    found = compute.measure(load_encoder(str(small_mae)), load_llm(str(small_llm)), sequence(17, 4, 30))
    assert set(found) == {"encoder", "decoder", "prefill", "decoding"}
    assert all(spent > 0 for spent in found.values())
    assert found["decoding"] > found["prefill"]  # seventeen passes


def test_words_of_the_conversation(small_llm, tmp_path, monkeypatch):
    words = "### Human: <Img></Img> \n### Assistant: <Img>"
    tokenizer = load_llm(str(small_llm)).tokenizer
    assert compute.text_tokens(str(small_llm)) == 1 + len(tokenizer(words, add_special_tokens=False)["input_ids"])
    assert compute.text_tokens(paper.MODELS["llm"]) is None
    monkeypatch.setenv("ALIGNLAB_HOME", str(tmp_path))  # other tests may have fetched it
    assert compute.text_tokens("smollm2") is None
