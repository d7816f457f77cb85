"""How good captions are, and how good they are beside controls: other images, people, a network that has seen nothing.

`score` judges captions; `evaluate` puts the probe's beside

* `shuffled`: the same captions, each dealt to another image. What this scores the language prior scores, without a look;
* `human`: one of every image's own captions, taken out of its references: the ceiling, as far as captions of one image
  agree (where each tells another part, as those of `scenes` do, a probe may score more);
* `random`: those of the same probe trained on an encoder with random weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alignlab.captioning.clip import CLIPScorer, clip_score, ref_clip_score
from alignlab.captioning.coco import BLEU, CocoScores, coco_metrics
from alignlab.captioning.probe import LONGEST, CaptionProbe
from alignlab.data import ImageTextDataset, Item, resize, to_tensor
from alignlab.paths import shipped
from alignlab.progress import progress

if TYPE_CHECKING:
    from PIL import Image

Floats = NDArray[np.float64]

CLIP = ("CLIPScore", "RefCLIPScore")
JUDGE = "clip-tiny"  # unless another is named
NO_JUDGE = "none"
EMPTY = "."  # what stands for a caption without words, which the metrics refuse: it matches no word of a reference
RESAMPLES = 1000
SEED = 20_240_516  # of the derangement, the choice among human captions and the intervals


def find_judge(name: str | None = None, *, device: str = "cpu") -> tuple[CLIPScorer | None, str]:
    """The judge of CLIPScores by its name (`clip-tiny`, `ViT-B-32/openai`, `ARCHITECTURE/FILE`), or None and why.

    Without a name `clip-tiny` where it is shipped. "none" is none. Raises as `CLIPScorer` does for one that was named.
    """
    if name == NO_JUDGE:
        return None, "no judge was wanted"
    if name is None and not shipped("checkpoints", JUDGE).is_dir():
        return None, f"{JUDGE}, the judge by default, does not come with this installation; name one with --judge"
    return CLIPScorer(name or JUDGE, device=device), ""


@dataclass(frozen=True)
class Column:
    """The scores of one caption an image: of the set (`scores`), of every image (`each`, `[N]`), and of `drawn` resamples of
    the images, `[RESAMPLES]`, which are the same ones for all columns of as many images.
    """

    scores: dict[str, float]
    each: dict[str, Floats]
    drawn: dict[str, Floats]
    truncated: int  # captions longer than the judge reads

    @property
    def n(self) -> int:
        return len(next(iter(self.each.values())))

    def interval(self, name: str) -> tuple[float, float]:
        """95%, over images."""
        return _middle(self.drawn[name])

    def plain(self) -> dict[str, Any]:
        return {
            name: {"score": _number(score), "ci95": [_number(x) for x in self.interval(name)]}
            for name, score in self.scores.items()
        }

    def plain_each(self) -> dict[str, list[float | None]]:
        return {name: [_number(x) for x in values] for name, values in self.each.items()}


@dataclass(frozen=True)
class Subjects:
    """N images with one or more references each, and, where there is a judge, its embeddings of both.

    Make them with `subjects`.
    """

    references: list[list[str]]
    judge: CLIPScorer | None = None
    images: Tensor | None = field(default=None, repr=False)  # [N, D]
    told: list[Tensor] = field(default_factory=list, repr=False)  # N times [R_i, D]

    def __len__(self) -> int:
        return len(self.references)

    def without(self, held: dict[int, int]) -> Subjects:
        """The images `held` alone, each without the reference of that number."""
        images = None if self.images is None else self.images[list(held)]
        left = [[r for j, r in enumerate(self.references[i]) if j != out] for i, out in held.items()]
        rows = held.items() if self.told else ()
        told = [torch.cat([self.told[i][:out], self.told[i][out + 1 :]]) for i, out in rows]
        return replace(self, references=left, images=images, told=told)


def subjects(
    images: Iterable[Image.Image | str | Path], references: Sequence[Sequence[str]], judge: CLIPScorer | None = None
) -> Subjects:
    """Images (read only where there is a judge) with their references, as `score` and `evaluate` take them.

    Raises ValueError for another number of images than of lists of references, for an image without references and
    for an empty reference.
    """
    lists = [[group] if isinstance(group, str) else list(group) for group in references]
    for i, group in enumerate(lists):
        if not group or not all(isinstance(text, str) and text.strip() for text in group):
            raise ValueError(f"references[{i}] must be one text or more, none empty, got {group!r:.60}")
    if not lists:
        raise ValueError("there are no images to score captions of")
    if judge is None:
        return Subjects(lists)
    with progress(f"look at the images with {judge.judge.partition('@')[0]}", len(lists), "images") as tick:

        def seen() -> Iterable[Any]:
            for number, image in enumerate(images):
                tick(number + 1)
                yield image

        embedded = judge.image_embeddings(seen())
    if len(embedded) != len(lists):
        raise ValueError(f"there must be references for every image, got {len(embedded)} images and {len(lists)} lists")
    told = judge.text_embeddings([text for group in lists for text in group])
    return Subjects(lists, judge, embedded, list(told.split([len(group) for group in lists])))


def score(captions: Sequence[str], them: Subjects, *, seed: int = SEED, resamples: int = RESAMPLES) -> Column:
    """One caption an image -> its scores. An empty caption is scored as a full stop.

    Raises ValueError for another number of captions than images.
    """
    return _score(captions, them, seed, resamples)[0]


def _score(captions: Sequence[str], them: Subjects, seed: int, resamples: int) -> tuple[Column, CocoScores]:
    if isinstance(captions, str) or len(captions) != len(them):
        raise ValueError(f"there must be one caption an image, got {len(captions)} captions for {len(them)} images")
    said = [caption if caption.strip() else EMPTY for caption in captions]
    coco = coco_metrics(said, them.references)
    scores, each = dict(coco), dict(coco.items_of)
    truncated = 0
    if them.judge is not None and them.images is not None:
        text = them.judge.text_embeddings(said)
        both = (clip_score(them.images, text), ref_clip_score(them.images, text, them.told))
        truncated = them.judge.truncated(said)
        for name, values in zip(CLIP, both, strict=True):
            each[name] = values.double().numpy()
            scores[name] = float(each[name].mean())
    order = [*CLIP, *coco]
    rows = np.random.default_rng(seed).integers(len(them), size=(resamples, len(them)))
    drawn = {name: each[name][rows].mean(1) + scores[name] - each[name].mean() for name in scores if name not in BLEU}
    # BLEU adds up counts over a set: it is no mean of its sentences'.
    bleu = np.stack([coco.counts.bleu(row) for row in rows])  # [resamples, 4]
    drawn |= dict(zip(BLEU, bleu.T, strict=True))
    return Column({name: scores[name] for name in order if name in scores}, each, drawn, truncated), coco


@dataclass(frozen=True)
class Difference:
    """The captions' scores minus a control's on the same images and references, with intervals over images."""

    scores: dict[str, float]
    ci95: dict[str, tuple[float, float]]
    n: int

    def plain(self) -> dict[str, Any]:
        return {
            name: {"difference": _number(value), "ci95": [_number(x) for x in self.ci95[name]]}
            for name, value in self.scores.items()
        }


def difference(ours: Column, theirs: Column) -> Difference:
    """Image by image: both columns resample the same images. Raises ValueError for different numbers of images."""
    if ours.n != theirs.n:
        raise ValueError(f"columns can be compared on the same images only, got {ours.n} and {theirs.n}")
    both = [name for name in ours.scores if name in theirs.scores]
    return Difference(
        {name: ours.scores[name] - theirs.scores[name] for name in both},
        {name: _middle(ours.drawn[name] - theirs.drawn[name]) for name in both},
        ours.n,
    )


@dataclass(frozen=True)
class Evaluation:
    """The scores of a probe's captions (`columns["generated"]`) and of the controls, and the differences to these.

    `apart`: of each control the metrics whose interval lies above the control's. Of "human" the difference is taken with
    the captions scored against the same references, one fewer for each image.
    """

    captions: list[str]
    columns: dict[str, Column]
    differences: dict[str, Difference]
    apart: dict[str, list[str]]
    says: str
    empty: int
    distinct: int
    judge: str | None
    truncated_references: int
    tokenizer: str
    left_out: dict[str, str]
    notes: list[str]

    def plain(self) -> dict[str, Any]:
        """As JSON, every image's scores included."""
        return {
            "n": len(self.captions),
            "judge": self.judge,
            "tokenizer": self.tokenizer,
            "left_out": self.left_out,
            "says": self.says,
            "empty": self.empty,
            "distinct": self.distinct,
            "truncated": {
                "captions": self.columns["generated"].truncated,
                "references": self.truncated_references,
            },
            "scores": {name: column.plain() for name, column in self.columns.items()},
            "differences": {name: found.plain() for name, found in self.differences.items()},
            "apart": self.apart,
            "images": {name: column.n for name, column in self.columns.items()},
            "notes": self.notes,
            "captions": self.captions,
            "each": {name: column.plain_each() for name, column in self.columns.items()},
        }


def evaluate(
    captions: Sequence[str],
    them: Subjects,
    *,
    random: Sequence[str] | None = None,
    why_no_judge: str = "no judge was named",
    seed: int = SEED,
    resamples: int = RESAMPLES,
) -> Evaluation:
    """Score captions and the controls on the same images. `random` are the captions of the random encoder's probe.

    Raises ValueError for numbers of captions and images that differ.
    """
    ours, coco = _score(captions, them, seed, resamples)
    columns, differences, notes = {"generated": ours}, {}, []
    if len(them) > 1:
        dealt = [captions[i] for i in derangement(len(them), seed)]
        columns["shuffled"] = score(dealt, them, seed=seed, resamples=resamples)
        differences["shuffled"] = difference(ours, columns["shuffled"])
    else:
        notes.append("the shuffled control is left out: it needs two images")
    held = held_captions(them.references, seed)
    if held:
        rest = them.without(held)
        people = [them.references[i][out] for i, out in held.items()]
        columns["human"] = score(people, rest, seed=seed, resamples=resamples)
        again = score([captions[i] for i in held], rest, seed=seed, resamples=resamples)
        differences["human"] = difference(again, columns["human"])
    if alone := len(them) - len(held):
        notes.append(
            f"{alone} of {len(them)} images have one caption only and are left out of the human ceiling"
            if held
            else "the human ceiling is left out: every image has one caption only"
        )
    if random is not None:
        columns["random"] = score(random, them, seed=seed, resamples=resamples)
        differences["random"] = difference(ours, columns["random"])
    empty = sum(not caption.strip() for caption in captions)
    if empty:
        notes.append(f"{empty} of {len(captions)} captions are empty; they are scored as a full stop")
    references = [text for group in them.references for text in group]
    apart = {
        name: [metric for metric in column.scores if ours.interval(metric)[0] > column.interval(metric)[1]]
        for name, column in columns.items()
        if name in ("shuffled", "random")
    }
    return Evaluation(
        captions=list(captions),
        columns=columns,
        differences=differences,
        apart=apart,
        says=_says(list(ours.scores), apart),
        empty=empty,
        distinct=len(set(captions)),
        judge=None if them.judge is None else them.judge.judge,
        truncated_references=0 if them.judge is None else them.judge.truncated(references),
        tokenizer=coco.tokenizer,
        left_out={**({} if them.judge is not None else dict.fromkeys(CLIP, why_no_judge)), **coco.left_out},
        notes=notes,
    )


def _says(metrics: list[str], apart: dict[str, list[str]]) -> str:
    """Whether the intervals are apart, in plain words."""
    sentences = []
    for control, name in (("shuffled", "the same captions on other images"), ("random", "a random encoder's probe")):
        if control not in apart:
            continue
        above = [metric for metric in metrics if metric in apart[control]]
        others = [metric for metric in metrics if metric not in apart[control]]
        if not others:
            sentences.append(f"Every metric is above that of {name}, with 95% intervals apart.")
        elif not above:
            sentences.append(f"No metric is above that of {name} with 95% intervals apart.")
        else:
            sentences.append(
                f"Above {name}, with 95% intervals apart: {', '.join(above)}; not apart: {', '.join(others)}."
            )
    return " ".join(sentences)


def derangement(n: int, seed: int = SEED) -> list[int]:
    """A permutation of n that leaves nothing in its place: one random cycle (Sattolo 1986). ValueError for n < 2.

    >>> derangement(2)
    [1, 0]
    """
    if n < 2:
        raise ValueError(f"n must be 2 or more, got {n}: one thing alone stays in its place")
    rng = np.random.default_rng(seed)
    order = list(range(n))
    for i in range(n - 1, 0, -1):
        j = int(rng.integers(i))  # below i, not i itself
        order[i], order[j] = order[j], order[i]
    return order


def held_captions(references: Sequence[Sequence[str]], seed: int = SEED) -> dict[int, int]:
    """Image -> which of its captions is held out, for images with two or more."""
    rng = np.random.default_rng([seed, 1])
    return {i: int(rng.integers(len(group))) for i, group in enumerate(references) if len(group) > 1}


def captioned(
    model: CaptionProbe,
    data: ImageTextDataset,
    items: Sequence[int],
    *,
    beams: int = 1,
    longest: int = LONGEST,
    batch_size: int = 32,
) -> Iterator[tuple[Item, str]]:
    """A set's items of these numbers, each with the probe's caption; images are read and captioned batch by batch."""
    size = model.encoder.image_size
    for at in range(0, len(items), batch_size):
        some = [data[i] for i in items[at : at + batch_size]]
        images = torch.cat([resize(to_tensor(item.image)[None], size) for item in some])
        yield from zip(some, model.caption(images, batch_size=batch_size, beams=beams, longest=longest), strict=True)


def _middle(drawn: Floats) -> tuple[float, float]:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def _number(x: float) -> float | None:
    """As JSON, which has neither NaN nor inf."""
    return round(float(x), 6) if math.isfinite(x) else None
