"""The recipes of SimCLR, BYOL, MoCo, SwAV, VICReg and DINO, setting by setting, beside what their programs set.

Rates are written as the programs' base rate times batch / 256, schedules in epochs, as there.
"""

from collections.abc import Mapping

import pytest
import torch
from test_views import lines

from diptych.commands.build import build_views, construct
from diptych.commands.recipe import read_recipe
from diptych.commands.shelf import recipe_names
from diptych.methods import METHODS
from diptych.training.optimizers import OPTIMIZERS
from diptych.views import View, barlow_twins, dino, simclr, simsiam, swav

LARS = {"name": "lars", "momentum": 0.9, "trust": 0.001, "clip": False}
LARC = {"name": "lars", "momentum": 0.9, "trust": 0.02, "clip": True}
SGD = {"name": "sgd", "momentum": 0.9}
FOLLOWS = "1d: neither decayed nor adapted"
ALL_ALIKE = "nothing left out"
NO_DECAY = "1d: not decayed"

# recipe: (batch, epochs, base rate, decay, warm-up in epochs, floor, optimizer, what is left out, zero-init, method)
PUBLISHED = {
    "simclr-imagenet": (4096, 100, 0.3, 1e-4, 10, 0, LARS, FOLLOWS, True,
                        {"projector": [2048, 2048, 128], "temperature": 0.1}),
    "byol-imagenet": (4096, 1000, 0.2, 1.5e-6, 10, 0, LARS, FOLLOWS, True,
                      {"projector": [4096, 256], "predictor": 4096, "momentum": 0.996}),
    "moco-v2-imagenet": (256, 200, 0.03, 1e-4, None, 0, SGD, ALL_ALIKE, False,
                         {"projector": [2048, 128], "queue": 65536, "temperature": 0.2, "momentum": 0.999,
                          "statistics_rows": 32, "symmetric": False}),
    "moco-v3-imagenet": (4096, 1000, 0.3, 1.5e-6, 10, 0, LARS, FOLLOWS, True,
                         {"projector": [4096, 256], "predictor": 4096, "temperature": 1.0, "momentum": 0.996}),
    "swav-imagenet": (4096, 800, 0.3, 1e-6, 10, 0.001, LARS, ALL_ALIKE, False,
                      {"projector": [2048, 128], "prototypes": 3000, "temperature": 0.1, "epsilon": 0.05, "iterations": 3,
                       "queue": None, "frozen": 1 / 800}),
    "vicreg-imagenet": (2048, 1000, 0.2, 1e-6, 10, 0.001, LARS, FOLLOWS, True,
                        {"projector": [8192] * 3, "invariance": 25, "variance": 25, "covariance": 1, "eps": 1e-4}),
    "dino-imagenet": (1024, 100, 5e-4, 0.04, 10, 1e-6 / 0.002, {"name": "adamw"}, NO_DECAY, None,
                      {"projector": [2048, 2048, 256], "prototypes": 65536, "teacher_temperature": 0.04,
                       "first_temperature": 0.04, "temperature": 0.1, "momentum": 0.996, "centre_momentum": 0.9,
                       "frozen": 1 / 100, "head_norm": False}),
    "simclr-cifar10": (512, 1000, 1.0, 1e-4, 10, 0, LARS, FOLLOWS, False,
                       {"projector": [512, 512, 128], "temperature": 0.5}),
    "byol-cifar10": (256, 1000, 1.0, 1e-5, 10, 0, LARC, FOLLOWS, False,
                     {"projector": [4096, 256], "predictor": 4096, "momentum": 0.99}),
    "moco-cifar10": (512, 800, 0.03, 5e-4, None, 0, SGD, ALL_ALIKE, False,
                     {"projector": [128], "queue": 4096, "temperature": 0.1, "momentum": 0.99, "statistics_rows": 512 // 8,
                      "symmetric": True}),
    "moco-v3-cifar10": (256, 1000, 0.3, 1e-6, 10, 0, LARC, FOLLOWS, False,
                        {"projector": [4096, 256], "predictor": 4096, "temperature": 0.2, "momentum": 0.99}),
    "swav-cifar10": (256, 1000, 0.6, 1e-6, 10, 0, LARC, FOLLOWS, False,
                     {"projector": [2048, 128], "prototypes": 3000, "temperature": 0.1, "epsilon": 0.05, "iterations": 3,
                      "queue": 3840, "queue_start": 50 / 1000, "frozen": 2 / 1000}),
    "vicreg-cifar10": (256, 1000, 0.3, 1e-4, 10, 0, LARC, FOLLOWS, False,  # variance: solo-learn does not halve it
                       {"projector": [2048] * 3, "invariance": 25, "variance": 50, "covariance": 1, "eps": 1e-4}),
    "dino-cifar10": (256, 1000, 0.3, 1e-6, 10, 0, LARC, FOLLOWS, False,
                     {"projector": [2048, 2048, 256], "prototypes": 4096, "teacher_temperature": 0.07,
                      "first_temperature": 0.07, "temperature": 0.1, "momentum": 0.9995, "frozen": 1 / 1000,
                      "head_norm": False}),
}  # fmt: skip
every_recipe = pytest.mark.parametrize("name", PUBLISHED)


def agree(section: Mapping[str, object], expected: Mapping[str, object]) -> None:
    for key, value in expected.items():
        close = pytest.approx(value, rel=1e-12) if isinstance(value, float) else value
        assert section[key] == close, key


@every_recipe
def test_settings(name):
    batch, epochs, base, decay, warmup, floor, optimizer, _, zero_init, method = PUBLISHED[name]
    recipe = read_recipe(name)
    agree(recipe["pretrain"], {"batch_size": batch, "epochs": epochs})
    agree(recipe["optimizer"], {"lr": base * batch / 256, "weight_decay": decay} | optimizer)
    agree(recipe["method"], method)
    if warmup is None:
        agree(recipe["schedule"], {"name": "cosine", "epochs": epochs, "floor": 0.0})
    else:
        agree(recipe["schedule"], {"name": "warmup_cosine", "warmup": warmup / epochs, "floor": float(floor)})
    if zero_init is not None:  # a ViT has no normalisation to start at 0
        agree(recipe["encoder"], {"zero_init_last": zero_init})
    assert recipe["pretrain"].get("clip_norm") == (3.0 if name == "dino-imagenet" else None)


@every_recipe
def test_who_is_decayed_and_adapted(name):
    """Of a small network with biases and normalisation, and of the method's own parameters."""
    recipe = read_recipe(name)
    small = {"projector": [8, 6], "predictor": 5, "prototypes": 7, "queue": 8, "statistics_rows": 2}
    given = {key: value for key, value in recipe["method"].items() if key not in small}
    given |= {key: value for key, value in small.items() if recipe["method"].get(key) is not None}
    network = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    optimizer = construct(OPTIMIZERS, recipe["optimizer"], construct(METHODS, given | {"width": 4}, network))
    decay, is_lars = recipe["optimizer"]["weight_decay"], recipe["optimizer"]["name"] == "lars"
    for group in optimizer.param_groups:
        flat = {parameter.ndim <= 1 for parameter in group["params"]}
        treated = (group["weight_decay"], group.get("always_adapt", False))
        if PUBLISHED[name][7] == ALL_ALIKE or flat == {False}:
            assert treated == (decay, is_lars)
        else:
            assert flat == {True} and treated == (0.0, False)


def with_crops(views: list[View], crop: str) -> list[list[str]]:
    return [[crop, *lines(view)[1:]] for view in views]


CIFAR = "normalize by mean 0.4914, 0.4822, 0.4465 and standard deviation 0.247, 0.2435, 0.2616"
JITTER = "80%: brightness {0:g}, contrast {0:g}, saturation {1:g}, hue {2:g}, in an order drawn per image"
CROP, FLIP, GRAY = (
    "crop {}% to 100% of the area, resize to 32 x 32 bicubic",
    "50%: left becomes right",
    "20%: grayscale",
)
BLUR = "50%: Gaussian blur, sigma 0.1 to 2 pixels, kernel a tenth of the side"
VIEWS = {
    "simclr-imagenet": [lines(view) for view in simclr(224)],
    "byol-imagenet": [lines(view) for view in barlow_twins(224)],
    "vicreg-imagenet": [lines(view) for view in barlow_twins(224)],
    "moco-v2-imagenet": [lines(view) for view in simsiam(224)],
    "moco-v3-imagenet": with_crops(barlow_twins(224), "crop 20% to 100% of the area, resize to 224 x 224 bilinear"),
    "swav-imagenet": [lines(view) for view in swav()],
    "dino-imagenet": [lines(view) for view in dino()],
    "simclr-cifar10": [lines(view) for view in simclr(32)],
    "moco-cifar10": [["crop 8% to 100% of the area, resize to 32 x 32 bilinear", FLIP, JITTER.format(0.4, 0.4, 0.1), GRAY,
                      CIFAR.replace("0.247, 0.2435, 0.2616", "0.2023, 0.1994, 0.201")]] * 2,
    "swav-cifar10": [[CROP.format(8), FLIP, JITTER.format(0.8, 0.8, 0.2), GRAY, BLUR, CIFAR]] * 2,
    "vicreg-cifar10": [[CROP.format(20), FLIP, JITTER.format(0.4, 0.2, 0.1), GRAY, "10%: solarize from 0.5", CIFAR]] * 2,
}  # fmt: skip
VIEWS |= dict.fromkeys(("byol-cifar10", "moco-v3-cifar10", "dino-cifar10"), [lines(view) for view in barlow_twins(32)])


@every_recipe
def test_views(name):
    """In any place of the flip, which commutes with colours and blur."""
    made = [lines(view) for view in build_views(read_recipe(name)["views"])]
    assert [[line for line in view if line != FLIP] for view in made] == [
        [line for line in view if line != FLIP] for view in VIEWS[name]
    ]
    assert all(view.count(FLIP) == 1 for view in made)


def test_the_table_is_of_every_recipe_that_names_a_published_setting():
    of_siblings = {name for name in recipe_names() if name.endswith(("-imagenet", "-cifar10"))}
    assert of_siblings - set(PUBLISHED) == {"barlow-twins-imagenet", "barlow-twins-cifar10", "simsiam-cifar10"}
