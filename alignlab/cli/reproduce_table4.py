"""`alignlab reproduce table4`: captioning probes and alignments of several encoders, beside the paper's numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from alignlab.captioning.table4 import Lab, Place, Row


def reproduce_table4(
    lab: str,
    wanted: dict[str, Any],
    dry_run: bool,
    no_train: bool,
    runs: Path | None,
    accumulate: int | None,
    device: str,
    out: Path | None,
    json_file: Path | None,
) -> None:
    """The command; `wanted` are the options of `table4.table`."""
    from alignlab.captioning import table4
    from alignlab.cli.common import check_writable, console, output_folder, pick_device, write_json
    from alignlab.cli.reproduce import refuse_what_cannot_run, write_plan
    from alignlab.training import processes

    laboratory = table4.open_lab(lab)
    rows = table4.table(laboratory, **wanted)
    where = runs or Path("runs") / "reproduce" / lab
    parts = accumulate or laboratory.accumulate
    earlier = {} if out is None else table4.read_earlier(out)
    found = table4.places(rows, laboratory, where, earlier)
    if dry_run:
        described = plan(laboratory, found, parts, None if lab == "paper" else pick_device(device))
        write_plan(json_file, described, device)
        show_plan(console(), described)
        return
    todo = [place.row for place in found if place.is_open]
    if todo and not no_train:
        table4.refuse_others([place for place in found if place.is_open])
        table4.check_encoders(todo, laboratory, pick_device(device))
        refuse_what_cannot_run(
            lab, _needs(todo, laboratory), _sources(todo), device, "--data, --test and --align-on name", captions=True
        )
    chosen = pick_device(device)
    first = processes(chosen).rank == 0
    if first:
        folder = output_folder(out, f"reproduce-{table4.NAME}")
        if json_file is not None:
            check_writable(json_file.absolute().parent, "--json")
    whose = laboratory.whose(rows)
    if not no_train:
        for number, place in enumerate(found, 1):
            if first and place.is_open:
                typer.echo(f"run {number} of {len(found)}: {place.row.name} -> {place.where}", err=True)
            table4.perform(place, device=chosen, accumulate=parts, laboratory=whose)
        found = table4.places(rows, laboratory, where, earlier)
    if not first:
        return
    whole = table4.table(laboratory, **{**wanted, "only": ()})
    others = [row.name for row in whole if row.name not in {one.name for one in rows}]
    config = {"target": table4.NAME, "lab": lab, **wanted, "no_train": no_train, "accumulate": parts, "device": chosen}
    described = result(laboratory, found, others, config, folder)
    write_json(folder / "result.json", described)
    if json_file is not None:
        write_json(json_file, described)
    show(console(), described, folder)


def _sources(rows: Sequence[Row]) -> tuple[str, ...]:
    sets = (source for row in rows for source in (row.experiment.data, *row.experiment.test, row.align_on))
    return tuple(dict.fromkeys(sets))


def _needs(rows: Sequence[Row], lab: Lab) -> list[Any]:
    from alignlab.models.variant import parse
    from alignlab.restoration.estimate import need

    names = (name for row in rows for name in (row.encoder, row.experiment.design.llm))
    return [need(name) for name in dict.fromkeys([*(parse(name).base for name in names), lab.judge])]


# --- the plan ---


def plan(lab: Lab, found: Sequence[Place], parts: int, device: str | None) -> dict[str, Any]:
    """What would be done, as plain values. `device` is where the rate of work is measured, None for the paper's GPUs."""
    from dataclasses import replace

    from alignlab.captioning import estimate, table4
    from alignlab.cli.reproduce import PLAN_SCHEMA, plain_needs, to_get
    from alignlab.data.named import NAMED
    from alignlab.models.weights import work_dtype
    from alignlab.restoration.estimate import matmul_rate, missing_data, seconds

    dtype = "bfloat16" if device is None else work_dtype("auto", device)
    rate = None if device is None else matmul_rate(device, dtype)
    rows: list[dict[str, Any]] = []
    for place in found:
        one, named = place.row.experiment, NAMED.get(place.row.align_on.partition(":")[0])
        row: dict[str, Any] = {
            "name": place.row.name,
            "run": place.where.name,
            "design": one.design.plain(),
            "images": place.row.images_seen,
            "steps": one.recipe.steps,
            "state": place.state,
            "steps_done": place.steps,
            "captioned": place.captioned,
            "aligned": place.aligned,
            "tflop": None,
            "memory_gb": None,
            "hours_left": None if place.is_open else 0.0,
        }
        if (cost := estimate.cost(one, parts, dtype)) is not None:
            align = estimate.alignment_flop(place.row.encoder, one.design.llm, named.items if named else 0)
            row |= {"tflop": (cost.train + cost.measure + align) / 1e12, "memory_gb": cost.memory / 1e9}
            measure = (0.0 if place.captioned else cost.measure) + (0.0 if place.aligned else align)
            left = 0.0 if place.captioned else 1 - place.steps / one.recipe.steps
            if place.is_open:
                row["hours_left"] = seconds(replace(cost, measure=measure), left, rate) / 3600
        rows.append(row)
    sources = _sources([place.row for place in found])
    weights = plain_needs(_needs([place.row for place in found], lab))
    return {
        "schema": PLAN_SCHEMA,
        "target": table4.NAME,
        "title": table4.TITLE,
        "laboratory": lab.whose([place.row for place in found]),
        "accumulate": parts,
        "n": found[0].row.experiment.n,
        "judge": lab.judge,
        "rows": rows,
        "hours_left": sum(row["hours_left"] or 0.0 for row in rows),
        "memory_gb": max((row["memory_gb"] or 0.0 for row in rows), default=0.0),
        "download_gb": to_get(weights),
        "weights": weights,
        "data": list(sources),
        "data_missing": missing_data(sources),
        "rate_tflops": None if rate is None else rate / 1e12,
        "rate_of": device or "the paper's GPUs",
        "dtype": dtype,
        "formulas": list(estimate.FORMULAS),
    }


def show_plan(console: Any, plan: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from alignlab.cli.reproduce import show_costs, time_left

    table = Table(title=escape(f"{plan['title']}: {plan['laboratory']} laboratory, not run yet"), title_justify="left")
    for heading in ("row", "encoder", "language model"):
        table.add_column(heading, overflow="fold")
    for heading in ("images", "run", "memory", "time left"):
        table.add_column(heading, justify="right")
    for row in plan["rows"]:
        memory = "?" if row["memory_gb"] is None else f"{row['memory_gb']:.1f} GB"
        names = (row["name"], row["design"]["encoder"], row["design"]["llm"])
        table.add_row(*map(escape, names), f"{row['images']:,}", state(row), memory, time_left(row["hours_left"]))
    console.print(table)
    show_costs(console, plan)
    text = f"each row: captions of {plan['n']} images judged by {plan['judge']}, and its layers aligned; data: "
    console.print(escape(text + ", ".join(plan["data"])), soft_wrap=True)


def state(row: dict[str, Any]) -> str:
    """How far a row is, in words."""
    if row["state"] != "partly":
        return str(row["state"])
    done, steps = row["steps_done"], row["steps"]
    if row["captioned"]:
        return "to be aligned"
    return (
        "to be trained" if not done else "trained, to be measured" if done == steps else f"{done:,} of {steps:,} steps"
    )


# --- the result ---


def result(
    lab: Lab, found: Sequence[Place], others: Sequence[str], config: dict[str, Any], folder: Path
) -> dict[str, Any]:
    """Put together what the finished runs say, and write their galleries and the figure to `folder`."""
    import shutil

    from alignlab import paper
    from alignlab.captioning import table4
    from alignlab.captioning.table4_columns import FORMULA, gather, human
    from alignlab.captioning.table4_figure import save_bars
    from alignlab.captioning.table4_readings import orders, readings
    from alignlab.files import slug
    from alignlab.provenance import environment, shown, shown_model

    rows, whose = gather(found), lab.whose([place.row for place in found])
    pictures = [f"{table4.NAME}.png"]
    if kept := [place.row.name for place in found if place.kept is not None]:
        typer.echo(f"kept from {folder / 'result.json'}, as no such run is under --runs: {', '.join(kept)}", err=True)
    for place, row in zip(found, rows, strict=True):
        if place.kept is not None:  # its pictures lie in the folder
            pictures.append(row["picture"])
        elif "evaluation" in row:
            name = f"captions-{slug(row['name'])}.jpg"
            shutil.copyfile(place.where / row["evaluation"]["picture"], folder / name)
            row["picture"] = name
            pictures.append(name)
            row["gallery"] = _gallery(place, row["evaluation"], folder / f"{Path(name).stem}-sheet.png")
    ceiling = human(rows)
    judges = [row["evaluation"]["judge"] for row in rows if "evaluation" in row]
    save_bars(
        rows,
        ceiling,
        paper.TABLE4,
        folder / pictures[0],
        f"{table4.TITLE}; {_LABS.get(whose, 'own data or encoders')}",
    )
    return {
        "schema": table4.TABLE_SCHEMA,
        "target": table4.NAME,
        "title": table4.TITLE,
        "laboratory": whose,
        "judge": judges[0] if judges else None,
        "budget": {"images": sorted({row["images"] for row in rows if "images" in row}), "n": config["n"]},
        "rows": rows,
        "missing": [row["name"] for row in rows if row["status"] != "done"],
        "not_asked_for": list(others),
        "human": ceiling,
        "orders": orders(rows),
        "readings": readings(rows, ceiling, judges[0] if judges else None, others),
        "formula": FORMULA,
        "paper": {"models": paper.MODELS, "judge": paper.JUDGE, "says": paper.SAYS[table4.NAME], "rows": paper.TABLE4},
        "pictures": pictures,
        "config": {
            **config,
            "data": [shown(source) for source in config["data"]],
            "test": [shown(source) for source in config["test"]],
            "align_on": config["align_on"] and shown(config["align_on"]),
            "encoders": [shown_model(name) for name in config["encoders"]],
        },
        "environment": environment(config["device"]),
    }


_LABS = {"embedded": "embedded laboratory (small models, not the paper's)", "paper": "the paper's laboratory"}


def _gallery(place: Place, evaluation: dict[str, Any], path: Path) -> dict[str, Any]:
    """Some images of a finished row with its captions of them; nothing is captioned again."""
    from alignlab.captioning.experiment import TestSet, show_apart
    from alignlab.data import load_dataset

    data = load_dataset(place.row.experiment.measured[0])
    return show_apart(TestSet(data, evaluation["items"]), evaluation["captions"], path)


def show(console: Any, result: dict[str, Any], folder: Path) -> None:
    """Print a result: what came out here in one group of columns, what the paper has in another."""
    from rich.markup import escape
    from rich.table import Table

    from alignlab.captioning.table4_columns import PAPERS
    from alignlab.captioning.table4_readings import ALL

    title = f"{result['title']}: {_LABS.get(result['laboratory'], 'own data or encoders')}"
    console.print(escape(title), soft_wrap=True, style="italic")
    table = Table(padding=(0, 0), pad_edge=False)
    table.add_column("row", overflow="fold")
    for heading in (*ALL, "Avg cal."):
        table.add_column(f"here:\n{heading}", justify="right", no_wrap=True)
    for heading in PAPERS:
        table.add_column(f"paper:\n{heading}", justify="right", style="dim", no_wrap=True)
    for row in result["rows"]:
        found = row["columns"]
        cells = [_cell(found.get(column), column) for column in ALL] + [_cell(found.get("Avg"), "Avg", "calibrated")]
        theirs = [f"{row['paper'][column]:.2f}" if row["paper"] else "-" for column in PAPERS]
        unfinished = {"done": "", "missing": "\nmissing"}.get(row["status"], "\nunfinished")
        table.add_row(escape(row["name"] + unfinished), *cells, *theirs)
    if result["human"] is not None:
        cells = [_cell(result["human"]["columns"].get(column), column) for column in ALL]
        table.add_row("human captions", *cells, "-", *["-"] * len(PAPERS))
    console.print(table)
    console.print(
        "±: half a 95% interval. Below: what the captions score on other images (CS, Ref-CS, CIDEr), what shuffled pairings score "
        "(M-kNN, CKA; the best of all pairs of layers, as the score is). cal.: calibrated.",
        soft_wrap=True,
    )
    for line in (result["formula"], *result["readings"]):
        console.print(escape(line), soft_wrap=True)
    console.print(escape(f"the paper, of its models: {result['paper']['says']}"), soft_wrap=True)
    console.print(escape(f"written: {folder}/result.json and pictures"), soft_wrap=True)


def _cell(found: dict[str, Any] | None, column: str, key: str = "score") -> str:
    """`46.97 ±0.51`, and what the control or the null has below."""
    if found is None or found[key] is None:
        return "-"
    digits = 1 if column in ("CS", "Ref-CS") else 3
    interval = found["ci95" if key == "score" else "calibrated_ci95"]
    half = "" if interval is None else f" ±{(interval[1] - interval[0]) / 2:.{digits}f}".replace("±0.", "±.")
    below = found.get("baseline")
    return f"{found[key]:.{digits}f}{half}" + (
        f"\n({below:.{digits}f})" if key == "score" and below is not None else ""
    )
