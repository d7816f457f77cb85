"""`alignlab restore`: the restoration pipeline, of which the decoder comes first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from alignlab.training import Recipe

app = typer.Typer(help="Restore images through a frozen language model; first the decoder.", no_args_is_help=True)


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
    dtype: str = typer.Option("bfloat16", help="bfloat16 (autocast) or float32."),
    out: Path | None = typer.Option(None, help="Folder for the decoder; a run stopped there goes on."),
    json_file: Path | None = typer.Option(None, "--json", help="Write the result to this file too."),
) -> None:
    """Fine-tune a MAE's decoder to reproduce what its frozen encoder saw, and show it before and after.

    Example: alignlab restore decoder --encoder mae-tiny --data scenes --data my-photos/ --out runs/decoder
    """
    import math

    from alignlab.cli.common import check_writable, laboratory, output_folder, pick_device, write_json
    from alignlab.models.registry import load_encoder
    from alignlab.provenance import environment
    from alignlab.restoration.decoder import LOSSES, Run, tune
    from alignlab.restoration.decoder_card import open_tests, write_card

    if dtype not in ("bfloat16", "float32"):
        raise ValueError(f"--dtype must be bfloat16 or float32, got {dtype!r}")
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
    for name, value in numbers.items():
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"--{name} must be more than 0, got {value}")
    if workers < 0 or seed < 0:
        raise ValueError(f"--workers and --seed must be 0 or more, got {workers} and {seed}")
    where = pick_device(device)
    plan = _recipe(recipe, tuple(data), bool(test), steps, epochs, batch_size, lr, seed, dtype)
    model = load_encoder(encoder, device=where)
    folder = output_folder(out, "restore-decoder")
    if json_file is not None:
        check_writable(json_file.absolute().parent, "--json")
    run = Run(
        data=tuple(data),
        out=folder,
        recipe=plan,
        loss=loss,
        crops=crops,
        all_items=bool(test),
        accumulate=accumulate,
        device=where,
        workers=workers,
    )
    tests = open_tests(run, tuple(test))  # what cannot be measured shows before an hour of training
    history = tune(model, run)
    typer.echo("measuring the decoder, before and after", err=True)
    card = write_card(model, load_encoder(encoder, device=where), run, tests, history)
    described = {
        "schema": "alignlab.restore-decoder/1",
        "laboratory": laboratory([encoder], None, data[0] if len(data) == 1 else ""),
        **card,
        "config": {
            **{name.replace("-", "_"): value for name, value in numbers.items()},
            **{"encoder": encoder, "recipe": recipe, "data": data, "test": test, "loss": loss},
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


def _recipe(
    name: str,
    data: tuple[str, ...],
    all_items: bool,
    steps: int | None,
    epochs: float | None,
    batch: int | None,
    lr: float | None,
    seed: int,
    dtype: str,
) -> Recipe:
    """The recipe of a name with what is given put in its place."""
    import math
    from dataclasses import replace

    from alignlab.data import load_dataset
    from alignlab.paper import DECODER_RECIPE
    from alignlab.pretrain.pool import held_out
    from alignlab.restoration.decoder import RECIPE, paper_recipe

    if name not in ("embedded", "paper"):
        raise ValueError(f"--recipe must be embedded or paper, got {name!r}")
    if steps is not None and epochs is not None:
        raise ValueError("give --steps or --epochs, not both")
    items = 0
    if epochs is not None or (name == "paper" and steps is None):
        if "scenes" in data:
            raise ValueError("--data scenes is rendered without an end, so that it has no epochs; give --steps")
        sets = [load_dataset(source) for source in data]
        items = sum(len(one) - (0 if all_items else len(held_out(one))) for one in sets)
    if name == "paper":
        recipe = paper_recipe(items, batch or DECODER_RECIPE["batch"], epochs or DECODER_RECIPE["epochs"])
    else:
        recipe = replace(RECIPE, batch=batch or RECIPE.batch)
        if epochs is not None:
            recipe = replace(recipe, steps=max(math.ceil(epochs * items / recipe.batch), 1))
    return replace(recipe, steps=steps or recipe.steps, lr=lr or recipe.lr, seed=seed, dtype=dtype)
