"""What every kind of hostile input is held to: an answer of one line, in time, and no file but where it was asked for.

A `Kind` draws inputs, writes them to a folder and runs alignlab on them. `try_one` raises a `Finding` where the answer is
anything but done (0), failed (1, where the kind says that it may) or refused in one line (2). `test_fuzz.py` tries a few of
every kind, `benchmarks/fuzz.py` thousands.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from alignlab.cli import run

WITHIN = 60.0  # seconds of computing that one input may take, the first with what it imports
AT_LAST = 300.0  # seconds by the clock: what waits for something that never comes computes nothing
LONGEST = 2_000  # characters of an answer
OUT = "out"  # the one folder, in that of an input, where files may appear


class Finding(AssertionError):
    """What must not happen to a user."""


class Endless(BaseException):
    """An input took too long; nothing in alignlab catches this."""


@dataclass(frozen=True)
class Kind:
    """Inputs of one kind: `write` puts one into a folder, `answer` runs alignlab on it there and gives the exit status."""

    name: str
    inputs: st.SearchStrategy[Any]
    write: Callable[[Any, Path], None]
    answer: Callable[[Any, Path], int]


def try_one(kind: Kind, given: Any) -> int:
    """The exit status that an input comes to; Finding where it does not end in one, or leaves files elsewhere."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        # Folders above the input's own, so that names that climb out of it land where they are noticed.
        folder = Path(scratch, "above", "middle", "input")
        (folder / OUT).mkdir(parents=True)
        with quiet():
            kind.write(given, folder)
        before = _listing(Path(scratch), folder / OUT)
        with _limited(), _inside(folder), quiet():
            try:
                status = kind.answer(given, folder)
            except Endless:
                raise Finding(f"it computes longer than {WITHIN:.0f} s, or waits longer than {AT_LAST:.0f} s") from None
        if made := _listing(Path(scratch), folder / OUT) - before:
            raise Finding(f"it writes outside its output folder: {sorted(made)[0]}")
        return status


def _listing(top: Path, but: Path) -> set[str]:
    return {str(path.relative_to(top)) for path in top.rglob("*") if but not in path.parents}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No warnings inside."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """`contextlib.chdir`, which Python 3.10 has not."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """`Endless` after so many seconds of this process' own computing, however busy the machine is, and after many more by
    the clock."""

    def stop(*_: object) -> None:
        raise Endless

    timers = ((signal.SIGPROF, signal.ITIMER_PROF, WITHIN), (signal.SIGALRM, signal.ITIMER_REAL, AT_LAST))
    before = [(number, signal.signal(number, stop)) for number, _, _ in timers]
    for _, timer, seconds in timers:
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for _, timer, _ in timers:
            signal.setitimer(timer, 0)
        for number, handler in before:
            signal.signal(number, handler)


def called(function: Callable[[], object]) -> int:
    """0 where a function of the library is content, 2 where it refuses with a ValueError of one line."""
    try:
        function()
    except (ValueError, FileNotFoundError) as error:
        if isinstance(error, UnicodeError) or not _is_plain(str(error)):
            raise Finding(f"it says {str(error)[:200]!r} ({type(error).__name__})") from error
        return 2
    except Exception as error:
        raise Finding(f"{type(error).__name__}: {str(error)[:200]} in {_place(error)}") from error
    return 0


def command(*arguments: str, may_fail: bool = False) -> int:
    """The exit status of a command line; what it says must be one line, and no bug of alignlab's."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    told = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(told):
        status = run(list(arguments))
        told.flush()
    said = told.buffer.getvalue().decode()  # type: ignore[attr-defined]
    last = [line for line in said.splitlines() if line.startswith("alignlab: ")]
    if "Traceback" in said or "unexpected " in said or status not in (0, 1, 2):
        raise Finding(f"exit {status}: {said[-300:]}")
    if status and (len(last) != 1 or not _is_plain(last[0])):
        raise Finding(f"exit {status} says {said[-300:]!r}")
    if status == 1 and not may_fail:
        raise Finding(f"exit 1 for bad input: {last[0][:300]}")
    return status


def _is_plain(said: str) -> bool:
    return bool(said.strip()) and len(said.splitlines()) == 1 and len(said) <= LONGEST


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if f"{os.sep}alignlab{os.sep}" in frame.filename] or frames
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"


# Damage


@dataclass(frozen=True)
class Damage:
    """One change of some bytes, at a share `at` of their length."""

    how: str  # "cut", "flip", "number", "insert", "double"
    at: float
    value: int

    def __call__(self, data: bytes) -> bytes:
        place = int(self.at * len(data))
        match self.how:
            case "cut":
                return data[:place]
            case "flip":
                return (
                    data[:place] + bytes([(data[place] ^ (self.value % 255 + 1))] if data else []) + data[place + 1 :]
                )
            case "number":  # sizes and offsets are often four bytes
                extreme = (0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000)[self.value % 5]
                return data[:place] + extreme.to_bytes(4, "big" if self.value % 2 else "little") + data[place + 4 :]
            case "insert":
                return data[:place] + bytes([self.value % 256]) * (self.value % 40) + data[place:]
            case _:
                return data[:place] + data[place : place + 64] * 2 + data[place + 64 :]


def damages(most: int = 4) -> st.SearchStrategy[list[Damage]]:
    """Changes of bytes: near the beginning, where formats say what follows, as often as anywhere."""
    near = st.floats(0, 0.05, exclude_max=True)
    anywhere = st.floats(0, 1, exclude_max=True)
    how = st.sampled_from(("flip", "number", "cut", "insert", "double"))
    return st.lists(st.builds(Damage, how, st.one_of(near, anywhere), st.integers(0, 1000)), max_size=most)


def damaged(data: bytes, changes: list[Damage]) -> bytes:
    for change in changes:
        if data:
            data = change(data)
    return data


# What stands where something else was expected, in JSON and on command lines.
ODD = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 10**400, 1e308, -0.0, 0.5, float("nan"), float("inf")),
    *("", " ", "a", "0", "None", "../x", "/", "\x00", "\ud800", "a\nb", "<script>", "é" * 300, "[", "{}", "%s{0}"),
    *([], {}, [[]], [None], [[1, 2], [3]], {"a": 1}, {"": None}, [1] * 50, {"psnr": None}),
)
odd = st.sampled_from(ODD)


@dataclass(frozen=True)
class Edit:
    """One change of a JSON value: at the leaf or branch `at` (of all of them, in order)."""

    how: str  # "set", "drop", "empty", "swap"
    at: float
    value: Any

    def __call__(self, whole: Any) -> Any:
        places = list(_places(whole))
        if not places:
            return self.value
        holder, key = places[int(self.at * len(places))]
        if self.how == "drop":
            del holder[key]
        elif self.how == "swap":
            other, name = places[int(self.at * 7919) % len(places)]
            if holder is other:
                holder[key], other[name] = other[name], holder[key]
            else:
                holder[key] = self.value
        elif self.how == "empty":
            holder[key] = type(holder[key])() if holder[key] is not None else []
        else:
            holder[key] = self.value
        return whole


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Where values stand; of a long list the ends alone, so that names are met as often as numbers."""
    if isinstance(value, dict):
        for key in value:
            yield value, key
            yield from _places(value[key])
    elif isinstance(value, list):
        for i in range(len(value)) if len(value) < 6 else (0, 1, len(value) - 1):
            yield value, i
            yield from _places(value[i])


def edits(least: int = 0, most: int = 4) -> st.SearchStrategy[list[Edit]]:
    how = st.sampled_from(("set", "drop", "empty", "swap"))
    return st.lists(st.builds(Edit, how, st.floats(0, 1, exclude_max=True), odd), min_size=least, max_size=most)


def edited(value: Any, changes: list[Edit]) -> Any:
    import copy

    for change in changes:
        value = change(copy.deepcopy(value))
    return value
