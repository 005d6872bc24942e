"""Early stopping: which reading it looks at, which epoch was best, and when no better one is expected."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from diptych.base.errors import RecipeError
from diptych.base.processes import agree, rank
from diptych.base.ranges import Count
from diptych.runs.checkpoints import plain
from diptych.training.diary import State


@dataclass(frozen=True)
class EarlyStop:
    """Stop after `patience` epochs without a better reading, and restore the weights of the best epoch.

    reading: "loss" (an epoch's mean) or the name of a number that a watch returns. largest: larger is better.
    """

    reading: str
    largest: bool = False
    patience: Count = 5

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise RecipeError(f"early stopping: patience is {self.patience} epochs; it must be at least 1")

    def ends(self, epoch: int, readings: Mapping[str, float], watched: bool, state: State, method: nn.Module) -> bool:
        """Note the readings of an epoch in `state`; whether to stop, on every process alike.

        Watches read on the first process alone, which decides for all. watched: whether they have read in this epoch.
        """
        known = self.reading in readings
        if agree(rank() == 0 and watched and not known):
            names = ", ".join(readings) if rank() == 0 else "those of the watches"
            raise RecipeError(f"early stopping looks at {self.reading!r}, which no watch returns; there are {names}")
        if known:
            value = readings[self.reading] * (-1 if self.largest else 1)
            if value < state.best:
                state.best, state.best_epoch = value, epoch
                state.best_weights = plain(method.state_dict())
        return agree(rank() == 0 and known and epoch - state.best_epoch >= self.patience)
