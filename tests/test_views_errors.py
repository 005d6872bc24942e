"""What operations and views refuse: one line that names the operation and the argument."""

import pytest
import torch

from diptych.base.errors import DataError, RecipeError
from diptych.base.random_at import random_at
from diptych.views import OPERATIONS, GaussianBlur, HorizontalFlip, RandomCrop, View

IMPOSSIBLE = [
    ("random_resized_crop", {"size": 0}, "size"),
    ("random_resized_crop", {"size": 32.0}, "size"),
    ("random_resized_crop", {"size": 32, "scale": (1.0, 0.08)}, "scale"),
    ("random_resized_crop", {"size": 32, "scale": (0.0, 1.0)}, "scale"),
    ("random_resized_crop", {"size": 32, "scale": (0.5, 1.5)}, "scale"),
    ("random_resized_crop", {"size": 32, "scale": 0.5}, "scale"),
    ("random_resized_crop", {"size": 32, "ratio": (4 / 3, 3 / 4)}, "ratio"),
    ("random_resized_crop", {"size": 32, "ratio": (1.0, float("inf"))}, "ratio"),
    ("random_resized_crop", {"size": 32, "interpolation": "nearest"}, "interpolation"),
    ("random_crop", {"size": -1}, "size"),
    ("random_crop", {"size": 32, "padding": -1}, "padding"),
    ("resize", {"size": True}, "size"),
    ("resize", {"size": 32, "interpolation": "lanczos"}, "interpolation"),
    ("horizontal_flip", {"p": 1.5}, "p is"),
    ("vertical_flip", {"p": -0.1}, "p is"),
    ("color_jitter", {"p": "often"}, "p is"),
    ("color_jitter", {"brightness": -0.4}, "brightness"),
    ("color_jitter", {"contrast": float("nan")}, "contrast"),
    ("color_jitter", {"saturation": (0.5, 1.5)}, "saturation"),
    ("color_jitter", {"hue": 0.6}, "hue"),
    ("color_jitter", {"order": "reversed"}, "order"),
    ("grayscale", {"p": 2}, "p is"),
    ("gaussian_blur", {"kernel": 4}, "kernel"),
    ("gaussian_blur", {"kernel": 0}, "kernel"),
    ("gaussian_blur", {"sigma": (2.0, 0.1)}, "sigma"),
    ("gaussian_blur", {"sigma": (0.0, 2.0)}, "sigma"),
    ("gaussian_blur", {"p": float("nan")}, "p is"),
    ("solarize", {"threshold": 128}, "threshold"),
    ("solarize", {"p": None}, "p is"),
    ("normalize", {"mean": (0.5, 0.5), "std": (1, 1, 1)}, "mean"),
    ("normalize", {"mean": (0.5, 0.5, 0.5), "std": (1, 0, 1)}, "std"),
    ("normalize", {"mean": 0.5, "std": (1, 1, 1)}, "mean"),
]


@pytest.mark.parametrize(("name", "arguments", "word"), IMPOSSIBLE)
def test_impossible_arguments(name, arguments, word):
    with pytest.raises(RecipeError) as error:
        OPERATIONS[name](**arguments)
    message = str(error.value)
    assert message.startswith(f"{name}: ") and word in message and "\n" not in message


def test_every_operation_here_is_tested_for_impossible_arguments():
    plain = {name for name in OPERATIONS if not name.startswith("keras_")}  # those have tests of their own
    assert {name for name, _, _ in IMPOSSIBLE} == plain


def test_lists_of_a_recipe_are_as_good_as_tuples():
    crop = OPERATIONS["random_resized_crop"](size=32, scale=[0.2, 1], ratio=[1, 1])
    assert crop.scale == (0.2, 1.0) and crop.ratio == (1.0, 1.0)
    assert OPERATIONS["normalize"](mean=[0, 0, 0], std=[1, 1, 1]).std == (1.0, 1.0, 1.0)
    assert OPERATIONS["gaussian_blur"](sigma=[0.1, 2]).sigma == (0.1, 2.0)


def test_images_that_no_view_can_take():
    made, photos = View([HorizontalFlip()]), torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    for images in (photos[0], photos[:, :1], photos.long()):
        with pytest.raises(DataError, match="uint8 or float images"):
            made.apply(images, made.sample(len(images), random_at(0)))
    with pytest.raises(ValueError, match="draw_slice"):
        made.apply(photos, made.sample(3, random_at(0)))
    with pytest.raises(RecipeError, match="raise padding"):
        View([RandomCrop(40, padding=3)])(photos, random_at(0))
    with pytest.raises(RecipeError, match="too large"):
        View([GaussianBlur(p=1.0, kernel=65)])(photos, random_at(0))
