"""`alignlab reproduce`: the paper's tables and figures, with its numbers beside what comes out here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from alignlab.restoration.earlier import Earlier
    from alignlab.restoration.estimate import Need
    from alignlab.restoration.reproduction import Place
    from alignlab.restoration.targets import Lab, Target

SCHEMA, PLAN_SCHEMA = "alignlab.reproduce/1", "alignlab.reproduce-plan/1"
LARGEST_CARD = 80  # GB, of the paper's kind of GPU
TABLE4 = "table4"  # made of captions and alignments, and so of another kind than the others
ALL = "all"


def reproduce(
    target: str = typer.Argument(
        ..., help="table2, table3, table4, table7, fig4, fig5, fig6, fig7, depth, choices, or all."
    ),
    lab: str = typer.Option(
        "embedded", help="embedded: small models that come along, on scenes; paper: the paper's (a GPU, the hub)."
    ),
    dry_run: bool = typer.Option(
        False,
        "--dry-run",
        help="Print runs, downloads, memory, time; do nothing but open --data and --test.",
    ),
    images: int | None = typer.Option(
        None, help="Images that every run of the comparison learns from (default: the laboratory's recipe)."
    ),
    n: int | None = typer.Option(
        None, "--n", help="Held-out images to measure on (default: the laboratory's; 256, or all of NoCaps)."
    ),
    only: list[str] = typer.Option([], help="Only these rows, or those like 'rotate/*'; may be repeated."),
    longest: bool = typer.Option(
        False,
        "--longest",
        help="table2: a row takes its longest finished run under --runs, and says how long that was.",
    ),
    no_train: bool = typer.Option(False, "--no-train", help="Report what is finished; the rest is shown as missing."),
    data: list[str] = typer.Option(
        [], help="Other sets to learn from, as `restore train` takes them; may be repeated."
    ),
    test: list[str] = typer.Option([], help="Other sets to measure on; may be repeated."),
    encoder: list[str] = typer.Option(
        [], help="table4: one more row, an encoder as measure takes it (timm:NAME); may be repeated."
    ),
    align_on: str | None = typer.Option(None, help="table4: another set to align layers on."),
    runs: Path | None = typer.Option(
        None, help="Folder of the runs, reused by all targets (default runs/reproduce/LAB)."
    ),
    accumulate: int | None = typer.Option(
        None, help="Parts that a batch is computed in, one after another (default: the laboratory's)."
    ),
    seed: int = typer.Option(0),
    device: str = typer.Option("auto", help="auto, cpu or cuda."),
    out: Path | None = typer.Option(
        None,
        help="Folder for result.json and pictures (default runs/reproduce-TARGET-TIME); what it holds "
        "already of the same experiments is kept, not trained again.",
    ),
    json_file: Path | None = typer.Option(None, "--json", help="Write the result, or the plan, to this file too."),
) -> None:
    """Reproduce a table or figure of the LM4LV paper: train what is missing, reuse what is finished, compare.

    A run that was stopped goes on, and one that several targets need is trained once. Two are not in the paper: depth is
    denoising through the first blocks of the language model, choices with another rate, features or beginning. all makes
    every target, measurement, probe and analysis of the laboratory, and a report of them.

    Example: alignlab reproduce table3 --lab embedded --dry-run
    """
    from alignlab.cli.common import check_writable, console, output_folder, pick_device, write_json
    from alignlab.restoration import earlier, estimate, experiment, reproduction, targets
    from alignlab.training import processes

    laboratory = targets.open_lab(lab)
    n = laboratory.n if n is None else n
    if accumulate is not None and accumulate < 1:
        raise ValueError(f"--accumulate must be 1 or more, got {accumulate}")
    if seed < 0:
        raise ValueError(f"--seed must be 0 or more, got {seed}")
    if target == ALL:
        from alignlab.cli.reproduce_all import reproduce_all

        for option, given in {"images": images, "only": only, "longest": longest, "data": data, "test": test}.items():
            if given:
                raise ValueError(f"--{option} is for one target; all takes each as it is")
        if encoder or align_on:
            raise ValueError(f"{'--encoder' if encoder else '--align-on'} is for {TABLE4}; all takes each as it is")
        reproduce_all(laboratory, n, seed, dry_run, no_train, runs, accumulate, device, out, json_file)
        return
    if target == TABLE4:
        from alignlab.cli.reproduce_table4 import reproduce_table4

        if longest:
            raise ValueError(
                f"--longest: the rows of {TABLE4} are compared with each other, and every run has one budget"
            )
        rows = {"images": images, "n": n, "data": data, "test": test, "align_on": align_on, "encoders": encoder}
        wanted = {**rows, "seed": seed, "only": only}
        reproduce_table4(lab, wanted, dry_run, no_train, runs, accumulate, device, out, json_file)
        return
    if target not in targets.TARGETS:
        raise ValueError(f"there is no target {target!r}; there are {', '.join([*targets.TARGETS, TABLE4, ALL])}")
    if encoder or align_on:
        raise ValueError(f"{'--encoder' if encoder else '--align-on'} is for {TABLE4}; {target} has rows of its own")
    table = targets.target(target, laboratory, images=images, n=n, data=tuple(data), test=tuple(test), seed=seed)
    what = table.only(only)
    one = table.rows[0].experiment  # all learn from the same sets
    if test and not estimate.missing_data((*one.data, *one.test)):
        experiment.open_tests(one)  # refuses what is learnt from
    where = runs or Path("runs") / "reproduce" / lab
    parts = accumulate or laboratory.accumulate
    before = earlier.Earlier() if out is None else earlier.read(out, SCHEMA, target, known_as(laboratory, data, test))
    found = reproduction.places(what, laboratory, where, before, take_longest=longest)
    if dry_run:
        described = plan(what, laboratory, found, parts, None if lab == "paper" else pick_device(device))
        write_plan(json_file, described, device)
        show_plan(console(), described)
        return
    todo = [place.row.experiment for place in found if place.is_open]
    if todo and not no_train:
        reproduction.refuse_others(found)
        sources = tuple(dict.fromkeys(source for one in todo for source in (*one.data, *one.test)))
        refuse_what_cannot_run(lab, estimate.needs([one.design for one in todo]), sources, device)
    chosen = pick_device(device)
    first = processes(chosen).rank == 0
    if first:
        folder = output_folder(out, f"reproduce-{target}")
        if json_file is not None:
            check_writable(json_file.absolute().parent, "--json")
    if not no_train:
        for number, place in enumerate(found, 1):
            if first and place.is_open:
                typer.echo(f"run {number} of {len(found)}: {place.row.name} -> {place.where}", err=True)
            reproduction.perform(place, device=chosen, accumulate=parts)
    if not first:
        return
    if before.rows and only:  # what it holds stays there, though --only leaves it out
        what = table.only([*only, *before.names & {row.name for row in table.rows}])
        only = [] if what == table else [row.name for row in what.rows]
    found = reproduction.places(what, laboratory, where, before, take_longest=longest)
    config = {
        **{
            "target": target,
            "lab": lab,
            "images": images,
            "n": n,
            "only": only,
            "longest": longest,
            "no_train": no_train,
        },
        **{"data": data, "test": test, "accumulate": parts, "seed": seed, "device": chosen},
    }
    described = result(what, laboratory, found, config, folder, before)
    write_json(folder / "result.json", described)
    if json_file is not None:
        write_json(json_file, described)
    show(console(), described, folder)


def refuse_what_cannot_run(
    lab: str,
    weights: list[Need],
    sources: tuple[str, ...],
    device: str,
    options: str = "--data and --test name",
    captions: bool = False,
) -> None:
    """Say before hours of work what is missing. Raises RuntimeError, or ValueError for data that cannot be opened."""
    from alignlab.cli.common import pick_device
    from alignlab.data import load_dataset
    from alignlab.restoration.estimate import missing_data

    missing = []
    if lab == "paper" and pick_device(device) == "cpu":
        missing.append("no CUDA GPU (its language models have billions of parameters)")
    absent = [need for need in weights if not need.fetched_alone]
    if absent:
        names = " ".join(need.name for need in absent)
        gated = [need.name for need in absent if need.known is not None and need.known.gated]
        licence = f"; {', '.join(gated)}: accept the licence on the hub and run hf auth login first" if gated else ""
        missing.append(f"weights that are not here (alignlab models fetch {names}{licence})")
    missing += [f"data, {one}" for one in missing_data(sources)]
    if missing:
        raise RuntimeError(
            f"--lab {lab} cannot run here: {'; '.join(missing)}. --dry-run prints the plan; {options} copies of the data"
        )
    for source in sources:
        load_dataset(source, captions=captions)


def plan(what: Target, lab: Lab, found: list[Place], parts: int, device: str | None) -> dict[str, Any]:
    """What would be done, as plain values. `device` is where the rate of work is measured, None for the paper's GPUs."""
    from alignlab.models.weights import work_dtype
    from alignlab.restoration import estimate

    dtype = "bfloat16" if device is None else work_dtype("auto", device)
    rate = None if device is None else estimate.matmul_rate(device, dtype)
    rows: list[dict[str, Any]] = []
    for place in found:
        one = place.row.experiment
        state = place.standing
        row = {
            "name": place.row.name,
            "run": place.where.name,
            "design": one.design.plain(),
            "images": one.images_seen,
            "steps": one.recipe.steps,
            "state": place.state,
            "steps_done": state.steps,
            "tflop": None,
            "memory_gb": None,
            "hours_left": None if place.is_open else 0.0,
        }
        if (cost := estimate.cost(one, parts, dtype)) is not None:
            row |= {"tflop": (cost.train + cost.measure) / 1e12, "memory_gb": cost.memory / 1e9}
            if place.is_open:
                row["hours_left"] = estimate.seconds(cost, 1 - state.steps / one.recipe.steps, rate) / 3600
        rows.append(row)
    experiments = [place.row.experiment for place in found]
    weights = plain_needs(estimate.needs([one.design for one in experiments]))
    sources = tuple(dict.fromkeys(source for one in experiments for source in (*one.data, *one.test)))
    return {
        "schema": PLAN_SCHEMA,
        "target": what.name,
        "title": what.title,
        "laboratory": lab.name,
        "accumulate": parts,
        "rows": rows,
        "n": max((one.n for one in experiments), default=0),
        "hours_left": sum(row["hours_left"] or 0.0 for row in rows),
        "memory_gb": max((row["memory_gb"] or 0.0 for row in rows), default=0.0),
        "download_gb": to_get(weights),
        "weights": weights,
        "data": list(sources),
        "data_missing": estimate.missing_data(sources),
        "rate_tflops": None if rate is None else rate / 1e12,
        "rate_of": device or "the paper's GPUs",
        "dtype": dtype,
        "formulas": list(estimate.FORMULAS),
    }


def write_plan(path: Path | None, plan: dict[str, Any], device: str) -> None:
    """Where a file is asked for, with what the plan was made by; the paper's laboratory is of no device here."""
    from alignlab.cli.common import pick_device, write_json
    from alignlab.provenance import environment

    if path is not None:
        write_json(
            path, {**plan, "environment": environment("cpu" if plan["rate_tflops"] is None else pick_device(device))}
        )


def plain_needs(needs: list[Need]) -> list[dict[str, Any]]:
    """Weights as a plan lists them."""
    return [
        {
            "name": need.name,
            "here": need.here,
            "from": need.known.source if need.known else "a folder or the hub",
            "gated": bool(need.known and need.known.gated),
            "gb": round(need.size / 1e9, 3),
        }
        for need in needs
    ]


def to_get(weights: Iterable[dict[str, Any]]) -> float:
    """Gigabytes that a plan's weights have yet to be fetched of."""
    return round(sum(need["gb"] for need in weights if need["here"] is False), 2)


def show_plan(console: Any, plan: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(f"{plan['title']}: {plan['laboratory']} laboratory"), title_justify="left")
    for heading in ("row", "model", "encoder", "language model"):
        table.add_column(heading, overflow="fold")
    for heading in ("images", "run", "memory", "time left"):
        table.add_column(heading, justify="right")
    for row in plan["rows"]:
        design = row["design"]
        reads = design["how"] in ("lm4lv", "vit-llm")
        names = (row["name"], design["how"], design["encoder"], design["llm"] if reads else "-")
        memory = "?" if row["memory_gb"] is None else f"{row['memory_gb']:.1f} GB"
        table.add_row(*map(escape, names), f"{row['images']:,}", _state(row), memory, time_left(row["hours_left"]))
    console.print(table)
    show_costs(console, plan)


def show_costs(console: Any, plan: dict[str, Any]) -> None:
    """What a plan takes: time and how it is told, weights, data."""
    from rich.markup import escape

    from alignlab import paper
    from alignlab.restoration.estimate import PEAK_SHARE, TRAIN_SHARE, WRITE_SHARE

    console.print(f"time left for all: {time_left(plan['hours_left'])}; measured on {plan['n']:,} images of each set")
    on_gpus = plan["rate_tflops"] is None
    console.print(f"{'GPU memory' if on_gpus else 'memory'} at most: {plan['memory_gb']:.1f} GB")
    if on_gpus and plan["memory_gb"] > LARGEST_CARD:
        console.print(
            f"A card of {LARGEST_CARD} GB does not hold that: a larger --accumulate takes less, in as much time.",
            soft_wrap=True,
        )
    if plan["rate_tflops"] is None:
        gpus = f"{paper.HARDWARE['gpus']} {paper.HARDWARE['gpu']} at {PEAK_SHARE:.0%} of {paper.HARDWARE['peak'] / 1e12:.0f}"
        text = f"time: on {gpus} TFLOP/s each; the paper says about {paper.HARDWARE['hours']} hours for one training of LM4LV."
    else:
        text = (
            f"time: {plan['rate_tflops']:.2f} TFLOP/s of {plan['dtype']} products measured here just now ({plan['rate_of']}), "
            f"{TRAIN_SHARE:.0%} of it in training and {WRITE_SHARE:.0%} in measuring."
        )
    for line in (text, *plan["formulas"]):
        console.print(escape(line), soft_wrap=True)
    for need in plan["weights"]:
        here = (
            "here" if need["here"] else "not listed" if need["here"] is None else f"to get, about {need['gb']:.2f} GB"
        )
        gated = ", gated: accept the licence on the hub" if need["gated"] and not need["here"] else ""
        console.print(escape(f"weights: {need['name']}: {here} ({need['from']}{gated})"), soft_wrap=True)
    for missing in plan["data_missing"]:
        console.print(escape(f"data to get: {missing}"), soft_wrap=True)


def _state(row: dict[str, Any]) -> str:
    if row["state"] != "partly":
        return str(row["state"])
    done, steps = row["steps_done"], row["steps"]
    return "trained, to be measured" if done == steps else f"{done:,} of {steps:,} steps"


def time_left(hours: float | None) -> str:
    if hours is None:
        return "?"
    if hours < 1:
        return f"{hours * 60:.0f} min" if hours else "-"
    return f"{hours:.1f} h" if hours < 72 else f"{hours / 24:.1f} days"


def known_as(lab: Lab, data: Sequence[str], test: Sequence[str]) -> str:
    """The laboratory of a result: "own" where it learnt from or was measured on other sets than the laboratory's."""
    own = {source.partition(":")[0] for source in (*data, *test)} - {*lab.data, *lab.test}
    return "own" if own else lab.name


def result(
    what: Target,
    lab: Lab,
    found: list[Place],
    config: dict[str, Any],
    folder: Path,
    before: Earlier | None = None,
) -> dict[str, Any]:
    """Put together what the finished runs say, and write the grids of pictures to `folder`; `before` is the earlier result
    of which rows may be kept.
    """
    from alignlab import paper
    from alignlab.provenance import environment, shown
    from alignlab.restoration import reproduction
    from alignlab.restoration.pictures import save_grid
    from alignlab.sheets import save_sheet

    rows = reproduction.gather(what, found)
    if kept := [place.row.name for place in found if place.kept is not None]:
        typer.echo(f"kept from {folder / 'result.json'}, as no such run is under --runs: {', '.join(kept)}", err=True)
    pictures, sheets = [], []
    for name, grid in reproduction.grids(what, found, before, device=config["device"]).items():
        save_grid(grid, folder / f"{name}.jpg", f"{what.title} ({lab.name} laboratory)")
        pictures.append(f"{name}.jpg")
        sheets.append({"title": name, **save_sheet(grid, folder / f"{name}-sheet.png")})
    budgets = sorted({row["images"] for row in rows if row["status"] == "done"})
    return {
        "schema": SCHEMA,
        "target": what.name,
        "title": what.title,
        "laboratory": known_as(lab, config["data"], config["test"]),
        "budget": {"images": budgets, "one_for_all": not what.own_budgets, "n": config["n"]},
        "rows": rows,
        "missing": [row["name"] for row in rows if row["status"] != "done"],
        "readings": reproduction.readings(what, rows),
        "paper": {
            "models": paper.MODELS,
            "says": paper.SAYS[what.name],
            "rows": {row["name"]: row["paper"] for row in rows if row["paper"]},
        },
        "pictures": pictures,
        "sheets": sheets,
        "config": {
            **config,
            "data": [shown(source) for source in config["data"]],
            "test": [shown(source) for source in config["test"]],
        },
        "environment": environment(config["device"]),
    }


def show(console: Any, result: dict[str, Any], folder: Path) -> None:
    """Print a result: what came out here in one group of columns, what the paper has in another."""
    from rich.markup import escape
    from rich.table import Table

    from alignlab.restoration.card import pair_of
    from alignlab.restoration.targets import COLUMNS

    lab = result["laboratory"]
    whose = {"embedded": "embedded laboratory (small models, not the paper's)", "paper": "the paper's laboratory"}
    title = escape(f"{result['title']}: {whose.get(lab, 'own data')}")
    console.print(title, soft_wrap=True, style="italic")
    table = Table(padding=(0, 0), pad_edge=False)
    table.add_column("row", overflow="fold")
    for heading in ("images", "degraded", "enc + dec", "restored", "gain (±95%)", "mis-\naligned"):
        table.add_column(f"here:\n{heading}", justify="right", no_wrap=True)
    published = [column for column in COLUMNS if any(column in row["paper"] for row in result["rows"])]
    for column in published:
        heading = "MAE-r" if column == "alone" else column
        table.add_column(f"the paper:\n{heading}", justify="right", style="dim", no_wrap=True)
    for row in result["rows"]:
        theirs = [_published(row["paper"].get(column)) for column in published]
        if row["status"] != "done":
            table.add_row(escape(row["name"]), "missing", *["-"] * 5, *theirs)
        for found in row.get("evaluations", ()):
            several = f" on {found['data']['name']}" if len(row["evaluations"]) > 1 else ""
            cells = [pair_of(found[column], 2) for column in COLUMNS]
            cells += [_gain(found), f"{found['misaligned']}/{found['n']}"]
            table.add_row(escape(row["name"] + several), f"{row['images']:,}", *cells, *theirs)
    console.print(table)
    console.print(
        "PSNR in dB / SSIM. enc + dec: encoder and decoder alone (MAE-r), of what was given, or, of rotate, flip and repeat, "
        "of the answer. gain: restored minus enc + dec."
    )
    for line in result["readings"]:
        console.print(escape(line), soft_wrap=True)
    console.print(escape(f"the paper, of its models: {result['paper']['says']}"), soft_wrap=True)
    console.print(escape(f"written: {folder}/result.json and pictures"), soft_wrap=True)


def _gain(found: dict[str, Any]) -> str:
    from alignlab.restoration.card import endless

    if found["gain"] is None:
        return endless(found)
    mean, (low, high) = (found["gain"]["psnr"][key] for key in ("mean", "ci95"))
    return f"{mean:+.2f} ±{(high - low) / 2:.2f}"


def _published(figures: dict[str, float | None] | None) -> str:
    if figures is None:
        return "-"
    psnr = "inf" if figures["PSNR"] is None else f"{figures['PSNR']:.2f}"
    return f"{psnr} / {figures['SSIM']:.2f}" if figures.get("SSIM") is not None else psnr
