"""What a view draws, in distribution: probabilities, uniform factors, orders, boxes. Seeds are fixed."""

import math

import pytest
import torch
from torchvision.transforms import v2

from diptych.base.random_at import random_at
from diptych.views import (
    OPERATIONS,
    ColorJitter,
    GaussianBlur,
    RandomCrop,
    RandomResizedCrop,
    View,
    barlow_twins,
    simsiam,
)

N = 20_000
COINS = ["horizontal_flip", "vertical_flip", "color_jitter", "grayscale", "gaussian_blur", "solarize"]


def surprise(observed: torch.Tensor, expected: torch.Tensor) -> float:
    """Pearson's chi-square in standard deviations from its mean: beyond 5, the counts are not as `expected`."""
    chi_square, freedom = ((observed - expected) ** 2 / expected).sum().item(), len(observed) - 1
    return (chi_square - freedom) / math.sqrt(2 * freedom)


def uniform_surprise(values: torch.Tensor, low: float, high: float, bins: int = 40) -> float:
    assert values.min() >= low - 1e-6 and values.max() <= high + 1e-6
    return surprise(torch.histc(values, bins, low, high), torch.full((bins,), len(values) / bins))


def difference(first: torch.Tensor, second: torch.Tensor, bins: int = 20) -> float:
    """The same for two samples of one size, counted between the quantiles of both together."""
    both = torch.cat((first, second)).double()
    edges = both.quantile(torch.linspace(0, 1, bins + 1).double()[1:-1]).unique()
    a, b = (torch.bincount(torch.bucketize(x.double(), edges), minlength=bins) for x in (first, second))
    a, b = (counts[(a + b) > 0].double() for counts in (a, b))
    chi_square, freedom = ((a - b) ** 2 / (a + b)).sum().item(), len(a) - 1
    return (chi_square - freedom) / math.sqrt(2 * freedom)


def test_surprise_can_be_large():
    values = torch.rand(N, generator=random_at("uniform"))
    assert uniform_surprise(values, 0, 1) < 5 < uniform_surprise(values**1.05, 0, 1)
    assert difference(values, values.flip(0)) < 5 < difference(values, values**1.1)


@pytest.mark.parametrize("name", COINS)
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.8, 1.0])
def test_p_is_a_frequency(name, p):
    coins = OPERATIONS[name](p=p).sample(N, random_at(name, str(p)))["chosen"]
    assert abs(coins.sum().item() - N * p) <= 4.5 * math.sqrt(N * p * (1 - p))


def test_coins_of_neighbours_are_independent():
    coins = View([OPERATIONS[name](p=0.5) for name in COINS]).sample(N, random_at("neighbours"))
    columns = torch.stack([draw["chosen"].float() for draw in coins])
    assert (columns.corrcoef() - torch.eye(len(COINS))).abs().max() < 4.5 / math.sqrt(N)
    assert (torch.stack([columns[0, 1:], columns[0, :-1]]).corrcoef()[0, 1]).abs() < 4.5 / math.sqrt(N)


def test_factors_are_uniform():
    draw = ColorJitter(0.4, 0.3, 1.5, 0.1).sample(N, random_at("factors"))
    ranges = {"brightness": (0.6, 1.4), "contrast": (0.7, 1.3), "saturation": (0.0, 2.5), "hue": (-0.1, 0.1)}
    for key, (low, high) in ranges.items():
        assert uniform_surprise(draw[key], low, high) < 5, key
    factors = torch.stack([draw[key] for key in ranges])
    assert (factors.corrcoef() - torch.eye(4)).abs().max() < 4.5 / math.sqrt(N)


def test_sigma_is_uniform():
    assert uniform_surprise(GaussianBlur(sigma=(0.1, 2.0)).sample(N, random_at("sigma"))["sigma"], 0.1, 2.0) < 5


def test_each_image_draws_one_of_24_orders():
    order = ColorJitter(0.4, 0.4, 0.4, 0.1).sample(N, random_at("orders"))["order"]
    assert torch.equal(order.sort(1).values, torch.arange(4).expand(N, 4))
    counts = torch.bincount((order * torch.tensor([64, 16, 4, 1])).sum(1))
    assert surprise(counts[counts > 0].float(), torch.full((24,), N / 24)) < 5


def test_random_crop_reaches_every_corner_alike():
    crop = RandomCrop(32, padding=2)
    top, left = crop.corners(crop.sample(N, random_at("corners")), 32, 32).T
    assert surprise(torch.bincount(top * 5 + left).float(), torch.full((25,), N / 25)) < 5


@pytest.mark.parametrize(("height", "width"), [(32, 32), (40, 90)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.2, 1.0)])
def test_boxes_are_distributed_as_torchvisions(height, width, scale):
    crop, theirs = RandomResizedCrop(32, scale=scale), v2.RandomResizedCrop(32, scale=scale, antialias=True)
    ours = crop.boxes(crop.sample(N, random_at("ours", height)), height, width).T
    with torch.random.fork_rng():
        torch.manual_seed(1)
        image = [torch.empty(3, height, width)]
        made = [theirs.make_params(image) for _ in range(2000)]
    theirs = torch.tensor([[box[key] for key in ("top", "left", "height", "width")] for box in made]).T
    ours = ours[:, :2000]
    for ours_now, theirs_now in zip([*ours, ours[2] * ours[3]], [*theirs, theirs[2] * theirs[3]], strict=True):
        assert difference(theirs_now, ours_now) < 5


def test_area_is_uniform_where_every_box_fits():
    """Square-ish boxes up to half the area always fit: the area then is U(scale), the log ratio uniform."""
    crop = RandomResizedCrop(32, scale=(0.1, 0.5))
    _, _, high, wide = crop.boxes(crop.sample(N, random_at("area")), 1000, 1000).T.float()
    assert uniform_surprise((high * wide / 1e6).clamp(0.1, 0.5), 0.1, 0.5) < 5
    edge = math.log(4 / 3)
    assert uniform_surprise((wide / high).log().clamp(-edge, edge), -edge, edge, bins=20) < 5


@pytest.mark.parametrize("make", [barlow_twins, simsiam])
def test_a_fifth_of_the_views_is_gray(make):
    """On the pixels themselves: noise stays coloured unless `grayscale` fell."""
    images = torch.rand(1500, 3, 8, 8, generator=random_at("coloured"))
    for which, view in enumerate(make(8, normalization=((0, 0, 0), (1, 1, 1)))):
        views = view(images, random_at("gray", make.__name__, which))
        gray = (views.amax(1) - views.amin(1)).flatten(1).amax(1) < 1e-6
        assert abs(gray.sum().item() - 300) < 4.5 * math.sqrt(1500 * 0.2 * 0.8)
