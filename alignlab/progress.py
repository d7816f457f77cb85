"""Long work in sight: a progress bar on a terminal, a plain line now and then elsewhere, both on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Tick = Callable[..., None]  # tick(done: int, note: str = "")
PLAIN_LINE_EVERY = 15.0  # seconds


@contextmanager
def progress(label: str, total: int, unit: str = "items", start: int = 0, speaks: bool = True) -> Iterator[Tick]:
    """Show work of `total` units; the block calls `tick(done, note)` with the units done so far. Of several processes that
    share the work one `speaks`.
    """
    if not speaks:
        yield lambda done, note="": None
        return
    if sys.stderr.isatty():
        with _bar(label, total, unit, start) as on_bar:
            yield on_bar
        return
    began = last = time.monotonic()
    shown = start

    def tick(done: int, note: str = "") -> None:
        nonlocal last, shown
        now = time.monotonic()
        ends = done >= total > shown and now - began >= PLAIN_LINE_EVERY
        if (now - last >= PLAIN_LINE_EVERY and done > shown) or ends:
            last, shown = now, done
            rate = (done - start) / (now - began)
            print(f"{label}: {done:,} of {total:,} {unit}, {rate:.3g} a second {note}".rstrip(), file=sys.stderr)

    yield tick


@contextmanager
def _bar(label: str, total: int, unit: str, start: int) -> Iterator[Tick]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as shown:
        task = shown.add_task(label, total=total, completed=start, note="")

        def tick(done: int, note: str = "") -> None:
            shown.update(task, completed=done, note=note)

        yield tick
