"""Files that `torch.save` wrote: state dicts, training checkpoints, whole pickled modules. Nothing in them is run.

`torch.load(weights_only=True)` calls the few functions that it trusts, and refuses a file whole for any other name in it,
as Lightning's callbacks or the classes of OpenAI's dVAE. `unpickle` calls nothing at all, so that such files can be read.
What may stand in a file beside its tensors:

* names that training tools leave there (`TOLERATED`: Lightning, OmegaConf, NumPy's scalars, `argparse.Namespace`, ...)
  stay inert, and the file is read;
* names that run programs, open files or connect (`ACTIVE`: `os`, `subprocess`, `builtins.eval`, ...) have no business in
  a checkpoint: the file is refused, by `alignlab models convert` too;
* any other name refuses the file, but `alignlab models convert` makes safetensors of its tensors and says what it left.

PyTorch's zip files (1.6 and later) and the format before them are read, both little-endian; TorchScript archives and the
tar files of 2016 are not.
"""

from __future__ import annotations

import io
import mmap
import re
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alignlab.models.unpickle import Machine, Storage, StoredTensor

# What the format before zip begins with.
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
LITTLE_ENDIAN = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}

# What tensors are made of: these are understood, so they are not foreign.
TENSORS = re.compile(
    r"torch\.(cuda\.)?\w+Storage|torch\._utils\._rebuild_(tensor|tensor_v2|parameter|parameter_with_state)|"
    r"torch\._tensor\._rebuild_from_type_v2|torch\.nn\.parameter\.Parameter|torch\.Size|collections\.OrderedDict"
)
TOLERATED = re.compile(
    r"(pytorch_lightning|lightning|lightning_fabric|lightning_utilities|omegaconf|pathlib|datetime|typing|enum|collections|"
    r"torch\.nn\.modules|torch\.optim|dall_e\.(encoder|decoder|utils))\..+|"
    r"numpy\.(dtype|ndarray|float\d+|int\d+|(_core|core)\.multiarray\.(scalar|_reconstruct))|argparse\.Namespace|"
    r"functools\.partial|_codecs\.encode|copyreg\._reconstructor|copy_reg\._reconstructor|"
    r"(builtins|__builtin__)\.(object|set|frozenset|dict|list|tuple|int|float|complex|str|bytes|bytearray|slice|range)|"
    r"torch\.(Tensor|device|dtype|u?int\d+|b?float\d+|half|float|double|long|bool)"
)
ACTIVE = re.compile(
    r"(os|posix|nt|sys|subprocess|shutil|socket|ctypes|importlib|imp|runpy|codeop|pty|pdb|bdb|timeit|"
    r"pickle|_pickle|marshal|operator|_operator|webbrowser|urllib|http|requests|ftplib|smtplib|asyncio|multiprocessing|"
    r"threading|signal|tempfile|io|_io|builtins|__builtin__)(\..*)?|torch\.(load|hub|jit|serialization|package)(\..*)?"
)


@dataclass(frozen=True)
class Checkpoint:
    """What is in a file: `value` with `StoredTensor`, `Inert` and plain Python in it; `foreign` names, none of them imported."""

    path: Path
    value: Any
    foreign: tuple[str, ...]
    places: dict[str, tuple[int, int]]  # storage -> where it begins in the file and how many bytes it has

    def read(self, tensor: StoredTensor) -> torch.Tensor:
        """The numbers of a tensor, read now. ValueError where the file does not hold them all."""
        storage = tensor.storage
        size = storage.itemsize
        start, length = self.places.get(storage.key, (0, -1))
        if storage.numel * size > length:
            raise ValueError(f"{self.path} is damaged: the storage {storage.key} is not whole in it")
        if 0 in tensor.shape:
            return torch.empty(tensor.shape, dtype=storage.dtype)
        span = 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride, strict=True))
        raw = np.fromfile(self.path, np.uint8, span * size, offset=start + tensor.offset * size)
        if len(raw) != span * size:
            raise ValueError(f"{self.path} is damaged: it ends within the storage {storage.key}")
        flat = torch.from_numpy(raw).view(storage.dtype)
        return flat.as_strided(tensor.shape, tensor.stride).contiguous()


def open_checkpoint(path: Path, *, convert: bool = False) -> Checkpoint:
    """Read a file that `torch.save` wrote; its tensors are described, none is read yet.

    `convert` accepts foreign names that are neither `TOLERATED` nor `ACTIVE` (the caller reports them). Raises ValueError
    for a file that is damaged, is none of PyTorch's, or holds names that are not accepted.
    """
    machine = Machine()
    try:
        value, places = _zip(path, machine) if _is_zip(path) else _legacy(path, machine)
    except FileNotFoundError as error:
        raise ValueError(f"there is no file {path}") from error
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is damaged, perhaps cut short: {error}") from error
    except (ValueError, TypeError, AttributeError, LookupError, MemoryError, RuntimeError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.filename:
            raise  # it cannot be opened; without a name it is a place within it that is not there
        _judge(
            path, unknown_to(machine.names), convert=True
        )  # what it would have run says more than where it breaks off
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} cannot be read as a checkpoint of PyTorch: {reason}") from error
    foreign = tuple(name for name in machine.names if not TENSORS.fullmatch(name))
    checkpoint = Checkpoint(path, value, foreign, places)
    _judge(path, unknown_to(foreign), convert)
    if value is _NOT_A_CHECKPOINT:
        raise ValueError(f"{path} cannot be read as a checkpoint of PyTorch: it is another kind of pickle")
    return checkpoint


def unknown_to(foreign: Iterable[str]) -> list[str]:
    """Those of the names that are not known to be left by training tools."""
    return [name for name in foreign if not TOLERATED.fullmatch(name)]


def _judge(path: Path, unknown: list[str], convert: bool) -> None:
    if active := [name for name in unknown if ACTIVE.fullmatch(name)]:
        raise ValueError(
            f"{path} refers to {active[0]}, which a checkpoint has no use for; nothing of it was run, it is refused"
        )
    if unknown and not convert:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise ValueError(
            f"{path} holds objects of {unknown[0]}{more}, which alignlab does not know; "
            f"to keep its tensors alone run: alignlab models convert {path}"
        )


_NOT_A_CHECKPOINT = object()
_Parts = tuple[Any, dict[str, tuple[int, int]]]


def _is_zip(path: Path) -> bool:
    with open(path, "rb") as raw:
        return raw.read(4) == b"PK\x03\x04"


def _zip(path: Path, machine: Machine) -> _Parts:
    with zipfile.ZipFile(path) as archive, open(path, "rb") as raw:
        entries = {entry.filename: entry for entry in archive.infolist()}
        if any(name.endswith("/constants.pkl") for name in entries):
            raise ValueError("it is a TorchScript program, not a checkpoint")
        found = [name for name in entries if name.endswith("/data.pkl") or name == "data.pkl"]
        if len(found) != 1:
            raise ValueError("it is a zip file without one data.pkl")
        root = found[0].removesuffix("data.pkl")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
            raise ValueError("it is compressed, which PyTorch's files never are")
        if f"{root}byteorder" in entries and archive.read(f"{root}byteorder") != b"little":
            raise ValueError("it was written on a big-endian machine")
        places = {}
        for name, entry in entries.items():
            if name.startswith(f"{root}data/"):
                raw.seek(entry.header_offset + 26)  # the lengths of the name and of the extra field, 2 bytes each
                lengths = np.frombuffer(raw.read(4), "<u2")
                places[name.removeprefix(f"{root}data/")] = (
                    entry.header_offset + 30 + int(lengths.sum()),
                    entry.file_size,
                )
        return machine.run(io.BytesIO(archive.read(found[0]))), places


def _legacy(path: Path, machine: Machine) -> _Parts:
    """Five pickles in a row (magic number, protocol, system, value, keys of the storages), then the storages."""
    with open(path, "rb") as raw:
        if not path.stat().st_size:
            raise ValueError("it is empty")
        with mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as source:  # never reads past the end of the file
            if machine.run(source) != MAGIC:
                return _NOT_A_CHECKPOINT, {}
            if machine.run(source) != PROTOCOL:
                raise ValueError("it has an unknown protocol")
            if machine.run(source) != LITTLE_ENDIAN:
                raise ValueError("it was written on another kind of machine")
            value, keys = machine.run(source), machine.run(source)
            return value, dict(_places(source, machine.storages, keys))


def _places(source: mmap.mmap, storages: dict[str, Storage], keys: Any) -> Iterator[tuple[str, tuple[int, int]]]:
    """Where each storage begins and how long it is: a count of elements (8 bytes), the elements, and the next."""
    for key in keys:
        if not isinstance(key, str) or key not in storages:
            raise ValueError("it holds a storage that nothing refers to")
        header = source.read(8)
        length = int.from_bytes(header, "little", signed=True) * storages[key].itemsize
        if len(header) < 8 or not 0 <= length <= len(source) - source.tell():
            raise ValueError(f"it ends within the storage {key}")
        yield key, (source.tell(), length)
        source.seek(length, 1)
