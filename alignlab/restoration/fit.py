"""Train LM4LV's adapters and task tokens on degraded pictures, the encoder and the language model frozen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from alignlab.data.degradations import pair
from alignlab.paper import LM4LV_RECIPE
from alignlab.restoration.lm4lv import LM4LV
from alignlab.training import Recipe, descend, train

ADAPTERS = "adapters.safetensors"

# The paper's recipe but for its size: batch 256 and two epochs of 595,375 images are 4,651 steps on four A100s.
RECIPE = Recipe(
    steps=1500,
    batch=16,
    lr=1e-3,
    warmup=50,
    weight_decay=LM4LV_RECIPE["weight_decay"],
    betas=LM4LV_RECIPE["betas"],
    clip=LM4LV_RECIPE["clip"],
    schedule=LM4LV_RECIPE["schedule"],
)


@dataclass(frozen=True)
class Run:
    """One training: on what, how, to where. Step s learns the task s modulo their number."""

    data: tuple[str, ...]
    out: Path
    tasks: tuple[str, ...] = ("denoise",)
    recipe: Recipe = field(default_factory=lambda: RECIPE)
    crops: int | None = None
    device: str = "cpu"
    workers: int = 0


class Restoring:
    """What `train` runs: each step spoils its pictures anew, from the recipe's seed and the pictures' number alone."""

    def __init__(self, model: LM4LV, tasks: tuple[str, ...], recipe: Recipe) -> None:
        self.model, self.tasks, self.recipe = model, tasks, recipe
        self.modules = nn.ModuleDict({"model": model})
        optimiser = torch.optim.AdamW(
            list(model.trainable()), lr=recipe.lr, betas=recipe.betas, weight_decay=recipe.weight_decay
        )
        self.optimisers: dict[str, torch.optim.Optimizer] = {"model": optimiser}

    def step(self, images: Tensor, done: float) -> dict[str, float]:
        number = round(done * self.recipe.steps)
        task = self.tasks[number % len(self.tasks)]
        low, high = pair(images, task, seed=self.recipe.seed, first=number * len(images))
        losses = self.model(self.model.encoder.encode(low), self.model.encoder.encode(high), task)
        descend(self.optimisers["model"], losses.total, self.recipe.clip)
        return {"visual": float(losses.visual.detach()), "text": float(losses.text.detach())}


def fit(model: LM4LV, run: Run, batches: Callable[[int], Tensor]) -> dict[str, Any]:
    """Train `model` on `batches(step)` (resuming what `run.out` holds) and write its parameters there; what `train` returns."""
    about = {"encoder": model.encoder.checkpoint, "llm": model.llm.checkpoint, "tasks": run.tasks, "data": run.data}
    history = train(
        Restoring(model, run.tasks, run.recipe), batches, run.recipe, run.out, "train LM4LV", run.device, about
    )
    save_adapters(model, run.out)
    return history


def save_adapters(model: LM4LV, folder: Path) -> None:
    """The two adapters and the task tokens, with the names of the models that they belong between."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {"format": "pt", "encoder": model.encoder.checkpoint, "llm": model.llm.checkpoint}
    save_file(
        {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}, folder / ADAPTERS, metadata=about
    )
    (folder / ADAPTERS).chmod(0o644)  # safetensors makes it readable to its owner alone


def load_adapters(model: LM4LV, folder: Path) -> None:
    """Put the parameters of a folder into `model`; ValueError where they are another model's."""
    try:
        model.load_state_dict(load_file(folder / ADAPTERS))
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{folder / ADAPTERS} does not fit {model.encoder.name} and {model.llm.name}: {reason}"
        ) from error
