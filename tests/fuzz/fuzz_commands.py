"""Command lines: of every command with values that fit no option and one that no command takes, so that nothing begins to
work; and of those that take a second on a set of three pictures, which do work.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer
from fuzzing import ODD, OUT, Kind, command
from hypothesis import strategies as st
from PIL import Image

from alignlab.cli import app

# They reach for a network or a package index before anything else.
LEFT_OUT = {("models", "fetch"), ("doctor",)}
# These end any command that has the option before it works; the others have too little to work on.
POISON = {"--device": "tpu", "--split": "none", "--draws": "none"}
VALUES = (
    *(
        "scenes",
        "mae",
        "pca",
        "smollm2",
        "timm:nothing",
        "open_clip:a/b",
        "hf:",
        "llava595k:",
        "imagenet:/",
        "x-{0..9}.tar",
    ),
    *(
        "nowhere",
        "a:b",
        "=",
        "k=",
        "sigma=1,2",
        "[:0]",
        "mae@random",
        "smollm2[:x]",
        "~nobody",
        "-",
        "--",
        "-1",
        "1e400",
    ),
    *(str(one) for one in ODD if not isinstance(one, list | dict)),
)


def _commands(group: Any, before: tuple[str, ...] = ()) -> dict[tuple[str, ...], list[Any]]:
    found: dict[tuple[str, ...], list[Any]] = {}
    for name, one in getattr(group, "commands", {}).items():
        words = (*before, name)
        if getattr(one, "commands", None):
            found |= _commands(one, words)
        elif words not in LEFT_OUT:
            found[words] = one.params
    return found


COMMANDS = _commands(typer.main.get_command(app))


@st.composite
def lines(draw: st.DrawFn) -> list[str]:
    words = draw(st.sampled_from(sorted(COMMANDS)))
    options = [one for one in COMMANDS[words] if one.param_type_name == "option"]
    given = list(words)
    poison = [option for option in POISON if any(option in one.opts for one in options)]
    for option in poison:
        given += [option, POISON[option]]
    for one in draw(st.lists(st.sampled_from(options or [None]), max_size=4)):
        if one is None or any(option in one.opts for option in poison):
            continue
        given.append(draw(st.sampled_from(one.opts)))
        if one.name in ("out", "json_file"):
            given.append(
                draw(st.sampled_from((OUT, f"{OUT}/a/b", f"{OUT}/\x00", f"{OUT}/" + "x" * 300, "file", "file/x")))
            )
        elif not one.is_flag:
            given.append(draw(st.one_of(st.sampled_from(VALUES), st.text(max_size=10))))
    for one in COMMANDS[words]:
        if one.param_type_name == "argument" and (one.required or draw(st.booleans())):
            given.append(draw(st.sampled_from(("nowhere", "file", "../above", "\x00", "", "table3", "all", "mae"))))
    return given


def write(given: list[str], folder: Path) -> None:
    (folder / "file").write_text("no folder")


def answer(given: list[str], folder: Path) -> int:
    return command(*given, may_fail=True)


# What works in a second: options and arguments that later ones take the place of.
WORKING = {
    ("extract",): ["--encoder", "pca", "--data", "set"],
    ("reconstruct",): ["--encoder", "pca", "--data", "set", "--lpips", "none", "--features", "none"],
    ("restore", "train"): [
        *("--how", "linear", "--encoder", "pca", "--task", "denoise", "--data", "set"),
        *("--steps", "1", "--batch-size", "1", "--warmup", "0", "--n", "1"),
    ],
    ("analyse", "adapters"): ["rotate-mae-smollm2", "--draws", "2"],
    ("analyse", "compute"): ["--lab", "paper", "--no-measured"],
    ("data", "list"): [],
}
SAFE = (
    *("set", "pca", "pca@random", "pca+position", "linear", "denoise", "rotate", "none", "raw", "cls", "mean", "cpu"),
    *(
        "float32",
        "bfloat16",
        "nowhere",
        "a:b",
        "",
        "\x00",
        "é",
        "-1",
        "0",
        "1",
        "2",
        "3",
        "0.5",
        "nan",
        "1e400",
        "1e-9",
    ),
)
LONG = {"how", "llm", "simulate", "measured", "skip_existing", "workers"}  # a language model, or minutes of work


@st.composite
def working(draw: st.DrawFn) -> list[str]:
    words = draw(st.sampled_from(sorted(WORKING)))
    options = [one for one in COMMANDS[words] if one.param_type_name == "option" and one.name not in LONG]
    given = [*words, *WORKING[words]]
    for one in draw(st.lists(st.sampled_from(options), max_size=2)) if options else ():
        given.append(draw(st.sampled_from(one.opts)))
        if one.name in ("out", "json_file"):
            given.append(draw(st.sampled_from((f"{OUT}/a", f"{OUT}/a/b", f"{OUT}/\x00", "file", "file/x"))))
        elif not one.is_flag:
            given.append(draw(st.sampled_from(SAFE)))
    folder = (
        [] if "--out" in given or "--out" not in {name for one in options for name in one.opts} else [f"--out={OUT}/x"]
    )
    return [*given, *folder]


def write_set(given: list[str], folder: Path) -> None:
    write(given, folder)
    (folder / "set").mkdir()
    for i in range(3):
        Image.new("RGB", (70 + i, 66), (90 * i, 200, 40)).save(folder / "set" / f"{i}.png")
        (folder / "set" / f"{i}.txt").write_text(f"picture {i}")


KINDS = (Kind("command line", lines(), write, answer), Kind("working line", working(), write_set, answer))
