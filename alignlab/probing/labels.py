"""What a set's items say they show, as labels for probes, and the control task of each.

Scenes say what stands in them and where; other sets have what their lines or columns hold beside image and captions.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np

from alignlab.data import ImageTextDataset

APART = 0.25  # of half the picture's width: what `alignlab.data.describe` takes for plainly left or right
MOST_CLASSES = 0.5  # of the items: a key with more values than that is a name, unless it is called a class
CLASSES = ("class", "label", "category")
_WNID = re.compile(r"(?:^|[/\\])n(\d{8})(?=$|[/\\._])")
# Where the kinds that ImageNet's classes are of begin and end among WordNet 3.0's nouns, which its ids are numbered by:
# its nouns are in the order of the lexicographers' files.
_KINDS = (
    ("animal", 1_313_093, 2_666_196),
    ("artefact", 2_666_196, 4_620_000),
    ("communication", 6_250_000, 7_290_000),
    ("food", 7_550_000, 7_940_000),
    ("natural object", 9_180_000, 9_605_000),
    ("person", 9_605_000, 11_410_000),
    ("plant", 11_520_000, 13_240_000),
)


@dataclass(frozen=True)
class Label:
    """One property of a set's items: `values` and `types` hold one entry an item, None for an item that has none.

    A type is what a probe could learn by heart instead: something finer than the value, which is a function of it, and
    which several items share. `about` says which items have a value, and what it is.
    """

    name: str
    about: str
    values: tuple[Hashable | None, ...]
    types: tuple[Hashable | None, ...]

    def usable(self, folds: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
        """The items of classes that have `folds` or more of them: their indices, values and types `[m]`, and what was left out.

        Values and types are numbers from 0. Raises ValueError where fewer than two classes are left.
        """
        sizes = Counter(value for value in self.values if value is not None)
        kept = sorted((value for value, size in sizes.items() if size >= folds), key=str)
        if len(sizes) == 1:
            raise ValueError(
                f"label {self.name}: all {sum(sizes.values())} items are {next(iter(sizes))}; a probe needs two classes"
            )
        if len(kept) < 2:
            largest = max(sizes.values(), default=0)
            raise ValueError(
                f"label {self.name}: {len(kept)} of its {len(sizes)} classes have {folds} items, one for each fold (the largest "
                f"has {largest}); a probe needs two such classes, so give more items or fewer folds"
            )
        items = np.array([i for i, value in enumerate(self.values) if value in kept])
        classes, types = {value: i for i, value in enumerate(kept)}, dict[Hashable, int]()
        values = np.array([classes[self.values[i]] for i in items])
        numbered = np.array([types.setdefault(self.types[i], len(types)) for i in items])
        left = len(sizes) - len(kept)
        lost = sum(sizes.values()) - len(items)
        notes = (
            [f"label {self.name}: {left} class(es) of fewer than {folds} items left out ({lost} items)"] if left else []
        )
        return items, values, numbered, notes


def control(values: np.ndarray, types: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The answers of a control task, `[m]`, from values and types that are numbers from 0 (`Label.usable`).

    Hewitt and Liang (2019, Designing and Interpreting Probes with Control Tasks) give every word type a random tag, drawn as
    tags are distributed and the same wherever the word stands: a control task is a function of the input (structure) that
    says nothing about it (randomness), so that a probe can only learn it by heart. Here items have labels, not words, and
    what an item's answer hangs on is its type: of scenes the combination of shapes (or of shape and colour) in them, which
    many captions and pictures share, of other sets the caption. Types are few here, and independent draws could give most
    items one answer, which a probe would then know without learning; so answers are dealt out, type by type in random order,
    from as many of each class as there are, and the classes come out as large as they are but for what does not divide.
    Where no two items share a type there is nothing to learn by heart, and the control's accuracy is chance.
    """
    sizes, count = np.bincount(types), types.max() + 1
    while True:
        left, answers = np.bincount(values).astype(float), np.zeros(count, dtype=int)
        for one in rng.permutation(count):
            free = left.clip(0)
            answers[one] = rng.choice(len(left), p=free / free.sum()) if free.any() else rng.choice(values)
            left[answers[one]] -= sizes[one]
        if count == 1 or len(np.unique(answers)) > 1:
            return answers[types]


def labels_of(data: ImageTextDataset) -> dict[str, Label]:
    """The labels that a set's items carry, by name; those that cannot be probed (`Label.usable`) among them.

    Of scenes: `count` of things; `shape` and `colour` where one thing stands alone; `relation`, whether of two things of
    different shapes that stand plainly apart the one that comes first in the alphabet is on the left or on the right. Of
    other sets: every key whose values are text, whole numbers or yes and no, but for those that name nearly every item;
    and `kind` (animal, artefact, food, ...) where the files are called after WordNet's ids, as ImageNet's are.
    """
    meta = data.meta
    scenes = [one.get("scene") if _is_scene(one.get("scene")) else None for one in meta]
    found = _of_scenes(scenes) if any(scenes) else []
    known = {label.values for label in found}
    captions = tuple(said[0] if said else "" for said in data.captions)
    for key in dict.fromkeys(key for one in meta for key in one):
        values = tuple(one.get(key) for one in meta)
        if not all(value is None or isinstance(value, str | int) for value in values) or key == "scene":
            continue
        distinct = len(set(values) - {None})
        is_class = key in CLASSES
        same = tuple(_first_places(values)) in {tuple(_first_places(other)) for other in known}
        if distinct == 0 or same or (distinct > MOST_CLASSES * len(values) and not is_class):
            continue
        known.add(values)
        taken = {label.name for label in found} | {other for one in meta for other in one}
        name = "class" if is_class and "class" not in taken else key
        found.append(Label(name, f"the items' {key}", values, captions))
    kinds = tuple(_kind(id) for id in data.ids)
    if any(kinds):
        found.append(Label("kind", "the part of WordNet that an item's id is of", kinds, captions))
    return {label.name: label for label in found}


def _first_places(values: tuple[Any, ...]) -> list[int]:
    """Where each item's value first occurs: the same list for names and numbers of the same classes."""
    seen: dict[Any, int] = {}
    return [seen.setdefault(value, i) for i, value in enumerate(values)]


def _kind(id: str) -> str | None:
    found = _WNID.search(id)
    number = int(found[1]) if found else -1
    return next((name for name, first, end in _KINDS if first <= number < end), None)


def _is_scene(found: Any) -> bool:
    things, places = (found.get(key) for key in ("things", "places")) if isinstance(found, dict) else (None, None)
    return (
        isinstance(things, list)
        and isinstance(places, list)
        and len(things) == len(places) > 0
        and all(
            isinstance(t, dict) and isinstance(t.get("shape"), str) and isinstance(t.get("colour"), str) for t in things
        )
        and all(isinstance(p, list) and len(p) == 3 and isinstance(p[0], int | float) for p in places)
    )


def _of_scenes(scenes: list[dict[str, Any] | None]) -> list[Label]:
    things = [scene["things"] if scene else [] for scene in scenes]
    alone = [tuple(one[0][key] for key in ("shape", "colour")) if len(one) == 1 else (None, None) for one in things]
    pairs = [_relation(scene) for scene in scenes]
    singles = tuple(None if shape is None else f"{colour} {shape}" for shape, colour in alone)
    return [
        Label(
            "count",
            "how many things stand in a scene",
            tuple(len(one) or None for one in things),
            tuple(", ".join(sorted(t["shape"] for t in one)) or None for one in things),
        ),
        Label("shape", "of the thing in scenes with one", tuple(shape for shape, _ in alone), singles),
        Label("colour", "of the thing in scenes with one", tuple(colour for _, colour in alone), singles),
        Label(
            "relation",
            "in scenes with two things of different shapes, plainly apart: where the alphabet's first shape stands",
            tuple(pair and pair[0] for pair in pairs),
            tuple(pair and pair[1] for pair in pairs),
        ),
    ]


def _relation(scene: dict[str, Any] | None) -> tuple[str, str] | None:
    """Where the first of two things stands, and the whole arrangement in words."""
    if scene is None or len(scene["things"]) != 2:
        return None
    (one, x), (other, y) = sorted(
        (thing["shape"], place[0]) for thing, place in zip(scene["things"], scene["places"], strict=True)
    )
    if one == other or abs(x - y) <= APART:
        return None
    side = "left" if x < y else "right"
    return side, f"{one} {side} of {other}"
