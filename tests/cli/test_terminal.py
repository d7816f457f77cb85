"""The terminal: the way in, help with examples, completion, and plain text where nobody looks at colours."""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
import sys

import pytest
import typer
from rich.table import Table

from alignlab.cli import app, run
from alignlab.cli.common import console
from alignlab.cli.screen import Screen

ESCAPE = re.compile(r"\x1b\[")


def commands(command=None, path=()):
    """Every command that does something, with its path."""
    command = command or typer.main.get_command(app)
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*path, name))
    if not getattr(command, "commands", {}):
        yield path, command


COMMANDS = dict(commands())


def alignlab(*arguments, **environment):
    plain = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    command = [sys.executable, "-m", "alignlab", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**plain, **environment})


def test_alone_it_shows_the_way():
    done = alignlab()
    assert (done.returncode, done.stderr) == (0, "")
    for told in (
        "Start with:  alignlab measure --encoder mae",
        "The three questions",
        "report",
        "--install-completion",
    ):
        assert told in done.stdout


@pytest.mark.parametrize("group", ["caption", "restore", "probe", "analyse", "data"])
def test_a_group_alone_lists_its_commands(group, capsys):
    assert run([group]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert all(path[-1] in told.out for path in COMMANDS if path[0] == group)


@pytest.mark.parametrize("group", ["caption", "restore", "probe", "analyse", "data", "cache"])
def test_every_group_has_an_example_of_one_of_its_commands(group, capsys):
    assert run([group, "--help"]) == 0
    (line,) = re.findall(rf"Example: (alignlab {group} .*)", capsys.readouterr().out)
    words = shlex.split(line)
    assert tuple(words[1:3]) in COMMANDS


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_has_an_example_that_is_one(path, capsys):
    found = re.search(r"Example: (alignlab .*)", " ".join((COMMANDS[path].help or "").split()))
    assert found is not None
    words = shlex.split(found[1].replace("\\[", "["))
    assert words[1 : len(path) + 1] == list(path)
    # With --help behind it, the parser refuses what it does not know and runs nothing.
    assert run([*words[1:], "--help"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("alignlab rep", {"report", "reproduce"}),
        ("alignlab measure --enc", {"--encoder"}),
        ("alignlab probe l", {"layers", "linear"}),
    ],
)
def test_the_shell_completes(line, expected):
    words = line.split()
    asked = {"_ALIGNLAB_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    code = "import sys; sys.argv[0] = 'alignlab'; from alignlab.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ, **asked}
    )
    assert expected <= set(done.stdout.split()), done


def test_there_are_no_colours_in_a_pipe_and_with_no_color():
    for environment in ({}, {"NO_COLOR": "1"}, {"NO_COLOR": "1", "TERM": "xterm-256color"}):
        for arguments in (["--help"], ["data", "list"], ["models"]):
            done = alignlab(*arguments, **environment)
            assert done.returncode == 0
            assert ESCAPE.search(done.stdout + done.stderr) is None, arguments


@pytest.mark.parametrize("arguments", [["data", "list"], ["models"]])
def test_tables_align_in_a_pipe_whatever_the_terminal_was(arguments):
    told = {columns: alignlab(*arguments, COLUMNS=columns).stdout for columns in ("40", "200")}
    for text in told.values():
        tables = re.findall(r"(?:^[┏┃┡│├└].*\n)+", text, re.MULTILINE)
        assert tables
        assert all(len({len(line) for line in table.splitlines()}) == 1 for table in tables)


def test_a_console_in_a_pipe_is_wide_enough_for_a_table():
    assert console().width >= 132


@pytest.mark.parametrize("width", [40, 60, 80, 100, 132])
def test_no_column_is_cut_off_on_any_terminal(width):
    """A table that does not fit is a list of its rows: every name and number can be read."""
    out = io.StringIO()
    table = Table(title="Restored", padding=(0, 0), pad_edge=False)
    table.add_column("row", overflow="fold")
    for heading in ("here:\ndegraded", "here:\nmis-\naligned", "the paper:\nrestored", "notes"):
        table.add_column(heading, no_wrap=True)
    table.add_row("rotate/mae+position", "29.44 (68 inf) / 0.90", "0/256", "26.77 / 0.80", "")
    table.add_row("[b]denoise[/b]", "22.52 / 0.47", "84/256", "-", "a note")
    Screen(file=out, width=width).print(table)
    told = out.getvalue()
    assert max(map(len, told.splitlines())) <= width
    assert "…" not in told
    plain = " ".join(told.split())
    for part in ("29.44 (68 inf) / 0.90", "26.77 / 0.80", "84/256", "a note"):
        assert part in plain
    if width < 80:
        assert "rotate/mae+position here: degraded 29.44 (68 inf) / 0.90, misaligned 0/256 the paper: restored" in plain
    else:
        assert "rotate/" in plain


def test_a_process_whose_sibling_has_ended_says_so(monkeypatch, capsys):
    """And not in the words of the library between them; the sibling's own message is there too."""
    from alignlab import cli

    def lost(*_, **__):
        raise RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer")

    monkeypatch.setattr(cli, "app", lost)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.run(["extract"]) == 1
    assert capsys.readouterr().err == "alignlab: another process of the launch has ended\n"
