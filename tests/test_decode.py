"""Bytes -> upright RGB: whatever is wrong with a file, the end is a picture or BadImage with a reason."""

import io
import struct
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diptych.base.errors import DataError
from diptych.data.decode import BadImage, decode, fit_square, header_size, open_image

PHOTO = np.add.outer(np.arange(48), 2 * np.arange(64))[..., None] + np.array([0, 40, 80])
PHOTO = np.clip(PHOTO, 0, 255).astype(np.uint8)  # (48, 64, 3), smooth, so that JPEG keeps it well


def encoded(image: Image.Image | np.ndarray, kind: str, **options) -> bytes:
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_of(width: int, height: int, rows: bytes = b"") -> bytes:
    """A 1-bit PNG of this size, with these rows (each a filter byte and its bits)."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    parts = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def reason(data: bytes, **options) -> str:
    with pytest.raises(BadImage) as caught:
        decode(data, **options)
    assert isinstance(caught.value, DataError) and caught.value.exit_code == 3
    assert "\n" not in caught.value.reason
    return caught.value.reason


EXACT = [("PNG", {}), ("BMP", {}), ("PPM", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"})]
EXACT += [("WEBP", {"lossless": True}), ("JPEG2000", {})]
CLOSE = [("JPEG", {"quality": 95}), ("AVIF", {"quality": 95}), ("WEBP", {"quality": 95})]
CLOSE += [("JPEG", {"progressive": True, "quality": 95})]


@pytest.mark.parametrize("kind, options", EXACT)
def test_lossless_formats_come_back_exactly(kind, options):
    pixels = decode(encoded(PHOTO, kind, **options))
    assert pixels.dtype == np.uint8 and pixels.flags.writeable
    np.testing.assert_array_equal(pixels, PHOTO)


@pytest.mark.parametrize("kind, options", CLOSE)
def test_lossy_formats_come_back_closely(kind, options):
    pixels = decode(encoded(PHOTO, kind, **options))
    assert pixels.shape == PHOTO.shape
    assert np.abs(pixels.astype(int) - PHOTO).mean() < 3


def test_gif_gray_and_1_bit():
    gray = np.tile(np.arange(64, dtype=np.uint8) * 4, (48, 1))
    for kind in ("GIF", "PNG", "TIFF"):
        np.testing.assert_array_equal(decode(encoded(gray, kind)), np.repeat(gray[..., None], 3, 2))
    bits = encoded(Image.fromarray(gray > 100), "PNG")
    np.testing.assert_array_equal(decode(bits)[..., 1], np.where(gray > 100, 255, 0))


def test_truncated_jpeg_is_bad():
    data = encoded(PHOTO, "JPEG", quality=95)
    scan = data.index(b"\xff\xda")
    assert "truncated" in reason(data[: (scan + len(data)) // 2])
    assert "truncated" in reason(data[:-2])


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "AVIF", "TIFF", "BMP", "PPM"])
def test_half_a_file_of_any_format_is_bad(kind):
    data = encoded(PHOTO, kind)
    assert reason(data[: len(data) // 2])


FLIPPED = encoded(PHOTO, "PNG")


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(st.integers(0, len(FLIPPED) - 1), st.integers(1, 255))
def test_flipped_byte_of_a_png_never_escapes(position, flip):
    """torchvision's decoder dies with SIGSEGV here."""
    data = bytearray(FLIPPED)
    data[position] ^= flip
    try:
        pixels = decode(bytes(data), max_pixels=1e6)
    except BadImage:
        return
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["JPEG", "GIF", "WEBP", "AVIF", "TIFF", "BMP", "PPM"])
def test_flipped_bytes_of_other_formats_never_escape(kind):
    data, rng = encoded(PHOTO[:16, :16], kind), np.random.default_rng(0)
    bad = 0
    for _ in range(60):
        damaged = np.frombuffer(data, np.uint8).copy()
        damaged[rng.integers(0, min(len(data), 200), 2)] ^= rng.integers(1, 256, 2, dtype=np.uint8)
        try:
            decode(damaged.tobytes(), max_pixels=1e6)
        except BadImage:
            bad += 1
    assert bad > 0


def test_what_is_no_image_says_how_it_starts():
    assert reason(b"") == "empty file"
    assert reason(b"<html><body>404</body></html>") == "not an image (starts with '<html')"
    assert reason(b"\n <!DOCTYPE html>") == "not an image (starts with '<!DOCTYPE')"
    assert reason(b"Not found") == "not an image (starts with 'Not')"
    assert reason(b"\0\1\2\3" * 9) == r"not an image (starts with b'\x00\x01\x02\x03\x00\x01\x02\x03')"


REFUSED = {
    "Psd": b"8BPS\0\1" + bytes(60),
    "Eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "Fits": b"SIMPLE  =                    T" + bytes(50),
    "Ico": b"\0\0\1\0\1\0" + bytes(60),
}


@pytest.mark.parametrize("plugin", REFUSED)
def test_other_formats_are_refused_and_their_reader_is_never_imported(plugin, monkeypatch):
    monkeypatch.delitem(sys.modules, f"PIL.{plugin}ImagePlugin", raising=False)
    assert reason(REFUSED[plugin]).startswith("not an image")
    assert f"PIL.{plugin}ImagePlugin" not in sys.modules


def test_svg_is_refused():
    assert reason(b'<svg xmlns="http://www.w3.org/2000/svg"/>') == "not an image (starts with '<svg')"


@pytest.mark.parametrize("width, height", [(9487, 9487), (14000, 14000), (2**31 - 1, 2**31 - 1)])
def test_bomb_is_refused_from_its_header(width, height, recwarn):
    bomb = png_of(width, height)  # there are no pixels: whoever looks for them reports something else
    assert reason(bomb) == f"{width} x {height} pixels are more than max_pixels=64000000"
    assert not recwarn


def test_max_pixels_is_inclusive():
    data = png_of(20, 10, bytes(10 * 4))
    assert decode(data, max_pixels=200).shape == (10, 20, 3)
    assert "max_pixels=199" in reason(data, max_pixels=199)


def test_cmyk():
    gray = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (48, 1))
    cmyk = Image.fromarray(gray).convert("CMYK")
    adobe = encoded(cmyk, "JPEG", quality=95)
    assert b"Adobe" in adobe  # stored inverted
    for data in (adobe, encoded(cmyk, "TIFF")):
        assert np.abs(decode(data).astype(int) - gray[..., None]).mean() < 2


def ramp(top: float, kind: type) -> np.ndarray:
    return np.tile(np.linspace(0, top, 256), (8, 1)).astype(kind)


@pytest.mark.parametrize(
    "data",
    [
        encoded(ramp(65535, np.uint16), "PNG"),
        encoded(ramp(65535, np.uint16), "TIFF"),
        encoded(ramp(65535, np.uint16), "PPM"),
        encoded(ramp(65535, np.int32), "TIFF"),
        encoded(ramp(2**31 - 1, np.int32), "TIFF"),
        encoded(ramp(255, np.int32), "TIFF"),
        encoded(ramp(1, np.float32), "TIFF"),
        encoded(ramp(255, np.float32), "TIFF"),
        encoded(ramp(65535, np.float32), "TIFF"),
        encoded(ramp(20, np.float32) - 30, "TIFF"),
        encoded(ramp(1e6, np.float32), "TIFF"),
        encoded(ramp(1e30, np.float32), "TIFF"),
    ],
)
def test_gray_beyond_8_bits_is_rescaled_not_clipped(data):
    pixels = decode(data)
    assert abs(pixels.mean() - 127) <= 2
    assert (np.diff(pixels[0, :, 0].astype(int)) >= 0).all() and pixels.min() == 0 and pixels.max() == 255


def test_dark_16_bit_stays_dark_and_a_declared_range_counts():
    assert decode(encoded(ramp(200, np.uint16), "PPM")).max() == 1
    assert decode(encoded(ramp(200, np.uint16), "PNG")).max() == 1
    declared = {340: 0.0, 341: 4.0}  # SMinSampleValue, SMaxSampleValue
    assert abs(int(decode(encoded(ramp(1, np.float32), "TIFF", tiffinfo=declared)).max()) - 64) <= 1


def test_nan_pixels_are_bad():
    assert "NaN" in reason(encoded(np.full((4, 4), np.nan, np.float32), "TIFF"))


def test_transparency_shows_the_background():
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    half = Image.new("RGBA", (8, 8), (255, 0, 0, 128))
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 255, 9, 9, 9])
    pictures = {
        "RGBA": encoded(clear, "PNG"),
        "WebP": encoded(clear, "WEBP", lossless=True, exact=True),
        "LA": encoded(Image.new("LA", (8, 8), (7, 0)), "PNG"),
        "palette": encoded(palette, "PNG", transparency=1),
        "GIF": encoded(palette, "GIF", transparency=1),
        "RGB key": encoded(Image.new("RGB", (8, 8), (1, 2, 3)), "PNG", transparency=(1, 2, 3)),
        "gray key": encoded(Image.new("L", (8, 8), 7), "PNG", transparency=7),
    }
    for name, data in pictures.items():
        assert (decode(data) == 255).all(), name
        assert (decode(data, background="#204060") == [0x20, 0x40, 0x60]).all(), name
    np.testing.assert_allclose(decode(encoded(half, "PNG"))[0, 0], [255, 127, 127], atol=1)
    assert (decode(encoded(palette, "PNG")) == 9).all()


STORED = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud}
STORED |= {5: lambda a: a.transpose(1, 0, 2), 6: np.rot90}
STORED |= {7: lambda a: np.rot90(a, 2).transpose(1, 0, 2), 8: lambda a: np.rot90(a, -1)}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind, options", [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})])
def test_exif_orientation_is_undone(orientation, kind, options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(STORED[orientation](PHOTO))
    np.testing.assert_array_equal(decode(encoded(stored, kind, exif=exif, **options)), PHOTO)


def test_exif_of_jpeg_and_damaged_exif():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(np.ascontiguousarray(np.rot90(PHOTO)), "JPEG", exif=exif, quality=95)
    assert np.abs(decode(data).astype(int) - PHOTO).mean() < 3
    damaged = data.replace(b"Exif\0\0MM", b"Exif\0\0XX").replace(b"Exif\0\0II", b"Exif\0\0XX")
    assert damaged != data
    assert decode(damaged).shape == (64, 48, 3)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_an_animation(kind):
    frames = [Image.new("RGB", (9, 7), color) for color in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
    options = {"lossless": True} if kind == "WEBP" else {}
    pixels = decode(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options))
    assert pixels.shape == (7, 9, 3) and (pixels == [250, 0, 0]).all()


@pytest.mark.parametrize("width, height", [(1, 1), (1, 20000), (20000, 1), (3, 2)])
@pytest.mark.parametrize("fit", ["crop", "squash"])
def test_extreme_shapes_become_squares(width, height, fit):
    image = open_image(encoded(Image.new("RGB", (width, height), (10, 20, 30)), "PNG"))
    square = fit_square(image, 32, fit)
    assert square.shape == (32, 32, 3) and (square == [10, 20, 30]).all()


def test_crop_is_the_centre_and_exact_without_scaling():
    image = Image.fromarray(PHOTO)
    np.testing.assert_array_equal(fit_square(image, 48), PHOTO[:, 8:56])
    np.testing.assert_array_equal(fit_square(image.crop((0, 0, 63, 48)), 48), PHOTO[:, 7:55])
    np.testing.assert_array_equal(fit_square(image.crop((0, 0, 48, 48)), 48), PHOTO[:, :48])
    flipped = fit_square(image.transpose(Image.Transpose.ROTATE_90), 24)
    np.testing.assert_array_equal(flipped, np.rot90(fit_square(image, 24)))


def test_crop_agrees_with_resize_then_crop():
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    plain = np.asarray(image.resize((64, 48), Image.Resampling.BILINEAR))[:, 8:56]
    assert np.abs(fit_square(image, 48).astype(int) - plain).mean() < 2  # noise: the hardest picture
    squashed = np.asarray(image.resize((48, 48), Image.Resampling.BILINEAR))
    assert np.abs(fit_square(image, 48, "squash").astype(int) - squashed).mean() < 2


def test_a_large_jpeg_is_decoded_smaller_but_not_too_small():
    y, x = np.mgrid[:600, :800]
    photo = np.stack([128 + 100 * np.sin(x / 40), 128 + 100 * np.sin(y / 30), (x + y) / 6], -1).astype(np.uint8)
    data = encoded(photo, "JPEG", quality=90)
    small = open_image(data, enough=2 * 64)
    assert small.size == (200, 150)
    full = fit_square(open_image(data), 64).astype(int)
    assert np.abs(fit_square(small, 64).astype(int) - full).mean() < 1
    assert header_size(data) == (800, 600)
    assert "max_pixels" in reason(data, max_pixels=600 * 800 - 1)
