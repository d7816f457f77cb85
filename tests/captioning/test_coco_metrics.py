"""The COCO metrics against pycocoevalcap's own run, and what is said where Java is missing."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from alignlab.captioning import coco_metrics
from alignlab.captioning.coco import BLEU

needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="needs Java to run pycocoevalcap as it comes")
SCENES = Path(__file__).parents[2] / "data/scenes/captions.jsonl"


# What pycocoevalcap 1.2's Meteor gives after its own tokenizer on the captions of the first test, the set and eight items.
# Recorded, because a second start of that program costs the test as much as everything else in it.
METEOR = (
    0.1742031957967012,
    [
        0.06399999999999999,
        0.33267518848688765,
        0.0,
        0.046473029045643155,
        0.1771754544916002,
        0.11703122516450669,
        0.19383696429891473,
        0.21691279338211886,
    ],
)


@pytest.fixture
def no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    """METEOR takes seconds to start."""
    monkeypatch.setenv("PATH", "")


def scenes(n: int) -> tuple[list[str], list[list[str]]]:
    """Candidates that are references spoilt: words dropped, doubled and swapped with the next scene's."""
    drawn = random.Random(0)
    with open(SCENES, encoding="utf-8") as lines:
        groups = [json.loads(line)["captions"] for line, _ in zip(lines, range(n), strict=False)]
    candidates = []
    for i, group in enumerate(groups):
        words = (group[0] if i % 5 else groups[i - 1][0]).split()
        candidates.append(" ".join(word for word in words for _ in range(drawn.choice([0, 1, 1, 1, 2]))) or "a cone")
    return candidates, [group[1:] for group in groups]


def files_of_pycocoevalcap() -> set[Path]:
    import pycocoevalcap

    return {path for path in Path(pycocoevalcap.__path__[0]).rglob("*") if "__pycache__" not in path.parts}


@needs_java
def test_scores_are_pycocoevalcaps_own(capfd: pytest.CaptureFixture[str]) -> None:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    candidates, references = scenes(60)
    candidates[2] = "..."
    candidates[3], references[4][0] = "Mr. O'Brien's dog isn't here, it's 5'10\" (tall)...", "naïve café – 3.5-inch!"
    tokenizer = PTBTokenizer()
    ours = tokenizer.tokenize({i: [{"caption": c}] for i, c in enumerate(candidates)})
    theirs = tokenizer.tokenize({i: [{"caption": c} for c in group] for i, group in enumerate(references)})
    capfd.readouterr()
    before = files_of_pycocoevalcap()
    scores = coco_metrics(candidates, references)
    assert capfd.readouterr().out == ""
    assert files_of_pycocoevalcap() == before

    bleu, sentences = Bleu(4).compute_score(theirs, ours, verbose=0)
    for k, name in enumerate(BLEU):
        assert scores[name] == pytest.approx(bleu[k], rel=1e-12)
        np.testing.assert_allclose(scores.items_of[name], sentences[k])
    for name, scorer in (("ROUGE-L", Rouge()), ("CIDEr", Cider())):
        score, items = scorer.compute_score(theirs, ours)
        assert scores[name] == pytest.approx(score, rel=1e-12)
        np.testing.assert_allclose(scores.items_of[name], items)
    assert scores["METEOR"] == pytest.approx(METEOR[0], rel=1e-9)
    np.testing.assert_allclose(scores.items_of["METEOR"][:8], METEOR[1])
    again = coco_metrics(candidates[:30], references[:30])  # by the same program, which kept nothing of the first set
    np.testing.assert_allclose(again.items_of["METEOR"], scores.items_of["METEOR"][:30])
    assert 0.02 < scores["BLEU-4"] < scores["BLEU-1"] < 1


@pytest.mark.usefixtures("no_java")
def test_without_java_the_rest_is_there() -> None:
    scores = coco_metrics(*scenes(20))
    assert list(scores) == list(scores.items_of) == [*BLEU, "ROUGE-L", "CIDEr"]
    assert scores.left_out["METEOR"] == scores.left_out["SPICE"] == "it needs Java, and there is no `java` on the path"
    assert "CoreNLP" in scores.tokenizer
    with pytest.raises(ValueError, match="no METEOR here: it needs Java"):
        scores.interval("METEOR")


def test_a_java_that_fails_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "java"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    scores = coco_metrics(["a cat"], [["a cat sits"]])
    assert "METEOR" not in scores
    assert scores.left_out["METEOR"].startswith("pycocoevalcap's METEOR failed under this Java")


def test_spice_without_its_models_is_left_out_and_nothing_is_fetched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import urllib.request

    import pycocoevalcap.spice as package

    if (Path(package.__path__[0]) / "lib/stanford-corenlp-3.6.0.jar").exists():
        pytest.skip("SPICE's models are here")
    (tmp_path / "java").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlretrieve", lambda *_: pytest.fail("a download"))
    assert "SPICE" not in (scores := coco_metrics(["a cat"], [["a cat"]]))
    assert scores.left_out["SPICE"].startswith("it needs Stanford CoreNLP 3.6.0's models")


def bleu_written_out(candidates: list[str], references: list[list[str]], order: int) -> float:
    """Papineni et al. 2002 with the closest reference's length, on words without punctuation."""
    precisions, length, closest = [], 0, 0
    for n in range(1, order + 1):
        matched = possible = 0
        for candidate, group in zip(candidates, references, strict=True):
            grams = [Counter(zip(*(text.split()[i:] for i in range(n)), strict=False)) for text in [candidate, *group]]
            best = Counter[tuple[str, ...]]()
            for gram in grams[1:]:
                best |= gram
            matched += (grams[0] & best).total()
            possible += grams[0].total()
        precisions.append(matched / possible)
    for candidate, group in zip(candidates, references, strict=True):
        own = len(candidate.split())
        length += own
        closest += min((abs(len(text.split()) - own), len(text.split())) for text in group)[1]
    return math.exp(sum(map(math.log, precisions)) / order + min(0.0, 1 - closest / length))


@pytest.mark.usefixtures("no_java")
def test_bleu_is_the_formula() -> None:
    candidates = ["a red cube on a grey floor", "two dogs run fast on the sand", "one blue ball here"]
    references = [
        ["a red cube on the floor", "red cube"],
        ["two dogs run on the wet sand today"],
        ["a blue ball is here"],
    ]
    scores = coco_metrics(candidates, references)
    for order in (1, 2):
        assert scores[f"BLEU-{order}"] == pytest.approx(bleu_written_out(candidates, references, order), rel=1e-6)


@pytest.mark.usefixtures("no_java")
def test_intervals_hold_the_score_and_narrow() -> None:
    narrow, wide = (coco_metrics(*scenes(n)) for n in (160, 20))
    for name in narrow:
        low, high = narrow.interval(name, resamples=200)
        assert low < narrow[name] < high
        wide_low, wide_high = wide.interval(name, resamples=200)
        assert high - low < wide_high - wide_low
        assert narrow.interval(name, resamples=200) == (low, high)


@pytest.mark.usefixtures("no_java")
def test_a_bleu_interval_is_that_of_whole_sets() -> None:
    candidates, references = scenes(12)
    scores = coco_metrics(candidates, references)
    low, high = scores.interval("BLEU-4", resamples=1, seed=3)
    row = np.random.default_rng(3).integers(12, size=12)
    again = coco_metrics([candidates[i] for i in row], [references[i] for i in row])
    assert low == high == pytest.approx(again["BLEU-4"], rel=1e-12)


@pytest.mark.usefixtures("no_java")
def test_a_caption_of_punctuation_scores_0_not_an_error() -> None:
    scores = coco_metrics(["...", "two dogs"], [["a cat sits"], ["two dogs run"]])
    for name, items in scores.items_of.items():
        assert items[0] == pytest.approx(0, abs=1e-6), name
        assert np.isfinite(items).all()


@pytest.mark.usefixtures("no_java")
@pytest.mark.parametrize(
    ("candidates", "references", "message"),
    [
        ([], [], "candidates must be a list of one caption or more"),
        ("a cat", [["a cat"]], "candidates must be a list"),
        (["a"], [["a"], ["b"]], "1 captions need as many lists of references, got 2"),
        (["a", " "], [["a"], ["b"]], "caption 1 must be a string that is not empty"),
        (["a", None], [["a"], ["b"]], "caption 1 must be a string"),
        (["a", "b"], [["a"], []], "references 1 must be a list of one string or more"),
        (["a", "b"], [["a"], "b"], "references 1 must be a list"),
        (["a"], [["a", ""]], "references 0 must be strings that are not empty"),
        (["a"], [["..."]], "no reference has a word in it"),
    ],
)
def test_bad_input_is_one_line(candidates: list[str], references: list[list[str]], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        coco_metrics(candidates, references)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("no_java")
def test_unknown_metrics_and_no_resamples() -> None:
    scores = coco_metrics(["a cat"], [["a cat"]])
    with pytest.raises(ValueError, match="no BLEU here: the metrics are BLEU-1, "):
        scores.interval("BLEU")
    with pytest.raises(ValueError, match="resamples must be 1 or more, got 0"):
        scores.interval("CIDEr", resamples=0)
