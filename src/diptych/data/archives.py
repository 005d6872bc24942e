"""Zip and tar archives of images, read in place: indexed once, then every image is one positioned read.

Nothing is ever extracted. A member with a hostile name or kind is skipped and listed; a damaged archive is a
DataError.
"""

import gzip
import io
import os
import shutil
import stat
import struct
import tarfile
import tempfile
import threading
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from diptych.base.errors import DataError
from diptych.data.labels import label_level
from diptych.data.source import (
    MAX_BYTES,
    MAX_UNPACKING_RATIO,
    Files,
    Keys,
    blocks_of,
    is_image_name,
    key_of,
    unread_reason,
)
from diptych.data.untrusted import BadImage, bad_image, open_regular, refusing

ZIP_FLAG_ENCRYPTED, ZIP_FLAG_UTF8 = 0x1, 0x800
TAR_ENDINGS = (".tar", ".tar.gz", ".tgz")


def open_zip(path: str | Path, labels: str = "auto") -> Files:
    """The images of a zip archive, in order of their names' bytes. Raises DataError when it is damaged."""
    file, index = _Positioned(open_regular(path)), _Index()
    with refusing(f"{path} is not a complete zip archive"):
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        for member in members:
            name = _zip_name(member)
            if not member.filename.endswith("/"):  # is_dir() of Python 3.11 fails at an empty name
                index.add(name, _zip_fault(member), max(member.file_size, member.compress_size), member)
        places = np.array(
            [(m.header_offset, m.compress_size, m.file_size, m.compress_type, m.CRC) for *_, m in index.rows()],
            np.int64,
        ).reshape(-1, 5)

    def read(i: int) -> bytes:
        start, packed, size, method, crc = places[i].tolist()
        with bad_image("the zip archive is damaged here"):
            header = file.read(start, 30)
            if header[:4] != b"PK\3\4" or len(header) < 30:
                raise BadImage("the zip archive is damaged here")
            data = file.read(start + 30 + sum(struct.unpack("<HH", header[26:30])), packed)
            if method == zipfile.ZIP_DEFLATED:
                data = zlib.decompressobj(-15).decompress(data, size + 1)
        if len(data) != size or zlib.crc32(data) != crc:
            raise BadImage("the zip archive is damaged here (checksum)")
        return data

    return _files(index, places[:, 2:], read, labels)


def _zip_name(member: zipfile.ZipInfo) -> bytes:
    try:
        return member.filename.encode("utf-8" if member.flag_bits & ZIP_FLAG_UTF8 else "cp437")
    except UnicodeEncodeError:  # the name comes from the Unicode path field
        return member.filename.encode("utf-8", "surrogateescape")


def _zip_fault(member: zipfile.ZipInfo) -> str | None:
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        return "a link" if kind == stat.S_IFLNK else "a device or the like"
    if member.flag_bits & ZIP_FLAG_ENCRYPTED:
        return "encrypted"
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"compression method {member.compress_type}: only stored and deflated are read"
    if member.file_size > MAX_UNPACKING_RATIO * max(member.compress_size, 1):
        return f"unpacks to more than {MAX_UNPACKING_RATIO} times its size"
    return None


def open_tar(path: str | Path, labels: str = "auto") -> Files:
    """The images of a .tar, .tar.gz or .tgz archive, in order of their names' bytes. DataError: damage.

    gzip allows no positioned reads, so a .tar.gz is first decompressed into an unnamed temporary file (disk
    space: its unpacked size, in tempfile.gettempdir()), which is deleted when the process ends.
    """
    plain = str(path).lower().endswith(".tar")
    file = _Positioned(open_regular(path) if plain else _gunzip(path))
    index = _Index()
    with (
        refusing(f"{path} is not a complete tar archive"),
        _ShortReads(file.descriptor) as start,
        tarfile.open(fileobj=start, mode="r:", encoding="utf-8", errors="surrogateescape") as archive,
    ):
        while (member := archive.next()) is not None:
            archive.members.clear()  # pyrefly: ignore (else a million members stay in memory)
            if not member.isdir():
                name = member.name.encode("utf-8", "surrogateescape")
                index.add(name, _tar_fault(member), member.size, member.offset_data)
        if file.read(archive.offset, 512) != bytes(512):  # tarfile stops silently at damage; an archive ends in zeros
            raise EOFError(f"damaged or cut at byte {archive.offset}")
        places = np.array([(start, size) for _, size, start in index.rows()], np.int64).reshape(-1, 2)

    def read(i: int) -> bytes:
        start, size = places[i].tolist()
        with bad_image("the tar archive is damaged here"):
            data = file.read(start, size)
        if len(data) < size:
            raise BadImage("the tar archive ends here")
        return data

    def blocks(i: int) -> bytes:
        return blocks_of(file.descriptor, *places[i].tolist())

    return _files(index, places[:, 1:], read, labels, blocks)


def _tar_fault(member: tarfile.TarInfo) -> str | None:
    if member.issym() or member.islnk():
        return "a link"
    if not member.isreg() or member.issparse():
        return "a device, a sparse file or the like"
    return None


def _gunzip(path: str | Path) -> int:
    """File descriptor of an unnamed temporary file with the content of the gzip file."""
    limit = os.path.getsize(path) * MAX_UNPACKING_RATIO
    try:
        with (
            open(path, "rb", opener=open_regular) as raw,
            gzip.open(raw) as packed,
            tempfile.TemporaryFile() as file,
        ):
            while block := packed.read(1 << 20):
                file.write(block)
                if file.tell() > limit:
                    raise DataError(f"{path} unpacks to more than {MAX_UNPACKING_RATIO} times its size")
            file.flush()
            return os.dup(file.fileno())
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(f"{path} is not a complete gzip file ({error}): copy it again") from error
    except OSError as error:
        room = f"{shutil.disk_usage(tempfile.gettempdir()).free >> 20} MiB free in {tempfile.gettempdir()}"
        raise DataError(f"{path} cannot be unpacked ({error.strerror}, {room}): gunzip it and name the .tar") from error


class _Index:
    """The images of an archive by name. Other files are ignored, hostile members are listed in `skipped`."""

    def __init__(self):
        self.images: list[tuple[bytes, int, Any]] = []
        self.skipped: list[dict] = []
        self.names: set[bytes] = set()

    def add(self, name: bytes, fault: str | None, size: int, place: Any) -> None:
        parts = [part for part in name.split(b"/") if part != b"."] or [b""]
        plain = b"/".join(parts)
        unread = unread_reason(parts[-1])
        if not unread and not is_image_name(parts[-1].lstrip(b".")):
            return
        slashed = name.replace(b"\\", b"/")
        if b".." in slashed.split(b"/") or slashed.startswith(b"/") or slashed[1:3] == b":/":
            fault = "a name that leads out of the archive"
        elif any(part.startswith(b".") for part in parts):
            return
        elif b"" in parts or b"\0" in name or len(name) > 4096:
            fault = "a name that is not a path"
        elif size > MAX_BYTES:
            fault = f"more than {MAX_BYTES >> 20} MiB"
        elif plain in self.names:
            fault = "the name of an earlier member"
        elif unread:
            name, fault = plain, unread
        if fault:
            self.skipped.append({"key": key_of(name), "reason": fault})
        else:
            self.names.add(plain)
            self.images.append((plain, size, place))

    def rows(self) -> list[tuple[bytes, int, Any]]:
        """(name, size, place) in order of names."""
        self.names.clear()
        self.images.sort(key=lambda row: row[0])
        return self.images


def _files(index: _Index, sizes: np.ndarray, read, labels: str, blocks=None) -> Files:
    keys = Keys(name for name, *_ in index.images)
    level = label_level(keys, labels, top=_common_folders(keys)) if len(keys) else None
    return Files(keys, sizes, read, level, index.skipped, blocks)


def _common_folders(keys: Keys) -> int:
    """1 when the archive holds one folder that holds the class folders (`photos/cat/1.jpg`), else 0."""
    tops = {name.split(b"/", 1)[0] if name.count(b"/") > 1 else b"" for name in keys.raws()}
    return int(len(tops) == 1 and tops != {b""})


class _Positioned:
    """An open file with reads at a position, which threads may share; closed with its source."""

    def __init__(self, descriptor: int):
        self.descriptor, self.lock = descriptor, threading.Lock()

    def __del__(self):
        os.close(self.descriptor)

    def read(self, start: int, size: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self.descriptor, size, start)
        with self.lock:  # Windows
            os.lseek(self.descriptor, start, os.SEEK_SET)
            return os.read(self.descriptor, size)


class _ShortReads(io.BufferedReader):
    """A tar header is short: a hostile one that claims gigabytes is refused instead of read into memory."""

    def __init__(self, descriptor: int):
        super().__init__(io.FileIO(descriptor, closefd=False))
        self.seek(0)

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= 1 << 20:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)
