"""clip-tiny: it learns, resumes to the same bits, loads in open_clip's factory, and its card tells what the file does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from alignlab.captioning import CLIPScorer
from alignlab.captioning.clip import PROMPT
from alignlab.data import load_dataset
from alignlab.models.catalogue import BY_NAME
from alignlab.models.open_clip_encoder import register
from alignlab.models.weights import sha256_file
from alignlab.paths import shipped
from alignlab.pretrain import clip
from alignlab.pretrain.card import write_card
from alignlab.pretrain.clip import Pairs, batch_of, build, drawn, read_pairs, recall_at, retrieval, training_items
from alignlab.pretrain.run import RECIPES, Run, pretrain
from alignlab.training import Recipe, train

COLOURS = {"red": (200, 20, 20), "green": (20, 160, 30), "blue": (20, 30, 190), "white": (230, 230, 230)}
SHIPPED = shipped("checkpoints", "clip-tiny")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty pictures of an upper and a lower half, each with three captions, so that sixteen are learnt from."""
    root = tmp_path_factory.mktemp("halves")
    halves = [(a, b) for a in COLOURS for b in COLOURS] + [("red", "blue")] * 4
    lines = []
    for i, (upper, lower) in enumerate(halves):
        pixels = np.zeros((70, 90, 3), np.uint8)
        pixels[:35], pixels[35:] = COLOURS[upper], COLOURS[lower]
        Image.fromarray(pixels).save(root / f"{i:02d}.png")
        captions = [f"{upper} above {lower}", f"something {lower}", f"{upper} from left to right"]
        lines.append(json.dumps({"image": f"{i:02d}.png", "captions": captions}))
    (root / "captions.jsonl").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train something still smaller."""
    vision = {**clip.ARCHITECTURE["vision_cfg"], "layers": [1, 1, 1, 1], "width": 10}
    text = {**clip.ARCHITECTURE["text_cfg"], "width": 16}
    monkeypatch.setattr(clip, "ARCHITECTURE", {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text})


@pytest.fixture(scope="module")
def pairs(folder: Path) -> Pairs:
    return read_pairs([training_items(str(folder))], open_clip.SimpleTokenizer(context_length=48))


def small(folder: Path, out: Path, **changes: object) -> Run:
    recipe = replace(RECIPES["clip"], steps=4, batch=8, dtype="float32", **changes)  # type: ignore[arg-type]
    return Run("clip", (str(folder),), recipe, out)


def test_every_fifth_item_of_a_folder_is_held_out(folder: Path, pairs: Pairs) -> None:
    assert len(pairs) == 16
    assert pairs.first.tolist() == list(range(0, 49, 3))
    assert pairs.sided.tolist() == [False, False, True] * 16
    captions = load_dataset(str(folder)).captions
    tokenize = open_clip.SimpleTokenizer(context_length=48)
    assert torch.equal(pairs.tokens[0, :3], tokenize(captions[1]).int())
    assert torch.equal(pairs.tokens[1, :3], tokenize([PROMPT + caption for caption in captions[1]]).int())


def test_scenes_to_learn_from_are_those_of_the_training_split() -> None:
    data, indices = training_items("scenes-train:8")
    assert data.name == "scenes-train"
    assert indices == list(range(8))
    assert not set(data.captions) & set(load_dataset("scenes").captions)


def test_a_step_draws_the_first_caption_and_another_of_the_same_picture(pairs: Pairs) -> None:
    chosen = torch.tensor([3, 0, 15] * 20)
    torch.manual_seed(0)
    images, tokens = drawn(pairs, chosen)
    assert images.shape == (60, 3, 64, 64)
    assert tokens.shape == (2, 60, 48)
    with_and_without, rows = set(), set()
    for view in range(2):
        for at, i in enumerate(chosen.tolist()):
            same = (pairs.tokens == tokens[view, at].int()).all(2)  # [2, M]
            prompted, row = (int(x) for x in same[:, 3 * i : 3 * i + 3].nonzero()[0])
            assert row == 0 if view == 0 else row > 0
            with_and_without.add(prompted)
            rows.add(row)
    assert with_and_without == {0, 1}
    assert rows == {0, 1, 2}
    torch.manual_seed(0)
    again, _ = drawn(pairs, chosen)
    assert torch.equal(images, again)


def test_a_picture_with_one_caption_shows_it_twice(pairs: Pairs) -> None:
    one = Pairs(pairs.pictures[:2], pairs.tokens[:, [0, 3]], np.array([0, 1, 2]), np.zeros(2, bool))
    _, tokens = drawn(one, torch.tensor([1, 1, 0]))
    for view in tokens:
        for row, i in zip(view.int(), (1, 1, 0), strict=True):
            assert any(torch.equal(row, said) for said in one.tokens[:, i])


def test_what_is_said_to_be_left_stays_left(pairs: Pairs) -> None:
    pixels = np.zeros((1, clip.KEPT, clip.KEPT, 3), np.uint8)
    pixels[:, :, : clip.KEPT // 2] = 255  # white on the left
    for sided in (True, False):
        one = Pairs(pixels, pairs.tokens[:, :1], np.array([0, 1]), np.array([sided]))
        torch.manual_seed(0)
        images, _ = drawn(one, torch.zeros(40, dtype=torch.long))
        on_the_left = images[..., :10].mean((1, 2, 3)) > 0.5
        assert on_the_left.all() if sided else 8 < int(on_the_left.sum()) < 32


def test_a_pass_shows_every_picture_once() -> None:
    seen = torch.cat([batch_of(10, 5, step, seed=1) for step in range(2)])
    assert sorted(seen.tolist()) == list(range(10))
    assert not torch.equal(seen, torch.cat([batch_of(10, 5, step, seed=1) for step in (2, 3)]))
    assert len(batch_of(3, 8, 0, seed=0)) == 3


def brute_recall(scores: list[list[float]], k: int) -> float:
    """Mean over every order that equal scores may stand in."""
    total = 0.0
    for i, row in enumerate(scores):
        places = [sum(x > row[i] for x in row) + after for after in range(sum(x == row[i] for x in row))]
        total += sum(place < k for place in places) / len(places)
    return total / len(scores)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_recall_is_the_brute_force_one(k: int) -> None:
    drawn_scores = torch.randn(40, 40, generator=torch.Generator().manual_seed(k))
    hits = [i in row.argsort(descending=True)[:k].tolist() for i, row in enumerate(drawn_scores)]
    assert recall_at(drawn_scores, k) == pytest.approx(np.mean(hits))
    coarse = drawn_scores.round()  # many ties
    assert recall_at(coarse, k) == pytest.approx(brute_recall(coarse.tolist(), k))


def test_a_model_that_tells_nothing_apart_has_chance() -> None:
    found = retrieval(torch.ones(20, 4), torch.randn(20, 4))
    assert found["image to text R@1 (%)"] == pytest.approx(5)  # every picture names the same caption
    assert found["text to image R@1 (%)"] == found["chance of R@1 (%)"] == 5
    assert found["text to image R@5 (%)"] == found["chance of R@5 (%)"] == 25


@pytest.mark.parametrize(
    ("scores", "k", "message"),
    [
        (torch.ones(2, 3), 1, r"scores must be \[N, N\]"),
        (torch.ones(0, 0), 1, r"scores must be \[N, N\]"),
        (torch.full((2, 2), float("nan")), 1, "scores must be finite"),
        (torch.ones(3, 3), 0, r"k must be in 1\.\.3, got 0"),
        (torch.ones(3, 3), 4, r"k must be in 1\.\.3, got 4"),
    ],
)
def test_bad_scores(scores: torch.Tensor, k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recall_at(scores, k)


@pytest.mark.usefixtures("narrow")
def test_it_learns(pairs: Pairs, tmp_path: Path) -> None:
    """In forty steps the loss falls, and each of the training pictures' sixteen captions finds its own far above chance."""
    torch.manual_seed(0)
    recipe = Recipe(steps=40, batch=16, lr=2e-3, warmup=5, dtype="float32")
    goal = clip.ImageText(build(pairs.tokens), pairs, recipe)
    history = train(goal, lambda step: batch_of(16, 16, step, 0), recipe, tmp_path, "clip")
    assert history["log"][-1]["loss"] < 0.75 * history["log"][0]["loss"]
    model: Any = goal.modules["model"]
    torch.manual_seed(1)
    crops, tokens = drawn(pairs, torch.arange(16))
    with torch.no_grad():
        found = retrieval(model.encode_image(clip.normalise(crops, goal.mean, goal.std)), model.encode_text(tokens[0]))
    assert found["image to text R@5 (%)"] > 2 * found["chance of R@5 (%)"]


def test_tokens_that_no_caption_holds_are_nothing(pairs: Pairs) -> None:
    weight = build(pairs.tokens).token_embedding.weight
    known = pairs.tokens.unique().long()
    assert int((weight != 0).any(1).sum()) == len(known) < 30
    assert (weight[known] != 0).any(1).all()


@pytest.mark.usefixtures("narrow")
def test_a_stopped_run_goes_on_to_the_same_bits(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from alignlab import training

    whole, stopped = small(folder, tmp_path / "whole"), small(folder, tmp_path / "stopped")
    pretrain(whole)
    calls: list[tuple[int, ...]] = []

    def fails_at_2(*arguments: int) -> torch.Tensor:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(arguments)
        return batch_of(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(training, "SAVE_EVERY", 0)
        patch.setattr(clip, "batch_of", fails_at_2)
        with pytest.raises(KeyboardInterrupt):
            pretrain(stopped)
    assert not (stopped.out / "model.safetensors").exists()
    pretrain(stopped)
    a, b = (load_file(run.out / "model.safetensors") for run in (whole, stopped))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    with pytest.raises(ValueError, match="belongs to another run: its"):
        pretrain(small(folder, stopped.out, lr=0.5))


@pytest.mark.usefixtures("narrow")
def test_a_run_ends_in_a_checkpoint_with_a_card(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = small(folder, Path("clip-tiny"))  # not to be taken for the shipped one
    shortened = load_dataset("scenes").head(12)
    monkeypatch.setattr(clip, "load_dataset", lambda name: shortened if name == "scenes" else load_dataset(name))
    measured = write_card(run, pretrain(run))
    assert list(measured) == ["scenes (12 items)", f"{folder.name} (4 items)"]
    assert measured[f"{folder.name} (4 items)"]["chance of R@1 (%)"] == 25
    card = json.loads((run.out / "card.json").read_text())
    assert card["data"] == [folder.name]
    assert card["held_out"] == measured
    assert card["pool"]["items"] == 16
    assert card["pool"]["captions"] == 48
    assert card["sha256"] == sha256_file(run.out / "model.safetensors")
    written = (run.out / "README.md").read_text()
    assert "samples.png" not in written
    assert str(folder.parent) not in written + (run.out / "card.json").read_text()
    assert (run.out / "loss.png").stat().st_size > 1000
    judge = CLIPScorer(str(run.out.resolve())).judge
    assert judge.startswith("clip-tiny@sha256:")
    assert judge != CLIPScorer("clip-tiny").judge


def test_too_little_to_tell_apart(folder: Path, tmp_path: Path) -> None:
    run = small(folder, tmp_path)
    with pytest.raises(ValueError, match="it takes 2 or more, got 1"):
        pretrain(replace(run, recipe=replace(run.recipe, batch=1)))
    (tmp_path / "one.png").write_bytes((folder / "00.png").read_bytes())
    (tmp_path / "one.txt").write_text("red above red")
    with pytest.raises(ValueError, match="leaves 0; every fifth is held out"):
        pretrain(replace(run, data=(str(tmp_path),)))


def test_folders_that_are_no_judge(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no clip-tiny\.json, which `alignlab pretrain clip` writes"):
        CLIPScorer(str(tmp_path))
    (tmp_path / "clip-tiny.json").write_text("{")
    with pytest.raises(ValueError, match=r"holds no model\.safetensors"):
        register(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"clip-tiny\.json cannot be read"):
        register(tmp_path)
    (tmp_path / "clip-tiny.json").write_text("{}")
    with pytest.raises(ValueError, match="is no model configuration of open_clip"):
        register(tmp_path)


@pytest.fixture(scope="module")
def judge() -> CLIPScorer:
    return CLIPScorer("clip-tiny")


def test_the_shipped_one_loads_in_open_clips_factory_and_is_the_judge(judge: CLIPScorer) -> None:
    open_clip.add_model_config(SHIPPED)  # as a user of open_clip would
    model, _, preprocess = open_clip.create_model_and_transforms(
        "clip-tiny", pretrained=str(SHIPPED / "model.safetensors"), pretrained_text=False
    )
    model.eval()
    data = load_dataset("scenes")
    images, captions = [data[i].image for i in range(6)], [data.captions[i][0] for i in range(6)]
    tokenize = open_clip.get_tokenizer("clip-tiny")
    with torch.no_grad():
        image = model.encode_image(torch.stack([preprocess(picture) for picture in images]))
        text = model.encode_text(tokenize([PROMPT + caption for caption in captions]))
    torch.testing.assert_close(judge.image_embeddings(images), image, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(judge.text_embeddings(captions), text, atol=1e-5, rtol=1e-4)
    expected = 2.5 * F.cosine_similarity(image, text).clamp(min=0)
    scores = judge.score(images, captions)
    torch.testing.assert_close(scores.clip_score, expected, atol=1e-5, rtol=1e-4)
    assert scores.judge.startswith("clip-tiny@sha256:")
    assert CLIPScorer("open_clip:clip-tiny").judge == scores.judge


def test_the_shipped_card_is_about_the_file_beside_it(judge: CLIPScorer) -> None:
    card = json.loads((SHIPPED / "card.json").read_text())
    assert card["sha256"] == sha256_file(SHIPPED / "model.safetensors")
    assert card["parameters"] == BY_NAME["clip-tiny"].parameters == sum(p.numel() for p in judge._model.parameters())
    assert (SHIPPED / "model.safetensors").stat().st_size < 12_000_000
    data = load_dataset("scenes")
    image = judge.image_embeddings(item.image for item in data)
    text = judge.text_embeddings([captions[0] for captions in data.captions])
    found = retrieval(image, text)
    assert found == pytest.approx(card["held_out"]["scenes (1024 items)"], abs=0.2)  # two items of 1,024
    assert min(found[f"{way} R@1 (%)"] for way in ("image to text", "text to image")) >= 20 * 100 / 1024
    right = F.cosine_similarity(image, text)
    assert (right > F.cosine_similarity(image, text.roll(1, 0))).double().mean() > 0.9  # a judge tells right from wrong
