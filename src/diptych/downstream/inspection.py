"""What can be seen without an encoder: files that cannot be read, equal files and pixels, blank images, sizes."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diptych.base.errors import DataError
from diptych.base.threads import in_order
from diptych.data.decode import fit_square
from diptych.data.images import Images
from diptych.data.squares import Squares
from diptych.data.untrusted import BadImage
from diptych.downstream.copies import THUMBNAIL

IMAGES_PER_TASK = 64
BLANK = 2  # difference of the lightest and darkest value of a channel, of 255, up to which an image is of one colour
FACTORS = 4.0, 2.0  # of area and of proportions, from which a size is odd


@dataclass(frozen=True)
class Inspection:
    """n readable images of a set.

    rows: their numbers in the set (n,). digests: sha256 of width, height and the decoded pixels (upright, RGB). files: sha256
    of the files as they are, None for pixels of an array. sizes: (n, 2), width and height in pixels. contrast: (n,), the
    largest difference of two values of one channel. thumbnails: (n, 3, 32, 32) uint8. unreadable: {"key", "reason"}.
    """

    rows: np.ndarray
    digests: list[bytes]
    files: list[bytes | None]
    sizes: np.ndarray
    contrast: np.ndarray
    thumbnails: Tensor
    unreadable: list[dict]


def inspect(images: Images, progress: Callable[[int, int], object] = lambda done, total: None) -> Inspection:
    """Read every image of a set once, as it lies in its source. Raises DataError if none can be read."""
    rows = np.arange(len(images))
    chunks = [rows[start : start + IMAGES_PER_TASK] for start in range(0, len(rows), IMAGES_PER_TASK)]
    good, seen, unreadable = [], [], [dict(entry) for entry in images.left_out]
    for chunk, results in zip(chunks, in_order(lambda part: [look(images, row) for row in part], chunks), strict=True):
        for row, result in zip(chunk.tolist(), results, strict=True):
            if isinstance(result, str):
                unreadable.append({"key": images.keys[row], "reason": result})
            else:
                good.append(row)
                seen.append(result)
        progress(int(chunk[-1]) + 1, len(rows))
    if not seen:
        first = f", first: {unreadable[0]['key']} ({unreadable[0]['reason']})" if unreadable else ""
        raise DataError(f"no image can be read{first}; `diptych doctor SOURCE` lists the reasons")
    digests, files, sizes, contrast, thumbnails = zip(*seen, strict=True)
    pictures = torch.from_numpy(np.stack(thumbnails)).permute(0, 3, 1, 2).contiguous()
    return Inspection(
        np.array(good), list(digests), list(files), np.array(sizes), np.array(contrast), pictures, unreadable
    )


def look(images: Images, row: int) -> tuple | str:
    """Digests, size, contrast and thumbnail of an image, or why it cannot be read."""
    try:
        data, image = open_entire(images.squares, int(images.rows[row]))
    except BadImage as error:
        return error.reason
    pixels = np.asarray(image)
    digest = hashlib.sha256(f"{image.width} x {image.height}\n".encode() + pixels.tobytes()).digest()
    file = hashlib.sha256(data).digest() if isinstance(data, bytes) else None
    values = pixels.reshape(-1, 3)
    contrast = int((values.max(0).astype(int) - values.min(0)).max())
    return digest, file, image.size, contrast, fit_square(image, THUMBNAIL, images.squares.fit)


def open_entire(squares: Squares, row: int) -> tuple[bytes | np.ndarray, Image.Image]:
    """What the source returns for an image, and the image, RGB, at its full size. Raises BadImage."""
    data = squares.read(row)
    return data, squares.opened(data).convert("RGB")


def odd_sizes(sizes: np.ndarray) -> list[tuple[int, float]]:
    """Rows of sizes (n, 2) that are unlike the others, and the factor by which they are, the largest first.

    Their area differs by a factor of 4 or more from the median of all, or their proportions by 2 or more.
    """
    logs = np.log(sizes.astype(np.float64))
    area, proportions = logs.sum(1), logs[:, 0] - logs[:, 1]
    factors = [np.exp(np.abs(values - np.median(values))) for values in (area, proportions)]
    odd = np.zeros(len(sizes))
    for factor, least in zip(factors, FACTORS, strict=True):
        odd = np.where(factor >= least, np.maximum(odd, factor), odd)
    return [(int(row), float(odd[row])) for row in np.argsort(-odd, kind="stable") if odd[row] > 0]
