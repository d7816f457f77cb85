"""Train the captioning probe's projector on images with captions, the encoder and the language model frozen."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from alignlab import trained
from alignlab.captioning.probe import CaptionProbe
from alignlab.curves import curves
from alignlab.data import ImageTextDataset
from alignlab.models import load_encoder, load_llm
from alignlab.models.weights import work_dtype
from alignlab.paper import PROBE_RECIPE
from alignlab.provenance import shown_model
from alignlab.restoration.batches import SquarePictures
from alignlab.restoration.fit import plain_attention
from alignlab.training import Processes, Recipe, check_state, descend, processes, train

COMMAND = "caption train"
SAMPLE = 64  # pictures whose tokens say how the projector begins

# LLaVA's first stage but for its size and its rate: batch 128 and one epoch of 100,000 pairs are 782 steps. Of a few
# thousand pairs many small steps at ten times its rate learn more than few large ones do.
RECIPE = Recipe(
    steps=2000,
    batch=4,
    lr=10 * PROBE_RECIPE["lr"],
    warmup=60,
    weight_decay=PROBE_RECIPE["weight_decay"],
    betas=PROBE_RECIPE["betas"],
    clip=PROBE_RECIPE["clip"],
    schedule=PROBE_RECIPE["schedule"],
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
        return {**asdict(self), "encoder": shown_model(self.encoder), "llm": shown_model(self.llm)}


@dataclass(frozen=True)
class Run:
    """One training: with what recipe, to where; of a batch one part in `accumulate` is in memory at a time.

    `held_out` only says, in the file, that each fifth item of the set is among those that are not learnt.
    """

    out: Path
    recipe: Recipe = field(default_factory=lambda: RECIPE)
    accumulate: int = 1
    device: str = "cpu"
    held_out: bool = False


class Pairs:
    """A set's pictures as squares, and one of each item's captions, drawn anew every time it is seen.

    `items` are the numbers of those to learn from, all by default. Raises ValueError for none.
    """

    def __init__(self, data: ImageTextDataset, size: int, seed: int, items: Sequence[int] | None = None) -> None:
        self.data, self.seed = data, seed
        self.items = list(range(len(data)) if items is None else items)
        if not self.items:
            raise ValueError(f"{data.name} has {len(data)} item(s), and none of them is left to learn from")
        self.captions = data.captions
        self.pictures = SquarePictures(data, size)
        self._epoch, self._shuffled = -1, np.arange(0)

    def order(self, batch: int) -> Callable[[int], Tensor]:
        """Step -> the items of that step, `[batch]`, each item once an epoch in an order of its own."""

        def items(step: int) -> Tensor:
            drawn = np.arange(step * batch, (step + 1) * batch)
            epochs, places = np.divmod(drawn, len(self.items))
            return torch.tensor([self.items[self._order(e)[p]] for e, p in zip(epochs, places, strict=True)])

        return items

    def _order(self, epoch: int) -> np.ndarray:
        if self._epoch != epoch:
            self._epoch = epoch
            self._shuffled = np.random.default_rng([self.seed, epoch]).permutation(len(self.items))
        return self._shuffled

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
        self.among.check(recipe.batch)
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
            for places in torch.tensor(self.among.block(len(items))).chunk(self.accumulate):
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
    dtype: str = "auto",
    check: Callable[[dict[str, str]], None] = lambda parts: None,
) -> CaptionProbe:
    """The untrained probe of a design; `dtype` is the language model's ("auto": bfloat16 where the device is quick in it),
    `sample(size)` gives training images `[N, 3, size, size]`. `check` is called with the checkpoint of each frozen part as it
    is loaded.
    """
    encoder = load_encoder(design.encoder, device=device)
    check({"encoder": encoder.checkpoint})
    tokens = None if sample is None else encoder.encode(sample(encoder.image_size)[:SAMPLE])
    llm = load_llm(design.llm, device=device, dtype=work_dtype(dtype, device))
    check({"llm": llm.checkpoint})
    return CaptionProbe(encoder, llm, prefix=design.prefix, seed=design.seed, sample=tokens)


def fit(
    model: CaptionProbe, plan: Design, run: Run, pairs: Pairs, samples: Callable[[Any, int], None] | None = None
) -> dict[str, Any]:
    """Train `model` (resuming what `run.out` holds) and write it there with its design; what `train` returns.

    TensorBoard's curves are in `logs/`; `samples(writer, steps done)` is called ten times in a run. Raises ValueError for
    a folder with another run, RuntimeError where a loss is not finite; the last good state stays.
    """
    among = processes(run.device)
    frozen = {"encoder": model.encoder.checkpoint, "llm": model.llm.checkpoint}
    goal = Captioning(model, pairs, run.recipe, run.accumulate, among)
    if among.count > 1:  # each began by itself, which might differ in the last bit
        model.load_state_dict(among.share({name: x.detach().cpu() for name, x in model.state_dict().items()}))
    identity = {**_identity(plan, run, pairs.data, pairs.items), "frozen": frozen, "dtype": str(model.llm.dtype)}
    order = pairs.order(run.recipe.batch)
    writes = among.rank == 0
    with plain_attention(model.llm), curves(run.out, run.recipe.steps, samples, writes=writes) as watch:
        history = train(
            goal, order, run.recipe, run.out, "train the captioning probe", run.device, about=identity, watch=watch
        )
    if writes:
        described = {"data": about(pairs.data, pairs.items, run.held_out), "recipe": asdict(run.recipe)}
        trained.write(run.out, dict(model.state_dict()), asdict(plan), frozen, described)
    return history


def about(data: ImageTextDataset, items: Sequence[int], hold_out: bool = False) -> dict[str, Any]:
    """What is learnt from, as a probe's file says it: `learnt` of its items, and by a hash which."""
    which = hashlib.sha256(np.asarray(items, dtype=np.int64).tobytes()).hexdigest()[:16]
    learnt = {"learnt": len(items), "which": "all" if len(items) == len(data) else which, "held_out": hold_out}
    return {"name": data.name, "fingerprint": data.fingerprint, "items": len(data), **learnt}


def _identity(plan: Design, run: Run, data: ImageTextDataset, items: Sequence[int]) -> dict[str, Any]:
    """What makes a training what it is, but for the recipe and the frozen models, which their hashes tell apart."""
    return {"design": plan.plain(), "data": about(data, items, run.held_out)}


def started(plan: Design, run: Run, data: ImageTextDataset, items: Sequence[int]) -> bool:
    """Whether `run.out` holds a state of this run, told before a model is loaded; ValueError where it is another's."""
    return check_state(run.out, run.recipe, _identity(plan, run, data, items))


def read(folder: Path) -> tuple[Design, dict[str, Any], dict[str, Tensor]]:
    """The design, the description ("frozen", "about") and the tensors of a trained probe; ValueError for anything else."""
    described, state = trained.read(folder, COMMAND)
    try:
        return trained.made(Design, described["design"]), described, state
    except TypeError as error:
        raise trained.damaged(folder, COMMAND) from error


def load(
    folder: Path, *, device: str = "cpu", dtype: str = "auto", encoder: str | None = None, llm: str | None = None
) -> tuple[CaptionProbe, Design, dict[str, Any]]:
    """A trained probe from its folder, its design and the description in its file; `encoder` and `llm` say where the frozen
    models are where their names of then do not find them. Raises ValueError where one is not the one it was trained with.
    """
    design, described, state = read(folder)
    wanted = replace(design, encoder=encoder or design.encoder, llm=llm or design.llm)
    theirs = described["frozen"]
    model = build(wanted, device=device, dtype=dtype, check=lambda ours: trained.check_frozen(folder, ours, theirs))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise trained.damaged(folder, COMMAND) from error
    return model.eval(), design, described
