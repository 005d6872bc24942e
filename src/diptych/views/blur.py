"""Gaussian blur with a separate sigma for each image. N images (N, 3, H, W), S pixels along an axis, K taps."""

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
    uniform,
)
from diptych.views.resample import Taps, resample


def default_taps(pixels: int) -> int:
    """About a tenth of the side, odd, at least 3: 23 at 224 pixels (SimCLR, arXiv:2002.05709, A), 3 at 32."""
    return max(3, 2 * (pixels // 20) + 1)


def gaussian_taps(sigma_N: torch.Tensor, taps: int, pixels: int) -> Taps:
    """Taps that convolve an axis of S pixels with a Gaussian of K taps that sum to 1, with reflected borders."""
    offset_K = torch.arange(taps, device=sigma_N.device) - taps // 2
    weight_NK = torch.softmax(-0.5 * (offset_K / sigma_N[:, None].clamp_min(1e-3)).square(), 1)
    weight_NK = F.threshold(weight_NK, 1e-12, 0)  # denormal numbers make a CPU five times slower
    line_SK = (torch.arange(pixels, device=sigma_N.device)[:, None] + offset_K).abs()  # reflects at the first
    line_SK = (pixels - 1) - (pixels - 1 - line_SK).abs()  # ... and at the last line
    shape = (len(sigma_N), pixels, taps)
    return line_SK.expand(shape), weight_NK[:, None].expand(shape)


@dataclass(eq=False)
class GaussianBlur(Operation):
    """With probability p, blur by a Gaussian with sigma U(sigma) pixels; `kernel` taps, by default a tenth of the side.

    Weights and border are torchvision's. The original Barlow Twins uses PIL, which approximates an untruncated
    Gaussian by box filters. At 224 pixels and sigma <= 2, 23 taps cover it; at 32 pixels, 3 taps blur less.
    """

    p: float = 0.5
    sigma: tuple[float, float] = (0.1, 2.0)
    kernel: int | None = None
    commutes_with_flip = True

    def __post_init__(self) -> None:
        check_probability("gaussian_blur", self.p)
        self.sigma = check_range("gaussian_blur", "sigma", self.sigma, 0, 1000)
        if self.kernel is not None:
            check_pixels("gaussian_blur", "kernel", self.kernel, 1)
            odd = self.kernel % 2 == 1
            require(odd, f"gaussian_blur: kernel is {self.kernel}; give an odd number of pixels")

    def sample(self, n: int, rng: torch.Generator) -> Draw:
        return {"chosen": coins(n, self.p, rng), "sigma": uniform(n, *self.sigma, rng)}

    def apply_(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        height, width = images.shape[2:]
        taps = self.taps(height, width)
        index = chosen(draw, images.device)
        sigma_N = draw["sigma"][draw["chosen"]].to(images.device, non_blocking=True)
        rows = gaussian_taps(sigma_N, taps, height)
        columns = rows if width == height else gaussian_taps(sigma_N, taps, width)
        if len(index) == len(images):  # p = 1, as in Barlow Twins' first view: no selection is needed
            return resample(images, rows, columns)
        return images.index_copy_(0, index, resample(images.index_select(0, index), rows, columns))

    def taps(self, height: int, width: int) -> int:
        """The taps for images of this size. Raises RecipeError where the images are too small for them."""
        taps = self.kernel or default_taps(min(height, width))
        if taps // 2 >= min(height, width):
            raise RecipeError(f"gaussian_blur: kernel {taps} is too large for {height} x {width} images")
        return taps

    def __str__(self) -> str:
        low, high = self.sigma
        taps = "a tenth of the side" if self.kernel is None else f"{self.kernel} pixels"
        return f"{self.p:.0%}: Gaussian blur, sigma {low:g} to {high:g} pixels, kernel {taps}"
