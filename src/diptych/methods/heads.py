"""Projectors and predictors of methods, from output widths or as modules of the user's own."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from diptych.base.errors import RecipeError
from diptych.base.ranges import Width
from diptych.methods.method import embedding_width
from diptych.networks.projectors import mlp

Projector = Sequence[Width] | nn.Module
Predictor = Width | nn.Module


def projector_on(encoder: nn.Module, projector: Projector, width: int | None, **options: Any) -> nn.Module:
    """`projector` itself if it is a module, else an `mlp` of its widths, with `options`, on embeddings (N, E).

    width: E, for an encoder without `num_features`. Raises RecipeError if both are missing.
    """
    if isinstance(projector, nn.Module):
        return projector
    return mlp((embedding_width(encoder, width), *projector), **options)


def predictor_on(projector: nn.Module, predictor: Predictor, **options: Any) -> nn.Module:
    """`predictor` itself if it is a module, else an `mlp` (N, D) -> (N, D) with one hidden layer of that width."""
    if isinstance(predictor, nn.Module):
        return predictor
    columns = projection_width(projector)
    return mlp((columns, predictor, columns), **options)


def projection_width(projector: nn.Module) -> int:
    """D, of the last Linear layer. Raises RecipeError for a projector without one."""
    widths = [layer.out_features for layer in projector.modules() if isinstance(layer, nn.Linear)]
    if not widths:
        raise RecipeError(
            f"the projector {type(projector).__name__} has no Linear layer, which would tell the width of a projection"
        )
    return widths[-1]
