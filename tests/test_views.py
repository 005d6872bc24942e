"""A View as a whole: a draw per image, addresses, slices, fusion, what it says of itself, presets."""

import re

import pytest
import torch

from diptych.base.errors import RecipeError
from diptych.base.random_at import random_at
from diptych.views import (
    CIFAR10,
    IMAGENET,
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
    View,
    barlow_twins,
    draw_slice,
    simsiam,
    view,
)


def photos(n: int, side: int = 32) -> torch.Tensor:
    """uint8 (n, 3, side, side), no two alike."""
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=random_at("photos", side))


def everything(size: int = 32) -> View:
    """Every operation, none certain, without `normalize`."""
    return View(
        [
            RandomResizedCrop(size, interpolation="bicubic"),
            HorizontalFlip(),
            VerticalFlip(),
            ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
            Grayscale(),
            GaussianBlur(),
            Solarize(),
            RandomCrop(size, padding=2),
            Resize(size),
        ]
    )


PRESETS = [*barlow_twins(32), *simsiam(32), *barlow_twins(48, "original"), *simsiam(48, "original")]


@pytest.mark.parametrize("made", PRESETS)
def test_equal_images_become_different_views(made):
    views = made(photos(1).expand(64, 3, 32, 32), random_at(0, "views", 3, 1))
    assert len({one.numpy().tobytes() for one in views}) == 64


@pytest.mark.parametrize(
    "operation",
    [
        RandomResizedCrop(32),
        RandomCrop(24),
        ColorJitter(0.4),
        ColorJitter(0, 0.4),
        ColorJitter(0, 0, 0.4),
        ColorJitter(0, 0, 0, 0.1),
        GaussianBlur(p=1.0),
    ],
)
def test_each_operation_draws_for_each_image(operation):
    """Beyond coins: 32 equal images become at least 24 different ones (two boxes of whole pixels can agree)."""
    views = View([operation])(photos(1).expand(32, 3, 32, 32), random_at("each"))
    assert len({one.numpy().tobytes() for one in views}) >= 24


@pytest.mark.parametrize("operation", [HorizontalFlip(), VerticalFlip(), Grayscale(0.5), Solarize(0.5)])
def test_each_coin_falls_for_each_image(operation):
    views = View([operation])(photos(1).expand(32, 3, 32, 32), random_at("coins"))
    assert len({one.numpy().tobytes() for one in views}) == 2


def test_the_same_address_gives_the_same_bytes():
    images, made = photos(20), everything()
    first = made(images, random_at(7, "views", 5, 0))
    assert torch.equal(first, made(images, random_at(7, "views", 5, 0)))
    for other in ((8, "views", 5, 0), (7, "views", 6, 0), (7, "views", 5, 1)):
        assert not torch.equal(first, made(images, random_at(*other)))


def test_global_random_state_is_left_alone():
    before = torch.random.get_rng_state()
    everything()(photos(4), random_at(1))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("side", [32, 70])
def test_ranks_see_their_rows_of_the_global_views(side):
    """Within 1e-6, not bit for bit: vectors of another length may sum in another order."""
    images, made = photos(24, side), everything()
    draws = made.sample(24, random_at(1, "views", 0, 0))
    together = made.apply(images, draws)
    for rows in (slice(0, 12), slice(12, 24), slice(5, 6), torch.tensor([23, 0, 7, 7])):
        assert (made.apply(images[rows], draw_slice(draws, rows)) - together[rows]).abs().max() <= 1e-6


def test_blocks_do_not_change_views(monkeypatch):
    images, made = photos(30), everything()
    draws = made.sample(30, random_at(2))
    whole = made.apply(images, draws)
    monkeypatch.setattr(view, "VALUES_PER_BLOCK", 7 * 3 * 32 * 32)
    monkeypatch.setattr("diptych.views.operation.CACHE", 2 * 3 * 32 * 32)
    assert (made.apply(images, draws) - whole).abs().max() <= 1e-6


@pytest.mark.parametrize("made", [everything(), *barlow_twins(32), *simsiam(40, "original")])
def test_fused_equals_one_operation_after_the_other(made):
    images = photos(16)
    draws = made.sample(16, random_at("fused"))
    slow = images / 255
    for operation, draw in zip(made.operations, draws, strict=True):
        before = slow.clone()
        after = operation.apply(slow, draw)
        assert torch.equal(slow, before), f"{operation} changed its input"
        slow = after
    assert (made.apply(images, draws) - slow).abs().max() <= 1e-5


def test_a_flip_joins_the_crop_only_where_all_between_commute():
    class Arrow:
        def sample(self, n, rng):
            return {}

        def apply(self, images, draw):
            images[..., 0] = 1  # knows left from right
            return images

    crop, flip, jitter = RandomResizedCrop(8), HorizontalFlip(), ColorJitter(0.4)
    assert view.flips_of_crops([crop, jitter, GaussianBlur(), flip, Normalize(*CIFAR10)]) == {0: 3}
    assert view.flips_of_crops([flip, crop]) == {}
    assert view.flips_of_crops([crop, RandomCrop(8, 1), flip]) == {}
    assert view.flips_of_crops([crop, Arrow(), flip]) == {}
    assert view.flips_of_crops([crop, flip, flip, crop, flip]) == {0: 1, 3: 4}
    views = View([crop, Arrow(), HorizontalFlip(p=1.0)])(photos(3), random_at("arrow"))
    assert (views[..., -1] == 1).all()


def test_output_is_contiguous_float32_and_input_untouched():
    images, made = photos(5), everything(24)
    draws = made.sample(5, random_at(3))
    expected = made.apply(images, draws)
    assert expected.shape == (5, 3, 24, 24) and expected.dtype == torch.float32 and expected.is_contiguous()
    floats = images / 255
    twins = [
        images.contiguous(memory_format=torch.channels_last),
        floats,
        floats.double(),
        images[:, :, :, :],
    ]
    for twin in twins:
        copy = twin.clone()
        views = made.apply(twin, draws)
        assert torch.equal(twin, copy)
        assert views.dtype == torch.float32 and views.is_contiguous()
        assert (views - expected).abs().max() <= 1e-6
    in_place = View([Grayscale(1.0)])
    in_place(floats, random_at(0))
    assert torch.equal(floats, images / 255)


def test_autocast_changes_nothing():
    images, made = photos(4), everything()
    draws = made.sample(4, random_at(4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = made.apply(images, draws)
    assert torch.equal(inside, made.apply(images, draws))


@pytest.mark.parametrize("n", [0, 1])
def test_few_images(n):
    for made in (everything(), *barlow_twins(32), *simsiam(224)):
        assert made(photos(n), random_at(n)).shape == (n, 3, made.size, made.size)


def test_coins_that_never_or_always_fall():
    for p in (0.0, 1.0):
        steps = [
            ColorJitter(0.4, 0.4, 0.4, 0.1, p=p),
            Grayscale(p),
            GaussianBlur(p),
            Solarize(p),
            HorizontalFlip(p),
        ]
        views = View(steps)(photos(6), random_at("p"))
        assert torch.equal(views, photos(6) / 255) == (p == 0)


def test_what_a_view_says_of_itself():
    made = View([RandomResizedCrop(24), HorizontalFlip(), Normalize((0.5, 0.4, 0.3), [0.2, 0.3, 0.4])])
    assert made.size == 24
    assert made.normalization == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    assert made.describe() == [
        "crop 8% to 100% of the area, aspect ratio 0.75 to 1.33, resize to 24 x 24 (bilinear)",
        "50%: left becomes right",
        "normalize by mean 0.5, 0.4, 0.3 and standard deviation 0.2, 0.3, 0.4",
    ]
    assert View([HorizontalFlip()]).size is None
    assert View([HorizontalFlip()]).normalization == ((0, 0, 0), (1, 1, 1))
    assert View([Resize(20), RandomCrop(16)]).size == 16
    lines = everything().describe() + PRESETS[0].describe()
    assert all(line and "\n" not in line for line in lines)


def test_display_undoes_normalization():
    plain, normal = View([Resize(16)]), View([Resize(16), Normalize(*IMAGENET)])
    views = normal(photos(3), random_at(0))
    assert views.amin() < -1
    assert (normal.display(views) - plain(photos(3), random_at(0))).abs().max() <= 1e-5
    assert normal.display(views + 9).amax() == 1 and normal.display(views - 9).amin() == 0


def test_a_users_own_operation():
    class Darken:
        def sample(self, n, rng):
            return {"by": torch.rand(n, generator=rng)}

        def apply(self, images, draw):
            return images * draw["by"].to(images.device)[:, None, None, None]

    made = View([Darken(), HorizontalFlip(p=0.0)])
    draws = made.sample(3, random_at(0))
    assert torch.equal(made.apply(photos(3), draws), photos(3) / 255 * draws[0]["by"][:, None, None, None])
    with pytest.raises(RecipeError, match="no sample and apply"):
        View([lambda images: images])


def lines(made: View) -> list[str]:
    return [re.sub(r"\(|, aspect.*1\.33|\)", "", line) for line in made.describe()]


def test_presets_are_the_published_ones():
    """facebookresearch/barlowtwins main.py; MoCo v2 as in SimSiam; solo-learn's CIFAR set."""
    first, second = (lines(made) for made in barlow_twins(224))
    jitter = "80%: brightness 0.4, contrast 0.4, saturation {}, hue 0.1, in an order drawn per image"
    crop = "crop {} to 100% of the area, resize to {} x {} {}"
    blur = "{}: Gaussian blur, sigma 0.1 to 2 pixels, kernel a tenth of the side"
    gray, flip = "20%: grayscale", "50%: left becomes right"
    imagenet = "normalize by mean 0.485, 0.456, 0.406 and standard deviation 0.229, 0.224, 0.225"
    cifar = "normalize by mean 0.4914, 0.4822, 0.4465 and standard deviation 0.247, 0.2435, 0.2616"
    big = [crop.format("8%", 224, 224, "bicubic"), flip, jitter.format(0.2), gray]
    assert first == [*big, blur.format("100%"), imagenet]
    assert second == [*big, blur.format("10%"), "20%: solarize from 0.5", imagenet]
    small = [crop.format("8%", 32, 32, "bicubic"), flip, jitter.format(0.2), gray]
    assert [lines(made) for made in barlow_twins(32)] == [
        [*small, cifar],
        [*small, "20%: solarize from 0.5", cifar],
    ]
    moco = [
        crop.format("20%", 224, 224, "bilinear"),
        jitter.format(0.4),
        gray,
        blur.format("50%"),
        flip,
        imagenet,
    ]
    assert [lines(made) for made in simsiam(224)] == [moco, moco]
    moco = [crop.format("20%", 32, 32, "bilinear"), jitter.format(0.4), gray, flip, cifar]
    assert [lines(made) for made in simsiam(32)] == [moco, moco]
    assert barlow_twins(32, normalization=IMAGENET)[0].normalization == IMAGENET
    assert len(barlow_twins(32, variant="original")[0].operations) == len(barlow_twins(224)[0].operations)
    with pytest.raises(RecipeError, match="variant"):
        simsiam(32, variant="tiny")


@pytest.mark.gpu
def test_gpu_gives_the_same_views_and_waits_for_nothing():
    images, made = photos(64), View([*everything().operations, Normalize(*CIFAR10)])
    draws = made.sample(64, random_at("gpu"))
    there = images.cuda()
    made.apply(there, draws)  # the libraries' own start
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        views = made.apply(there, draws)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert views.device == there.device
    assert (views.cpu() - made.apply(images, draws)).abs().max() <= 1e-4
