"""`alignlab data`: which data sets there are by name, what one holds, and new scenes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from alignlab.data import Item
    from alignlab.data.named import NamedData

app = typer.Typer(
    help="The data sets that go by a name (list, show), and new ones of rendered scenes (render).\n\n"
    "Example: alignlab data show scenes --items 3",
    no_args_is_help=True,
)


@app.callback()
def _group() -> None:
    pass


@app.command("list")
def list_all() -> None:
    """List the data sets that go by a name: what they hold, under which licence, and whether they are here.

    Example: alignlab data list
    """
    from rich.markup import escape
    from rich.table import Table

    from alignlab.cli.common import console
    from alignlab.data.named import NAMED, is_here

    out = console()
    table = Table(title="Data sets by name", title_justify="left")
    table.add_column("name", no_wrap=True)
    table.add_column("items", justify="right", no_wrap=True)
    for heading in ("captions", "split", "licence", "needs"):
        table.add_column(heading)
    table.add_column("here", no_wrap=True)
    for data in NAMED.values():
        here = {True: "yes", False: "no", None: "-"}[is_here(data)]
        cells = (data.captions, data.split, data.licence, data.needs)
        table.add_row(data.name, f"{data.items:,}", *map(escape, cells), here)
    out.print(table)
    out.print(
        "here: opens without the hub (-: always from a folder that you name). alignlab data show NAME tells more."
    )
    out.print(escape("Also: a folder, a .jsonl, a .csv, or hf:NAME[@REVISION][:SPLIT]."))


@app.command()
def show(
    source: str = typer.Argument(
        ..., help="A name of `alignlab data list`, with \\[:FOLDER] or without; or any source."
    ),
    items: int = typer.Option(3, "--items", help="How many of the first items to print; 0 for none."),
) -> None:
    """Show what is known of a data set and, where it is here, how many items it has and the first of them.

    Example: alignlab data show nocaps:data/nocaps --items 5
    """
    from alignlab.cli.common import console
    from alignlab.data import load_dataset
    from alignlab.data.named import NAMED, is_here

    if items < 0:
        raise ValueError(f"--items must be 0 or more, got {items}")
    out = console()
    name, _, folder = source.partition(":")
    known = NAMED.get(name)
    if known is not None:
        _facts(out, known)
        if not folder and not is_here(known):
            return
    dataset = load_dataset(source)
    of = f" of {known.items:,}" if known is not None else ""
    out.print(f"here: {len(dataset):,}{of} items, {sum(map(len, dataset.captions)):,} captions", soft_wrap=True)
    for item in (dataset[i] for i in range(min(items, len(dataset)))):
        _item(out, item)


def _facts(out: Console, data: NamedData) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(f"{data.name}: {data.what}"), title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    rows = {
        "split": data.split,
        "items": f"{data.items:,}",
        "captions an item": data.captions,
        "licence": data.licence,
        "source": data.source,
        "hub": data.hub,
        "files": data.files,
        "needs": data.needs,
        "to download": data.get,
    }
    for key, value in rows.items():
        if value:
            table.add_row(key, escape(value))
    out.print(table)


def _item(out: Console, item: Item) -> None:
    from rich.markup import escape

    width, height = item.image.size
    out.print(escape(f"{item.id}  {width} x {height}"), soft_wrap=True)
    for caption in item.captions[:3]:
        out.print(escape(f"  {caption[:200]}"), soft_wrap=True)
    if len(item.captions) > 3:
        out.print(f"  ... {len(item.captions) - 3} more")
    for key, value in item.meta.items():
        out.print(escape(f"  {key}: {str(value)[:120]!r}"), soft_wrap=True)


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
