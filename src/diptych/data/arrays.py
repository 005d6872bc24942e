"""Images that are already pixels: arrays in memory, .npy and .npz files."""

import zipfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from diptych.base.errors import DataError
from diptych.data.labels import no_folders, numbered
from diptych.data.source import MAX_BYTES, MAX_UNPACKING_RATIO, digest, sampled
from diptych.data.untrusted import refusing

IMAGE_NAMES = ("images", "image", "x", "x_train", "train_images", "data")
WHOLE_BYTES = 2**30  # of an array whose fingerprint includes all pixels
LABEL_NAMES = ("labels", "label", "y", "y_train", "train_labels", "targets")


class Pixels:
    """A source of uint8 pixels: (N, H, W, 3), (N, 3, H, W), or gray (N, H, W), (N, H, W, 1), (N, 1, H, W).

    `labels`: (N,) class numbers, used unchanged (-1 is none), or class names. `classes`: the names of the
    numbers. `parts`: (name, rows) of the files that were concatenated; the key of a row is then `name:row
    in that file`. Raises DataError for any other shape or dtype and for labels that do not fit.
    """

    def __init__(
        self,
        pixels: np.ndarray,
        labels: np.ndarray | Sequence | None = None,
        classes: list[str] | None = None,
        parts: Sequence[tuple[str, int]] = (),
    ):
        where = parts[0][0] if parts else "the array"
        if pixels.dtype != np.uint8:
            raise DataError(f"{where}: images must be uint8 (0..255), these are {pixels.dtype}")
        self.pixels, self.channels_last = _with_channels(pixels, where)
        self.native_size = self.pixels.shape[1:3] if self.channels_last else self.pixels.shape[2:4]
        self.names = [name for name, _ in parts]
        self.starts = np.cumsum([0, *(rows for _, rows in parts)])
        self.numbers, self.classes = None, None
        if labels is not None:
            self.numbers, self.classes = numbered(labels, len(pixels), where, classes)

    def __len__(self) -> int:
        return len(self.pixels)

    def key(self, i: int) -> str:
        if not self.names:
            return str(i)
        part = int(np.searchsorted(self.starts, i, side="right")) - 1
        return f"{self.names[part]}:{i - self.starts[part]}"

    def label(self, i: int) -> str | None:
        if self.numbers is None or self.classes is None or self.numbers[i] < 0:
            return None
        return self.classes[self.numbers[i]]

    def read(self, i: int) -> np.ndarray:
        """(H, W, 3) uint8, a view of the array."""
        image = self.pixels[i] if self.channels_last else self.pixels[i].transpose(1, 2, 0)
        return np.broadcast_to(image, (*self.native_size, 3))

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all pixels, up to WHOLE_BYTES of them; of larger arrays, of SAMPLED evenly spaced rows."""
        if self.pixels.nbytes <= WHOLE_BYTES:
            return digest(repr(self.pixels.shape), self.pixels)
        return digest(repr(self.pixels.shape), *(self.pixels[row] for row in sampled(len(self))))


def _with_channels(pixels: np.ndarray, where: str) -> tuple[np.ndarray, bool]:
    """(pixels with 1 or 3 channels, whether the channels come last)."""
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    if pixels.ndim == 4 and min(pixels.shape[1:]) > 0:
        for channels in (3, 1):
            if pixels.shape[3] == channels:
                return pixels, True
            if pixels.shape[1] == channels:
                return pixels, False
    raise DataError(f"{where}: images must be (N, H, W, 3), (N, 3, H, W) or (N, H, W), these are {pixels.shape}")


def open_arrays(path: str | Path, labels: str = "auto") -> Pixels:
    """The uint8 images of a .npy file (memory-mapped) or a .npz file (read into memory).

    In a .npz images are called images, x, x_train ... (or are its only array of 3 or 4 dimensions) and the
    labels are called labels, y, y_train ... Python objects are refused. Raises DataError.
    """
    path = Path(path)
    no_folders(str(path), labels)
    with refusing(f"{path} is not a complete array file, or holds Python objects"):
        if path.suffix.lower() == ".npy":
            images, numbers = np.load(path, mmap_mode="r", allow_pickle=False), None
        else:
            images, numbers = _read_npz(path)
        return Pixels(images, numbers if labels == "auto" else None, parts=[(path.name, len(images))])


def _read_npz(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.file_size > max(MAX_BYTES, MAX_UNPACKING_RATIO * member.compress_size):
                raise DataError(f"{path}: {member.filename} unpacks to more than {MAX_UNPACKING_RATIO} times its size")
    with np.load(path, allow_pickle=False) as arrays:
        name = next((name for name in IMAGE_NAMES if name in arrays), None)
        if name is None:
            candidates = [name for name in arrays if arrays[name].ndim in (3, 4)]
            if len(candidates) != 1:
                raise DataError(f"{path} holds {', '.join(arrays)}: call the images {' or '.join(IMAGE_NAMES)}")
            name = candidates[0]
        label = next((label for label in LABEL_NAMES if label in arrays), None)
        return arrays[name], None if label is None else arrays[label]
