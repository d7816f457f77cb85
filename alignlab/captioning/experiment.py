"""One captioning probe from end to end: train it, measure it on images it never saw, write what came out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alignlab import trained
from alignlab.captioning import fit
from alignlab.captioning.clip import CLIPScorer
from alignlab.captioning.evaluation import Evaluation, Subjects, captioned, evaluate, find_judge, subjects
from alignlab.captioning.fit import Design, Pairs, build, read
from alignlab.captioning.gallery import evenly, save_gallery
from alignlab.captioning.probe import LONGEST, CaptionProbe
from alignlab.data import ImageTextDataset, load_dataset, resize, to_tensor
from alignlab.files import labels, whole
from alignlab.models.registry import EMBEDDED
from alignlab.models.variant import parse
from alignlab.pretrain.pool import HOLD_OUT, held_out
from alignlab.progress import progress
from alignlab.provenance import environment, shown, shown_model
from alignlab.sheets import save_sheet
from alignlab.trained import ADAPTERS
from alignlab.training import Processes, Recipe, dtype_of, processes

SCHEMA = "alignlab.caption-train/1"
RESULT = "result.json"
TRAINING_SCENES = "scenes-train"  # scenes-train:N holds the first N of them
SHEET = 96  # pixels of an image's side in a contact sheet
SHOWN = 4  # pictures that are captioned on the way


@dataclass(frozen=True)
class Experiment:
    """What is trained on what, and `n` images of every set of `test` to measure it on (0: none).

    Without `test`, the shipped scenes where scenes were learnt; of any other set each fifth item, which training leaves
    out, as it does where a set of `test` is the one that is learnt. `subset` takes that many items of `data` to learn from,
    drawn at random. `judge` is that of the CLIPScores, as `find_judge` takes it.
    """

    design: Design
    data: str = TRAINING_SCENES
    recipe: Recipe = field(default_factory=lambda: fit.RECIPE)
    subset: int | None = None
    test: tuple[str, ...] = ()
    n: int = 256
    judge: str | None = None

    @property
    def measured(self) -> tuple[str, ...]:
        """The sets to measure on."""
        return self.test or (("scenes",) if _is_scenes(self.data) else (self.data,))


@dataclass(frozen=True)
class TestSet:
    """`indices` of a set's items, to measure on."""

    data: ImageTextDataset
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def subjects(self, judge: CLIPScorer | None) -> Subjects:
        """The images and their captions, as `evaluate` takes them."""
        captions = self.data.captions
        return subjects((self.data[i].image for i in self.indices), [captions[i] for i in self.indices], judge)

    def pictures(self, places: Sequence[int]) -> list[Any]:
        return [self.data[self.indices[place]].image for place in places]


def _is_scenes(source: str) -> bool:
    return source.partition(":")[0] == TRAINING_SCENES


def same_set(data: ImageTextDataset, about: dict[str, Any]) -> bool:
    """Whether a set is, or shares items of the same numbers with, the one that `about` describes."""
    scenes = data.name == about.get("name") == TRAINING_SCENES
    return scenes or data.fingerprint == about.get("fingerprint")


def open_test(source: str, learnt: dict[str, Any] | None = None, n: int | None = None) -> TestSet:
    """A set's images that training on `learnt` (the "data" in a probe's file) never saw, `n` of them, evenly spread.

    Each fifth of the set that was learnt from. Raises ValueError where that left none out.
    """
    data = load_dataset(source)
    indices: list[int] = list(range(len(data)))
    if learnt is not None and same_set(data, learnt):
        if not learnt.get("held_out"):
            raise ValueError(f"{shown(source)} was learnt from, all of it; give images that the probe never saw")
        indices = held_out(data)
    if n is not None and n < len(indices):
        indices = [indices[i * len(indices) // n] for i in range(n)]
    return TestSet(data, indices)


def learnt_items(data: ImageTextDataset, hold_out: bool, subset: int | None = None, seed: int = 0) -> list[int]:
    """The numbers of the items to learn from: of those that are not held out all, or a random `subset`, in order."""
    items = [i for i in range(len(data)) if not (hold_out and i % HOLD_OUT == 0)]
    if subset is None or subset >= len(items):
        return items
    return sorted(np.random.default_rng([seed, subset]).permutation(items)[:subset].tolist())


def holds_out(data: ImageTextDataset, experiment: Experiment) -> bool:
    """Whether each fifth item stays out of training, because the set is measured on too."""
    about = {"name": data.name, "fingerprint": data.fingerprint}
    others = [source for source in experiment.measured if source != experiment.data]
    return len(others) < len(experiment.measured) or any(same_set(load_dataset(one), about) for one in others)


def run(
    experiment: Experiment,
    out: Path,
    *,
    device: str = "cpu",
    dtype: str = "auto",
    accumulate: int = 1,
    laboratory: str = "own",
) -> dict[str, Any]:
    """Train (resuming what `out` holds), measure, write `result.json`, pictures and the projector to `out`; the result.

    `dtype` is the language model's, and takes the place of the recipe's; "auto" is what a run here began in, else bfloat16
    where the device is quick in it. A finished run of the same experiment is read, not repeated.
    Errors as `fit`, `build` and `find_judge`.
    """
    among = processes(device)  # before anything goes to a device: each has its own
    plan, recipe = experiment.design, replace(experiment.recipe, dtype=dtype_of(out, dtype, device))
    data = load_dataset(experiment.data)
    described = describe(replace(experiment, recipe=recipe), data)
    if (before := finished(out, plan, described)) is not None:
        return before
    hold_out = holds_out(data, experiment)
    items = learnt_items(data, hold_out, experiment.subset, recipe.seed)
    settings = fit.Run(out, recipe, accumulate, device, hold_out)
    fit.started(plan, settings, data, items)  # of another run? that shows before a model is loaded
    about = fit.about(data, items, hold_out)
    tests = [open_test(source, about, experiment.n) for source in (experiment.measured if experiment.n else ())]
    judge, why = find_judge(experiment.judge, device=device) if tests and among.rank == 0 else (None, "")

    def pairs(size: int) -> Pairs:
        return Pairs(data, size, recipe.seed, items)

    def sample(size: int) -> Tensor:
        made = pairs(size)
        return made.images(made.order(min(fit.SAMPLE, len(items)))(0))

    model = build(plan, sample, device=device, dtype=recipe.dtype)
    samples = _samples(model, tests[0], out) if tests else None
    history = fit.fit(model, plan, settings, pairs(model.encoder.image_size), samples)
    result = {
        **described,
        "laboratory": laboratory,
        "frozen": {"encoder": model.encoder.checkpoint, "llm": model.llm.checkpoint},
        "learnt": {
            **{name: about[name] for name in ("items", "learnt", "held_out")},
            "parameters": sum(p.numel() for p in model.trainable()),
            "images": recipe.steps * recipe.batch,
            "seconds": round(history["seconds"], 1),
            "log": history["log"],
        },
        "evaluations": [],
    }
    said_of = [caption_all(model, test, among=among) for test in tests]
    if among.rank == 0:
        from alignlab.captioning.card import write_card

        names = labels([test.data.name for test in tests])
        for test, name, captions in zip(tests, names, said_of, strict=True):
            picture = f"{name}.jpg"
            found = evaluate(captions, test.subjects(judge), why_no_judge=why)
            gallery = show(test, captions, out / picture, f"{plan.plain()['encoder']} read by {plan.plain()['llm']}")
            said = {**plain(test, found), "beams": 1, "longest": LONGEST}
            result["evaluations"].append({**said, "picture": picture, "gallery": gallery})
        result["trained"] = trained.checkpoint(out)
        result["environment"] = environment(device)
        write_card(result, out)  # before the result, with which a run counts as finished
        with whole(out / RESULT) as unfinished:
            unfinished.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    return result


def _samples(model: CaptionProbe, test: TestSet, out: Path) -> Callable[[Any, int], None]:
    """What is called now and then in training: what the probe says of some images by then."""
    places = evenly(len(test), SHOWN)
    indices = [test.indices[place] for place in places]

    def show_some(writer: Any, done: int) -> None:
        model.eval()
        captions = [caption for _, caption in captioned(model, test.data, indices)]
        model.train()
        path = out / "samples" / f"{done:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"said": said, "truth": test.data.captions[i][0]} for said, i in zip(captions, indices, strict=True)]
        save_gallery(test.pictures(places), rows, path, f"step {done:,}")
        writer.add_text("captions", "\n\n".join(captions), done)

    return show_some


def caption_all(
    model: CaptionProbe, test: TestSet, *, batch_size: int = 32, among: Processes | None = None, **options: Any
) -> list[str]:
    """A caption for each image, in sight; `options` are those of `captioned`. `among` several processes each does some of
    the batches, and all come to the same.
    """
    among = among or Processes()
    captions: dict[int, str] = {}
    with progress(f"caption {test.data.name}", len(test), "images", speaks=among.rank == 0) as tick:
        for items in among.batches(len(test), batch_size):
            indices = [test.indices[i] for i in items]
            said = captioned(model, test.data, indices, batch_size=batch_size, **options)
            captions |= {i: caption for i, (_, caption) in zip(items, said, strict=True)}
            tick(min(among.count * len(captions), len(test)))
    whole = {i: caption for some in among.gather(captions) for i, caption in some.items()}
    return [whole[i] for i in range(len(test))]


def plain(test: TestSet, found: Evaluation) -> dict[str, Any]:
    """An evaluation as JSON, with the set's name and fingerprint and the numbers of its items."""
    data = {"name": test.data.name, "fingerprint": test.data.fingerprint, "items": len(test.data)}
    return {"data": data, **found.plain(), "items": list(test.indices)}


def show(test: TestSet, captions: Sequence[str], path: Path, title: str = "") -> dict[str, Any]:
    """Write the gallery of an evaluation, and what `show_apart` does."""
    places = evenly(len(test))
    rows = [{"said": captions[place], "truth": test.data.captions[test.indices[place]][0]} for place in places]
    save_gallery(test.pictures(places), rows, path, f"{test.data.name}: {title}")
    return show_apart(test, captions, path.with_name(f"{path.stem}-sheet.png"))


def show_apart(test: TestSet, captions: Sequence[str], path: Path) -> dict[str, Any]:
    """Write some images as a contact sheet; what was said of each, and a person's words, as JSON."""
    places = evenly(len(test))
    squares = [resize(to_tensor(image.convert("RGB"))[None], SHEET) for image in test.pictures(places)]
    return {
        "sheet": save_sheet({"image": torch.cat(squares)}, path),
        "said": [captions[place] for place in places],
        "truth": [test.data.captions[test.indices[place]][0] for place in places],
    }


def describe(experiment: Experiment, data: ImageTextDataset) -> dict[str, Any]:
    """What makes an experiment what it is, as a file gives it back; `data` is the opened set."""
    described = {
        "schema": SCHEMA,
        "design": experiment.design.plain(),
        "data": {"name": shown(experiment.data), "fingerprint": data.fingerprint},
        "recipe": asdict(experiment.recipe),
        "subset": experiment.subset,
        "test": [{"name": shown(one), "fingerprint": load_dataset(one).fingerprint} for one in experiment.test],
        "n": experiment.n,
        "judge": experiment.judge and shown_judge(experiment.judge),
    }
    again: dict[str, Any] = json.loads(json.dumps(described))
    return again


def shown_judge(name: str) -> str:
    """A judge's name without the folders that its file lies in."""
    architecture, _, source = name.partition("/")
    if not Path(name).expanduser().exists() and Path(source).expanduser().is_file():
        return f"{architecture}/{Path(source).name}"
    return shown_model(name)


def finished(out: Path, plan: Design, described: dict[str, Any]) -> dict[str, Any] | None:
    """The result that lies in `out` if it is of the experiment that `describe` has described, whole and with its layer."""
    try:
        result: dict[str, Any] = json.loads((out / RESULT).read_text())
        same = all(result.get(key) == value for key, value in described.items())
        # The result names models without their folders, the projector's file with them.
        return result if same and read(out)[0] == plan and (out / ADAPTERS).is_file() else None
    except (OSError, ValueError, AttributeError):  # none yet, or a damaged one
        return None


# --- the control ---


def is_control(theirs: Design, ours: Design) -> bool:
    """Whether `theirs` reads the encoder of `ours` with random weights."""
    random, learnt = (parse(design.encoder) for design in (theirs, ours))
    names = {EMBEDDED.get(one.base, shown(one.base)) for one in (random, learnt)}
    return random.random and not learnt.random and len(names) == 1


def control_differs(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """`NAME is THEIRS, not OURS` of the first thing that makes a comparison unfair, from two probes' files; "" of none.

    Their encoders' weights and their seeds may differ.
    """

    def told(file: dict[str, Any]) -> dict[str, Any]:
        recipe = {f"recipe's {key}": value for key, value in file["about"]["recipe"].items() if key != "seed"}
        data = {f"data's {key}": file["about"]["data"][key] for key in ("fingerprint", "learnt", "held_out")}
        return {"prefix": file["design"]["prefix"], "llm": file["frozen"]["llm"], **data, **recipe}

    here, there = told(ours), told(theirs)
    return next((f"{key} is {there.get(key)}, not {here[key]}" for key in here if there.get(key) != here[key]), "")
