"""The Keras examples' views: each operation against TensorFlow's numbers, the whole against their distribution.

N images of an example, G groups of them, Q statistics.
"""

import json
import math

import numpy as np
import pytest
import torch
from shared import shared, wave
from torch import Tensor

from diptych.base.errors import RecipeError
from diptych.base.random_at import random_at
from diptych.commands import recipe
from diptych.commands.build import build_views
from diptych.data.images import images
from diptych.views import Grayscale, View, draw_slice
from diptych.views.keras import (
    KerasBlur,
    KerasClip,
    KerasColorJitter,
    KerasCrop,
    KerasSolarize,
    lighten_,
    saturate_and_turn_,
)

PUBLISHED = ["barlow-twins-keras-published", "simsiam-keras-published"]
RECIPES = [*PUBLISHED, "barlow-twins-keras-intended", "simsiam-keras-intended"]
HIT = 2e-6  # the golden numbers are rounded to 7 decimals; the largest distance is 5e-7
SURE = 4.5  # standard errors: one number in ten thousand lies further off by chance

# What TensorFlow 2.21 makes of six pixels that leave [0, 1], in the order of the program: three that are dark
# throughout, below 0 in part, inside; then three that are both below 0 and above 1, above 1 throughout, gray.
OUTSIDE = [[-0.5, -0.2, -0.9], [-0.3, 0.4, 0.8], [0.2, 0.5, 0.3], [1.4, 0.6, -0.2], [1.2, 1.7, 1.3], [0.5, 0.5, 0.5]]
SATURATED = {
    1.5: [[-0.2, -0.2, -0.2], [0, 0.509091, 0.8], [0.05, 0.5, 0.2], [1.4, 0.7, 0], [0.95, 1.7, 1.1], [0.5, 0.5, 0.5]],
    0.5: [[-0.2, -0.2, -0.2], [0.25, 0.6, 0.8], [0.35, 0.5, 0.4], [1.4, 1, 0.6], [1.45, 1.7, 1.5], [0.5, 0.5, 0.5]],
}
TURNED = [
    [-0.2, -0.2, -0.2],
    [0.210909, 0, 0.8],
    [0.05, 0.395, 0.5],
    [0.84, 1.4, 0],
    [0.95, 1.625, 1.7],
    [0.5, 0.5, 0.5],
]
JITTERED = [[-0.813333, -0.813333, -0.813333], [0, 0.7, 0.451059], [0.04195, 0.166667, 0],
            [1.493333, 0, 0.47941], [1.422867, 1.846667, 1.023334], [0.132667, 0.16092, 0.28]]  # fmt: skip
# What Keras 3.15 and keras-cv 0.9 make of six others, divided by 255.
INSIDE = [[0, 0.2, 0.9], [0.3, 0.4, 0.8], [0.2, 0.5, 0.3], [1, 0.6, 0.1], [0.9, 0.7, 0.8], [0.5, 0.5, 0.5]]
JITTERED_CV = [[0.398333, 0, 1], [0.441498, 0.11, 1], [0, 0.711667, 0.559345],
               [0.518333, 1, 0], [1, 1, 1], [0.725667, 0.746667, 0.624165]]  # fmt: skip


def golden(name: str) -> Tensor:
    return torch.tensor(json.loads(shared("golden/keras_views.json").read_text())[name])


def image(pixels: np.ndarray) -> Tensor:
    """(H, W, 3) -> (1, 3, H, W) float32."""
    return torch.from_numpy(pixels).float().permute(2, 0, 1)[None].contiguous()


def as_tensorflow(images: Tensor) -> Tensor:
    """(1, C, H, W) -> the numbers in the order of (H, W, C)."""
    return images[0].permute(1, 2, 0).flatten()


def six(pixels: list) -> Tensor:
    """Six pixels as (1, 3, 2, 3)."""
    return image(np.array(pixels).reshape(2, 3, 3))


def hits(ours: Tensor, theirs: Tensor, tolerance: float = HIT) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


def draw(**numbers: float) -> dict[str, Tensor]:
    """A draw for one image for which the coin fell."""
    return {"chosen": torch.tensor([True])} | {name: torch.tensor([value]) for name, value in numbers.items()}


def photos(n: int, side: int = 32) -> Tensor:
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=random_at("photos", side))


def views_of(name: str, *overrides: str) -> list[View]:
    return build_views(recipe.read_recipe(name, overrides)["views"])


EIGHT = wave((8, 8, 3), 2000, 0.5, 0.5)
PLAIN = {"brightness": 0.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("adjust_brightness_0.3", {"brightness": 0.3}),
        ("adjust_saturation_1.5", {"saturation": 1.5}),
        ("adjust_saturation_0.5", {"saturation": 0.5}),
        ("adjust_hue_0.15", {"hue": 0.15}),
        ("adjust_hue_-0.2", {"hue": -0.2}),
    ],
)
def test_colours_are_tensorflows(name, change):
    hits(as_tensorflow(KerasColorJitter().apply(image(EIGHT), draw(**PLAIN | change))), golden(name))


def test_contrast_is_tensorflows():
    """By itself: in the jitter, saturation comes after it and does not let its values below 0 pass."""
    pixels = lighten_(image(EIGHT).flatten(2), torch.zeros(1), torch.tensor([1.4]), clip=False)
    hits(as_tensorflow(pixels.view(1, 3, 8, 8)), golden("adjust_contrast_1.4"))


def test_gray_is_tensorflows():
    gray = as_tensorflow(Grayscale().apply(image(EIGHT), draw())).view(64, 3)
    hits(gray, golden("rgb_to_grayscale")[:, None].expand(64, 3))


def test_blur_is_tensorflows():
    blurred = KerasBlur().apply(image(EIGHT), draw(sigma=0.7))
    hits(as_tensorflow(blurred), golden("gaussian_3x3_reflect_sigma_0.7"))


def test_resize_is_tensorflows():
    expected = json.loads(shared("golden/keras_views.json").read_text())["resize_24_to_32_bilinear"]
    whole = {"side": torch.tensor([24]), "top": torch.zeros(1), "left": torch.zeros(1)}
    view = KerasCrop(sides=(24, 24)).apply(image(wave((24, 24, 3), 2001, 0.5, 0.5)), whole)
    hits(as_tensorflow(view)[:96], torch.tensor(expected["row0"]))
    hits(view.mean(), torch.tensor(expected["mean"]))
    hits(view.std(correction=0), torch.tensor(expected["std"]))
    hits(view.diff(dim=2).abs().sum() / expected["sum_abs_diff_rows"], torch.tensor(1.0))


def test_crops_are_cut_out_and_resized():
    """Against torch's own resize of the square, at every side and in the corners."""
    pixels, crop = photos(1).float() / 255, KerasCrop(sides=(24, 32))
    for side in range(24, 33):
        for top, left in ((0.0, 0.0), (0.999, 0.999), (0.5, 0.0)):
            where = {"side": torch.tensor([side]), "top": torch.tensor([top]), "left": torch.tensor([left])}
            first, second = int(top * (33 - side)), int(left * (33 - side))
            square = pixels[..., first : first + side, second : second + side]
            hits(crop.apply(pixels, where), torch.nn.functional.interpolate(square, (32, 32), mode="bilinear"))


@pytest.mark.parametrize("factor", SATURATED)
def test_saturation_outside_is_tensorflows(factor):
    hits(
        saturate_and_turn_(six(OUTSIDE).flatten(2), torch.tensor([factor]), torch.zeros(1)),
        six(SATURATED[factor]).flatten(2),
    )


def test_hue_outside_is_tensorflows():
    turned = saturate_and_turn_(six(OUTSIDE).flatten(2), torch.tensor([1.5]), torch.tensor([0.15]))
    hits(turned, six(TURNED).flatten(2))


def test_jitter_is_tensorflows():
    jitter, numbers = KerasColorJitter(), draw(brightness=-0.3, contrast=1.4, saturation=1.3, hue=-0.13)
    hits(jitter.apply(six(OUTSIDE), numbers), six(JITTERED))


def test_jitter_with_clip_is_keras_cvs():
    """Brightness 0.2, contrast 1.7, saturation f = 0.6 (its odds are 1.5), hue a tenth of a turn."""
    jitter, numbers = KerasColorJitter(clip=True), draw(brightness=0.2, contrast=1.7, saturation=0.6 / 0.4, hue=0.1)
    hits(jitter.apply(six(INSIDE), numbers), six(JITTERED_CV), 5e-6)


def test_solarize_by_its_two_readings():
    values = torch.tensor([-0.2, 0.0, 0.039, 0.0393, 0.5, 1.7])
    pixels = values.expand(1, 3, 1, 6)
    assert torch.equal(KerasSolarize(reading="program").apply(pixels, draw()), pixels)
    flipped = KerasSolarize(reading="text").apply(pixels, draw())[0, 0, 0]  # 10 / 255 is 0.0392
    hits(flipped, torch.tensor([1.2, 1.0, 0.961, 0.0393, 0.5, 1.7]))


def uniform(values: Tensor, low: float, high: float) -> bool:
    """Whether values are U(low, high), by their bounds, mean and variance."""
    n, width = len(values), high - low
    mean, variance = values.mean().item(), values.var().item()
    inside = low <= values.min() and values.max() <= high
    centred = abs(mean - (low + high) / 2) < SURE * width / math.sqrt(12 * n)
    return inside and centred and abs(variance - width**2 / 12) < SURE * width**2 / math.sqrt(180 * n)


@pytest.mark.parametrize("sides", [(24, 31), (24, 32)])
def test_sides_and_places_are_uniform(sides):
    n, crop = 20_000, KerasCrop(sides=sides)
    top, left, side = crop.boxes(crop.sample(n, random_at("crop")), 32, 32).T
    counts = torch.bincount(side - sides[0]).double()
    p = 1 / len(counts)
    assert len(counts) == sides[1] - sides[0] + 1
    assert ((counts - n * p).abs() < SURE * math.sqrt(n * p * (1 - p))).all()
    for where in (top, left):
        assert where.min() == 0 and (where + side).max() == 32
        smallest = where[side == 24].double()  # 9 places
        assert abs(smallest.mean() - 4) < SURE * math.sqrt(80 / 12 / len(smallest))


def test_factors_are_uniform():
    drawn = KerasColorJitter().sample(20_000, random_at("tf"))
    assert uniform(drawn["brightness"], -0.8, 0.8) and uniform(drawn["hue"], -0.2, 0.2)
    assert uniform(drawn["contrast"], 0.4, 1.6) and uniform(drawn["saturation"], 0.4, 1.6)
    assert not uniform(drawn["contrast"] ** 1.1, 0.4, 1.6)
    assert abs(drawn["chosen"].float().mean() - 0.8) < SURE * math.sqrt(0.16 / 20_000)


def test_saturation_may_be_odds():
    odds = KerasColorJitter(saturation=(0.18, 0.82), saturation_odds=True).sample(20_000, random_at("cv"))["saturation"]
    assert uniform(odds / (1 + odds), 0.18 - 1e-6, 0.82 + 1e-6)


def test_blur_has_one_sigma_a_seed():
    first, second, other = KerasBlur(seed=3), KerasBlur(seed=3), KerasBlur(seed=4)
    sigmas = torch.cat([blur.sample(50, random_at(k))["sigma"] for k, blur in enumerate((first, second))])
    assert sigmas.unique().numel() == 1 and sigmas[0].item() == pytest.approx(first.sigma)
    assert other.sigma != first.sigma and 0 < min(first.sigma, other.sigma) and max(first.sigma, other.sigma) <= 1
    assert uniform(torch.tensor([KerasBlur(seed=seed).sigma for seed in range(500)]), 0, 1)


@pytest.mark.parametrize("name", RECIPES)
def test_equal_images_become_different_views(name):
    view = views_of(name)[0]
    made = view(photos(1).expand(64, 3, 32, 32), random_at(0, "views", 3, 1))
    different = {one.numpy().tobytes() for one in made}
    # SimSiam as published leaves an image whole in a fifth of its views: flips and gray make 8 of it
    assert len(different) == 64 if name != "simsiam-keras-published" else len(different) > 48
    assert made.shape == (64, 3, 32, 32) and 0 <= made.min() and made.max() <= 1


@pytest.mark.parametrize("name", RECIPES)
def test_the_same_address_gives_the_same_views(name):
    view, pixels = views_of(name)[0], photos(24)
    first = view(pixels, random_at(7, "views", 5, 0))
    assert torch.equal(first, view(pixels, random_at(7, "views", 5, 0)))
    assert not torch.equal(first, view(pixels, random_at(7, "views", 5, 1)))
    draws = view.sample(24, random_at(7, "views", 5, 0))
    for rows in (slice(0, 12), slice(5, 6), torch.tensor([23, 0, 7])):
        hits(view.apply(pixels[rows], draw_slice(draws, rows)), first[rows])


@pytest.mark.parametrize("operation", [KerasCrop(), KerasColorJitter(p=1), KerasBlur(1), KerasSolarize(1), KerasClip()])
def test_images_given_stay_as_they_are(operation):
    pixels = wave((4, 3, 32, 32), 7, 1.5, 0.5)
    given = torch.from_numpy(pixels).float()
    operation.apply(given, operation.sample(4, random_at("stay")))
    assert torch.equal(given, torch.from_numpy(pixels).float())
    assert len(str(operation)) > 5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KerasCrop(sides=(31, 24)), "keras_crop: sides is 24; give whole pixels, 31 or more"),
        (lambda: KerasCrop(sides=(24,)), "give the smallest and the largest"),
        (lambda: KerasColorJitter(brightness=-1), "brightness is -1; give 0 or more"),
        (lambda: KerasColorJitter(hue=0.6), "hue is 0.6; give 0 to 0.5 of a turn"),
        (lambda: KerasColorJitter(saturation_odds=True), "a share for odds is below 1"),
        (lambda: KerasBlur(seed=0.5), "seed is 0.5; give a whole number"),
        (lambda: KerasSolarize(reading="paper"), "choose 'program' or 'text'"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(RecipeError, match=message):
        make()


def test_a_square_must_fit():
    with pytest.raises(RecipeError, match=r"sides \[24, 31\] do not fit 30 x 40 images"):
        View([KerasCrop()])(photos(1)[..., :30, :].repeat(1, 1, 1, 2)[..., :40], random_at(0))


# The whole pipelines: their statistics over 5,120 lossless images, beside those of one run of the programs.

QUANTILES = torch.tensor([0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99])
# Keras 3.15 and keras-cv 0.9 on the same images. That version of Keras has one coin for both flips (see docs/recipes.md).
SIMSIAM = {
    "channel_mean": [0.4854, 0.4783, 0.4466],
    "channel_std": [0.3032, 0.299, 0.3131],
    "share_of_gray_views": 0.203,
    "share_of_pixels_at_0": 0.0766,
    "share_of_pixels_at_1": 0.0484,
    "view_mean_quantiles_1_5_25_50_75_95_99": [0.0899, 0.175, 0.3382, 0.4644, 0.6018, 0.7765, 0.8791],
    "view_std_quantiles": [0.0586, 0.0848, 0.1574, 0.2224, 0.2925, 0.3827, 0.4268],
    "correlation_of_the_two_views_quantiles": [-0.637, -0.4219, -0.0226, 0.5447, 0.938, 0.9918, 1.0],
    "mean_abs_difference_of_the_two_views": 0.2563,
}


@pytest.fixture(scope="module")
def lossless() -> Tensor:
    return images(shared("data/cifar10-lossless-subset-train.parquet")).pixels()[:5120]


def statistics(first: Tensor, second: Tensor) -> dict[str, Tensor]:
    """As in the golden file; the correlation with a view of one colour is 0."""
    both, (a, b) = torch.cat((first, second)), (view.flatten(1) for view in (first, second))
    of_view = both.flatten(1)
    apart_a, apart_b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    correlation = (apart_a * apart_b).sum(1) / (apart_a.norm(dim=1) * apart_b.norm(dim=1))
    return {
        "channel_mean": both.mean((0, 2, 3)),
        "channel_std": both.std((0, 2, 3), correction=0),
        "share_of_gray_views": ((both.amax(1) - both.amin(1)).flatten(1).amax(1) < 1e-6).float().mean(),
        "share_of_pixels_at_0": (both <= 0).float().mean(),
        "share_of_pixels_at_1": (both >= 1).float().mean(),
        "view_mean_quantiles_1_5_25_50_75_95_99": of_view.mean(1).quantile(QUANTILES),
        "view_std_quantiles": of_view.std(1, correction=0).quantile(QUANTILES),
        "correlation_of_the_two_views_quantiles": correlation.nan_to_num(0.0).quantile(QUANTILES),
        "mean_abs_difference_of_the_two_views": (a - b).abs().mean(),
    }


def flat(numbers: dict) -> Tensor:
    return torch.cat([torch.as_tensor(value).flatten() for value in numbers.values()])


def surprise(first: Tensor, second: Tensor, expected: dict) -> float:
    """How far, in standard errors, the most distant statistic of our views lies from the program's run.

    A statistic's standard error is taken from its values in 32 groups of 160 images. The program's run has as much, so a
    difference has sqrt(2) times that; beside it, half a unit of the fourth decimal, to which the program's are rounded.
    """
    ours = statistics(first, second)
    assert list(ours) == list(expected)
    groups_GQ = torch.stack([flat(statistics(*group)) for group in zip(first.chunk(32), second.chunk(32), strict=True)])
    error_Q = groups_GQ.std(0) * math.sqrt(2 / len(groups_GQ))
    distance_Q = ((flat(ours) - flat(expected)).abs() - 5e-5).clamp_min(0)
    return (distance_Q / error_Q.clamp_min(1e-9)).max().item()


def barlow_twins() -> dict:
    expected = json.loads(shared("golden/keras_view_statistics.json").read_text())
    assert expected.pop("images") == 5120
    return expected


def test_barlow_twins_views_are_distributed_as_published(lossless):
    pair = (view(lossless, random_at(0, "views", 0, which)) for which, view in enumerate(views_of(PUBLISHED[0])))
    assert surprise(*pair, barlow_twins()) < SURE


@pytest.mark.parametrize(
    "name, overrides", [(PUBLISHED[0], ["views.0.do.2.keras_color_jitter.clip=true"]), (RECIPES[2], [])]
)
def test_other_views_are_not(name, overrides, lossless):
    pair = (view(lossless, random_at(0, "views", 0, which)) for which, view in enumerate(views_of(name, *overrides)))
    assert surprise(*pair, barlow_twins()) > 2 * SURE


def test_simsiam_views_are_distributed_as_keras_makes_them(lossless):
    pair = []
    for which, view in enumerate(views_of(PUBLISHED[1])):
        left_right, _, *colours = view.sample(len(lossless), random_at(0, "views", 0, which))
        pair.append(view.apply(lossless, [left_right, left_right, *colours]))
    assert surprise(*pair, SIMSIAM) < SURE
