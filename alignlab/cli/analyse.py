"""`alignlab analyse`: trained adapters, the cost of a run, alignment against restoration."""

from __future__ import annotations

import typer

from alignlab.cli import analyse_adapters, analyse_components, analyse_compute, analyse_correlation

app = typer.Typer(
    help="What adapters learnt and write, what a run costs, and whether alignment predicts restoration.\n\n"
    "Example: alignlab analyse adapters denoise-mae-smollm2",
    no_args_is_help=True,
)


@app.callback()
def _group() -> None:
    pass


app.command("adapters")(analyse_adapters.adapters)
app.command("components")(analyse_components.components)
app.command("compute")(analyse_compute.compute)
app.command("correlation")(analyse_correlation.correlation)
