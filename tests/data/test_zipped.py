from __future__ import annotations

import os
import pickle
import struct
import zipfile
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest

from alignlab.data import zipped
from alignlab.data.zipped import ZipMember, zip_members


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A zip with stored and deflated members, in folders and not."""
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("a.jpg", b"stored " * 50)
        made.writestr("sub/b.jpg", os.urandom(5000) + bytes(5000), zipfile.ZIP_DEFLATED)
        made.writestr("empty.jpg", b"", zipfile.ZIP_DEFLATED)
        made.writestr("folder/", b"")
        made.writestr("../outside.jpg", b"out")
    return path


def read(member: ZipMember) -> bytes:
    return member()


def test_members_are_what_zipfile_reads(archive: Path, tmp_path: Path) -> None:
    members = zip_members(archive)
    with zipfile.ZipFile(archive) as made:
        assert set(members) == set(made.namelist()) - {"folder/"}
        for name, member in members.items():
            assert member() == made.read(name)
    assert str(members["a.jpg"]) == f"{archive}: a.jpg"
    assert [path.name for path in tmp_path.iterdir()] == ["images.zip"]  # ../outside.jpg was read, not written


def test_zip64_and_data_before_the_zip(tmp_path: Path) -> None:
    path = tmp_path / "big.zip"
    with zipfile.ZipFile(path, "w") as made, made.open("a.jpg", "w", force_zip64=True) as member:
        member.write(b"pixels")
    path.write_bytes(b"a self-extractor" + path.read_bytes())
    assert zip_members(path)["a.jpg"]() == b"pixels"


def test_threads_forks_and_pickled_copies_read_at_once(archive: Path) -> None:
    members = list(zip_members(archive).values()) * 20
    expected = [member() for member in members]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(read, members)) == expected
    with ProcessPoolExecutor(2) as workers:
        assert list(workers.map(read, members, chunksize=20)) == expected
    assert [member() for member in pickle.loads(pickle.dumps(members))] == expected


def damaged(archive: Path, at: int, new: bytes) -> Path:
    data = bytearray(archive.read_bytes())
    data[at : at + len(new)] = new
    archive.write_bytes(data)
    return archive


def test_damage_is_told_when_the_member_is_read(archive: Path) -> None:
    begins = {name: int(m.archive.table[m.row][0]) for name, m in zip_members(archive).items()}
    with pytest.raises(OSError, match="size or CRC differ"):
        zip_members(damaged(archive, begins["a.jpg"] + 50, b"X"))["a.jpg"]()
    with pytest.raises(OSError, match=r"damaged in the zip \(.*invalid"):
        zip_members(damaged(archive, begins["sub/b.jpg"] + 30 + len("sub/b.jpg"), b"\xff" * 8))["sub/b.jpg"]()
    with pytest.raises(OSError, match="no file where the zip's directory says"):
        zip_members(damaged(archive, begins["empty.jpg"], b"XXXX"))["empty.jpg"]()


def directory(archive: Path, name: str) -> int:
    """Where a member's entry in the central directory begins."""
    return archive.read_bytes().index(name.encode(), archive.read_bytes().index(b"PK\x01\x02")) - 46


def test_hostile_directories(archive: Path) -> None:
    at = directory(archive, "a.jpg")
    with pytest.raises(OSError, match="encrypted"):
        zip_members(damaged(archive, at + 8, b"\x01"))["a.jpg"]()
    damaged(archive, at + 8, b"\x00")
    with pytest.raises(OSError, match="packed by method 12"):
        zip_members(damaged(archive, at + 10, struct.pack("<H", 12)))["a.jpg"]()
    damaged(archive, at + 10, struct.pack("<H", zipfile.ZIP_STORED))
    with pytest.raises(OSError, match=r"4,000,000,000 bytes"):
        zip_members(damaged(archive, at + 24, struct.pack("<I", 4_000_000_000)))["a.jpg"]()


def test_a_bomb_is_unpacked_no_further_than_announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("a.jpg", bytes(50_000_000))
    with pytest.raises(OSError, match="size or CRC differ"):
        zip_members(damaged(path, directory(path, "a.jpg") + 24, struct.pack("<I", 100)))["a.jpg"]()
    monkeypatch.setattr(zipped, "LARGEST", 1000)
    with pytest.raises(OSError, match="an image has 1,000 at most"):
        zip_members(path)["a.jpg"]()


def test_what_is_no_zip(archive: Path, tmp_path: Path) -> None:
    archive.write_bytes(archive.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"images\.zip: not a whole zip .*download it again"):
        zip_members(archive)
    with pytest.raises(ValueError, match="cannot be read"):
        zip_members(tmp_path)
    (tmp_path / "empty.zip").touch()
    with pytest.raises(ValueError, match="not a whole zip"):
        zip_members(tmp_path / "empty.zip")
