"""The published sets of views that no other test reads line by line: SimCLR's, and multi-crop of SwAV and DINO."""

import pytest
import torch
from test_views import lines

from diptych.base.random_at import random_at
from diptych.views import CIFAR10, View, dino, simclr, swav

BLUR = "{}: Gaussian blur, sigma 0.1 to 2 pixels, kernel a tenth of the side"
JITTER = "80%: brightness {0:g}, contrast {0:g}, saturation {1:g}, hue {2:g}, in an order drawn per image"
CROP, GRAY, FLIP = "crop {}% to {}% of the area, resize to {} x {} {}", "20%: grayscale", "50%: left becomes right"


def test_simclr():
    """Appendices A and B.9."""
    first, second = map(lines, simclr(224))
    assert first == second
    assert first == [
        CROP.format(8, 100, 224, 224, "bicubic"),
        FLIP,
        JITTER.format(0.8, 0.8, 0.2),
        GRAY,
        BLUR.format("50%"),
    ]
    assert lines(simclr(32)[1]) == [CROP.format(8, 100, 32, 32, "bicubic"), FLIP, JITTER.format(0.4, 0.4, 0.1), GRAY]
    assert simclr(32, normalization=CIFAR10)[0].normalization == CIFAR10


def test_swav():
    views = [lines(view) for view in swav()]
    large, small = CROP.format(14, 100, 224, 224, "bilinear"), CROP.format(5, 14, 96, 96, "bilinear")
    assert [view[0] for view in views] == [large] * 2 + [small] * 6
    assert all(view[1:5] == [FLIP, JITTER.format(0.8, 0.8, 0.2), GRAY, BLUR.format("50%")] for view in views)


def test_dino():
    views = [lines(view) for view in dino()]
    large, small = CROP.format(40, 100, 224, 224, "bicubic"), CROP.format(5, 40, 96, 96, "bicubic")
    assert [view[0] for view in views] == [large] * 2 + [small] * 8
    assert all(view[1:4] == [FLIP, JITTER.format(0.4, 0.2, 0.1), GRAY] for view in views)
    assert [view[4] for view in views] == [BLUR.format(share) for share in ("100%", "10%", *["50%"] * 8)]
    assert ["solarize" in str(view) for view in views] == [False, True, *[False] * 8]
    assert lines(dino(small_views=0)[0])[0] == CROP.format(14, 100, 224, 224, "bicubic")


@pytest.mark.parametrize("views", [simclr(16), swav(16, 8, 2), dino(16, 8, 2)])
def test_equal_images_become_different_views(views: list[View]):
    images = torch.randint(256, (1, 3, 24, 24), dtype=torch.uint8, generator=random_at("image")).expand(16, -1, -1, -1)
    for place, view in enumerate(views):
        pixels = view(images, random_at(0, "views", 0, place))
        assert len({one.numpy().tobytes() for one in pixels}) == 16 and pixels.isfinite().all()
        assert pixels.shape[2:] == ((16, 16) if place < 2 else (8, 8))
