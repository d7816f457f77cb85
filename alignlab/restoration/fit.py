"""Train a restorer on degraded pictures, the encoder and the language model frozen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alignlab.curves import curves
from alignlab.data import load_dataset
from alignlab.data.degradations import pair
from alignlab.models.llm import LanguageModel
from alignlab.paper import LM4LV_RECIPE
from alignlab.provenance import shown
from alignlab.restoration import design
from alignlab.restoration.batches import picture_batches
from alignlab.restoration.design import Design
from alignlab.restoration.pictures import save_grid
from alignlab.restoration.restorer import Restorer
from alignlab.training import Processes, Recipe, check_state, descend, processes, train

# The paper's recipe but for its size and its rate: batch 256 and two epochs of 595,375 images are 4,651 steps on four
# A100s. Few steps want a higher rate than its 3e-4.
RECIPE = Recipe(
    steps=500,
    batch=8,
    lr=3e-3,
    warmup=20,
    weight_decay=LM4LV_RECIPE["weight_decay"],
    betas=LM4LV_RECIPE["betas"],
    clip=LM4LV_RECIPE["clip"],
    schedule=LM4LV_RECIPE["schedule"],
)
FITTED_ON = 512  # clean pictures that the whitening is fitted on
SHOWN = 8  # pictures in a grid of sample pictures


@dataclass(frozen=True)
class Run:
    """One training: on what, how, to where. With several tasks step s learns the task s modulo their number.

    `crops` and `workers` are those of `picture_batches`; of a batch one part in `accumulate` is in memory at a time.
    """

    data: tuple[str, ...]
    out: Path
    recipe: Recipe = field(default_factory=lambda: RECIPE)
    crops: int | None = None
    all_items: bool = False
    accumulate: int = 1
    device: str = "cpu"
    workers: int = 0

    def batches(self, size: int, among: Processes | None = None) -> Callable[[int], Tensor]:
        """Step -> the clean pictures of that step, `[batch, 3, size, size]`, or this process' block of them."""
        recipe = self.recipe
        return picture_batches(
            self.data,
            size,
            recipe.batch,
            recipe.seed,
            crops=self.crops,
            all_items=self.all_items,
            workers=self.workers,
            among=among,
        )


class Restoring:
    """What `train` runs: each step spoils its pictures anew, from the recipe's seed and the pictures' number alone.

    `among` several processes each is given its block of a batch.
    """

    def __init__(self, model: Restorer, recipe: Recipe, accumulate: int = 1, among: Processes | None = None) -> None:
        self.model, self.recipe, self.accumulate = model, recipe, accumulate
        self.among = among or Processes()
        self.among.check(recipe.batch)
        self.modules = nn.ModuleDict({"model": model})
        optimiser = torch.optim.AdamW(
            list(model.trainable()), lr=recipe.lr, betas=recipe.betas, weight_decay=recipe.weight_decay
        )
        self.optimisers: dict[str, torch.optim.Optimizer] = {"model": optimiser}

    def step(self, images: Tensor, done: float) -> dict[str, float]:
        model, number = self.model, round(done * self.recipe.steps)
        task = model.tasks[number % len(model.tasks)]
        batch = self.recipe.batch
        low, high = pair(images, task, seed=self.recipe.seed, first=number * batch + self.among.block(batch).start)
        found = torch.zeros(2, device=images.device)

        def losses() -> Iterator[Tensor]:
            for part in torch.stack([low, high], 1).chunk(self.accumulate):  # [b, 2, 3, H, W]
                tokens = model.encoder.encode(part.flatten(0, 1)).unflatten(0, (-1, 2))  # [b, 2, T, D]
                share = len(part) / batch
                loss = model(tokens[:, 0], tokens[:, 1], task)
                found.add_(share * torch.stack([loss.visual.detach(), loss.text.detach()]).to(found))
                yield share * loss.total

        descend(self.optimisers["model"], losses(), self.recipe.clip, self.among)
        visual, text = self.among.total(found).tolist()
        return {"visual": visual, "text": text} if model.says_words else {"visual": visual}


def clean(run: Run) -> Callable[[int], Tensor]:
    """Image size -> clean training pictures `[N, 3, size, size]`, those of the first steps: what `design.build` takes."""

    def pictures(size: int) -> Tensor:
        draw, found = run.batches(size), list[Tensor]()
        while sum(map(len, found)) < FITTED_ON:
            found.append(draw(len(found)))
        return torch.cat(found)[:FITTED_ON]

    return pictures


@contextmanager
def plain_attention(llm: LanguageModel | None) -> Iterator[None]:
    """On a CPU torch's fused attention takes longer backwards in bfloat16 than products of matrices do
    (benchmarks/restoration.py); the numbers are the same but for rounding.
    """
    if llm is None or llm.device.type != "cpu" or llm.dtype != torch.bfloat16:
        yield
        return
    before = llm.model.config._attn_implementation
    llm.model.set_attn_implementation("eager")
    try:
        yield
    finally:
        llm.model.set_attn_implementation(before)


def fit(
    model: Restorer,
    plan: Design,
    run: Run,
    batches: Callable[[int], Tensor] | None = None,
    samples: Tensor | None = None,
) -> dict[str, Any]:
    """Train `model` (resuming what `run.out` holds) and write it there with its design; what `train` returns.

    `batches` are by default those of `run.data`. `samples`, clean pictures `[N, 3, H, W]`, are degraded and restored now
    and then, and written to `samples/`; TensorBoard's curves are in `logs/`. Raises ValueError for a folder with another
    run, RuntimeError where a loss is not finite; the last good state stays.
    """
    among = processes(run.device)
    identity = {**_identity(plan, run, named=batches is None), "frozen": design.frozen_parts(model)}
    goal = Restoring(model, run.recipe, run.accumulate, among)
    if among.count > 1:  # each began by itself, which might differ in the last bit
        model.load_state_dict(among.share({name: x.detach().cpu() for name, x in model.state_dict().items()}))
    draw = run.batches(model.encoder.image_size, among) if batches is None else _block_of(batches, among)
    about = {"data": identity["data"] if batches is None else [], "whole": run.all_items, "recipe": asdict(run.recipe)}
    paint = None if samples is None else _samples(model, run, samples)

    def show(writer: Any, done: int) -> None:
        design.save(model, plan, run.out, {**about, "steps": done})  # to be tried before the end
        if paint is not None:
            paint(writer, done)

    with plain_attention(model.llm), curves(run.out, run.recipe.steps, show, writes=among.rank == 0) as watch:
        history = train(goal, draw, run.recipe, run.out, f"train {model.how}", run.device, about=identity, watch=watch)
    if among.rank == 0:
        design.save(model, plan, run.out, about)
    return history


def _block_of(batches: Callable[[int], Tensor], among: Processes) -> Callable[[int], Tensor]:
    """A process' block of batches that are given whole."""

    def block(step: int) -> Tensor:
        whole = batches(step)
        mine = among.block(len(whole))
        return whole[mine.start : mine.stop]

    return block


def _identity(plan: Design, run: Run, named: bool = True) -> dict[str, Any]:
    """What makes a training what it is, but for the recipe and the frozen models; `named`: its data are sets."""
    data = [named_data(source) for source in run.data] if named else list(run.data)
    return {"design": plan.plain(), "data": data, "crops": run.crops, "held out": not run.all_items}


def named_data(source: str) -> dict[str, str]:
    """A set to learn from: the rendered scenes are known by their name, any other by what is in it, wherever it lies."""
    known = source == "scenes"
    return {"name": shown(source), "fingerprint": "" if known else load_dataset(source, captions=False).fingerprint}


def started(plan: Design, run: Run) -> bool:
    """Whether `run.out` holds a state of this run, told before a model is loaded; ValueError where it is another's."""
    return check_state(run.out, run.recipe, _identity(plan, run))


def _samples(model: Restorer, run: Run, images: Tensor) -> Callable[[Any, int], None]:
    """What is called now and then: how the pictures are restored by then."""

    def show(writer: Any, done: int) -> None:
        model.eval()
        for task in model.tasks:
            rows = sample_rows(model, images, task, run.recipe.seed)
            path = run.out / "samples" / f"{task}-{done:06d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            save_grid(rows, path, f"{task}, step {done:,}")
            for label, restored in rows.items():
                writer.add_images(f"{task}/{label}", restored, done)
        model.train()

    return show


def sample_rows(model: Restorer, images: Tensor, task: str, seed: int) -> dict[str, Tensor]:
    """Clean images `[N, 3, H, W]` -> what the model was given, what it made of it, and what it should have made."""
    low, high = pair(images, task, seed=seed)
    return {"given": low, model.how: model.restore(low.to(images.device), task), "truth": high}
