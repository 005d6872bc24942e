"""Where left and right matter, a flip makes an unlike image: told from images alone."""

import string
import time

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from shared import shared

from diptych.data.images import images
from diptych.data.photographs import demo_source
from diptych.views.flips import flips_look_alike


def letters(count: int, seed: int) -> torch.Tensor:
    """White letters on black, (n, 3, 48, 48): of varied size, place and angle, the symmetric ones included."""
    rng, squares = np.random.default_rng(seed), []
    for _ in range(count):
        square = Image.new("L", (48, 48))
        font = ImageFont.load_default(size=int(rng.integers(24, 36)))
        place = tuple(24 + int(v) for v in rng.integers(-4, 5, 2))
        letter = string.ascii_letters[rng.integers(52)]
        ImageDraw.Draw(square).text(place, letter, fill=255, font=font, anchor="mm")
        squares.append(np.asarray(square.rotate(float(rng.uniform(-15, 15)))))
    return torch.from_numpy(np.stack(squares))[:, None].expand(-1, 3, -1, -1)


def digits() -> torch.Tensor:
    pixels = pytest.importorskip("sklearn.datasets").load_digits().images
    return torch.tensor(pixels * 15).byte()[:, None].expand(-1, 3, -1, -1)


def pixels_of(source, count: int, size: int = 32) -> torch.Tensor:
    photos = images(source, size=size)
    chosen = torch.randperm(len(photos), generator=torch.Generator().manual_seed(0))[:count]
    return next(photos.read(chosen, count))[1]


@pytest.mark.parametrize("seed", [0, 1])
def test_letters_and_digits_have_unlike_mirror_images(seed):
    for signs in (letters(600, seed), digits()):
        flips = flips_look_alike(signs, seed)
        assert not flips.alike and flips.effect > 0.3 and flips.farther > 0.55
        both_ways = torch.cat([signs[::2], signs[1::2].flip(-1)])
        assert flips_look_alike(both_ways, seed).alike


@pytest.mark.parametrize("seed", [0, 1])
def test_photographs_have_mirror_images_alike(seed):
    assert flips_look_alike(pixels_of(demo_source("train", seed), 2000), seed).alike


def test_cifar10_has_mirror_images_alike():
    flips = flips_look_alike(pixels_of(shared("data/cifar10-lossless-subset-train.parquet"), 1000))
    assert flips.alike and abs(flips.effect) < 0.15


def test_a_comparison_of_1000_images_takes_less_than_2_seconds_and_keeps_random_numbers():
    photos, state = torch.randint(0, 256, (3000, 3, 64, 64), dtype=torch.uint8), torch.get_rng_state()
    start = time.process_time()
    flips = flips_look_alike(photos)
    assert time.process_time() - start < 2 and flips.images == 1000 and flips.alike
    assert torch.equal(torch.get_rng_state(), state) and flips_look_alike(photos) == flips


@pytest.mark.parametrize("count", [0, 1, 6, 7])
def test_few_and_plain_images_are_no_reason_to_worry(count):
    flips = flips_look_alike(torch.full((count, 3, 20, 24), 7, dtype=torch.uint8))
    assert flips.alike and flips.effect == 0 and flips.images == count
