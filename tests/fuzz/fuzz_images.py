"""Images: every format and mode, damaged; headers that promise more pixels than there are; streams that unpack to far more."""

from __future__ import annotations

import functools
import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fuzzing import Damage, Kind, called, damaged, damages
from hypothesis import strategies as st
from PIL import Image, features

from alignlab.data import read_image

MODES = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK"),
    "GIF": ("L", "P"),
    "WEBP": ("RGB", "RGBA"),
    "BMP": ("1", "L", "P", "RGB"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"),
    "PPM": ("1", "L", "RGB", "I;16"),
    **({"JPEG2000": ("L", "RGB", "RGBA")} if features.check("jpg_2000") else {}),
    **({"AVIF": ("RGB", "RGBA")} if features.check("avif") else {}),
    "ICO": ("RGBA",),  # PIL reads it, alignlab does not
}


@dataclass(frozen=True)
class Encoded:
    """An image file: of a format, mode, size and number of frames, then damaged."""

    format: str
    mode: str
    size: tuple[int, int]
    frames: int
    exif: bytes
    changes: tuple[Damage, ...]

    def bytes(self) -> bytes:
        return damaged(_encoded(self.format, self.mode, self.size, self.frames, self.exif), list(self.changes))


@functools.lru_cache(maxsize=4096)
def _encoded(format: str, mode: str, size: tuple[int, int], frames: int, exif: bytes) -> bytes:
    rng = np.random.default_rng(0)
    first = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    if mode in ("I;16", "I", "F"):
        picture = first.convert("L").convert("I" if mode != "F" else "F")
        picture = picture.convert("I;16") if mode == "I;16" else picture
    else:
        picture = first.convert(mode)
    out = io.BytesIO()
    options: dict[str, Any] = {"exif": exif} if exif and format in ("PNG", "JPEG", "WEBP") else {}
    if frames > 1 and format in ("GIF", "WEBP", "PNG", "TIFF", "AVIF"):
        options |= {"save_all": True, "append_images": [picture.rotate(90 * i) for i in range(1, frames)]}
    picture.save(out, format=format, **options)
    return out.getvalue()


def _png(width: int, height: int, depth: int, colour: int, body: bytes, *more: tuple[bytes, bytes]) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), *more, (b"IDAT", body), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, data) for name, data in chunks)


@functools.cache
def _zeros(count: int) -> bytes:
    return zlib.compress(bytes(count), 9)


side = st.sampled_from((0, 1, 2, 300, 9_000, 20_000, 65_535, 2**31 - 1, 2**32 - 1))
bombs = st.one_of(
    st.builds(
        lambda w, h, depth, colour, mb: _png(w, h, depth, colour, _zeros(mb << 20)),
        *(
            side,
            side,
            st.sampled_from((1, 2, 4, 8, 16, 77)),
            st.sampled_from((0, 2, 3, 4, 6, 5)),
            st.sampled_from((0, 1, 64)),
        ),
    ),
    st.builds(  # a text or a profile that unpacks to far more than it should
        lambda name, mb: _png(1, 1, 8, 0, zlib.compress(b"\0\0"), (name, b"x\0\0" + _zeros(mb << 20))),
        *(st.sampled_from((b"zTXt", b"iCCP", b"iTXt", b"acTL", b"eXIf")), st.sampled_from((0, 1, 128))),
    ),
    st.builds(
        lambda kind, w, h: b"%s %d %d 255\n" % (kind, w, h), st.sampled_from((b"P1", b"P5", b"P6", b"Pf")), side, side
    ),
    st.builds(lambda w, h: b"GIF89a" + struct.pack("<HH", w % 65536, h % 65536) + b"\xf7\0\0" + bytes(768), side, side),
    st.builds(
        lambda w, h, bits: (
            b"BM"
            + struct.pack("<IIIIIiHHIIIIII", 54, 0, 54, 40, w % 2**32, (h + 2**31) % 2**32 - 2**31, 1, bits, *(0,) * 6)
        ),
        *(side, side, st.sampled_from((0, 1, 8, 24, 32, 99))),
    ),
    st.binary(max_size=64),
    st.builds(
        lambda magic, rest: magic + rest,
        st.sampled_from(
            (b"\xff\xd8\xff\xe0", b"RIFF\0\0\0\0WEBPVP8L", b"II*\0\x08\0\0\0", b"%!PS-Adobe\n", b"\0\0\0\x0cjP  \r\n")
        ),
        st.binary(max_size=80),
    ),
)


@st.composite
def encoded(draw: st.DrawFn) -> bytes:
    format = draw(st.sampled_from(sorted(MODES)))
    mode = draw(st.sampled_from(MODES[format]))
    size = draw(st.sampled_from(((1, 1), (2, 3), (17, 9), (64, 64))))
    exif = draw(
        st.sampled_from(
            (b"", b"Exif\0\0junk", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0")
        )
    )
    return Encoded(format, mode, size, draw(st.integers(1, 3)), exif, tuple(draw(damages()))).bytes()


def write(given: bytes, folder: Path) -> None:
    (folder / "picture.png").write_bytes(given)


def answer(given: bytes, folder: Path) -> int:
    def read() -> None:
        picture = read_image(folder / "picture.png")
        assert picture.mode == "RGB"
        assert not picture.info

    return called(read)


KINDS = (Kind("images", encoded(), write, answer), Kind("image bombs", bombs, write, answer))
