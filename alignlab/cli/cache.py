"""`alignlab cache`: what is kept on disk of earlier runs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import typer

from alignlab.analysis.words import si

if TYPE_CHECKING:
    from alignlab.features.cache import Entry

app = typer.Typer(
    help="The features that earlier runs have computed: list them, check every byte, throw some away.\n\n"
    "Example: alignlab cache list",
    no_args_is_help=True,
)
DAY = 86_400


@app.callback()
def _group() -> None:
    pass


@app.command("list")
def list_() -> None:
    """List the computed features, the largest first, and where they lie.

    Example: alignlab cache list
    """
    from rich.markup import escape
    from rich.table import Table

    from alignlab.cli.common import console
    from alignlab.features.cache import entries
    from alignlab.paths import home

    found = entries()
    screen = console()
    table = Table()
    for heading in ("features", "model", "data", "pool", "dtype"):
        table.add_column(heading, overflow="fold")
    for heading in ("items", "size", "changed"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in found:
        items = "unreadable" if one.trouble else f"{one.n:,}" if one.complete else f"{one.items:,} of {one.n:,}"
        numbers = one.dtype if one.batch is None else f"{one.dtype}, batches of {one.batch}"
        names = (one.folder.name[:8], one.model, one.data, one.pool, numbers)
        table.add_row(
            *map(escape, names), items, f"{si(one.size)}B", time.strftime("%Y-%m-%d", time.localtime(one.changed))
        )
    if found:
        screen.print(table)
    for one in found:
        if one.trouble:
            screen.print(escape(f"{_named(one)}: {one.trouble}"), soft_wrap=True)
    total = f"{si(sum(one.size for one in found))}B"
    screen.print(escape(f"{len(found)} set(s) of features, {total}, in {home()} (ALIGNLAB_HOME)"), soft_wrap=True)


@app.command()
def verify() -> None:
    """Read every shard of computed features and compare it with its checksum; exit 1 where one is damaged.

    A damaged shard is never used: the next run that wants it computes it anew.

    Example: alignlab cache verify
    """
    from alignlab.features.cache import damaged, entries
    from alignlab.progress import progress

    found = entries()
    wrong = 0
    with progress("verify", len(found), "sets") as tick:
        for number, one in enumerate(found, 1):
            for name in damaged(one):
                wrong += 1
                typer.echo(f"damaged: {name} of {_named(one)}")
            if one.trouble:
                wrong += 1
                typer.echo(f"damaged: {_named(one)}: {one.trouble}")
            tick(number)
    shards = sum(len(one.hashes) for one in found)
    if wrong:
        raise RuntimeError(
            f"{wrong} of {shards} shard(s) in {len(found)} set(s) of features are damaged or cannot be told; they are computed "
            "anew when they are needed, or: alignlab cache prune --damaged"
        )
    typer.echo(f"{shards} shard(s) in {len(found)} set(s) of features are as they were written")


@app.command()
def prune(
    model: list[str] = typer.Option([], help="Features of this model; may be repeated."),
    data: list[str] = typer.Option([], help="Features of this set; may be repeated."),
    older: float | None = typer.Option(None, help="Not changed for so many days."),
    incomplete: bool = typer.Option(False, "--incomplete", help="Those that no run has finished."),
    damaged: bool = typer.Option(
        False, "--damaged", help="Those with a damaged shard or manifest; every byte is read."
    ),
    everything: bool = typer.Option(False, "--everything", help="All of them."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Tell what would go, and delete nothing."),
) -> None:
    """Delete computed features that fit every option given; what a run is writing is left alone.

    Example: alignlab cache prune --older 30 --dry-run
    """
    from alignlab.features.cache import damaged as damaged_shards
    from alignlab.features.cache import entries, remove

    if older is not None and not older >= 0:
        raise ValueError(f"--older must be 0 or more, got {older}")
    chosen = bool(model or data or older is not None or incomplete or damaged)
    if chosen == everything:
        raise ValueError(
            "say what to delete: --model, --data, --older, --incomplete, --damaged, or --everything alone"
            if not chosen
            else "--everything stands alone"
        )
    found = entries()
    for option, names, known in (("model", model, {e.model for e in found}), ("data", data, {e.data for e in found})):
        for name in names:
            if name not in known:
                raise ValueError(f"--{option} {name}: there is {', '.join(sorted(known)) or 'nothing'}")
    now, freed, gone = time.time(), 0, 0
    for one in found:
        fits = (
            (not model or one.model in model)
            and (not data or one.data in data)
            and (older is None or now - one.changed >= older * DAY)
            and (not incomplete or not one.complete)
            and (not damaged or bool(one.trouble) or any(damaged_shards(one)))
        )
        if not fits:
            continue
        if not dry_run and not remove(one):
            typer.echo(f"left alone, a run is writing it: {_named(one)}")
            continue
        typer.echo(f"{'would delete' if dry_run else 'deleted'}: {_named(one)}, {si(one.size)}B")
        freed, gone = freed + one.size, gone + 1
    typer.echo(f"{gone} set(s) of features, {si(freed)}B{' would be freed' if dry_run else ' freed'}")


def _named(one: Entry) -> str:
    about = "" if one.trouble else f" ({one.model} on {one.data}, {one.pool})"
    return f"{one.folder.name[:8]}{about}"
