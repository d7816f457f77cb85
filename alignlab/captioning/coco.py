"""The COCO caption metrics, as pycocoevalcap computes them, without Java where none is needed.

BLEU-1..4, ROUGE-L and CIDEr are pycocoevalcap's own functions on the tokens of `alignlab.captioning.tokenizer`; METEOR and
SPICE run its Java programs where Java and their models are there.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignlab.captioning.tokenizer import NAME, tokenize

Floats = NDArray[np.float64]
Texts = dict[int, list[str]]

BLEU = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4")
NAMES = (*BLEU, "METEOR", "ROUGE-L", "CIDEr", "SPICE")
_SPICE_MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")


@dataclass(frozen=True)
class Counts:
    """What BLEU adds up over captions: matched and possible n-grams `[N, 4]`, lengths of caption and reference `[N]`."""

    matched: Floats
    possible: Floats
    length: Floats
    reference: Floats

    def bleu(self, rows: NDArray[np.intp] | slice = slice(None)) -> Floats:
        """BLEU-1..4 `[4]` of the captions `rows`, with the two small numbers that pycocoevalcap adds."""
        small, tiny = 1e-9, 1e-15
        ratios = (self.matched[rows].sum(0) + tiny) / (self.possible[rows].sum(0) + small)
        scores = np.cumprod(ratios) ** (1 / np.arange(1, 5))
        ratio = (self.length[rows].sum() + tiny) / (self.reference[rows].sum() + small)
        return scores * np.exp(min(0.0, 1 - 1 / ratio))


class CocoScores(dict[str, float]):
    """Name -> score of the whole set, in the usual units (0..1; CIDEr 0..10); what could not be had is not in it.

    `items_of` holds each metric's score of every caption `[N]` (BLEU's are sentence scores, whose mean is not the set's
    score; nor is METEOR's, quite), `left_out` why a metric is missing, `tokenizer` what cut the captions into words.
    """

    def __init__(
        self, scores: dict[str, float], items: dict[str, Floats], left_out: dict[str, str], counts: Counts
    ) -> None:
        super().__init__({name: scores[name] for name in NAMES if name in scores})
        self.items_of = items
        self.left_out = left_out
        self.tokenizer = NAME
        self.counts = counts

    def interval(self, name: str, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
        """A 95% bootstrap interval (percentile) of the set's score, over captions.

        BLEU is computed anew from the counts of each resample. For the others the captions' scores are averaged: CIDEr's
        word weights stay those of the whole set, and METEOR's interval is moved by what its set score differs from its
        mean. Raises ValueError for a metric that is not here.
        """
        if name not in self:
            reason = self.left_out.get(name, f"the metrics are {', '.join(NAMES)}")
            raise ValueError(f"there is no {name} here: {reason}")
        if resamples < 1:
            raise ValueError(f"resamples must be 1 or more, got {resamples}")
        generator, n = np.random.default_rng(seed), len(self.counts.length)
        rows = (generator.integers(n, size=n) for _ in range(resamples))
        if name in BLEU:
            drawn = np.array([self.counts.bleu(row)[BLEU.index(name)] for row in rows])
        else:
            items = self.items_of[name]
            drawn = np.array([items[row].mean() for row in rows]) + self[name] - items.mean()
        low, high = np.quantile(drawn, [0.025, 0.975])
        return float(low), float(high)


def coco_metrics(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> CocoScores:
    """BLEU-1..4, METEOR, ROUGE-L, CIDEr and SPICE of one caption an image against one or more references.

    METEOR needs Java; SPICE needs Java and Stanford CoreNLP's models, which are never fetched here. Where they are
    missing, or fail, the metric is in `left_out` with the reason. Raises ValueError for no captions, different numbers of
    captions and of sets of references, a caption or reference that is empty or no string, and an image without references.

    `coco_metrics(["a red cube"], [["a red block", "one red cube"]])["ROUGE-L"]`; METEOR takes seconds to start,
    once a process.
    """
    _check(candidates, references)
    ours: Texts = {i: [tokenize(caption)] for i, caption in enumerate(candidates)}
    theirs: Texts = {i: [tokenize(reference) for reference in group] for i, group in enumerate(references)}
    if not any(any(group) for group in theirs.values()):
        raise ValueError("no reference has a word in it, only punctuation")
    scores: dict[str, float] = {}
    items: dict[str, Floats] = {}
    left_out: dict[str, str] = {}
    counts, sentences = _bleu(theirs, ours)
    for name, score, column in zip(BLEU, counts.bleu(), sentences, strict=True):
        scores[name], items[name] = float(score), column
    programs: dict[str, Callable[[Texts, Texts], tuple[float, Floats]]] = {
        "METEOR": _meteor,
        "ROUGE-L": _rouge,
        "CIDEr": _cider,
        "SPICE": _spice,
    }
    for name, program in programs.items():
        try:
            scores[name], items[name] = program(theirs, ours)
        except _MissingError as missing:
            left_out[name] = str(missing)
    return CocoScores(scores, items, left_out, counts)


class _MissingError(Exception):
    """Why a metric cannot be had here."""


def _check(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if isinstance(candidates, str) or not len(candidates):
        raise ValueError(f"candidates must be a list of one caption or more, got {candidates!r:.60}")
    if isinstance(references, str) or len(candidates) != len(references):
        raise ValueError(f"{len(candidates)} captions need as many lists of references, got {len(references)}")
    for i, (caption, group) in enumerate(zip(candidates, references, strict=True)):
        if not isinstance(caption, str) or not caption.strip():
            raise ValueError(f"caption {i} must be a string that is not empty, got {caption!r:.60}")
        if isinstance(group, str) or not len(group):
            raise ValueError(f"references {i} must be a list of one string or more, got {group!r:.60}")
        for reference in group:
            if not isinstance(reference, str) or not reference.strip():
                raise ValueError(f"references {i} must be strings that are not empty, got {reference!r:.60}")


def _bleu(theirs: Texts, ours: Texts) -> tuple[Counts, list[Floats]]:
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    scorer = BleuScorer(n=4)
    for i, (caption,) in ours.items():
        scorer += (caption, theirs[i])
    _, sentences = scorer.compute_score(option="closest", verbose=0)
    closest = [min((abs(length - x["testlen"]), length) for length in x["reflen"])[1] for x in scorer.ctest]
    columns = [[x["correct"] for x in scorer.ctest], [x["guess"] for x in scorer.ctest]]
    matched, possible = (np.array(column, dtype=np.float64) for column in columns)  # [N, 4]
    counts = Counts(matched, possible, np.array([x["testlen"] for x in scorer.ctest], float), np.array(closest, float))
    return counts, [np.array(column) for column in sentences]


def _rouge(theirs: Texts, ours: Texts) -> tuple[float, Floats]:
    from pycocoevalcap.rouge.rouge import Rouge

    score, items = Rouge().compute_score(theirs, ours)
    return float(score), np.asarray(items)


def _cider(theirs: Texts, ours: Texts) -> tuple[float, Floats]:
    from pycocoevalcap.cider.cider import Cider

    score, items = Cider().compute_score(theirs, ours)
    return float(score), np.asarray(items)


def _meteor(theirs: Texts, ours: Texts) -> tuple[float, Floats]:
    program = _meteor_program(_java())
    try:
        score, items = program.compute_score(theirs, ours)
    except (OSError, ValueError) as error:  # Java that ends early leaves an empty answer, which is no number
        _meteor_program.cache_clear()
        program.lock.release()  # left locked by an error, and its destructor would wait for it for ever
        for stream in (program.meteor_p.stdin, program.meteor_p.stdout, program.meteor_p.stderr):
            with contextlib.suppress(OSError):
                stream.close()
        raise _MissingError(f"pycocoevalcap's METEOR failed under this Java: {error}") from error
    return float(score), np.array(items)


@functools.cache
def _meteor_program(java: str) -> Any:
    """pycocoevalcap's, running: it takes seconds to read its tables, and scores any number of sets then."""
    from pycocoevalcap.meteor.meteor import Meteor

    program = Meteor()
    atexit.register(program.meteor_p.kill)
    return program


def _spice(theirs: Texts, ours: Texts) -> tuple[float, Floats]:
    _java()
    import pycocoevalcap.spice as package

    folder = Path(package.__path__[0])
    if not all((folder / "lib" / name).is_file() for name in _SPICE_MODELS):
        raise _MissingError(
            "it needs Stanford CoreNLP 3.6.0's models; `python -m pycocoevalcap.spice.get_stanford_models` fetches them once"
        )
    from pycocoevalcap.spice.spice import Spice

    made = [folder / name for name in ("tmp", "cache") if not (folder / name).exists()]
    try:
        with _silence():
            score, parts = Spice().compute_score(theirs, ours)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        raise _MissingError(f"pycocoevalcap's SPICE failed under this Java: {error}") from error
    finally:
        for path in made:
            shutil.rmtree(path, ignore_errors=True)
    return float(score), np.array([part["All"]["f"] for part in parts])


def _java() -> str:
    """Where Java is."""
    found = shutil.which("java")
    if found is None:
        raise _MissingError("it needs Java, and there is no `java` on the path")
    return found


@contextlib.contextmanager
def _silence() -> Iterator[Any]:
    """Standard output goes nowhere inside, that of programs started inside too."""
    kept = os.dup(1)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    try:
        with contextlib.redirect_stdout(None):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
