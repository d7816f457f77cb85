"""Files that appear whole or not at all, and what is said where a disk is full."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys

import pytest
import torch

from alignlab import training
from alignlab.files import _HOST, read_saved, save_figure, whole, write_tensors


@contextlib.contextmanager
def full_disk():
    """What the system does to writers of more than 20,000 bytes: as a full disk, for this process alone.

    Around the write and nothing else: pytest's own output may go to a file that is already larger.
    """
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


LARGE = {"weight": torch.zeros(100_000)}


def test_what_is_written_appears_at_the_end(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with whole(path) as unfinished:
        unfinished.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [one.name for one in tmp_path.iterdir()] == ["a.txt"]


def test_what_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def half() -> None:
        with whole(path) as unfinished:
            unfinished.write_text("half")
            raise KeyError("x")  # an error that is none of the system's stays what it is

    with pytest.raises(KeyError):
        half()
    assert path.read_text() == "old"
    assert [one.name for one in tmp_path.iterdir()] == ["a.txt"]


def test_a_full_disk_is_said_whichever_library_writes(tmp_path):
    for name, write in (
        ("tensors", lambda path: write_tensors(path, LARGE)),
        ("state", lambda path: training._save(path, LARGE)),
    ):
        said = r"cannot .* \((No space left on device|File too large)\); "
        with pytest.raises(OSError, match=said) as error, full_disk():
            write(tmp_path / name)
        assert error.value.filename == str(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_keeps_the_last_state_of_a_training(tmp_path):
    path = tmp_path / "state.pt"
    training._save(path, {"step": 1})
    said = r"cannot keep the training's state .*; free some space .*; the last state is kept"
    with pytest.raises(OSError, match=said), full_disk():
        training._save(path, LARGE)
    assert read_saved(path) == {"step": 1}


def test_a_full_disk_under_the_curves_is_said_by_the_run_and_not_by_a_thread(tmp_path, capfd):
    from alignlab.curves import curves

    def learn() -> None:
        with curves(tmp_path, 20_000) as watch:
            for step in range(10, 20_000, 10):
                watch(step, {"loss": 1.0})

    with (
        pytest.raises(OSError, match=r"cannot write the curves .*; free some space or choose another --out"),
        full_disk(),
    ):
        learn()
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="permissions are others there")
def test_a_folder_that_may_not_be_written_is_said(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match=r"cannot keep the training's state \(Read-only file system\)"):
        training._save(tmp_path / "state.pt", {"step": 1})
    assert list(tmp_path.iterdir()) == []


def test_every_flipped_byte_of_a_state_is_noticed(tmp_path):
    """PyTorch alone does not: it writes checksums and never reads them."""
    path = tmp_path / "state.pt"
    torch.save({"weight": torch.arange(64.0)}, path)
    content = path.read_bytes()
    found = read_saved(path)["weight"]
    quiet = 0
    for place in range(0, len(content), 3):
        path.write_bytes(content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :])
        try:
            again = read_saved(path)
        except ValueError:
            continue
        assert torch.equal(again["weight"], found)  # padding, dates and the like
        quiet += 1
    assert quiet < len(content) / 3


def test_what_a_killed_one_of_several_left_is_removed(tmp_path):
    """And nothing of one that lives, of another machine's or of another file's."""
    path = tmp_path / "features.safetensors"
    script = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom alignlab.files import whole\n"
        "with whole(Path(sys.argv[1]), several=True) as unfinished:\n"
        "    unfinished.write_text('half')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(path)], check=False).returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    with whole(path, several=True) as living:
        living.write_text("half")
        others = [left.with_name(left.name.replace(_HOST, f"{_HOST}x")), tmp_path / f".other{left.name}"]
        for other in others:
            other.write_text("half")
        with whole(path, several=True) as unfinished:
            assert not left.exists() or left == unfinished
            unfinished.write_text("whole")
        assert living.exists() or living == unfinished
        living.write_text("later")
    assert sorted(tmp_path.iterdir()) == sorted([path, *others])
    assert path.read_text() == "later"


def test_a_figure_appears_whole_or_not_at_all(tmp_path):
    from matplotlib.figure import Figure

    figure = Figure()
    figure.add_subplot().imshow(torch.rand(200, 200, generator=torch.Generator().manual_seed(0)).numpy())
    with full_disk(), pytest.raises(OSError, match="cannot be written"):
        save_figure(figure, tmp_path / "a.png", dpi=300)
    assert list(tmp_path.iterdir()) == []
    save_figure(figure, tmp_path / "a.png", dpi=30)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
