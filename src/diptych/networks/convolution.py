"""A convolution that trains quickly on a CPU where the maps are small. N images, C channels in, O out, K x K taps, h x w made.

oneDNN (3.13, two cores of a Xeon with AMX) takes 2 to 13 times as long as a matrix product for the gradient of a
kernel in bfloat16 where a map has few pixels, and 3 to 4 times as long for all three convolutions of 2 x 2 pixels.
What it costs: each call casts its kernel to bfloat16, where autocast would do it once for both views.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Pixels made on a side, up to which a product is faster: for the gradient of the kernel, and for all three.
SMALL_MAP = {torch.bfloat16: 7, torch.float32: 2, torch.float64: 2}
TINY_MAP = 2


class Conv2d(nn.Conv2d):
    """torch's, with small maps as matrix products on a CPU: square kernels, one group, zeros around, no dilation."""

    def forward(self, input: Tensor) -> Tensor:
        product = input.device.type == "cpu" and input.ndim == 4 and self._is_better(input)
        return self._as_product(input) if product else super().forward(input)

    def _is_better(self, x: Tensor) -> bool:
        """Whether a product is."""
        if torch.compiler.is_compiling():
            return False
        trains = torch.is_grad_enabled() and self.weight.requires_grad
        return 0 < self._output_pixels(x) <= (SMALL_MAP.get(number_type(x), 0) if trains else TINY_MAP)

    def _output_pixels(self, x: Tensor) -> int:
        """Pixels that are made along the longer side."""
        return (max(x.shape[2:]) + 2 * int(self.padding[0]) - self.kernel_size[0]) // self.stride[0] + 1

    def _as_product(self, x: Tensor) -> Tensor:
        tiny = self._output_pixels(x) <= TINY_MAP
        return Product.apply(x, self.weight, self.bias, self.stride[0], int(self.padding[0]), tiny)


@contextmanager
def quick_convolutions(network: nn.Module) -> Iterator[None]:
    """Inside, every plain convolution of `network` is a `Conv2d` of this file: same parameters, same names.

    After it they are torch's again, which everything that exports or traces networks knows.
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
    """What a convolution of `x` on a CPU computes in."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") and x.dtype != torch.float64 else x.dtype


class Product(torch.autograd.Function):
    """A convolution whose kernel's gradient is one matrix product; where `tiny`, so is all else."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.bfloat16)
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, around: int, tiny: bool
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how, ctx.tiny = (stride, around), tiny
        if not tiny:
            return F.conv2d(x, weight, bias, stride, around)
        under = unfold_patches(x, weight.shape[2], stride, around)
        n, height, width = under.shape[:3]
        shape = (n, len(weight), height, width)
        # A tensor of its own: a view could not be changed in place by the layer that follows.
        y = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
        rows, kernel = under.flatten(3).flatten(0, 2), taps_first(weight).flatten(1).t()
        place = y.permute(0, 2, 3, 1).view(-1, len(weight))
        torch.mm(rows, kernel, out=place) if bias is None else torch.addmm(bias, rows, kernel, out=place)
        return y

    @staticmethod
    @once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore[bad-override]
        (x, weight), (stride, around) = ctx.saved_tensors, ctx.how
        of_x, of_weight, of_bias = ctx.needs_input_grad[:3]
        slope = slope.contiguous(memory_format=torch.channels_last)
        rows = slope.permute(0, 2, 3, 1).flatten(0, 2)  # (N h w, O)
        found: list[Tensor | None] = [None] * 3
        if of_x and ctx.tiny:
            found[0] = fold_patches(
                rows @ taps_first(weight).flatten(1), x, slope.shape[2:], weight.shape[2], stride, around
            )
        elif of_x:
            pairs = ([number] * 2 for number in (stride, around, 1))
            which = (True, False, False)
            found[0] = torch.ops.aten.convolution_backward(slope, x, weight, None, *pairs, False, [0, 0], 1, which)[0]
        if of_weight:
            under = unfold_patches(
                x, weight.shape[2], stride, around
            )  # again: kept, it would be K * K times the images
            kernel = rows.t() @ under.flatten(3).flatten(0, 2)  # (O, K K C)
            found[1] = kernel.view(len(weight), *weight.shape[2:], -1).permute(0, 3, 1, 2)
        if of_bias:
            found[2] = rows.sum(0)
        return *found, None, None, None


def taps_first(weight: Tensor) -> Tensor:
    """(O, C, K, K) -> (O, K, K, C): without a copy where the kernel is channels_last."""
    return weight.permute(0, 2, 3, 1)


def unfold_patches(x: Tensor, kernel: int, stride: int, around: int) -> Tensor:
    """What lies under the kernel at each place: (N, C, H, W) -> (N, h, w, K, K, C), a view of the padded images."""
    rows = F.pad(x.permute(0, 2, 3, 1), (0, 0, around, around, around, around))
    return rows.unfold(1, kernel, stride).unfold(2, kernel, stride).permute(0, 1, 2, 4, 5, 3)


def fold_patches(slope: Tensor, x: Tensor, made: torch.Size, kernel: int, stride: int, around: int) -> Tensor:
    """The gradient of x from that of `unfold_patches(x)`, (N h w, K K C): each tap's is added where it came from."""
    n, channels, height, width = x.shape
    taps = slope.view(n, *made, kernel, kernel, channels)
    dtype = torch.promote_types(slope.dtype, torch.float32)  # up to K * K of them are added
    whole = slope.new_zeros(n, height + 2 * around, width + 2 * around, channels, dtype=dtype)
    for i in range(kernel):
        for j in range(kernel):
            rows, columns = (slice(k, k + stride * count, stride) for k, count in zip((i, j), made, strict=True))
            whole[:, rows, columns] += taps[:, :, :, i, j]
    return whole[:, around : around + height, around : around + width].permute(0, 3, 1, 2).to(slope.dtype)
