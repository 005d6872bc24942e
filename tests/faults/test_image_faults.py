"""Rows 1 to 13 of docs/faults.md: what is wrong with one image file, and how training, embedding and strict mode end."""

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from spoiled import PHOTO, SMALL, diptych, encoded, jpeg, photographs, png_bomb, put, refusal
from tiny import tiny_views

from diptych.data.images import images

BACKGROUND = (32, 64, 96)
WHOLE = jpeg(seed=99)
BAD = {
    "01_half": (WHOLE[: len(WHOLE) // 2], "truncated"),
    "01_tail": (WHOLE[:-2], "truncated"),
    "03_empty": (b"", "empty file"),
    "04_text": (b"Not found", "not an image (starts with 'Not')"),
    "04_html": (b"<html><body>404</body></html>", "not an image (starts with '<html')"),
    "06_90_Mpx": (png_bomb(9487, 9487), "9487 x 9487 pixels are more than max_pixels=64000000"),
    "06_196_Mpx": (png_bomb(14000, 14000), "14000 x 14000 pixels are more than max_pixels=64000000"),
}


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    """24 photographs, one of each fault and a PNG named .jpg: what training, embedding and the doctor made of them."""
    root = tmp_path_factory.mktemp("spoiled")
    source = put(photographs(root / "photos"), {f"cat/{name}.jpg": data for name, (data, _) in BAD.items()})
    put(source, {"dog/05_png.jpg": encoded(PHOTO, "PNG")})
    run = root / "run"
    colour = "images.background='#{:02x}{:02x}{:02x}'".format(*BACKGROUND)
    trained = diptych("pretrain", source, *SMALL, colour, "--out", run)
    embedded = diptych("embed", run, source, "--out", root / "vectors")
    assert trained[0] == embedded[0] == 0, (trained, embedded)
    lines = [json.loads(line) for line in (run / "bad_files.jsonl").read_text().splitlines()]
    rows = [json.loads(line) for line in (root / "vectors" / "index.jsonl").read_text().splitlines()]
    return SimpleNamespace(
        source=source,
        run=run,
        told=trained[2],
        listed={line["key"]: line["reason"] for line in lines},
        index={row["key"]: row for row in rows},
        vectors=np.load(root / "vectors" / "vectors.npy"),
        doctor=diptych("doctor", source),
    )


def check_all_ends(ends, name: str, tmp_path: Path) -> None:
    """Skipped and listed in training, a failed row in embedding, told by the doctor, exit code 3 where one is strict."""
    data, reason = BAD[name]
    key = f"cat/{name}.jpg"
    assert reason in ends.listed[key]
    row = ends.index[key]
    assert row["status"] == "failed" and row["row"] is None and reason in row["error"]
    code, out, _ = ends.doctor
    assert code == 0 and f"    {key}: {ends.listed[key]}\n" in out

    put(photographs(tmp_path / "photos", count=4), {key: data})
    code, out, err = diptych("pretrain", tmp_path / "photos", *SMALL, "images.on_bad=error", "--out", tmp_path / "run")
    assert code == 3 and out == "" and refusal(err).startswith(f"diptych: {key}: ") and reason in err
    assert "on_bad=skip" in err and not (tmp_path / "run").exists()


def test_00_the_others_are_trained_on_and_embedded(ends):
    assert "7 of 32 images cannot be read and are left out, first: cat/01_half.jpg (" in ends.told
    assert len(ends.listed) == len(BAD) and ends.vectors.shape == (25, 8) and np.isfinite(ends.vectors).all()
    code, out, _ = ends.doctor
    assert "25 of 32 images can be read\n  2 classes: cat (12), dog (13)\n" in out
    assert "  7 cannot be read (training would continue without them):\n" in out


@pytest.mark.parametrize("name", ["01_half", "01_tail"])
def test_01_jpeg_cut_in_half_or_by_two_bytes(ends, name, tmp_path):
    check_all_ends(ends, name, tmp_path)


FLIPPED = encoded(PHOTO[:16, :16], "PNG")


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(st.integers(0, len(FLIPPED) - 1), st.integers(1, 255))
def test_02_png_with_a_flipped_byte(tmp_path_factory, position, flip):
    """torchvision's decoder dies with SIGSEGV on some of these."""
    data = bytearray(FLIPPED)
    data[position] ^= flip
    root = put(tmp_path_factory.mktemp("flipped"), {"1.png": FLIPPED, "2.png": bytes(data)})
    found = images(root, size=16, max_pixels=1e6)
    pixels = found.pixels(workers=1)
    assert len(pixels) == 2 - len(found.failed) == len(found.keys) and found.keys[0] == "1.png"
    assert all(bad["key"] == "2.png" and bad["reason"] for bad in found.failed)


def test_03_zero_bytes(ends, tmp_path):
    check_all_ends(ends, "03_empty", tmp_path)


@pytest.mark.parametrize("name", ["04_text", "04_html"])
def test_04_text_or_html_named_jpg(ends, name, tmp_path):
    check_all_ends(ends, name, tmp_path)


def test_05_png_named_jpg(ends):
    assert ends.index["dog/05_png.jpg"]["status"] == "ok" and "05_png" not in ends.told + ends.doctor[1]
    dogs = images(ends.source / "dog", size=48)
    pixels = dogs.load(dogs.keys.index("05_png.jpg"))
    np.testing.assert_array_equal(pixels.permute(1, 2, 0).numpy(), PHOTO[:, 8:56])


@pytest.mark.parametrize("name", ["06_90_Mpx", "06_196_Mpx"])
def test_06_decompression_bomb(ends, name, tmp_path):
    assert len(BAD[name][0]) < 100_000
    check_all_ends(ends, name, tmp_path)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_06_a_bomb_takes_no_memory(tmp_path):
    put(tmp_path, {"small.png": png_bomb(100, 100), "x90.png": BAD["06_90_Mpx"][0], "x196.png": BAD["06_196_Mpx"][0]})
    program = f"""
from diptych.data.images import images
peak = lambda: int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) // 1024
found = images({str(tmp_path)!r}, size=32)
found.subset([0]).pixels(1)
before = peak()
found.pixels(1)
print(len(found.failed), peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    failed, grown = map(int, done.stdout.split())
    assert failed == 2 and grown < 50, f"{grown} MiB"


def pixels_of(root: Path, files: dict[str, bytes], size: int, **options) -> torch.Tensor:
    """(n, 3, size, size) of files that must all be readable, in order of their names; whole numbers with a sign."""
    found = images(put(root, files), size=size, **options)
    pixels = found.pixels(1)
    assert found.failed == [] and pixels.shape == (len(files), 3, size, size) and pixels.dtype == torch.uint8
    return pixels.int()


def test_07_cmyk_and_adobe_inverted_jpeg(tmp_path):
    gray = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (64, 1))
    cmyk = Image.fromarray(gray).convert("CMYK")
    adobe = encoded(cmyk, "JPEG", quality=95)
    assert b"Adobe" in adobe  # stored inverted
    pixels = pixels_of(tmp_path, {"1.jpg": adobe, "2.tif": encoded(cmyk, "TIFF")}, 64)
    assert (pixels - torch.from_numpy(gray.astype(int))).abs().float().mean((1, 2, 3)).max() < 2


def test_08_gray_beyond_8_bits(tmp_path):
    def ramp(top: float, kind: type) -> np.ndarray:
        return np.tile(np.linspace(0, top, 256), (256, 1)).astype(kind)

    deep = {
        "16.png": encoded(ramp(65535, np.uint16), "PNG"),
        "16.tif": encoded(ramp(65535, np.uint16), "TIFF"),
        "32.tif": encoded(ramp(2**31 - 1, np.int32), "TIFF"),
        "float1.tif": encoded(ramp(1, np.float32), "TIFF"),
        "float2.tif": encoded(ramp(20, np.float32) - 30, "TIFF"),
        "float3.tif": encoded(ramp(100, np.float32), "TIFF", tiffinfo={340: 0.0, 341: 100.0}),  # the declared range
    }
    pixels = pixels_of(tmp_path / "deep", deep, 256)
    assert (pixels.float().mean((1, 2, 3)) - 127).abs().max() <= 2
    assert (pixels.diff(dim=3) >= 0).all() and pixels.amax((1, 2, 3)).eq(255).all()
    assert (pixels.diff(dim=3) == 0).float().mean() < 0.05, "clipped"
    put(tmp_path / "deep", {"plain.png": encoded(PHOTO, "PNG")})
    assert "  6 with gray beyond 8 bits: rescaled to 0..255 (first: 16.png)" in diptych("doctor", tmp_path / "deep")[1]


def test_09_transparency_shows_the_background_in_training_and_embedding(ends, tmp_path):
    palette = Image.new("P", (32, 32), 1)
    palette.putpalette([0, 0, 255, 9, 9, 9])
    clear = {
        "1.png": encoded(Image.new("RGBA", (32, 32), (255, 0, 0, 0)), "PNG"),
        "2.png": encoded(Image.new("LA", (32, 32), (7, 0)), "PNG"),
        "3.png": encoded(palette, "PNG", transparency=1),
        "4.gif": encoded(palette, "GIF", transparency=1),
    }
    assert (pixels_of(tmp_path / "clear", clear, 32) == 255).all(), "white unless told otherwise"
    asked = pixels_of(tmp_path / "clear", clear, 32, background="#204060")
    assert (asked == torch.tensor(BACKGROUND)[:, None, None]).all()

    # The run was trained with that background: without being told again, embedding shows the encoder the same pixels.
    put(tmp_path / "clear", {"5.png": encoded(Image.new("RGB", (32, 32), BACKGROUND), "PNG")})
    assert diptych("embed", ends.run, tmp_path / "clear", "--out", tmp_path / "vectors")[0] == 0
    vectors = np.load(tmp_path / "vectors" / "vectors.npy")
    assert len(vectors) == 5 and np.abs(vectors - vectors[4]).max() < 1e-6
    assert "4 with an alpha channel: composited onto the background colour" in diptych("doctor", tmp_path / "clear")[1]


STORED = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud}
STORED |= {5: lambda a: a.transpose(1, 0, 2), 6: np.rot90}
STORED |= {7: lambda a: np.rot90(a, 2).transpose(1, 0, 2), 8: lambda a: np.rot90(a, -1)}


def test_10_exif_orientation(tmp_path):
    files = {}
    for orientation, store in STORED.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        files[f"{orientation}.png"] = encoded(np.ascontiguousarray(store(PHOTO)), "PNG", exif=exif)
    pixels = pixels_of(tmp_path, files, 48)
    np.testing.assert_array_equal(pixels.permute(0, 2, 3, 1), np.stack([PHOTO[:, 8:56]] * 8))


def test_11_animations_and_many_pages(tmp_path):
    frames = [Image.new("RGB", (9, 7), colour) for colour in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
    names = {"1.gif": "GIF", "2.webp": "WEBP", "3.png": "PNG", "4.tiff": "TIFF"}
    files = {
        name: encoded(frames[0], kind, save_all=True, append_images=frames[1:], **{"lossless": True} if kind == "WEBP" else {})
        for name, kind in names.items()
    }  # fmt: skip
    pixels = pixels_of(tmp_path, files, 7)
    assert (pixels == torch.tensor([250, 0, 0])[:, None, None]).all()
    put(tmp_path, {"plain.png": encoded(frames[0], "PNG"), "plain.gif": encoded(frames[0], "GIF")})
    assert (
        "  4 with an animation or several pages: only the first is used (first: 1.gif)"
        in diptych("doctor", tmp_path)[1]
    )


def test_12_extreme_shapes(tmp_path):
    shapes = {"1.png": (1, 1), "2.png": (1, 20000), "3.png": (20000, 1)}
    files = {name: encoded(Image.new("RGB", shape, (10, 20, 30)), "PNG") for name, shape in shapes.items()}
    start = time.monotonic()
    pixels = pixels_of(tmp_path, files, 32)
    assert time.monotonic() - start < 1 and (pixels == torch.tensor([10, 20, 30])[:, None, None]).all()
    made = tiny_views()[0](pixels.to(torch.uint8), torch.Generator().manual_seed(0))
    assert made.shape == (3, 3, 12, 12) and made.isfinite().all()


REFUSED = {
    "Psd": b"8BPS\0\1" + bytes(60),
    "Eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "Fits": b"SIMPLE  =                    T" + bytes(50),
    "Svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
}


def test_13_formats_that_are_not_on_the_list(tmp_path, monkeypatch):
    readers = [f"PIL.{name}ImagePlugin" for name in REFUSED]
    for reader in readers:
        monkeypatch.delitem(sys.modules, reader, raising=False)
    put(tmp_path, {f"{name}.png": data for name, data in REFUSED.items()})
    put(tmp_path, {f"{name}.{name.lower()}": data for name, data in REFUSED.items()})  # honest names: not even listed
    put(tmp_path, {"good.png": encoded(PHOTO, "PNG")})
    found = images(tmp_path, size=16)
    assert len(found) == 5 and len(found.pixels()) == 1 and found.keys == ["good.png"]
    assert all(bad["reason"].startswith("not an image (starts with") for bad in found.failed)
    assert not set(readers) & set(sys.modules)
