"""Views in the form for a GPU, beside `View.apply`: the same pixels to 1e-5, in few launches, without a wait."""

import math

import pytest
import torch
from pretend import DEVICE, pretended_device
from test_views import everything, photos
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from diptych.base.arithmetic import arithmetic
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
    View,
    barlow_twins,
    draw_slice,
    simsiam,
)
from diptych.views.keras import KerasBlur, KerasClip, KerasColorJitter, KerasCrop, KerasSolarize
from diptych.views.together import chains


def draws_of(views: list[View], n: int) -> list:
    return [view.sample(n, random_at("masked", index)) for index, view in enumerate(views)]


def differences(views: list[View], images: Tensor, where: torch.device | str = "cpu") -> list[float]:
    """How far each view is from the slow one at most."""
    draws, farthest = draws_of(views, len(images)), [math.inf] * len(views)
    for numbers, chain in chains(views) or []:
        packed = chain.pack([draws[number] for number in numbers], len(images), *images.shape[2:])
        for number, view in zip(numbers, chain.apply(images.to(where), packed.to(where)), strict=True):
            slow = views[number].apply(images, draws[number])
            assert view.shape == slow.shape and view.dtype == torch.float32 and view.device == torch.device(where)
            farthest[number] = float((view.cpu() - slow).abs().max())
    return farthest


ALONE = [
    RandomResizedCrop(32, interpolation="bicubic"), RandomResizedCrop(20, antialias=False),
    RandomResizedCrop(20, interpolation="bicubic", antialias=False), RandomCrop(28, padding=3), Resize(24, "bicubic"),
    HorizontalFlip(), VerticalFlip(), ColorJitter(0.4, 0.4, 0.2, 0.1, p=0.8), ColorJitter(0.8, 0.8, 0.8, 0.0),
    ColorJitter(hue=0.5), ColorJitter(0.4, 0.4, 0.4, 0.1, order="fixed"), Grayscale(0.5), GaussianBlur(), Solarize(0.5),
    GaussianBlur(1.0, kernel=7), Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)), KerasCrop(32), KerasColorJitter(),
    KerasColorJitter(0.5, (0.5, 1.5), (0.3, 0.7), saturation_odds=True, hue=0.2, clip=True), KerasBlur(0.5),
    KerasSolarize(0.5), KerasSolarize(0.5, "text"), KerasClip(),
]  # fmt: skip


@pytest.mark.parametrize("step", ALONE, ids=str)
def test_an_operation_alone(step):
    (farthest,) = differences([View([step])], photos(40))
    assert 0 <= farthest <= 1e-5


class Sums(TorchDispatchMode):
    """Of what is added up in no fixed order on a GPU: the most numbers other than 0 in one place, and whether order counts."""

    def __init__(self):
        super().__init__()
        self.together: list[int] = []
        self.in_order: list[bool] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.scatter_add_.default:
            matrix, dim, index, weight = args
            met = torch.zeros(matrix.shape, dtype=torch.int64).scatter_add(dim, index, (weight != 0).long())
            self.together.append(int(met.max()))
            self.in_order.append(torch.are_deterministic_algorithms_enabled())
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("step", [step for step in ALONE if not isinstance(step, Normalize)], ids=str)
def test_sums_of_two_may_be_made_in_any_order(step):
    """Where the same bits are asked for: a sort for each sum is slow, and no graph could hold it with every torch."""
    with arithmetic("float32", deterministic=True), Sums() as sums:
        assert differences([View([step])], photos(16))[0] <= 1e-5
    in_order = isinstance(step, RandomResizedCrop) and step.interpolation == "bicubic" and not step.antialias
    ours = sums.in_order[: len(sums.in_order) // 2]  # then the slow form's
    assert set(ours) <= {in_order} and (in_order or max(sums.together, default=0) <= 2)
    assert in_order or not isinstance(step, RandomResizedCrop | GaussianBlur | KerasCrop) or ours


@pytest.mark.parametrize(("height", "width"), [(32, 40), (50, 41)])
def test_images_that_are_not_square(height, width):
    images = torch.randint(0, 256, (30, 3, height, width), dtype=torch.uint8, generator=random_at("oblong"))
    for crop in (RandomResizedCrop(32, interpolation="bicubic"), KerasCrop(16)):
        assert (
            max(differences([View([crop, HorizontalFlip(), ColorJitter(0.4, 0.4, 0.4, 0.1), Grayscale()])], images))
            <= 1e-5
        )


def test_taps_of_large_images_are_computed(monkeypatch):
    expected = differences([View([RandomResizedCrop(32)])], photos(30))
    monkeypatch.setattr("diptych.views.masked.TABLE_BYTES", 0)
    again = differences([View([RandomResizedCrop(32), HorizontalFlip()])], photos(30))
    assert expected <= [1e-5] and again <= [1e-5]


KERAS = [KerasCrop(32), HorizontalFlip(), KerasColorJitter(), KerasBlur(0.5), Grayscale(), KerasSolarize(), KerasClip()]
SETS = {
    "the published": [View(KERAS), View(KERAS)],
    "barlow_twins": barlow_twins(32),
    "simsiam": simsiam(32),
    "barlow_twins, original": barlow_twins(32, "original"),
    "everything": [everything(), everything()],
    "five views": [*simsiam(32), *simsiam(32), View(simsiam(32)[0].operations[:-1])],
    "two sizes": [*barlow_twins(32), *barlow_twins(16)],
}


@pytest.mark.parametrize("name", SETS)
def test_sets_of_views(name, monkeypatch):
    """Also where they do not fit into one block."""
    views = SETS[name]
    assert max(differences(views, photos(30))) <= 1e-5
    groups = [numbers for numbers, _ in chains(views)]
    assert groups == {"two sizes": [[0, 1], [2, 3]], "five views": [[0, 1, 2, 3], [4]]}.get(name, [[0, 1]])
    monkeypatch.setattr("diptych.views.together.VALUES_PER_BLOCK", 7 * 3 * 32 * 32 * len(views))
    assert max(differences(views, photos(30))) <= 1e-5


def test_rows_of_the_draws_are_rows_of_the_views():
    views, images = barlow_twins(32), photos(12)
    draws = draws_of(views, 12)
    [(_, chain)] = chains(views)
    both = chain.apply(images, chain.pack(draws, 12, 32, 32))
    part = chain.apply(images[4:8], chain.pack([draw_slice(draw, slice(4, 8)) for draw in draws], 4, 32, 32))
    for mine, of_all in zip(part, both, strict=True):
        torch.testing.assert_close(mine, of_all[4:8], rtol=0, atol=1e-5)


class Own:
    def sample(self, n, rng):
        return {}

    def apply(self, images, draw):
        return images


def test_an_operation_of_ones_own_has_no_other_form():
    assert chains([View([Own()])]) is None and chains([View([type("Derived", (Grayscale,), {})()])]) is None


@pytest.mark.parametrize("name", ["barlow_twins", "simsiam", "the published"])
def test_two_views_take_sixty_launches_on_a_device(name):
    with pretended_device() as device:
        assert (
            max(differences(SETS[name], photos(16), DEVICE)) <= 1e-5
        )  # tables of taps and constants are uploaded once
        views, images = SETS[name], photos(16).to(DEVICE)
        [(_, chain)] = chains(views)
        packed = chain.pack(draws_of(views, 16), 16, 32, 32).to(DEVICE)
        places = torch.arange(16).flip(0).to(DEVICE)
        with device.counting():
            made = chain.apply(images, packed, places)
        assert device.launches <= 60 and device.waits == device.uploads == [], device.launched
        assert all(view.is_contiguous(memory_format=torch.channels_last) for view in made)
        for view, gathered in zip(made, chain.apply(images[places], packed), strict=True):
            assert torch.equal(view.cpu(), gathered.cpu())


@pytest.mark.parametrize("name", ["barlow_twins", "barlow_twins, original"])
def test_no_shape_depends_on_a_draw(name):
    """Traced on fake tensors, which have no numbers to depend on; the trace makes the views of other draws."""
    views, images = SETS[name], photos(8)
    [(_, chain)] = chains(views)
    first, other = (chain.pack([view.sample(8, random_at(which, i)) for i, view in enumerate(views)], 8, 32, 32)
                    for which in "ab")  # fmt: skip
    chain.apply(images, first)  # tables and constants
    traced = make_fx(
        lambda pixels, packed: chain.apply(pixels, packed), tracing_mode="fake", _allow_non_fake_inputs=True
    )(images, first)
    for mine, wanted in zip(traced(images, other), chain.apply(images, other), strict=True):
        assert torch.equal(mine, wanted)
