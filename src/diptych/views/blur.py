"""Gaussian blur, every image with its own sigma. N images of shape (3, H, W), S pixels along one side, K taps."""

from dataclasses import dataclass

import torch

from diptych.errors import DataError
from diptych.views.geometry import banded, resample
from diptych.views.operation import Draw, Operation, check_probability, check_range, chosen, coins, require, uniform


def default_kernel(pixels: int) -> int:
    """About a tenth of the side, odd, at least 3: 23 at 224 pixels (SimCLR, arXiv:2002.05709, appendix A), 3 at 32."""
    return max(3, 2 * (pixels // 20) + 1)


def blur_matrix(sigma_N: torch.Tensor, taps: int, pixels: int) -> torch.Tensor:
    """(N, pixels, pixels): convolution of one axis with a normalized Gaussian of `taps` samples, the border reflected."""
    offset = torch.arange(taps, device=sigma_N.device) - taps // 2
    weight_NK = torch.softmax(-0.5 * (offset / sigma_N[:, None]).square(), 1)
    pixel_SK = (torch.arange(pixels, device=sigma_N.device)[:, None] + offset).abs()
    pixel_SK = (pixels - 1) - (pixels - 1 - pixel_SK).abs()
    shape = (len(sigma_N), pixels, taps)
    return banded(pixel_SK.expand(shape), weight_NK[:, None].expand(shape), pixels)


@dataclass(eq=False)
class GaussianBlur(Operation):
    """With probability p: Gaussian of sigma U(sigma) pixels, `kernel` taps a side (None: `default_kernel` of the shorter side).

    Border and weights as torchvision's. PIL, which the original Barlow Twins uses, approximates the same Gaussian by three box
    filters: at 224 pixels and sigma <= 2 the 23 taps hold all of it; at 32 pixels 3 taps are a weaker blur, as is usual there.
    """

    p: float = 0.5
    sigma: tuple[float, float] = (0.1, 2.0)
    kernel: int | None = None
    commutes_with_flip = True

    def __post_init__(self) -> None:
        check_probability("gaussian_blur", self.p)
        self.sigma = check_range("gaussian_blur", "sigma", self.sigma, 0, float("inf"))
        ok = self.kernel is None or (isinstance(self.kernel, int) and self.kernel >= 1 and self.kernel % 2 == 1)
        require(ok, f"gaussian_blur: kernel is {self.kernel!r}; give an odd number of pixels, or none for a tenth of the side")

    def sample(self, n: int, rng: torch.Generator) -> Draw:
        return {"chosen": coins(n, self.p, rng), "sigma": uniform(n, *self.sigma, rng)}

    def apply_(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        height, width = images.shape[-2:]
        taps = self.kernel or default_kernel(min(height, width))
        if taps // 2 >= min(height, width):
            raise DataError(f"gaussian_blur: kernel {taps} is too large for {height} x {width} images")
        index = chosen(draw, images.device)
        sigma = draw["sigma"][draw["chosen"]].to(images.device, non_blocking=True)
        columns = blur_matrix(sigma, taps, width)
        rows = columns if height == width else blur_matrix(sigma, taps, height)
        return images.index_copy_(0, index, resample(images.index_select(0, index), rows, columns))

    def __str__(self) -> str:
        taps = "about a tenth of the side" if self.kernel is None else f"{self.kernel} pixels"
        return f"{self.p:.0%}: Gaussian blur, sigma {self.sigma[0]:g} to {self.sigma[1]:g} pixels, kernel {taps}"
