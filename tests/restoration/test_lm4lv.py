"""LM4LV on a small random language model: what it reads, what it learns, and that it writes the same with a cache."""

from __future__ import annotations

import itertools

import pytest
import torch

from alignlab.models import load_encoder, load_llm
from alignlab.restoration.evaluation import evaluate
from alignlab.restoration.lm4lv import LM4LV, MOST_TEXT
from alignlab.restoration.sequence import ANSWER, CLOSE_IMAGE, ENDING, OPEN_IMAGE, OPENING, conversation

IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def parts(small_mae, small_llm):
    return load_encoder(str(small_mae)), load_llm(str(small_llm))


@pytest.fixture
def model(parts):
    return LM4LV(*parts, task_tokens=4, tasks=("denoise", "mask"))


def test_the_conversation_is_the_papers(parts):
    tokenizer = parts[1].tokenizer
    words = conversation(tokenizer)
    assert words.opening[0] == tokenizer.bos_token_id
    said = (words.opening[1:], words.close, words.answer, words.open, words.ending)
    for ids, text in zip(said, (OPENING, CLOSE_IMAGE, ANSWER, OPEN_IMAGE, ENDING), strict=True):
        assert list(ids) == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_two_linear_layers_and_task_tokens_are_all_that_trains(model, parts):
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {
        *("adapter_in.weight", "adapter_in.bias", "adapter_out.weight", "adapter_out.bias"),
        *("task_tokens.denoise", "task_tokens.mask"),
    }
    assert sum(p.numel() for p in model.trainable()) == 2 * 24 * 24 + 24 + 24 + 2 * 4 * 24
    assert set(model.state_dict()) == trainable
    parts[1].model.lm_head.weight.requires_grad_(True)
    with pytest.raises(AssertionError, match="frozen"):
        model.trainable()
    parts[1].model.requires_grad_(False)


def by_hand(model, low, high, task):
    """The losses from one plain forward pass of the causal LM, position by position."""
    tokenizer, causal = model.llm.tokenizer, model.llm.model
    embed = causal.get_input_embeddings()

    def text(words):
        return embed(torch.tensor(tokenizer(words, add_special_tokens=False)["input_ids"]))

    visual, language = [], []
    for lq, hq in zip(low, high, strict=True):
        sequence = [embed(torch.tensor([tokenizer.bos_token_id])), text("### Human: <Img>"), model.adapter_in(lq)]
        sequence += [text("</Img>"), model.task_tokens[task], text(" \n### Assistant:")]
        start = sum(map(len, sequence))
        sequence += [text(" <Img>"), model.adapter_in(hq), text("</Img>\n###")]
        out = causal(inputs_embeds=torch.cat(sequence)[None], output_hidden_states=True)
        hidden, logits = out.hidden_states[-1][0], out.logits[0]
        first = start + len(text(" <Img>"))
        for t in range(len(hq)):
            visual.append((model.adapter_out(hidden[first + t - 1]) - hq[t]).square().mean())
        for words, at in ((" <Img>", start), ("</Img>\n###", first + len(hq))):
            for i, token in enumerate(tokenizer(words, add_special_tokens=False)["input_ids"]):
                language.append(-logits[at + i - 1].log_softmax(-1)[token])
    return torch.stack(visual).mean(), torch.stack(language).mean()


def test_losses_are_those_of_a_plain_forward_pass(model):
    low, high = model.encoder.encode(IMAGES), model.encoder.encode(1 - IMAGES)
    losses = model(low, high, "mask")
    visual, text = by_hand(model, low, high, "mask")
    torch.testing.assert_close(losses.visual, visual, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(losses.text, text, atol=1e-5, rtol=1e-4)
    losses.total.backward()
    assert model.task_tokens["mask"].grad.abs().sum() > 0
    assert model.task_tokens["denoise"].grad is None
    assert all(p.grad is None for p in model.llm.model.parameters())


def test_an_answer_does_not_see_what_comes_after_it(model):
    low, high = model.encoder.encode(IMAGES), model.encoder.encode(1 - IMAGES)
    changed = high.clone()
    changed[:, -1] += 1  # the last token is a target and is read by the ending alone
    with torch.no_grad():
        plain, other = model(low, high, "mask"), model(low, changed, "mask")
    difference = model.visual * 24 * (other.visual - plain.visual)  # only the last token's error moved
    assert difference.abs() > 1e-3
    assert plain.text != other.text


@pytest.mark.parametrize("mode", ["forced", "free"])
def test_generation_with_and_without_a_cache_agree(model, mode):
    low = model.encoder.encode(IMAGES)
    kept, plain = model.generate(low, "denoise", mode), model.generate(low, "denoise", mode, cache=False)
    torch.testing.assert_close(kept.tokens, plain.tokens, atol=1e-4, rtol=1e-4)
    assert kept.texts == plain.texts
    assert (kept.written == plain.written).all()


def test_generation_is_teacher_forcing_on_its_own_output(model):
    low = model.encoder.encode(IMAGES)
    written = model.generate(low, "denoise").tokens
    # Reading what it wrote, the model predicts what it wrote: the error of every token is nought.
    with torch.no_grad():
        assert float(model(low, written, "denoise").visual) < 1e-9
    torch.testing.assert_close(model.told(low, written, "denoise"), written, atol=1e-4, rtol=1e-4)
    # What it reads is the answer so far and nothing later.
    other = written.clone()
    other[:, 2:] += 1
    heard = model.told(low, other, "denoise")
    torch.testing.assert_close(heard[:, :3], written[:, :3], atol=1e-4, rtol=1e-4)
    assert (heard[:, 3:] - written[:, 3:]).abs().max() > 1e-3


def test_a_batch_writes_what_each_would_alone(model):
    low = model.encoder.encode(IMAGES)
    for mode in ("forced", "free"):
        together = model.generate(low, "denoise", mode)
        alone = [model.generate(low[i : i + 1], "denoise", mode) for i in range(3)]
        torch.testing.assert_close(together.tokens, torch.cat([one.tokens for one in alone]), atol=1e-4, rtol=1e-4)
        assert together.texts == tuple(one.texts[0] for one in alone)


def trained(model, steps=150):
    low, high = model.encoder.encode(IMAGES), model.encoder.encode(1 - IMAGES)
    optimiser = torch.optim.Adam(model.trainable(), lr=3e-2)
    for _ in range(steps):
        optimiser.zero_grad()
        losses = model(low, high, "denoise")
        losses.total.backward()
        optimiser.step()
    return low, high, losses


def test_the_losses_fall_and_nothing_frozen_moves(model):
    before = {name: p.clone() for name, p in model.llm.model.named_parameters()}
    low, high = model.encoder.encode(IMAGES), model.encoder.encode(1 - IMAGES)
    with torch.no_grad():
        first = model(low, high, "denoise")
    _, _, last = trained(model)
    assert last.visual < 0.7 * first.visual
    assert last.text < first.text  # a random head says little, whatever it is shown
    assert all(torch.equal(p, before[name]) for name, p in model.llm.model.named_parameters())


def test_a_free_answer_that_never_opens_an_image_is_told(model):
    low = model.encoder.encode(IMAGES)
    found = model.generate(low, "denoise", "free")
    assert not found.written.any()  # a random model does not write "<Img>"
    assert (found.tokens == 0).all()
    for text in found.texts:  # this tokenizer puts a space between its tokens
        assert 0 < len(text.split(" ")) <= MOST_TEXT


def test_pictures_of_answers_without_an_image_are_counted_and_told(model, caplog):
    found = evaluate(model, lambda start, end: IMAGES[start:end], 3, "denoise", mode="free")
    missing = int((~model.generate(model.encoder.encode(IMAGES), "denoise", "free").written).sum())
    assert found.unwritten == missing == 3  # a random language model says no markers
    model.restore(IMAGES, mode="free")
    assert "3 of 3 answers never opened an image" in caplog.text
    assert evaluate(model, lambda start, end: IMAGES[start:end], 3, "denoise").unwritten == 0


def test_a_free_answer_that_opens_an_image_writes_the_forced_one(model, monkeypatch):
    low = model.encoder.encode(IMAGES)
    forced = model.generate(low, "denoise")
    monkeypatch.setattr(model, "_logits", saying(model, (0, 0, 0)))
    free = model.generate(low, "denoise", "free")
    assert free.written.all()
    torch.testing.assert_close(free.tokens, forced.tokens, atol=1e-4, rtol=1e-4)


def test_restore_decodes_what_was_written(model):
    restored = model.restore(IMAGES, "mask", batch_size=2)
    tokens = model.generate(model.encoder.encode(IMAGES), "mask").tokens
    torch.testing.assert_close(restored, model.encoder.decode(tokens), atol=1e-4, rtol=1e-4)
    assert restored.shape == IMAGES.shape


def test_wrong_use_is_named(model, parts):
    low = model.encoder.encode(IMAGES)
    with pytest.raises(ValueError, match="task must be one of denoise, mask, got 'blur'"):
        model(low, low, "blur")
    with pytest.raises(ValueError, match=r"tokens must be \[B, 17, 24\], as .* gives them, got \[3, 16, 24\]"):
        model.generate(low[:, 1:], "mask")
    with pytest.raises(ValueError, match="mode must be one of forced, free"):
        model.generate(low, "mask", "both")
    with pytest.raises(ValueError, match="task_tokens must be 1 or more"):
        LM4LV(*parts, task_tokens=0)
    with pytest.raises(ValueError, match="lora must be a rank of 1 or more"):
        LM4LV(*parts, lora=-1)
    with pytest.raises(ValueError, match="batch_size must be 1 or more, got 0"):
        model.restore(IMAGES, "mask", batch_size=0)
    with pytest.raises(ValueError, match=r"test_vit.* has no decoder"):
        LM4LV(load_encoder("timm:test_vit.r160_in1k@random"), parts[1])


def test_visual_tokens_start_with_the_spread_of_words(model):
    low = model.encoder.encode(IMAGES)
    words = model.llm.model.get_input_embeddings().weight.std()
    assert 0.5 < float(model._visual(low).detach().std() / words) < 2


# --- how it begins ---


def test_a_sample_is_what_the_layers_begin_with(parts):
    images = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    sample = parts[0].encode(images)
    model = LM4LV(*parts, task_tokens=2, sample=sample)
    read = model._visual(sample).detach()
    words = parts[1].model.get_input_embeddings().weight.std()
    assert float(read.mean((0, 1)).norm()) < 1e-3 * float(read.norm(dim=-1).mean())  # the mean is taken off
    assert 0.4 < float(read.std() / words) < 1.5
    written = model.generate(sample[:4], "denoise").tokens
    near = (written - sample.mean((0, 1))).square().mean()
    assert near < 0.1 * sample.var()  # what is written starts near the mean
    again = LM4LV(*parts, task_tokens=2, sample=sample)
    assert all(torch.equal(x, again.state_dict()[name]) for name, x in model.state_dict().items())
    other = LM4LV(*parts, task_tokens=2, sample=sample, seed=1)
    assert not torch.equal(other.adapter_in.weight, model.adapter_in.weight)


def test_other_beginnings(parts):
    """Scaled: as large as words, and random; plain: as torch begins layers, whatever the tokens are."""
    images = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    sample = parts[0].encode(images)
    words = float(parts[1].model.get_input_embeddings().weight.std())
    scaled, plain = (LM4LV(*parts, task_tokens=2, sample=sample, begin=begin) for begin in ("scaled", "plain"))
    size = float(sample.square().mean().sqrt())
    assert float(scaled.adapter_in.weight.detach().std()) == pytest.approx(words / (size * 24**0.5), rel=0.1)
    assert float(scaled._visual(sample).detach().square().mean().sqrt() / words) == pytest.approx(1, rel=0.5)
    assert not scaled.adapter_in.bias.any()
    assert not scaled.adapter_out.bias.any()
    for layer in (plain.adapter_in, plain.adapter_out):
        assert float(layer.weight.detach().std()) == pytest.approx((3 * 24) ** -0.5, rel=0.1)
        assert all(0.5 * 24**-0.5 < float(x.detach().abs().max()) <= 24**-0.5 for x in (layer.weight, layer.bias))
    large = LM4LV(*parts, task_tokens=2, sample=100 * sample, begin="plain")
    assert torch.equal(large.adapter_in.weight, plain.adapter_in.weight)
    assert torch.equal(large.task_tokens["denoise"], plain.task_tokens["denoise"])


def test_directions_come_in_with_about_the_same_weight(parts):
    generator = torch.Generator().manual_seed(0)
    scales = torch.logspace(-1, 1, 24)
    sample = torch.randn(64, 17, 24, generator=generator) * scales
    weight = LM4LV(*parts, task_tokens=2, sample=sample).adapter_in.weight.detach()
    carried = weight.norm(dim=0) * scales
    assert float(carried[-6:].max() / carried[-6:].min()) < 2  # the large ones, alike
    assert carried[0] < carried[-1]  # a small one is raised, but not so far


# --- free answers, several at once ---


def test_restore_in_free_mode_and_one_at_a_time(model, monkeypatch):
    monkeypatch.setattr(model, "_logits", saying(model, (0, 0, 0)))
    together = model.restore(IMAGES, "mask", mode="free")
    for i, image in enumerate(IMAGES):
        monkeypatch.setattr(model, "_logits", saying(model, (0,)))
        torch.testing.assert_close(model.restore(image[None], "mask", mode="free")[0], together[i], atol=1e-4, rtol=0)
    forced = model.restore(IMAGES, "mask")
    torch.testing.assert_close(together, forced, atol=1e-4, rtol=0)


def saying(model, delays, after=()):
    """A head for answers that say token 5 so many times each, open their image, and after it say `after`, then token 5."""
    marker, step = list(model.words.open), itertools.count()

    def logits(hidden):
        at, found = next(step), torch.zeros(len(hidden), 100)
        for i, delay in enumerate(delays):
            said = [
                *[5] * delay,
                *marker,
                *[5] * model.visual,
                *after,
            ]  # what is said beside an image's tokens is not read
            found[i, said[at] if at < len(said) else 5] = 1
        return found

    return logits


@pytest.mark.parametrize("ends", ["marker", "eos", "never"])
def test_answers_that_open_their_images_at_different_times(model, monkeypatch, ends):
    low, delays = model.encoder.encode(IMAGES), (0, 3, 7)
    eos, opening = model.llm.tokenizer.eos_token_id, list(model.words.open)
    after = {"marker": list(model.words.ending), "eos": [eos], "never": []}[ends]

    def generate(rows, **options):
        monkeypatch.setattr(model, "_logits", saying(model, [delays[i] for i in rows], after))
        return model.generate(low[rows], "denoise", "free", **options)

    together, plain = generate([0, 1, 2]), generate([0, 1, 2], cache=False)
    assert together.written.all()
    torch.testing.assert_close(together.tokens, plain.tokens, atol=1e-4, rtol=1e-4)
    assert together.texts == plain.texts
    for i, delay in enumerate(delays):
        alone = generate([i])
        torch.testing.assert_close(alone.tokens[0], together.tokens[i], atol=1e-4, rtol=1e-4)
        said = [*[5] * delay, *opening, *(after or [5] * MOST_TEXT)]  # it is done after these, and no later
        assert together.texts[i] == alone.texts[0] == model.llm.tokenizer.decode(said)


# --- LoRA ---


@pytest.fixture
def learning(small_mae, small_llm):
    pytest.importorskip("peft", reason="LoRA needs peft")
    plain = LM4LV(load_encoder(str(small_mae)), load_llm(str(small_llm)), task_tokens=4)
    return plain, LM4LV(load_encoder(str(small_mae)), load_llm(str(small_llm)), task_tokens=4, lora=2)


def test_lora_starts_as_no_change(learning):
    plain, model = learning
    low = model.encoder.encode(IMAGES)
    assert torch.equal(model.generate(low, "denoise").tokens, plain.generate(low, "denoise").tokens)


def test_lora_and_adapters_are_all_that_learns(learning):
    _, model = learning
    inside = {name: p for name, p in model.llm.model.named_parameters() if p.requires_grad}
    assert inside
    assert all("lora_" in name and ".layers." in name for name in inside)  # of the blocks, not of the head
    assert {id(p) for p in inside.values()} < {id(p) for p in model.trainable()}
    before = {name: p.detach().clone() for name, p in model.llm.model.named_parameters()}
    trained(model)
    for name, p in model.llm.model.named_parameters():
        assert torch.equal(p, before[name]) != ("lora_" in name), name


def test_lora_comes_back_from_its_state(learning, small_mae, small_llm):
    _, model = learning
    low, _, _ = trained(model)
    again = LM4LV(load_encoder(str(small_mae)), load_llm(str(small_llm)), task_tokens=4, lora=2, seed=9)
    assert not torch.equal(again.generate(low, "denoise").tokens, model.generate(low, "denoise").tokens)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.generate(low, "denoise").tokens, model.generate(low, "denoise").tokens)
