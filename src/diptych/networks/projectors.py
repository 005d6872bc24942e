"""Projectors and predictors: small networks that stand on the encoder while it trains."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import nn

from diptych.base.errors import RecipeError
from diptych.networks.keras import KerasBatchNorm1d, start_as_keras


def mlp(
    widths: Sequence[int],
    bias: bool = False,
    last_bias: bool | None = None,
    last_norm: Literal["plain", "affine"] | None = None,
    relu_first: bool = False,
    keras: bool = False,
) -> nn.Sequential:
    """Linear-BN-ReLU for every width but the last, then Linear: (N, widths[0]) -> (N, widths[-1]).

        mlp((2048, 8192, 8192, 8192))                     # Barlow Twins' projector (sec. 2.2): no biases
        mlp((512, 2048, 2048, 2048), bias=True)           # the same in solo-learn's CIFAR-10 recipe
        mlp((2048, 2048, 2048, 2048), last_norm="plain")  # SimSiam's projector (sec. 3)
        mlp((2048, 512, 2048), last_bias=True)            # SimSiam's predictor (sec. 3): a bottleneck

    bias: biases in the Linear layers; last_bias: in the last one, as `bias` unless given.
    last_norm: a BN after the last Linear, "plain" (no learned scale and shift) or "affine".
    relu_first: ReLU before BN, as in the predictor of Keras' SimSiam example.
    keras: Keras' batch normalisation and starting weights.

    Raises RecipeError without an output width.
    """
    if len(widths) < 2 or min(widths) < 1:
        raise RecipeError(f"a projector or predictor needs widths of 1 or more, got {list(widths[1:])}")
    batch_norm = KerasBatchNorm1d if keras else nn.BatchNorm1d
    layers: list[nn.Module] = []
    for width, wider in pairwise(widths[:-1]):
        norm, relu = batch_norm(wider), nn.ReLU()
        layers += [nn.Linear(width, wider, bias=bias), *((relu, norm) if relu_first else (norm, relu))]
    layers.append(nn.Linear(widths[-2], widths[-1], bias=bias if last_bias is None else last_bias))
    if last_norm is not None:
        layers.append(batch_norm(widths[-1], affine=last_norm == "affine"))
    network = nn.Sequential(*layers)
    if keras:
        start_as_keras(network)
    return network
