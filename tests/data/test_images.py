from __future__ import annotations

import io
import os
import struct
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from alignlab.data import load_dataset, read_image, resize, to_tensor


def noise(height: int = 24, width: int = 32, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(image: Image.Image, fmt: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def pixels(source: str | Path | bytes | Image.Image) -> np.ndarray:
    image = read_image(source)
    assert image.mode == "RGB"
    return np.asarray(image)


def grey_cmyk_profile() -> bytes:
    """A valid ICC v2 profile: paper is white, key is black, any other ink is mid grey."""
    paper, tint, key = (bytes([lightness, 128, 128]) for lightness in (255, 127, 0))
    nodes = [key if k else tint if c or m or y else paper for c, m, y, k in product((0, 1), repeat=4)]
    ramp = bytes(range(256))
    identity = struct.pack(">9i", *(65536 if i in (0, 4, 8) else 0 for i in range(9)))
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + identity + ramp * 4 + b"".join(nodes) + ramp * 3
    lut += b"\0" * (-len(lut) % 4)
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    text = b"text\0\0\0\0none\0\0\0\0"
    desc = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"flat\0" + b"\0" * 78
    desc += b"\0" * (-len(desc) % 4)
    tags = [(b"A2B0", lut), (b"wtpt", white), (b"cprt", text), (b"desc", desc)]
    offset = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags:
        table += name + struct.pack(">2I", offset + len(body), len(data))
        body += data
    header = struct.pack(">I4sI4s4s4s", offset + len(body), b"\0" * 4, 0x02400000, b"prtr", b"CMYK", b"Lab ")
    header += struct.pack(">6H4s", 2024, 1, 1, 0, 0, 0, b"acsp") + b"\0" * 28
    header += struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + table + body


# --- modes ---


def test_path_text_bytes_and_image_agree(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    Image.fromarray(noise()).save(file)
    for source in (file, str(file), file.read_bytes(), Image.open(file)):
        np.testing.assert_array_equal(pixels(source), noise())


def test_the_extension_does_not_matter(tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    file.write_bytes(encoded(Image.fromarray(noise()), "PNG"))
    np.testing.assert_array_equal(pixels(file), noise())


def test_greyscale_and_one_bit() -> None:
    grey = noise(channels=1)
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(grey), "PNG")), np.stack([grey] * 3, -1))
    bits = Image.fromarray(grey).convert("1")
    assert set(np.unique(pixels(encoded(bits, "PNG")))) == {0, 255}


def test_palette() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    assert pixels(encoded(image, "PNG")).tolist() == [[[255, 0, 0], [0, 255, 0], [0, 0, 255]]]


@pytest.mark.parametrize("fmt", ["PNG", "GIF"])
def test_palette_with_transparency_is_over_white(fmt: str) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([200, 0, 0, 0, 0, 200])
    image.putdata([0, 1])
    assert pixels(encoded(image, fmt, transparency=0)).tolist() == [[[255, 255, 255], [0, 0, 200]]]


def test_palette_with_an_alpha_for_each_colour() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 0, 0, 200])
    image.putdata([0, 1])
    assert pixels(encoded(image, "PNG", transparency=bytes([51, 255]))).tolist() == [[[204] * 3, [0, 0, 200]]]


@pytest.mark.parametrize("mode", ["LA", "RGBA", "PA", "La", "RGBa"])
def test_alpha_is_over_white(mode: str) -> None:
    # black under full, half and no alpha; the premultiplied modes hold the same picture
    image = Image.new("LA", (3, 1))
    image.putdata([(0, 255), (0, 128), (0, 0)])
    image = image.convert("RGBA") if mode in ("RGBA", "RGBa", "PA") else image
    image = image.convert(mode)
    assert pixels(image)[0, :, 0].tolist() == [0, 127, 255]


def test_rgb_with_one_transparent_colour() -> None:
    image = Image.new("RGB", (2, 1), (10, 20, 30))
    image.putpixel((1, 0), (1, 2, 3))
    assert pixels(encoded(image, "PNG", transparency=(10, 20, 30))).tolist() == [[[255] * 3, [1, 2, 3]]]


def test_cmyk_jpeg_without_profile() -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    colour = pixels(encoded(image, "JPEG", quality=100)).mean((0, 1))
    np.testing.assert_allclose(colour, [255, 0, 0], atol=4)


def test_cmyk_jpeg_goes_through_its_profile() -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    colour = pixels(encoded(image, "JPEG", quality=100, icc_profile=grey_cmyk_profile())).mean((0, 1))
    np.testing.assert_allclose(colour, [118, 118, 118], atol=4)


@pytest.mark.parametrize("profile", [b"no profile at all", b"\0" * 200])
def test_cmyk_jpeg_with_a_broken_profile(profile: bytes) -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    colour = pixels(encoded(image, "JPEG", quality=100, icc_profile=profile)).mean((0, 1))
    np.testing.assert_allclose(colour, [255, 0, 0], atol=4)


@pytest.mark.parametrize("fmt", ["PNG", "TIFF"])
def test_sixteen_bit_greyscale_is_scaled(fmt: str) -> None:
    values = np.array([[0, 257, 12_850, 32_896, 65_535]], dtype=np.uint16)
    data = encoded(Image.fromarray(values), fmt)
    assert pixels(data)[0, :, 0].tolist() == [0, 1, 50, 128, 255]


def test_integer_mode_is_scaled_by_65535() -> None:
    image = Image.fromarray(np.array([[0, 32_896, 65_535]], dtype=np.int32))
    assert image.mode == "I"
    assert pixels(image)[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("value", [-1, 65_536])
def test_integers_of_unknown_scale_are_refused(value: int) -> None:
    data = encoded(Image.fromarray(np.array([[5, value]], dtype=np.int32)), "TIFF")
    with pytest.raises(ValueError, match=str(value)):
        read_image(data)


def test_float_mode() -> None:
    assert pixels(Image.fromarray(np.array([[0, 0.5, 1]], np.float32)))[0, :, 0].tolist() == [0, 128, 255]
    assert pixels(Image.fromarray(np.array([[0, 128, 255]], np.float32)))[0, :, 0].tolist() == [0, 128, 255]
    overshoot = Image.fromarray(np.array([[-0.01, 0.5, 1.01]], np.float32))
    assert pixels(overshoot)[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 1e6])
def test_floats_of_unknown_scale_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="float pixels"):
        read_image(encoded(Image.fromarray(np.array([[0.5, value]], np.float32)), "TIFF"))


@pytest.mark.parametrize("mode", ["YCbCr", "LAB", "HSV"])
def test_other_colour_spaces_become_rgb(mode: str) -> None:
    image = Image.new("RGB", (2, 2), (200, 40, 40))
    if mode == "LAB":
        image = Image.new("LAB", (2, 2), (255, 128, 128))
        assert pixels(image).min() > 245
    else:
        np.testing.assert_allclose(pixels(image.convert(mode))[0, 0], [200, 40, 40], atol=4)


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    for fmt in ("GIF", "WEBP", "PNG"):
        data = encoded(frames[0], fmt, save_all=True, append_images=frames[1:], lossless=True)
        assert np.abs(pixels(data)[0, 0].astype(int) - [255, 0, 0]).max() < 4


# --- orientation and metadata ---


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("fmt", "options"),
    [
        ("JPEG", {"quality": 95}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
def test_orientation_is_applied(orientation: int, fmt: str, options: dict[str, object]) -> None:
    # the first row and column of the file, as EXIF defines the eight values, say which corner is top left
    corner = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}
    image = Image.new("RGB", (48, 32))
    image.paste((255, 255, 255), (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = pixels(encoded(image, fmt, exif=exif, **options))
    assert turned.shape == ((32, 48, 3) if orientation < 5 else (48, 32, 3))
    row, column = corner[orientation]
    assert turned[-8 if row else 8, -8 if column else 8].min() > 240


def test_reading_twice_turns_once() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    once = read_image(encoded(Image.fromarray(noise()), "JPEG", exif=exif))
    np.testing.assert_array_equal(pixels(once), np.asarray(once))
    assert once.info == {}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_cost_the_image() -> None:
    data = encoded(Image.fromarray(noise()), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert pixels(data).shape == (24, 32, 3)


def test_the_image_given_is_left_alone() -> None:
    image = Image.new("RGBA", (2, 2), (1, 2, 3, 4))
    image.info["note"] = "kept"
    read_image(image)
    assert image.mode == "RGBA"
    assert image.info == {"note": "kept"}


# --- what cannot be read ---


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.png: no such file"):
        read_image(tmp_path / "gone.png")


def test_bad_files_are_named_in_one_line(tmp_path: Path) -> None:
    good = encoded(Image.fromarray(noise()), "JPEG")
    bad = {"empty": b"", "text": b"not an image", "cut": good[: len(good) // 2], "header": good[:30]}
    for name, data in bad.items():
        file = tmp_path / f"{name}.jpg"
        file.write_bytes(data)
        with pytest.raises(ValueError, match=rf"{name}\.jpg: \S+") as caught:
            read_image(file)
        assert "\n" not in str(caught.value)


def test_a_folder_and_other_types_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        read_image(tmp_path)
    with pytest.raises(ValueError, match="got ndarray"):
        read_image(noise())  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [500, 300])  # 24 x 32 = 768: PIL warns at the first, raises at the second
def test_absurdly_large_images_are_refused(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.fromarray(noise()), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ValueError, match="pixels"):
        read_image(data)


def test_postscript_is_never_run() -> None:
    with pytest.raises(ValueError, match="not an image"):
        read_image(encoded(Image.fromarray(noise()), "EPS"))


@cache
def sample(fmt: str) -> bytes:
    return encoded(Image.fromarray(noise()), fmt)


@settings(deadline=None, max_examples=200)
@given(fmt=st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"]), part=st.floats(0, 1))
@pytest.mark.filterwarnings("ignore")
def test_truncated_images_read_the_same_or_raise_value_error(fmt: str, part: float) -> None:
    whole = sample(fmt)
    try:
        read = pixels(whole[: int(part * len(whole))])
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        np.testing.assert_array_equal(read, pixels(whole))


@settings(deadline=None, max_examples=200)
@given(
    fmt=st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"]),
    where=st.floats(0, 1, exclude_max=True),
    junk=st.binary(min_size=1, max_size=8),
)
@pytest.mark.filterwarnings("ignore")
def test_damaged_images_are_images_or_value_errors(fmt: str, where: float, junk: bytes) -> None:
    whole = sample(fmt)
    start = int(where * len(whole))
    try:
        read = read_image(whole[:start] + junk + whole[start + len(junk) :])
    except ValueError:
        return
    assert read.mode == "RGB"


# --- tensors ---


def test_to_tensor() -> None:
    tensor = to_tensor(Image.fromarray(noise()))
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    np.testing.assert_allclose(tensor.permute(1, 2, 0).numpy(), noise() / 255, atol=1e-7)
    assert to_tensor(Image.new("L", (2, 3), 255)).tolist() == torch.ones(3, 3, 2).tolist()


def test_resize_to_its_own_size_is_the_input() -> None:
    images = torch.rand(2, 3, 16, 16)
    assert resize(images, 16) is images


def test_resize_squeezes_without_crop() -> None:
    images = torch.zeros(1, 3, 40, 80)
    images[..., 40:] = 1
    small = resize(images, 20)
    assert small.shape == (1, 3, 20, 20)
    assert small[..., :8].max() < 0.01
    assert small[..., 12:].min() > 0.99


def test_resize_is_pillows_bicubic() -> None:
    image = Image.fromarray(noise(96, 128))
    ours = resize(to_tensor(image)[None], 32)[0]
    theirs = to_tensor(image.resize((32, 32), Image.Resampling.BICUBIC))
    assert (ours - theirs).abs().max() < 2 / 255


def test_resize_stays_in_range_and_antialiases() -> None:
    checks = (torch.arange(64)[:, None] + torch.arange(64)) % 2
    small = resize(checks.float().expand(1, 3, 64, 64), 8)
    np.testing.assert_allclose(small.numpy(), 0.5, atol=0.05)
    large = resize((torch.rand(1, 3, 8, 8) > 0.5).float(), 64)
    assert large.min() >= 0
    assert large.max() <= 1


@pytest.mark.parametrize(
    ("images", "size", "message"),
    [
        (torch.rand(3, 8, 8), 8, r"\[3, 8, 8\]"),
        (torch.rand(1, 1, 8, 8), 8, r"\[1, 1, 8, 8\]"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), 8, "uint8"),
        (torch.rand(1, 3, 8, 8), 0, "got 0"),
    ],
)
def test_resize_refuses(images: torch.Tensor, size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resize(images, size)


def test_files_without_an_end_are_not_read(tmp_path):
    """A pipe that nobody writes to, a device, and a file of 10 GB: each as an item of a set, which goes on without it."""
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    with open(tmp_path / "vast.png", "wb") as file:
        file.truncate(10**10)
    for name in ("good", "pipe", "device", "vast"):
        (tmp_path / f"{name}.txt").write_text(name)
    os.mkfifo(tmp_path / "said.txt")
    Image.new("RGB", (8, 8)).save(tmp_path / "said.png")
    data = load_dataset(tmp_path, skip_bad=True)
    assert data.ids == ["good.png"]
    reasons = {bad.id: bad.reason for bad in data.skipped}
    assert {name: "no ordinary file" in reason for name, reason in reasons.items()} == {
        "pipe.png": True,
        "device.png": True,
        "said.png": True,
        "vast.png": False,
    }
    assert "10,000,000,000 bytes; an image has 268,435,456 at most" in reasons["vast.png"]
    with pytest.raises(ValueError, match=r"pipe\.png: cannot be read"):
        read_image(tmp_path / "pipe.png")


@pytest.mark.parametrize("kind", [np.uint16, np.float32])
def test_conversion_holds_little_more_than_the_picture(kind):
    """float64 of all pixels at once would be eight times a picture of 8 bits, and there were three such copies."""
    import tracemalloc

    size = 2400
    picture = Image.fromarray(np.ones((size, size), kind))
    tracemalloc.start()
    read_image(picture)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * size**2 + 3 * 512 * size * 8
