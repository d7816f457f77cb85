"""What a training shows on its way: TensorBoard's curves of its losses, and ten times what it can do by then."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

EVERY = 10  # steps between two points of a curve
SAMPLES = 10  # times in a run that `sample` is called


@contextmanager
def curves(
    folder: Path, steps: int, sample: Callable[[Any, int], None] | None = None, *, writes: bool = True
) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """What `train` is to call after every step (its `watch`): curves in `folder/logs`, nothing unless it `writes`.

    `sample(writer, steps done)` may add pictures or texts of its own to TensorBoard's `SummaryWriter`.
    """
    from torch.utils.tensorboard import SummaryWriter

    writer: SummaryWriter | None = None
    now_and_then = max(steps // SAMPLES, 1)

    def watch(done: int, losses: dict[str, float]) -> None:
        nonlocal writer
        if not writes:
            return
        if writer is None:  # a resumed run repeats what it had not saved: the curves go on from there
            writer = SummaryWriter(str(folder / "logs"), purge_step=done)
        if done % EVERY == 0 or done == steps:
            for name, value in losses.items():
                writer.add_scalar(f"loss/{name}", value, done)
        if sample is not None and (done % now_and_then == 0 or done == steps):
            sample(writer, done)

    with _refusals_told(folder / "logs"):
        try:
            yield watch
        finally:
            if writer is not None:
                writer.close()


@contextmanager
def _refusals_told(folder: Path) -> Iterator[None]:
    """What the system refuses TensorBoard's thread, as an error of the run that says where and what to do; the thread is silent."""
    usual = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if not isinstance(args.exc_value, OSError):
            usual(args)

    threading.excepthook = hook
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        reason = f"cannot write the curves ({error.strerror}); free some space or choose another --out"
        raise OSError(error.errno, reason, str(folder)) from error
    finally:
        threading.excepthook = usual
