"""A set of images at a glance: sizes, files that cannot be read and exact copies, of as many images as a few seconds allow."""

import time
from typing import NamedTuple

import numpy as np

from diptych.data.decode import MAX_PIXELS, header_size
from diptych.data.images import Images
from diptych.data.source import digest
from diptych.data.untrusted import BadImage

MOST, SECONDS = 5000, 3.0


class Glance(NamedTuple):
    """sizes: (n, 2) width and height of the images that were looked at; bad: how many of them have no readable header;
    copies: how many have the bytes (arrays: the pixels) of an earlier one; images: of the set."""

    images: int
    sizes: np.ndarray
    bad: int
    copies: int

    @property
    def looked_at(self) -> int:
        return len(self.sizes) + self.bad

    def __str__(self) -> str:
        part = "" if self.looked_at == self.images else f" ({self.looked_at:,} of them looked at)"
        if not len(self.sizes):
            return f"{self.images:,} images{part}, none with a readable header"
        middle = np.median(self.sizes, axis=0).astype(int)
        low, high = (self.sizes[order] for order in (self.sizes.prod(1).argmin(), self.sizes.prod(1).argmax()))
        size = f"{middle[0]} x {middle[1]} pixels"
        if (low != high).any():
            size = f"{low[0]} x {low[1]} to {high[0]} x {high[1]} pixels, median {size}"
        text = f"{self.images:,} images{part}, {size}; {self.copies:,} exact copies of another"
        return text + (f"; {self.bad:,} cannot be read" if self.bad else "")

    @property
    def short_side(self) -> int:
        """The median of the shorter sides, 0 without a readable image."""
        return int(np.median(self.sizes.min(1))) if len(self.sizes) else 0


def glance(images: Images, seconds: float = SECONDS) -> Glance:
    """Look at up to MOST images, evenly spaced, for about `seconds`. Nothing is decoded."""
    count, began = len(images), time.monotonic()
    order = np.linspace(0, count - 1, min(count, MOST)).astype(int)
    sizes, seen, bad, copies = [], set(), 0, 0
    for row in np.random.default_rng(0).permutation(order).tolist():  # so that a stop leaves no part out
        try:
            data = images.squares.read(int(images.rows[row]))
            if isinstance(data, np.ndarray):
                sizes.append((data.shape[1], data.shape[0]))
            else:
                sizes.append(header_size(data, MAX_PIXELS))
        except BadImage:
            bad += 1
            continue
        mark = digest(data)
        copies += mark in seen
        seen.add(mark)
        if time.monotonic() - began > seconds:
            break
    return Glance(count, np.array(sizes).reshape(-1, 2), bad, copies)
