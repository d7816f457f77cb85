"""`alignlab restore`: the restoration pipeline, of which the decoder comes first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from alignlab.cli.common import check_dtype, check_positive, check_recipe, check_shared, check_whole, pick_dtype

if TYPE_CHECKING:
    from alignlab.data.degradations import Task
    from alignlab.restoration.design import Design
    from alignlab.restoration.experiment import TestSet
    from alignlab.training import Recipe

app = typer.Typer(
    help="Restore images through a frozen language model: train, eval, apply; decoder prepares a MAE for it.\n\n"
    "Example: alignlab restore apply noisy.png --task denoise --checkpoint denoise-mae-smollm2",
    no_args_is_help=True,
)


@app.callback()
def _group() -> None:
    pass


@app.command()
def decoder(
    encoder: str = typer.Option("mae-tiny", help="A MAE: mae-tiny, a local folder or a hub id."),
    data: list[str] = typer.Option(
        ["scenes"], help="scenes (rendered as needed) or a set as measure takes it; may be repeated, in equal shares."
    ),
    test: list[str] = typer.Option(
        [], help="Sets to measure on; without any, the shipped scenes and each fifth item of every --data, held out."
    ),
    loss: str = typer.Option("l1", help="l1, or l1+lpips (needs the lpips package and VGG's weights)."),
    crops: int | None = typer.Option(
        None, help="Learn from this many random square crops of a set's pictures, made once (default: whole pictures)."
    ),
    recipe: str = typer.Option(
        "embedded", help="embedded (3,000 steps of 64), or paper: 28 epochs, batch 4,096, rate 1e-4 x batch / 256."
    ),
    steps: int | None = typer.Option(None, help="Updates (default: the recipe's)."),
    epochs: float | None = typer.Option(None, help="Passes over --data in place of --steps (paper: 28)."),
    batch_size: int | None = typer.Option(None, help="Images an update (default: the recipe's)."),
    accumulate: int = typer.Option(1, help="Parts that a batch is computed in, one after another."),
    lr: float | None = typer.Option(None, help="Peak rate (default: the recipe's)."),
    workers: int = typer.Option(0, help="Processes that read pictures."),
    seed: int = typer.Option(0),
    device: str = typer.Option("auto", help="auto, cpu or cuda."),
    dtype: str = typer.Option("auto", help="auto (bfloat16, by autocast, where it is quick), bfloat16 or float32."),
    out: Path | None = typer.Option(None, help="Folder for the decoder; a run stopped there goes on."),
    json_file: Path | None = typer.Option(None, "--json", help="Write the result to this file too."),
) -> None:
    """Fine-tune a MAE's decoder to reproduce what its frozen encoder saw, and show it before and after.

    Example: alignlab restore decoder --encoder mae-tiny --data scenes --data my-photos/ --out runs/decoder
    """

    from dataclasses import replace

    from alignlab.cli.common import check_writable, output_folder, pick_device, write_json
    from alignlab.data import load_dataset
    from alignlab.models.registry import load_encoder
    from alignlab.provenance import environment, laboratory, shown, shown_model
    from alignlab.restoration.decoder import LOSSES, Run, tune
    from alignlab.restoration.decoder_card import open_tests, write_card
    from alignlab.training import dtype_of, processes

    check_dtype(dtype)
    if loss not in LOSSES:
        raise ValueError(f"--loss must be one of {', '.join(LOSSES)}, got {loss!r}")
    numbers = {
        "steps": steps,
        "epochs": epochs,
        "batch-size": batch_size,
        "accumulate": accumulate,
        "crops": crops,
        "lr": lr,
    }
    check_positive(numbers)
    check_whole({"workers": workers, "seed": seed})
    where = pick_device(device)
    among = processes(where)
    check_shared(out, among.count)
    plan = _recipe(recipe, tuple(data), bool(test), steps, epochs, batch_size, lr, seed)
    for source in (*data, *test):  # what is wrong shows before a folder is made
        load_dataset(source, captions=False)
    model = load_encoder(encoder, device=where)
    folder = output_folder(out, "restore-decoder")
    if json_file is not None:
        check_writable(json_file.absolute().parent, "--json")
    dtype = dtype_of(folder, dtype, where)
    run = Run(
        data=tuple(data),
        out=folder,
        recipe=replace(plan, dtype=dtype),
        loss=loss,
        crops=crops,
        all_items=bool(test),
        accumulate=accumulate,
        device=where,
        workers=workers,
    )
    tests = open_tests(run, tuple(test))  # what cannot be measured shows before an hour of training
    history = tune(model, run)
    if among.rank > 0:  # the first measures, writes and speaks
        return
    typer.echo("measuring the decoder, before and after", err=True)
    card = write_card(model, load_encoder(encoder, device=where), run, tests, history)
    described = {
        "schema": "alignlab.restore-decoder/1",
        "laboratory": laboratory([encoder], None, *data, *test),
        **card,
        "config": {
            **{name.replace("-", "_"): value for name, value in numbers.items()},
            **{"encoder": shown_model(encoder), "recipe": recipe, "loss": loss},
            **{"data": list(map(shown, data)), "test": list(map(shown, test))},
            **{"workers": workers, "seed": seed, "device": where, "dtype": dtype},
        },
        "environment": environment(where),
    }
    write_json(folder / "result.json", described)
    if json_file is not None:
        write_json(json_file, described)
    for name, figures in card["held_out"].items():
        for figure, after in figures["after"].items():
            typer.echo(f"{name}: {figure}: {figures['before'][figure]:.4g} before, {after:.4g} after")
    typer.echo(f"written: {folder}")


@app.command()
def train(
    task: list[str] = typer.Option(
        ["denoise"], help="denoise, deblur, derain, pepper, mask, rotate, flip or repeat; several share the adapters."
    ),
    encoder: str = typer.Option(
        "mae",
        help="mae, beit, vqgan, pca, a path or a hub id, with a decoder; +position appends a position code, which short "
        "trainings need.",
    ),
    decoder: str | None = typer.Option(None, help="Another decoder behind a MAE, as reconstruct takes it."),
    llm: str = typer.Option("smollm2", help="smollm2, a folder or a hub id; LLM@random has fresh weights."),
    how: str = typer.Option("lm4lv", help="lm4lv, or what it is compared with: vit-llm, linear, mlp, transformer."),
    features: str = typer.Option(
        "whitened", help="Coordinates of the tokens: whitened (variances evened out), or raw as in the paper."
    ),
    begin: str = typer.Option(
        "fitted",
        help="How the layers of lm4lv and vit-llm start: fitted to the tokens of training pictures, scaled (random, as large "
        "as the language model's embeddings), or plain (as torch starts any).",
    ),
    task_tokens: int = typer.Option(10, help="Learned tokens a task."),
    lora: int = typer.Option(0, help="Let the language model learn too, through updates of this rank (0: frozen)."),
    causal: bool = typer.Option(False, "--causal", help="vit-llm only: keep the causal mask."),
    rotary: bool = typer.Option(False, "--rotary", help="vit-llm only: keep the language model's positions."),
    data: list[str] = typer.Option(
        ["scenes"], help="scenes (rendered as needed) or a set as measure takes it; may be repeated, in equal shares."
    ),
    crops: int | None = typer.Option(
        None, help="Learn from this many random square crops of a set's pictures, made once (default: whole pictures)."
    ),
    recipe: str = typer.Option(
        "embedded",
        help="embedded, or paper: batch 256, rate 3e-4, 200 warm-up steps, 2 epochs (--features raw is the paper's too).",
    ),
    steps: int | None = typer.Option(None, help="Updates (default: the recipe's)."),
    epochs: float | None = typer.Option(None, help="Passes over --data in place of --steps."),
    batch_size: int | None = typer.Option(None, help="Images an update (default: the recipe's)."),
    accumulate: int = typer.Option(1, help="Parts that a batch is computed in, one after another."),
    lr: float | None = typer.Option(None, help="Peak rate (default: the recipe's)."),
    warmup: int | None = typer.Option(None, help="Steps of rising rate (default: the recipe's)."),
    n: int = typer.Option(
        256, "--n", help="Held-out images to measure on in the end; 0 for none, nor sample pictures."
    ),
    workers: int = typer.Option(0, help="Processes that read pictures."),
    seed: int = typer.Option(0),
    device: str = typer.Option("auto", help="auto, cpu or cuda."),
    dtype: str = typer.Option(
        "auto",
        help="auto (bfloat16 where quick), bfloat16 or float32, of the language model.",
    ),
    out: Path | None = typer.Option(None, help="Folder for the adapters; a run stopped there goes on."),
    json_file: Path | None = typer.Option(None, "--json", help="Write the result to this file too."),
) -> None:
    """Train LM4LV, or what it is compared with, to undo a degradation, the encoder and the language model frozen.

    Example: alignlab restore train --task denoise --encoder mae --llm smollm2 --out runs/denoise
    """
    from alignlab.cli.common import check_writable, output_folder, pick_device, write_json
    from alignlab.data import load_dataset
    from alignlab.restoration.design import Design
    from alignlab.restoration.experiment import Experiment
    from alignlab.restoration.experiment import run as perform
    from alignlab.training import processes

    numbers = {"steps": steps, "epochs": epochs, "batch-size": batch_size, "crops": crops, "lr": lr}
    check_positive({**numbers, "accumulate": accumulate, "task-tokens": task_tokens})
    check_whole({"workers": workers, "seed": seed, "n": n, "warmup": warmup, "lora": lora})
    check_dtype(dtype)
    where = pick_device(device)
    for source in data:  # what is wrong shows before a folder is made
        load_dataset(source, captions=False)
    among = processes(where)
    check_shared(out, among.count)
    try:
        choices = Design(
            how=how,
            encoder=encoder,
            decoder=decoder,
            llm=llm,
            tasks=tuple(task),
            task_tokens=task_tokens,
            features=features,
            lora=lora,
            causal=causal,
            rotary=rotary,
            begin=begin,
            seed=seed,
        )
    except ValueError as error:  # its fields are called as the options are
        raise ValueError(f"--{error}") from error
    experiment = Experiment(
        design=choices,
        data=tuple(data),
        recipe=_restore_recipe(recipe, tuple(data), steps, epochs, batch_size, lr, warmup, seed),
        crops=crops,
        n=n,
    )
    folder = output_folder(out, "restore-train")
    if json_file is not None:
        check_writable(json_file.absolute().parent, "--json")
    result = perform(experiment, folder, device=where, dtype=dtype, accumulate=accumulate, workers=workers)
    if among.rank > 0:  # the first writes and speaks
        return
    if json_file is not None:
        write_json(json_file, result)
    if result["evaluations"]:
        _show_evaluations(result["evaluations"], how, result.get("laboratory"))
    typer.echo(f"written: {folder}")


@app.command("eval")
def evaluate(
    checkpoint: list[str] = typer.Option(..., help="A folder that restore train wrote, or a shipped one's name."),
    data: list[str] = typer.Option(["scenes"], help="Images, as measure takes them; may be repeated."),
    task: list[str] = typer.Option([], help="Default: all that the checkpoint learnt."),
    n: int = typer.Option(256, "--n", help="Images of each set, evenly spread."),
    fifth: bool = typer.Option(
        False, "--held-out", help="Each fifth item alone, as training leaves them out (always so for sets learnt from)."
    ),
    strength: list[str] = typer.Option(
        [],
        help="Degradations of another strength, as sigma=60,60 for denoise or rate=0.2,0.2 for mask. Several of one name are "
        "tried one after another, with pictures of the first.",
    ),
    mode: str = typer.Option(
        "forced", help="lm4lv: forced puts the opening marker there; free lets the model speak until it opens an image."
    ),
    encoder: str | None = typer.Option(None, help="Where the encoder is, if the checkpoint's name does not find it."),
    llm: str | None = typer.Option(None, help="Where the language model is, likewise."),
    batch_size: int = typer.Option(64, help="Images at once: speed, and in bfloat16 the last digits."),
    seed: int | None = typer.Option(None, help="Of the degradations (default: that of every evaluation here)."),
    device: str = typer.Option("auto", help="auto, cpu or cuda."),
    dtype: str = typer.Option("auto", help="auto (bfloat16 where quick), bfloat16 or float32, of the language model."),
    out: Path | None = typer.Option(None, help="Folder for result.json and pictures (default runs/restore-eval-TIME)."),
    json_file: Path | None = typer.Option(None, "--json", help="Write the result to this file too."),
) -> None:
    """Degrade, restore, compare: PSNR and SSIM of what was given, of encoder and decoder alone, and of the model.

    Example: alignlab restore eval --checkpoint runs/denoise --data my-photos/
    Example: alignlab restore eval --checkpoint runs/denoise --strength sigma=75,75 --strength sigma=25,25
    """
    from alignlab import trained
    from alignlab.cli.common import check_writable, output_folder, pick_device, write_json
    from alignlab.files import labels, numbered
    from alignlab.provenance import environment, laboratory, shown, shown_model
    from alignlab.restoration.card import task_of
    from alignlab.restoration.design import find, load, read, steps_of
    from alignlab.restoration.experiment import TEST_SEED, evaluate_on, open_unseen
    from alignlab.restoration.pictures import save_grid
    from alignlab.sheets import save_sheet
    from alignlab.training import processes

    check_positive({"n": n, "batch-size": batch_size})
    _check_mode(mode)
    task, checkpoint = list(dict.fromkeys(task)), list(dict.fromkeys(checkpoint))
    where = pick_device(device)
    dtype = pick_dtype(dtype, where)
    tests: dict[str, list[TestSet]] = {}
    for name in checkpoint:  # what is wrong shows before anything is loaded or measured
        plan, described, _ = read(find(name))
        _parameters(task or list(plan.tasks), strength)
        for one in task or plan.tasks:
            _check_learnt(one, plan, name)
        _mode_of(plan.how, mode)
        about = described["about"]
        tests[name] = [open_unseen(source, about, name, n, fifth) for source in data]
    called = dict(zip(checkpoint, numbered([find(name).resolve().name for name in checkpoint]), strict=True))
    among = processes(where)
    folder = output_folder(out, "restore-eval") if among.rank == 0 else None  # the first writes and speaks
    if folder is not None and json_file is not None:
        check_writable(json_file.absolute().parent, "--json")
    shown_as: list[str] = []
    results: list[dict[str, Any]] = []
    for name in checkpoint:
        model, plan, described = load(name, device=where, dtype=dtype, encoder=encoder, llm=llm)
        tasks = task or list(plan.tasks)
        parameters = _parameters(tasks, strength)
        for source in data:
            test = tests[name].pop(0)  # which keeps the pictures that were read
            for one, degraded in ((task, how) for task in tasks for how in parameters[task]):
                options = _mode_of(model.how, mode)
                plain, found = evaluate_on(
                    model,
                    test,
                    one,
                    parameters=degraded,
                    seed=TEST_SEED if seed is None else seed,
                    batch_size=batch_size,
                    among=among,
                    **options,
                )
                if folder is None:
                    continue
                row = {"checkpoint": called[name], "design": plan.plain(), "frozen": described["frozen"]}
                row |= {"trained": trained.checkpoint(find(name)), "steps": steps_of(described)}
                learnt = [one["name"] for one in described["about"].get("data", [])]
                row["laboratory"] = laboratory([plan.encoder], plan.llm if plan.reads_llm else None, *learnt, source)
                if degraded is parameters[one][0]:
                    shown_as.append("-".join((called[name], test.data.name, one)))
                    label = labels(shown_as)[-1]
                    save_grid(found.shown, folder / f"{label}.jpg", f"{task_of(plain)}, {model.how}")
                    row |= {"picture": f"{label}.jpg", "sheet": save_sheet(found.shown, folder / f"{label}-sheet.png")}
                results.append({**row, **plain})
    if folder is None:
        return
    labs = {row["laboratory"] for row in results}
    whose = labs.pop() if len(labs) == 1 else "own"
    result = {
        "schema": "alignlab.restore-eval/1",
        "laboratory": whose,
        "results": results,
        "config": {
            "checkpoint": list(called.values()),
            "data": [shown(source) for source in data],
            **{"task": task, "n": n, "held_out": fifth, "strength": strength, "mode": mode, "seed": seed},
            **{"encoder": encoder and shown_model(encoder), "llm": llm and shown_model(llm)},
            **{"batch_size": batch_size, "device": where, "dtype": dtype},
        },
        "environment": environment(where),
    }
    write_json(folder / "result.json", result)
    if json_file is not None:
        write_json(json_file, result)
    _show_evaluations(results, "restored", whose)
    typer.echo(f"written: {folder}")


@app.command()
def apply(
    image: list[Path] = typer.Argument(..., help="Pictures to restore."),
    checkpoint: str = typer.Option(..., help="A folder that restore train wrote, or a shipped one's name."),
    task: str | None = typer.Option(None, help="Default: the first that the checkpoint learnt."),
    mode: str = typer.Option("forced", help="forced or free, as restore eval."),
    encoder: str | None = typer.Option(None, help="Where the encoder is, if the checkpoint's name does not find it."),
    llm: str | None = typer.Option(None, help="Where the language model is, likewise."),
    batch_size: int = typer.Option(32, help="Images at once: speed, and in bfloat16 the last digits."),
    device: str = typer.Option("auto", help="auto, cpu or cuda."),
    dtype: str = typer.Option("auto", help="auto (bfloat16 where quick), bfloat16 or float32, of the language model."),
    out: Path | None = typer.Option(None, help="Folder for the pictures (default runs/restore-apply-TIME)."),
    json_file: Path | None = typer.Option(None, "--json", help="Write the result to this file too."),
) -> None:
    """Restore pictures and write them as PNG files, squares of the size that the encoder's decoder paints.

    Example: alignlab restore apply noisy.png --task denoise --checkpoint runs/denoise
    """
    from torchvision.transforms.functional import to_pil_image

    from alignlab import trained
    from alignlab.cli.common import check_writable, output_folder, pick_device, write_json
    from alignlab.data import read_image, resize, to_tensor
    from alignlab.provenance import environment
    from alignlab.restoration.design import find, load, read, steps_of
    from alignlab.restoration.restorer import unwritten
    from alignlab.training import processes

    check_positive({"batch-size": batch_size})
    _check_mode(mode)
    import torch

    where = pick_device(device)
    dtype = pick_dtype(dtype, where)
    try:
        pictures = [to_tensor(read_image(path))[None] for path in image]
    except FileNotFoundError as error:
        raise ValueError(f"{error}; IMAGE takes picture files") from error
    plan, _, _ = read(find(checkpoint))
    _check_learnt(task or plan.tasks[0], plan, checkpoint)
    options = _mode_of(plan.how, mode)
    among = processes(where)
    model, plan, described = load(checkpoint, device=where, dtype=dtype, encoder=encoder, llm=llm)
    folder = output_folder(out, "restore-apply") if among.rank == 0 else None  # the first writes and speaks
    if folder is not None and json_file is not None:
        check_writable(json_file.absolute().parent, "--json")
    size = model.encoder.image_size
    chosen = task or plan.tasks[0]
    mine: dict[int, tuple[bool, torch.Tensor]] = {}  # whether an answer has an image, and the picture
    with torch.no_grad():
        for some in among.batches(len(pictures), batch_size):
            squares = torch.cat([resize(pictures[i], size) for i in some])
            tokens = model.write(model.encoder.encode(squares), chosen, **options)
            opened = [not unwritten(one) for one in tokens.split(1)]
            painted = model.encoder.decode(tokens).cpu().clamp(0, 1)
            mine |= zip(some, zip(opened, painted, strict=True), strict=True)
    whole = {i: one for part in among.gather(mine) for i, one in part.items()}
    if folder is None:
        return
    made = [whole[i] for i in range(len(pictures))]
    told: list[dict[str, Any]] = []
    for at, (path, given, (opened_one, picture)) in enumerate(zip(image, pictures, made, strict=True)):
        before = sum(other.stem == path.stem for other in image[:at])
        name = f"{path.stem}-{chosen}{f'-{before + 1}' if before else ''}.png"
        if opened_one:
            to_pil_image(picture.mul(255).round().byte()).save(folder / name)  # floats it would cut off
        told.append({"image": path.name, "size": [*given.shape[:1:-1]], "restored": name if opened_one else None})
    result = {
        "schema": "alignlab.restore-apply/1",
        "laboratory": "own",  # for the pictures are
        "checkpoint": find(checkpoint).resolve().name,
        "trained": trained.checkpoint(find(checkpoint)),
        "steps": steps_of(described),
        "design": plan.plain(),
        "frozen": described["frozen"],
        "task": chosen,
        **options,
        "read_at": size,
        "pictures": told,
        "environment": environment(where),
    }
    write_json(folder / "result.json", result)
    if json_file is not None:
        write_json(json_file, result)
    _say_unfinished(find(checkpoint).name, result["steps"])
    squeezed = [f"{one['image']} ({one['size'][0]} x {one['size'][1]})" for one in told if len(set(one["size"])) > 1]
    if squeezed:
        rest = f" and {len(squeezed) - 3} more" if len(squeezed) > 3 else ""
        typer.echo(
            f"note: {', '.join(squeezed[:3])}{rest}: squeezed into a square, as the encoder takes no other shape"
        )
    typer.echo(
        f"read at {size} x {size} pixels, as {model.encoder.name} sees them, and painted at {made[0][1].shape[-1]}"
    )
    typer.echo(f"written: {folder} ({sum(one['restored'] is not None for one in told)} picture(s))")
    lacking = [one["image"] for one in told if one["restored"] is None]
    if lacking:
        raise RuntimeError(
            f"{len(lacking)} of {len(told)} answers never opened an image, so that there is no picture of "
            f"{', '.join(lacking[:5])}; --mode forced opens it for them"
        )


def _check_learnt(task: str, plan: Design, name: str) -> None:
    if task not in plan.tasks:
        raise ValueError(f"--task {task}: {name} has learnt {', '.join(plan.tasks)}")


def _mode_of(how: str, mode: str) -> dict[str, str]:
    if how == "lm4lv":
        return {"mode": mode}
    if mode != "forced":
        raise ValueError(f"--mode {mode} is for lm4lv; {how} says nothing")
    return {}


def _check_mode(mode: str) -> None:
    from alignlab.restoration.lm4lv import MODES

    if mode not in MODES:
        raise ValueError(f"--mode must be {' or '.join(MODES)}, got {mode!r}")


def _parameters(tasks: list[str], strength: list[str]) -> dict[str, list[Task | None]]:
    """Each task's degradations with those of the fields given, "name=value" or "name=low,high" each, that it has: one for each
    combination of a name's values; None where it has none of them.
    """
    import ast
    import itertools
    from dataclasses import fields, replace

    from alignlab.data.degradations import NAMES, TASKS

    for task in tasks:
        if task not in TASKS:
            raise ValueError(f"--task must be one of {', '.join(NAMES)}, got {task!r}")
    # Every task is a dataclass.
    known = {task: [field.name for field in fields(TASKS[task])] for task in tasks}  # type: ignore[arg-type]
    given: dict[str, list[Any]] = {}
    for one in strength:
        name, _, value = one.partition("=")
        if not any(name in names for names in known.values()):
            takes = "; ".join(f"{task} takes {', '.join(names) or 'nothing'}" for task, names in known.items())
            raise ValueError(f"--strength {one}: {takes}")
        try:
            read = ast.literal_eval(value)
        except (SyntaxError, ValueError) as error:
            raise ValueError(f"--strength must be NAME=NUMBER or NAME=LOW,HIGH, got {one!r}") from error
        if read in given.setdefault(name, []):
            raise ValueError(f"--strength {one} is given twice")
        given[name].append(read)
    changed: dict[str, list[Task | None]] = {}
    for task, names in known.items():
        ours = [name for name in given if name in names]
        try:
            changed[task] = [
                replace(TASKS[task], **dict(zip(ours, values, strict=True))) if ours else None  # type: ignore[type-var]
                for values in itertools.product(*(given[name] for name in ours))
            ]
        except ValueError as error:
            raise ValueError(f"--strength of {task}: {error}") from error
    return changed


def _say_unfinished(name: str, steps: dict[str, int]) -> None:
    if steps["done"] < steps["planned"]:
        typer.echo(f"note: {name} is unfinished: step {steps['done']:,} of {steps['planned']:,}")


def _show_evaluations(evaluations: list[dict[str, Any]], how: str, laboratory: str | None) -> None:
    """A table as the paper's Table 2, a row a task and set."""
    from rich.markup import escape
    from rich.table import Table

    from alignlab.cli.common import console
    from alignlab.restoration.card import gain_of, lift_of, pair_of, ssim_gain_of, task_of

    # Files that were written before it was recorded hold held-out images alone.
    unsure = list(dict.fromkeys(one["data"]["name"] for one in evaluations if not one.get("held_out", True)))
    whose = {"embedded": " (embedded laboratory: small models, not the paper's)", "paper": " (the paper's laboratory)"}
    title = (
        f"PSNR in dB / SSIM{'' if unsure else ' on images that were not trained on'}{whose.get(laboratory or '', '')}"
    )
    table = Table(title=title, title_justify="left")
    first = ["checkpoint"] if len({one.get("checkpoint") for one in evaluations}) > 1 else []
    for heading in (
        *first,
        "task",
        "data",
        "n",
        "degraded",
        "encoder + decoder",
        how,
        "gain in dB (95% interval)",
        "misaligned",
    ):
        table.add_column(
            heading, no_wrap=heading != "data", justify="left" if heading in ("checkpoint", "task", "data") else "right"
        )
    for one in evaluations:
        cells = [pair_of(one[column]) for column in ("degraded", "alone", "restored")]
        table.add_row(
            *(escape(one[key]) for key in first),
            task_of(one),
            escape(one["data"]["name"]),
            f"{one['n']}",
            *cells,
            gain_of(one),
            f"{one['misaligned']}",
        )
    console().print(table)
    if unsure:
        typer.echo(
            f"note: whether the adapters, the encoder or its decoder learnt from pictures of {', '.join(unsure)} is not known: "
            "no set of this content was given to the adapters' training"
        )
    for name, steps in {one["checkpoint"]: one["steps"] for one in evaluations if "steps" in one}.items():
        _say_unfinished(name, steps)
    for one in evaluations:
        of = f"{one['checkpoint']}, " if first else ""
        said = [f"restored minus degraded {lift_of(one)} dB"] if one["lift"] else []
        said += [f"gain in SSIM {ssim_gain_of(one)}"] if one["gain"] else []
        if said:
            typer.echo(f"{of}{task_of(one)} on {one['data']['name']}: {'; '.join(said)}")
    for one in evaluations:
        if one["told"]:
            by = f"{one['checkpoint']}, " if "checkpoint" in one else ""
            typer.echo(
                f"{by}{task_of(one)} on {one['data']['name']}: {pair_of(one['told'])} where it reads the true answer so "
                "far in place of its own"
            )
        if one["unwritten"]:
            typer.echo(
                f"note: {one['unwritten']} of {one['n']} answers ({task_of(one)} on {one['data']['name']}) never opened an "
                "image; what stands for them says nothing, and the figures of this line say little"
            )


def _restore_recipe(
    name: str,
    data: tuple[str, ...],
    steps: int | None,
    epochs: float | None,
    batch: int | None,
    lr: float | None,
    warmup: int | None,
    seed: int,
) -> Recipe:
    """The named recipe with what was given in its place."""
    import math
    from dataclasses import replace

    from alignlab.paper import LM4LV_RECIPE
    from alignlab.restoration.fit import RECIPE

    check_recipe(name, steps, epochs)
    plan = RECIPE
    if name == "paper":
        published = {key: LM4LV_RECIPE[key] for key in ("batch", "lr", "warmup")}
        plan = replace(RECIPE, **published)
        epochs = LM4LV_RECIPE["epochs"] if epochs is None and steps is None else epochs
    plan = replace(
        plan,
        steps=steps or plan.steps,
        batch=batch or plan.batch,
        lr=lr or plan.lr,
        warmup=plan.warmup if warmup is None else warmup,
        seed=seed,
    )
    if epochs is not None:
        plan = replace(plan, steps=max(math.ceil(epochs * _count(data) / plan.batch), 1))
    # A run shorter than its warm-up would never reach its rate.
    return plan if warmup is not None else replace(plan, warmup=min(plan.warmup, plan.steps // 5))


def _count(data: tuple[str, ...], all_items: bool = False) -> int:
    """How many pictures there are to learn from."""
    from alignlab.data import load_dataset
    from alignlab.pretrain.pool import held_out

    if "scenes" in data:
        raise ValueError("--data scenes is rendered without an end, so that it has no epochs; give --steps")
    sets = [load_dataset(source, captions=False) for source in data]
    return sum(len(one) - (0 if all_items else len(held_out(one))) for one in sets)


def _recipe(
    name: str,
    data: tuple[str, ...],
    all_items: bool,
    steps: int | None,
    epochs: float | None,
    batch: int | None,
    lr: float | None,
    seed: int,
) -> Recipe:
    """The recipe of a name with what is given put in its place."""
    import math
    from dataclasses import replace

    from alignlab.paper import DECODER_RECIPE
    from alignlab.restoration.decoder import RECIPE, paper_recipe

    check_recipe(name, steps, epochs)
    items = _count(data, all_items) if epochs is not None or (name == "paper" and steps is None) else 0
    if name == "paper":
        recipe = paper_recipe(items, batch or DECODER_RECIPE["batch"], epochs or DECODER_RECIPE["epochs"])
    else:
        recipe = replace(RECIPE, batch=batch or RECIPE.batch)
        if epochs is not None:
            recipe = replace(recipe, steps=max(math.ceil(epochs * items / recipe.batch), 1))
    return replace(recipe, steps=steps or recipe.steps, lr=lr or recipe.lr, seed=seed)
