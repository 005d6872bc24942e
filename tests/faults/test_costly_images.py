"""Small files that decode into much: memory and time have a bound, and what is above it is refused from the header."""

import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from spoiled import PHOTO, diptych, encoded, photographs, put

from diptych.data import decode as decoding
from diptych.data.decode import BadImage, decode, fit_square, open_image
from diptych.data.formats import FORMATS
from diptych.data.limits import MAX_COST, MAX_READS, MAX_SCANS, CountedReads

SIDE = 3000  # pixels; costs are for one pixel, so that images of 64 million need not be made


def progressive(side: int, scans: int) -> bytes:
    """A black progressive JPEG of 10 scans and `scans` repetitions of the last one, a few bytes each."""
    data = encoded(Image.new("RGB", (side, side)), "JPEG", progressive=True)
    tables = data.rindex(b"\xff\xc4")
    return data[:-2] + data[tables:-2] * scans + b"\xff\xd9"


def sparse(*channels: int) -> np.ndarray:
    pixels = np.zeros((SIDE, SIDE, *channels), np.uint8)
    pixels[::97, ::89] = 255
    return pixels


COSTLY = {
    "rgba.png": lambda: encoded(sparse(4), "PNG"),
    "la.png": lambda: encoded(Image.fromarray(sparse(2), "LA"), "PNG"),
    "gray16.png": lambda: encoded(sparse().astype(np.uint16), "PNG"),
    "float.tif": lambda: encoded(sparse().astype(np.float32), "TIFF", compression="tiff_lzw"),
    "int.tif": lambda: encoded(sparse().astype(np.int32), "TIFF", compression="tiff_lzw"),
    "palette.gif": lambda: encoded(sparse(), "GIF", transparency=0),
    "progressive.jpg": lambda: progressive(SIDE, 167),
    "rgb.jp2": lambda: encoded(sparse(3), "JPEG2000"),
    "rgba.avif": lambda: encoded(sparse(4), "AVIF", speed=10),
    "rgba.webp": lambda: encoded(sparse(4), "WEBP", lossless=True, method=0, quality=0),
}
MEASURE = """
import sys, time
from diptych.data.decode import open_image, fit_square
data = open(sys.argv[1], "rb").read()
# Not ru_maxrss, which a child inherits from the process that starts it.
peak = lambda: 1024 * int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
before, start = peak(), time.process_time()
fit_square(open_image(data, enough=64), 32)
print(peak() - before, time.process_time() - start)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("name", COSTLY)
def test_memory_and_time_of_an_image_have_a_bound(name, tmp_path):
    """At most 16 bytes a pixel of max_pixels, or the cost of the format, and 200 ns a pixel (measured: 122)."""
    (tmp_path / name).write_bytes(COSTLY[name]())
    done = subprocess.run([sys.executable, "-c", MEASURE, tmp_path / name], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    memory, seconds = (float(number) / SIDE**2 for number in done.stdout.split())
    cost = next(kind.cost for kind in FORMATS if Path(name).suffix in kind.endings.split())
    print(f"{name}: {memory:.1f} bytes and {1e9 * seconds:.0f} ns a pixel")
    # 16 MiB for what is loaded at the first image of a format
    own = {".webp": 18, ".jp2": cost, ".avif": cost}.get(Path(name).suffix, 10)
    assert memory < own + 16 * 2**20 / SIDE**2 and 1e9 * seconds < 200


def refused(data: bytes, **options) -> str:
    start = time.process_time()
    with pytest.raises(BadImage) as caught:
        decode(data, **options)
    assert time.process_time() - start < 2 and "\n" not in caught.value.reason
    return caught.value.reason


def test_a_jpeg_of_thousands_of_scans_is_refused():
    """It took 19 s; the bound is on scans times pixels."""
    reason = refused(progressive(SIDE, 3000))
    assert re.match(r"more than 177 scans for 3000 x 3000 pixels, with max_pixels=64000000: ", reason)
    assert int(MAX_SCANS * 64e6 / SIDE**2) == 177
    assert decode(progressive(64, 3000)).shape == (64, 64, 3), "cheap where the image is small"


def test_scans_in_thumbnails_and_behind_the_end_do_not_count():
    plain = encoded(PHOTO, "JPEG", progressive=True)
    comment = b"\xff\xfe\x27\x12" + b"\xff\xda" * 5000
    data = plain[:2] + comment + plain[2:] + b"\xff\xda" * 5000
    np.testing.assert_array_equal(decode(data, max_pixels=PHOTO.shape[0] * PHOTO.shape[1]), decode(plain))


PIECES = {
    "one comment": b"P6 #" + b"x" * 50_000_000 + b"\n1 1 255\n123",
    "many comments": b"P6 " + b"#\n" * 5_000_000 + b"\n1 1 255\n123",
    "spaces": b"P6 " + b" " * 5_000_000 + b"1 1 255\n123",
    "comments among the pixels": b"P2 9 9 255\n" + b"#\n" * 5_000_000,
    "jpeg markers": b"\xff\xd8" + b"\xff\xe5\0\2" * 1_000_000,
    "jpeg fill": b"\xff\xd8" + b"\xff" * 5_000_000,
    "gif": b"GIF89a\1\0\1\0\0\0\0" + b"!\xfe\1x\0" * 1_000_000,
}


@pytest.mark.parametrize("name", PIECES)
def test_headers_of_many_parts_are_refused(name):
    """Pillow reads a PGM's comment byte by byte: 50 MB took 40 s. Comments among the pixels took 114 s for 10 MB."""
    assert re.search("too many parts|is read slowly", refused(PIECES[name]))


def test_reads_are_counted_and_ordinary_images_need_few():
    for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "PPM", "WEBP", "AVIF", "JPEG2000"):
        data, counted = encoded(np.tile(PHOTO, (20, 20, 1)), kind), []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                decoding, "CountedReads", lambda data, into=counted: into.append(CountedReads(data)) or into[0]
            )
            decode(data)
        assert 0 < MAX_READS - counted[0].left < MAX_READS / 50, kind


@pytest.mark.parametrize("header", [b"P6 2000 2000 100\n", b"P3 2000 2000 255\n", b"P5 3000 3000 4095\n"])
def test_decoders_written_in_python_read_smaller_images_only(header):
    """Half a microsecond a value: 64 megapixels would take a minute and a half."""
    assert "is read slowly" in refused(header + bytes(100))
    assert "convert it to PNG, or raise max_pixels=64000000" in refused(header + bytes(100))


def test_formats_that_need_more_memory_are_refused_earlier():
    data = encoded(sparse(3), "JPEG2000")
    kind = next(kind for kind in FORMATS if kind.name == "JPEG 2000")
    enough = SIDE**2 * kind.cost / MAX_COST
    assert f"the most for JPEG 2000 with max_pixels={enough - 1e6:.0f}" in refused(data, max_pixels=enough - 1e6)


def test_conversion_in_parts_gives_what_conversion_at_once_gives(monkeypatch):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (61, 83, 4), dtype=np.uint8)
    palette = Image.fromarray(noise[..., :3]).quantize(40)
    files = [encoded(noise, "PNG"), encoded(Image.fromarray(noise[..., :2].copy(), "LA"), "PNG"),
             encoded(palette, "PNG", transparency=3), encoded(palette, "GIF", transparency=3),
             encoded(Image.fromarray(noise[..., :3].copy()), "PNG", transparency=(1, 2, 3)),
             encoded(noise[..., 0].astype(np.uint16) * 200, "PNG"), encoded(noise[..., 0].astype(np.float32) - 99, "TIFF"),
             encoded(noise[..., 0].astype(np.int32) * 99, "TIFF"), encoded(noise[..., 0].copy(), "PNG")]  # fmt: skip
    whole = [decode(data, background="#204060") for data in files]
    for part in (7, 83, 1000):
        monkeypatch.setattr(decoding, "PART", part)
        for data, pixels in zip(files, whole, strict=True):
            np.testing.assert_array_equal(decode(data, background="#204060"), pixels)


@pytest.mark.parametrize("size", [16, 48, 61, 100])
def test_gray_is_resized_as_its_colour_image(size):
    gray = Image.fromarray(np.random.default_rng(0).integers(0, 256, (61, 283), dtype=np.uint8))
    assert open_image(encoded(gray, "PNG")).mode == "L"
    for fit in ("crop", "squash"):
        np.testing.assert_array_equal(fit_square(gray, size, fit), fit_square(gray.convert("RGB"), size, fit))


def test_a_costly_image_is_one_bad_image_of_a_run(tmp_path):
    source = put(photographs(tmp_path / "photos", count=4), {"cat/scans.jpg": progressive(SIDE, 3000)})
    code, out, _ = diptych("doctor", source)
    assert code == 0 and "8 of 9 images can be read" in out
    assert "    cat/scans.jpg: more than 177 scans for 3000 x 3000 pixels, with max_pixels=64000000" in out
