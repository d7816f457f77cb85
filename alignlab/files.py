"""Files that appear whole or not at all, and say so in one line where a disk is full or may not be written."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import platform
import re
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor


def slug(name: str) -> str:
    """The name of a model, a set or a run as a part of a file's.

    >>> slug("facebook/vit-mae-large@random"), slug("hf:ORG/SET:train")
    ('facebook-vit-mae-large-random', 'hf-ORG-SET-train')
    """
    return re.sub(r"[^\w.+]+", "-", name).strip("-")


def numbered(names: Sequence[str]) -> list[str]:
    """Names with a number behind all but the first of a kind.

    >>> numbered(["a", "b", "a"])
    ['a', 'b', 'a-2']
    """
    return [name if (again := names[:i].count(name)) == 0 else f"{name}-{again + 1}" for i, name in enumerate(names)]


def labels(names: Sequence[str]) -> list[str]:
    """Parts of files' names for these, each another one.

    >>> labels(["a b", "c", "a/b"])
    ['a-b', 'c', 'a-b-2']
    """
    return numbered([slug(name) for name in names])


_HOST = re.sub(r"\W+", "_", platform.node())


@contextmanager
def whole(
    path: Path, what: str = "cannot be written", remedy: str = "choose another place", several: bool = False
) -> Iterator[Path]:
    """A path beside `path` to write to; it takes that name once it is written to the end, and goes where it is not.

    It is always the same, so that the next run writes over what a killed one left there; of `several` that write the same file
    at once each has its own, and removes what those have left that are dead.
    Raises OSError, "WHAT (reason); REMEDY", for what the system refuses, whichever library reports it in whichever way.
    """
    own = f".{_HOST}-{os.getpid()}-{threading.get_ident()}" if several else ""
    unfinished = path.with_name(f".{path.name}{own}")
    if several:
        _remove_those_of_the_dead(path)
    try:
        yield unfinished
        _settle(unfinished)
        os.replace(unfinished, path)
    except Exception as error:
        number = refusal(error)
        if number is None:
            raise
        raise OSError(number, f"{what} ({os.strerror(number)}); {remedy}", str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


def _remove_those_of_the_dead(path: Path) -> None:
    """What killed processes of this machine were writing in the place of `path`."""
    import psutil

    for left in path.parent.glob(f".{glob.escape(path.name)}.{glob.escape(_HOST)}-*"):
        pid = left.name.removeprefix(f".{path.name}.{_HOST}-").partition("-")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            with contextlib.suppress(OSError):
                left.unlink()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file whole or not at all, readable to all; OSError as `whole`."""
    from safetensors.torch import save_file

    with whole(path) as unfinished:
        save_file({name: x.detach().cpu().contiguous() for name, x in tensors.items()}, unfinished, metadata=metadata)
        unfinished.chmod(0o644)  # safetensors makes it readable to its owner alone


def save_figure(figure: Figure, path: Path, **how: Any) -> None:
    """Write a matplotlib figure whole or not at all, in the format of its name or as told; OSError as `whole`."""
    with whole(path) as unfinished:
        figure.savefig(unfinished, **{"format": path.suffix[1:], **how})


def read_saved(path: Path) -> Any:
    """What `torch.save` wrote to a zip file, tensors and plain values alone, every part of it as it was written.

    Raises ValueError for a damaged file and any other, OSError for one that cannot be opened.
    """
    import torch

    try:
        with zipfile.ZipFile(path) as archive:
            if (part := archive.testzip()) is not None:  # PyTorch writes checksums and does not read them
                raise ValueError(f"{part} has another checksum")
        return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # of a damaged pickle PyTorch stumbles over anything
        if isinstance(error, OSError) and error.filename:
            raise
        raise ValueError(f"{path} is damaged, or no file of tensors and plain values") from error


def refusal(error: BaseException) -> int | None:
    """The number of the system's error behind an error of writing, None where it is about something else."""
    if isinstance(error, OSError):
        return error.errno
    if told := re.search(r"\(os error (\d+)\)", str(error)):  # safetensors
        return int(told[1])
    # PyTorch says where in its source it noticed that a write fell short, not why; it never does for another reason.
    return errno.ENOSPC if "inline_container.cc" in str(error) else None


def _settle(path: Path) -> None:
    """Have the system keep what was written: a name that outlives a power cut must not stand for an empty file."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
