"""Where the pixels of a view come from: crop, resize, flip. N images, H x W source pixels, S output pixels, K taps.

A resampling of one axis is a matrix, S rows of a few weights; a crop is two of them around the image, rows_SH @ image_HW @
columns_SW^T, as two batched products for the whole batch, every image with its own box. A flip reverses the order of the
columns' rows and so costs nothing.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from diptych.errors import DataError
from diptych.views.operation import (
    Draw,
    Operation,
    check_probability,
    check_range,
    check_size,
    chosen,
    coins,
    require,
)

RADIUS = {"bilinear": 1, "bicubic": 2}  # source pixels on each side that one output pixel looks at, when enlarging
TRIES = 10  # torchvision's RandomResizedCrop: boxes tried before the central one


def interpolation_matrix(
    start_N: torch.Tensor, length_N: torch.Tensor, pixels: int, size: int, interpolation: str, antialias: bool,
    mirrored_N: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """(N, size, pixels): resamples the pixels start .. start + length - 1 of an axis to `size` (half-pixel centres).

    The weights are those of torch's `interpolate(align_corners=False)` on the cut-out box, hence torchvision's. With
    antialias the kernel widens when shrinking, is cut at the box and renormalised, and bicubic has a = -0.5: as PIL's
    resize. Without, it keeps its width, pixels outside repeat the border, and bicubic has a = -0.75.
    """
    stretch_N1 = (length_N / size)[:, None]
    centre_NS = (torch.arange(size, device=start_N.device) + 0.5) * stretch_N1 - 0.5  # in pixels from the box's first
    if mirrored_N is not None:
        centre_NS = torch.where(mirrored_N[:, None], centre_NS.flip(1), centre_NS)
    # as many taps as the widest possible box needs, so that no image's result hangs on its neighbours' boxes
    widest = max(1.0, pixels / size) if antialias else 1.0
    widening_N1 = stretch_N1.clamp(1, widest)
    first_NS = (centre_NS - RADIUS[interpolation] * widening_N1).floor_().add_(1)
    tap_K1 = torch.arange(math.ceil(2 * RADIUS[interpolation] * widest), device=start_N.device)[:, None]
    pixel_NKS = first_NS[:, None] + tap_K1
    distance_NKS = ((first_NS - centre_NS)[:, None] + tap_K1).div_(widening_N1[:, None])
    weight_NKS = kernel(distance_NKS, interpolation, -0.5 if antialias else -0.75)
    inside_NKS = pixel_NKS.clamp_min(0).minimum((length_N - 1)[:, None, None])
    if antialias:
        weight_NKS.mul_(inside_NKS == pixel_NKS)
        weight_NKS.div_(weight_NKS.sum(1, keepdim=True))
    pixel_NKS = inside_NKS.add_(start_N[:, None, None]).long()
    return banded(pixel_NKS.transpose(1, 2), weight_NKS.transpose(1, 2), pixels)


def kernel(distance: torch.Tensor, interpolation: str, a: float) -> torch.Tensor:
    """The interpolation kernel at `distance` source pixels: a triangle, or Keys' cubic (1981) with its parameter a.

    Keys' two pieces, (a + 2) d^3 - (a + 3) d^2 + 1 up to 1 and a (d^3 - 5 d^2 + 8 d - 4) up to 2, are here
    a v^2 (1 - v) + u^2 (4 a + 3 - 2 u) with u = max(1 - d, 0), v = max(2 - d, 0): the same without a choice.
    """
    d = distance.abs()
    u = (1 - d).clamp_min_(0)
    if interpolation == "bilinear":
        return u
    v = (2 - d).clamp_min_(0)
    return ((1 - v) * v * v).mul_(a).addcmul_(u * u, (4 * a + 3) - 2 * u)


def banded(pixel_NSK: torch.Tensor, weight_NSK: torch.Tensor, pixels: int) -> torch.Tensor:
    """(N, S, pixels): weight k of output s stands in column pixel[.., s, k]; weights that meet are added."""
    return weight_NSK.new_zeros(*pixel_NSK.shape[:2], pixels).scatter_add_(2, pixel_NSK, weight_NSK)


def resample(images: torch.Tensor, rows_NSH: torch.Tensor, columns_NSW: torch.Tensor, clamp: bool = False) -> torch.Tensor:
    """rows @ image @ columns^T for every image and channel: (N, 3, H, W) -> (N, 3, S, S).

    clamp: to [0, 1] after each of the two, where weights below 0 can leave it.
    """
    n, channels, height, width = images.shape
    wide = torch.bmm(images.reshape(n, channels * height, width), columns_NSW.transpose(1, 2))
    wide = wide.clamp_(0, 1) if clamp else wide
    views = torch.matmul(rows_NSH[:, None], wide.view(n, channels, height, columns_NSW.shape[1]))
    return views.clamp_(0, 1) if clamp else views


@dataclass(eq=False)
class RandomResizedCrop(Operation):
    """A random box, resized to `size` x `size`. torchvision's algorithm: area U(scale), log aspect ratio U(log ratio), integer
    box, ten tries, then the central box. Weights: see `interpolation_matrix`. Bicubic is clamped to [0, 1], as on 8-bit images.
    """

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bilinear"
    antialias: bool = True

    def __post_init__(self) -> None:
        check_size("random_resized_crop", self.size)
        self.scale = check_range("random_resized_crop", "scale", self.scale, 0, 1)
        self.ratio = check_range("random_resized_crop", "ratio", self.ratio, 0, math.inf)
        check_interpolation("random_resized_crop", self.interpolation)

    def sample(self, n: int, rng: torch.Generator) -> Draw:
        numbers = torch.rand(n, 2 * TRIES + 2, generator=rng)
        return {
            "area": numbers[:, :TRIES], "ratio": numbers[:, TRIES:-2], "top": numbers[:, -2], "left": numbers[:, -1],
        }  # fmt: skip

    def boxes(self, draw: Draw, height: int, width: int) -> torch.Tensor:
        """(N, 4) int64 on the CPU: top, left, height, width in pixels of a `height` x `width` image."""
        area = height * width * lerp64(draw["area"], *self.scale)
        ratio = lerp64(draw["ratio"], *(math.log(r) for r in self.ratio)).exp()
        wide, high = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
        fits = (wide >= 1) & (wide <= width) & (high >= 1) & (high <= height)
        first = fits.int().argmax(1, keepdim=True)
        low, top = self.ratio
        fallback_w = min(width, round(height * top)) if width / height > top else width
        fallback_h = min(height, round(width / low)) if width / height < low else height
        some = fits.any(1)
        wide = torch.where(some, wide.gather(1, first).squeeze(1), fallback_w)
        high = torch.where(some, high.gather(1, first).squeeze(1), fallback_h)
        # randint(0, room + 1), or the middle
        left = torch.where(some, (draw["left"].double() * (width - wide + 1)).floor(), (width - wide) // 2)
        top = torch.where(some, (draw["top"].double() * (height - high + 1)).floor(), (height - high) // 2)
        return torch.stack((top, left, high, wide), 1).long()

    def apply_(self, images: torch.Tensor, draw: Draw, mirrored: torch.Tensor | None = None) -> torch.Tensor:
        """As in Operation; `mirrored` (N,) bool: images that also get a horizontal flip, in the same resampling."""
        height, width = images.shape[-2:]
        box_4N = self.boxes(draw, height, width).T.to(images.device, torch.float32, non_blocking=True)
        if mirrored is not None:
            mirrored = mirrored.to(images.device, non_blocking=True)
        how = (self.size, self.interpolation, self.antialias)
        rows = interpolation_matrix(box_4N[0], box_4N[2], height, *how)
        columns = interpolation_matrix(box_4N[1], box_4N[3], width, *how, mirrored)
        return resample(images, rows, columns, clamp=self.interpolation == "bicubic")

    def __str__(self) -> str:
        (small, large), (low, high) = self.scale, self.ratio
        return (
            f"crop {small:.0%} to {large:.0%} of the area, aspect ratio {low:.2f} to {high:.2f}, "
            f"resize to {self.size} x {self.size} ({self.interpolation})"
        )


@dataclass(eq=False)
class RandomCrop(Operation):
    """A `size` x `size` box at a random place of the image after a black border of `padding` pixels."""

    size: int
    padding: int = 0

    def __post_init__(self) -> None:
        check_size("random_crop", self.size)
        ok = isinstance(self.padding, int) and self.padding >= 0
        require(ok, f"random_crop: padding is {self.padding!r}; give 0 or more pixels")

    def sample(self, n: int, rng: torch.Generator) -> Draw:
        numbers = torch.rand(n, 2, generator=rng)
        return {"top": numbers[:, 0], "left": numbers[:, 1]}

    def corners(self, draw: Draw, height: int, width: int) -> torch.Tensor:
        """(N, 2) int64 on the CPU: top and left of each box in the padded image."""
        room = [side + 2 * self.padding - self.size for side in (height, width)]
        if min(room) < 0:
            raise DataError(f"random_crop: {height} x {width} images are too small for size {self.size}; raise padding")
        return torch.stack([(draw[k].double() * (r + 1)).floor().long() for k, r in zip(("top", "left"), room, strict=True)], 1)

    def apply_(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        n, channels, height, width = images.shape
        corner = self.corners(draw, height, width).to(images.device, non_blocking=True)
        padded = F.pad(images, (self.padding,) * 4)
        row, column = (corner[:, i, None] + torch.arange(self.size, device=images.device) for i in (0, 1))
        one, channel = (torch.arange(k, device=images.device) for k in (n, channels))
        return padded[one[:, None, None, None], channel[:, None, None], row[:, None, :, None], column[:, None, None, :]]

    def __str__(self) -> str:
        return f"crop {self.size} x {self.size} anywhere" + (f", border of {self.padding}" if self.padding else "")


@dataclass(eq=False)
class Resize(Operation):
    """The whole image to `size` x `size` (a side ratio other than 1 is not kept), as torch's `interpolate`; bicubic clamped."""

    size: int
    interpolation: str = "bilinear"
    antialias: bool = True

    def __post_init__(self) -> None:
        check_size("resize", self.size)
        check_interpolation("resize", self.interpolation)

    def sample(self, n: int, rng: torch.Generator) -> Draw:
        return {}

    def apply_(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        for shape in ((images.shape[2], self.size), (self.size, self.size)):
            images = F.interpolate(images, shape, mode=self.interpolation, antialias=self.antialias)
            images = images.clamp_(0, 1) if self.interpolation == "bicubic" else images
        return images

    def __str__(self) -> str:
        return f"resize to {self.size} x {self.size} ({self.interpolation})"


@dataclass(eq=False)
class HorizontalFlip(Operation):
    """Left becomes right with probability p."""

    p: float = 0.5
    commutes_with_flip = True

    def __post_init__(self) -> None:
        check_probability("horizontal_flip", self.p)

    def sample(self, n: int, rng: torch.Generator) -> Draw:
        return {"chosen": coins(n, self.p, rng)}

    def apply_(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        index = chosen(draw, images.device)
        return images.index_copy_(0, index, images.index_select(0, index).flip(-1))

    def __str__(self) -> str:
        return f"{self.p:.0%}: left becomes right"


@dataclass(eq=False)
class VerticalFlip(Operation):
    """Top becomes bottom with probability p."""

    p: float = 0.5
    commutes_with_flip = True

    def __post_init__(self) -> None:
        check_probability("vertical_flip", self.p)

    def sample(self, n: int, rng: torch.Generator) -> Draw:
        return {"chosen": coins(n, self.p, rng)}

    def apply_(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        index = chosen(draw, images.device)
        return images.index_copy_(0, index, images.index_select(0, index).flip(-2))

    def __str__(self) -> str:
        return f"{self.p:.0%}: top becomes bottom"


def check_interpolation(name: str, interpolation: str) -> None:
    require(interpolation in RADIUS, f"{name}: interpolation is {interpolation!r}; choose one of {', '.join(RADIUS)}")


def lerp64(unit: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """low + unit * (high - low) in float64, where a box's rounding is decided."""
    return unit.double() * (high - low) + low
