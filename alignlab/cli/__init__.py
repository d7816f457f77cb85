"""The command line. Each module here is one command: its options and what it prints; the work is done elsewhere.

Nothing heavy is imported before a command runs, so that `alignlab --help` is instant.
"""

from __future__ import annotations

import errno
import os
import sys
import warnings

import typer

from alignlab.cli import (
    analyse,
    cache,
    caption,
    common,
    data,
    doctor,
    extract,
    measure,
    models,
    pretrain,
    probe,
    reconstruct,
    report,
    reproduce,
    restore,
)

WAY = """Do a vision encoder and a language model represent the world alike?

Start with:  alignlab measure --encoder mae

Your own images:  alignlab measure --encoder mae --data my-photos/

Can the language model read the encoder?  alignlab caption train --help

Can it write the encoder's features?  alignlab restore train --help

A page of the results:  alignlab report runs
"""
QUESTIONS, INSIDE, TOGETHER, PARTS = "The three questions", "Look inside", "Put together", "Models, data, this machine"

app = typer.Typer(
    name="alignlab",
    help=WAY,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("measure", rich_help_panel=QUESTIONS)(measure.measure)
app.add_typer(caption.app, name="caption", rich_help_panel=QUESTIONS)
app.add_typer(restore.app, name="restore", rich_help_panel=QUESTIONS)
app.command("extract", rich_help_panel=INSIDE)(extract.extract)
app.command("reconstruct", rich_help_panel=INSIDE)(reconstruct.reconstruct)
app.add_typer(probe.app, name="probe", rich_help_panel=INSIDE)
app.add_typer(analyse.app, name="analyse", rich_help_panel=INSIDE)
app.command("reproduce", rich_help_panel=TOGETHER)(reproduce.reproduce)
app.command("report", rich_help_panel=TOGETHER)(report.report)
app.add_typer(models.app, name="models", rich_help_panel=PARTS)
app.add_typer(data.app, name="data", rich_help_panel=PARTS)
app.add_typer(cache.app, name="cache", rich_help_panel=PARTS)
app.command("pretrain", rich_help_panel=PARTS)(pretrain.pretrain)
app.command("doctor", rich_help_panel=PARTS)(doctor.doctor)

# Commands that several processes of a launcher share; the others would do all of their work in each, into the same files.
SHARED = ("extract", "measure", "reproduce", "caption", "restore")
INTERRUPTED = 130  # what the parser makes of Ctrl-C


def _version(show: bool) -> None:
    if show:
        from alignlab import __version__

        typer.echo(f"alignlab {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    pass


def _plain_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"warning: {str(message).splitlines()[0]}", file=sys.stderr)


def _fail(message: str, status: int) -> int:
    print(f"alignlab: {message}", file=sys.stderr)
    return status


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _refuse_launcher(arguments: list[str]) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or {"--help", "-h"} & set(arguments):
        return
    command = " ".join(arguments[:2])
    if command == "reproduce all" or not (command in SHARED or (arguments[:1] and arguments[0] in SHARED)):
        raise ValueError(f"{command} does all of its work in every process; run it without a launcher")


def run(arguments: list[str] | None = None) -> int:
    """Run a command line and return its exit status: 0 done, 1 failed while running, 2 bad arguments or input."""
    warnings.showwarning = _plain_warning
    common.MADE.clear()
    if os.environ.get("ALIGNLAB_DEBUG"):
        app(arguments, standalone_mode=False)
        return 0
    try:
        _refuse_launcher(sys.argv[1:] if arguments is None else arguments)
        status = app(arguments, standalone_mode=False)  # commands return nothing, the parser a status
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except typer.Exit as stop:
        status = stop.exit_code
    except Exception as error:
        usage = getattr(error, "format_message", None)  # of the parser's own errors: unknown options, missing values
        if type(error).__name__ == "NoArgsIsHelpError":  # a command without arguments has shown the way
            return 0
        if usage is not None:
            return _fail(f"{usage()} (--help lists what there is)", 2)
        if isinstance(error, BrokenPipeError):  # whoever read the output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        common.leave_nothing_empty()
        if isinstance(error, FileNotFoundError) and error.filename:
            plain = error.strerror in (None, os.strerror(errno.ENOENT))
            return _fail(f"there is no {error.filename}" if plain else f"{error.filename}: {error.strerror}", 2)
        if isinstance(error, ValueError):
            return _fail(_first_line(error), 2)
        if isinstance(error, OSError) and error.filename:
            return _fail(f"{error.filename}: {error.strerror}", 1)
        if isinstance(error, OSError | RuntimeError | MemoryError):
            lost = int(os.environ.get("WORLD_SIZE", "1")) > 1 and any(name in str(error) for name in ("gloo", "NCCL"))
            return _fail("another process of the launch has ended" if lost else _first_line(error), 1)
        kind = type(error).__name__
        return _fail(f"unexpected {kind}: {_first_line(error)} (ALIGNLAB_DEBUG=1 shows where)", 1)
    if status == INTERRUPTED:
        return _fail("interrupted; features and training states that were finished are kept for the same command", 1)
    return status if isinstance(status, int) else 0
