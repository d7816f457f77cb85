"""`alignlab data`: make data sets."""

from __future__ import annotations

from pathlib import Path

import typer

app = typer.Typer(help="Make data sets of rendered scenes.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    pass


@app.command()
def render(
    folder: Path = typer.Argument(..., help="Where the images and captions.jsonl go."),
    n: int = typer.Option(1024, "--n", help="How many scenes."),
    split: str = typer.Option("eval", help="eval or train: two streams that share no scene."),
    size: int = typer.Option(224, help="Pixels a side."),
) -> None:
    """Render captioned 3-D scenes; `eval` at 224 px is the data set that alignlab ships.

    Example: alignlab data render my-scenes --n 200 --split train --size 128
    """
    from alignlab.data.rendered import write_scenes

    if split not in ("eval", "train"):
        raise ValueError(f"--split must be eval or train, got {split!r}")
    write_scenes(folder, n, split, size)
    typer.echo(f"written: {folder}/captions.jsonl and {n} images")
