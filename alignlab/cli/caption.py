"""`alignlab caption`: the linear captioning probe, what it says of images, and how good that is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from alignlab.cli.common import check_dtype, check_positive, check_recipe, check_shared, check_whole, pick_dtype

if TYPE_CHECKING:
    from alignlab.captioning.evaluation import Subjects
    from alignlab.captioning.experiment import TestSet
    from alignlab.training import Recipe

app = typer.Typer(
    help="Can a frozen language model read a frozen encoder through one linear layer? Train it, caption, score.\n\n"
    "Example: alignlab caption train --encoder mae --llm smollm2 --data scenes-train --out runs/caption-mae",
    no_args_is_help=True,
)

EVAL = "alignlab.caption-eval/1"
JUDGE_HELP = "Of CLIPScores: clip-tiny (the default where it is shipped), ViT-B-32/openai, ARCHITECTURE/FILE, or none."


@app.callback()
def _group() -> None:
    pass


@app.command()
def train(
    encoder: str = typer.Option(
        "mae", help="mae, beit, vqgan, efficientnet-lite0, timm:NAME, a path or a hub id; @random for fresh weights."
    ),
    llm: str = typer.Option("smollm2", help="smollm2, a folder or a hub id."),
    data: str = typer.Option("scenes-train", help="Images with captions to learn from, as measure takes them."),
    prefix: str = typer.Option("", help='Words before every caption, which are not learnt ("A picture of" in LiMBeR).'),
    recipe: str = typer.Option(
        "embedded", help="embedded, or paper: LLaVA's first stage, batch 128, one epoch of 100,000 pairs."
    ),
    steps: int | None = typer.Option(None, help="Updates (default: the recipe's)."),
    epochs: float | None = typer.Option(None, help="Passes over what is learnt in place of --steps."),
    batch_size: int | None = typer.Option(None, help="Images an update (default: the recipe's)."),
    accumulate: int = typer.Option(1, help="Parts that a batch is computed in, one after another."),
    lr: float | None = typer.Option(None, help="Peak rate (default: the recipe's)."),
    warmup: int | None = typer.Option(None, help="Steps of rising rate (default: 3% of the steps)."),
    subset: int | None = typer.Option(None, help="Learn from so many items, drawn at random (default: the recipe's)."),
    test: list[str] = typer.Option(
        [],
        help="Sets to measure on; without any, the shipped scenes after scenes-train, else each fifth item, held out.",
    ),
    n: int = typer.Option(256, "--n", help="Images of each to measure on in the end, evenly spread; 0 for none."),
    judge: str | None = typer.Option(None, help=JUDGE_HELP),
    seed: int = typer.Option(0),
    device: str = typer.Option("auto", help="auto, cpu or cuda."),
    dtype: str = typer.Option(
        "auto",
        help="auto (bfloat16 where quick), bfloat16 or float32, of the language model.",
    ),
    out: Path | None = typer.Option(None, help="Folder for the probe; a run stopped there goes on."),
    json_file: Path | None = typer.Option(None, "--json", help="Write the result to this file too."),
) -> None:
    """Train one linear layer between a frozen encoder and a frozen language model to caption, and measure it.

    Example: alignlab caption train --encoder mae --llm smollm2 --data scenes-train --out runs/caption-mae
    """
    from alignlab.captioning.experiment import Experiment
    from alignlab.captioning.experiment import run as perform
    from alignlab.captioning.fit import Design
    from alignlab.cli.common import check_writable, output_folder, pick_device, write_json
    from alignlab.data import load_dataset
    from alignlab.training import processes

    numbers = {"steps": steps, "epochs": epochs, "batch-size": batch_size, "lr": lr, "subset": subset}
    check_positive({**numbers, "accumulate": accumulate})
    check_whole({"seed": seed, "n": n, "warmup": warmup})
    check_dtype(dtype)
    where = pick_device(device)
    among = processes(where)
    check_shared(out, among.count)
    for source in (data, *test):  # what is wrong shows before a folder is made
        load_dataset(source)
    lab = _laboratory(encoder, llm, data, *test)
    experiment = Experiment(
        design=Design(encoder=encoder, llm=llm, prefix=prefix, seed=seed), data=data, test=tuple(test), n=n
    )
    experiment = _with_recipe(experiment, recipe, steps, epochs, batch_size, lr, warmup, subset, seed)
    experiment = _with_judge(experiment, judge, lab)
    folder = output_folder(out, "caption-train")
    if json_file is not None:
        check_writable(json_file.absolute().parent, "--json")
    result = perform(experiment, folder, device=where, dtype=dtype, accumulate=accumulate, laboratory=lab)
    if among.rank > 0:  # the first writes and speaks
        return
    if json_file is not None:
        write_json(json_file, result)
    for one in result["evaluations"]:
        _show(one, f"{result['design']['encoder']} read by {result['design']['llm']}")
    typer.echo(f"written: {folder}")


@app.command()
def generate(
    image: list[Path] = typer.Argument(None, help="Pictures to caption."),
    checkpoint: Path = typer.Option(..., help="A folder that caption train wrote."),
    data: str | None = typer.Option(None, help="Caption a whole set in place of pictures, into captions.jsonl."),
    n: int | None = typer.Option(None, "--n", help="With --data: so many of its images, evenly spread."),
    beams: int = typer.Option(1, help="Beams of the search; 1 is greedy decoding."),
    longest: int = typer.Option(64, help="Tokens of a caption at most."),
    batch_size: int = typer.Option(32, help="Images at once: speed, and in bfloat16 the last digits."),
    encoder: str | None = typer.Option(None, help="Where the encoder is, if the checkpoint's name does not find it."),
    llm: str | None = typer.Option(None, help="Where the language model is, likewise."),
    device: str = typer.Option("auto", help="auto, cpu or cuda."),
    dtype: str = typer.Option("auto", help="auto (bfloat16 where quick), bfloat16 or float32, of the language model."),
    out: Path | None = typer.Option(None, help="With --data: folder for captions.jsonl (default runs/...)."),
) -> None:
    """Say what is in pictures: a line each, or for a set a captions.jsonl with each item's number, id and caption.

    Example: alignlab caption generate photo.jpg --checkpoint runs/caption-mae
    """
    from alignlab.captioning.fit import load, read
    from alignlab.cli.common import output_folder, pick_device
    from alignlab.data import read_image, resize, to_tensor
    from alignlab.training import processes

    check_positive({"beams": beams, "longest": longest, "batch-size": batch_size, "n": n})
    if bool(image) == bool(data):
        raise ValueError("give pictures, or --data with a set of them, and not both")
    if not data and (n is not None or out is not None):
        raise ValueError("--n and --out are for --data; captions of pictures are printed")
    where = pick_device(device)
    dtype = pick_dtype(dtype, where)
    read(checkpoint)  # what is wrong shows before anything is loaded
    among = processes(where)
    options: dict[str, Any] = {"beams": beams, "longest": longest, "batch_size": batch_size}
    places: dict[str, Any] = {"device": where, "dtype": dtype, "encoder": encoder, "llm": llm}
    if data:
        from alignlab.captioning.experiment import caption_all, open_test

        test = open_test(data, None, n)
        folder = output_folder(out, "caption-generate") if among.rank == 0 else None  # the first writes and speaks
        model, _, _ = load(checkpoint, **places)
        captions = caption_all(model, test, among=among, **options)
        if folder is not None:
            _write_captions(folder / "captions.jsonl", test, captions)
            typer.echo(f"written: {folder}/captions.jsonl ({len(test)} captions)")
        return
    import torch

    try:
        pictures = [to_tensor(read_image(path))[None] for path in image]
    except FileNotFoundError as error:
        raise ValueError(f"{error}; IMAGE takes picture files") from error
    model, _, _ = load(checkpoint, **places)
    said: dict[int, str] = {}
    for some in among.batches(len(pictures), batch_size):
        squares = torch.cat([resize(pictures[i], model.encoder.image_size) for i in some])
        said |= zip(some, model.caption(squares, **options), strict=True)
    said = {i: caption for part in among.gather(said) for i, caption in part.items()}
    for i, path in enumerate(image if among.rank == 0 else ()):
        typer.echo(f"{path}: {said[i] or '(nothing)'}")


@app.command("eval")
def evaluate(
    checkpoint: list[Path] = typer.Option(..., help="A folder that caption train wrote; may be repeated."),
    data: list[str] = typer.Option(["scenes"], help="Images with captions, as measure takes them; may be repeated."),
    n: int = typer.Option(256, "--n", help="Images of each set, evenly spread."),
    judge: str | None = typer.Option(None, help=JUDGE_HELP),
    control: list[Path] = typer.Option(
        [], help="The same probe trained on the encoder's @random; found by itself among the --checkpoints."
    ),
    beams: int = typer.Option(1, help="Beams of the search; 1 is greedy decoding."),
    longest: int = typer.Option(64, help="Tokens of a caption at most."),
    batch_size: int = typer.Option(32, help="Images at once: speed, and in bfloat16 the last digits."),
    encoder: str | None = typer.Option(None, help="Where the encoder is, if the checkpoint's name does not find it."),
    llm: str | None = typer.Option(None, help="Where the language model is, likewise."),
    device: str = typer.Option("auto", help="auto, cpu or cuda."),
    dtype: str = typer.Option("auto", help="auto (bfloat16 where quick), bfloat16 or float32, of the language model."),
    out: Path | None = typer.Option(
        None, help="Folder for result.json and galleries (default runs/caption-eval-TIME)."
    ),
    json_file: Path | None = typer.Option(None, "--json", help="Write the result to this file too."),
) -> None:
    """Caption images that training never saw and score the captions, beside controls: CLIPScores and COCO's metrics.

    Example: alignlab caption eval --checkpoint runs/caption-mae --control runs/caption-mae-random
    """
    from alignlab import trained
    from alignlab.captioning import evaluation, fit
    from alignlab.captioning.experiment import caption_all, open_test, plain, show, shown_judge
    from alignlab.cli.common import check_writable, output_folder, pick_device, write_json
    from alignlab.files import labels
    from alignlab.provenance import environment, shown
    from alignlab.training import processes

    check_positive({"n": n, "beams": beams, "longest": longest, "batch-size": batch_size})
    where = pick_device(device)
    dtype = pick_dtype(dtype, where)
    among = processes(where)
    controls = _controls(checkpoint, control)  # what is wrong shows before anything is loaded
    files = {folder: fit.read(folder)[1]["about"]["data"] for folder in [*checkpoint, *control]}
    tests = {(folder, source): open_test(source, files[folder], n) for folder in checkpoint for source in data}
    folder = output_folder(out, "caption-eval") if among.rank == 0 else None  # the first judges, writes and speaks
    if folder is not None and json_file is not None:
        check_writable(json_file.absolute().parent, "--json")

    judges: dict[str | None, Any] = {}
    seen: dict[Any, Subjects] = {}
    said: dict[Any, list[str]] = {}
    names: list[str] = []
    results = []

    def captions(of: Path, test: TestSet, random: bool) -> list[str]:
        key = (of.resolve(), test.data.fingerprint, tuple(test.indices))
        if key not in said:
            place = f"{encoder}@random" if random and encoder else encoder
            model, _, _ = fit.load(of, device=where, dtype=dtype, encoder=place, llm=llm)
            said[key] = caption_all(model, test, beams=beams, longest=longest, batch_size=batch_size, among=among)
        return said[key]

    for one in checkpoint:
        plan, described, _ = fit.read(one)
        for source in data:
            test, lab = tests[one, source], _laboratory(plan.encoder, plan.llm, source)
            ours = captions(one, test, False)
            random = captions(controls[one], test, True) if controls.get(one) is not None else None
            if folder is None:
                continue
            name = _judge_name(judge, lab)
            if name not in judges:
                judges[name] = evaluation.find_judge(name, device=where)
            by, why = judges[name]
            key = (name, test.data.fingerprint, tuple(test.indices))
            if key not in seen:
                seen[key] = test.subjects(by)
            theirs = controls.get(one)
            found = evaluation.evaluate(
                ours,
                seen[key],
                random=random,
                why_no_judge=why,
            )
            names.append(f"{one.resolve().name}-{test.data.name}")
            picture = f"{labels(names)[-1]}.jpg"
            gallery = show(test, ours, folder / picture, f"{plan.plain()['encoder']} read by {plan.plain()['llm']}")
            row = {
                "checkpoint": one.resolve().name,
                "design": plan.plain(),
                "frozen": described["frozen"],
                "trained": trained.checkpoint(one),
                "learnt": described["about"],
                "control": None if theirs is None else theirs.resolve().name,
                "laboratory": lab,
            }
            row |= {**plain(test, found), "beams": beams, "longest": longest}
            results.append({**row, "picture": picture, "gallery": gallery})
    if folder is None:
        return
    result = {
        "schema": EVAL,
        "results": results,
        "config": {
            "checkpoint": [one.resolve().name for one in checkpoint],
            "control": [one.resolve().name for one in control],
            "data": [shown(source) for source in data],
            "judge": judge and shown_judge(judge),
            **{"n": n, "beams": beams, "longest": longest, "batch_size": batch_size, "device": where, "dtype": dtype},
            **{"seed": evaluation.SEED, "resamples": evaluation.RESAMPLES},
        },
        "environment": environment(where),
    }
    write_json(folder / "result.json", result)
    if json_file is not None:
        write_json(json_file, result)
    for row in results:
        _show(row, row["checkpoint"])
    typer.echo(f"written: {folder}")


def _controls(checkpoints: list[Path], given: list[Path]) -> dict[Path, Path]:
    """Checkpoint -> the probe on its encoder's random weights; ValueError for one given that is nobody's control."""
    from alignlab.captioning import fit
    from alignlab.captioning.experiment import control_differs, is_control

    files = {folder: fit.read(folder)[:2] for folder in [*checkpoints, *given]}
    found: dict[Path, Path] = {}
    for other in [*given, *checkpoints]:
        why = ""
        for one in checkpoints:
            if one not in found and is_control(files[other][0], files[one][0]):
                why = control_differs(files[other][1], files[one][1])
                if not why:
                    found[one] = other
        if other in given and other not in found.values():
            if why:
                raise ValueError(f"--control {other} is no fair control: its {why}; train both alike")
            wanted = " or ".join(f"{files[one][0].plain()['encoder']}@random" for one in checkpoints)
            read = files[other][0].plain()["encoder"]
            raise ValueError(f"--control {other} reads {read}; give a probe trained on {wanted}")
    return found


def _write_captions(path: Path, test: TestSet, captions: list[str]) -> None:
    """A line an item, all or none."""
    from alignlab.files import whole

    ids, references = test.data.ids, test.data.captions
    with whole(path) as unfinished, open(unfinished, "w", encoding="utf-8") as file:
        for index, caption in zip(test.indices, captions, strict=True):
            line = {"item": index, "id": ids[index], "caption": caption, "references": list(references[index])}
            file.write(json.dumps(line) + "\n")


def _show(one: dict[str, Any], title: str) -> None:
    """A table of one evaluation, a row a metric."""
    from rich.markup import escape
    from rich.table import Table

    from alignlab.captioning.card import CONTROLS, about, cell
    from alignlab.cli.common import console

    columns = [name for name in CONTROLS if name in one["scores"]]
    table = Table(
        title=escape(f"{title}: captions of {one['n']} images of {one['data']['name']}"), title_justify="left"
    )
    table.add_column("metric", no_wrap=True)
    for heading in (*columns, "generated - shuffled"):
        table.add_column(heading, justify="right")  # on a narrow terminal an interval goes below its score
    for metric in one["scores"]["generated"]:
        found = [one["scores"][name].get(metric) for name in columns]
        found.append(one["differences"].get("shuffled", {}).get(metric))
        table.add_row(metric, *(cell(x).replace(" to ", "..") for x in found))
    wide = console()
    wide.print(table)
    for text in about(one):
        wide.print(escape(text))


def _laboratory(encoder: str, llm: str, *data: str) -> str:
    """As `laboratory` has it; a random control belongs to its encoder's, the first N of a set to the set's."""
    from alignlab.models.variant import parse
    from alignlab.provenance import laboratory

    return laboratory([parse(encoder).base], llm, *(source.partition(":")[0] for source in data))


def _judge_name(judge: str | None, lab: str) -> str | None:
    from alignlab import paper

    return paper.JUDGE if judge is None and lab == "paper" else judge


def _with_judge(experiment: Any, judge: str | None, lab: str) -> Any:
    from dataclasses import replace

    return replace(experiment, judge=_judge_name(judge, lab))


def _with_recipe(
    experiment: Any,
    name: str,
    steps: int | None,
    epochs: float | None,
    batch: int | None,
    lr: float | None,
    warmup: int | None,
    subset: int | None,
    seed: int,
) -> Any:
    """The experiment with the named recipe, and what was given in its place."""
    import math
    from dataclasses import replace

    from alignlab.captioning.fit import RECIPE
    from alignlab.paper import PROBE_RECIPE

    check_recipe(name, steps, epochs)
    plan: Recipe = replace(RECIPE, seed=seed, lr=lr or RECIPE.lr)
    if name == "paper":
        plan = replace(plan, batch=PROBE_RECIPE["batch"], lr=lr or PROBE_RECIPE["lr"])
        subset = subset or PROBE_RECIPE["subset"]
        epochs = PROBE_RECIPE["epochs"] if epochs is None and steps is None else epochs
    plan = replace(plan, steps=steps or plan.steps, batch=batch or plan.batch)
    experiment = replace(experiment, subset=subset)
    if epochs is not None:
        plan = replace(plan, steps=_steps(experiment, epochs, plan.batch))
    rising = math.ceil(PROBE_RECIPE["warmup"] * plan.steps)
    return replace(experiment, recipe=replace(plan, warmup=rising if warmup is None else warmup))


def _steps(experiment: Any, epochs: float, batch: int) -> int:
    import math

    from alignlab.captioning.experiment import holds_out, learnt_items
    from alignlab.data import load_dataset

    data = load_dataset(experiment.data)
    items = learnt_items(data, holds_out(data, experiment), experiment.subset)
    return max(math.ceil(epochs * len(items) / batch), 1)
