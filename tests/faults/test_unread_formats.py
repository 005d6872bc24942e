"""Images of a format without a reader are counted, with what reads them, by every command, in folders and in archives."""

import importlib.util
import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from fake_source import picture, values_of, write
from spoiled import SMALL, diptych, encoded, photographs, put, refusal
from test_archives import add_tar, make_tar, make_zip

from diptych.data import formats
from diptych.data.decode import BadImage, decode
from diptych.data.formats import EXTENSIONS, FORMATS, UNREAD
from diptych.data.images import images
from diptych.data.open import open_source

HEIC = b"\0\0\0\x24ftypheic\0\0\0\0mif1heicmiafMiHB" + bytes(99)
PLUGIN = importlib.util.find_spec("pillow_heif") is not None
UNREADABLE = {
    "a.jxl": "JPEG XL: convert it, as by `djxl a.jxl a.png`",
    "b.CR2": "camera raw: develop it to PNG or JPEG (rawpy, darktable)",
    "sub/c.dng": "camera raw: develop it to PNG or JPEG (rawpy, darktable)",
    "d.exr": "OpenEXR: convert it to PNG or JPEG",
} | (
    {}
    if PLUGIN
    else {"e.HEIC": "HEIC: pip install pillow-heif reads it", "f.heif": "HEIC: pip install pillow-heif reads it"}
)


def packed(root: Path, form: str) -> Path:
    """The files below `root` as a source of this form."""
    if form == "folder":
        return root
    path = root.parent / f"photos.{form}"
    shutil.make_archive(str(root.parent / "photos"), {"zip": "zip", "tar": "tar", "tar.gz": "gztar"}[form], root)
    return path


@pytest.mark.parametrize(
    "form", ["folder", "zip", *(pytest.param(form, marks=pytest.mark.slow) for form in ("tar", "tar.gz"))]
)
def test_every_command_counts_them(form, tmp_path):
    source = put(photographs(tmp_path / "photos"), {f"cat/{name}": b"?" * 9 for name in UNREADABLE})
    put(source, {"cat/._x.heic": b"", "cat/notes.txt": b""})  # hidden, or no image
    source = packed(source, form)
    code, out, _ = diptych("doctor", source)
    assert code == 0 and "24 of 24 images can be read" in out
    assert (
        f"  {len(UNREADABLE)} entries are left out: 2 camera raw: develop it to PNG or JPEG (rawpy, darktable)" in out
    )
    for name, reason in UNREADABLE.items():
        assert f"    cat/{name}: {reason}\n" in out

    run = tmp_path / "run"
    code, _, err = diptych("pretrain", source, *SMALL, "--out", run)
    (line,) = [line for line in err.splitlines() if "left out" in line]
    assert code == 0 and line.startswith(f"diptych: {len(UNREADABLE)} entries of the source left out, first: cat/")
    assert "2 camera raw" in line
    listed = [json.loads(text) for text in (run / "bad_files.jsonl").read_text().splitlines()]
    assert {row["key"]: row["reason"] for row in listed} == {f"cat/{name}": why for name, why in UNREADABLE.items()}

    assert diptych("report", run)[0] == 0
    page = (run / "report.html").read_text()
    assert (
        f"{len(UNREADABLE)} files" in page and "camera raw: develop it to PNG or JPEG" in page and "cat/b.CR2" in page
    )
    code, _, err = diptych("embed", run, source, "--out", tmp_path / "vectors")
    assert code == 0 and f"{len(UNREADABLE)} entries of the source left out" in err


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_a_source_of_nothing_else_says_so(form, tmp_path):
    source = packed(put(tmp_path / "photos", {f"{k}.jxl": b"?" for k in range(3)}), form)
    code, _, err = diptych("doctor", source)
    assert code == 3 and f"{source} holds no images" in refusal(err)
    assert refusal(err).endswith("but 3 JPEG XL: convert it, as by `djxl a.jxl a.png`")


@pytest.mark.skipif(PLUGIN, reason="pillow-heif is installed")
def test_heic_content_under_another_name_names_the_package(tmp_path):
    with pytest.raises(BadImage, match="HEIC: pip install pillow-heif reads it"):
        decode(HEIC)


def test_the_list_is_what_this_pillow_reads():
    """AVIF, WebP and JPEG 2000 are built into Pillow's wheels: then they are read, not counted."""
    read, unread = set(EXTENSIONS), {ending.decode() for ending in UNREAD}
    assert not read & unread and {".jxl", ".dng", ".nef"} <= unread
    for kind, ending in (("JPEG2000", ".jp2"), ("AVIF", ".avif"), ("WEBP", ".webp")):
        try:
            encoded(np.zeros((8, 8, 3), np.uint8), kind)
        except (OSError, KeyError):
            assert ending in unread
        else:
            assert ending in read
    assert len(read | unread) == sum(len(kind.endings.split()) for kind in FORMATS), "an ending stands twice"


def test_jpeg_2000_is_read_in_all_its_modes(tmp_path):
    ramp = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (64, 1))
    put(tmp_path, {
        "1.jp2": encoded(ramp, "JPEG2000"),
        "2.J2K": encoded(np.stack([ramp] * 3, 2), "JPEG2000", no_jp2=True),
        "3.jp2": encoded(ramp.astype(np.uint16) * 257, "JPEG2000"),
        "4.jpx": encoded(np.stack([ramp] * 3 + [np.full_like(ramp, 255)], 2), "JPEG2000"),
    })  # fmt: skip
    pixels = images(tmp_path, size=64).pixels(1)
    assert len(pixels) == 4 and (pixels[:, 0].int() - pixels[0, 0].int()).abs().max() <= 1
    np.testing.assert_array_equal(pixels[0, 0].numpy(), ramp)


@pytest.mark.skipif(not PLUGIN, reason="pillow-heif is not installed")
def test_heic_is_read_where_its_plugin_is_installed(tmp_path):
    import pillow_heif

    photo = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (64, 1))
    heif = pillow_heif.from_bytes("RGB", (64, 64), np.stack([photo] * 3, 2).tobytes())
    heif.save(tmp_path / "IMG_1.HEIC", quality=95)
    data = (tmp_path / "IMG_1.HEIC").read_bytes()
    assert np.abs(images(tmp_path, size=64).pixels(1)[0].numpy().astype(int) - photo).mean() < 3
    with pytest.raises(BadImage, match="64 x 64 pixels are more than max_pixels=4000"):
        decode(data, max_pixels=4000)
    for cut in (20, 100, len(data) // 2, len(data) - 9):
        with pytest.raises(BadImage):
            decode(data[:cut])


def test_the_reader_of_heic_is_imported_for_an_image_only():
    import subprocess
    import sys

    program = "import sys, diptych.data.decode; print('pillow_heif' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False" and formats.read_heif


def test_a_link_to_such_an_image_counts_once(tmp_path):
    source = write(tmp_path, "a/1.png", "a/2.jxl")
    (source / "a" / "again.jxl").symlink_to("2.jxl")
    assert [entry["key"] for entry in open_source(source).skipped] == ["a/2.jxl"]


@pytest.mark.parametrize("name", ["PHOTOS.TAR", "PHOTOS.TAR.GZ", "PHOTOS.TGZ", "X.ZIP", "UP.NPY", "B.NPZ", "A.PARQUET"])
def test_endings_in_upper_case_are_read(name, tmp_path):
    path = tmp_path / name
    pixels = np.zeros((2, 4, 4, 3), np.uint8)
    pixels[1] = 1
    if name.endswith((".TAR", "GZ")):
        make_tar(tmp_path / name.lower(), {"0.PNG": 0, "1.PNG": 1}).rename(path)
    elif name.endswith(".ZIP"):
        make_zip(path, {"0.PNG": 0, "1.PNG": 1})
    elif name.endswith(".NPY"):
        with open(path, "wb") as file:
            np.save(file, pixels)
    elif name.endswith(".NPZ"):
        with open(path, "wb") as file:
            np.savez(file, images=pixels)
    else:
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.table({"image": [{"bytes": picture(k)} for k in range(2)]}), path)
    assert values_of(images(path).pixels(1))[0] == 0 and len(images(path)) == 2
    if name == "A.PARQUET":
        assert len(images(tmp_path)) == 2, "in a folder"


def test_members_of_archives_in_upper_case_are_counted_too(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("A.PNG", picture(1))
        archive.writestr("B.JXL", b"?")
    assert [entry["key"] for entry in open_source(tmp_path / "x.zip").skipped] == ["B.JXL"]
    import tarfile

    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        add_tar(archive, "A.PNG", picture(1))
        add_tar(archive, "B.NEF", b"?")
    assert [entry["key"] for entry in open_source(tmp_path / "x.tar").skipped] == ["B.NEF"]
    assert os.listdir(tmp_path)
