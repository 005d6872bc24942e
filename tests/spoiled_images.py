"""A folder of images some of which cannot be read."""

from pathlib import Path

import numpy as np
from PIL import Image


def broken_images(folder: Path, good: int, bad: int) -> Path:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(good):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / f"good-{number}.png")
    for number in range(bad):
        (folder / f"bad-{number}.png").write_bytes(b"\x89PNG\r\n\x1a\n, cut short")
    return folder
