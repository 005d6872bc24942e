"""A small convolutional network for small images whose convolutions run near a CPU's peak, and whose embedding is whitened.

N: images, S: their size, C: channels, E: width of the embedding.
"""

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.base.ranges import Range, checked

PATCH, STRIDE = 4, 2  # pixels, of the first layer
Channels, Power = Annotated[int, Range(1, 2**12)], Annotated[float, Range(0, 1)]
KEPT_PER_COLOUR = (16, 8, 8)  # of 16 patterns: brightness, then the two opponent colours, whose details are weak


class SmallConvolutions(nn.Module):
    """Images (N, 3, S, S) -> embedding (N, E), E the last of `widths`.

    A fixed first layer: patterns of a discrete cosine transform of 4x4 patches, each standardised, both signs. It has
    nothing to learn and needs no backward pass, and its outputs are nearly uncorrelated on natural images. Then 3x3
    convolutions of `widths` channels at S/2, S/4 (two) and S/8 pixels, and the mean over positions. In evaluation mode,
    `PartialWhitening` to the power `power` follows; 0 leaves the embedding as it is.
    """

    @checked
    def __init__(self, widths: tuple[Channels, Channels, Channels] = (128, 192, 256), power: Power = 0.35):
        super().__init__()
        first, second, third = widths
        self.register_buffer("patterns", cosine_patterns(), persistent=False)
        self.standardise = nn.BatchNorm2d(len(self.patterns), affine=False)
        self.first = convolution(2 * len(self.patterns), first)
        self.middle = convolution(first, second)
        self.residual = convolution(second, second)
        self.last = convolution(second, third)
        self.whiten = PartialWhitening(third, power)
        self.num_features = third

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_intermediates(images)[0])

    def forward_intermediates(self, images: Tensor, indices: int = 2) -> tuple[Tensor, list[Tensor]]:
        """The last maps, and the last `indices` of the maps at S/2, S/4 and S/8 pixels, as timm's networks give them."""
        maps = self.standardise(F.conv2d(images, self.patterns.to(images.dtype), stride=STRIDE, padding=1))
        first = self.first(torch.cat([F.relu(maps), F.relu(-maps)], 1))
        middle = self.middle(F.max_pool2d(first, 2))
        middle = middle + self.residual(middle)
        last = self.last(F.max_pool2d(middle, 2))
        return last, [first, middle, last][-indices:]

    def forward_head(self, maps: Tensor) -> Tensor:
        return self.whiten(maps.mean((2, 3)))


class PartialWhitening(nn.Module):
    """x (N, E) in training; (x - m) C^-power in evaluation mode, with m and C the running mean and covariance of x.

    Power 0.5 would whiten completely. Losses train a network to better neighbours when they see x itself.

    A few directions hold most of the variance of an embedding, and so decide cosines; divided by their variance to a power,
    the others count too. C is in units of its mean diagonal, plus `FLOOR`. It costs an eigendecomposition of (E, E) at
    each step of training.
    """

    FLOOR, MOMENTUM = 1e-3, 0.03

    def __init__(self, width: int, power: float):
        super().__init__()
        self.power = power
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("covariance", torch.eye(width))
        self.register_buffer("weight", torch.eye(width))

    def forward(self, x: Tensor) -> Tensor:
        x = x if x.dtype == torch.float64 else x.float()
        with torch.autocast(x.device.type, enabled=False):
            if self.training and self.power > 0:
                self.update(x.detach())
            return x if self.training else (x - self.mean) @ self.weight

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Move mean and covariance towards those of a batch, and recompute the map."""
        mean = x.mean(0)
        centred = x - mean
        self.mean.lerp_(mean.to(self.mean.dtype), self.MOMENTUM)
        self.covariance.lerp_((centred.T @ centred / len(x)).to(self.covariance.dtype), self.MOMENTUM)
        values, vectors = torch.linalg.eigh(self.covariance)
        values = values.clamp_min(0) / values.mean().clamp_min(1e-12) + self.FLOOR
        self.weight.copy_(vectors * values**-self.power @ vectors.T)


def convolution(channels: int, wider: int) -> nn.Sequential:
    """3x3, batch normalisation, ReLU."""
    return nn.Sequential(nn.Conv2d(channels, wider, 3, padding=1, bias=False), nn.BatchNorm2d(wider), nn.ReLU())


def cosine_patterns() -> Tensor:
    """(32, 3, 4, 4): products of cosines, orthonormal, the smoothest of each colour."""
    place = torch.arange(PATCH)
    waves = torch.stack([torch.cos(math.pi * (place + 0.5) * k / PATCH) for k in range(PATCH)])
    waves = waves / waves.norm(dim=1, keepdim=True)
    colours = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]])
    colours = colours / colours.norm(dim=1, keepdim=True)
    smoothest = sorted(((u, v) for u in range(PATCH) for v in range(PATCH)), key=lambda uv: (sum(uv), uv))
    return torch.stack(
        [
            colour[:, None, None] * waves[u][:, None] * waves[v]
            for colour, count in zip(colours, KEPT_PER_COLOUR, strict=True)
            for u, v in smoothest[:count]
        ]
    )
