"""The demo's images: photographs that ship inside scikit-image and scikit-learn, cut into small squares.

The label is the photograph. Every photograph is cut into five bands: training squares come from the first, third and
fifth, test squares from the second and fourth, with a gap between them, so that no test pixel is a training pixel.
"""

import importlib.util
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from diptych.base.errors import DataError
from diptych.base.random_at import random_at
from diptych.data.arrays import Pixels
from diptych.data.decode import decode

SKIMAGE = ("astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "coffee.png", "coins.png", "grass.png",
           "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "page.png", "retina.jpg",
           "rocket.jpg")  # fmt: skip
SKLEARN = ("china.jpg", "flower.jpg")
BANDS, GAP = 5, 4  # bands along the longer side; pixels left out between two of them
SMALLEST = 24  # pixels: the side of the smallest square, before it is resized to 32
TRAIN, TEST = 300, 100  # squares per photograph


def photographs() -> dict[str, np.ndarray]:
    """Name to (H, W, 3) uint8. Raises DataError when the demo's extra is not installed."""
    photos = {}
    for package, folder, files in (("skimage", "data", SKIMAGE), ("sklearn", "datasets/images", SKLEARN)):
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise DataError(
                'the demo needs the photographs of scikit-image and scikit-learn: pip install "diptych[demo]"'
            )
        for file in files:
            path = Path(spec.origin).parent / folder / file
            if path.is_file():
                photos[path.stem] = decode(path.read_bytes())
    if len(photos) < 12:
        raise DataError(
            f"only {len(photos)} of the demo's photographs are installed: reinstall scikit-image and scikit-learn"
        )
    return photos


def demo_source(split: str = "train", seed: int = 0, size: int = 32) -> Pixels:
    """Squares of `size` pixels, of random position and scale, labelled by their photograph; "train" or "test"."""
    count = TRAIN if split == "train" else TEST
    squares, labels = [], []
    for name, photo in photographs().items():
        rng = random_at(seed, "demo", split, name)
        photo_bands = bands(photo)[0 if split == "train" else 1 :: 2]
        for draw in torch.rand(count, 4, generator=rng).tolist():
            squares.append(square(photo_bands, draw, size))
            labels.append(name)
    return Pixels(np.stack(squares), labels)


def bands(photo: np.ndarray) -> list[np.ndarray]:
    """The bands of a photograph along its longer side, GAP pixels apart."""
    longer = 0 if photo.shape[0] >= photo.shape[1] else 1
    edges = np.linspace(0, photo.shape[longer], BANDS + 1).astype(int)
    return [
        photo.take(range(start + GAP // 2, end - GAP // 2), longer)
        for start, end in zip(edges, edges[1:], strict=False)
    ]


def square(photo_bands: list[np.ndarray], draw: list[float], size: int) -> np.ndarray:
    """One square; `draw`: four numbers in [0, 1) that choose the band, the size and the position."""
    band = photo_bands[int(draw[0] * len(photo_bands))]
    largest = min(band.shape[:2])
    side = int(SMALLEST + draw[1] * (largest - SMALLEST))
    top, left = int(draw[2] * (band.shape[0] - side + 1)), int(draw[3] * (band.shape[1] - side + 1))
    cut = Image.fromarray(band[top : top + side, left : left + side])
    return np.asarray(cut.resize((size, size), Image.Resampling.BOX if side > 2 * size else Image.Resampling.BILINEAR))
