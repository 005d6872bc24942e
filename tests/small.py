"""A small encoder, methods on it, and views of made-up images."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from diptych.methods import Method


class Small(nn.Module):
    """(N, 3, s, s) -> (N, 6), for any s."""

    num_features = 6

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 3, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.last = nn.Linear(8, 6, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.norm(self.convolution(images)).tanh().mean((2, 3)))


def make(kind: Callable[..., Method], **options) -> Method:
    torch.manual_seed(0)
    return kind(options.pop("encoder", None) or Small(), **options)


def views(
    n: int = 12, sizes: Sequence[int] = (9, 9), dtype: torch.dtype = torch.float32, seed: int = 1
) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.rand(n, 3, size, size, generator=rng, dtype=dtype) for size in sizes]
