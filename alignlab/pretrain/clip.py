"""`clip-tiny`: a small CLIP of open_clip's own classes, trained on pictures with captions, and how well it tells them apart.

It is the judge of captions in the embedded laboratory. The loss is open_clip's; a step's pictures are cut anew and take
their first caption and one of the others, so that the dearer half of the work, the pictures', is done once for two.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignlab.captioning.clip import PROMPT, CLIPScorer
from alignlab.data import ImageTextDataset, load_dataset
from alignlab.data.named import SCENES
from alignlab.files import write_tensors
from alignlab.models.encoder import normalise
from alignlab.models.open_clip_encoder import CLIP_TINY, register
from alignlab.pretrain.pool import held_out
from alignlab.training import Recipe, adamw, autocast, descend, train

if TYPE_CHECKING:
    from alignlab.pretrain.run import Run

ARCHITECTURE: dict[str, Any] = {
    "embed_dim": 128,
    # A small ResNet, built as open_clip's RN50.
    "vision_cfg": {"image_size": 64, "layers": [1, 2, 2, 1], "width": 20},
    "text_cfg": {"context_length": 48, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
KEPT = 80  # pixels of a picture in memory: the smallest crop is then no smaller than what the model reads
LEAST = 0.85  # of a picture's side that a crop keeps; things at the margin of a scene stay in view
VIEWS = 2  # captions of a picture in a step
WARMEST = math.log(100)  # of the logits' scale, as in Radford et al. 2021
SIDES = re.compile(r"\b(left|right)", re.IGNORECASE)


@dataclass(frozen=True)
class Pairs:
    """What is learnt from: pictures uint8 `[N, KEPT, KEPT, 3]`, and every caption's tokens, with and without the prompt.

    Captions `first[i]` to `first[i + 1]` are picture i's; `sided` are those that say left or right.
    """

    pictures: np.ndarray
    tokens: Tensor  # int32 [2, M, context]: as it stands, after the judge's prompt
    first: np.ndarray  # int64 [N + 1]
    sided: np.ndarray  # bool [M]

    def __len__(self) -> int:
        return len(self.pictures)


def training_items(source: str) -> tuple[ImageTextDataset, list[int]]:
    """A source's set, and the indices of those of its items that are learnt from: all but every fifth.

    "scenes" stands for the training split, of which all are learnt from: the shipped ones are for measuring.
    """
    name, colon, count = source.partition(":")
    if name in SCENES:
        data = load_dataset(f"scenes-train{colon}{count}")
        return data, list(range(len(data)))
    data = load_dataset(source)
    kept_back = set(held_out(data))
    return data, [i for i in range(len(data)) if i not in kept_back]


def read_pairs(sets: list[tuple[ImageTextDataset, list[int]]], tokenize: Any) -> Pairs:
    """Decode these items of these sets; ValueError for fewer than two, which leave nothing to tell apart."""
    pictures: list[np.ndarray] = []
    captions: list[str] = []
    first = [0]
    for data, indices in sets:
        for i in indices:
            item = data[i]
            pictures.append(_square(item.image))
            captions += item.captions
            first.append(len(captions))
    if len(pictures) < 2:
        names = ", ".join(data.name for data, _ in sets)
        raise ValueError(
            f"clip learns from 2 pictures or more, {names} leaves {len(pictures)}; every fifth is held out"
        )
    told = [tokenize(captions), tokenize([PROMPT + caption for caption in captions])]
    sided = np.array([bool(SIDES.search(caption)) for caption in captions])
    return Pairs(np.stack(pictures), torch.stack(told).int(), np.array(first), sided)


def _square(image: Any) -> np.ndarray:
    """The middle of a picture, as open_clip's preprocessing cuts it."""
    from PIL import Image, ImageOps

    return np.asarray(ImageOps.fit(image, (KEPT, KEPT), Image.Resampling.BICUBIC))


def drawn(pairs: Pairs, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Crops `[B, 3, S, S]` in 0..1 of the pictures of these indices `[B]`, and `VIEWS` captions' tokens `[VIEWS, B, context]`.

    The first caption counts as the fullest, so it always comes; the others take turns, and in half of the cases the
    judge's prompt stands before it. Half of the pictures are mirrored, but never one of which it is said what is left or right.
    Drawn from torch's generator, which `train` seeds for every step.
    """
    from PIL import Image

    size = ARCHITECTURE["vision_cfg"]["image_size"]
    crops, rows = [], []
    for i, chance in zip(chosen.tolist(), torch.rand(len(chosen), 4 + VIEWS).tolist(), strict=True):
        start, end = pairs.first[i : i + 2]
        others = max(end - start - 1, 1)
        said = [start, min(start + 1 + int(chance[0] * others), end - 1)]
        rows.append([(int(chance[4 + view] < 0.5), row) for view, row in enumerate(said)])
        side = KEPT * (LEAST + (1 - LEAST) * chance[1])
        left, top = (share * (KEPT - side) for share in chance[2:4])
        crop = Image.fromarray(pairs.pictures[i]).resize(
            (size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side)
        )
        crops.append(np.asarray(crop))
    images = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255  # [B, S, S, 3] -> [B, 3, S, S]
    wanted = torch.tensor(rows)  # [B, VIEWS, 2]
    mirrored = (torch.rand(len(chosen)) < 0.5) & ~torch.from_numpy(pairs.sided)[wanted[..., 1]].any(1)
    images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    texts = pairs.tokens[wanted[..., 0], wanted[..., 1]]  # [B, VIEWS, context]
    return images, texts.transpose(0, 1).long()  # [VIEWS, B, context]


def batch_of(pairs: int, size: int, step: int, seed: int) -> Tensor:
    """Which pictures step number `step` learns from: `[size]` different ones; every one comes once before any comes again."""
    size = min(size, pairs)
    rounds = pairs // size  # in a pass; what is left over waits for the next
    order = np.random.default_rng([seed, step // rounds]).permutation(pairs)
    at = step % rounds * size
    return torch.from_numpy(order[at : at + size])


def build(known: Tensor) -> Any:
    """A new model. Of the tokenizer's 49,408 tokens only `known` have a meaning; the others are nothing, and stay it."""
    import open_clip

    model = open_clip.CLIP(**ARCHITECTURE)
    unknown = torch.ones(ARCHITECTURE["text_cfg"]["vocab_size"], dtype=torch.bool)
    unknown[known.unique().long()] = False
    with torch.no_grad():
        model.token_embedding.weight[unknown] = 0
    return model


class ImageText:
    """Radford et al. 2021: of a batch's captions, name the one that is the picture's, and the other way round."""

    def __init__(self, model: Any, pairs: Pairs, recipe: Recipe) -> None:
        from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
        from open_clip.loss import ClipLoss

        self.recipe, self.pairs = recipe, pairs
        self.mean, self.std = OPENAI_DATASET_MEAN, OPENAI_DATASET_STD  # open_clip's own where a model names no others
        self.contrast = ClipLoss()
        model.visual.to(memory_format=torch.channels_last)  # faster on CPU
        self.modules = nn.ModuleDict({"model": model})
        self.optimisers: dict[str, torch.optim.Optimizer] = {"model": adamw(model, recipe)}

    def step(self, images: Tensor, done: float) -> dict[str, float]:
        """One update; `images` are indices of pairs `[B]`, from which pictures and captions are drawn."""
        model: Any = self.modules["model"]
        crops, tokens = drawn(self.pairs, images.cpu())
        shown = normalise(crops.to(images.device), self.mean, self.std).contiguous(memory_format=torch.channels_last)
        with autocast(images.device.type, self.recipe.dtype):
            seen = model.encode_image(shown)  # [B, E]
            told = model.encode_text(tokens.flatten(0, 1).to(images.device))  # [VIEWS, B, context] -> [VIEWS * B, E]
        seen = F.normalize(seen.float(), dim=-1)
        views = F.normalize(told.float(), dim=-1).chunk(VIEWS)  # [B, E] each
        scale = model.logit_scale.exp()
        loss = torch.stack([self.contrast(seen, view, scale) for view in views]).mean()
        descend(self.optimisers["model"], loss, self.recipe.clip)
        with torch.no_grad():
            model.logit_scale.clamp_(0, WARMEST)
        return {"loss": float(loss.detach()), "scale": float(scale.detach())}


def pretrain(run: Run) -> dict[str, Any]:
    """Train to the end of the recipe (resuming what `run.out` holds) and write the checkpoint there.

    Raises ValueError for a batch of one, and as `read_pairs`.
    """
    import open_clip

    if run.recipe.batch < 2:
        raise ValueError(f"clip tells the pictures of a batch apart: it takes 2 or more, got {run.recipe.batch}")
    tokenizer = open_clip.SimpleTokenizer(context_length=ARCHITECTURE["text_cfg"]["context_length"])
    torch.manual_seed(run.recipe.seed)
    sets = [training_items(source) for source in run.data]
    pairs = read_pairs(sets, tokenizer)
    goal = ImageText(build(pairs.tokens), pairs, run.recipe)
    history = train(
        goal,
        lambda step: batch_of(len(pairs), run.recipe.batch, step, run.recipe.seed),
        run.recipe,
        run.out,
        "pretrain clip",
        run.device,
        about={
            "kind": "clip",
            "architecture": ARCHITECTURE,
            "data": [data.fingerprint for data, _ in sets],
        },
    )
    save(goal.modules["model"], run.out)
    return history | {"items": len(pairs), "captions": int(pairs.first[-1]), "tokens": len(pairs.tokens.unique())}


def save(model: nn.Module, folder: Path) -> None:
    """Weights as safetensors, matrices and kernels in float16, and the architecture as open_clip's factory reads it."""
    state = {name: x.half() if x.ndim > 1 and x.is_floating_point() else x for name, x in model.state_dict().items()}
    write_tensors(folder / "model.safetensors", state)
    (folder / f"{CLIP_TINY}.json").write_text(json.dumps(ARCHITECTURE, indent=2) + "\n")


def load(folder: Path) -> Any:
    """The checkpoint in a folder, by open_clip's factory; ValueError where there is none."""
    import open_clip

    held = str(register(folder))
    return open_clip.create_model(CLIP_TINY, pretrained=held, pretrained_text=False, weights_only=True).eval()


def recall_at(scores: Tensor, k: int) -> float:
    """How often the right answer is among the k best: of `[N, N]`, larger being better, row i's right answer is column i.

    Equal scores are taken to be in random order, and the recall is its mean over all orders: a model that gives everything
    the same score has chance, k / N, not 1. Raises ValueError for scores that are not square or not finite, k < 1, k > N.

    >>> recall_at(torch.eye(4), 1), recall_at(torch.ones(4, 4), 1)
    (1.0, 0.25)
    """
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1] or not scores.numel():
        raise ValueError(f"scores must be [N, N] with N >= 1, got {list(scores.shape)}")
    if not bool(scores.isfinite().all()):
        raise ValueError("scores must be finite, got NaN or inf")
    if not 1 <= k <= len(scores):
        raise ValueError(f"k must be in 1..{len(scores)}, got {k}")
    right = scores.diagonal()[:, None]  # [N, 1]
    before = (scores > right).sum(1)  # [N]
    level = (scores == right).sum(1)  # the right one among them
    return float(((k - before).double() / level).clamp(0, 1).mean())


def retrieval(image: Tensor, text: Tensor) -> dict[str, float]:
    """Recall in percent both ways, beside chance, of N pictures' and captions' embeddings `[N, D]`, pairwise."""
    scores = F.normalize(image.double(), dim=-1) @ F.normalize(text.double(), dim=-1).T  # [N, N]
    ways = {"image to text": scores, "text to image": scores.T}
    ks = [k for k in (1, 5) if k <= len(scores)]
    found = {f"{way} R@{k} (%)": 100 * recall_at(table, k) for way, table in ways.items() for k in ks}
    return found | {f"chance of R@{k} (%)": 100 * k / len(scores) for k in ks}


def measure(run: Run) -> dict[str, dict[str, float]]:
    """Retrieval by the checkpoint in `run.out`, read as a judge is: the shipped scenes, and what was held out of other sets."""
    judge = CLIPScorer(str(run.out.resolve()))  # a folder here may be called as the shipped one is
    measured = {}
    for source in dict.fromkeys(("scenes", *(s for s in run.data if s.partition(":")[0] not in SCENES))):
        data = load_dataset(source)
        indices = list(range(len(data))) if source == "scenes" else held_out(data)
        image = judge.image_embeddings(data[i].image for i in indices)
        captions = data.captions
        text = judge.text_embeddings([captions[i][0] for i in indices])
        measured[f"{data.name} ({len(indices)} items)"] = retrieval(image, text)
    return measured
