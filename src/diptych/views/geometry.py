"""Where a view's pixels come from: crop, resize, flip. N images of C channels, H x W pixels; views S x S; K taps.

Resampling an axis makes each of its S output lines a weighted sum of K input lines, its taps. Each image has taps of
its own, and the whole batch is two calls: for columns a product with banded matrices; for rows, which lie in
memory as a whole, a sum of rows, which multiplies nothing by zero. A flip of the view is the order of the taps of
its columns and costs nothing.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from diptych.errors import DataError
from diptych.views.operation import (
    Draw,
    Operation,
    check_pixels,
    check_probability,
    check_range,
    chosen,
    coins,
    require,
)

Interpolation = Literal["bilinear", "bicubic"]
RADIUS = {"bilinear": 1, "bicubic": 2}  # source pixels to each side that an output pixel sees when enlarging
TRIES = 10  # boxes that torchvision's RandomResizedCrop tries before the central one


Taps = tuple[torch.Tensor, torch.Tensor]  # (N, S, K) each: which input lines, with which weights


def box_taps(
    start_N: torch.Tensor,
    length_N: torch.Tensor,
    pixels: int,
    size: int,
    interpolation: Interpolation,
    antialias: bool,
    mirrored_N: torch.Tensor | None = None,
) -> Taps:
    """Resamples lines start .. start + length - 1 of an axis of `pixels` to `size`.

    The weights of torch's `interpolate(align_corners=False)` on the cut-out box, hence torchvision's. With
    antialias the kernel widens when shrinking, is cut off at the box and renormalised, and bicubic has
    a = -0.5: PIL's resize too. Without, it keeps its width, lines outside repeat the border, and a = -0.75.
    """
    device, radius = start_N.device, RADIUS[interpolation]
    stretch_N1 = (length_N / size)[:, None]
    centre_NS = (torch.arange(size, device=device) + 0.5) * stretch_N1 - 0.5  # counted from the box's first line
    if mirrored_N is not None:
        centre_NS = torch.where(mirrored_N[:, None], centre_NS.flip(1), centre_NS)
    # As many taps as the widest possible box needs: no image's result hangs on its neighbours' boxes.
    widest = max(1.0, pixels / size) if antialias else 1.0
    widening_N1 = stretch_N1.clamp(1, widest)
    first_NS = (centre_NS - radius * widening_N1).floor_().add_(1)
    tap_K1 = torch.arange(math.ceil(2 * radius * widest), device=device)[:, None]
    line_NKS = first_NS[:, None] + tap_K1
    distance_NKS = ((first_NS - centre_NS)[:, None] + tap_K1).div_(widening_N1[:, None])
    weight_NKS = kernel(distance_NKS, interpolation, -0.5 if antialias else -0.75)
    inside_NKS = line_NKS.clamp_min(0).minimum((length_N - 1)[:, None, None])
    if antialias:
        weight_NKS.mul_(inside_NKS == line_NKS)
        weight_NKS.div_(weight_NKS.sum(1, keepdim=True))
    inside_NKS.add_(start_N[:, None, None])
    return inside_NKS.long().transpose(1, 2), weight_NKS.transpose(1, 2)


def kernel(distance: torch.Tensor, interpolation: Interpolation, a: float) -> torch.Tensor:
    """The kernel at `distance` source pixels: a triangle, or the cubic of Keys (1981) with its parameter a.

    Keys' two pieces, (a + 2) d^3 - (a + 3) d^2 + 1 up to 1 and a (d^3 - 5 d^2 + 8 d - 4) up to 2, are here
    a v^2 (1 - v) + u^2 (4 a + 3 - 2 u) with u = max(1 - d, 0), v = max(2 - d, 0): the same without a choice.
    """
    d = distance.abs()
    u = (1 - d).clamp_min_(0)
    if interpolation == "bilinear":
        return u
    v = (2 - d).clamp_min_(0)
    return ((1 - v) * v * v).mul_(a).addcmul_(u * u, (4 * a + 3) - 2 * u)


def weigh_columns(images_NCHW: torch.Tensor, taps: Taps) -> torch.Tensor:
    """(N, C, H, S): each output column the weighted sum of the input columns that `taps` names for its image."""
    n, channels, height, width = images_NCHW.shape
    line_NSK, weight_NSK = taps
    size = line_NSK.shape[1]
    matrix_NSW = weight_NSK.new_zeros(n, size, width).scatter_add_(2, line_NSK, weight_NSK)
    flat = images_NCHW.reshape(n, channels * height, width)
    return torch.bmm(flat, matrix_NSW.transpose(1, 2)).view(n, channels, height, size)


def weigh_rows(images_NCHW: torch.Tensor, taps: Taps) -> torch.Tensor:
    """(N, C, S, W): each output row the weighted sum of the input rows that `taps` names for its image."""
    n, channels, height, width = images_NCHW.shape
    line_NSK, weight_NSK = taps
    shape = (n, channels, *line_NSK.shape[1:])
    if n == 0:
        return images_NCHW.new_empty(*shape[:3], width)
    first_row = height * torch.arange(n * channels, device=images_NCHW.device).view(n, channels, 1, 1)
    row = (line_NSK[:, None] + first_row).reshape(-1, shape[3])
    weight = weight_NSK[:, None].expand(shape).reshape(-1, shape[3])
    table = images_NCHW.reshape(-1, width)  # all rows of all channels of all images
    return F.embedding_bag(row, table, per_sample_weights=weight, mode="sum").view(*shape[:3], width)


def resample(images: torch.Tensor, rows: Taps, columns: Taps, clamp: bool = False) -> torch.Tensor:
    """(N, 3, H, W) -> (N, 3, S, S). clamp: to [0, 1] after each axis, for weights that can leave it."""
    wide = weigh_columns(images, columns)
    wide = wide.clamp_(0, 1) if clamp else wide
    views = weigh_rows(wide, rows)
    return views.clamp_(0, 1) if clamp else views


def check_interpolation(name: str, interpolation: str) -> None:
    known = ", ".join(RADIUS)
    require(interpolation in RADIUS, f"{name}: interpolation is {interpolation!r}; choose one of {known}")


@dataclass(eq=False)
class RandomResizedCrop(Operation):
    """A random box of the image, resized to `size` x `size`.

    torchvision's algorithm: area U(scale) of the image, log aspect ratio U(log ratio), a box of whole pixels,
    ten tries to fit, then the central box. Weights: `box_taps`. Bicubic overshoots; it is clamped
    to [0, 1] after each axis, as PIL and torchvision do with the 8-bit images of the published programs.
    """

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Interpolation = "bilinear"
    antialias: bool = True

    def __post_init__(self) -> None:
        check_pixels("random_resized_crop", "size", self.size, 1)
        self.scale = check_range("random_resized_crop", "scale", self.scale, 0, 1)
        self.ratio = check_range("random_resized_crop", "ratio", self.ratio, 0)
        check_interpolation("random_resized_crop", self.interpolation)

    def sample(self, n: int, rng: torch.Generator) -> Draw:
        """Uniform numbers, for images of any size: `area`, `ratio` (n, 10), one a try; `top`, `left` (n,)."""
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
        found, first = fits.any(1), fits.int().argmax(1, keepdim=True)
        # the central box: the whole image, cut to the nearest allowed ratio
        central_wide, central_high = min(width, round(height * broad)), min(height, round(width / narrow))
        wide = torch.where(found, wide.gather(1, first).squeeze(1), central_wide)
        high = torch.where(found, high.gather(1, first).squeeze(1), central_high)
        top = torch.where(found, draw["top"] * (height - high + 1), (height - high) / 2).floor()
        left = torch.where(found, draw["left"] * (width - wide + 1), (width - wide) / 2).floor()
        return torch.stack((top, left, high, wide), 1).long()

    def apply_(self, images: torch.Tensor, draw: Draw, mirrored: torch.Tensor | None = None) -> torch.Tensor:
        """As in Operation; `mirrored` (N,) bool: the views that are also flipped, left for right."""
        height, width = images.shape[2:]
        boxes = self.boxes(draw, height, width).T.to(images.device, torch.float32, non_blocking=True)
        top_N, left_N, high_N, wide_N = boxes
        if mirrored is not None:
            mirrored = mirrored.to(images.device, non_blocking=True)
        how = (self.size, self.interpolation, self.antialias)
        rows = box_taps(top_N, high_N, height, *how)
        columns = box_taps(left_N, wide_N, width, *how, mirrored)
        return resample(images, rows, columns, clamp=self.interpolation == "bicubic")

    def __str__(self) -> str:
        (small, large), (narrow, broad) = self.scale, self.ratio
        return (
            f"crop {small:.0%} to {large:.0%} of the area, aspect ratio {narrow:.2f} to {broad:.2f}, "
            f"resize to {self.size} x {self.size} ({self.interpolation})"
        )


@dataclass(eq=False)
class RandomCrop(Operation):
    """A `size` x `size` box anywhere in the image, which first gets a black border of `padding` pixels."""

    size: int
    padding: int = 0

    def __post_init__(self) -> None:
        check_pixels("random_crop", "size", self.size, 1)
        check_pixels("random_crop", "padding", self.padding, 0)

    def sample(self, n: int, rng: torch.Generator) -> Draw:
        """Uniform numbers `top` and `left`, each (n,): where in the room there is."""
        top, left = torch.rand(n, 2, generator=rng).unbind(1)
        return {"top": top, "left": left}

    def corners(self, draw: Draw, height: int, width: int) -> torch.Tensor:
        """(N, 2) int64 on the CPU: top and left of each box in the image with its border."""
        down, across = (side + 2 * self.padding - self.size for side in (height, width))
        if min(down, across) < 0:
            raise DataError(f"random_crop: size {self.size} does not fit {height} x {width} images; raise padding")
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
    """The whole image to `size` x `size` by torch's `interpolate`; proportions are not kept."""

    size: int
    interpolation: Interpolation = "bilinear"
    antialias: bool = True

    def __post_init__(self) -> None:
        check_pixels("resize", "size", self.size, 1)
        check_interpolation("resize", self.interpolation)

    def sample(self, n: int, rng: torch.Generator) -> Draw:
        return {}

    def apply_(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        for shape in ((images.shape[2], self.size), (self.size, self.size)):  # one axis, then the other
            images = F.interpolate(images, shape, mode=self.interpolation, antialias=self.antialias)
            images = images.clamp_(0, 1) if self.interpolation == "bicubic" else images  # as RandomResizedCrop
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
        return images.index_copy_(0, index, images.index_select(0, index).flip(3))

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
        return images.index_copy_(0, index, images.index_select(0, index).flip(2))

    def __str__(self) -> str:
        return f"{self.p:.0%}: top becomes bottom"
