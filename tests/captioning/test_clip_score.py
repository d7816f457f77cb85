"""CLIPScore against its definition written out, and CLIPScorer against open_clip's own forward passes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import alignlab as al
from alignlab.captioning import CLIPScorer, clip_score, ref_clip_score

VISION = {"image_size": 32, "patch_size": 8, "width": 24, "layers": 2, "head_width": 12}
TEXT = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
NAMES = ("small-judge", "small-judge-custom")


@pytest.fixture(scope="module", autouse=True)
def architectures(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("open_clip")
    for name in NAMES:
        config = {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT, "custom_text": name.endswith("custom")}
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Path]]:
    made = {}
    for name in NAMES:
        torch.manual_seed(1)
        model = open_clip.create_model(name, load_weights=False).eval()
        path = tmp_path_factory.mktemp("weights") / f"{name}.safetensors"
        save_file(model.state_dict(), path)
        made[name] = (model, path)
    return made


@pytest.fixture(scope="module")
def judge(weights: dict[str, tuple[Any, Path]]) -> CLIPScorer:
    return CLIPScorer("small-judge", str(weights["small-judge"][1]), batch=2)


def pictures(n: int) -> list[Image.Image]:
    drawn = np.random.default_rng(0)
    return [Image.fromarray(drawn.integers(256, size=(40 + i, 60, 3), dtype=np.uint8)) for i in range(n)]


def embeddings(n: int, d: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = torch.Generator().manual_seed(0)
    image, text = (torch.randn(n, d, generator=drawn) for _ in range(2))
    return image, text + 0.5 * image


def cosine(a: list[float], b: list[float]) -> float:
    dot = math.fsum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(math.fsum(x * x for x in a) * math.fsum(y * y for y in b))


def written_out(image: torch.Tensor, text: torch.Tensor, refs: list[torch.Tensor]) -> list[tuple[float, float]]:
    scores = []
    for i, t, group in zip(image.tolist(), text.tolist(), refs, strict=True):
        seen = 2.5 * max(cosine(i, t), 0)
        told = max(0, *(cosine(t, r) for r in group.tolist()))
        scores.append((seen, 2 / (1 / seen + 1 / told) if seen and told else 0.0))
    return scores


def test_scores_are_the_definition() -> None:
    image, text = embeddings(40)
    refs = [torch.randn(1 + i % 4, 8, generator=torch.Generator().manual_seed(i)) for i in range(40)]
    expected = torch.tensor(written_out(image, text, refs))
    assert int((expected == 0).all(1).sum()) > 0  # some captions are worth nothing, most something
    assert int((expected > 0).all(1).sum()) > 20
    torch.testing.assert_close(clip_score(image, text), expected[:, 0])
    torch.testing.assert_close(ref_clip_score(image, text, refs), expected[:, 1])
    torch.testing.assert_close(ref_clip_score(3 * image, 0.1 * text, [7 * r for r in refs]), expected[:, 1])
    stacked = torch.stack([r[:1].repeat(2, 1) for r in refs])  # [N, R, D]
    torch.testing.assert_close(ref_clip_score(image, text, stacked), ref_clip_score(image, text, [r[:1] for r in refs]))


def test_perfect_and_opposite() -> None:
    one = torch.eye(3)
    assert clip_score(one, one).tolist() == [2.5] * 3
    assert clip_score(one, -one).tolist() == [0.0] * 3
    torch.testing.assert_close(ref_clip_score(one, one, one[:, None]), torch.full((3,), 5 / 3.5))
    zero = ref_clip_score(one, -one, one[:, None])
    assert zero.tolist() == [0.0] * 3  # 0/0 in the authors' code
    assert clip_score(one, torch.zeros(3, 3)).tolist() == [0.0] * 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_scored_in_float32(dtype: torch.dtype) -> None:
    image, text = (x.to(dtype) for x in embeddings(5))
    assert clip_score(image, text).dtype == torch.float32
    torch.testing.assert_close(clip_score(image, text), clip_score(image.float(), text.float()))
    assert clip_score(image.double(), text.double()).dtype == torch.float64
    assert ref_clip_score(image, text, image[:, None]).dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, b, r: (a[:3], b, r), r"must both be \[N, D\] with N >= 1, got \[3, 8\] and \[4, 8\]"),
        (lambda a, b, r: (a[0], b[0], r), r"must both be \[N, D\]"),
        (lambda a, b, r: (a[:0], b[:0], r[:0]), r"must both be \[N, D\]"),
        (lambda a, b, r: (a, b * math.nan, r), "text_emb must be finite"),
        (lambda a, b, r: (a, b, r[:3]), "references for 4 captions, got 3"),
        (lambda a, b, r: (a, b, [*r[:3], r[3][:0]]), r"ref_embs\[3\] must be \[R, 8\] with R >= 1, got \[0, 8\]"),
        (lambda a, b, r: (a, b, [*r[:3], r[3][:, :5]]), r"ref_embs\[3\] must be \[R, 8\]"),
        (lambda a, b, r: (a, b, [*r[:3], r[3] / 0]), r"ref_embs\[3\] must be finite"),
    ],
)
def test_bad_embeddings(change: Any, message: str) -> None:
    image, text = embeddings(4)
    with pytest.raises(ValueError, match=message):
        ref_clip_score(*change(image, text, [text[:2].clone() for _ in range(4)]))


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_judge_is_open_clips_forward_pass(name: str, weights: dict[str, tuple[Any, Path]]) -> None:
    model, path = weights[name]
    scorer = CLIPScorer(f"open_clip:{name}/{path}", batch=2)
    assert scorer.judge.startswith(f"open_clip:{name}/{name}.safetensors@sha256:")
    images, captions = pictures(5), ["a red cube", "Two dogs!", "it's a cone", "x", "a b c"]
    _, _, preprocess = open_clip.create_model_and_transforms(name, load_weights=False)
    tokens = open_clip.get_tokenizer(name)([f"A photo depicts {caption}" for caption in captions])
    image = model.encode_image(torch.stack([preprocess(x) for x in images]), normalize=True)
    text = model.encode_text(tokens, normalize=True)
    torch.testing.assert_close(scorer.text_embeddings(captions), model.encode_text(tokens), atol=1e-5, rtol=1e-4)
    result = scorer.score(iter(images), captions, [[c, "a thing"] for c in captions])
    torch.testing.assert_close(result.clip_score, 2.5 * (image * text).sum(-1).clamp(min=0), atol=1e-5, rtol=1e-4)
    seen, ref = result.clip_score, result.ref_clip_score
    assert ref is not None
    torch.testing.assert_close(ref, 2 * seen / (seen + 1), atol=1e-5, rtol=1e-4)  # a reference is the caption itself
    assert (result.judge, result.note) == (scorer.judge, None)


def test_files_tensors_and_pictures_are_the_same_image(judge: CLIPScorer, tmp_path: Path) -> None:
    image = pictures(1)[0]
    image.save(tmp_path / "x.png")
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()[None] / 255
    expected = judge.image_embeddings([image])
    assert expected.dtype == torch.float32
    torch.testing.assert_close(judge.image_embeddings([tmp_path / "x.png"]), expected)
    torch.testing.assert_close(judge.image_embeddings(tensor), expected)


def test_autocast_around_it_changes_nothing(judge: CLIPScorer) -> None:
    expected = judge.score(pictures(2), ["a", "b"]).clip_score
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(judge.score(pictures(2), ["a", "b"]).clip_score, expected)


def test_captions_that_are_too_long_are_cut_and_counted(judge: CLIPScorer) -> None:
    assert judge.context_length == 12  # start, "a photo depicts", end: seven words are left
    fits, longer = "a b c d e f g", "a b c d e f g h"
    result = judge.score(pictures(3), [fits, longer, longer + " i j"], [[fits], [longer], [fits, longer]])
    assert (result.truncated, result.truncated_references) == (2, 2)
    torch.testing.assert_close(*judge.text_embeddings([longer, fits + " x y z"]).unbind())
    assert judge.score(pictures(1), [fits]).truncated == 0


def test_without_references_it_says_so(judge: CLIPScorer) -> None:
    result = judge.score(pictures(3), ["a", "b", "c"], [["a"], [], ["c"]])
    assert result.ref_clip_score is None
    assert result.note == "RefCLIPScore is left out: 1 of 3 images have no references"
    assert len(result.clip_score) == 3
    assert judge.score(pictures(1), ["a"]).note == "RefCLIPScore is left out: there are no references"


@pytest.mark.parametrize(
    ("images", "captions", "references", "message"),
    [
        (2, ["a", " "], None, r"captions\[1\] must be a string that is not empty"),
        (2, [], None, "captions must be a list of one string or more"),
        (1, "a", None, "captions must be a list"),
        (2, ["a"], None, "one caption an image, got 2 images and 1 captions"),
        (0, ["a"], None, "there are no images"),
        (1, ["a"], [["a"], ["b"]], "1 captions need as many lists of references, got 2"),
        (1, ["a"], [["a", ""]], r"captions\[1\] must be a string that is not empty"),
        (1, ["a"], ["a"], r"references\[0\] must be a list of strings"),
    ],
)
def test_bad_input(judge: CLIPScorer, images: int, captions: Any, references: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        judge.score(pictures(images), captions, references)


def test_bad_image_tensors(judge: CLIPScorer) -> None:
    with pytest.raises(ValueError, match=r"\[3, H, W\], floats in 0..1, got \[1, 8, 8\]"):
        judge.image_embeddings(torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match=r"in 0..1, got 0..255"):
        judge.image_embeddings(torch.tensor([0.0, 255.0]).expand(1, 3, 8, 2))


def test_judges_that_cannot_be_had(weights: dict[str, tuple[Any, Path]], tmp_path: Path) -> None:
    (tmp_path / "bad.pt").write_bytes(b"no weights")
    save_file({"visual.x": torch.zeros(1)}, tmp_path / "other.safetensors")
    for arguments, message in {
        ("vit-b-32", "openai"): "no model 'vit-b-32'; did you mean ViT-B-32",
        ("RN50", "opnai"): "no weights 'opnai' for RN50",
        ("open_clip:RN50",): "names no weights",
        ("open_clip:RN50/openai@random",): "judge nothing",
        ("small-judge", str(tmp_path / "bad.pt")): "bad.pt cannot be read as small-judge",
        ("small-judge", str(tmp_path / "other.safetensors")): "cannot be read as small-judge: .*Missing key",
    }.items():
        with pytest.raises(ValueError, match=message) as caught:
            CLIPScorer(*arguments)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="batch must be 1 or more, got 0"):
        CLIPScorer("small-judge", str(weights["small-judge"][1]), batch=0)


def test_a_hub_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RuntimeError, match="could not load 'open_clip:RN50/openai' from the hub: no network") as caught:
        CLIPScorer("RN50", "openai")
    assert "\n" not in str(caught.value)


def test_it_is_at_the_top() -> None:
    assert al.captioning.clip_score is clip_score
