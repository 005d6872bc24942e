"""The interface of a source of images, and the keys and classes that follow from file names."""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from diptych.data.formats import EXTENSIONS, UNREAD
from diptych.data.untrusted import BadImage

MAX_BYTES = 512 * 2**20  # of one image file, compressed or not
MAX_UNPACKING_RATIO = 200  # unpacked : packed bytes; JPEG is near 1, and 1000 is a bomb
SAMPLED, BLOCK, FILE_BLOCKS = 10_000, 4096, 3  # of a fingerprint: files at most; bytes of a block; blocks of a file
IMAGE_ENDINGS = tuple(extension.encode() for extension in EXTENSIONS)
# Control characters (also those of Unicode, which terminals obey), line ends, changes of text direction, and %.
UNPRINTABLE = re.compile(rb"[\x00-\x1f\x7f%]|\xc2[\x80-\x9f]|\xe2\x80[\xa8-\xae]|\xe2\x81[\xa6-\xa9]")


@runtime_checkable
class Source(Protocol):
    """Where images come from: any object with these four methods. `read` is called from several threads.

    A source may also have: `classes` (list[str], the class names in the order of their numbers),
    `native_size` ((H, W) of every image), `fingerprint` (hex; changes when the data change), `skipped` (list
    of {"key", "reason"} of omitted entries).
    """

    def __len__(self) -> int: ...

    def key(self, i: int) -> str:
        """A printable name, unique in the source, the same on every machine."""

    def label(self, i: int) -> str | None:
        """The class name, or None if there is none."""

    def read(self, i: int) -> bytes | np.ndarray:
        """The bytes of an image file, or its pixels (H, W, 3) uint8. Raises OSError or BadImage."""


class Keys:
    """Names as one blob and offsets: 8 bytes per name beside its text, and no objects for workers to copy."""

    def __init__(self, names: Iterable[bytes]):
        names = list(names)
        self.blob = b"".join(names)
        self.offsets = np.zeros(len(names) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, names), np.int64, len(names)), out=self.offsets[1:])

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def raw(self, i: int) -> bytes:
        """The name as bytes, as in the file system or the archive."""
        if not 0 <= i < len(self):
            raise IndexError(f"{i} of {len(self)} names")
        return self.blob[self.offsets[i] : self.offsets[i + 1]]

    def __getitem__(self, i: int) -> str:
        return key_of(self.raw(i))

    def raws(self) -> Iterator[bytes]:
        """All names in order, as `raw` returns them."""
        offsets = self.offsets.tolist()
        return (self.blob[start:stop] for start, stop in zip(offsets, offsets[1:], strict=False))

    @property
    def nbytes(self) -> int:
        return len(self.blob) + self.offsets.nbytes


class KeyView(Sequence[str]):
    """The keys of chosen rows of a source; nothing is stored."""

    def __init__(self, source: Source, rows: np.ndarray):
        self.source, self.rows = source, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self.source.key(row) for row in self.rows[i].tolist()]
        return self.source.key(int(self.rows[i]))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)


def key_of(name: bytes) -> str:
    """`name` as printable text: bytes that are not UTF-8, control characters and % become %XX.

    `urllib.parse.unquote_to_bytes` gives the same bytes back.
    """
    try:
        if not UNPRINTABLE.search(name):
            return name.decode()
    except UnicodeDecodeError:
        pass
    name = UNPRINTABLE.sub(lambda match: b"".join(b"%%%02X" % byte for byte in match[0]), name)
    text = name.decode("utf-8", "surrogateescape")  # a byte that is not UTF-8 becomes U+DC80..U+DCFF
    return re.sub("[\udc80-\udcff]", lambda match: f"%{ord(match[0]) - 0xDC00:02X}", text)


def is_image_name(name: bytes) -> bool:
    """True for a file name with an image's extension that is not hidden (`.x.jpg`, macOS's `._x.jpg`)."""
    return not name.startswith(b".") and name.lower().endswith(IMAGE_ENDINGS)


def unread_reason(name: bytes) -> str | None:
    """Why an image file of this name is left out: a format without a reader. None for all others, and for hidden files."""
    if name.startswith(b"."):
        return None
    return UNREAD.get(os.path.splitext(name.lower())[1])


class Files:
    """A source of named image files: a folder, a zip or a tar archive, which differ only in `read`.

    `sizes`: bytes of every file (of a zip also its checksums). blocks: the parts of a file's content that the fingerprint
    includes, see `blocks_of`; None for a zip.
    """

    classes = None
    native_size = None

    def __init__(
        self,
        keys: Keys,
        sizes: np.ndarray,
        read: Callable[[int], bytes],
        label_level: int | None,
        skipped: list[dict],
        blocks: Callable[[int], bytes] | None = None,
    ):
        self._blocks = blocks
        self.keys, self.sizes, self.label_level, self.skipped = keys, sizes, label_level, skipped
        self._read = read

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, i: int) -> str:
        return self.keys[i]

    def label(self, i: int) -> str | None:
        if self.label_level is None:
            return None
        return key_of(self.keys.raw(i).split(b"/")[self.label_level])

    def read(self, i: int) -> bytes:
        return self._read(i)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of names, sizes and contents: of all files up to SAMPLED of them, else of SAMPLED evenly spaced ones.

        Times and places do not matter: a copy on another machine has the same one. Of a file, three blocks of 4 KiB are
        read (start, middle, end; a file of up to 12 KiB whole). 20,000 files of 1.5 to 4.5 KB in the page cache cost 0.11
        CPU-seconds, of which names and sizes 0.0004; 2,000 of 120 KB cost 0.05.
        """
        contents = () if self._blocks is None else map(self._blocks, sampled(len(self)))
        return digest(self.keys.blob, self.keys.offsets, self.sizes, *contents)


def sampled(count: int) -> list[int]:
    """All of `count` indices, or SAMPLED evenly spaced ones with the first and the last."""
    return np.linspace(0, count - 1, min(count, SAMPLED)).astype(np.int64).tolist()


def blocks_of(descriptor: int, start: int, size: int, count: int = FILE_BLOCKS) -> bytes:
    """`count` evenly spaced blocks of the `size` bytes at `start` of an open file, all of them if they are few; b"" where
    they cannot be read."""
    try:
        if size <= count * BLOCK:
            return os.pread(descriptor, size, start)
        places = [start + (size - BLOCK) * k // (count - 1) for k in range(count)]
        return b"".join(os.pread(descriptor, BLOCK, place) for place in places)
    except OSError:
        return b""


def file_blocks(path: bytes | Path, size: int, count: int = FILE_BLOCKS) -> bytes:
    """`blocks_of` a file; b"" where it cannot be opened."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return b""
    try:
        return blocks_of(descriptor, 0, size, count)
    finally:
        os.close(descriptor)


def content_digest(source: Source) -> str:
    """A hash of the names and of every byte of all images; as long as reading them takes."""
    sha = hashlib.sha256()
    for i in range(len(source)):
        try:
            data = source.read(i)
        except (OSError, BadImage):
            data = b"unreadable"
        data = data if isinstance(data, bytes) else np.ascontiguousarray(data).tobytes()
        sha.update(f"{source.key(i)}\n{len(data)}\n".encode() + data)
    return sha.hexdigest()


def digest(*parts: bytes | str | np.ndarray) -> str:
    """sha256 (hex) over the parts in order."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            part = np.ascontiguousarray(part).data
        sha.update(part.encode() if isinstance(part, str) else part)
    return sha.hexdigest()
