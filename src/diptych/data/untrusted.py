"""Bytes that nobody vouches for: what parsing them may raise, and the two ends that it has.

A source that cannot be opened ends in one DataError, an image that cannot be read in one BadImage.
"""

import lzma
import os
import stat
import struct
import tarfile
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from diptych.base.errors import DataError, DiptychError

# Observed on damaged files of all formats, or reported by others: RecursionError (a RuntimeError) for 3,000 nested tar
# headers, OverflowError (an ArithmeticError) for sizes of 2 ** 64, UnicodeError (a ValueError) for labels that are not text.
FAULTS = (
    OSError,
    SyntaxError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    BufferError,
    EOFError,
    MemoryError,
    RuntimeError,
    StopIteration,
    struct.error,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    tarfile.TarError,
    tokenize.TokenError,
    Image.DecompressionBombError,
)


class BadImage(DataError):
    """One image that cannot be used. `reason` is one line; the message begins with `key`, if given."""

    def __init__(self, reason: str, key: str | None = None):
        self.reason = one_line(reason)
        super().__init__(f"{key}: {self.reason}" if key else self.reason)


@contextmanager
def refusing(problem: str, *more: type[Exception]) -> Iterator[None]:
    """Turn what is raised inside into DataError(`problem` and the reason); more: exceptions beside FAULTS."""
    try:
        yield
    except DiptychError:
        raise
    except (*FAULTS, *more) as error:
        raise DataError(f"{problem} ({reason_of(error)}): copy it again") from error


@contextmanager
def bad_image(problem: str, *more: type[Exception]) -> Iterator[None]:
    """As `refusing`, but BadImage for one image. An OSError of the disk passes: it has a reason of its own."""
    try:
        yield
    except (DiptychError, OSError):
        raise
    except (*FAULTS, *more) as error:
        raise BadImage(f"{problem} ({reason_of(error)})") from error


def reason_of(error: BaseException) -> str:
    """The message of an exception in one line of at most 200 characters."""
    if isinstance(error, MemoryError):
        return "it asks for more memory than there is"
    if isinstance(error, RecursionError):
        return "its parts are nested too deeply"
    return one_line(str(error)) or type(error).__name__


def one_line(text: str) -> str:
    """At most 200 printable characters; others are escaped."""
    short = " ".join(text.split())[:200]
    return short if short.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in short)


def open_regular(path: str | bytes | Path, flags: int = os.O_RDONLY | getattr(os, "O_BINARY", 0)) -> int:
    """The descriptor of a regular file. A pipe, a socket or a device is an OSError, and is never waited for."""
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{os.fsdecode(path)} is {NO_FILE}")
    return descriptor


NO_FILE = "a pipe, a socket or a device, not a file"
