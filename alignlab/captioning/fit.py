"""Train the captioning probe's projector on images with captions, the encoder and the language model frozen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from alignlab import trained
from alignlab.captioning.probe import CaptionProbe
from alignlab.data import ImageTextDataset
from alignlab.models import load_encoder, load_llm
from alignlab.provenance import shown
from alignlab.restoration.batches import SquarePictures
from alignlab.restoration.fit import plain_attention
from alignlab.training import Processes, Recipe, descend, processes, train

COMMAND = "caption train"
SAMPLE = 64  # pictures whose tokens say how the projector begins

# LLaVA's first stage (paper.PROBE_RECIPE) but for its size: batch 128 and one epoch of 100,000 pairs are 782 steps.
RECIPE = Recipe(
    steps=500, batch=16, lr=2e-3, warmup=15, weight_decay=0.0, betas=(0.9, 0.999), clip=1.0, schedule="cosine"
)


@dataclass(frozen=True)
class Design:
    """Which probe: between which encoder and language model, with which words before every caption."""

    encoder: str = "mae"
    llm: str = "smollm2"
    prefix: str = ""
    seed: int = 0

    def plain(self) -> dict[str, Any]:
        """For a result: what was typed, without the folders that local models lie in."""
        return {**asdict(self), "encoder": shown(self.encoder), "llm": shown(self.llm)}


@dataclass(frozen=True)
class Run:
    """One training: with what recipe, to where; of a batch one part in `accumulate` is in memory at a time."""

    out: Path
    recipe: Recipe = field(default_factory=lambda: RECIPE)
    accumulate: int = 1
    device: str = "cpu"


class Pairs:
    """A set's pictures as squares, and one of each item's captions, drawn anew every time it is seen."""

    def __init__(self, data: ImageTextDataset, size: int, seed: int) -> None:
        self.data, self.seed = data, seed
        self.captions = data.captions
        self.pictures = SquarePictures(data, size)

    def order(self, batch: int) -> Callable[[int], Tensor]:
        """Step -> the items of that step, `[batch]`, each item once an epoch in an order of its own."""

        def items(step: int) -> Tensor:
            drawn = np.arange(step * batch, (step + 1) * batch)
            epochs, places = np.divmod(drawn, len(self.data))
            orders = {
                e: np.random.default_rng([self.seed, e]).permutation(len(self.data)) for e in set(epochs.tolist())
            }
            return torch.tensor([int(orders[e][p]) for e, p in zip(epochs.tolist(), places.tolist(), strict=True)])

        return items

    def images(self, items: Tensor) -> Tensor:
        """Items `[B]` -> `[B, 3, size, size]` in 0..1."""
        return torch.stack([self.pictures[int(i)] for i in items]).float() / 255

    def drawn(self, items: Tensor, step: int) -> list[str]:
        """A caption of each item; which one depends on the seed, the step and the item's place in the batch."""
        rng = np.random.default_rng([self.seed, step, 1])
        return [self.captions[int(i)][int(rng.integers(len(self.captions[int(i)])))] for i in items]


class Captioning:
    """What `train` runs: a batch is the numbers of its items."""

    def __init__(
        self, model: CaptionProbe, pairs: Pairs, recipe: Recipe, accumulate: int = 1, among: Processes | None = None
    ) -> None:
        self.model, self.pairs, self.recipe, self.accumulate = model, pairs, recipe, accumulate
        self.among = among or Processes()
        if recipe.batch < self.among.count:
            raise ValueError(f"a batch of {recipe.batch} cannot be shared by {self.among.count} processes")
        self.modules = nn.ModuleDict({"model": model})
        optimiser = torch.optim.AdamW(
            list(model.trainable()), lr=recipe.lr, betas=recipe.betas, weight_decay=recipe.weight_decay
        )
        self.optimisers: dict[str, torch.optim.Optimizer] = {"model": optimiser}

    def step(self, items: Tensor, done: float) -> dict[str, float]:
        captions = self.pairs.drawn(items, round(done * self.recipe.steps))
        words = [self.model.length(caption) for caption in captions]
        total = torch.zeros(1, device=self.model.llm.device)

        def losses() -> Iterator[Tensor]:
            for places in self.among.part(torch.arange(len(items))).chunk(self.accumulate):
                images = self.pairs.images(items[places].cpu()).to(self.model.llm.device)
                # Every token of the batch counts alike, however it is cut into parts.
                share = sum(words[i] for i in places.tolist()) / sum(words)
                loss = self.model(self.model.encoder.encode(images), [captions[i] for i in places.tolist()])
                total.add_(share * loss.detach())
                yield share * loss

        descend(self.optimisers["model"], losses(), self.recipe.clip, self.among)
        return {"loss": float(self.among.total(total))}


def build(
    design: Design,
    sample: Callable[[int], Tensor] | None = None,
    *,
    device: str = "cpu",
    dtype: str = "bfloat16",
    check: Callable[[dict[str, str]], None] = lambda parts: None,
) -> CaptionProbe:
    """The untrained probe of a design; `dtype` is the language model's, `sample(size)` gives training images
    `[N, 3, size, size]`. `check` is called with the checkpoint of each frozen part as it is loaded.
    """
    encoder = load_encoder(design.encoder, device=device)
    check({"encoder": encoder.checkpoint})
    tokens = None if sample is None else encoder.encode(sample(encoder.image_size)[:SAMPLE])
    llm = load_llm(design.llm, device=device, dtype=dtype)
    check({"llm": llm.checkpoint})
    return CaptionProbe(encoder, llm, prefix=design.prefix, seed=design.seed, sample=tokens)


def fit(model: CaptionProbe, plan: Design, run: Run, pairs: Pairs) -> dict[str, Any]:
    """Train `model` (resuming what `run.out` holds) and write it there with its design; what `train` returns."""
    among = processes(run.device)
    frozen = {"encoder": model.encoder.checkpoint, "llm": model.llm.checkpoint}
    about = {"name": pairs.data.name, "fingerprint": pairs.data.fingerprint, "items": len(pairs.data)}
    identity = {"design": asdict(plan), "frozen": frozen, "data": about, "dtype": str(model.llm.dtype)}
    goal = Captioning(model, pairs, run.recipe, run.accumulate, among)
    order = pairs.order(run.recipe.batch)
    with plain_attention(model.llm):
        history = train(goal, order, run.recipe, run.out, "train the captioning probe", run.device, about=identity)
    if among.rank == 0:
        described = {"data": about, "recipe": asdict(run.recipe)}
        trained.write(run.out, dict(model.state_dict()), asdict(plan), frozen, described)
    return history


def load(
    folder: Path, *, device: str = "cpu", dtype: str = "bfloat16", encoder: str | None = None, llm: str | None = None
) -> tuple[CaptionProbe, Design, dict[str, Any]]:
    """A trained probe from its folder, its design and the description in its file; `encoder` and `llm` say where the frozen
    models are where their names of then do not find them. Raises ValueError where one is not the one it was trained with.
    """
    described, state = trained.read(folder, COMMAND)
    try:
        design = Design(**described["design"])
    except TypeError as error:
        raise trained.damaged(folder, COMMAND) from error
    wanted = Design(encoder or design.encoder, llm or design.llm, design.prefix, design.seed)
    theirs = described["frozen"]
    model = build(wanted, device=device, dtype=dtype, check=lambda ours: trained.check_frozen(folder, ours, theirs))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise trained.damaged(folder, COMMAND) from error
    return model.eval(), design, described
