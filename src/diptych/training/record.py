"""What recipe.yaml holds of a run that was started from Python."""

from collections.abc import Sequence

import torch

from diptych.data.images import Images
from diptych.methods import Method
from diptych.networks.encoders import built_with
from diptych.training.optimizers import describe
from diptych.views import View


def describe_arguments(
    method: Method, images: Images, views: Sequence[View], optimizer: torch.optim.Optimizer, settings: dict
) -> dict:
    """The arguments of `pretrain` as plain data."""
    built = built_with(method.encoder) or {"name": type(method.encoder).__name__}
    groups = [{k: v for k, v in row.items() if isinstance(v, str | int | float | bool)} for row in describe(optimizer)]
    return {"made_by": "diptych.pretrain in Python", "encoder": built, "method": {"name": type(method).__name__},
            "images": {"count": len(images), "size": images.size,
                       "gray_range": list(images.squares.gray_range)}, "views": [view.describe() for view in views],
            "optimizer": groups, "pretrain": settings}  # fmt: skip
