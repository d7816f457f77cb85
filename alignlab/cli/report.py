"""`alignlab report`: one self-contained HTML page of any results."""

from __future__ import annotations

from pathlib import Path

import typer


def report(
    run: list[Path] = typer.Argument(
        ..., help="result.json files, their folders, or folders of such folders (reports/results)."
    ),
    out: Path = typer.Option(Path("reports/report.html"), "--out", "-o", help="The page to write."),
    title: str = typer.Option("", help="Its heading."),
) -> None:
    """Make one HTML page, without any network and under 10 MB, of the results of any commands.

    It begins with the question and the answer and ends with how to get every number again. What a result lacks is marked
    on the page, and told here.

    Example: alignlab report runs/measure-20261121-093000 runs/denoise -o reports/mine.html
    """
    from alignlab.report import write_report

    if out.is_dir():
        raise ValueError(f"--out {out} is a folder; name a file, such as {out / 'report.html'}")
    written = write_report(run, out, title)
    for gap in written.gaps:
        typer.echo(f"missing: {gap}", err=True)
    typer.echo(f"sections: {', '.join(written.sections)}")
    typer.echo(f"written: {written.path} ({written.size / 1e6:.1f} MB)")
