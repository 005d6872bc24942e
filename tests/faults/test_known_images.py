"""Row 26 of docs/faults.md: a resumed run knows its images by their contents too; times and places do not matter."""

import io
import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from spoiled import PHOTO, SMALL, diptych, encoded, photographs, refusal

from diptych.base.errors import RecipeError
from diptych.data import arrays, source
from diptych.data.images import images

BITMAP = encoded(PHOTO, "BMP")  # 9 kB, so all of it is in its three blocks
NEGATIVE = encoded(255 - PHOTO, "BMP")


def mark(path: Path, fingerprint: str = "sampled") -> str:
    return images(path, size=8, fingerprint=fingerprint).fingerprint


def folder(place: Path, files: list[bytes]) -> Path:
    place.mkdir()
    for i, data in enumerate(files):
        (place / f"{i:02d}.bmp").write_bytes(data)
    return place


def tar(place: Path, files: list[bytes], mode: str = "w") -> Path:
    path = place.with_suffix(".tar" if mode == "w" else ".tar.gz")
    with tarfile.open(path, mode) as archive:
        for i, data in enumerate(files):
            member = tarfile.TarInfo(f"{i:02d}.bmp")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def zipped(place: Path, files: list[bytes]) -> Path:
    with zipfile.ZipFile(place.with_suffix(".zip"), "w") as archive:
        for i, data in enumerate(files):
            archive.writestr(f"{i:02d}.bmp", data)
    return place.with_suffix(".zip")


def parquet(place: Path, files: list[bytes]) -> Path:
    """Without statistics and compression: nothing but the bytes tells one from the other."""
    table = pyarrow.table({"image": [{"bytes": data, "path": ""} for data in files]})
    pyarrow.parquet.write_table(table, place.with_suffix(".parquet"), compression="none", write_statistics=False)
    return place.with_suffix(".parquet")


def array(place: Path, files: list[bytes]) -> Path:
    np.save(place.with_suffix(".npy"), np.frombuffer(b"".join(files), np.uint8).reshape(len(files), 1, -1))
    return place.with_suffix(".npy")


@pytest.mark.parametrize("kind", [folder, tar, lambda place, files: tar(place, files, "w:gz"), zipped, parquet, array],
                         ids=["folder", "tar", "tar.gz", "zip", "parquet", "npy"])  # fmt: skip
def test_26_one_image_of_the_same_size_is_another_set(kind, tmp_path):
    marks = []
    for name, files in (("a", [BITMAP] * 9), ("b", [BITMAP] * 9), ("c", [BITMAP] * 8 + [NEGATIVE])):
        (tmp_path / name).mkdir()
        path = kind(tmp_path / name / "set", files)
        marks.append((mark(path), mark(path, "full")))
    assert len(BITMAP) == len(NEGATIVE)
    assert marks[0] == marks[1]
    assert not set(marks[2]) & set(marks[0]) and len({*marks[0]}) == 2


def test_26_negatives_under_the_old_names_are_refused_and_a_copy_is_not(tmp_path):
    photos, out = tmp_path / "photos", tmp_path / "run"
    bitmaps = [encoded(np.roll(PHOTO, i, 1), "BMP") for i in range(24)]
    folder(photos, bitmaps)
    words = ["pretrain", photos, *SMALL, "--out", out, "--resume"]
    assert diptych(*words)[0] == 0
    for i, path in enumerate(sorted(photos.iterdir())):  # the same contents, of another time
        os.utime(path, (1e9 + i, 1e9 + i))
    assert diptych(*words)[0] == 0
    shutil.move(photos, tmp_path / "elsewhere")
    shutil.copytree(tmp_path / "elsewhere", photos, copy_function=shutil.copyfile)
    assert diptych(*words)[0] == 0
    for path in photos.iterdir():
        picture = 255 - np.frombuffer(path.read_bytes()[54:], np.uint8)
        path.write_bytes(path.read_bytes()[:54] + picture.tobytes())
    code, _, err = diptych(*words)
    assert code == 4 and "was made from other images (fingerprint " in refusal(err)


def test_26_of_many_files_evenly_spaced_ones_are_read(tmp_path, monkeypatch):
    """One change in eight files of which four are read is missed, unless every byte is; four changes are not."""
    monkeypatch.setattr(source, "SAMPLED", 4)
    assert source.sampled(8) == [0, 2, 4, 7] and source.sampled(3) == [0, 1, 2] and source.sampled(0) == []
    path = folder(tmp_path / "photos", [BITMAP] * 8)
    sampled, full = mark(path), mark(path, "full")
    (path / "01.bmp").write_bytes(NEGATIVE)
    assert mark(path) == sampled and mark(path, "full") != full
    (path / "02.bmp").write_bytes(NEGATIVE)
    assert mark(path) != sampled


def test_26_of_a_large_file_start_middle_and_end_are_read(tmp_path):
    path = folder(tmp_path / "photos", [bytes(100_000)])
    before = mark(path)
    seen = []
    for place in range(0, 100_000, 1000):
        (path / "00.bmp").write_bytes(bytes(place) + b"x" + bytes(99_999 - place))
        seen += [place] if mark(path) != before else []
    assert seen == [*range(0, 5000, 1000), *range(48_000, 52_001, 1000), *range(96_000, 100_000, 1000)]


def test_26_of_a_large_array_rows_are_read(monkeypatch):
    monkeypatch.setattr(arrays, "WHOLE_BYTES", 1000)
    monkeypatch.setattr(source, "SAMPLED", 4)
    pixels = np.zeros((8, 12, 12, 3), np.uint8)
    other = pixels.copy()
    other[1] = 1
    assert images(pixels).fingerprint == images(other).fingerprint
    other[2, 11, 11, 2] = 1
    assert images(pixels).fingerprint != images(other).fingerprint
    assert images(pixels, fingerprint="full").fingerprint != images(other, fingerprint="full").fingerprint


def test_26_the_option_is_one_of_a_recipe(tmp_path):
    with pytest.raises(RecipeError, match="fingerprint is 'md5'; it must be one of sampled, full"):
        images(np.zeros((4, 8, 8, 3), np.uint8), fingerprint="md5")
    photos, out = photographs(tmp_path / "photos"), tmp_path / "run"
    words = ["pretrain", photos, *SMALL, "images.fingerprint=full", "--out", out, "--resume"]
    assert diptych(*words)[0] == 0 and "fingerprint: full" in (out / "recipe.yaml").read_text()
    assert diptych(*words)[0] == 0
    code, _, err = diptych(*[word for word in words if word != "images.fingerprint=full"])
    assert code == 4 and "images.fingerprint: full -> sampled" in refusal(err)
