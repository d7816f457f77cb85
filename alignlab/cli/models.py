"""`alignlab models`: which models have a name, what each is, and whether its weights are here."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from alignlab.models.catalogue import Known

app = typer.Typer()


@app.callback(invoke_without_command=True)
def listing(
    context: typer.Context,
    as_json: bool = typer.Option(False, "--json", help="Print the list as JSON."),
) -> None:
    """List the models that have a name, where their weights come from, and whether they are here already.

    Any other model loads too: timm:NAME, open_clip:ARCH/TAG, a local folder or file, a hub id (org/name).

    Example: alignlab models --json
    """
    if context.invoked_subcommand is not None:
        return
    import json

    from alignlab.models.catalogue import CATALOGUE

    here = {known.name: known.is_here() for known in CATALOGUE}
    if as_json:
        typer.echo(json.dumps([_facts(known, here[known.name]) for known in CATALOGUE], indent=1))
        return
    from rich.table import Table

    from alignlab.cli.common import console
    from alignlab.models.registry import expand

    prh = expand(["prh"])
    out = console()
    for kind, title in (("encoder", "Vision encoders"), ("llm", "Language models"), ("part", "What others need")):
        table = Table(title=title, title_justify="left")
        for heading in ("name", "family"):
            table.add_column(heading, no_wrap=heading == "name")
        for heading in ("parameters", "layers", "tokens", "width"):
            table.add_column(heading, justify="right")
        for heading in ("licence", "weights from", "here"):
            table.add_column(heading)
        for known in CATALOGUE:
            if known.kind == kind:
                numbers = [
                    _count(known.parameters),
                    *(str(x or "-") for x in (known.layers, known.tokens, known.width)),
                ]
                came = (known.licence, known.origin, "yes" if here[known.name] else "-")
                table.add_row(known.name, known.family, *numbers, *came)
        out.print(table)
    out.print("alignlab models show NAME says more, alignlab models fetch NAME gets the weights.")
    out.print(
        f"--encoder prh stands for {len(prh)} models of timm: {', '.join(name.removeprefix('timm:') for name in prh)}"
    )
    out.print(
        "Any other loads too: timm:NAME, open_clip:ARCH/TAG, a folder or file, a hub id (org/name); NAME@random, LLM[:K]."
    )


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.2f} B" if parameters >= 1e9 else f"{parameters / 1e6:.1f} M"


def _facts(known: Known, here: bool) -> dict[str, object]:
    facts = {
        key: value
        for key, value in asdict(known).items()
        if key not in ("wheel", "urls", "torch_hub", "shipped", "hub")
    }
    return {**facts, "source": known.source, "here": here}


@app.command()
def show(name: str = typer.Argument(..., help="A name that `alignlab models` lists.")) -> None:
    """Everything that is known about one model, and the memory that its weights take.

    Example: alignlab models show facebook/vit-mae-large
    """
    from alignlab.models.catalogue import find

    known = find(name)
    facts = _facts(known, known.is_here())
    facts["here"] = "yes" if facts["here"] else f"no; alignlab models fetch {name}"
    facts["parameters"] = f"{known.parameters:,}"
    facts["memory"] = (
        f"{known.bytes_in_memory() / 1e9:.2f} GB in float32, {known.bytes_in_memory(2) / 1e9:.2f} GB in bfloat16"
    )
    if known.gated:
        from alignlab.models.catalogue import HUB_PAGE

        facts["gated"] = f"accept the licence at {HUB_PAGE}/{known.hub}, then run: hf auth login"
    for key, value in facts.items():
        if value not in (None, "", False):
            typer.echo(f"{key.replace('_', ' '):<12} {value}")


@app.command()
def fetch(
    name: list[str] = typer.Argument(..., help="Names that `alignlab models` lists, or hub ids (org/name)."),
) -> None:
    """Get weights, so that they load without a network afterwards.

    Example: alignlab models fetch smollm2 facebook/vit-mae-large
    """
    from alignlab.models import catalogue

    for one in name:
        where = catalogue.fetch(one, lambda message: typer.echo(message, err=True))
        typer.echo(f"{one}: {where}")


@app.command()
def convert(
    file: Path = typer.Argument(
        ..., help="A taming .ckpt, a BEiT .pth, a folder with dVAE pickles or pytorch_model.bin."
    ),
    out: Path | None = typer.Option(None, help="Folder for model.safetensors and config.json (default: beside FILE)."),
) -> None:
    """Turn a published checkpoint into safetensors, once; code inside a pickle is never run.

    Example: alignlab models convert last.ckpt --out vqgan-f16
    """
    from alignlab.models.convert import convert as turn

    typer.echo(f"written: {turn(file, out)}")
