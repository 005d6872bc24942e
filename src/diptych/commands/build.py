"""The objects that a checked recipe names."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from diptych.base.errors import RecipeError
from diptych.base.random_at import random_at, seed_at
from diptych.data.images import Images
from diptych.methods import METHODS, Method
from diptych.networks.encoders import encoder
from diptych.training.optimizers import OPTIMIZERS
from diptych.training.schedules import SCHEDULES
from diptych.training.watch import Watch, collapse_watch, knn_watch
from diptych.views import OPERATIONS, View


@dataclass
class Built:
    """The objects a recipe names, ready for `diptych.pretrain`."""

    method: Method
    views: list[View]
    optimizer: torch.optim.Optimizer
    schedule: Callable[[float], float]


def build(recipe: dict) -> Built:
    """Method, views, optimizer and schedule of a recipe that `recipe.read` has checked; weights start from its seed."""
    views = build_views(recipe["views"])
    size = recipe["encoder"].get("size") or views[0].size or recipe["images"]["size"]
    with torch.random.fork_rng(devices=[]):  # weights are drawn on the CPU: no GPU is touched before it is chosen
        torch.default_generator.manual_seed(seed_at(recipe["pretrain"]["seed"], "init"))
        network = encoder(**recipe["encoder"] | {"size": size})
        method = make(METHODS, recipe["method"], network)
    return Built(method, views, make(OPTIMIZERS, recipe["optimizer"], method), make(SCHEDULES, recipe["schedule"]))


def make(makers: dict, options: dict, *first: object):
    """Call the maker that `options` names."""
    rest = {key: value for key, value in options.items() if key != "name"}
    return makers[options["name"]](*first, **rest)


def build_views(options: dict[str, list[dict]]) -> list[View]:
    """Two views: of one list of operations, or of one each."""
    lists = [options["both"]] * 2 if "both" in options else [options["first"], options["second"]]
    return [
        View([OPERATIONS[name](**arguments) for entry in each for name, arguments in entry.items()]) for each in lists
    ]


def build_watches(recipe: dict, built: Built, images: Images) -> list[Watch]:
    """The readings that the `watch` section asks for, on a fixed choice of the training images."""
    asked, seed = recipe["watch"], recipe["pretrain"]["seed"]
    chosen = torch.randperm(len(images), generator=random_at(seed, "watch"))[: asked["images"] * 8]
    if not (asked["collapse"] or asked["knn"]):
        return []
    if asked["images"] < 2:
        raise RecipeError(
            f"watch.images is {asked['images']}; it must be at least 2 (or watch.collapse=false watch.knn=false)"
        )
    chosen, pixels = next(images.read(chosen, len(chosen), replace=(seed, 0)))
    made = [collapse_watch(built.method, pixels[: asked["images"]], built.views, seed)] if asked["collapse"] else []
    if asked["knn"] and images.labels is not None:
        mean, std = built.views[0].normalization
        made.append(knn_watch(pixels, [images.labels[int(i)] for i in chosen], mean, std, built.views[0].size, seed))
    return made
