"""Features on disk: one folder a (model, data, pooling, dtype), shards with checksums, safe to share and to kill.

A folder holds `manifest.json` (what the features are, and the SHA-256 of every finished shard) and
`shard-00000.safetensors`, ... of 256 items each. Shards and manifest appear whole or not at all; a shard that the
manifest does not vouch for is computed again. Processes that want the same features share the work, a shard at a time.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignlab.paths import home

SHARD = 256
SCHEMA = "alignlab.features/1"
Layers = Tensor | list[Tensor]  # [n, L, D], or L of [n, D_l]


@dataclass(frozen=True)
class Spec:
    """What features are: the same spec, the same numbers, but for the last digits of float32.

    `batch` is how many items were computed at once where rounding is coarse enough for that to matter, None in float32.
    """

    model: str
    checkpoint: str
    reads: str
    pool: str
    dtype: str
    data: str
    fingerprint: str
    n: int
    batch: int | None = None

    @property
    def folder(self) -> Path:
        # Names are no identity.
        described = {k: v for k, v in asdict(self).items() if k not in ("model", "data") and v is not None}
        return (
            home()
            / "features"
            / hashlib.sha256(json.dumps([SCHEMA, described], sort_keys=True).encode()).hexdigest()[:32]
        )


def shard_ranges(n: int) -> list[range]:
    return [range(start, min(start + SHARD, n)) for start in range(0, n, SHARD)]


def load_or_compute(
    spec: Spec, compute: Callable[[range], Layers], progress: Callable[[int], None], waiting: Callable[[], None]
) -> Layers:
    """The features of a spec, from the store where it has them; `compute(items)` gives those of a missing shard.

    `progress(items done)` is called as shards are ready, `waiting()` when other processes are at work on all that is left.
    Raises OSError, with the path, when the folder cannot be written.
    """
    folder = spec.folder
    parts = _stored(folder, spec)  # no lock to read: files are replaced whole, and a finished cache may be read-only
    while any(part is None for part in parts):
        fill(spec, compute, progress, waiting)
        parts = _stored(folder, spec)
    return join([part for part in parts if part is not None])


def shards(spec: Spec) -> Iterator[Layers]:
    """The features of a spec that the store has whole, a shard after the other.

    Raises RuntimeError where it has not, or no longer.
    """
    hashes = _vouched(spec.folder, spec)
    for number in range(len(shard_ranges(spec.n))):
        part = _read(spec.folder / _shard_name(number), hashes.get(_shard_name(number)))
        if part is None:
            raise RuntimeError(f"the store lacks features of {spec.model} on {spec.data}; run the command again")
        yield part


def fill(
    spec: Spec, compute: Callable[[range], Layers], progress: Callable[[int], None], waiting: Callable[[], None]
) -> None:
    """Compute what the store lacks of a spec, as `load_or_compute` does, and hold no more than a shard of it.

    Any number of processes may do so at once: each claims one shard after another, and takes over what another one leaves
    undone when it dies.
    """
    folder = spec.folder
    if left := _left(spec):  # a finished cache may be read-only
        with _at_work(folder):
            pruned = not any(folder.iterdir())  # since the look
            _fill(spec, list(range(len(shard_ranges(spec.n)))) if pruned else left, compute, progress, waiting)
    for left_over in (*folder.parent.glob(f"{folder.name}.*.lock"), *folder.glob(".*.tmp")):
        with suppress(OSError):
            left_over.unlink()  # nobody computes what is complete


def _left(spec: Spec) -> list[int]:
    """Shards that are not whole."""
    hashes = _vouched(spec.folder, spec)
    names = [_shard_name(number) for number in range(len(shard_ranges(spec.n)))]
    return [number for number, name in enumerate(names) if not is_whole(spec.folder / name, hashes.get(name))]


def _fill(
    spec: Spec,
    left: list[int],
    compute: Callable[[range], Layers],
    progress: Callable[[int], None],
    waiting: Callable[[], None],
) -> None:
    folder, ranges = spec.folder, shard_ranges(spec.n)
    done = spec.n - sum(len(ranges[i]) for i in left)
    told = False
    while left:
        taken = []
        for number in left:
            claim = _claim(folder, number)
            if claim is None:
                taken.append(number)
                continue
            try:
                name = _shard_name(number)
                if not is_whole(folder / name, _vouched(folder, spec).get(name)):  # nobody was faster
                    part = compute(ranges[number])
                    with _readable_errors(folder):
                        _vouch(folder, spec, name, _write(folder / name, part))
            finally:
                claim.release()
            done += len(ranges[number])
            progress(done)
        if taken:
            if not told:
                waiting()
            told = True
            _claim(folder, taken[0], timeout=-1).release()  # until its owner is done with it, or dead
        left = taken


def _shard_name(number: int) -> str:
    return f"shard-{number:05d}.safetensors"


def _stored(folder: Path, spec: Spec) -> list[Layers | None]:
    """Every shard that is there and vouched for, None in the place of the others."""
    hashes = _vouched(folder, spec)
    names = [_shard_name(number) for number in range(len(shard_ranges(spec.n)))]
    return [_read(folder / name, hashes.get(name)) for name in names]


def is_complete(spec: Spec) -> bool:
    """Whether every shard is vouched for (its bytes are checked when it is read)."""
    return len(_vouched(spec.folder, spec)) == len(shard_ranges(spec.n))


@contextmanager
def _readable_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        reason = error.strerror or str(error)
        advice = "free some space or " if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise OSError(
            error.errno, f"cannot keep features ({reason}); {advice}point ALIGNLAB_HOME elsewhere", str(folder)
        ) from error


def _lock(folder: Path, what: str = "") -> Any:
    """The lock of a shard's number, or of the manifest; the system lets it go when the process ends, however it ends."""
    from filelock import FileLock

    return FileLock(folder.with_name(f"{folder.name}.{what}lock"))


def _claim(folder: Path, number: int, timeout: float = 0) -> Any:
    """A shard's lock, held until it is released; None where another process holds it for longer than `timeout` seconds."""
    from filelock import Timeout

    with _readable_errors(folder):
        lock = _lock(folder, f"{number:05d}.")
        try:
            lock.acquire(timeout=timeout)
        except Timeout:
            return None
    return lock


def _vouch(folder: Path, spec: Spec, name: str, digest: str) -> None:
    """Enter a shard into the manifest, which other processes write too."""
    with _lock(folder):
        hashes = {**_vouched(folder, spec), name: digest}
        manifest = {"schema": SCHEMA, **asdict(spec), "shards": dict(sorted(hashes.items()))}
        _write_bytes(folder / "manifest.json", json.dumps(manifest, indent=1).encode())


@contextmanager
def _at_work(folder: Path) -> Iterator[None]:
    """The folder, made where it is not there; `is_being_written` tells of it inside, between two shards too."""
    with _readable_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        presence = _lock(folder, f"run-{uuid.uuid4().hex}.")
        with _lock(folder):  # `removing` holds it until it is done
            presence.acquire()
            folder.mkdir(exist_ok=True)
    try:
        yield
    finally:
        presence.release()
        with suppress(OSError):
            Path(presence.lock_file).unlink()


@contextmanager
def removing(folder: Path) -> Iterator[bool]:
    """Whether nobody writes the folder; then nobody begins to until the end."""
    from filelock import Timeout

    manifest = _lock(folder)
    try:
        manifest.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield not is_being_written(folder, but=Path(manifest.lock_file))
    finally:
        manifest.release()


def is_being_written(folder: Path, but: Path | None = None) -> bool:
    """Whether a process fills the folder, or holds its manifest or one of its shards (`but` one lock's file)."""
    from filelock import FileLock, Timeout

    for path in folder.parent.glob(f"{folder.name}.*lock"):
        if path == but:
            continue
        try:
            with FileLock(path).acquire(timeout=0):
                pass
        except Timeout:
            return True
    return False


def _vouched(folder: Path, spec: Spec) -> dict[str, str]:
    """Hashes of finished shards; none where the manifest is missing, broken or about something else."""
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
        same = all(manifest.get(k) == v for k, v in asdict(spec).items() if k not in ("model", "data"))
        return dict(manifest["shards"]) if same and manifest["schema"] == SCHEMA else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def is_whole(path: Path, expected: str | None) -> bool:
    """Whether the file has the hash that the manifest gives."""
    if expected is None:
        return False
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError:
        return False
    return digest.hexdigest() == expected


def _read(path: Path, expected: str | None) -> Layers | None:
    """A shard's features, or None unless the file has the hash that the manifest gives."""
    if expected is None:
        return None
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if hashlib.sha256(content).hexdigest() != expected:
        return None
    from safetensors.torch import load

    tensors = load(content)
    if "layers" in tensors:
        return tensors["layers"]
    return [tensors[f"layer.{i:04d}"] for i in range(len(tensors))]


def _write(path: Path, part: Layers) -> str:
    """Write a shard and return its SHA-256."""
    from safetensors.torch import save

    whole = {"layers": part} if isinstance(part, Tensor) else {f"layer.{i:04d}": t for i, t in enumerate(part)}
    content = save({k: t.contiguous() for k, t in whole.items()})
    _write_bytes(path, content)
    return hashlib.sha256(content).hexdigest()


def _write_bytes(path: Path, content: bytes) -> None:
    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        with open(unfinished, "wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        os.replace(unfinished, path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise


def join(parts: list[Layers]) -> Layers:
    """Features of consecutive items as one."""
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)  # type: ignore[arg-type]
    return [torch.cat(layer) for layer in zip(*parts, strict=True)]
