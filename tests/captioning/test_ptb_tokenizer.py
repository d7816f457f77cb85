"""The Python tokenizer against the Stanford jar: its recorded output everywhere, the jar itself where Java is."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from alignlab.captioning.tokenizer import PUNCTUATION, tokenize

RECORDED = json.loads((Path(__file__).parent / "stanford_captions.json").read_text(encoding="utf-8"))["captions"]


def test_recorded_tricky_captions_are_cut_as_the_jar_cut_them() -> None:
    assert len(RECORDED) > 200
    differ = [(caption, tokenize(caption), tokens) for caption, tokens in RECORDED if tokenize(caption) != tokens]
    assert not differ


@pytest.mark.skipif(shutil.which("java") is None, reason="needs Java to run pycocoevalcap's tokenizer")
def test_the_jar_itself_agrees(capfd: pytest.CaptureFixture[str]) -> None:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    scenes = Path(__file__).parents[2] / "data/scenes/captions.jsonl"
    with open(scenes, encoding="utf-8") as lines:
        captions = [caption for line in lines for caption in json.loads(line)["captions"]]
    captions += [line for caption, _ in RECORDED for line in (caption, "and so on")]
    theirs = PTBTokenizer().tokenize({i: [{"caption": caption}] for i, caption in enumerate(captions)})
    differ = [caption for i, caption in enumerate(captions) if tokenize(caption) != theirs[i][0]]
    assert not differ
    assert len(captions) > 5000


def test_punctuation_is_pycocoevalcaps() -> None:
    from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS

    assert {mark for mark in PUNCTUATIONS if mark == mark.lower()} == PUNCTUATION


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("", ""),
        (" \n\t ", ""),
        ("...", ""),
        ("😀 🏄", ""),
        ("a dog.\nA cat.", "a dog a cat"),
        ("a\u2028b\x85c\rd", "a b c d"),
        ("\u00e9 e\u0301", "\u00e9 e\u0301"),
    ],
)
def test_odd_texts(caption: str, tokens: str) -> None:
    assert tokenize(caption) == tokens


def test_nothing_that_is_left_out_gets_through() -> None:
    for caption, _ in RECORDED:
        words = tokenize(caption).split(" ")
        assert not set(words) & PUNCTUATION
        assert all(word == word.lower() for word in words)


@pytest.mark.parametrize("bad", ["a.", "a-", "a'", "a@", "<a ", "&", "-", "1-", "a/", "a_", ".", "A&", "(5", "http://"])
def test_no_text_takes_forever(bad: str) -> None:
    start = time.process_time()
    tokenize(bad * 2000)
    assert time.process_time() - start < 5
