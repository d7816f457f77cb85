"""`alignlab pretrain`: train the small models that alignlab ships."""

from __future__ import annotations

from pathlib import Path

import typer


def pretrain(
    kind: str = typer.Argument(..., help="mae, dvae, beit, vqgan, clip, or pca, which is fitted in one pass."),
    data: list[str] = typer.Option(
        ["scenes"],
        help="scenes (rendered as needed) or a captioned set as measure takes; may be repeated, in equal shares.",
    ),
    steps: int | None = typer.Option(None, help="Updates (default: the recipe's)."),
    batch_size: int | None = typer.Option(None, help="Images an update (default: the recipe's)."),
    tokenizer: str = typer.Option("dvae-tiny", help="beit only: the dVAE whose codes it learns."),
    seed: int = typer.Option(0),
    device: str = typer.Option("auto", help="auto, cpu or cuda."),
    dtype: str = typer.Option("auto", help="auto (bfloat16, by autocast, where it is quick), bfloat16 or float32."),
    out: Path | None = typer.Option(None, help="Folder for the checkpoint; a run stopped there goes on."),
) -> None:
    """Train a small model from scratch and write it with a card that says what it can do.

    Of every --data folder each fifth item is held out and only measured on. clip, the judge of captions, learns from the
    captions too; its scenes are those of scenes-train, of which it may be given the first N: --data scenes-train:N.

    Example: alignlab pretrain mae --data scenes --data my-photos/ --out runs/mae
    """
    from dataclasses import replace

    from alignlab.cli.common import check_dtype, output_folder, pick_device
    from alignlab.pretrain.card import write_card
    from alignlab.pretrain.run import RECIPES, Run
    from alignlab.pretrain.run import pretrain as train
    from alignlab.training import dtype_of

    if kind not in RECIPES:
        raise ValueError(f"kind must be one of {', '.join(RECIPES)}, got {kind!r}")
    check_dtype(dtype)
    for name, value in (("--steps", steps), ("--batch-size", batch_size)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}")
    recipe = RECIPES[kind]
    recipe = replace(recipe, steps=steps or recipe.steps, batch=batch_size or recipe.batch, seed=seed)
    where = pick_device(device)
    folder = output_folder(out, f"pretrain-{kind}")
    recipe = replace(recipe, dtype=dtype_of(folder, dtype, where))
    run = Run(kind, tuple(data), recipe, folder, device=where, tokenizer=tokenizer)
    history = train(run)
    measured = write_card(run, history)
    for data_name, figures in measured.items():
        typer.echo(f"held-out {data_name}: " + ", ".join(f"{k} {v:.4g}" for k, v in figures.items()))
    typer.echo(f"written: {folder}")
