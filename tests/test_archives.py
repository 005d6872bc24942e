"""Zip and tar archives read in place: what the folder would give, and nothing that an attacker wants."""

import gzip
import io
import os
import tarfile
import warnings
import zipfile
from pathlib import Path

import pytest
from fake_source import keys, labels, picture, values

from diptych.base.errors import DataError
from diptych.data.decode import BadImage
from diptych.data.open import open_source

# --- archives

TREE = {
    "dog/2.png": 5,
    "cat/1.png": 6,
    "cat/ü.png": 7,
    "cat/._1.png": 0,
    "__MACOSX/._x.png": 0,
    "read me.txt": 0,
}


def make_zip(path: Path, tree: dict[str, int] = TREE, top: str = "", method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, value in tree.items():
            archive.writestr(top + name, picture(value))
    return path


def add_tar(
    archive: tarfile.TarFile, name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = ""
) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = len(data), kind, link
    archive.addfile(member, io.BytesIO(data))


def make_tar(path: Path, tree: dict[str, int] = TREE, top: str = "") -> Path:
    with tarfile.open(path, "w:gz" if path.suffix != ".tar" else "w") as archive:
        for name, value in tree.items():
            add_tar(archive, top + name, picture(value))
    return path


@pytest.mark.parametrize("top", ["", "photos/", "./", "./photos/"])
@pytest.mark.parametrize("ending", ["zip", "tar", "tar.gz", "tgz"])
def test_archives_give_what_the_folder_gives(tmp_path, ending, top):
    path = tmp_path / f"photos.{ending}"
    source = open_source(make_zip(path, top=top) if ending == "zip" else make_tar(path, top=top))
    prefix = "photos/" if "photos" in top else ""
    assert keys(source) == [prefix + name for name in ("cat/1.png", "cat/ü.png", "dog/2.png")]
    assert labels(source) == ["cat", "cat", "dog"] and values(source) == [6, 7, 5]
    assert source.skipped == [] and os.listdir(tmp_path) == [path.name]
    assert source.fingerprint == open_source(path).fingerprint


def test_stored_zip_and_names_without_utf8_flag(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"a/1.png": 1, "b/u.png": 2}, method=zipfile.ZIP_STORED)
    path.write_bytes(path.read_bytes().replace(b"b/u.png", b"b/\xff.png"))
    source = open_source(path)
    assert keys(source) == ["a/1.png", "b/%FF.png"] and values(source) == [1, 2]


HOSTILE = ["../out.png", "/abs.png", "a/../../b.png", "C:\\x.png", "..\\x.png"]


def test_hostile_zip_members_are_skipped_and_listed(tmp_path):
    path = tmp_path / "bad.zip"
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        warnings.simplefilter("ignore")  # zipfile warns about the duplicate
        for name in ("good/1.png", "good/1.png", *HOSTILE):
            archive.writestr(name, picture(3))
        link = zipfile.ZipInfo("link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("bomb.png", bytes(1 << 20))
        archive.writestr(zipfile.ZipInfo("lzma.png"), picture(1), zipfile.ZIP_LZMA)
    source = open_source(path)
    reasons = {skip["key"]: skip["reason"] for skip in source.skipped}
    assert keys(source) == ["good/1.png"] and values(source) == [3]
    assert {name: reasons[name] for name in HOSTILE} == dict.fromkeys(HOSTILE, "a name that leads out of the archive")
    assert reasons["good/1.png"] == "the name of an earlier member"
    assert reasons["link.png"] == "a link" and "200 times" in reasons["bomb.png"] and "method 14" in reasons["lzma.png"]
    assert os.listdir(tmp_path) == ["bad.zip"]


def test_encrypted_and_damaged_zip_members(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"a.png": 1, "b.png": 2, "c.png": 3}, method=zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[data.rindex(b"PK\1\2") + 8] |= 1  # the last member claims to be encrypted
    data[data.index(b"b.png") + 30] ^= 255
    path.write_bytes(data)
    source = open_source(path)
    assert source.skipped == [{"key": "c.png", "reason": "encrypted"}] and keys(source) == ["a.png", "b.png"]
    assert source.read(0) == picture(1)
    with pytest.raises(BadImage, match="checksum"):
        source.read(1)


def test_hostile_tar_members_are_skipped_and_listed(tmp_path):
    path = tmp_path / "bad.tar"
    with tarfile.open(path, "w") as archive:
        for name in ("good/1.png", "good/1.png", *HOSTILE):
            add_tar(archive, name, picture(3))
        add_tar(archive, "sym.png", kind=tarfile.SYMTYPE, link="/etc/passwd")
        add_tar(archive, "hard.png", kind=tarfile.LNKTYPE, link="good/1.png")
        add_tar(archive, "device.png", kind=tarfile.CHRTYPE)
        add_tar(archive, "pipe.png", kind=tarfile.FIFOTYPE)
    source = open_source(path)
    reasons = {skip["key"]: skip["reason"] for skip in source.skipped}
    assert keys(source) == ["good/1.png"] and values(source) == [3]
    assert {name: reasons[name] for name in HOSTILE} == dict.fromkeys(HOSTILE, "a name that leads out of the archive")
    assert reasons["good/1.png"] == "the name of an earlier member"
    assert reasons["sym.png"] == reasons["hard.png"] == "a link"
    assert reasons["device.png"] == reasons["pipe.png"] == "a device, a sparse file or the like"


@pytest.mark.parametrize("ending", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize("keep", [0.0, 0.4, 0.97])
def test_truncated_archive_is_an_error(tmp_path, ending, keep):
    tree = {f"{k}.png": k for k in range(9)}
    path = tmp_path / f"cut.{ending}"
    if ending == "zip":
        make_zip(path, tree)
    else:
        make_tar(path, tree)
    data = path.read_bytes()
    if ending == "tar":
        data = data[: 9 * 1024]  # without the zeros at the end, so that any cut loses something
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(DataError, match="not a complete|cannot be unpacked"):
        open_source(path)


def test_tar_damaged_in_the_middle_is_an_error_and_not_a_short_source(tmp_path):
    path = make_tar(tmp_path / "a.tar", {f"{k}.png": k for k in range(9)})
    data = bytearray(path.read_bytes())
    data[4 * 1024 : 4 * 1024 + 512] = b"x" * 512  # the fifth header
    path.write_bytes(data)
    with pytest.raises(DataError, match="cut at byte 4096"):
        open_source(path)


def test_tar_header_that_claims_gigabytes_and_gzip_bomb(tmp_path):
    header = bytearray(tarfile.TarInfo("././@LongLink").tobuf())
    header[156:157], header[124:136] = b"L", b"00100000000\0"  # 16 MiB of name
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + sum(header[156:]) + 8 * 32)
    (tmp_path / "long.tar").write_bytes(bytes(header) + bytes(1 << 14))
    with pytest.raises(DataError, match="a header of 16777216 bytes"):
        open_source(tmp_path / "long.tar")
    (tmp_path / "bomb.tar.gz").write_bytes(gzip.compress(bytes(1 << 22)))
    with pytest.raises(DataError, match="200 times"):
        open_source(tmp_path / "bomb.tar.gz")


def test_archive_without_images(tmp_path):
    with pytest.raises(DataError, match="holds no images"):
        open_source(make_zip(tmp_path / "a.zip", {"notes.txt": 1}))
