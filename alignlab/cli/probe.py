"""`alignlab probe`: what single layers of a frozen language model hold and can do."""

from __future__ import annotations

import typer

from alignlab.cli import probe_induction, probe_layers, probe_linear

app = typer.Typer(
    help="Look into a frozen language model layer by layer.\n\nExample: alignlab probe linear --encoder mae --llm smollm2",
    no_args_is_help=True,
)


@app.callback()
def _group() -> None:
    pass


app.command("induction")(probe_induction.induction)
app.command("linear")(probe_linear.linear)
app.command("layers")(probe_layers.layers)
