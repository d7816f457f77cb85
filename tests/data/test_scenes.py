"""The renderer and the captions: deterministic, disjoint splits, everything said is there to be seen."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image

from alignlab.data import load_dataset
from alignlab.data.describe import BACKDROP_WORDS, GROUND_WORDS, NOUNS, NUMBERS, PLURALS, describe
from alignlab.data.render import _HIT, _normal, render, visible_shares
from alignlab.data.rendered import write_scenes
from alignlab.data.scenes import BACKDROPS, GROUNDS, MATERIALS, SHAPES, sample_scene
from alignlab.paths import shipped


def test_same_seed_same_pixels_and_other_seed_other_pixels():
    scene = sample_scene(5, "eval")
    np.testing.assert_array_equal(render(scene, 40), render(sample_scene(5, "eval"), 40))
    assert (render(scene, 40) != render(sample_scene(6, "eval"), 40)).any()


def test_splits_share_no_scene():
    evaluation = {sample_scene(i, "eval") for i in range(40)}
    training = {sample_scene(i, "train") for i in range(40)}
    assert not evaluation & training
    assert len(evaluation) == len(training) == 40


def test_any_resolution_shows_the_same_picture():
    scene = sample_scene(11, "eval")
    small = render(scene, 32, samples=4).astype(float)
    large = np.asarray(Image.fromarray(render(scene, 128)).resize((32, 32), Image.Resampling.BOX)).astype(float)
    assert np.abs(small - large).mean() < 4


def test_every_thing_is_in_view():
    for index in range(60):
        scene = sample_scene(index, "train")
        share, area = visible_shares(scene)
        assert 1 <= len(scene.things) <= 4
        assert share.min() >= 0.55
        assert area.min() >= 0.009
        assert np.abs(scene.screen()[:, :2]).max() < 1


def test_the_generator_uses_its_whole_vocabulary():
    scenes = [sample_scene(i, "train") for i in range(300)]
    things = [t for s in scenes for t in s.things]
    assert {t.shape for t in things} == set(SHAPES)
    assert {t.material for t in things} == set(MATERIALS)
    assert {s.ground for s in scenes} == set(GROUNDS) == set(GROUND_WORDS)
    assert {s.backdrop for s in scenes} == set(BACKDROPS) == set(BACKDROP_WORDS)
    assert {len(s.things) for s in scenes} == {1, 2, 3, 4}


@pytest.mark.parametrize("shape", SHAPES)
def test_rays_end_on_the_surface_with_a_normal_towards_the_eye(shape):
    rng = np.random.default_rng(0)
    origin = rng.normal(size=(4000, 3)).astype(np.float32)
    origin = 4 * origin / np.linalg.norm(origin, axis=1, keepdims=True)
    target = rng.uniform(-0.6, 0.6, size=origin.shape).astype(np.float32)
    direction = target - origin
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    t = _HIT[shape](origin, direction)
    hit = t < 100
    assert hit.mean() > 0.3
    point = origin[hit] + t[hit, None] * direction[hit]
    normal = _normal(shape, point)
    np.testing.assert_allclose(np.linalg.norm(normal, axis=1), 1, atol=1e-4)
    assert ((normal * direction[hit]).sum(1) < 0.05).mean() > 0.995
    # a step back along the ray is outside: the ray from there must find the surface again at once
    again = _HIT[shape](point - 0.05 * direction[hit], direction[hit])
    assert (np.abs(again - 0.05) < 0.01).mean() > 0.99


def _count_said(text: str, words: tuple[str, ...]) -> int | None:
    for word in words:
        for count, number in enumerate(NUMBERS):
            plural = PLURALS.get(word, word + "s")
            if re.search(rf"\b{number} ({word}|{plural})\b", text):
                return count
    return None


def test_captions_say_what_is_there():
    checked_counts = checked_relations = 0
    for index in range(300):
        scene = sample_scene(index, "eval")
        captions = describe(scene, index, "eval")
        assert len(captions) == 5
        assert captions == describe(scene, index, "eval")
        full = captions[0].lower()
        for thing in scene.things:
            assert thing.colour in full
            assert any(noun in full for noun in NOUNS[thing.shape])
        for caption in captions:
            assert caption[0].isupper()
            assert caption.endswith(".")
            assert not re.search(r"\ba [aeio]", caption.lower()), caption  # 'a orange'
            assert "  " not in caption
            text = caption.lower()
            for shape in SHAPES:
                count = _count_said(text, NOUNS[shape])
                if count is not None:
                    checked_counts += 1
                    assert count == sum(t.shape == shape for t in scene.things), caption
            relation = re.match(
                r"the ([\w ]+) is (to the left of|to the right of|in front of|behind) the ([\w ]+)\.", text
            )
            if relation:
                first, said, second = relation.groups()
                a, b = _find(scene, first), _find(scene, second)
                if a is not None and b is not None:
                    checked_relations += 1
                    across, deep = (scene.screen()[a] - scene.screen()[b])[[0, 2]]
                    holds = {"to the left of": across < 0, "to the right of": across > 0}
                    holds |= {"in front of": deep < 0, "behind": deep > 0}
                    assert holds[said], caption
    assert checked_counts > 80
    assert checked_relations > 20


def _find(scene, words: str) -> int | None:
    *_, noun = words.split()
    fits = [
        i
        for i, t in enumerate(scene.things)
        if noun in NOUNS[t.shape] and (t.colour in words or len(words.split()) == 1)
    ]
    return fits[0] if len(fits) == 1 else None


def test_five_captions_differ_from_one_another():
    different = [len(set(describe(sample_scene(i, "eval"), i, "eval"))) for i in range(100)]
    assert np.mean(different) > 4.9


def test_written_scenes_are_a_data_set(tmp_path):
    write_scenes(tmp_path / "s", n=3, split="train", size=32)
    data = load_dataset(tmp_path / "s")
    assert len(data) == 3
    assert data[0].image.size == (32, 32)
    assert len(data.captions[0]) == 5
    assert data[0].meta["scene"]["things"][0]["shape"] in SHAPES
    with pytest.raises(ValueError, match="already holds"):
        write_scenes(tmp_path / "s", n=3)
    with pytest.raises(ValueError, match="n must be 1 or more, got 0"):
        write_scenes(tmp_path / "t", n=0)


def test_shipped_scenes_are_what_the_renderer_draws():
    lines = [json.loads(line) for line in shipped("scenes", "captions.jsonl").read_text().splitlines()]
    assert len(lines) == 1024
    assert sum(p.stat().st_size for p in shipped("scenes").rglob("*") if p.is_file()) < 20e6
    for index in (0, 511, 1023):
        scene = sample_scene(index, "eval")
        assert lines[index]["captions"] == list(describe(scene, index, "eval"))
        kept = np.asarray(Image.open(shipped("scenes", lines[index]["image"]))).astype(float)
        assert kept.shape == (224, 224, 3)
        assert np.abs(kept - render(scene, 224)).mean() < 3  # JPEG


def test_the_card_counts_what_is_there():
    from collections import Counter

    card = shipped("scenes", "README.md").read_text()
    lines = [json.loads(line) for line in shipped("scenes", "captions.jsonl").read_text().splitlines()]
    things = [thing for line in lines for thing in line["scene"]["things"]]
    for word in ("shape", "colour", "material"):
        counts = Counter(thing[word] for thing in things).most_common()
        assert all(f"{value} {count}" in card for value, count in counts)
    per_scene = Counter(len(line["scene"]["things"]) for line in lines)
    assert "1 (260 scenes), 2 (246), 3 (244), 4 (274)" in card
    assert per_scene == {1: 260, 2: 246, 3: 244, 4: 274}
    captions = [caption for line in lines for caption in line["captions"]]
    assert f"{len(captions):,}, of which {len(set(captions)):,} differ" in card
    assert f"{np.mean([len(c.split()) for c in captions]):.1f} words on average" in card


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="index must be 0 or more, got -1"):
        sample_scene(-1)
    with pytest.raises(ValueError, match="size must be 8 or more"):
        render(sample_scene(0), 4)
