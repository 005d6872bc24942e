"""Files written completely or not at all, and the errors of a full or read-only disk."""

import json
import os
import shutil
from pathlib import Path

from diptych.base.errors import DataError, OutputError


def write_file(path: Path, data: bytes) -> None:
    """Write `path` atomically: to a temporary file, flushed to the disk, then renamed. Raises OutputError."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        flush_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise disk_error(path, len(data), error) from error


def flush_folder(folder: Path) -> None:
    """Make a rename in `folder` durable (a power cut can undo a rename alone)."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def disk_error(path: Path, needed: int, error: OSError) -> OutputError:
    """One line that gives the reason, the space needed and the space that is free."""
    try:
        free = f", {megabytes(shutil.disk_usage(path.parent).free)} are free"
    except OSError:
        free = ""
    reason = (error.strerror or str(error)).lower()
    return OutputError(
        f"cannot write {path} ({reason}): it needs {megabytes(needed)}{free}; make room and run again (pretrain: with --resume)"
    )


def megabytes(count: int) -> str:
    return f"{count / 1e6:,.{0 if count > 1e7 else 2}f} MB"


def require_free_folder(folder: Path) -> Path:
    """Return `folder` if it is absent or empty. Raises OutputError, before hours of work rather than after."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise OutputError(f"{folder} exists and is not empty; choose another --out or remove it")
    return folder


def require_free_file(file: Path, replace: bool = False) -> Path:
    """Return `file` if its folder exists and the file does not (`replace`: it may). Raises OutputError."""
    if replace and file.is_dir():
        raise OutputError(f"{file} is a folder; name a file in it")
    if not replace and file.exists():
        raise OutputError(f"{file} exists already; choose another --out or remove it")
    if not file.parent.is_dir():
        raise OutputError(
            f"cannot write {file}: the folder {file.parent} does not exist; create it, or choose another --out"
        )
    return file


def require_writable(folder: Path) -> Path:
    """Return `folder`, an existing one, if files may be added to it. Raises OutputError."""
    if not os.access(folder, os.W_OK):
        raise OutputError(f"{folder} is read-only: the result could not be saved there; make it writable, or copy it")
    return folder


def require_space(folder: Path, needed: int) -> None:
    """Raise OutputError if `folder` has less than `needed` bytes free: at the start, not at the first checkpoint."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutputError(f"{folder} needs about {megabytes(needed)} for checkpoints, {megabytes(free)} are free; "
                          "make room, or choose another --out")  # fmt: skip


def read_json_lines(path: Path) -> list[dict]:
    """The objects of a JSON-lines file, [] when it is absent.

    The last line may be broken, by a kill while writing, and is left out. Raises DataError at any other."""
    if not path.exists():
        return []
    texts = path.read_text().splitlines()
    lines = []
    for number, text in enumerate(texts, 1):
        try:
            lines.append(json.loads(text))
        except ValueError:
            if number < len(texts):
                raise DataError(f"{path}, line {number}: not JSON; remove the line") from None
    return lines
