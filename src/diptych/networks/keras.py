"""The networks of the two Keras examples, layer for layer: Barlow Twins' ResNet-34, SimSiam's ResNet-20 v2, projectors.

Modules are created in the order of Keras' `model.layers`, so `modules()` yields the same weights in the same order.
These properties of Keras differ from PyTorch and are reproduced here: biases in every convolution, 'same' padding (at
stride 2 the odd pixel is added after), batch normalisation with epsilon 1e-3 and a running population variance, and the
initial weights.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from diptych.base.errors import RecipeError
from diptych.networks.convolution import Conv2d
from diptych.networks.limits import check_parameters
from diptych.networks.projectors import mlp


class KerasBatchNorm(_BatchNorm):
    """Keras' `BatchNormalization`: epsilon 1e-3, momentum 0.99 (0.01 in PyTorch's convention), running population variance.

    frozen: it normalises by its moving averages and never updates them, in training as in evaluation.
    """

    def __init__(
        self, width: int, *, eps: float = 1e-3, momentum: float = 0.01, affine: bool = True, frozen: bool = False
    ):
        super().__init__(width, eps=eps, momentum=momentum, affine=affine)
        self.frozen = frozen
        self.train()

    def train(self, mode: bool = True) -> Self:
        return super().train(mode and not self.frozen)

    def forward(self: Any, input: Tensor) -> Tensor:
        if not self.training:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        # With momentum 1 these two become the batch's mean and (unbiased) variance, without a second pass over the input.
        mean, variance = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
        y = F.batch_norm(input, mean, variance, self.weight, self.bias, training=True, momentum=1.0, eps=self.eps)
        count = input.numel() // input.shape[1]
        self.remember(mean, variance * ((count - 1) / count), count)
        return y

    @torch.no_grad()
    def remember(self: Any, mean: Tensor, variance: Tensor, count: int | Tensor) -> None:
        """Move the running statistics towards the mean and the population variance (C,) of `count` values per channel."""
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        self.num_batches_tracked += 1


class KerasBatchNorm1d(KerasBatchNorm, nn.BatchNorm1d):
    """`KerasBatchNorm` of (N, C)."""


class KerasBatchNorm2d(KerasBatchNorm, nn.BatchNorm2d):
    """`KerasBatchNorm` of (N, C, H, W)."""


def freeze_statistics(network: nn.Module) -> None:
    """Freeze every batch normalisation of `network`, in place. Raises RecipeError for one that is not Keras'."""
    for name, layer in network.named_modules():
        if isinstance(layer, KerasBatchNorm):
            layer.frozen = True
            layer.train()
        elif isinstance(layer, _BatchNorm):
            raise RecipeError(
                f"{name or 'the network'} is a {type(layer).__name__}, whose statistics cannot be frozen: use the encoder "
                f"{' or '.join(KERAS_NETWORKS)}, or frozen_statistics false"
            )


def he_normal_(weight: Tensor) -> Tensor:
    """Fill with Keras' `he_normal`: variance 2 / fan_in, truncated at two deviations (He et al. 2015, eq. 10)."""
    truncated_deviation = 0.8796256610342398  # of N(0, 1) between -2 and 2
    deviation = math.sqrt(2 / weight[0].numel()) / truncated_deviation
    return nn.init.trunc_normal_(weight, std=deviation, a=-2 * deviation, b=2 * deviation)


def start_as_keras(network: nn.Module, kernel_: Callable[[Tensor], Tensor] = nn.init.xavier_uniform_) -> None:
    """Initialise the convolutions and Linear layers of `network` as Keras does.

    Kernels by `kernel_`, by default Keras' default, `glorot_uniform` (PyTorch's `xavier_uniform_`, Glorot and Bengio
    2010, eq. 16); biases are zero.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            kernel_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class SamePad(nn.Module):
    """Keras' padding 'same': zeros around (N, C, H, W), so that a convolution with `stride` returns ceil(H / stride) rows."""

    def __init__(self, kernel: int, stride: int):
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (*self._around(x.shape[3]), *self._around(x.shape[2])))  # left, right, above, below

    def _around(self, size: int) -> tuple[int, int]:
        last_window = (math.ceil(size / self.stride) - 1) * self.stride
        total = max(last_window + self.kernel - size, 0)
        return total // 2, total - total // 2


def _same_conv(channels: int, out: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    if stride == 1:
        return [Conv2d(channels, out, kernel, padding=kernel // 2)]
    return [SamePad(kernel, stride), Conv2d(channels, out, kernel, stride)]


def _norm_relu(channels: int) -> list[nn.Module]:
    return [KerasBatchNorm2d(channels), nn.ReLU(inplace=True)]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; as published, the shortcut's 1x1 convolution has no BN."""

    def __init__(self, channels: int, out: int, stride: int):
        super().__init__()
        first = [*_same_conv(channels, out, 3, stride), *_norm_relu(out)]
        second = [*_same_conv(out, out, 3), KerasBatchNorm2d(out)]
        self.residual = nn.Sequential(*first, *second)
        self.shortcut = nn.Identity() if stride == 1 else Conv2d(channels, out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.residual(x) + self.shortcut(x))


class KerasResNet34(nn.Module):
    """The encoder of Keras' Barlow Twins example: images (N, 3, 32, 32) -> embedding (N, 512).

    A 7x7 stem over images padded by three zeros, then stages of 3, 4, 6 and 3 blocks, in pixels
    32 -> 38 -> 19 -> 10 -> 10 -> 5 -> 3 -> 2, then a mean. The published mean is a 2x2 average pool over these
    2x2 pixels; here it is over all remaining pixels, so that other image sizes work too.
    """

    num_features = 512

    def __init__(self):
        super().__init__()
        stem = [nn.ZeroPad2d(3), *_same_conv(3, 64, 7, stride=2), *_norm_relu(64)]
        pool = [SamePad(3, 2), nn.MaxPool2d(3, 2)]  # after a ReLU, padding by zeros does not change a maximum
        self.stem = nn.Sequential(*stem, *pool)
        blocks, channels = [], 64
        for out, count, first_stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
            for stride in (first_stride, *[1] * (count - 1)):
                blocks.append(BasicBlock(channels, out, stride))
                channels = out
        self.blocks = nn.Sequential(*blocks)
        start_as_keras(self)

    def forward(self, images: Tensor) -> Tensor:
        return self.blocks(self.stem(images)).mean((2, 3))


class Bottleneck(nn.Module):
    """A pre-activation bottleneck, 1x1, 3x3, 1x1 (He et al. 2016); the shortcut takes x itself."""

    def __init__(self, channels: int, inner: int, out: int, stride: int):
        super().__init__()
        narrow = [KerasBatchNorm2d(channels), nn.ReLU(inplace=True), Conv2d(channels, inner, 1)]
        middle = [*_norm_relu(inner), *_same_conv(inner, inner, 3, stride), *_norm_relu(inner)]
        self.residual = nn.Sequential(*narrow, *middle)
        self.shortcut = nn.Identity() if channels == out else Conv2d(channels, out, 1, stride)
        self.widen = Conv2d(inner, out, 1)  # created after the shortcut, in the order of Keras

    def forward(self, x: Tensor) -> Tensor:
        return self.widen(self.residual(x)) + self.shortcut(x)


class KerasResNet20v2(nn.Module):
    """The encoder of Keras' SimSiam example: images (N, 3, S, S) in [0, 1] -> embedding (N, 256).

    It rescales to [-1, 1] itself, as the example does (from [0, 255]), so its views need no `normalize`. The mean is
    over a sum of residuals: the last BN-ReLU of such networks belongs to the classifier, which the example omits.
    """

    num_features = 256

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(*_same_conv(3, 16, 3), *_norm_relu(16))
        self.blocks = nn.Sequential(
            Bottleneck(16, inner=16, out=64, stride=1),
            Bottleneck(64, inner=16, out=64, stride=1),
            Bottleneck(64, inner=64, out=128, stride=2),
            Bottleneck(128, inner=64, out=128, stride=1),
            Bottleneck(128, inner=128, out=256, stride=2),
            Bottleneck(256, inner=128, out=256, stride=1),
        )
        start_as_keras(self, he_normal_)

    def forward(self, images: Tensor) -> Tensor:
        return self.blocks(self.stem(2 * images - 1)).mean((2, 3))


def keras_projector(
    widths: Sequence[int], *, bias: bool = False, last_norm: bool = False, frozen: bool = False
) -> nn.Sequential:
    """`mlp(widths, bias)` with Keras' batch normalisation and initial weights; last_norm: a BN after the last Linear too.

    frozen: batch normalisation with frozen statistics. Raises RecipeError without an output width.
    """
    norm = partial(KerasBatchNorm1d, frozen=frozen)
    network = mlp(widths, bias=bias, last_norm="affine" if last_norm else None, batch_norm=norm)
    start_as_keras(network)
    return network


def keras_predictor(width: int, hidden: int, frozen: bool = False) -> nn.Sequential:
    """The predictor of Keras' SimSiam example, (N, width) -> (N, hidden) -> (N, width): with ReLU before BN."""
    if hidden < 1:
        raise RecipeError(f"predictor is {hidden}; it must be 1 or more")
    check_parameters(2 * width * hidden, "a predictor")
    first, norm = nn.Linear(width, hidden, bias=False), KerasBatchNorm1d(hidden, frozen=frozen)
    network = nn.Sequential(first, nn.ReLU(), norm, nn.Linear(hidden, width))
    start_as_keras(network)
    return network


KERAS_NETWORKS = {"keras_resnet34": KerasResNet34, "keras_resnet20v2": KerasResNet20v2}
