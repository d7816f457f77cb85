"""`alignlab analyse correlation`: does the alignment of an encoder and a language model predict how well they restore?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from alignlab.files import save_figure

if TYPE_CHECKING:
    from alignlab.analysis.points import Gathered

SCHEMA = "alignlab.analyse-correlation/1"
LABELS = {
    "gain": "restored minus encoder and decoder alone, PSNR in dB",
    "lift": "restored minus degraded, PSNR in dB",
    "restored": "restored, PSNR in dB",
}
TESTS = {
    "points": "all points,\nas if independent",
    "within": "within encoders",
    "means": "means of encoders",
    "curves": "all points, whole\nencoders permuted",
}


def correlation(
    result: list[Path] = typer.Argument(
        ..., help="result.json, or its folder, of measure and of restore train, restore eval or reproduce."
    ),
    column: str = typer.Option("gain", help="gain (over encoder and decoder alone), lift (over degraded) or restored."),
    task: str | None = typer.Option(None, help="Which task, where the results have several."),
    data: str | None = typer.Option(None, help="Which set restoration was measured on, where there are several."),
    alignment_data: str | None = typer.Option(None, help="Which set alignment was measured on, likewise."),
    metric: list[str] = typer.Option([], help="Only these metrics; may be repeated."),
    how: str = typer.Option("lm4lv", help="Which restorers: lm4lv or vit-llm."),
    any_budget: bool = typer.Option(
        False, "--any-budget", help="Compare restorers that learnt from different numbers of images."
    ),
    seed: int = typer.Option(0, help="Of permutations and resamples."),
    out: Path | None = typer.Option(
        None, help="Folder for result.json and correlation.png (default runs/analyse-correlation-TIME)."
    ),
    json_file: Path | None = typer.Option(None, "--json", help="Write the result to this file too."),
) -> None:
    """Correlate alignment scores with restoration, over encoders, language models and depths (`smollm2\\[:K]`).

    A restorer through the first K blocks is put beside the alignment of layer K: "at", the best of the encoder's layers
    with it, and "upto", with any layer up to it.

    Example: alignlab analyse correlation reports/results/measure-scenes runs/reproduce/embedded/* --task denoise
    """
    from alignlab.analysis import correlation as analysis
    from alignlab.analysis import points
    from alignlab.cli.common import check_whole, check_writable, console, output_folder, write_json
    from alignlab.provenance import environment, shown

    check_whole({"seed": seed})
    if column not in points.COLUMNS:
        raise ValueError(f"--column must be one of {', '.join(points.COLUMNS)}, got {column!r}")
    if how not in ("lm4lv", "vit-llm"):
        raise ValueError(f"--how must be lm4lv or vit-llm, which read a language model, got {how!r}")
    scores, restorations, left_out = points.read(result, column)
    known = list(dict.fromkeys(score.metric for score in scores))
    for name in metric:
        if name not in known:
            raise ValueError(f"--metric {name}: the results have {', '.join(known) or 'none'}")
    found = points.gather(
        [score for score in scores if not metric or score.metric in metric],
        restorations,
        task=task,
        data=data,
        alignment_data=alignment_data,
        how=how,
        any_budget=any_budget,
        left_out=left_out,
    )
    if len(found.points) < analysis.LEAST:
        names = ", ".join(point.name for point in found.points) or "none"
        lacking = f"; without alignment: {'; '.join(found.missing)}" if found.missing else ""
        raise ValueError(
            f"a correlation needs {analysis.LEAST} points at least, got {len(found.points)} ({names}){lacking}; add results"
        )
    correlations = [
        analysis.correlation(found.points, score, kind, seed)
        for score in found.points[0].alignment
        for kind in analysis.KINDS
    ]
    folder = output_folder(out, "analyse-correlation")
    if json_file is not None:
        check_writable(json_file.absolute().parent, "--json")
    title = f"{found.task} on {found.data}; alignment on {found.alignment_data}"
    picture = analysis.scatter(found.points, correlations, LABELS[column], title)
    save_figure(picture, folder / "correlation.png", dpi=130)
    described = {
        "schema": SCHEMA,
        "laboratory": _laboratory(found),
        "task": found.task,
        "column": column,
        "data": found.data,
        "alignment_data": found.alignment_data,
        "images": list(found.images),
        "points": [asdict(point) for point in found.points],
        "correlations": [asdict(one) for one in correlations],
        "missing": list(found.missing),
        "left_out": list(found.left_out),
        "notes": list(found.notes),
        "readings": analysis.readings(found.points, correlations),
        "picture": "correlation.png",
        "config": {
            **{"result": [shown(str(path)) for path in result], "column": column, "task": task, "data": data},
            **{"alignment_data": alignment_data, "metric": metric, "how": how, "any_budget": any_budget, "seed": seed},
        },
        "environment": environment("cpu"),
    }
    write_json(folder / "result.json", described)
    if json_file is not None:
        write_json(json_file, described)
    show(console(), described, folder)


def _laboratory(found: Gathered) -> str:
    """That of all points' models, whole or cut, and of both sets."""
    from alignlab.models.variant import parse
    from alignlab.provenance import laboratory

    encoders = [point.encoder for point in found.points]
    whose = {
        laboratory(encoders, parse(point.llm).base, name)
        for point in found.points
        for name in (found.data, found.alignment_data.partition(" (")[0])
    }
    return whose.pop() if len(whose) == 1 else "own"


def show(screen: Any, result: dict[str, Any], folder: Path) -> None:
    """Print the points, the correlations, and how far they reach."""
    from rich.markup import escape
    from rich.table import Table

    budgets = ", ".join("unknown" if n is None else f"{n:,}" for n in result["images"])
    about = f"{result['task']} on {result['data']} after {budgets} images; alignment on {result['alignment_data']}"
    screen.print(escape(about), style="italic", soft_wrap=True)
    scores = list(result["points"][0]["alignment"])
    table = Table(padding=(0, 0), pad_edge=False)
    table.add_column("point", no_wrap=True)
    for score in scores:
        table.add_column(escape(score.replace(" ", "\n")), justify="right", no_wrap=True)
    table.add_column(f"{result['column']},\ndB", justify="right", no_wrap=True)
    for point in result["points"]:
        several = f" ({point['runs']} seeds)" if point["runs"] > 1 else ""
        cells = [f"{point['alignment'][score]:.3f}" for score in scores]
        name = f"{point['encoder']} / {point['llm']}{several}"
        table.add_row(escape(name), *cells, f"{point['restoration']:+.2f}")
    screen.print(table)
    table = Table(padding=(0, 0), pad_edge=False)
    for heading in ("score", "coefficient"):
        table.add_column(heading, no_wrap=True)
    for heading in TESTS.values():
        table.add_column(f"{heading}:\nr (95%), p", justify="right", no_wrap=True)
    for one in result["correlations"]:
        table.add_row(escape(one["score"]), one["kind"], *(_test(one[name]) for name in TESTS))
    screen.print(table)
    screen.print(
        "at: the best of the encoder's layers with the layer that is written from; upto: with any layer up to it. p: two-sided, "
        "by permutation (= all arrangements tried, ~ drawn); intervals: bootstrap over points or encoders, from five of them.",
        soft_wrap=True,
    )
    for line in result["readings"]:
        screen.print(escape(line), soft_wrap=True, style="bold" if "too few" in line else None)
    for kind, lines in (("note", result["notes"]), ("without alignment", result["missing"])):
        for line in lines:
            screen.print(escape(f"{kind}: {line}"), soft_wrap=True)
    if result["left_out"]:
        screen.print(escape(f"left out: {'; '.join(result['left_out'])}"), soft_wrap=True)
    screen.print(escape(f"written: {folder}/result.json and correlation.png"), soft_wrap=True)


def _test(test: dict[str, Any] | None) -> str:
    if test is None or test["r"] is None:
        return "-"
    interval = "" if test["ci95"] is None else f" ({test['ci95'][0]:+.2f}..{test['ci95'][1]:+.2f})"
    p = "" if test["p"] is None else f", p {'=' if test['exact'] else '~'} {test['p']:.2g}"
    return f"{test['r']:+.2f}{interval}{p}"
