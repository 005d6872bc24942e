"""A folder of images, of any depth: scanned once, in an order that does not depend on the file system."""

import os
import stat
import time
import warnings
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from diptych.data.labels import label_level
from diptych.data.source import MAX_BYTES, Files, Keys, file_blocks, is_image_name, key_of, unread_reason
from diptych.data.untrusted import NO_FILE, BadImage, open_regular

OUTSIDE = "a link out of the folder (follow_symlinks=True reads it)"


def open_folder(path: str | Path, labels: str = "auto", follow_symlinks: bool = False) -> Files:
    """The images below `path`, in order of the bytes of their names; empty if there are none.

    Hidden files and folders are ignored. Every file counts once: a link to a file inside the folder is not
    followed, a link out of it only with `follow_symlinks`; broken and unfollowed links are listed in `.skipped`, as are
    images of a format without a reader, pipes and devices.
    A class folder without an image is not a class; a warning names it.
    """
    root = os.fsencode(path)
    scan = _Scan(root, follow_symlinks)
    files = sorted(scan.images())
    keys = Keys(name for name, _ in files)
    sizes = np.fromiter((size for _, size in files), np.int64, len(files))
    level = label_level(keys, labels) if files else None
    if level is not None:
        used = {name.split(b"/", 1)[0] for name in keys.raws()}
        if empty := sorted(scan.top_folders - used):
            shown = ", ".join(map(key_of, empty[:5]))
            warnings.warn(f"{len(empty)} class folder(s) without an image, not a class: {shown}", stacklevel=3)

    def read(i: int) -> bytes:
        with open(os.path.join(root, keys.raw(i)), "rb", opener=open_regular) as file:
            if os.fstat(file.fileno()).st_size > MAX_BYTES:
                raise BadImage(f"more than {MAX_BYTES >> 20} MiB")
            return file.read()

    def blocks(i: int) -> bytes:
        return file_blocks(os.path.join(root, keys.raw(i)), int(sizes[i]))

    return Files(keys, sizes, read, level, scan.skipped, blocks)


class _Scan:
    """One walk below `root`: (name relative to root, size in bytes) of every image file, without repetition."""

    def __init__(self, root: bytes, follow: bool):
        self.root, self.follow = root, follow
        self.inside = os.path.join(os.path.realpath(root), b"")
        self.skipped: list[dict] = []
        self.top_folders: set[bytes] = set()
        status = os.stat(root)
        self.seen = {(status.st_dev, status.st_ino)}  # of root, and of everything reached through links

    def images(self) -> Iterator[tuple[bytes, int]]:
        waiting = [(b"", False)]
        while waiting:
            folder, linked = waiting.pop()
            try:
                with os.scandir(os.path.join(self.root, folder)) as entries:
                    entries = sorted(entries, key=lambda entry: entry.name)
            except OSError as error:
                self._skip(folder, error.strerror or str(error))
                continue
            folders = []
            for entry in entries:
                if entry.name.startswith(b"."):
                    continue
                name = folder + b"/" + entry.name if folder else entry.name
                try:
                    yield from self._entry(entry, name, linked, folders)
                except OSError as error:
                    self._skip(name, error.strerror or str(error))
            waiting.extend(reversed(folders))

    def _entry(self, entry: os.DirEntry, name: bytes, linked: bool, folders: list) -> Iterator[tuple[bytes, int]]:
        if entry.is_symlink():
            target = os.path.realpath(entry.path)
            if not os.path.exists(target):
                return self._skip(name, "a broken link")
            if not (os.path.isdir(target) or is_image_name(entry.name) or unread_reason(entry.name)):
                return None
            if os.path.join(target, b"").startswith(self.inside):
                if self._listed(target):
                    return None
            elif not self.follow:
                return self._skip(name, OUTSIDE)
            linked = True
        if entry.is_dir():
            if linked and self._again(entry.stat()):
                return None
            if b"/" not in name:
                self.top_folders.add(name)
            folders.append((name, linked))
        elif is_image_name(entry.name):
            status = entry.stat()
            if not stat.S_ISREG(status.st_mode):
                self._skip(name, NO_FILE)
            elif not (linked and self._again(status)):
                yield name, status.st_size
        elif reason := unread_reason(entry.name):
            self._skip(name, reason)

    def _listed(self, target: bytes) -> bool:
        """Whether the scan reaches this path inside root by its own name; not below a hidden folder (git-annex)."""
        name = os.path.basename(target)
        hidden = any(part.startswith(b".") for part in target[len(self.inside) :].split(b"/"))
        return not hidden and (os.path.isdir(target) or is_image_name(name) or unread_reason(name) is not None)

    def _again(self, status: os.stat_result) -> bool:
        identity = (status.st_dev, status.st_ino)
        again = identity in self.seen
        self.seen.add(identity)
        return again

    def _skip(self, name: bytes, reason: str) -> None:
        self.skipped.append({"key": key_of(name), "reason": reason})


def nearest_with_images(path: Path, seconds: float = 0.3) -> Path | None:
    """A folder with image files below the parent of `path`, else below its grandparent; None after `seconds`."""
    stop = time.monotonic() + seconds
    start = Path(os.path.abspath(path))
    for above in [folder for folder in list(start.parents)[:2] if folder != folder.parent]:
        waiting = deque([above])
        while waiting:
            here = waiting.popleft()
            try:
                with os.scandir(here) as entries:
                    for entry in entries:
                        if time.monotonic() > stop:
                            return None
                        if entry.is_file(follow_symlinks=False) and is_image_name(os.fsencode(entry.name)):
                            return here
                        if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                            waiting.append(here / entry.name)
            except OSError:
                continue
    return None
