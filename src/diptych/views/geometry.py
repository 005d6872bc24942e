"""Geometric operations: crop, resize, flip. N images of H x W pixels; views S x S."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from diptych.base.errors import RecipeError
from diptych.base.random_at import Draw
from diptych.views.operation import (
    Operation,
    check_pixels,
    check_probability,
    check_range,
    chosen,
    coins,
    require,
)
from diptych.views.resample import RADIUS, Axis, Interpolation, WholeBoxTaps, resample

TRIES = 10  # boxes that torchvision's RandomResizedCrop tries before it takes the central one


def check_interpolation(name: str, interpolation: str) -> None:
    known = ", ".join(RADIUS)
    require(interpolation in RADIUS, f"{name}: interpolation is {interpolation!r}; choose one of {known}")


@dataclass(eq=False)
class RandomResizedCrop(Operation):
    """A random box of the image, resized to `size` x `size`.

    torchvision's algorithm: draw area U(scale) of the image and log aspect ratio U(log ratio), round to whole pixels,
    try ten times to fit the box, then take the central box. Weights: `resample.box_taps`. Bicubic overshoots, so it is
    clamped to [0, 1] after each axis, as PIL and torchvision do with the 8-bit images of the published programs.
    """

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Interpolation = "bilinear"
    antialias: bool = True
    takes_bytes = True

    def __post_init__(self) -> None:
        check_pixels("random_resized_crop", "size", self.size, 1)
        self.scale = check_range("random_resized_crop", "scale", self.scale, 0, 1)
        self.ratio = check_range("random_resized_crop", "ratio", self.ratio, 0, 1000)
        check_interpolation("random_resized_crop", self.interpolation)
        self._taps = WholeBoxTaps()

    def sample(self, n: int, rng: torch.Generator) -> Draw:
        """Uniform numbers for images of any size: `area`, `ratio` (n, 10), one per try; `top`, `left` (n,)."""
        numbers = torch.rand(n, 2 * TRIES + 2, generator=rng)
        area, ratio, top, left = numbers.split((TRIES, TRIES, 1, 1), 1)
        return {"area": area, "ratio": ratio, "top": top.squeeze(1), "left": left.squeeze(1)}

    def boxes(self, draw: Draw, height: int, width: int) -> torch.Tensor:
        """(N, 4) int64 on the CPU: top, left, height, width of each box in a `height` x `width` image."""
        (small, large), (narrow, broad) = self.scale, self.ratio
        area = (draw["area"].double() * (large - small) + small) * (height * width)
        stretch = math.log(broad / narrow)
        ratio = (draw["ratio"].double() * stretch + math.log(narrow)).exp()
        wide, high = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
        fits = (wide >= 1) & (wide <= width) & (high >= 1) & (high <= height)
        any_fits, first = fits.any(1), fits.int().argmax(1, keepdim=True)
        # the central box: the image, cut to the nearest allowed ratio
        central_wide, central_high = (
            max(1, min(width, round(height * broad))),
            max(1, min(height, round(width / narrow))),
        )
        wide = torch.where(any_fits, wide.gather(1, first).squeeze(1), central_wide)
        high = torch.where(any_fits, high.gather(1, first).squeeze(1), central_high)
        top = torch.where(any_fits, draw["top"] * (height - high + 1), (height - high) / 2).floor()
        left = torch.where(any_fits, draw["left"] * (width - wide + 1), (width - wide) / 2).floor()
        return torch.stack((top, left, high, wide), 1).long()

    def apply_(self, images: torch.Tensor, draw: Draw, mirrored: torch.Tensor | None = None) -> torch.Tensor:
        """As in Operation; `mirrored` (N,) bool: which views are also flipped horizontally."""
        height, width = images.shape[2:]
        top_N, left_N, high_N, wide_N = self.boxes(draw, height, width).T.to(images.device, non_blocking=True)
        if mirrored is not None:
            mirrored = mirrored.to(images.device, non_blocking=True)
        how = (self.size, self.interpolation, self.antialias)
        rows = self._taps(top_N, high_N, Axis(height, *how))
        columns = self._taps(left_N, wide_N, Axis(width, *how), mirrored)
        return resample(images, rows, columns, clamp=self.interpolation == "bicubic")

    def __str__(self) -> str:
        (small, large), (narrow, broad) = self.scale, self.ratio
        return (
            f"crop {small:.0%} to {large:.0%} of the area, aspect ratio {narrow:.2f} to {broad:.2f}, "
            f"resize to {self.size} x {self.size} ({self.interpolation})"
        )


@dataclass(eq=False)
class RandomCrop(Operation):
    """A random `size` x `size` box of the image, which first gets a black border of `padding` pixels."""

    size: int
    padding: int = 0

    def __post_init__(self) -> None:
        check_pixels("random_crop", "size", self.size, 1)
        check_pixels("random_crop", "padding", self.padding, 0)

    def sample(self, n: int, rng: torch.Generator) -> Draw:
        """Uniform numbers `top` and `left`, (n,): the position of the box as a share of the possible range."""
        top, left = torch.rand(n, 2, generator=rng).unbind(1)
        return {"top": top, "left": left}

    def corners(self, draw: Draw, height: int, width: int) -> torch.Tensor:
        """(N, 2) int64 on the CPU: top and left of each box in the image with its border."""
        down, across = (side + 2 * self.padding - self.size for side in (height, width))
        if min(down, across) < 0:
            raise RecipeError(f"random_crop: size {self.size} does not fit {height} x {width} images; raise padding")
        top, left = draw["top"].double() * (down + 1), draw["left"].double() * (across + 1)
        return torch.stack((top, left), 1).long()

    def apply_(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        n, channels, height, width = images.shape
        top, left = self.corners(draw, height, width).T.to(images.device, non_blocking=True)[..., None, None]
        image, channel, pixel = (torch.arange(k, device=images.device) for k in (n, channels, self.size))
        row, column = top[..., None] + pixel[:, None], left[..., None] + pixel
        return F.pad(images, (self.padding,) * 4)[image[:, None, None, None], channel[:, None, None], row, column]

    def __str__(self) -> str:
        border = f" of the image with a border of {self.padding}" if self.padding else ""
        return f"crop {self.size} x {self.size} anywhere{border}"


@dataclass(eq=False)
class Resize(Operation):
    """Resize the image to `size` x `size` by torch's `interpolate`; the aspect ratio is not preserved."""

    size: int
    interpolation: Interpolation = "bilinear"
    antialias: bool = True

    def __post_init__(self) -> None:
        check_pixels("resize", "size", self.size, 1)
        check_interpolation("resize", self.interpolation)

    def sample(self, n: int, rng: torch.Generator) -> Draw:
        return {}

    def apply_(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        for shape in ((images.shape[2], self.size), (self.size, self.size)):  # one axis after the other
            images = F.interpolate(images, shape, mode=self.interpolation, antialias=self.antialias)
            images = images.clamp_(0, 1) if self.interpolation == "bicubic" else images  # as RandomResizedCrop
        return images

    def __str__(self) -> str:
        return f"resize to {self.size} x {self.size} ({self.interpolation})"


@dataclass(eq=False)
class HorizontalFlip(Operation):
    """With probability p, swap left and right."""

    p: float = 0.5
    commutes_with_flip = True

    def __post_init__(self) -> None:
        check_probability("horizontal_flip", self.p)

    def sample(self, n: int, rng: torch.Generator) -> Draw:
        return {"chosen": coins(n, self.p, rng)}

    def apply_(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        index = chosen(draw, images.device)
        return images.index_copy_(0, index, images.index_select(0, index).flip(3))

    def __str__(self) -> str:
        return f"{self.p:.0%}: left becomes right"


@dataclass(eq=False)
class VerticalFlip(Operation):
    """With probability p, swap top and bottom."""

    p: float = 0.5
    commutes_with_flip = True

    def __post_init__(self) -> None:
        check_probability("vertical_flip", self.p)

    def sample(self, n: int, rng: torch.Generator) -> Draw:
        return {"chosen": coins(n, self.p, rng)}

    def apply_(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        index = chosen(draw, images.device)
        return images.index_copy_(0, index, images.index_select(0, index).flip(2))

    def __str__(self) -> str:
        return f"{self.p:.0%}: top becomes bottom"
