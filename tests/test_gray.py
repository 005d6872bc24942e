"""16-bit gray images that use a small part of their range are not shown black; the range is recorded with the run."""

import numpy as np
import pytest
from PIL import Image

import diptych
from diptych.base.errors import RecipeError
from diptych.commands.opening import image_options
from diptych.data.images import images
from diptych.runs.run import Run
from diptych.training.quick import quick


def folder(tmp_path, low: int, high: int, count: int = 12):
    """Images of 24 pixels whose values rise from left to right, from `low` to `high`."""
    place = tmp_path / f"{low}_{high}"
    place.mkdir()
    ramp = np.linspace(low, high, 24).round().astype(np.uint16)
    for number in range(count):
        Image.fromarray(np.roll(np.tile(ramp, (24, 1)), number, axis=1)).save(place / f"{number:03d}.png")
    return place


@pytest.mark.parametrize("low, high, expected", [
    (0, 1500, (0, 1500)),  # 12 bits, used in part
    (1000, 1600, (1000, 1600)),
    (0, 65535, (0, 65535)),
    (0, 40000, (0, 65535)),  # more than a quarter: the full range, as ever
    (700, 700, (0, 65535)),  # one value: there is no range
])  # fmt: skip
def test_the_range_is_that_of_the_images(tmp_path, low, high, expected):
    photos = images(folder(tmp_path, low, high), size=24)
    assert photos.squares.gray_range == pytest.approx(expected, abs=30)
    shown = photos.load(0).float()
    wanted = [255 * (value - expected[0]) / (expected[1] - expected[0]) for value in (low, high)]
    assert [shown.min(), shown.max()] == pytest.approx(wanted, abs=6)


def test_it_can_be_given(tmp_path):
    photos = images(folder(tmp_path, 0, 1500), size=24, gray_range=(500, 1000))
    shown = photos.load(0)[0, 0].tolist()
    assert shown[:7] == [0] * 7 and shown[-7:] == [255] * 7 and 100 < shown[12] < 160


@pytest.mark.parametrize("given", [(5, 5), (9, 3), (-1, 5), (0, 70000), (1, 2, 3), "all", (float("nan"), 3)])
def test_what_is_no_range(tmp_path, given):
    with pytest.raises(RecipeError, match="gray_range"):
        images(folder(tmp_path, 0, 1500), size=24, gray_range=given)


def test_images_of_8_bits_are_as_they_were(tmp_path):
    (tmp_path / "dark").mkdir()
    Image.fromarray(np.full((24, 24), 3, np.uint8)).save(tmp_path / "dark" / "a.png")
    photos = images(tmp_path / "dark", size=24)
    assert photos.squares.gray_range == (0, 65535) and (photos.load(0) == 3).all()


def test_a_run_keeps_it_for_later_images(tmp_path):
    """Brighter images of the same camera get the range of the run, not their own."""
    photos = images(folder(tmp_path, 0, 1500, count=220), size=24)
    record = {"images": {"size": 24, "gray_range": list(photos.squares.gray_range)}}
    quick(photos, out=tmp_path / "run", size=24, entries=8, record=record, show=False)
    later = images(folder(tmp_path, 0, 3000), **image_options(diptych.load(tmp_path / "run")))
    recorded = tuple(Run(tmp_path / "run").section("images")["gray_range"])
    assert later.squares.gray_range == photos.squares.gray_range == recorded
