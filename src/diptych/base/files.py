"""Files written completely or not at all, never over a file of the user's; and files read that anybody may have damaged."""

import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from diptych.base.errors import CheckpointError, OutputError

DEEPEST = 64  # JSON nested deeper is damage: what Diptych writes has about five levels
BRACKETS = (b"{", b"[")
# What marks a file as Diptych's, within its first bytes: only such a file is replaced without being asked to.
HTML_MARK, PNG_MARK = b'<meta name="generator" content="Diptych">', b"tEXtSoftware\0Diptych"
MARK_WITHIN = 4096


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


def make_folder(folder: Path) -> Path:
    """Create `folder` and those above it, unless they exist. Raises OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise OutputError(f"cannot create the folder {folder} ({reason}); choose another --out") from None
    return folder


def require_free_folder(folder: Path) -> Path:
    """Return `folder` if it is absent or empty. Raises OutputError, before hours of work rather than after."""
    if os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise OutputError(f"{folder} exists and is not empty; choose another --out or remove it")
    return folder


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill beside `folder`, under which name it appears when the block has ended; after an error, nothing does.

    Raises OutputError where `folder` is not free, at the beginning, or cannot be written. An OutputError of a file in it
    names the place where that file would have been.
    """
    require_free_folder(folder)
    work = make_folder(folder.absolute().parent) / f".{folder.name}.tmp-{os.getpid()}"
    try:
        work.mkdir()
        yield work
        flush_folder(work)
        os.replace(work, folder)  # an empty folder of this name goes; one that has been filled meanwhile is an error
        flush_folder(work.parent)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise OutputError(f"cannot write the folder {folder} ({reason}); choose another --out") from error
    except OutputError as error:
        raise OutputError(str(error).replace(str(work), str(folder))) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def require_free_file(file: Path, mark: bytes | None = None) -> Path:
    """Return `file` if it may be written: its folder exists, and the file does not, or is Diptych's by its `mark`.

    Raises OutputError: nothing of the user's is ever replaced.
    """
    if file.is_dir() and mark is not None:
        raise OutputError(f"{file} is a folder; name a file in it")
    if os.path.lexists(file) and not (mark is not None and has_mark(file, mark)):
        reason = "exists already" if mark is None else "exists already and was not written by diptych"
        raise OutputError(f"{file} {reason}; choose another --out or remove it")
    if not file.parent.is_dir():
        raise OutputError(
            f"cannot write {file}: the folder {file.parent} does not exist; create it, or choose another --out"
        )
    return file


def has_mark(file: Path, mark: bytes) -> bool:
    """Whether a regular file, no link to one, holds `mark` within its first bytes."""
    try:
        return not file.is_symlink() and mark in read_plain(file, MARK_WITHIN)
    except CheckpointError:
        return False


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


def read_plain(path: Path, most: int = -1) -> bytes:
    """The bytes of a regular file, or its first `most`. Raises CheckpointError, in one line that names it.

    A folder, pipe, socket or device is refused at once; opening a pipe in the usual way would wait for a writer.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        try:
            mode = os.fstat(handle).st_mode
            if not stat.S_ISREG(mode):
                kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
                raise CheckpointError(f"{path} is {kind}, not a file; restore it")
            with open(handle, "rb", closefd=False) as file:
                return file.read(most)
        finally:
            os.close(handle)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; restore it") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({(error.strerror or str(error)).lower()})") from None


def read_object(path: Path) -> dict:
    """The object of a JSON file. Raises CheckpointError naming the file."""
    return parse_object(read_plain(path), str(path))


def parse_object(data: bytes, name: str) -> dict:
    """The object of a JSON text. Raises CheckpointError, "`name`: not JSON; ..."."""
    try:
        value = json.loads(data.decode())
    except (ValueError, RecursionError):
        raise NotJSON(f"{name}: not JSON; restore or remove it") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{name}: not a JSON object; restore or remove it")
    if sum(map(data.count, BRACKETS)) > DEEPEST and not is_shallow(value, DEEPEST):
        raise CheckpointError(f"{name}: nested more than {DEEPEST} deep; restore or remove it")
    return value


class NotJSON(CheckpointError):
    """A text that is no JSON, as a line is that a kill has cut short."""


def is_shallow(value: object, levels: int) -> bool:
    """Whether lists and objects are nested at most `levels` deep."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels > 0 and all(is_shallow(item, levels - 1) for item in inner)


def read_json_lines(
    path: Path, kinds: Mapping[str, type] | None = None, damaged: list[str] | None = None
) -> list[dict]:
    """The objects of a JSON-lines file, [] when it is absent.

    kinds: the keys that each must have, with the type of the value. The text after the last line end is left out if it
    is no JSON: a kill while writing leaves such a text. Any other damage raises CheckpointError naming file and line; with
    a list `damaged`, the error is added to it instead, and the line is left out.
    """
    if not os.path.lexists(path):
        return []
    lines, texts = [], read_plain(path).split(b"\n")
    for number, text in enumerate(texts, 1):
        if not text.strip():
            continue
        name = f"{path}, line {number}"
        try:
            line = parse_object(text, name)
            for key, kind in (kinds or {}).items():
                if not isinstance(line.get(key), kind):
                    raise CheckpointError(f"{name}: {key!r} is missing or of another type; restore or remove the line")
            lines.append(line)
        except CheckpointError as error:
            if isinstance(error, NotJSON) and number == len(texts):
                continue
            if damaged is None:
                raise
            damaged.append(str(error))
    return lines


def append_lines(path: Path, lines: list[dict]) -> None:
    """Append objects to a JSON-lines file, after its last whole line. Raises OutputError when it cannot be written."""
    text = "".join(json.dumps(line) + "\n" for line in lines).encode()
    try:
        with open(path, "ab+") as file:
            if (end := file.tell()) and file.seek(end - 1) >= 0 and file.read(1) != b"\n":
                drop_cut_line(file)
            file.write(text)
    except OSError as error:
        raise disk_error(path, len(text), error) from None


def drop_cut_line(file) -> None:
    """Remove the text after the last line end, which a kill has cut short, unless it is a whole object."""
    file.seek(0)
    data = file.read()
    start = data.rfind(b"\n") + 1
    try:
        parse_object(data[start:], "")
        file.write(b"\n")
    except CheckpointError:
        file.truncate(start)
