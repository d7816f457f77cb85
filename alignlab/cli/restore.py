"""`alignlab restore`: the restoration pipeline, of which the decoder comes first."""

from __future__ import annotations

from pathlib import Path

import typer

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
    steps: int | None = typer.Option(None, help="Updates (default: the recipe's)."),
    batch_size: int | None = typer.Option(None, help="Images an update (default: the recipe's)."),
    lr: float | None = typer.Option(None, help="Peak rate (default: the paper's, 1.6e-3)."),
    workers: int = typer.Option(0, help="Processes that read pictures."),
    seed: int = typer.Option(0),
    device: str = typer.Option("auto", help="auto, cpu or cuda."),
    dtype: str = typer.Option("bfloat16", help="bfloat16 (autocast) or float32."),
    out: Path | None = typer.Option(None, help="Folder for the decoder; a run stopped there goes on."),
) -> None:
    """Fine-tune a MAE's decoder to reproduce what its frozen encoder saw, and show it before and after.

    Example: alignlab restore decoder --encoder mae-tiny --data scenes --data my-photos/ --out runs/decoder
    """
    from dataclasses import replace

    from alignlab.cli.common import output_folder, pick_device
    from alignlab.models.registry import load_encoder
    from alignlab.restoration.decoder import RECIPE, Run, tune
    from alignlab.restoration.decoder_card import write_card

    if dtype not in ("bfloat16", "float32"):
        raise ValueError(f"--dtype must be bfloat16 or float32, got {dtype!r}")
    for name, value in (("--steps", steps), ("--batch-size", batch_size), ("--crops", crops), ("--lr", lr)):
        if value is not None and value <= 0:
            raise ValueError(f"{name} must be more than 0, got {value}")
    if workers < 0:
        raise ValueError(f"--workers must be 0 or more, got {workers}")
    recipe = replace(
        RECIPE,
        steps=steps or RECIPE.steps,
        batch=batch_size or RECIPE.batch,
        lr=lr or RECIPE.lr,
        seed=seed,
        dtype=dtype,
    )
    where = pick_device(device)
    model = load_encoder(encoder, device=where)
    folder = output_folder(out, "restore-decoder")
    run = Run(
        data=tuple(data),
        out=folder,
        recipe=recipe,
        loss=loss,
        crops=crops,
        all_items=bool(test),
        device=where,
        workers=workers,
    )
    history = tune(model, run)
    measured = write_card(model, load_encoder(encoder, device=where), run, tuple(test), history)
    for name, figures in measured.items():
        for figure, after in figures["after"].items():
            typer.echo(f"{name}: {figure}: {figures['before'][figure]:.4g} before, {after:.4g} after")
    typer.echo(f"written: {folder}")
