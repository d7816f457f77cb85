"""Five captions a scene, the way five people would describe it: different wording, detail and order.

>>> from alignlab.data.scenes import sample_scene
>>> captions = describe(sample_scene(0, split="eval"), index=0, split="eval")
>>> len(captions)
5

The first is a full description (every thing with its attributes), which is what a measurement that reads one caption
an item should read; the other four are, in random order: where things stand, what there is and how many, a short
remark about one thing, and the picture with its surroundings. Every statement is true of the scene: counts are
counts, `left` and `behind` are said only where they are plain to see.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from alignlab.data.scenes import Scene, Thing

Pick = np.random.Generator

NOUNS = {
    "sphere": ("sphere", "ball"),
    "cube": ("cube", "block", "box"),
    "cylinder": ("cylinder", "drum"),
    "cone": ("cone",),
    "torus": ("ring", "torus", "donut"),
}
PLURALS = {"box": "boxes", "torus": "tori"}
SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big")}
MATERIAL_WORDS = {
    "matte": ("matte", "dull", ""),
    "shiny": ("shiny", "glossy", "polished"),
    "striped": ("striped", "banded"),
    "checked": ("checked", "checkered"),
    "spotted": ("spotted", "dotted"),
}
NUMBERS = ("no", "one", "two", "three", "four")
GROUND_WORDS = {
    "wooden": ("a wooden floor", "wooden planks", "a plank floor"),
    "tiled": ("a tiled floor", "a floor of square tiles", "a checkerboard floor"),
    "sandy": ("sand", "sandy ground", "rippled sand"),
    "concrete": ("a concrete floor", "bare concrete", "a smooth grey floor"),
    "woven": ("a woven mat", "a carpet", "a rug"),
}
BACKDROP_WORDS = {
    "plain": ("a plain {c} wall", "a {c} wall"),
    "brick": ("a {c} brick wall", "a wall of {c} bricks"),
    "papered": ("{c} striped wallpaper", "a wall with {c} stripes"),
    "panelled": ("{c} panelling", "a {c} panelled wall"),
}


def _one(rng: Pick, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _plural(noun: str) -> str:
    return PLURALS.get(noun, noun + "s")


def _joined(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


class _Speaker:
    """One person's choice of words: the same noun for the same shape throughout a caption."""

    def __init__(self, scene: Scene, rng: Pick) -> None:
        self.scene, self.rng = scene, rng
        self.noun = {shape: _one(rng, words) for shape, words in NOUNS.items()}
        self.size = {size: _one(rng, words) for size, words in SIZE_WORDS.items()}
        self.material = {material: _one(rng, words) for material, words in MATERIAL_WORDS.items()}
        self.where = scene.screen()  # [things, 3]

    def full(self, thing: Thing) -> str:
        words = (self.size[thing.size], self.material[thing.material], thing.colour, self.noun[thing.shape])
        return " ".join(w for w in words if w)

    def brief(self, thing: Thing) -> str:
        """As few words as tell this thing from the others: shape, else colour and shape, else everything."""
        others = [t for t in self.scene.things if t is not thing]
        if all(t.shape != thing.shape for t in others) and self.rng.random() < 0.4:
            return self.noun[thing.shape]
        if all((t.shape, t.colour) != (thing.shape, thing.colour) for t in others):
            return f"{thing.colour} {self.noun[thing.shape]}"
        return self.full(thing)

    def unique(self, thing: Thing) -> bool:
        """Whether the full words fit this thing alone: without a word for the material they fit any material."""

        def fits(t: Thing) -> bool:
            alike = (t.size, t.colour, t.shape) == (thing.size, thing.colour, thing.shape)
            return alike and (not self.material[thing.material] or t.material == thing.material)

        return sum(fits(t) for t in self.scene.things) == 1

    def ordered(self) -> list[Thing]:
        """From left to right, from front to back, or by size, as it comes."""
        keys = (
            lambda i: self.where[i, 0],
            lambda i: self.where[i, 2],
            lambda i: -self.scene.things[i].radius,
        )
        key = keys[int(self.rng.integers(3))]
        return [self.scene.things[i] for i in sorted(range(len(self.scene.things)), key=key)]

    def ground(self) -> str:
        return _one(self.rng, GROUND_WORDS[self.scene.ground])

    def backdrop(self) -> str:
        return _one(self.rng, BACKDROP_WORDS[self.scene.backdrop]).format(c=self.scene.backdrop_colour)

    def relation(self, a: int, b: int) -> str | None:
        """What is plain about where thing a stands, seen from thing b."""
        across, deep = self.where[a, 0] - self.where[b, 0], self.where[a, 2] - self.where[b, 2]
        said = []
        if abs(across) > 0.25:
            said.append("to the left of" if across < 0 else "to the right of")
        if abs(deep) > 0.9:
            said.append("in front of" if deep < 0 else "behind")
        return said[int(self.rng.integers(len(said)))] if said else None


def _everything(scene: Scene, rng: Pick) -> str:
    s = _Speaker(scene, rng)
    things = _joined([_article(s.full(t)) for t in s.ordered()])
    opening = (
        "{t} on {g}",
        "there {v} {t} on {g}",
        "{t}, standing on {g}",
        "on {g} there {v} {t}",
        "a picture of {t} on {g}",
    )
    verb = "is" if len(scene.things) == 1 else "are"
    return _sentence(_one(rng, opening).format(t=things, g=s.ground(), v=verb))


def _whereabouts(scene: Scene, rng: Pick) -> str:
    s = _Speaker(scene, rng)
    pairs = [(a, b) for a in range(len(scene.things)) for b in range(len(scene.things)) if a != b]
    for a, b in rng.permutation(pairs) if pairs else []:
        first, second = scene.things[a], scene.things[b]
        relation = s.relation(a, b)
        if relation and s.unique(first) and s.unique(second):
            frames = ("the {a} is {r} the {b}", "{A} stands {r} the {b}", "{r} the {b} there is {A}")
            frame = _one(rng, frames)
            return _sentence(frame.format(a=s.brief(first), A=_article(s.full(first)), b=s.brief(second), r=relation))
    at = int(rng.integers(len(scene.things)))
    x, depth = s.where[at, 0], s.where[at, 2] - scene.distance
    side = "on the left" if x < -0.22 else "on the right" if x > 0.22 else "in the middle"
    far = ", close to us" if depth < -0.8 else ", towards the back" if depth > 0.8 else ""
    return _sentence(f"{_article(s.full(scene.things[at]))} {side} of the picture{far}")


def _tally(scene: Scene, rng: Pick) -> str:
    s = _Speaker(scene, rng)
    n = len(scene.things)
    attribute = _one(rng, ("shape", "colour", "size"))
    counts = Counter(getattr(t, attribute) for t in scene.things)
    parts = []
    for value, count in counts.most_common():
        if attribute == "shape":
            noun = s.noun[value]
            parts.append(f"{NUMBERS[count]} {noun if count == 1 else _plural(noun)}")
        else:
            word = s.size[value] if attribute == "size" else value
            noun = _one(rng, ("thing", "object"))
            parts.append(f"{NUMBERS[count]} {word} {noun if count == 1 else _plural(noun)}")
    total = f"{NUMBERS[n]} {_one(rng, ('object', 'thing', 'shape'))}{'s' if n > 1 else ''}"
    frames = ("{total}: {parts}", "i see {parts}", "{parts}, {n} in all", "a scene with {parts}")
    frame = frames[int(rng.integers(len(frames)))] if n > 1 else "just {parts}"
    said = frame.format(total=total, parts=_joined(parts), n=NUMBERS[n])
    return _sentence(said)


def _remark(scene: Scene, rng: Pick) -> str:
    s = _Speaker(scene, rng)
    thing = scene.things[int(np.argmax([t.radius for t in scene.things]))] if rng.random() < 0.6 else s.ordered()[0]
    frames = (
        "{a}",
        "look, {a}",
        "there is {a}",
        "{a} and not much else" if len(scene.things) == 1 else "{a}, among others",
    )
    return _sentence(_one(rng, frames).format(a=_article(s.brief(thing))))


def _surroundings(scene: Scene, rng: Pick) -> str:
    s = _Speaker(scene, rng)
    things = _joined([_article(s.brief(t)) for t in s.ordered()])
    frames = (
        "a room with {b} and {g}, and in it {t}",
        "{t} in front of {b}",
        "a rendering of {t} on {g} before {b}",
        "behind {t} there is {b}; the ground is {g}",
    )
    return _sentence(_one(rng, frames).format(b=s.backdrop(), g=s.ground(), t=things))


def describe(scene: Scene, index: int, split: str) -> tuple[str, ...]:
    """The five captions of scene number `index` of a split; deterministic."""
    rng = np.random.default_rng([*b"captions", *split.encode(), int(index)])
    others = [_whereabouts, _tally, _remark, _surroundings]
    order = rng.permutation(len(others))
    return tuple(view(scene, rng) for view in [_everything, *(others[i] for i in order)])
