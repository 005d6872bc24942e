"""How long a run is: a number of epochs, or a budget of steps or of time. Time becomes a number of steps before step 0."""

import copy
import itertools
import re
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from diptych.base.errors import RecipeError
from diptych.base.processes import means, rank
from diptych.methods import Method
from diptych.networks.batch_norm import shared_statistics
from diptych.networks.convolution import quick_convolutions
from diptych.runs.run import Run
from diptych.training.feed import Feed
from diptych.training.learner import Learner

LENGTH = re.compile(r"(?:(?P<h>[\d.]+)h)?(?:(?P<m>[\d.]+)m)?(?:(?P<s>[\d.]+)s)?", re.ASCII)
LONGEST = 1e9  # seconds, 31 years; and steps
STEPS = re.compile(r"(\d{1,10}) ?steps?", re.ASCII)
SECONDS = {"h": 3600, "m": 60, "s": 1}
TRIED_SHARE, MOST_TRIED = 0.03, 20  # of the budget that measuring may take after two steps, and steps

Learn = Callable[[Method, torch.optim.Optimizer], Learner]


def check_length(epochs: int | None, budget: str | None) -> None:
    """Raises RecipeError unless one of both is given, and can be trained."""
    if epochs is None and budget is None:
        raise RecipeError("how long to train is missing: give epochs, or a budget such as '20m' or '5000 steps'")
    if epochs is not None and budget is not None:
        raise RecipeError(f"epochs {epochs} and budget {budget!r} are both given; leave one of them out")
    if budget is not None and steps_of(budget) is None:
        seconds_of(budget, also=", or 5000 steps")


def steps_of(budget: str) -> int | None:
    """The steps of "5000 steps"; None for a length of time. Raises RecipeError for none, and for more than 1e9."""
    parts = STEPS.fullmatch(budget.strip())
    if parts is None:
        return None
    if not 0 < (steps := int(parts[1])) <= LONGEST:
        raise RecipeError(f"budget {budget!r} must be 1 to {LONGEST:.0f} steps")
    return steps


def seconds_of(budget: str, also: str = "") -> float:
    """The seconds of "90s", "20m", "2h" or "1h30m". Raises RecipeError for anything else, and for none.

    also: what the message adds, where another form of budget is possible.
    """
    parts = LENGTH.fullmatch(budget.strip())
    try:
        seconds = (
            sum(SECONDS[unit] * float(count) for unit, count in parts.groupdict().items() if count) if parts else 0.0
        )
    except ValueError:  # "1.2.3m"
        seconds = 0.0
    if not 0 < seconds <= LONGEST:
        raise RecipeError(f"budget {budget!r} is not a duration; write 90s, 20m, 2h or 1h30m{also}")
    return seconds


def steps_within(
    budget: str, feed: Feed, learn: Learn, method: Method, optimizer: torch.optim.Optimizer, run: Run
) -> int:
    """The number of steps of `feed` that fit into `budget`, at least 1. A budget of steps is that number.

    For one of time, the rate of a few steps is measured and logged. The steps are taken on copies of `method` and
    `optimizer`, so that no weight and no random state of the run moves, and that memory is needed twice for their duration.
    Their seconds are part of the budget. The time of watches, checkpoints and the diagnosis is not: it comes on top. All
    processes get the same number.
    """
    if (steps := steps_of(budget)) is not None:
        return steps
    began = time.monotonic()
    tried, its_optimizer = copy.deepcopy((method, optimizer))  # together, so that the copy updates the copy
    devices = [feed.device] if feed.device.type == "cuda" else []
    statistics = shared_statistics(tried, tried.statistics_rows)
    with torch.random.fork_rng(devices=devices), statistics, quick_convolutions(tried):
        seconds = seconds_a_step(seconds_of(budget), feed, learn(tried, its_optimizer))
    (spent,) = means(time.monotonic() - began)
    steps = max(1, int((seconds_of(budget) - spent) / seconds))
    if rank() == 0:
        run.log("budget", step=0, budget=budget, steps=steps, epochs=round(steps / feed.steps_per_epoch, 2),
                seconds_per_step=round(seconds, 6), measured_in=round(spent, 3))  # fmt: skip
    return steps


def seconds_a_step(budget: float, feed: Feed, learner: Learner) -> float:
    """Measured after one step that warms up and one whose duration says how many can be measured."""
    epochs = (feed.starting_at(0) for _ in itertools.count())
    steps = itertools.chain.from_iterable(epochs)
    take(1, steps, learner, feed.total)
    first = take(1, steps, learner, feed.total)
    return take(max(1, min(MOST_TRIED, int(TRIED_SHARE * budget / first))), steps, learner, feed.total)


def take(count: int, steps: Iterator[tuple[int, list[Tensor]]], learner: Learner, total: int) -> float:
    """Take some of `steps`; returns the seconds of one, the mean over the processes."""
    began = time.monotonic()
    numbers = [learner.step(step, total, views).numbers for step, views in itertools.islice(steps, count)]
    numbers[-1].tolist()  # waits for the device
    (seconds,) = means((time.monotonic() - began) / count)
    return seconds
