"""`alignlab reproduce all`: every measurement, target, probe and analysis of a laboratory, and one report of them."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from alignlab.restoration.targets import Lab

SCHEMA = "alignlab.reproduce-all/1"


@dataclass(frozen=True)
class Step:
    """A command whose result goes to the folder `name`. One that is `kept` is not repeated where its result lies there; a
    `table` puts finished runs together; the others take seconds. `needs` are folders of results that it reads.
    """

    name: str
    arguments: tuple[str, ...]
    kept: bool = False
    table: bool = False
    needs: tuple[Path, ...] = ()

    def can_run(self) -> bool:
        return all((folder / "result.json").is_file() for folder in self.needs)

    @property
    def command(self) -> str:
        return shlex.join(["alignlab", *self.arguments])


def steps(
    lab: Lab, results: Path, runs: Path, *, n: int, seed: int, no_train: bool, accumulate: int | None, device: str
) -> list[Step]:
    """All commands, in the order in which each finds what it needs."""
    from alignlab import paper
    from alignlab.restoration import reproduction, targets
    from alignlab.restoration.design import COMPARED

    embedded = lab.name == "embedded"
    encoders = ["mae", "beit", "vqgan"] if embedded else [paper.MODELS[name] for name in ("mae", "beit", "vqgan")]
    mae, llm = encoders[0], lab.llm
    aligned, seen = ("scenes", "scenes") if embedded else ("wit1024", "nocaps")
    common = ["--seed", str(seed), "--device", device] if (seed, device) != (0, "auto") else []

    def several(option: str, names: Sequence[str]) -> list[str]:
        return [part for name in names for part in (option, name)]

    def models(data: str) -> list[str]:
        return ["--encoder", mae, "--llm", llm, *(() if data == "scenes" else ("--data", data))]

    if embedded:
        reconstructed = several("--encoder", ["mae", "mae-tiny", "beit", "vqgan"])
        found = [
            Step("measure-scenes", ("measure", "--encoder", "all", *common), kept=True),
            Step("reconstruct-scenes", ("reconstruct", *reconstructed, "--data", "scenes", *common), kept=True),
        ]
    else:
        measured = (*several("--encoder", encoders), "--llm", llm, "--data", aligned)
        found = [Step(f"measure-{aligned}", ("measure", *measured, *common), kept=True)]
    options = ["--lab", lab.name, "--n", str(n), "--runs", str(runs), *common]
    options += ["--no-train"] if no_train else []
    options += ["--accumulate", str(accumulate)] if accumulate is not None else []
    for name in ("table4", *targets.TARGETS):
        longest = ["--longest"] if name == "table2" else []
        found.append(Step(name, ("reproduce", name, *longest, *options), table=True))
    if embedded:
        adapters: tuple[str, ...] = COMPARED
        needs: tuple[Path, ...] = ()
    else:
        rows = {row.name: row for row in targets.target("table2", lab, n=n, seed=seed).rows}
        needs = tuple(runs / reproduction.folder(rows[task].experiment, lab) for task in ("denoise", "rotate"))
        adapters = tuple(map(str, needs))
    found += [
        Step("probe-layers", ("probe", "layers", "--task", "denoise", *models(seen), *common), kept=True),
        Step("probe-linear", ("probe", "linear", *models(aligned), *common), kept=True),
        Step(
            "induction",
            (
                *("probe", "induction", "--llm", llm, "--random", "--n", "16", "--checkpoint", adapters[0]),
                *("--ablate", "8", "--images", "24"),
                *(() if seen == "scenes" else ("--data", seen)),
                *common,
            ),
            kept=True,
            needs=needs[:1],
        ),
        Step("adapters", ("analyse", "adapters", *adapters, "--simulate"), needs=needs),
        Step(
            "components",
            ("analyse", "components", *adapters, *(() if seen == "scenes" else ("--data", seen)), *common),
            kept=True,
            needs=needs,
        ),
        Step("compute", ("analyse", "compute", "--lab", lab.name), kept=True),
    ]
    if embedded:
        found.append(Step("compute-paper", ("analyse", "compute", "--lab", "paper"), kept=True))
    about = (results / f"measure-{aligned}", results / "depth")
    found.append(Step("correlation", ("analyse", "correlation", *map(str, about), "--task", "denoise"), needs=about))
    return found


def is_made(step: Step, results: Path) -> bool:
    """Whether the step's result lies there, of the same command and version."""
    from alignlab import __version__

    try:
        environment = json.loads((results / step.name / "result.json").read_text())["environment"]
        words = shlex.split(environment["command"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if "--out" in words:
        place = words.index("--out")
        del words[place : place + 2]
    # A result names a path by its last part.
    wanted = [Path(word).name if Path(word).is_absolute() else word for word in shlex.split(step.command)]
    return words == wanted and environment.get("alignlab") == __version__


def rows_done(folder: Path, wanted: Mapping[str, Any]) -> tuple[int, bool]:
    """How many rows of a table's result are done, and whether all are; none where its configuration is not the `wanted`."""
    try:
        result = json.loads((folder / "result.json").read_text())
        if any(result["config"][key] != value for key, value in wanted.items()):
            return 0, False
        done = [row["status"] == "done" for row in result["rows"]]
    except (OSError, ValueError, KeyError, TypeError):
        return 0, False
    return sum(done), all(done)


def rows_of(folder: Path) -> list[tuple[str, str | None]]:
    """A table's rows by name, with what was trained for them."""
    rows = json.loads((folder / "result.json").read_text())["rows"]
    return [(row["name"], row.get("trained")) for row in rows]


def put_together(step: Step, results: Path, wanted: Mapping[str, Any]) -> tuple[int, str]:
    """Run a table's command; its result takes the place of one that has no more rows done. The exit status, and what came of it.

    The rows of a result stay where their runs lie elsewhere; one with all its rows is asked for what is finished here alone.
    """
    there = results / step.name
    before, whole = rows_done(there, wanted)
    with tempfile.TemporaryDirectory() as scratch:
        new = Path(scratch) / step.name
        if before:
            shutil.copytree(there, new)
        only_finished = ["--no-train"] if whole and "--no-train" not in step.arguments else []
        command = [sys.executable, "-m", "alignlab", *step.arguments, *only_finished, "--out", str(new)]
        status = subprocess.run(command, check=False).returncode
        after, _ = rows_done(new, wanted)
        if status:
            return status, "failed"
        if after < before or (before and rows_of(new) == rows_of(there)):
            return 0, f"kept: {before} of its rows are done, and no other run lies here"
        if after == 0:
            return 0, "left out: none of its runs is finished"
        shutil.rmtree(there, ignore_errors=True)
        results.mkdir(parents=True, exist_ok=True)
        shutil.move(new, there)
    return 0, "made"


def reproduce_all(
    lab: Lab,
    n: int,
    seed: int,
    dry_run: bool,
    no_train: bool,
    runs: Path | None,
    accumulate: int | None,
    device: str,
    out: Path | None,
    json_file: Path | None,
) -> None:
    """The command. Results go to `out`/results, the page to `out`/LAB.html."""
    from alignlab.cli.common import check_writable, console, pick_device, write_json
    from alignlab.cli.reproduce import write_plan
    from alignlab.report import write_report

    folder = out or Path("reports")
    results = folder / "results"
    where = runs or Path("runs") / "reproduce" / lab.name
    if dry_run:
        described = plan(lab, results, where, n, seed, accumulate, None if lab.name == "paper" else pick_device(device))
        write_plan(json_file, described, device)
        show_plan(console(), described)
        return
    check_writable(folder, "--out")
    options: dict[str, Any] = {"n": n, "seed": seed, "no_train": no_train, "accumulate": accumulate, "device": device}
    todo = steps(lab, results, where, **options)
    told: list[dict[str, str]] = []
    for number, step in enumerate(todo, 1):
        if step.kept and is_made(step, results):
            state = "kept"
        elif no_train and step.kept:
            state = "left out: it is not made yet"
        elif not step.can_run():
            state = f"left out: it reads {', '.join(folder.name for folder in step.needs)}, which are not finished"
        else:
            typer.echo(f"step {number} of {len(todo)}: {step.command}", err=True)
            if step.table:
                status, state = put_together(step, results, {"lab": lab.name, "n": n, "seed": seed})
            else:
                command = [sys.executable, "-m", "alignlab", *step.arguments, "--out", str(results / step.name)]
                status, state = subprocess.run(command, check=False).returncode, "made"
            if status and not (no_train and step.needs):
                raise RuntimeError(
                    f"step {number} of {len(todo)} failed with status {status} ({step.command}); what is finished is kept, "
                    "and the same command goes on from there"
                )
            state = state if status == 0 else "left out: too little of what it reads is finished"
        told.append({"step": step.name, "command": step.command, "state": state})
    lacking = [f"{one['step']} is {one['state']}" for one in told if one["state"].startswith("left out")]
    page = write_report([results], folder / f"{lab.name}.html", f"The {lab.name} laboratory of alignlab", lacking)
    if json_file is not None:
        write_json(json_file, {"schema": SCHEMA, "laboratory": lab.name, "steps": told, "missing": page.gaps})
    for one in told:
        typer.echo(f"{one['step']}: {one['state']}")
    for gap in page.gaps:
        typer.echo(f"missing: {gap}", err=True)
    typer.echo(f"written: {page.path} ({page.size / 1e6:.1f} MB) and {results}")


# --- the plan ---


def plan(
    lab: Lab, results: Path, runs: Path, n: int, seed: int, accumulate: int | None, device: str | None
) -> dict[str, Any]:
    """All targets' runs, each once, with what they need together; rows that `results` holds are kept."""
    from alignlab.captioning import table4
    from alignlab.cli import reproduce, reproduce_table4
    from alignlab.restoration import earlier, reproduction, targets

    parts = accumulate or lab.accumulate
    plans = []
    for name in targets.TARGETS:
        what = targets.target(name, lab, n=n, seed=seed)
        before = earlier.read(results / name, reproduce.SCHEMA, name, lab.name)
        found = reproduction.places(what, lab, runs, before, take_longest=what.own_budgets)
        plans.append(reproduce.plan(what, lab, found, parts, device))
    laboratory = table4.open_lab(lab.name)
    rows4 = table4.table(laboratory, n=n, seed=seed)
    before4 = table4.read_earlier(results / table4.NAME)
    plans.append(reproduce_table4.plan(laboratory, table4.places(rows4, laboratory, runs, before4), parts, device))
    rows: dict[str, dict[str, Any]] = {}
    for one in plans:
        for row in one["rows"]:
            known = rows.setdefault(row["run"], {**row, "targets": []})
            if known["state"] == "kept":  # there, and maybe not here
                known |= row
            known["targets"].append(one["target"])
    weights = {need["name"]: need for one in plans for need in one["weights"]}
    return {
        "schema": reproduce.PLAN_SCHEMA,
        "target": reproduce.ALL,
        "title": f"Everything of the {lab.name} laboratory",
        "laboratory": lab.name,
        "accumulate": parts,
        "rows": list(rows.values()),
        "hours_left": sum(row["hours_left"] or 0.0 for row in rows.values()),
        "n": max((one["n"] for one in plans), default=0),
        "memory_gb": max((row["memory_gb"] or 0.0 for row in rows.values()), default=0.0),
        "download_gb": reproduce.to_get(weights.values()),
        "weights": list(weights.values()),
        "data": sorted({source for one in plans for source in one["data"]}),
        "data_missing": sorted({text for one in plans for text in one["data_missing"]}),
        "dtype": plans[0]["dtype"],
        "rate_tflops": plans[0]["rate_tflops"],
        "rate_of": plans[0]["rate_of"],
        "formulas": list(dict.fromkeys(text for one in plans for text in one["formulas"])),
    }


def show_plan(console: Any, plan: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from alignlab.cli.reproduce import show_costs, time_left

    table = Table(title=escape(f"{plan['title']}: each run once"), title_justify="left")
    for heading in ("run", "for"):
        table.add_column(heading, overflow="fold")
    for heading in ("images", "state", "memory", "time left"):
        table.add_column(heading, justify="right")
    for row in plan["rows"]:
        memory = "?" if row["memory_gb"] is None else f"{row['memory_gb']:.1f} GB"
        names = (row["run"], ", ".join(row["targets"]))
        table.add_row(*map(escape, names), f"{row['images']:,}", row["state"], memory, time_left(row["hours_left"]))
    console.print(table)
    console.print(f"weights to get: {plan['download_gb']:.2f} GB")
    show_costs(console, plan)
    console.print("not counted: measure, reconstruct, the probes and analyses, which read finished runs.")
