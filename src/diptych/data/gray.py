"""The range of gray values in a source of 16-bit images: many use a small part of it, and would be shown nearly black."""

from collections.abc import Iterator, Sequence
from typing import Annotated

import numpy as np
from PIL import Image

from diptych.base.errors import RecipeError
from diptych.base.ranges import Range
from diptych.data.decode import has_16_bits, lazily_opened
from diptych.data.source import Source
from diptych.data.untrusted import BadImage

Gray = Annotated[float, Range(0, 65535)]
FULL = (0.0, 65535.0)
FIRST, SAMPLED = 8, 64  # images whose headers are read; whose values are, where one of those has 16 bits
TAILS = 0.1, 99.9  # percentiles of each image that become black and white at most
SMALL = 0.25  # share of the full range below which the images' own range is taken


def gray_range_of(source: Source, max_pixels: float) -> tuple[float, float]:
    """The gray values (low, high) that become 0 and 255: FULL, or those that the images use where that is less than SMALL of it.

    They are looked up in up to SAMPLED images, evenly spread. Only images of 16 bits count; without any, the first FIRST
    headers are all that is read.
    """
    count = len(source)
    if not any(has_16_bits(image) for image in opened(source, spread(count, FIRST), max_pixels)):
        return FULL
    ends = []
    for image in opened(source, spread(count, SAMPLED), max_pixels):
        if has_16_bits(image):
            values = np.asarray(image)
            ends += np.percentile(values, TAILS).tolist()
    if not ends or max(ends) - min(ends) >= SMALL * FULL[1] or max(ends) <= min(ends):
        return FULL
    return float(min(ends)), float(max(ends))


def spread(count: int, most: int) -> list[int]:
    """Up to `most` rows from first to last."""
    return sorted({k * (count - 1) // max(1, most - 1) for k in range(most)})


def opened(source: Source, rows: list[int], max_pixels: float) -> Iterator[Image.Image]:
    """The images of rows that can be opened; their pixels are not decoded yet."""
    for row in rows:
        try:
            data = source.read(row)
            if not isinstance(data, np.ndarray):
                yield lazily_opened(data, max_pixels)
        except (BadImage, OSError):  # told when the image itself is read
            continue


def gray_ends(given: str | Sequence[float]) -> tuple[float, float] | None:
    """Two gray values, low and high; None for "auto". Raises RecipeError for anything else."""
    if given == "auto":
        return None
    if isinstance(given, str) or len(given) != 2 or not given[0] < given[1]:
        raise RecipeError(f"gray_range is {given!r}; it must be auto or two values, [low, high], the first one smaller")
    return float(given[0]), float(given[1])
