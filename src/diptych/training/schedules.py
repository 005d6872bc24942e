"""Schedules: functions of progress in [0, 1] that return a factor of the peak rate. Nothing to restore."""

import math
from collections.abc import Callable
from typing import Annotated

from diptych.base.ranges import Count, Range, Share, checked

Schedule = Callable[[float], float]


def constant() -> Schedule:
    """Always 1."""
    return lambda progress: 1.0


@checked
def cosine(floor: Share = 0.0, epochs: Count | None = None) -> Schedule:
    """Half a cosine from 1 to `floor` (SGDR, eq. 5, without restarts).

    `epochs`, their number, makes it constant within each: SimSiam's published schedule.
    """

    def factor(progress: float) -> float:
        if epochs is not None:
            # 1e-6: at an epoch's first step, progress may round to just below it
            progress = math.floor(progress * epochs + 1e-6) / epochs
        return floor + (1 - floor) * _half_cosine(progress)

    return factor


@checked
def warmup_cosine(warmup: Annotated[float, Range(0, below=1)] = 0.01, floor: Share = 0.001) -> Schedule:
    """A straight line from 0 to 1 during the fraction `warmup` of training, then half a cosine to `floor`.

    The defaults are Barlow Twins' (appendix A: 10 of 1000 epochs, down to 1/1000).
    """

    def factor(progress: float) -> float:
        if progress < warmup:
            return progress / warmup
        return floor + (1 - floor) * _half_cosine((progress - warmup) / (1 - warmup))

    return factor


def _half_cosine(progress: float) -> float:
    """1 at 0, 0 at 1 and after."""
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": constant,
    "cosine": cosine,
    "warmup_cosine": warmup_cosine,
}
