"""Embeddings onto the disk, block by block, so that a command which is killed loses seconds and can go on."""

import contextlib
import fcntl
import json
import os
import stat
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple

import numpy as np

from diptych.base.errors import CheckpointError, OutputError
from diptych.base.files import disk_error, flush_folder, make_folder, read_object, require_free_folder, write_file

FORMAT = 1  # of the folder
VECTORS, INDEX, META, PROGRESS = "vectors.npy", "index.jsonl", "meta.json", "progress.json"
TABLE = "embeddings.parquet"  # what may be beside them
HEADER = 128  # bytes before the first number of vectors.npy
BLOCK_IMAGES, BLOCK_SECONDS = 4096, 30.0  # what a kill costs at most: images, or time
CHUNK = 1 << 24  # bytes of a file that are read at once
FREE = ("encoder", "source", "diptych")  # settings that may differ when an embedding goes on: they name, hashes decide


class Entry(NamedTuple):
    """An image of the index. error: why it has no vector, or None."""

    key: str
    label: int | str | None
    error: str | None = None


class Writer:
    """The files of one folder of embeddings, in a `with` statement: `add` images, then `finish`.

    settings: what decides the numbers: an embedding goes on only with those that it began with. resume: go on where there is
    something to continue, else begin; `images` is the number of images that are done, `finished` says that all are.

    After an error or a signal the folder remains as it was recorded last, and is removed if nothing was. Raises OutputError
    where the folder is not free, cannot be written, or another process is writing to it; CheckpointError where it was begun
    with other settings or is damaged.
    """

    def __init__(self, folder: Path, settings: Mapping[str, object], *, resume: bool = False):
        self.folder, self.settings = folder, json.loads(json.dumps(settings))
        self.images = self.rows = self.width = 0
        self._index_bytes, self._crcs = 0, [0, 0]  # of vectors.npy after its header, and of index.jsonl
        self._lines: list[bytes] = []
        self._vectors: list[bytes] = []
        self._recorded_at = time.monotonic()
        self._files = contextlib.ExitStack()
        require_place(folder, resume)
        self.finished = (folder / META).is_file()
        if self.finished:
            self._require_same(read_object(folder / META))
            (folder / PROGRESS).unlink(missing_ok=True)
            return
        make_folder(folder)
        try:
            self._open_files()
        except BaseException:
            self._files.close()
            raise

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self.finished and not self.images:
            remove_embeddings(self.folder)
        self._files.close()

    def add(self, entries: Sequence[Entry], vectors: np.ndarray) -> None:
        """The next images, and the vectors (m, E) of those without an error. They are recorded in blocks."""
        for entry in entries:
            line: dict = {"key": entry.key, "label": entry.label, "status": "ok", "row": self.rows}
            if entry.error is not None:
                line |= {"status": "failed", "row": None, "error": entry.error}
            self.rows += entry.error is None
            self._lines.append(json.dumps(line).encode() + b"\n")
        self.width = vectors.shape[1] or self.width
        self._vectors.append(np.ascontiguousarray(vectors, "<f4").tobytes())
        if len(self._lines) >= BLOCK_IMAGES or time.monotonic() - self._recorded_at > BLOCK_SECONDS:
            self.record()

    def record(self) -> None:
        """Write what was added, wait until the disk has it, and only then say so in progress.json."""
        for number, parts in enumerate((self._vectors, self._lines)):
            file = self._open[number]
            try:
                for part in parts:
                    file.write(part)
                    self._crcs[number] = zlib.crc32(part, self._crcs[number])
                file.flush()
                os.fsync(file.fileno())
            except OSError as error:
                raise disk_error(self.folder / (VECTORS, INDEX)[number], sum(map(len, parts)), error) from error
        self.images += len(self._lines)
        self._index_bytes += sum(map(len, self._lines))
        self._lines, self._vectors, self._recorded_at = [], [], time.monotonic()
        self._write_progress()

    def finish(self, meta: Mapping[str, object]) -> None:
        """Complete the files. meta: what meta.json says beside the settings and the counts."""
        self.record()
        file = self._open[0]
        file.seek(0)
        file.write(header_of(self.rows, self.width))
        file.flush()
        os.fsync(file.fileno())
        counts = {"images": self.images, "rows": self.rows, "width": self.width, "dtype": "float32",
                  "failed": self.images - self.rows}  # fmt: skip
        described = {"format": FORMAT, **self.settings, **meta, **counts}
        write_file(self.folder / META, json.dumps(described, indent=2).encode() + b"\n")
        self.finished = True
        (self.folder / PROGRESS).unlink()
        flush_folder(self.folder)

    def _open_files(self) -> None:
        """Open the files, lock the first against a second process, and return to what was recorded."""
        self._open = [self._files.enter_context(opened(self.folder / name)) for name in (VECTORS, INDEX)]
        try:
            fcntl.flock(self._open[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(
                f"another process is writing to {self.folder}; wait for it, or choose another --out"
            ) from None
        except OSError:  # some network file systems do not support locks
            pass
        progress = read_object(self.folder / PROGRESS) if (self.folder / PROGRESS).exists() else None
        if progress is not None:
            self._require_same(progress)
            try:
                recorded = [int(number) for number in progress["recorded"]]
                self.images, self.rows, self.width, self._index_bytes, *self._crcs = recorded
                if len(recorded) != 6 or min(recorded) < 0:
                    raise ValueError(recorded)
            except (TypeError, KeyError, ValueError, OverflowError):
                raise damaged(self.folder, f"{PROGRESS} does not say what is done") from None
        for file in self.folder.iterdir():
            if is_ours(file) and file.name.startswith("."):
                file.unlink()  # what a kill has left of a write
        ends = HEADER + 4 * self.rows * self.width, self._index_bytes
        for number, file in enumerate(self._open):
            start = HEADER * (number == 0)
            if progress is not None and self.images and checksum(file, start, ends[number]) != self._crcs[number]:
                raise damaged(self.folder, f"{file.name} is not what was recorded")
            file.truncate(ends[number])
            file.seek(0)
            file.write(header_of(0, self.width) if number == 0 else b"")
            file.seek(ends[number])
        if progress is None:
            self._write_progress()

    def _write_progress(self) -> None:
        recorded = [self.images, self.rows, self.width, self._index_bytes, *self._crcs]
        progress = {"format": FORMAT, **self.settings, "recorded": recorded}
        write_file(self.folder / PROGRESS, json.dumps(progress, indent=1).encode() + b"\n")

    def _require_same(self, old: dict) -> None:
        if old.get("format") != FORMAT:
            raise CheckpointError(f"{self.folder} has format {old.get('format')!r}, this version of diptych writes {FORMAT}; "
                                  "choose another --out")  # fmt: skip
        changed = [f"{key}: {short(old.get(key))} -> {short(new)}" for key, new in self.settings.items()
                   if key not in FREE and old.get(key) != new]  # fmt: skip
        if changed:
            raise CheckpointError(f"{self.folder} was started with other settings ({'; '.join(changed[:3])}); use the same, or "
                                  "choose another --out")  # fmt: skip


def require_place(folder: Path, resume: bool) -> Path:
    """Return `folder` if embeddings may be written there, or continued with `resume`. Raises OutputError."""
    if not resume and (folder / PROGRESS).is_file() and not (folder / META).exists():
        raise OutputError(f"{folder} holds an unfinished embedding; continue it with --resume, or remove it")
    ours = resume and folder.is_dir() and all(map(is_ours, folder.iterdir()))
    return folder if ours else require_free_folder(folder)


def remove_embeddings(folder: Path) -> None:
    """Remove the files of a folder of embeddings, and the folder where nothing else is in it."""
    for name in (VECTORS, INDEX, META, PROGRESS):
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def is_ours(file: Path) -> bool:
    """Whether a file is one that an embedding leaves, also where it was killed at its beginning."""
    return file.name in (VECTORS, INDEX, META, PROGRESS, TABLE) or any(
        file.name.startswith(f".{name}.tmp-") for name in (META, PROGRESS, TABLE)
    )


def opened(path: Path) -> BinaryIO:
    """A regular file to read and write, made if there is none. Raises OutputError."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        if stat.S_ISREG(os.fstat(handle).st_mode):
            return open(handle, "r+b")
        os.close(handle)
        reason = "no file"
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
    raise OutputError(f"cannot write {path} ({reason}); choose another --out")


def checksum(file: BinaryIO, start: int, end: int) -> int:
    """The CRC-32 of some bytes of a file; -1 where it is shorter."""
    file.seek(start)
    crc, left = 0, end - start
    while left > 0:
        data = file.read(min(CHUNK, left))
        if not data:
            return -1
        crc, left = zlib.crc32(data, crc), left - len(data)
    return crc


def header_of(rows: int, width: int) -> bytes:
    """What a .npy file of (rows, width) float32 begins with (version 1.0), of HEADER bytes whatever the numbers."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {width}), }}".encode()
    return b"\x93NUMPY\x01\x00" + (HEADER - 10).to_bytes(2, "little") + text.ljust(HEADER - 11) + b"\n"


def short(value: object) -> str:
    return text if len(text := str(value)) <= 20 else text[:17] + "..."


def damaged(folder: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{folder} is damaged ({reason}); remove it and embed again")
