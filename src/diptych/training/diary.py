"""The books of a run: where it stands, what is logged, how fast it is."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from diptych.base.processes import means, rank
from diptych.runs.run import Run
from diptych.training.learner import Taken


@dataclass
class State:
    """All that a checkpoint remembers beside weights and the optimizer's memory."""

    step: int = 0  # steps taken
    elapsed_seconds: float = 0.0
    epoch_loss: float = 0.0  # summed over the steps of the epoch so far
    best: float = math.inf  # of the reading that early stopping looks at; smaller is better
    best_epoch: int = 0
    finished: bool = False
    steps_in_budget: int = 0  # the total of a run that has a budget
    precision: str = ""  # in which the run computes, where it was to choose
    best_weights: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def numbers(self) -> dict:
        return {name: value for name, value in vars(self).items() if name != "best_weights"}


class Look(NamedTuple):
    """What was read of the steps since the look before."""

    bad: Taken | None  # the first whose loss or gradient was not finite
    undone: int  # it and those after it
    flags: list[bool]  # true where one process raised it


class Diary:
    """Counts the steps of a run and logs their numbers: one wait for the device and one collective at each look.

    waits: whether reading a number of the device is waiting for it; then steps are looked at when one is logged, else each.
    bar: called with the steps taken and a line of text.
    """

    def __init__(
        self,
        run: Run,
        state: State,
        *,
        total: int,
        steps_per_epoch: int,
        batch_size: int,
        log_steps: int = 10,
        waits: bool = False,
        bar: Callable[[int, str], object] = lambda steps, text: None,
    ):
        self.run, self.state, self.bar = run, state, bar
        self.total, self.steps_per_epoch, self.batch_size = total, steps_per_epoch, batch_size
        self.log_steps, self.waits = log_steps, waits
        self.first_step = state.step
        self.began = time.monotonic() - state.elapsed_seconds
        self.warm_at: float | None = None
        self.taken: list[Taken] = []  # since the last look

    @property
    def epoch(self) -> int:
        """Epochs that are done."""
        return self.state.step // self.steps_per_epoch

    def due(self, step: int) -> bool:
        """Whether to look when this step has been taken: at the first one, at those that are logged, at an epoch's end."""
        ends_epoch = (step + 1) % self.steps_per_epoch == 0
        return not self.waits or step == self.first_step or ends_epoch or self.is_logged(step)

    def is_logged(self, step: int) -> bool:
        """The first step, every `log_steps`-th and the last: a resumed run logs the same ones, each once."""
        return (step + 1) % self.log_steps == 0 or step == 0 or step + 1 == self.total

    def look(self, *flags: bool) -> Look:
        """Count and log the steps taken since the last look, up to the first that was not finite."""
        taken, self.taken = self.taken, []
        numbers = iter(torch.cat([step.numbers for step in taken]).tolist())  # the one wait for the device
        own = [[next(numbers) for _ in step.names] for step in taken]
        average = means(*flags, *(number for row in own for number in row))
        raised, losses = [share > 0 for share in average[: len(flags)]], iter(average[len(flags) :])
        rows = [[next(losses) for _ in row] for row in own]
        good = next((i for i, row in enumerate(rows) if not math.isfinite(row[0] + own[i][1])), len(taken))
        for i in range(good):
            self.count(taken[i], [rows[i][0], own[i][1], *rows[i][2:]])
        if good:
            loss, parts = rows[good - 1][0], dict(zip(taken[good - 1].names[2:], rows[good - 1][2:], strict=True))
            self.bar(self.state.step, f"{self.rate:,.0f} img/s  loss {loss:.4g}  {in_words(parts)}")
        return Look(taken[good] if good < len(taken) else None, len(taken) - good, raised)

    def count(self, taken: Taken, numbers: list[float]) -> None:
        """Count a step, and log it when it is its turn."""
        state, now, (loss, norm, *parts) = self.state, time.monotonic(), numbers
        state.step, state.epoch_loss, state.elapsed_seconds = taken.step + 1, state.epoch_loss + loss, now - self.began
        if self.warm_at is None:
            self.warm_at = now  # the first step warms up: it does not count for the rate
        if self.is_logged(taken.step):
            named = dict(zip(taken.names[2:], parts, strict=True))
            self.log("step", epoch=(state.step - 1) // self.steps_per_epoch + 1, progress=state.step / self.total, loss=loss,
                     parts=named, gradient_norm=norm, lr=taken.rates, images_per_second=round(self.rate, 1),
                     elapsed_seconds=round(state.elapsed_seconds, 3))  # fmt: skip

    @property
    def rate(self) -> float:
        """Images per second, over all processes, of this process' own steps without the first."""
        steps = self.state.step - self.first_step - 1
        seconds = time.monotonic() - (self.warm_at or self.began)
        return steps * self.batch_size / seconds if steps > 0 and seconds > 0 else 0.0

    def end_epoch(self) -> dict[str, float]:
        """Log the mean loss of the epoch that has just ended; returns it by name, as the watches do their readings."""
        loss, self.state.epoch_loss = self.state.epoch_loss / self.steps_per_epoch, 0.0
        self.log("epoch", epoch=self.epoch, loss=loss)
        return {"loss": loss}

    def log(self, event: str, **fields: object) -> None:
        """A line of the log, by the first process."""
        if rank() == 0:
            self.run.log(event, step=self.state.step, **fields)


def in_words(parts: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in parts.items())
