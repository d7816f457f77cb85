"""One experiment of restoration from end to end: train a design, measure it on images it never saw, write what came out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from alignlab import trained
from alignlab.data import ImageTextDataset, load_dataset, resize, to_tensor
from alignlab.data.degradations import Task
from alignlab.files import labels, whole, write_tensors
from alignlab.pretrain.pool import held_out
from alignlab.provenance import environment, laboratory, shown
from alignlab.restoration import fit
from alignlab.restoration.batches import KEPT_BYTES
from alignlab.restoration.card import write_card
from alignlab.restoration.coordinates import Whitened
from alignlab.restoration.design import Design, build, frozen_parts, load, read
from alignlab.restoration.evaluation import Evaluation, Figures, evaluate
from alignlab.restoration.pictures import save_grid
from alignlab.restoration.restorer import Restorer
from alignlab.sheets import save_sheet
from alignlab.trained import ADAPTERS
from alignlab.training import Processes, Recipe, dtype_of, processes

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
    """Images to measure on: `indices` of a set's items, read as they are asked for. `held_out`: it is known that the adapters
    did not learn from them; of other sets only that theirs had another fingerprint.
    """

    data: ImageTextDataset
    indices: Sequence[int]
    held_out: bool = False
    kept: dict[tuple[int, int], Tensor] = field(default_factory=dict, compare=False, repr=False)

    def pictures(self, size: int) -> Callable[[int, int], Tensor]:
        """(start, end) -> `[end - start, 3, size, size]` in 0..1, resized without a crop; the first, up to a limit of
        memory, are read once.
        """

        def one(index: int) -> Tensor:
            if (index, size) in self.kept:
                return self.kept[index, size]
            picture = resize(to_tensor(self.data[index].image)[None], size)  # [1, 3, size, size]
            if len(self.kept) * picture.nbytes < KEPT_BYTES:
                self.kept[index, size] = picture
            return picture

        return lambda start, end: torch.cat([one(i) for i in self.indices[start:end]])

    def __len__(self) -> int:
        return len(self.indices)


def open_test(
    source: str,
    learnt: Sequence[dict[str, str]] = (),
    n: int | None = None,
    fifth: bool = False,
    whole_by: str = "",
) -> TestSet:
    """The images of a set that training never saw: all of them, or, of a set that was `learnt` from (as `fit.named_data`
    tells it) and where `fifth`, every fifth. `n` takes that many, evenly spread. `whole_by` is who learnt from all of
    `learnt`, "" where every fifth item was left out.

    Raises ValueError for a set of which nothing was left out, and for scenes-train after learning from scenes, or from
    another number of them: they are the same.
    """
    data = load_dataset(source, captions=False)
    scenes = [one for one in learnt if one["name"].partition(":")[0] in ("scenes", "scenes-train")]
    if data.name == "scenes-train" and any(one["fingerprint"] != data.fingerprint for one in scenes):
        raise ValueError(
            f"{source} are scenes that were learnt from; learn from one set of scenes, measure on scenes, which never are"
        )
    seen = any(one["fingerprint"] == data.fingerprint for one in learnt if one["fingerprint"])
    if seen and whole_by:
        raise ValueError(f"{shown(source)}: {whole_by} learns from all of it; measure on pictures that it never sees")
    held = fifth or seen
    indices = held_out(data) if held else list(range(len(data)))
    if n is not None and n < len(indices):
        indices = [indices[i * len(indices) // n] for i in range(n)]
    return TestSet(data, indices, held or source == "scenes")


def open_unseen(source: str, about: dict[str, Any], name: str, n: int | None = None, fifth: bool = False) -> TestSet:
    """`open_test` for the checkpoint `name`, of which `about` tells what it learnt from."""
    return open_test(source, about.get("data", []), n, fifth, name if about.get("whole") else "")


def open_tests(experiment: Experiment) -> list[TestSet]:
    """What an experiment is measured on. Errors as `open_test`: what is learnt from as a whole is not measured on."""
    learnt = [fit.named_data(source) for source in experiment.data]
    whole_by = "training" if experiment.test else ""
    return [
        open_test(source, learnt, experiment.n, whole_by=whole_by)
        for source in (experiment.test or experiment.data if experiment.n else ())
    ]


def run(
    experiment: Experiment,
    out: Path,
    *,
    device: str = "cpu",
    dtype: str = "auto",
    accumulate: int = 1,
    workers: int = 0,
) -> dict[str, Any]:
    """Train (resuming what `out` holds), measure, write `result.json`, pictures and adapters to `out`; the result.

    `dtype` is the language model's, and takes the place of the recipe's; "auto" is what a run here began in, else bfloat16
    where the device is quick in it. A finished run of the same experiment is read, not repeated; of another `n` only its
    training is. Errors as `fit` and `build`, and `load`'s of a finished one.
    """
    among = processes(device)  # before anything goes to a device: each has its own
    plan, recipe = experiment.design, replace(experiment.recipe, dtype=dtype_of(out, dtype, device))
    described = describe(replace(experiment, recipe=recipe))
    finished = _finished(out, plan, described)
    if finished and finished["n"] == experiment.n:
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
    tests = open_tests(experiment)
    if finished:
        model, learnt = load(str(out.absolute()), device=device, dtype=recipe.dtype)[0], finished["learnt"]
    else:
        coordinates = _coordinates(out) if fit.started(plan, settings) and plan.features == "whitened" else None
        model = build(plan, fit.clean(settings), device=device, dtype=recipe.dtype, coordinates=coordinates)
        _keep_coordinates(model, out, among)
        first = tests[0] if tests else None
        samples = None if first is None else first.pictures(model.encoder.image_size)(0, min(fit.SHOWN, len(first)))
        history = fit.fit(model, plan, settings, samples=samples)
        learnt = {
            "parameters": sum(p.numel() for p in model.trainable()),
            "images": experiment.images_seen,
            "seconds": round(history["seconds"], 1),
            "log": history["log"],
        }
    result = {
        **described,
        "laboratory": laboratory(
            [plan.encoder], plan.llm if plan.reads_llm else None, *experiment.data, *experiment.test
        ),
        "frozen": frozen_parts(model),
        "learnt": learnt,
        "evaluations": [],
    }
    names = labels([test.data.name for test in tests])
    for test, name in zip(tests, names, strict=True):
        for task in plan.tasks:
            plain, found = evaluate_on(model, test, task, among=among)
            if among.rank == 0:
                picture = f"{name}-{task}.jpg"
                save_grid(found.shown, out / picture, f"{task}, {model.how}")
                sheet = save_sheet(found.shown, out / f"{name}-{task}-sheet.png")
                result["evaluations"].append({**plain, "picture": picture, "sheet": sheet})
    if among.rank == 0:
        result["trained"] = trained.checkpoint(out)
        result["environment"] = environment(device)
        write_card(result, out)  # before the result, with which a run counts as finished
        with whole(out / RESULT) as unfinished:
            unfinished.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    return result


def _coordinates(out: Path) -> dict[str, Tensor]:
    """The whitening that an unfinished run began with: fitted again elsewhere it could differ in the last bit."""
    path = out / COORDINATES
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        how = "damaged" if path.is_file() else "gone"
        raise ValueError(f"{path} is {how}, and the run cannot go on; choose another --out folder") from error


def _keep_coordinates(model: Restorer, out: Path, among: Processes) -> None:
    """Write the whitening beside the state; of several processes, all take the first one's."""
    if not isinstance(model.encoder, Whitened):
        return
    state = among.share(model.encoder.state())
    if among.count > 1:
        model.__dict__["encoder"] = Whitened.from_state(model.encoder.encoder, state)
    if among.rank == 0:
        out.mkdir(parents=True, exist_ok=True)
        write_tensors(out / COORDINATES, state)


def describe(experiment: Experiment) -> dict[str, Any]:
    """What makes an experiment what it is, as a file gives it back."""
    plain = {
        "schema": SCHEMA,
        "design": experiment.design.plain(),
        "data": [fit.named_data(source) for source in experiment.data],
        "recipe": asdict(experiment.recipe),
        "crops": experiment.crops,
        "test": [fit.named_data(source) for source in experiment.test],
        "n": experiment.n,
    }
    again: dict[str, Any] = json.loads(json.dumps(plain))
    return again


def _finished(out: Path, plan: Design, described: dict[str, Any]) -> dict[str, Any] | None:
    """The result in `out`, where it is of this training; it may be measured on another number of images."""
    try:
        result: dict[str, Any] = json.loads((out / RESULT).read_text())
        same = all(result.get(key) == value for key, value in described.items() if key != "n")
        # The result names models without their folders, the adapters with them.
        return result if same and (out / ADAPTERS).is_file() and read(out)[0] == plan else None
    except (OSError, ValueError, AttributeError):  # none yet, or a damaged one
        return None


def evaluate_on(
    model: Restorer,
    test: TestSet,
    task: str,
    *,
    parameters: Task | None = None,
    seed: int = TEST_SEED,
    batch_size: int = 64,
    among: Processes | None = None,
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
        among=among,
        **options,
    )
    plain = {
        "task": task,
        "data": {"name": test.data.name, "fingerprint": test.data.fingerprint, "items": len(test.data)},
        "held_out": test.held_out,
        "n": found.n,
        "seed": seed,
        "strength": None if parameters is None else asdict(parameters),  # type: ignore[call-overload]
        **options,
        **{
            column: _plain(getattr(found, column))
            for column in ("degraded", "alone", "restored", "gain", "lift", "told")
        },
        "misaligned": found.misaligned,
        "unwritten": found.unwritten,
        "each": {name: [_rounded(x) for x in values.tolist()] for name, values in found.each.items()},
    }
    return plain, found


def _rounded(x: float) -> float | None:
    """As JSON; None for inf."""
    return round(x, 4) if math.isfinite(x) else None


def _plain(figures: Figures | None) -> dict[str, Any] | None:
    return None if figures is None else {"psnr": figures.psnr.plain(), "ssim": figures.ssim.plain()}
