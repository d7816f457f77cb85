"""`alignlab analyse adapters`: Table 6 and Fig. 11 for any trained adapters."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import typer

from alignlab.files import labels, save_figure

SCHEMA = "alignlab.analyse-adapters/1"


def adapters(
    checkpoint: list[str] = typer.Argument(None, help="Folders that restore train wrote, or shipped adapters' names."),
    simulate: bool = typer.Option(
        False, "--simulate", help="Show what is wrong with L and D on random matrices; needs no checkpoint."
    ),
    draws: int = typer.Option(50, help="Random layers of the same shapes to compare with."),
    seed: int = typer.Option(0, help="Of the random layers and matrices."),
    out: Path | None = typer.Option(
        None, help="Folder for result.json and pictures (default runs/analyse-adapters-TIME)."
    ),
    json_file: Path | None = typer.Option(None, "--json", help="Write the result to this file too."),
) -> None:
    """Are the two linear layers a scaled identity, so that the language model does the work? (App. B.1, Table 6, Fig. 11)

    A = W_out W_in is what the layers do to a token without the language model between them. It is given in the encoder's
    raw coordinates, as the paper's, and in the whitened ones where the adapters learnt in those.

    Example: alignlab analyse adapters runs/denoise --simulate
    """
    from alignlab import paper
    from alignlab.analysis import adapters as analysis
    from alignlab.cli.common import (
        check_positive,
        check_whole,
        check_writable,
        console,
        output_folder,
        write_json,
    )
    from alignlab.progress import progress
    from alignlab.provenance import environment, laboratory

    names = list(dict.fromkeys(checkpoint or ()))
    if not names and not simulate:
        raise ValueError("give a checkpoint, a folder that `alignlab restore train` wrote, or --simulate")
    check_positive({"draws": draws})
    check_whole({"seed": seed})
    read = [analysis.read(name) for name in names]
    folder = output_folder(out, "analyse-adapters")
    if json_file is not None:
        check_writable(json_file.absolute().parent, "--json")
    found = []
    for one, label in zip(read, labels([one.name for one in read]), strict=True):
        analysed = {**analysis.analyse(one, draws, seed), "pictures": [f"heatmap-{label}.png", f"singular-{label}.png"]}
        figures = (analysis.heatmaps(one), analysis.spectra(analysed))
        for figure, picture in zip(figures, analysed["pictures"], strict=True):
            save_figure(figure, folder / picture, dpi=130)
        found.append(analysed)
    simulation = None
    if simulate:
        with progress("simulate", 4, "sizes") as tick:
            simulation = analysis.simulate(seed=seed, tick=tick)
    whose = {laboratory([one.plan.encoder], one.plan.llm, "scenes") for one in read}
    result = {
        "schema": SCHEMA,
        "laboratory": whose.pop() if len(whose) == 1 else "own",
        "checkpoints": found,
        "simulation": simulation,
        "paper": {name: analysis.plain(columns) for name, columns in paper.TABLE6.items()},
        "config": {"checkpoint": [one.name for one in read], "simulate": simulate, "draws": draws, "seed": seed},
        "environment": environment("cpu"),
    }
    write_json(folder / "result.json", result)
    if json_file is not None:
        write_json(json_file, result)
    screen = console()
    for analysed in found:
        show(screen, analysed)
    if simulation is not None:
        show_simulation(screen, simulation)
    screen.print(f"written: {folder}/result.json{' and pictures' if found else ''}", soft_wrap=True, markup=False)


def show(screen: Any, one: dict[str, Any]) -> None:
    """Print one checkpoint: here's figures by coordinates, then the paper's."""
    from rich.markup import escape
    from rich.table import Table

    from alignlab import paper
    from alignlab.analysis.words import MEASURES, ROWS, measure

    plan = one["design"]
    between = f"{plan['encoder']} and {plan['llm']}" if one["llm_width"] else plan["encoder"]
    what = f"{one['checkpoint']}: {plan['how']} of {between}, {', '.join(plan['tasks'])}"
    screen.print(escape(f"{what}; A is {one['width']} x {one['width']}"), style="italic", soft_wrap=True)
    table = Table(padding=(0, 0), pad_edge=False)
    table.add_column("A = W_out W_in", no_wrap=True)
    for where in one["coordinates"]:
        table.add_column(f"{where}:\ntrained", justify="right", no_wrap=True)
        table.add_column(f"{where}: random\nmedian (5..95%)", justify="right", no_wrap=True)
    table.add_column("\nidentity", justify="right", no_wrap=True)
    for column in ("Random", "Ours", "Identity"):
        table.add_column(f"paper:\n{column}", justify="right", style="dim", no_wrap=True)
    for name, (title, published) in ROWS.items():
        cells = []
        for of in one["coordinates"].values():
            random = of["random"][name]
            cells.append(measure(name, of["trained"][name]))
            low, high = (measure(name, random[end], 2) for end in ("low", "high"))
            cells.append(f"{measure(name, random['median'])} ({low}..{high})")
        theirs = [measure(name, _finite(x)) for x in paper.TABLE6[published].values()] if published else ["-"] * 3
        table.add_row(title, *cells, measure(name, one["identity"][name]), *theirs)
    biases = [cell for of in one["coordinates"].values() for cell in (measure("bias", of["bias"]["rms"]), "-")]
    table.add_row("bias, rms", *biases, "0", *["-"] * 3)
    screen.print(table)
    if len(one["coordinates"]) > 1:
        screen.print(
            "raw: the encoder's own tokens, as the paper's adapters read them. whitened: the coordinates in which these "
            "learnt. The best alpha is the same in both.",
            soft_wrap=True,
        )
    if one["position_code"]:
        screen.print("the last 16 numbers of a token are its position's code, not the encoder's.")
    lines = (
        *MEASURES,
        f"random: {one['draws']} pairs of Gaussian layers of the same shapes and spread. paper: other models (MAE-L, "
        "LLaMA-2-7B), its random a matrix of standard Gaussian numbers. L goes with the scale of A and D has no expectation "
        "for random matrices (--simulate shows both), so that the rows below them are the ones to compare.",
    )
    for line in lines:
        screen.print(line, soft_wrap=True)


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None


def show_simulation(screen: Any, simulation: dict[str, list[dict[str, float]]]) -> None:
    """Print both halves of `simulate`."""
    from rich.table import Table

    table = Table(title="L of one random matrix times c", title_justify="left")
    for heading in ("c", "L", "L / mean squared entry"):
        table.add_column(heading, justify="right")
    for row in simulation["scale"]:
        table.add_row(f"{row['scale']:g}", f"{row['distance']:.4g}", f"{row['ratio']:.6f}")
    screen.print(table)
    screen.print("L grows with c squared, L over the mean squared entry stays.")
    draws = int(simulation["sample"][0]["draws"])
    title = (
        f"D of n x n random matrices, median (5%..95%) of {draws} each: the mean grows with n, the median ratio stays"
    )
    table = Table(title=title, title_justify="left")
    for heading in ("n", "ratios", "D", "2/pi ln(ratios)", "median ratio", "largest ratio's share of D"):
        table.add_column(heading, justify="right")
    for row in simulation["sample"]:
        table.add_row(
            f"{row['n']:,.0f}",
            f"{row['entries']:,.0f}",
            f"{row['diagonal_mean']:.2f} ({row['diagonal_mean_low']:.2f}..{row['diagonal_mean_high']:.2f})",
            f"{row['expected_growth']:.2f}",
            f"{row['diagonal_median']:.3f} ({row['diagonal_median_low']:.3f}..{row['diagonal_median_high']:.3f})",
            f"{row['largest_share']:.0%} ({row['largest_share_low']:.0%}..{row['largest_share_high']:.0%})",
        )
    screen.print(table)
