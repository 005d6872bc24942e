"""A convolution that trains faster on a CPU for small maps. N images, C channels in, O out, K x K taps, h x w output pixels.

oneDNN (3.13, two cores of a Xeon with AMX) takes 2 to 13 times as long as a matrix product for the gradient of a
kernel in bfloat16 where a map has few pixels, and 3 to 4 times as long for all three convolutions of 2 x 2 pixels.
The cost: each call casts its kernel to bfloat16, where autocast would do it once for both views.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Output pixels per side up to which a product is faster: for the gradient of the kernel, and for all three convolutions.
SMALL_MAP = {torch.bfloat16: 7, torch.float32: 2, torch.float64: 2}
TINY_MAP = 2


class Conv2d(nn.Conv2d):
    """torch's Conv2d, as matrix products for small maps on a CPU: square kernels, one group, zero padding, no dilation."""

    def forward(self, input: Tensor) -> Tensor:
        product = input.device.type == "cpu" and input.ndim == 4 and self._is_better(input)
        return self._as_product(input) if product else super().forward(input)

    def _is_better(self, x: Tensor) -> bool:
        """Whether a matrix product is faster."""
        if torch.compiler.is_compiling():
            return False
        trains = torch.is_grad_enabled() and self.weight.requires_grad
        return 0 < self._output_pixels(x) <= (SMALL_MAP.get(number_type(x), 0) if trains else TINY_MAP)

    def _output_pixels(self, x: Tensor) -> int:
        """Output pixels along the longer side."""
        return (max(x.shape[2:]) + 2 * int(self.padding[0]) - self.kernel_size[0]) // self.stride[0] + 1

    def _as_product(self, x: Tensor) -> Tensor:
        tiny = self._output_pixels(x) <= TINY_MAP
        return Product.apply(x, self.weight, self.bias, self.stride[0], int(self.padding[0]), tiny)


@contextmanager
def quick_convolutions(network: nn.Module) -> Iterator[None]:
    """Inside the context, every plain convolution of `network` is a `Conv2d` of this file, with the same parameters and names.

    Afterwards they are torch's again, which every tool that exports or traces networks supports.
    """
    plain = [layer for layer in network.modules() if type(layer) is nn.Conv2d and _is_plain(layer)]
    try:
        for layer in plain:
            layer.__class__ = Conv2d
        yield
    finally:
        for layer in plain:
            layer.__class__ = nn.Conv2d


def _is_plain(layer: nn.Conv2d) -> bool:
    if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        return False
    square = all(down == across for down, across in (layer.kernel_size, layer.stride, layer.padding))
    return square and layer.groups == 1 and layer.dilation == (1, 1)


def number_type(x: Tensor) -> torch.dtype:
    """The number type in which a convolution of `x` on a CPU computes."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") and x.dtype != torch.float64 else x.dtype


class Product(torch.autograd.Function):
    """A convolution whose kernel gradient is one matrix product; with `tiny`, the other two convolutions are too."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.bfloat16)
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, tiny: bool
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry, ctx.tiny = (stride, padding), tiny
        if not tiny:
            return F.conv2d(x, weight, bias, stride, padding)
        patches = unfold_patches(x, weight.shape[2], stride, padding)
        n, height, width = patches.shape[:3]
        shape = (n, len(weight), height, width)
        # Not a view: the next layer must be able to change it in place.
        y = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
        rows, kernel = patches.flatten(3).flatten(0, 2), taps_first(weight).flatten(1).t()
        place = y.permute(0, 2, 3, 1).view(-1, len(weight))
        torch.mm(rows, kernel, out=place) if bias is None else torch.addmm(bias, rows, kernel, out=place)
        return y

    @staticmethod
    @once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore[bad-override]
        (x, weight), (stride, padding) = ctx.saved_tensors, ctx.geometry
        of_x, of_weight, of_bias = ctx.needs_input_grad[:3]
        slope = slope.contiguous(memory_format=torch.channels_last)
        rows = slope.permute(0, 2, 3, 1).flatten(0, 2)  # (N h w, O)
        gradients: list[Tensor | None] = [None] * 3
        if of_x and ctx.tiny:
            of_patches = rows @ taps_first(weight).flatten(1)
            gradients[0] = fold_patches(of_patches, x, slope.shape[2:], weight.shape[2], stride, padding)
        elif of_x:
            pairs = ([number] * 2 for number in (stride, padding, 1))
            which = (True, False, False)
            backward = torch.ops.aten.convolution_backward
            gradients[0] = backward(slope, x, weight, None, *pairs, False, [0, 0], 1, which)[0]
        if of_weight:
            # Recomputed: saved patches would take K * K times the memory of the images.
            patches = unfold_patches(x, weight.shape[2], stride, padding)
            kernel = rows.t() @ patches.flatten(3).flatten(0, 2)  # (O, K K C)
            gradients[1] = kernel.view(len(weight), *weight.shape[2:], -1).permute(0, 3, 1, 2)
        if of_bias:
            gradients[2] = rows.sum(0)
        return *gradients, None, None, None


def taps_first(weight: Tensor) -> Tensor:
    """(O, C, K, K) -> (O, K, K, C): without a copy where the kernel is channels_last."""
    return weight.permute(0, 2, 3, 1)


def unfold_patches(x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """The patch under the kernel at each position: (N, C, H, W) -> (N, h, w, K, K, C), a view of the padded images."""
    rows = F.pad(x.permute(0, 2, 3, 1), (0, 0, padding, padding, padding, padding))
    return rows.unfold(1, kernel, stride).unfold(2, kernel, stride).permute(0, 1, 2, 4, 5, 3)


def fold_patches(slope: Tensor, x: Tensor, output_size: torch.Size, kernel: int, stride: int, padding: int) -> Tensor:
    """The gradient of x from that of `unfold_patches(x)`, (N h w, K K C): the gradient of each tap is added at its pixel."""
    n, channels, height, width = x.shape
    taps = slope.view(n, *output_size, kernel, kernel, channels)
    dtype = torch.promote_types(slope.dtype, torch.float32)  # up to K * K numbers are added
    padded = slope.new_zeros(n, height + 2 * padding, width + 2 * padding, channels, dtype=dtype)
    for i in range(kernel):
        for j in range(kernel):
            rows, columns = (slice(k, k + stride * count, stride) for k, count in zip((i, j), output_size, strict=True))
            padded[:, rows, columns] += taps[:, :, :, i, j]
    return padded[:, padding : padding + height, padding : padding + width].permute(0, 3, 1, 2).to(slope.dtype)
