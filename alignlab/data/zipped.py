"""Files inside a zip, read in any order without unpacking it.

`zipfile.ZipFile` keeps some 600 bytes for every member and one open file for all readers. A set of half a million
images wants neither: here a member costs one row of a table, and every read opens the zip, seeks and closes it, so
that threads, forked workers and pickled copies can all read at once.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alignlab.data.images import LARGEST

_HEADER = 30  # of a member, before its name


@dataclass(frozen=True, eq=False)
class _Archive:
    """A zip's path and, for each member: offset, packed size, size, CRC-32, method, flags; int64 [N, 6]."""

    path: str
    table: np.ndarray


@dataclass(frozen=True, slots=True)
class ZipMember:
    """Reads one member; its str() names the zip and the member, for errors."""

    archive: _Archive
    row: int
    name: str

    def __str__(self) -> str:
        return f"{self.archive.path}: {self.name}"

    def __call__(self) -> bytes:
        """The member's bytes, checked against the CRC; OSError with the reason."""
        offset, packed, size, crc, method, flags = (int(value) for value in self.archive.table[self.row])
        if flags & 1:
            raise OSError("it is encrypted in the zip")
        if method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise OSError(f"packed by method {method}; make the zip anew, stored or deflated")
        if max(packed, size) > LARGEST:
            raise OSError(f"{max(packed, size):,} bytes; an image has {LARGEST:,} at most")
        with open(self.archive.path, "rb") as file:
            file.seek(offset)
            header = file.read(_HEADER)
            if len(header) < _HEADER or not header.startswith(b"PK\x03\x04"):
                raise OSError("damaged: there is no file where the zip's directory says; download the zip again")
            name, extra = struct.unpack("<HH", header[26:])
            file.seek(offset + _HEADER + name + extra)
            data = file.read(packed)
        if method == zipfile.ZIP_DEFLATED:
            try:
                # One byte more than announced is enough to tell, and a bomb unpacks to no more than that.
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
            except zlib.error as error:
                raise OSError(f"damaged in the zip ({error}); download the zip again") from error
        if len(data) != size or zlib.crc32(data) != crc:
            raise OSError("damaged in the zip: size or CRC differ; download the zip again")
        return data


def zip_members(path: Path) -> dict[str, ZipMember]:
    """The files of a zip by name; ValueError where it is no zip or is cut off. Nothing is unpacked to disk."""
    try:
        with zipfile.ZipFile(path) as archive:
            found = [info for info in archive.infolist() if not info.is_dir()]
            rows = [
                (info.header_offset, info.compress_size, info.file_size, info.CRC, info.compress_type, info.flag_bits)
                for info in found
            ]
            names = [info.filename for info in found]
        table = np.array(rows, dtype=np.int64).reshape(-1, 6)
        if (table < 0).any():
            raise ValueError("negative sizes")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (zipfile.BadZipFile, NotImplementedError, OverflowError, struct.error, ValueError) as error:
        raise ValueError(f"{path}: not a whole zip ({error}); download it again") from error
    shared = _Archive(str(path), table)
    return {name: ZipMember(shared, row, name) for row, name in enumerate(names)}
