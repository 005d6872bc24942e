"""The objects that a checked recipe names."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import nn

from diptych.base.errors import RecipeError
from diptych.base.random_at import random_at, seed_at
from diptych.base.ranges import Range
from diptych.commands.schema import call_arguments
from diptych.data.images import Images
from diptych.methods import METHODS, Method
from diptych.networks.encoders import embedding_width, encoder
from diptych.training.optimizers import OPTIMIZERS
from diptych.training.schedules import SCHEDULES
from diptych.training.watch import Watch, collapse_watch, knn_watch
from diptych.views import OPERATIONS, Operation, View

Watched = Annotated[int, Range(2, 2**20)]  # images


@dataclass
class Built:
    """The objects a recipe names, ready for `diptych.pretrain`."""

    method: Method
    views: list[View]
    optimizer: torch.optim.Optimizer
    schedule: Callable[[float], float]


def build(recipe: dict, begin: Callable[[nn.Module], object] = bool) -> Built:
    """Method, views, optimizer and schedule of a recipe checked by `read_recipe`. Its seed draws the weights.

    begin: called with the encoder before a method is built on it, which may copy it: the place to load weights.
    """
    views = build_views(recipe["views"])
    pixels = recipe["images"]["size"]
    try_views(views, pixels)
    size = recipe["encoder"].get("size") or views[0].size or pixels
    with torch.random.fork_rng(devices=[]):  # weights are drawn on the CPU: no GPU is used before it is chosen
        torch.default_generator.manual_seed(seed_at(recipe["pretrain"]["seed"], "init"))
        network = encoder(**call_arguments(encoder, recipe["encoder"]) | {"size": size})
        for other in {view.size or pixels for view in views} - {size, None}:
            embedding_width(network, recipe["encoder"]["name"], other)
        begin(network)
        method = construct(METHODS, recipe["method"], network)
    return Built(
        method, views, construct(OPTIMIZERS, recipe["optimizer"], method), construct(SCHEDULES, recipe["schedule"])
    )


def try_views(views: list[View], size: int | None) -> None:
    """Make the views of one gray image of `size` pixels, if that is known: RecipeError where they do not fit it."""
    if size is not None:
        gray = torch.full((1, 3, size, size), 127, dtype=torch.uint8)
        for index, view in enumerate(views):
            view(gray, random_at(0, "views", 0, index))


def construct(constructors: dict, options: dict, *first: object):
    """Call the constructor that `options` names, with `first` and then the other options."""
    rest = {key: value for key, value in options.items() if key != "name"}
    constructor = constructors[options["name"]]
    return constructor(*first, **call_arguments(constructor, rest))


def build_views(options: list[dict]) -> list[View]:
    """The views of a recipe, in order. A view's position in this list is part of the seed of its random draws."""
    return [view for entry in options for view in repeat_view(**entry)]


def repeat_view(do: list, times: Annotated[int, Range(1, 64)] = 1) -> list[View]:
    """`times` views of the operations `do`, a list of `{name: {argument: value}}`. The views draw independently."""
    return [
        View([build_operation(name, options) for entry in do for name, options in entry.items()]) for _ in range(times)
    ]


def build_operation(name: str, options: dict) -> Operation:
    """The operation `name` of a view."""
    return OPERATIONS[name](**call_arguments(OPERATIONS[name], options))


def build_watches(recipe: dict, built: Built, images: Images) -> list[Watch]:
    """The readings of the `watch` section, on a fixed choice of the training images."""
    return watches(built, images, recipe["pretrain"]["seed"], **call_arguments(watches, recipe["watch"]))


def watches(
    built: Built,
    photos: Images,
    seed: int,
    *,
    collapse: bool = True,
    knn: bool = True,
    images: Watched = 512,
) -> list[Watch]:
    """Readings on `photos` that `seed` chooses: signs of collapse on `images` of them, kNN accuracy on 8 times as many.

    Without labels, kNN accuracy is left out. Raises RecipeError for fewer than 2 images.
    """
    if not (collapse or knn):
        return []
    if images < 2:
        raise RecipeError(f"watch.images is {images}; it must be at least 2 (or watch.collapse=false watch.knn=false)")
    chosen = torch.randperm(len(photos), generator=random_at(seed, "watch"))[: images * 8]
    chosen, pixels = next(photos.read(chosen, len(chosen), replace=(seed, 0)))
    readings = [collapse_watch(built.method, pixels[:images], built.views, seed)] if collapse else []
    if knn and photos.labels is not None:
        mean, std = built.views[0].normalization
        readings.append(
            knn_watch(pixels, [photos.labels[int(i)] for i in chosen], mean, std, built.views[0].size, seed)
        )
    return readings
