"""A step as graphs of launches: one for the views, one for networks, loss and update."""

from collections.abc import Callable

import torch
from torch import Tensor

from diptych.base.errors import RecipeError
from diptych.base.graph import Captured
from diptych.base.processes import world_size
from diptych.base.random_at import Draw
from diptych.training.feed import Feed
from diptych.training.learner import Learner


def check_graph(
    wanted: bool | str, device: torch.device, *, micro_batch: int | None = None, torch_compile: bool = False
) -> str | None:
    """Why a step cannot be one graph, or None. Raises RecipeError with that reason if one is wanted in any case (True)."""
    reason = None
    if wanted is False:
        reason = "cuda_graph is false"
    elif device.type == "cpu":
        reason = "CUDA graphs need a GPU; leave cuda_graph out, or set device cuda"
    elif world_size() > 1:
        reason = "several processes train together, and their exchanges are not captured"
    elif micro_batch is not None or torch_compile:
        reason = f"it does not go together with {'torch_compile' if torch_compile else 'micro_batch'}"
    if wanted is True and reason is not None:
        raise RecipeError(f"cuda_graph: {reason}")
    return reason


def capture(
    learner: Learner, feed: Feed, wanted: bool | str, say: Callable[[str], object], *, log_steps: int,
    hindrance: str | None = None,
) -> None:  # fmt: skip
    """From the fourth step on the learner's steps and the feed's views are graphs; a step computes what it did before.

    log_steps: the numbers of a step are overwritten that many steps later, so they have to be read before.
    Where there is a hindrance (see `check_graph`) or recording fails, one line says why and steps go on without a graph; but
    RecipeError where one is wanted in any case.
    """

    def failed(reason: str) -> None:
        if wanted is True:
            raise RecipeError(f"cuda_graph: a step cannot be captured: {reason}; set it to auto or false")
        say(f"note: steps run without a CUDA graph: {reason}")

    if hindrance is not None:
        if wanted is not False and learner.device.type != "cpu":
            failed(hindrance)
        return
    if not learner.updates.skips:
        failed(f"{type(learner.optimizer).__name__} does not skip steps whose loss or gradient is not finite")
        return
    feed.together.capture(failed)
    learner.take = Steps(learner, failed, log_steps)


class Steps:
    """`Learner.device_step` as one graph, with the host's part of what it does.

    The numbers of the last `kept` steps lie in a ring, a row each, that the device fills without being asked.
    """

    def __init__(self, learner: Learner, failed: Callable[[str], object], kept: int):
        self.learner = learner
        self.kept = kept
        self.ring: Tensor | None = None
        self.rows = torch.arange(kept, device=learner.device)[:, None]
        self.row = torch.zeros(1, dtype=torch.int64, device=learner.device)  # of the step that comes next
        self.names: list[str] = []
        self.of_draw: list[str] = []
        self.views = 0
        self.captured = Captured(self.flat, failed, undo=self.undo)

    def __call__(self, step: int, given: Tensor, views: list[Tensor], draw: Draw) -> tuple[list[str], Tensor]:
        self.of_draw, self.views = list(draw), len(views)
        (ring,) = self.captured(given, *views, *draw.values())
        if self.captured.replayed:
            self.learner.updates.replayed()
        return self.names, ring[(self.captured.calls - 1) % self.kept]

    def flat(self, given: Tensor, *tensors: Tensor) -> tuple[Tensor]:
        draw = dict(zip(self.of_draw, tensors[self.views :], strict=True))
        self.names, numbers = self.learner.device_step(0, given, list(tensors[: self.views]), draw)
        if self.ring is None:  # at the first step, which is not recorded
            self.ring = numbers.new_zeros(self.kept, len(numbers))
        # Not by an index: where the same bits are asked for, torch writes those by way of a sort.
        torch.where(self.rows == self.row, numbers, self.ring, out=self.ring)
        self.row.add_(1).remainder_(self.kept)
        return (self.ring,)

    def undo(self) -> None:
        """What the host has counted while a recording that failed launched nothing."""
        guard = self.learner.guard
        guard.put_back(guard.memories[-1])
