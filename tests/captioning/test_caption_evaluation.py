"""Scores of captions are those of CLIPScorer and coco_metrics called by hand; controls are what they say they are."""

from __future__ import annotations

import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from alignlab.captioning import CLIPScorer, coco_metrics, evaluate, find_judge, score, subjects
from alignlab.captioning.evaluation import RESAMPLES, SEED, derangement, difference, held_captions
from alignlab.captioning.gallery import evenly, save_gallery
from alignlab.data import load_dataset

N = 24


@pytest.fixture(autouse=True)
def no_java(monkeypatch):
    """METEOR takes seconds to start."""
    monkeypatch.setenv("PATH", "")


@pytest.fixture(scope="module")
def judge(small_judge):
    found, why = find_judge(small_judge)
    assert found is not None
    assert why == ""
    return found


@pytest.fixture(scope="module")
def scenes():
    return load_dataset("scenes", n=N)


@pytest.fixture(scope="module")
def references(scenes):
    return [list(captions) for captions in scenes.captions]


@pytest.fixture(scope="module")
def them(scenes, references, judge):
    return subjects((item.image for item in scenes), references, judge)


@pytest.fixture(scope="module")
def captions(references):
    """What a middling probe says: one of the references, its end cut off."""
    return [" ".join(group[0].split()[:-2]) for group in references]


def test_scores_are_those_by_hand(them, captions, references, scenes, judge):
    found = evaluate(captions, them)
    ours = found.columns["generated"]
    coco = coco_metrics(captions, references)
    clip = judge.score([item.image for item in scenes], captions, references)
    assert list(ours.scores) == ["CLIPScore", "RefCLIPScore", *coco]
    for name, value in coco.items():
        assert ours.scores[name] == value
        np.testing.assert_array_equal(ours.each[name], coco.items_of[name])
        assert ours.interval(name) == pytest.approx(coco.interval(name, RESAMPLES, SEED), rel=1e-9)
    torch.testing.assert_close(torch.tensor(ours.each["CLIPScore"]).float(), clip.clip_score)
    torch.testing.assert_close(torch.tensor(ours.each["RefCLIPScore"]).float(), clip.ref_clip_score)
    assert ours.scores["RefCLIPScore"] == pytest.approx(float(clip.ref_clip_score.mean()), rel=1e-6)
    assert (ours.truncated, found.truncated_references) == (clip.truncated, clip.truncated_references)
    assert clip.truncated > 0
    assert found.judge == judge.judge
    assert found.tokenizer == coco.tokenizer
    assert set(found.left_out) == {"METEOR", "SPICE"}
    assert (found.empty, found.distinct) == (0, len(set(captions)))


def test_the_derangement_leaves_nothing_in_its_place():
    for n in (2, 3, 4, 7, 50):
        for seed in range(20):
            order = derangement(n, seed)
            assert sorted(order) == list(range(n))
            assert all(i != j for i, j in enumerate(order))
    assert derangement(50) == derangement(50)
    found = Counter(tuple(derangement(4, seed)) for seed in range(600))
    assert len(found) == 6  # the cycles of four, about as often as one another
    assert min(found.values()) > 60
    with pytest.raises(ValueError, match="n must be 2 or more, got 1"):
        derangement(1)


def test_shuffled_are_the_same_captions_on_other_images(them, captions):
    found = evaluate(captions, them)
    dealt = [captions[i] for i in derangement(N)]
    by_hand = score(dealt, them)
    assert found.columns["shuffled"].scores == by_hand.scores
    gap = found.differences["shuffled"]
    for name in ("CIDEr", "ROUGE-L", "CLIPScore"):
        each = found.columns["generated"].each[name] - by_hand.each[name]
        assert gap.scores[name] == pytest.approx(each.mean())
        rows = np.random.default_rng(SEED).integers(N, size=(RESAMPLES, N))
        assert gap.ci95[name] == pytest.approx(np.quantile(each[rows].mean(1), [0.025, 0.975]))
    low, high = gap.ci95["BLEU-4"]
    assert low < gap.scores["BLEU-4"] < high
    assert "CIDEr" in found.apart["shuffled"]
    assert found.says.startswith("Above the same captions on other images, with 95% intervals apart: ")
    assert "not apart: CLIPScore" in found.says  # of a judge that knows nothing
    same = evaluate(["a thing"] * N, them)
    assert all(value == 0 for value in same.differences["shuffled"].scores.values())
    assert same.says == "No metric is above that of the same captions on other images with 95% intervals apart."
    assert same.distinct == 1


def test_people_are_scored_against_their_other_captions(them, captions, references, scenes, judge):
    found = evaluate(captions, them)
    held = held_captions(references)
    assert len(held) == N
    assert len(set(held.values())) > 2
    people = [references[i][out] for i, out in held.items()]
    rest = [[text for j, text in enumerate(references[i]) if j != out] for i, out in held.items()]
    coco = coco_metrics(people, rest)
    clip = judge.score([item.image for item in scenes], people, rest)
    assert found.columns["human"].scores["CIDEr"] == coco["CIDEr"]
    assert found.columns["human"].scores["RefCLIPScore"] == pytest.approx(float(clip.ref_clip_score.mean()), rel=1e-5)
    # The captions lose the same reference for this comparison.
    ours = coco_metrics(captions, rest)
    assert found.differences["human"].scores["CIDEr"] == pytest.approx(ours["CIDEr"] - coco["CIDEr"])


def test_images_with_one_caption_have_no_ceiling(references, captions):
    one = evaluate(captions, subjects([], [group[:1] for group in references]))
    assert "human" not in one.columns
    assert "the human ceiling is left out: every image has one caption only" in one.notes
    some = evaluate(captions, subjects([], [group[: 1 + i % 2] for i, group in enumerate(references)]))
    assert some.columns["human"].n == some.differences["human"].n == N // 2
    assert f"{N // 2} of {N} images have one caption only and are left out of the human ceiling" in some.notes
    with pytest.raises(ValueError, match="on the same images only, got 24 and 12"):
        difference(some.columns["generated"], some.columns["human"])


def test_the_random_control(them, captions):
    found = evaluate(captions, them, random=["a thing"] * N)
    assert found.columns["random"].scores == score(["a thing"] * N, them).scores
    assert "CIDEr" in found.apart["random"]
    assert "Every metric is above that of a random encoder's probe, with 95% intervals apart." in found.says


def test_empty_captions_are_counted_and_score_as_a_full_stop(them, captions, references):
    said = ["", "  ", *captions[2:]]
    found = evaluate(said, them)
    assert found.empty == 2
    assert "2 of 24 captions are empty; they are scored as a full stop" in found.notes
    assert found.columns["generated"].scores == score([".", ".", *captions[2:]], them).scores
    assert found.columns["generated"].each["CIDEr"][:2].tolist() == [0, 0]
    nothing = evaluate([""] * N, them)
    assert all(nothing.columns["generated"].scores[name] < 1e-6 for name in ("BLEU-1", "CIDEr", "ROUGE-L"))
    json.dumps(nothing.plain(), allow_nan=False)


def test_without_a_judge_its_scores_are_named_with_the_reason(references, captions, monkeypatch, tmp_path):
    monkeypatch.setattr("alignlab.captioning.evaluation.shipped", lambda *parts: tmp_path.joinpath(*parts))
    judge, why = find_judge()
    assert judge is None
    assert "clip-tiny, the judge by default, does not come with this installation" in why
    found = evaluate(captions, subjects([], references, judge), why_no_judge=why)
    assert found.judge is None
    assert found.left_out["CLIPScore"] == found.left_out["RefCLIPScore"] == why
    assert "CLIPScore" not in found.columns["generated"].scores
    assert find_judge("none") == (None, "no judge was wanted")
    assert found.plain()["judge"] is None


def test_one_image_alone(references, captions):
    found = evaluate(captions[:1], subjects([], references[:1]))
    assert "shuffled" not in found.columns
    assert "the shuffled control is left out: it needs two images" in found.notes
    assert found.says == ""


def test_a_plain_evaluation_is_json_with_every_images_scores(them, captions):
    plain = json.loads(json.dumps(evaluate(captions, them).plain(), allow_nan=False))
    assert plain["captions"] == captions
    assert {name: len(values["CIDEr"]) for name, values in plain["each"].items()} == dict.fromkeys(plain["scores"], N)
    assert np.mean(plain["each"]["generated"]["CIDEr"]) == pytest.approx(
        plain["scores"]["generated"]["CIDEr"]["score"], abs=1e-5
    )


def test_what_is_refused(them, captions, judge):
    with pytest.raises(ValueError, match="one caption an image, got 23 captions for 24 images"):
        evaluate(captions[1:], them)
    with pytest.raises(ValueError, match="one caption an image, got 1 captions for 24 images"):
        evaluate(captions, them, random=["x"])
    with pytest.raises(ValueError, match=r"references\[1\] must be one text or more, none empty, got \[\]"):
        subjects([], [["a"], []])
    with pytest.raises(ValueError, match=r"references\[0\] must be one text or more, none empty"):
        subjects([], [["a", " "]])
    with pytest.raises(ValueError, match="there are no images"):
        subjects([], [])
    with pytest.raises(ValueError, match="got 1 images and 2 lists"):
        subjects([Image.new("RGB", (8, 8))], [["a"], ["b"]], judge)
    with pytest.raises(ValueError, match="open_clip has no model 'nobody'"):
        find_judge("nobody")


def test_judging_in_batches_is_judging_alone(them, captions, judge):
    alone = CLIPScorer.text_embeddings(judge, captions[:1])
    torch.testing.assert_close(alone, judge.text_embeddings(captions)[:1])


def test_a_gallery(tmp_path):
    assert evenly(100) == [i * 100 // 16 for i in range(16)]
    assert evenly(3) == [0, 1, 2]
    pictures = [Image.new("RGB", (96, 96), (i * 40, 90, 90)) for i in range(5)]
    rows = [{"said": "$5 a $thing " * i, "truth": "word " * 60 + "漢字"} for i in range(5)]
    save_gallery(pictures, rows, tmp_path / "gallery.jpg", "a $title")
    with Image.open(tmp_path / "gallery.jpg") as made:
        assert made.format == "JPEG"
        assert made.width > 4 * 96
        assert math.isclose(made.width, 1326, abs_tol=5)
        seen = np.asarray(made.convert("L"))
    assert (seen < 100).mean() > 0.01  # there is text
    with pytest.raises(ValueError, match="texts for every image, one at least, got 5 and 4"):
        save_gallery(pictures, rows[1:], tmp_path / "gallery.jpg")
