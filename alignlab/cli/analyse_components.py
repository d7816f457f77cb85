"""`alignlab analyse components`: which components of an encoder's tokens trained adapters write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from alignlab.files import labels, save_figure

SCHEMA = "alignlab.analyse-components/1"


def components(
    checkpoint: list[str] = typer.Argument(help="Folders that restore train wrote, or shipped adapters' names."),
    task: list[str] = typer.Option([], help="Of those that the checkpoints learnt (default: all); may be repeated."),
    data: str = typer.Option("scenes", help="Images, as measure takes them, held out from training."),
    n: int = typer.Option(128, "--n", help="Images, evenly spread."),
    encoder: str | None = typer.Option(None, help="Where the encoder is, if the checkpoint's name does not find it."),
    llm: str | None = typer.Option(None, help="Where the language model is, likewise."),
    batch_size: int = typer.Option(64, help="Images at once: speed, and in bfloat16 the last digits."),
    seed: int = typer.Option(0, help="Of the bootstrap."),
    device: str = typer.Option("auto", help="auto, cpu or cuda."),
    dtype: str = typer.Option("auto", help="auto (bfloat16 where quick), bfloat16 or float32, of the language model."),
    out: Path | None = typer.Option(
        None, help="Folder for result.json and pictures (default runs/analyse-components-TIME)."
    ),
    json_file: Path | None = typer.Option(None, "--json", help="Write the result to this file too."),
) -> None:
    """How much of each principal component of the encoder's tokens is written, and what it is worth in dB?

    Where restored pictures are worse than encoder and decoder allow, it shows what is lost: the components that vary most
    or those that vary least.

    Example: alignlab analyse components denoise-mae-smollm2
    """
    from alignlab import trained
    from alignlab.analysis import components as analysis
    from alignlab.cli.common import (
        check_positive,
        check_whole,
        check_writable,
        console,
        output_folder,
        pick_device,
        pick_dtype,
        write_json,
    )
    from alignlab.progress import progress
    from alignlab.provenance import environment, laboratory, shown, shown_model
    from alignlab.restoration.design import find, load, read, steps_of
    from alignlab.restoration.experiment import TEST_SEED, open_unseen

    check_positive({"batch-size": batch_size})
    check_whole({"seed": seed})
    if n < 2:
        raise ValueError(f"--n {n}: components need two images or more")
    where = pick_device(device)
    dtype = pick_dtype(dtype, where)
    names, wanted = list(dict.fromkeys(checkpoint)), list(dict.fromkeys(task))
    plans = [read(find(name))[0] for name in names]
    for name, plan in zip(names, plans, strict=True):
        for one in wanted:
            if one not in plan.tasks:
                raise ValueError(f"--task {one}: {name} has learnt {', '.join(plan.tasks)}")
    folder = output_folder(out, "analyse-components")
    if json_file is not None:
        check_writable(json_file.absolute().parent, "--json")
    screen, found = console(), list[dict[str, Any]]()
    folders = [find(name).resolve() for name in names]
    for name, label, place in zip(names, labels([place.name for place in folders]), folders, strict=True):
        model, plan, described = load(name, device=where, dtype=dtype, encoder=encoder, llm=llm)
        test = open_unseen(data, described["about"], name, n)
        pictures = test.pictures(model.encoder.image_size)
        for one in wanted or plan.tasks:
            with progress(f"restore with {label}, {one}", len(test), "images") as tick:
                tokens = analysis.read(
                    model, pictures, len(test), one, seed=TEST_SEED, batch_size=batch_size, tick=tick
                )
            row = {
                "checkpoint": place.name,
                "trained": trained.checkpoint(place),
                "design": plan.plain(),
                "frozen": described["frozen"],
                "steps": steps_of(described),
                "task": one,
                "data": {"name": test.data.name, "fingerprint": test.data.fingerprint, "items": len(test.data)},
                "picture": f"components-{label}-{one}.png",
                **analysis.analyse(tokens, seed),
            }
            row["reading"] = analysis.reading(row)
            save_figure(analysis.curves(row, f"{label}, {one}"), folder / row["picture"], dpi=130)
            found.append(row)
            show(screen, row)
    whose = {laboratory([plan.encoder], plan.llm if plan.reads_llm else None, data) for plan in plans}
    result = {
        "schema": SCHEMA,
        "laboratory": whose.pop() if len(whose) == 1 else "own",
        "checkpoints": found,
        "config": {
            "checkpoint": [place.name for place in folders],
            "data": shown(data),
            **{"task": wanted, "n": n, "encoder": encoder and shown_model(encoder), "llm": llm and shown_model(llm)},
            **{"batch_size": batch_size, "seed": seed, "device": where, "dtype": dtype},
        },
        "environment": environment(where),
    }
    write_json(folder / "result.json", result)
    if json_file is not None:
        write_json(json_file, result)
    screen.print(f"written: {folder}/result.json and pictures", soft_wrap=True, markup=False)


def show(screen: Any, one: dict[str, Any]) -> None:
    """Print one checkpoint's components by bands of their size, and the sentence that they make."""
    from rich.markup import escape
    from rich.table import Table

    from alignlab.analysis.words import COMPARED, percent

    plan = one["design"]
    compared = [name for name, x in one["carried"].items() if x is not None]
    table = Table(
        title=escape(f"{one['checkpoint']}, {one['task']}: {plan['encoder']} on {one['n']} of {one['data']['name']}"),
        title_justify="left",
    )
    table.add_column("components", justify="right", no_wrap=True)
    table.add_column("variance", justify="right")
    for name in compared:
        table.add_column(f"unexplained,\n{COMPARED[name]}", justify="right")
    for heading in ("true up to here", "written up to here", "these alone written"):
        table.add_column(f"dB,\n{heading}", justify="right")
    for band in one["bands"]:
        shares = [percent(band["unexplained"][name]["value"]) for name in compared]
        values = [_decibels(band["psnr"][key]["mean"]) for key in ("true", "written", "alone")]
        table.add_row(f"{band['first']} to {band['last']}", percent(band["share"]), *shares, *values)
    screen.print(table)
    whole = ", ".join(
        f"{COMPARED[name]} {x['value']:.1f} ({x['ci95'][0]:.1f} to {x['ci95'][1]:.1f})"
        for name, x in one["carried"].items()
        if x is not None
    )
    screen.print(escape(f"components' worth, of {one['components']}: {whole}"), soft_wrap=True)
    screen.print(escape(one["reading"]), soft_wrap=True)


def _decibels(x: float | None) -> str:
    return "inf" if x is None else f"{x:.2f}"
