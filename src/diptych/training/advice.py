"""Advice before training starts: where `diptych.quick` was measured to give the better encoder in less time.

CIFAR-10 as JPEGs of quality 75, 3,000 held-out images, one seed, bfloat16 on one core without AMX; kNN (200 neighbours) and
linear accuracy in percent. "quick" is the closed form with its defaults, its minutes those of its computation.

    images   recipe                       minutes    kNN   linear    quick: minutes    kNN   linear
     1,500   coding-rate-cifar10-small        1.3   51.9     56.2               0.3   62.7     61.8
     5,000   coding-rate-cifar10-small        2.0   56.1     61.8               0.6   67.0     68.5
    46,000   coding-rate-cifar10-small        4.2   61.6     66.1               1.8   71.5     74.4
    50,000   barlow-twins-cifar10-small      17     46.4     51.1               5     75.3     74.1
    50,000   coding-rate..., 3 epochs        14     69.8     70.7               5     75.7     74.0
     5,400   demo                             3.5   65.4     70.9               0.8   85.6     88.1

The last three rows are judged on the test images: Barlow Twins on a core with AMX, the demo's photographs with the worst
of three seeds of training (README).
"""

from typing import NamedTuple

import torch

from diptych.base.device import choose_device
from diptych.training.budget import seconds_of

NEAR = 5.0  # a comparison speaks for up to this many times more images, or fewer
SECONDS_AN_IMAGE = (
    0.004  # of one core, a pass over both views: the fastest two-view recipe (17 minutes, 250,000 images)
)


class Comparison(NamedTuple):
    """Held-out accuracy in percent, (kNN, linear), of a method and of the closed form on the same images."""

    images: int
    method: str
    core_minutes: float  # of training
    trained: tuple[float, float]
    quick: tuple[float, float]
    of: str = "images of CIFAR-10"


MEASURED: tuple[Comparison, ...] = (
    Comparison(1_500, "coding_rate", 1.3, (51.9, 56.2), (62.7, 61.8)),
    Comparison(5_000, "coding_rate", 2.0, (56.1, 61.8), (67.0, 68.5)),
    Comparison(46_000, "coding_rate", 4.2, (61.6, 66.1), (71.5, 74.4)),
    Comparison(50_000, "barlow_twins", 17.0, (46.4, 51.1), (75.3, 74.1)),
    Comparison(50_000, "coding_rate", 14.0, (69.8, 70.7), (75.7, 74.0)),
    Comparison(5_400, "barlow_twins", 3.5, (65.4, 70.9), (85.6, 88.1), of="squares of the demo"),
    Comparison(5_400, "simsiam", 20.0, (63.8, 79.9), (84.2, 87.2), of="squares of the demo at 64 pixels"),
)


def advise(
    images: int, *, method: str = "", epochs: float | None = None, budget: str | None = None, device: str = "auto"
) -> str | None:
    """One line that names `diptych quick`, where it was measured to be better; None elsewhere.

    images: their number. method, epochs, budget, device: as in a recipe. A comparison counts for similar numbers of
    images, and for training that takes no longer than what was measured: of longer training, and of training on a GPU,
    nothing is said. `coding_rate` is held to its own comparisons, other methods to all, as they were slower. A budget is
    multiplied by the number of threads; epochs take at least `SECONDS_AN_IMAGE`. Nothing else depends on the answer.
    """
    if choose_device(device).type != "cpu":
        return None
    minutes = (epochs or 0) * images * SECONDS_AN_IMAGE / 60
    if budget is not None:
        minutes = seconds_of(budget) * torch.get_num_threads() / 60
    lost = [row for row in MEASURED
            if row.images / NEAR <= images <= row.images * NEAR and minutes <= row.core_minutes
            and (method != "coding_rate" or row.method == method)]  # fmt: skip
    if not lost:
        return None
    row = min(lost, key=lambda row: row.core_minutes)
    return (
        f"note: for {images:,} images and this time on a CPU, `diptych quick` is the better choice: on {row.images:,} "
        f"{row.of} it reached kNN {row.quick[0]:.0f} and linear {row.quick[1]:.0f} %, {row.method} in {row.core_minutes:.0f} "
        f"core-minutes {row.trained[0]:.0f} and {row.trained[1]:.0f} %; `diptych quick --join` joins both afterwards"
    )
