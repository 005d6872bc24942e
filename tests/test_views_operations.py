"""Each operation against `torchvision.transforms.v2.functional` on the same parameters, image by image."""

import copy
import itertools
import math

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from diptych.base.random_at import random_at
from diptych.views import (
    ColorJitter,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    Normalize,
    RandomCrop,
    RandomResizedCrop,
    Resize,
    Solarize,
    VerticalFlip,
    resample,
)
from diptych.views.colour import ORDERS, turn_hue_
from diptych.views.resample import Axis, WholeBoxTaps, box_taps

TWO = 2 / 255


def noise(n: int, height: int, width: int) -> torch.Tensor:
    """The hardest images: every pixel another. uint8 (n, 3, height, width)."""
    rng = random_at("noise", n, height)
    return torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=rng)


def colours(n: int, side: int) -> torch.Tensor:
    """Float images in [0, 1]: noise, and what colour formulas stumble over: gray, black, white, ties."""
    images = noise(n, side, side) / 255
    images[0] = 0.5
    images[1] = images[1, :1]
    images[2] = (images[2] * 2).round() / 2
    images[3, :, : side // 2], images[3, :, side // 2 :] = 0.0, 1.0
    images[4, 1] = images[4, 0]
    images[5, 2] = images[5, 1]
    return images


def differences(ours: torch.Tensor, theirs: list[torch.Tensor]) -> torch.Tensor:
    """The largest difference of each image."""
    assert ours.shape == (len(theirs), *theirs[0].shape)
    return (ours - torch.stack(theirs)).abs().flatten(1).amax(1)


SIZES = [
    (32, 32, 32),
    (32, 24, 32),
    (64, 48, 32),
    (40, 40, 224),
    (224, 224, 224),
    (250, 240, 224),
    (300, 200, 32),
]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize(("height", "width", "size"), SIZES)
def test_random_resized_crop(height, width, size, antialias, interpolation):
    """Enlarging and shrinking, against 8-bit images: torchvision clamps and rounds after each axis, as PIL."""
    n = 6
    images = noise(n, height, width)
    crop = RandomResizedCrop(size, interpolation=interpolation, antialias=antialias)
    draw = crop.sample(n, random_at("crop", size))
    boxes = crop.boxes(draw, height, width)
    how = {"size": [size, size], "interpolation": InterpolationMode(interpolation), "antialias": antialias}
    theirs = [tv.resized_crop(image, *box.tolist(), **how) / 255 for image, box in zip(images, boxes, strict=True)]
    assert differences(crop.apply(images / 255, draw), theirs).max() <= 1.2 / 255

    images = 0.4 + 0.2 * images / 255  # too flat to leave [0, 1]: nothing is clamped, floats agree to rounding
    theirs = [tv.resized_crop(image, *box.tolist(), **how) for image, box in zip(images, boxes, strict=True)]
    assert differences(crop.apply(images, draw), theirs).max() <= 1e-5


def test_a_crop_flips_as_it_resamples():
    images, mirrored = noise(8, 32, 32) / 255, torch.arange(8) % 2 == 0
    crop = RandomResizedCrop(24, interpolation="bicubic")
    draw = crop.sample(8, random_at("mirrored"))
    plain, ours = crop.apply(images, draw), crop.apply_(images.clone(), draw, mirrored=mirrored)
    theirs = [tv.horizontal_flip(view) if flip else view for view, flip in zip(plain, mirrored, strict=True)]
    assert differences(ours, theirs).max() <= 1e-6
    assert not torch.equal(ours, plain)


@pytest.mark.parametrize("antialias", [True, False])
def test_taps_are_looked_up(antialias, monkeypatch):
    """The tables hold what `box_taps` computes, bit for bit; there are few of them, none travels, and huge ones are not made."""
    taps = WholeBoxTaps()
    for pixels in (8, 12, 20, 9, 30, 31):
        length = torch.arange(1, pixels + 1)
        start, mirrored = pixels - length, length % 3 == 0
        how = (Axis(pixels, 12, "bicubic", antialias), mirrored)
        found, expected = taps(start, length, *how), box_taps(start.float(), length.float(), *how)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    assert len(taps.tables) == 4 and not copy.deepcopy(taps).tables
    monkeypatch.setattr(resample, "TABLE_BYTES", 1000)
    alone = WholeBoxTaps()
    found = alone(start, length, *how)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True)) and not alone.tables


def box_by_loop(crop: RandomResizedCrop, draw: dict, i: int, height: int, width: int) -> list[int]:
    """torchvision's `RandomResizedCrop.make_params` for image i, on the numbers of our draw."""
    assert len(draw["area"][i]) == len(draw["ratio"][i]) == 10
    low, high = math.log(crop.ratio[0]), math.log(crop.ratio[1])
    for try_area, try_ratio in zip(draw["area"][i].tolist(), draw["ratio"][i].tolist(), strict=True):
        area = height * width * (crop.scale[0] + (crop.scale[1] - crop.scale[0]) * try_area)
        ratio = math.exp(low + (high - low) * try_ratio)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = (
                int(draw["top"][i].item() * (height - h + 1)),
                int(draw["left"][i].item() * (width - w + 1)),
            )
            return [top, left, h, w]
    w, h = width, height
    if width / height < min(crop.ratio):
        h = round(w / min(crop.ratio))
    elif width / height > max(crop.ratio):
        w = round(h * max(crop.ratio))
    return [(height - h) // 2, (width - w) // 2, h, w]


@pytest.mark.parametrize(("height", "width"), [(32, 32), (32, 100), (100, 32), (33, 27), (1, 5), (224, 224)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.9, 1.0), (0.5, 0.5)])
def test_boxes_are_torchvisions(height, width, scale):
    """Also where ten tries fail and the central box is taken: 0.9 of a narrow image never fits."""
    crop = RandomResizedCrop(32, scale=scale)
    draw = crop.sample(200, random_at("boxes", height, width))
    boxes = crop.boxes(draw, height, width)
    assert boxes.tolist() == [box_by_loop(crop, draw, i, height, width) for i in range(200)]
    top, left, h, w = boxes.T
    assert (h >= 1).all() and (w >= 1).all() and (top >= 0).all() and (left >= 0).all()
    assert (top + h <= height).all() and (left + w <= width).all()


def test_the_largest_numbers_stay_inside():
    draw = {key: torch.full((3, 10), 1 - 2**-24) for key in ("area", "ratio")}
    draw |= {key: torch.full((3,), 1 - 2**-24) for key in ("top", "left")}
    top, left, h, w = RandomResizedCrop(32, scale=(0.1, 0.2)).boxes(draw, 301, 307).T
    assert (top + h <= 301).all() and (left + w <= 307).all()
    assert RandomCrop(10).corners(draw, 301, 307).tolist() == [[291, 297]] * 3


@pytest.mark.parametrize(("height", "width", "size", "padding"), [(32, 32, 32, 4), (20, 30, 12, 0), (5, 9, 9, 3)])
def test_random_crop(height, width, size, padding):
    images, crop = noise(9, height, width) / 255, RandomCrop(size, padding)
    draw = crop.sample(9, random_at("random crop"))
    corners = crop.corners(draw, height, width).tolist()
    theirs = [
        tv.crop(tv.pad(image, [padding] * 4), top, left, size, size)
        for image, (top, left) in zip(images, corners, strict=True)
    ]
    assert torch.equal(crop.apply(images, draw), torch.stack(theirs))
    assert len({tuple(corner) for corner in corners}) > 2


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width", "size"), [(32, 32, 48), (60, 40, 32), (32, 32, 32)])
def test_resize(height, width, size, interpolation):
    images, resize = noise(3, height, width), Resize(size, interpolation)
    theirs = [tv.resize(image, [size, size], InterpolationMode(interpolation)) / 255 for image in images]
    assert differences(resize.apply(images / 255, {}), theirs).max() <= 1.2 / 255


@pytest.mark.parametrize(
    ("operation", "theirs"), [(HorizontalFlip, tv.horizontal_flip), (VerticalFlip, tv.vertical_flip)]
)
def test_flips(operation, theirs):
    images, coins = noise(6, 5, 7) / 255, torch.tensor([True, False, True, True, False, False])
    flipped = [theirs(image) if coin else image for image, coin in zip(images, coins, strict=True)]
    assert torch.equal(operation().apply(images, {"chosen": coins}), torch.stack(flipped))


def jitter_by_torchvision(image: torch.Tensor, draw: dict, i: int) -> torch.Tensor:
    functions = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    for which in draw["order"][i].tolist() if draw["chosen"][i] else []:
        name = ("brightness", "contrast", "saturation", "hue")[which]
        image = functions[which](image, draw[name][i].item())
    return image


@pytest.mark.parametrize("side", [32, 224])
@pytest.mark.parametrize("strength", [0.4, 1.0])
def test_color_jitter_in_every_order(side, strength):
    """The 24 orders in one batch, with clamps between: at strength 1 the factors reach from 0 to 2."""
    n = 24 if side == 224 else 96
    images, jitter = colours(n, side), ColorJitter(strength, strength, strength, strength / 2, p=0.9)
    draw = jitter.sample(n, random_at("jitter"))
    draw["order"] = ORDERS.repeat(n // 24, 1)
    ours = jitter.apply(images, draw)
    assert differences(ours, [jitter_by_torchvision(image, draw, i) for i, image in enumerate(images)]).max() <= 1e-5
    assert (ours.amin() == 0) and (ours.amax() == 1)  # something was clamped


@pytest.mark.parametrize("alone", ["brightness", "contrast", "saturation", "hue"])
def test_one_colour_operation_alone(alone):
    images, jitter = colours(30, 16), ColorJitter(**{alone: 0.5})
    draw = jitter.sample(30, random_at(alone))
    ours = jitter.apply(images, draw)
    one = {
        "brightness": tv.adjust_brightness,
        "contrast": tv.adjust_contrast,
        "saturation": tv.adjust_saturation,
    }
    function = one.get(alone, tv.adjust_hue)
    theirs = [function(image, draw[alone][i].item()) for i, image in enumerate(images)]
    assert differences(ours, theirs).max() <= 1e-5
    assert differences(ours, list(images)).max() > 0.05


def test_fixed_order_is_brightness_contrast_saturation_hue():
    jitter = ColorJitter(0.4, 0.4, 0.4, 0.1, order="fixed")
    assert jitter.sample(5, random_at("fixed"))["order"].tolist() == [[0, 1, 2, 3]] * 5


def test_hue_of_every_colour():
    """All colours of a 16 x 16 x 16 lattice (4,096 pixels, all ties of channels), 41 turns of the circle."""
    levels = torch.linspace(0, 1, 16)
    lattice = torch.cartesian_prod(levels, levels, levels).T.reshape(3, 64, 64)
    turns = torch.linspace(-0.5, 0.5, 41)
    ours = turn_hue_(lattice.repeat(41, 1, 1, 1).flatten(2), turns).view(41, 3, 64, 64)
    assert differences(ours, [tv.adjust_hue(lattice, turn.item()) for turn in turns]).max() <= 1e-5


def test_grayscale():
    images, coins = colours(8, 9), torch.arange(8) % 3 != 0
    theirs = [tv.rgb_to_grayscale(x, 3) if coin else x for x, coin in zip(images, coins, strict=True)]
    assert differences(Grayscale().apply(images, {"chosen": coins}), theirs).max() <= 1e-6


@pytest.mark.parametrize("threshold", [0.5, 128 / 255, 0.0, 1.0, 10 / 255])
def test_solarize(threshold):
    """On all 256 values, against 8-bit images, and against floats at the same threshold."""
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(2, 3, 1, 1)
    ours = Solarize(threshold=threshold).apply(images / 255, {"chosen": torch.tensor([True, False])})
    eight_bit = tv.solarize(images[0], 128 if threshold == 0.5 else round(threshold * 255))
    assert differences(ours, [eight_bit / 255, images[1] / 255]).max() <= 1e-6
    assert differences(ours[:1], [tv.solarize(images[0] / 255, threshold)]).max() <= 1e-6


@pytest.mark.parametrize(
    ("height", "width", "kernel"),
    [(32, 32, None), (32, 32, 7), (20, 31, 5), (9, 9, 17), (224, 224, None), (8, 8, 1)],
)
def test_gaussian_blur(height, width, kernel):
    taps = kernel or {32: 3, 224: 23}[height]
    n = 3 if height == 224 else 8
    images, blur = noise(n, height, width) / 255, GaussianBlur(p=0.7, sigma=(0.1, 2.0), kernel=kernel)
    draw = blur.sample(n, random_at("blur"))
    draw["chosen"][0] = True
    theirs = [
        tv.gaussian_blur(image, [taps, taps], [draw["sigma"][i].item()] * 2) if draw["chosen"][i] else image
        for i, image in enumerate(images)
    ]
    assert differences(blur.apply(images, draw), theirs).max() <= 1e-5


@pytest.mark.parametrize(("side", "taps"), [(16, 3), (32, 3), (64, 7), (96, 9), (128, 13), (160, 17), (224, 23)])
def test_default_kernel_is_about_a_tenth(side, taps):
    one_pixel = torch.zeros(1, 3, side, side)
    one_pixel[..., side // 2, side // 2] = 1
    draw = {
        "chosen": torch.tensor([True]),
        "sigma": torch.tensor([50.0]),
    }  # so wide that all taps weigh alike
    assert (GaussianBlur().apply(one_pixel, draw)[0, 0] > 0).sum() == taps**2


def test_normalize():
    images, mean, std = colours(6, 8), (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
    theirs = [tv.normalize(image, list(mean), list(std)) for image in images]
    assert differences(Normalize(mean, std).apply(images, {}), theirs).max() <= 1e-5


def test_the_parameters_matter():
    """Were the references blind to the parameters, the comparisons above would hold for any program."""
    images = noise(2, 32, 32) / 255
    for a, b in itertools.combinations([0.1, 0.6, 2.0], 2):
        draws = [{"chosen": torch.ones(2, dtype=torch.bool), "sigma": torch.full((2,), s)} for s in (a, b)]
        first, second = (GaussianBlur(kernel=5).apply(images, draw) for draw in draws)
        assert (first - second).abs().max() > TWO
