"""Projectors and predictors: small networks on top of the encoder, used only in training."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

from torch import nn

from diptych.base.errors import RecipeError
from diptych.networks.limits import check_parameters


def mlp(
    widths: Sequence[int],
    *,
    bias: bool = False,
    last_bias: bool | None = None,
    last_norm: Literal["plain", "affine"] | None = None,
    batch_norm: Callable[..., nn.Module] = nn.BatchNorm1d,
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """Linear-BN-ReLU for every width but the last, then Linear: (N, widths[0]) -> (N, widths[-1]).

        mlp((2048, 8192, 8192, 8192))                     # Barlow Twins' projector (sec. 2.2): no biases
        mlp((512, 2048, 2048, 2048), bias=True)           # the same in solo-learn's CIFAR-10 recipe
        mlp((2048, 2048, 2048, 2048), last_norm="plain")  # SimSiam's projector (sec. 3)
        mlp((2048, 512, 2048), last_bias=True)            # SimSiam's predictor (sec. 3): a bottleneck

    bias: biases in the Linear layers; last_bias: in the last one, by default as `bias`.
    last_norm: a BN after the last Linear, "plain" (no learned scale and shift) or "affine".
    batch_norm: a callable that returns a BN of a given width and accepts `affine` as torch's does; nn.Identity: no BN.

    Raises RecipeError without an output width.
    """
    if len(widths) < 2 or min(widths) < 1:
        raise RecipeError(f"a projector or predictor needs widths of 1 or more, got {list(widths[1:])}")
    check_parameters(sum(width * wider for width, wider in pairwise(widths)), "a projector or predictor")
    layers: list[nn.Module] = []
    for width, wider in pairwise(widths[:-1]):
        layers += [nn.Linear(width, wider, bias=bias), batch_norm(wider), activation()]
    layers.append(nn.Linear(widths[-2], widths[-1], bias=bias if last_bias is None else last_bias))
    layers += [batch_norm(widths[-1], affine=last_norm == "affine")] if last_norm else []
    return nn.Sequential(*layers)
