"""A method on trial: what breaks its contract is found before step 0, not after the last one."""

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from diptych.base.errors import RecipeError
from diptych.methods.method import Compared, Method
from diptych.views import View

ROWS = 4  # of each view, unless groups of more rows share their batch statistics


def try_method(method: Method, views: Sequence[View], size: int, precision: str = "float32") -> None:
    """Take one step without an update on a copy of `method`, on gray images (n, 3, size, size); all processes do.

    precision: "bfloat16" runs it under autocast, as training does.

    Raises RecipeError for what the contract in `Method` does not allow. What the method itself raises goes through.
    """
    name = type(method).__name__
    if len(views) not in method.views:
        wanted = " to ".join(str(n) for n in dict.fromkeys((method.views[0], method.views[-1])))
        raise RecipeError(f"{name} takes {wanted} views of each image; the recipe's views are {len(views)}")
    group = method.statistics_rows or 1
    rows = group * math.ceil(ROWS / group)
    like = next(method.parameters())
    pixels = torch.full((rows, 3, size, size), 127, dtype=torch.uint8, device=like.device)
    rng = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[like.device] if like.device.type == "cuda" else []):
        tried = copy.deepcopy(method).train()
        images = [
            view(pixels, rng).to(like.dtype, memory_format=torch.channels_last) for view in views
        ]  # as in training
        draw = {key: value.to(like.device) for key, value in tried.draw(rows, rng).items()}
        check_rows(f"{name}.draw", draw, rows)
        with torch.autocast(like.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            projections = tried.project(images, draw)
            check_rows(f"{name}.project", projections, rows)
            check_compared(name, compared := tried.compare(projections, like.new_zeros(())))
        check_shown(name, tried.shown(projections), rows)
        compared.loss.backward()
        if all(p.grad is None for p in tried.encoder.parameters()) and any(
            p.requires_grad for p in tried.encoder.parameters()
        ):
            raise RecipeError(f"the loss of {name} sends no gradient to its encoder")
        with torch.no_grad():
            tried.after_step(compared.kept, like.new_zeros(()))
        check_in_place(name, method, tried)


def check_rows(what: str, tensors: object, rows: int) -> None:
    if not isinstance(tensors, dict) or not all(
        isinstance(key, str) and isinstance(x, Tensor) for key, x in tensors.items()
    ):
        raise RecipeError(f"{what} returns a {type(tensors).__name__}; it must be a dict of named tensors")
    if wrong := {key: tuple(x.shape) for key, x in tensors.items() if x.ndim == 0 or len(x) != rows}:
        key, shape = next(iter(wrong.items()))
        raise RecipeError(f"{what} gives {key!r} of shape {shape} for {rows} images; each tensor has a row an image")


def check_compared(name: str, compared: object) -> None:
    if not isinstance(compared, Compared):
        raise RecipeError(f"{name}.compare returns a {type(compared).__name__}; it must be Compared(loss, parts, kept)")
    if compared.loss.ndim != 0 or not compared.loss.requires_grad:
        shape = tuple(compared.loss.shape)
        raise RecipeError(f"the loss of {name} has shape {shape}; it must be a scalar that a gradient flows from")
    for key, part in compared.parts.items():
        if part.ndim != 0 or part.requires_grad or part.device != compared.loss.device:
            raise RecipeError(f"{name}.compare: the part {key!r} must be a scalar, detached, where the loss is")
    if attached := [key for key, value in compared.kept.items() if value.requires_grad]:
        raise RecipeError(f"{name}.compare: what is kept must be detached, {attached[0]!r} is not")


def check_shown(name: str, shown: object, rows: int) -> None:
    if shown is None:
        return
    shapes = [tuple(z.shape) for z in shown] if isinstance(shown, tuple) else []
    if len(shapes) != 2 or shapes[0] != shapes[1] or len(shapes[0]) != 2 or shapes[0][0] != rows:
        raise RecipeError(
            f"{name}.shown gives {shapes or type(shown).__name__}; it must be two projections (N, D), or None"
        )


def check_in_place(name: str, method: Method, tried: Method) -> None:
    """The names of parameters and buffers stay, and so does each tensor's shape: a checkpoint holds them by name."""
    before = {key: tuple(value.shape) for key, value in method.state_dict().items()}
    after = {key: tuple(value.shape) for key, value in tried.state_dict().items()}
    if changed := sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key)):
        raise RecipeError(f"{name} does not change {changed[0]!r} in place: its shape or presence differs after a step")
