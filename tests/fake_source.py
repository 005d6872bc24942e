"""Tiny pictures, sources of them, and what a source says about itself, for the tests of images."""

import io
import os
from pathlib import Path

import torch
from PIL import Image

from diptych.data.decode import decode
from diptych.data.open import Source


def picture(value: int, width: int = 4, height: int = 4) -> bytes:
    """A PNG of one colour, which tells `value` (below 65536)."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), (value % 256, value // 256, 0)).save(file, "PNG")
    return file.getvalue()


def write(root: Path, *names: str | bytes) -> Path:
    """One picture per name, the k-th of value k."""
    for k, name in enumerate(names):
        path = os.path.join(os.fsencode(root), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(picture(k))
    return root


def keys(source: Source) -> list[str]:
    return [source.key(i) for i in range(len(source))]


def labels(source: Source) -> list[str | None]:
    return [source.label(i) for i in range(len(source))]


def values(source: Source) -> list[int]:
    """The value of every picture, read backwards, as training reads in any order."""
    found = []
    for i in reversed(range(len(source))):
        data = source.read(i)
        red, green, _ = (decode(data) if isinstance(data, bytes) else data)[0, 0]
        found.append(int(red) + 256 * int(green))
    return found[::-1]


def values_of(pixels: torch.Tensor) -> list[int]:
    """The value of every picture of (n, 3, S, S)."""
    return (pixels[:, 0, 0, 0].int() + 256 * pixels[:, 1, 0, 0].int()).tolist()


class Fake:
    """A source of the four methods and no more: picture k has value k, those in `bad` are text."""

    def __init__(self, count: int, bad=(), label=None):
        self.count, self.bad, self._label = count, set(bad), label

    def __len__(self) -> int:
        return self.count

    def key(self, i: int) -> str:
        return f"fake/{i}"

    def label(self, i: int) -> str | None:
        return self._label(i) if self._label else None

    def read(self, i: int) -> bytes:
        return b"text" if i in self.bad else picture(i)
