"""The captioning probe on small random models: its loss is a plain forward pass', its captions are plain decoding's."""

from __future__ import annotations

import pytest
import torch

from alignlab.captioning.probe import CaptionProbe
from alignlab.models import load_encoder, load_llm

IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
CAPTIONS = ["a red cube", "two spheres, side by side", "x"]


@pytest.fixture(scope="module")
def parts(small_mae, small_llm):
    return load_encoder(str(small_mae)), load_llm(str(small_llm))


@pytest.fixture(params=["", "A picture of"])
def probe(parts, request):
    encoder, llm = parts
    return CaptionProbe(encoder, llm, prefix=request.param, sample=encoder.encode(IMAGES))


def written_out(probe, tokens, caption, prefix):
    """Embeddings of one image's sequence, and the ids of its caption, from the texts themselves."""
    tokenizer, embed = probe.llm.tokenizer, probe.llm.model.get_input_embeddings()

    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    words = [*ids(f" {prefix}"), *ids(f" {caption}")] if prefix else ids(f" {caption}")
    said = ids(f" {prefix}") if prefix else []
    parts = [torch.tensor([tokenizer.bos_token_id, *ids("### Human: <Img>")])]
    after = torch.tensor([*ids("</Img>"), *ids(" \n### Assistant:"), *words])
    target = [*words[len(said) :], tokenizer.eos_token_id]
    return torch.cat([embed(parts[0]), probe.projector(tokens), embed(after)]), target


def test_the_loss_is_that_of_a_plain_forward_pass(probe, request):
    prefix = request.node.callspec.params["probe"]
    tokens = probe.encoder.encode(IMAGES)
    losses = []
    for one, caption in zip(tokens, CAPTIONS, strict=True):
        sequence, target = written_out(probe, one, caption, prefix)
        logits = probe.llm.model(inputs_embeds=sequence[None]).logits[0].float()
        first = len(sequence) - len(target)  # the position that predicts the caption's first token
        losses += [-logits[first + i].log_softmax(-1)[token] for i, token in enumerate(target)]
    loss = probe(tokens, CAPTIONS)
    torch.testing.assert_close(loss, torch.stack(losses).mean(), atol=1e-5, rtol=1e-4)
    loss.backward()
    assert probe.projector.weight.grad.abs().sum() > 0


def test_the_projector_is_all_that_learns(probe, parts):
    assert {name for name, p in probe.named_parameters() if p.requires_grad} == {"projector.weight", "projector.bias"}
    assert sum(p.numel() for p in probe.trainable()) == 24 * 24 + 24
    parts[1].model.lm_head.weight.requires_grad_(True)
    with pytest.raises(AssertionError, match="frozen"):
        probe.trainable()
    parts[1].model.requires_grad_(False)


def test_a_probe_learns_to_tell_images_apart(parts):
    encoder, llm = parts
    probe = CaptionProbe(encoder, llm, sample=encoder.encode(IMAGES))
    tokens, captions = encoder.encode(IMAGES), ["aaaa", "bbbb", "cccc"]
    with torch.no_grad():
        probe.projector.weight.mul_(20)  # a random language model hardly listens
    optimiser = torch.optim.Adam(probe.trainable(), lr=0.05)
    first = probe(tokens, captions).item()
    for _ in range(60):
        optimiser.zero_grad()
        loss = probe(tokens, captions)
        loss.backward()
        optimiser.step()
    assert loss.item() < first
    with torch.no_grad():
        assert probe(tokens, captions) < probe(tokens.roll(1, 0), captions)


@torch.no_grad()
def by_hand(probe, tokens, longest):
    """Greedy decoding without a cache, one image at a time."""
    said = []
    for one in tokens:
        sequence, ids = probe.prompt(one[None]), []
        while len(ids) < longest:
            logits = probe.llm.model(inputs_embeds=sequence).logits[0, -1]
            ids.append(int(logits.argmax()))
            if ids[-1] == probe.end:
                break
            sequence = torch.cat([sequence, probe._embed([ids[-1]])[None]], dim=1)
        said.append(probe.llm.tokenizer.decode(ids, skip_special_tokens=True).strip())
    return said


def test_captions_are_those_of_decoding_by_hand(probe):
    with torch.no_grad():
        probe.projector.weight.mul_(50)
    tokens = probe.encoder.encode(IMAGES)
    assert probe.generate(tokens, longest=12) == by_hand(probe, tokens, 12)
    assert probe.caption(IMAGES, batch_size=2, longest=12) == by_hand(probe, tokens, 12)


@torch.no_grad()
def score(probe, tokens, ids):
    """The mean log-probability of ids after the prompt."""
    sequence = torch.cat([probe.prompt(tokens[None]), probe._embed(ids)[None]], dim=1)
    logits = probe.llm.model(inputs_embeds=sequence).logits[0].log_softmax(-1)
    start = probe.prompt_length - 1
    return sum(float(logits[start + i, token]) for i, token in enumerate(ids)) / len(ids)


def test_beams_find_what_is_more_likely(parts):
    encoder, llm = parts
    probe = CaptionProbe(encoder, llm, sample=encoder.encode(IMAGES))
    with torch.no_grad():
        probe.projector.weight.mul_(50)
    compared = 0
    for one in encoder.encode(IMAGES):
        likely = []
        for beams in (1, 8):
            text = probe.generate(one[None], beams=beams, longest=4)[0]
            ids = llm.tokenizer(text.replace(" ", ""), add_special_tokens=False)["input_ids"]
            if len(ids) == 4:  # whole: neither ended before nor a space among its tokens
                likely.append(score(probe, one, ids))
        if len(likely) == 2:
            compared += likely[1] > likely[0] + 1e-4
            assert likely[1] >= likely[0] - 1e-4
    assert compared  # for one image at least beams found something better


def test_what_a_probe_refuses(parts):
    encoder, llm = parts
    probe = CaptionProbe(encoder, llm)
    tokens = encoder.encode(IMAGES)
    with pytest.raises(ValueError, match=r"captions\[1\] is empty"):
        probe(tokens, ["a", " ", "b"])
    with pytest.raises(ValueError, match="got 2 for 3 images"):
        probe(tokens, ["a", "b"])
    with pytest.raises(ValueError, match=r"tokens must be \[B, 17, 24\]"):
        probe.generate(tokens[:, :5])
    with pytest.raises(ValueError, match="beams and longest must be 1 or more, got 0"):
        probe.generate(tokens, beams=0)


def test_a_caption_longer_than_the_model_reads_is_cut(parts):
    encoder, llm = parts
    probe = CaptionProbe(encoder, llm)
    room = llm.context - probe.prompt_length
    tokens = encoder.encode(IMAGES[:1])
    assert torch.isfinite(probe(tokens, ["ab" * 600]))
    torch.testing.assert_close(probe(tokens, ["a" * 600]), probe(tokens, ["a" * (room + 5)]))
