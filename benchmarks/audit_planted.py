"""Copies to plant, squares of photographs that do not overlap, and the hashes of imagededup."""

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diptych.base.random_at import random_at
from diptych.data.photographs import SMALLEST, bands, photographs

PLAIN = 8.0  # standard deviation of the values, of 255, below which a square has next to nothing in it
KINDS = ("exact", "resized", "encoded again", "mirrored", "cropped")


def plant(pixels: Tensor, seed: int) -> Tensor:
    """A copy of each image (n, 3, 32, 32) uint8, the kinds in turn."""
    rng, images = np.random.default_rng(seed), pixels.permute(0, 2, 3, 1).contiguous().numpy()
    copies = [copy_of(image, KINDS[i % len(KINDS)], rng) for i, image in enumerate(images)]
    return torch.from_numpy(np.stack(copies)).permute(0, 3, 1, 2).contiguous()


def copy_of(pixels: np.ndarray, kind: str, rng: np.random.Generator) -> np.ndarray:
    """A copy of an image (s, s, 3) uint8, of the same size: resized to 0.5 to 0.8 of its side and back, as JPEG of quality 30 to
    80, mirrored, or a crop of 0.75 to 0.95 of its side enlarged again."""
    image, size = Image.fromarray(pixels), len(pixels)
    if kind == "resized":
        small = int(size * rng.uniform(0.5, 0.8))
        image = image.resize((small, small), Image.Resampling.BICUBIC).resize((size, size), Image.Resampling.BILINEAR)
    elif kind == "encoded again":
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(rng.integers(30, 81)))
        image = Image.open(file).convert("RGB")
    elif kind == "mirrored":
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    elif kind == "cropped":
        side = round(size * rng.uniform(0.75, 0.95))
        left, top = (int(at) for at in rng.integers(0, size - side + 1, 2))
        image = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BILINEAR)
    return np.array(image)


def apart_squares(tries: int = 200, size: int = 32) -> Tensor:
    """Squares of the demo's photographs, drawn as the demo draws them, of which no two overlap and none is
    plain: (n, 3, 32, 32) uint8."""
    squares = []
    for name, photo in photographs().items():
        taken: list[tuple[int, int, int, int]] = []
        parts = bands(photo)
        for draw in torch.rand(tries, 4, generator=random_at(0, "benchmark", "squares", name)).tolist():
            number = int(draw[0] * len(parts))
            band = parts[number]
            side = int(
                SMALLEST + draw[1] ** 3 * (min(band.shape[:2]) - SMALLEST)
            )  # mostly small ones: more of them fit
            top, left = int(draw[2] * (band.shape[0] - side + 1)), int(draw[3] * (band.shape[1] - side + 1))
            if all(
                n != number or top >= y + s or y >= top + side or left >= x + s or x >= left + side
                for n, y, x, s in taken
            ):
                taken.append((number, top, left, side))
                cut = Image.fromarray(band[top : top + side, left : left + side])
                if np.asarray(cut).std((0, 1)).max() < PLAIN:
                    continue
                squares.append(np.asarray(cut.resize((size, size), Image.Resampling.BILINEAR)))
    return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).contiguous()


def hash_pairs(pixels: Tensor, method: str, most_bits: tuple[int, ...]) -> dict[int, set[tuple[int, int]]]:
    """Pairs whose hashes of imagededup differ in at most so many bits; 10 is the default of its `find_duplicates`."""
    from imagededup import methods

    hasher = getattr(methods, method)()
    pictures = pixels.permute(0, 2, 3, 1).contiguous().numpy()
    hashes = np.array([int(hasher.encode_image(image_array=picture), 16) for picture in pictures], np.uint64)
    pairs: dict[int, set[tuple[int, int]]] = {bits: set() for bits in most_bits}
    for row in range(len(hashes) - 1):
        distance = np.bitwise_count(hashes[row + 1 :] ^ hashes[row])
        for bits in most_bits:
            pairs[bits].update((row, row + 1 + int(k)) for k in np.flatnonzero(distance <= bits))
    return pairs
