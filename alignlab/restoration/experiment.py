"""One experiment of restoration from end to end: train a design, measure it on images it never saw, write what came out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from alignlab.data import ImageTextDataset, load_dataset, resize, to_tensor
from alignlab.data.degradations import Task
from alignlab.pretrain.pool import held_out
from alignlab.provenance import environment, shown
from alignlab.restoration import fit
from alignlab.restoration.coordinates import Whitened
from alignlab.restoration.design import ADAPTERS, Design, build, frozen_parts
from alignlab.restoration.evaluation import Evaluation, Figures, evaluate
from alignlab.restoration.pictures import save_grid
from alignlab.restoration.restorer import Restorer
from alignlab.training import Recipe, processes

SCHEMA = "alignlab.restore-train/1"
RESULT = "result.json"
COORDINATES = "coordinates.safetensors"
TEST_SEED = 20_240_516  # of the degradations in evaluation; training draws from the recipe's


@dataclass(frozen=True)
class Experiment:
    """What is trained on what, and `n` images of every set of `test` to measure it on (0: none).

    Without `test`, the shipped scenes where scenes were learnt, and the fifth of any other set that training leaves out.
    """

    design: Design
    data: tuple[str, ...] = ("scenes",)
    recipe: Recipe = field(default_factory=lambda: fit.RECIPE)
    crops: int | None = None
    test: tuple[str, ...] = ()
    n: int = 256

    @property
    def images_seen(self) -> int:
        return self.recipe.steps * self.recipe.batch


@dataclass(frozen=True)
class TestSet:
    """Images to measure on: `indices` of a set's items, read as they are asked for."""

    data: ImageTextDataset
    indices: Sequence[int]

    def pictures(self, size: int) -> Callable[[int, int], Tensor]:
        """(start, end) -> `[end - start, 3, size, size]` in 0..1, resized without a crop; each is read once."""

        @cache
        def one(index: int) -> Tensor:
            return resize(to_tensor(self.data[index].image)[None], size)

        return lambda start, end: torch.cat([one(i) for i in self.indices[start:end]])

    def __len__(self) -> int:
        return len(self.indices)


def open_test(source: str, learnt: Sequence[str] = (), n: int | None = None) -> TestSet:
    """The images of a set that training on the sets `learnt` never saw: all of them, or every fifth of one that was
    learnt from; of the scenes the shipped ones, which are never learnt from. `n` takes that many, evenly spread.
    """
    data = load_dataset(source)
    indices = held_out(data) if source in learnt and source != "scenes" else list(range(len(data)))
    if n is not None and n < len(indices):
        indices = [indices[i * len(indices) // n] for i in range(n)]
    return TestSet(data, indices)


def run(
    experiment: Experiment,
    out: Path,
    *,
    device: str = "cpu",
    dtype: str = "bfloat16",
    accumulate: int = 1,
    workers: int = 0,
) -> dict[str, Any]:
    """Train (resuming what `out` holds), measure, write `result.json`, pictures and adapters to `out`; the result.

    A finished run of the same experiment is read, not repeated. Errors as `fit` and `build`.
    """
    plan, recipe = experiment.design, experiment.recipe
    described = describe(experiment)
    if (finished := _finished(out, described)) is not None:
        return finished
    settings = fit.Run(
        data=experiment.data,
        out=out,
        recipe=recipe,
        crops=experiment.crops,
        all_items=bool(experiment.test),
        accumulate=accumulate,
        device=device,
        workers=workers,
    )
    tests = {
        source: open_test(source, () if experiment.test else experiment.data, experiment.n)
        for source in (experiment.test or experiment.data if experiment.n else ())
    }
    model = build(plan, fit.clean(settings), device=device, dtype=dtype, coordinates=_coordinates(out))
    _keep_coordinates(model, out)
    first = next(iter(tests.values()), None)
    samples = None if first is None else first.pictures(model.encoder.image_size)(0, min(fit.SHOWN, len(first)))
    history = fit.fit(model, plan, settings, samples=samples)
    result = {
        **described,
        "frozen": frozen_parts(model),
        "learnt": {
            "parameters": sum(p.numel() for p in model.trainable()),
            "images": experiment.images_seen,
            "seconds": round(history["seconds"], 1),
            "log": history["log"],
        },
        "evaluations": {},
    }
    if processes(device).rank == 0:
        for source, test in tests.items():
            for task in plan.tasks:
                found = evaluate_on(model, test, task)
                result["evaluations"][f"{source} {task}" if len(plan.tasks) > 1 else source] = found[0]
                save_grid(found[1].shown, out / f"{found[0]['data']['name']}-{task}.jpg", f"{task}, {model.how}")
        result["environment"] = environment(device)
        unfinished = out / f".{RESULT}"
        unfinished.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
        unfinished.replace(out / RESULT)
    return result


def _coordinates(out: Path) -> dict[str, Tensor] | None:
    """The whitening that an unfinished run began with: fitted again elsewhere it could differ in the last bit."""
    path = out / COORDINATES
    return load_file(path) if path.is_file() else None


def _keep_coordinates(model: Restorer, out: Path) -> None:
    if isinstance(model.encoder, Whitened) and not (out / COORDINATES).is_file():
        out.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in model.encoder.state().items()}, out / COORDINATES)


def describe(experiment: Experiment) -> dict[str, Any]:
    """What makes an experiment what it is, as a file gives it back."""
    plain = {
        "schema": SCHEMA,
        "design": asdict(experiment.design),
        "data": [_named(source) for source in experiment.data],
        "recipe": asdict(experiment.recipe),
        "crops": experiment.crops,
        "test": [_named(source) for source in experiment.test],
        "n": experiment.n,
    }
    again: dict[str, Any] = json.loads(json.dumps(plain))
    return again


def _named(source: str) -> dict[str, str]:
    """A set to learn from: the rendered scenes are known by their name, any other by what is in it."""
    return {"name": shown(source), "fingerprint": "" if source == "scenes" else load_dataset(source).fingerprint}


def _finished(out: Path, described: dict[str, Any]) -> dict[str, Any] | None:
    try:
        result: dict[str, Any] = json.loads((out / RESULT).read_text())
    except (OSError, json.JSONDecodeError):
        return None
    same = all(result.get(key) == value for key, value in described.items())
    return result if same and (out / ADAPTERS).is_file() else None


def evaluate_on(
    model: Restorer,
    test: TestSet,
    task: str,
    *,
    parameters: Task | None = None,
    seed: int = TEST_SEED,
    batch_size: int = 64,
    **options: Any,
) -> tuple[dict[str, Any], Evaluation]:
    """`evaluate` on a set, as plain values with the set's name and fingerprint, and as it is."""
    found = evaluate(
        model,
        test.pictures(model.encoder.image_size),
        len(test),
        task,
        parameters=parameters,
        seed=seed,
        batch_size=batch_size,
        **options,
    )
    plain = {
        "task": task,
        "data": {"name": test.data.name, "fingerprint": test.data.fingerprint, "items": len(test.data)},
        "n": found.n,
        "seed": seed,
        "strength": None if parameters is None else asdict(parameters),  # type: ignore[call-overload]
        **options,
        **{column: _plain(getattr(found, column)) for column in ("degraded", "alone", "restored", "gain", "lift")},
        "misaligned": found.misaligned,
    }
    return plain, found


def _plain(figures: Figures | None) -> dict[str, Any] | None:
    return None if figures is None else {"psnr": figures.psnr.plain(), "ssim": figures.ssim.plain()}
