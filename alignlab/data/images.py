"""Images: any file to 8-bit RGB, to a tensor in 0..1, to an encoder's square."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

if TYPE_CHECKING:
    import torch

LARGEST = 1 << 28  # bytes; an encoded image of more than 256 MiB is none, or a hostile one
BAND = 512  # rows that are converted at once
# Raster formats only: PIL would hand an EPS file, whatever it is called, to Ghostscript to run.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "JPEG2000", "PPM")

_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(source: str | Path | bytes | Image.Image) -> Image.Image:
    """Read an image as 8-bit RGB, turned as its EXIF orientation says.

    Transparent pixels are composited over white; CMYK goes through its ICC profile if it has a usable one;
    16-bit greyscale is scaled from 0..65535, float greyscale from 0..1 (from 0..255 where it exceeds 1). An
    animation gives its first frame (a PIL image: the frame it stands at). The result carries no metadata.

    Raises FileNotFoundError for a missing file, ValueError (one line: the file and the reason) for one that
    is truncated, corrupt, not an image, or larger than `PIL.Image.MAX_IMAGE_PIXELS`.

    >>> read_image(Image.new("LA", (2, 1), (0, 128))).getpixel((0, 0))
    (127, 127, 127)
    """
    if isinstance(source, Image.Image):
        label = str(getattr(source, "filename", "") or "the PIL image")
    elif isinstance(source, bytes):
        label = f"the image of {len(source)} bytes"
    elif isinstance(source, str | Path):
        label = os.fspath(source)
    else:
        raise ValueError(f"read_image takes a path, bytes or a PIL image, got {type(source).__name__}")
    try:
        if isinstance(source, Image.Image):
            return _guarded(source)
        return decode(source if isinstance(source, bytes) else read_file(source))
    except FileNotFoundError:
        raise FileNotFoundError(f"{label}: no such file") from None
    except OSError as error:
        raise ValueError(f"{label}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise ValueError(f"{label}: {error}") from error


def read_file(path: str | Path) -> bytes:
    """The bytes of an image's file; OSError where it cannot be read, is no ordinary file (a pipe would never end, nor would a
    device) or is larger than any image.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError("it is no ordinary file")
    if found.st_size > LARGEST:
        raise OSError(f"{found.st_size:,} bytes; an image has {LARGEST:,} at most")
    with open(path, "rb") as file:
        return file.read(found.st_size)  # no more than that: files that the system makes up say 0 and go on


def decode(data: bytes) -> Image.Image:
    """`read_image` of an encoded file's bytes; its ValueError holds the reason alone, without a name."""
    if not data:
        raise ValueError("the file is empty (0 bytes)")
    Image.init()
    # PIL fails with a KeyError on a format that it was built without.
    formats = [name for name in FORMATS if name in Image.OPEN]
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError:
        raise ValueError(f"not an image, or none of {', '.join(formats)}") from None
    except Exception as error:
        raise ValueError(_reason(error)) from error
    with image:
        return _guarded(image)


def to_tensor(image: Image.Image) -> torch.Tensor:
    """An image as a float32 tensor `[3, H, W]` in 0..1.

    >>> to_tensor(Image.new("RGB", (4, 2), "white")).shape
    torch.Size([3, 2, 4])
    """
    import torch

    pixels = np.array(image if image.mode == "RGB" else read_image(image))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float() / 255


def resize(images: torch.Tensor, size: int) -> torch.Tensor:
    """Resize `[B, 3, H, W]` in 0..1 to `[B, 3, size, size]` in 0..1: bicubic with antialiasing, no crop.

    Images that have the size already are returned as they are, the same tensor. Raises ValueError for another
    shape, for integers, and for size < 1.

    >>> import torch
    >>> resize(torch.rand(2, 3, 48, 64), 32).shape
    torch.Size([2, 3, 32, 32])
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be [B, 3, H, W], got {list(images.shape)}")
    if not images.is_floating_point():
        raise ValueError(f"images must be floats in 0..1, got {images.dtype}; divide 8-bit images by 255")
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    if images.shape[2] == images.shape[3] == size:
        return images
    from torch.nn.functional import interpolate

    resized = interpolate(images.float(), (size, size), mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp(0, 1)


def _guarded(image: Image.Image) -> Image.Image:
    """Load an opened image as RGB; whatever goes wrong becomes a ValueError of one line."""
    width, height = image.size
    if width < 1 or height < 1:
        raise ValueError(f"no pixels ({width} x {height})")
    # Between one and two times its limit PIL only warns.
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise ValueError(f"too large ({width} x {height} pixels; the limit is {limit} pixels)")
    try:
        image.load()
        rgb = _to_rgb(image)
        # Asked only now: PIL turns a TIFF itself when it loads it, and then drops its orientation.
        turn = _TURN.get(_orientation(image))
        if turn is not None:
            rgb = rgb.transpose(turn)
    except Exception as error:  # PIL's decoders raise nearly anything on damaged data
        raise ValueError(_reason(error)) from error
    rgb.info = {}  # the orientation is applied: nobody after us shall apply it again
    return rgb


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _from_integers(np.asarray(image))
    if image.mode == "F":
        return _from_floats(np.asarray(image))
    if image.mode == "CMYK":
        return _from_cmyk(image)
    if image.has_transparency_data:
        if image.mode == "La":
            image = image.convert("LA")  # PIL has no direct way
        return _over_white(image)
    return image.convert("RGB")


def _from_integers(values: np.ndarray) -> Image.Image:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ValueError(f"integer pixels must be in 0..65535, got {low}..{high}; save the image with 8 bits")
    return _from_grey(values, 65535, 255 / 65535)


def _from_floats(values: np.ndarray) -> Image.Image:
    low, high = float(values.min()), float(values.max())
    # Bicubic resizing overshoots 1 a little; an image in 0..255 that stays below 1.05 would be all black.
    scale = 1.0 if high <= 1.05 else 255.0
    if not (low >= -0.05 * scale and high <= 1.05 * scale):  # false for NaN too
        raise ValueError(f"float pixels must be in 0..1 or 0..255, got {low:g}..{high:g}")
    return _from_grey(values, scale, 255 / scale)


def _from_grey(values: np.ndarray, most: float, scale: float) -> Image.Image:
    """Values clipped to 0..most, times `scale`, a band of rows after the other: float64 of them all would be gigabytes."""
    made = np.empty(values.shape, np.uint8)
    for top in range(0, len(values), BAND):
        made[top : top + BAND] = np.rint(values[top : top + BAND].astype(np.float64).clip(0, most) * scale)
    return Image.fromarray(made).convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    """Composited over white, a band after the other likewise."""
    made = Image.new("RGB", image.size)
    for top in range(0, image.height, BAND):
        part = image.crop((0, top, image.width, min(top + BAND, image.height))).convert("RGBA")
        white = Image.new("RGBA", part.size, "white")
        made.paste(Image.alpha_composite(white, part).convert("RGB"), (0, top))
    return made


def _from_cmyk(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if profile:
        try:
            srgb = ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(image, io.BytesIO(profile), srgb, outputMode="RGB")
        except (ImageCms.PyCMSError, ImportError):
            converted = None  # a broken profile, or PIL without LittleCMS: as if there were none
        if converted is not None:
            return converted
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF must not cost the picture; PIL raises many types for it
        return 1


def _reason(error: Exception) -> str:
    """The first line of an error, or its type where it says nothing."""
    return (str(error).splitlines() or [""])[0].strip() or type(error).__name__
