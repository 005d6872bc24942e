"""One step: rates, forward, loss, gradient, update. A number that is not finite moves nothing."""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from diptych.base.device import upload, waits_for
from diptych.base.processes import on_all_ranks, rank, world_size, wrap
from diptych.base.random_at import random_at, seed_at
from diptych.methods.method import Compared, Draw, Method
from diptych.training.fused import Updates
from diptych.training.gradients import in_pieces
from diptych.training.guard import Guard
from diptych.training.optimizers import set_rates
from diptych.training.schedules import Schedule


class Taken(NamedTuple):
    """A step that was taken, its numbers on the device: to read one is to wait for it."""

    step: int
    names: list[str]  # "loss", "norm" (of the gradient, before it is clipped), and the named terms of the loss
    numbers: Tensor  # one a name
    rates: list[float]  # learning rate of each parameter group


class Learner:
    """What changes the weights of `method`; it knows nothing of images, runs and clocks.

    precision: "bfloat16" runs the networks under autocast, anything else as the weights are. micro_batch: run the networks
    on that many rows at a time, see `in_pieces`. Until a loss or gradient norm is not finite, `fine` is true (a 0-d tensor
    on the device); from then on no step moves anything: no weight, no buffer, no memory of the optimizer. Nothing waits
    for a GPU to learn that.
    """

    def __init__(
        self,
        method: Method,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        *,
        seed: int = 0,
        precision: str = "float32",
        clip_norm: float | None = None,
        micro_batch: int | None = None,
        torch_compile: bool = False,
    ):
        self.method, self.optimizer, self.schedule, self.seed = method, optimizer, schedule, seed
        self.clip_norm, self.micro_batch = clip_norm, micro_batch
        self.parameters = [p for p in method.parameters() if p.requires_grad]
        self.device = self.parameters[0].device
        low = precision == "bfloat16"
        self.arithmetic = partial(torch.autocast, self.device.type, torch.bfloat16, enabled=low)  # fresh at each use
        self.model = torch.compile(wrap(method)) if torch_compile else wrap(method)
        self.fine = torch.ones((), dtype=torch.bool, device=self.device)
        self.updates = Updates(optimizer, self.device)
        self.guard = Guard(method, optimizer, undoes=waits_for(self.device), optimizer_skips=self.updates.skips)
        self.take = self.device_step  # or as a graph, see `training.capture`

    def step(self, step: int, total: int, views: list[Tensor]) -> Taken:
        """Take step number `step` of `total` on this process' views, (n, 3, s, s) each."""
        set_rates(self.optimizer, self.schedule(step / total))
        rates = [group["lr"] for group in self.optimizer.param_groups]
        self.method.train()
        self.guard.note()
        draw = self.draw(step, len(views[0]))
        numbers = upload(torch.tensor([step / total, *rates]), self.device)
        self.seed_networks(step)
        return Taken(step, *self.take(step, numbers, views, draw), rates)

    def device_step(self, step: int, given: Tensor, views: list[Tensor], draw: Draw) -> tuple[list[str], Tensor]:
        """What the device does in a step, and its numbers by name: of `given`, progress and the rates.

        Of the CPU's numbers it knows only `step`, which seeds pieces of a batch; no shape depends on the device's.
        """
        self.optimizer.zero_grad(set_to_none=True)
        self.guard.remember()
        loss, parts, kept = self.differentiate(step, given[0], views, draw)
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        self.fine.logical_and_(on_all_ranks((loss.detach() + norm).isfinite()))
        if self.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.clip_norm, norm)
        with self.guard.update(self.fine) as moves:
            if moves:
                self.updates.take(self.fine, given[1:])
                self.method.after_step(kept, given[0])
        return ["loss", "norm", *parts], torch.stack((loss.detach(), norm, *parts.values()))

    def differentiate(self, step: int, progress: Tensor, views: list[Tensor], draw: Draw) -> Compared:
        """The loss of the global batch; every parameter has its gradient."""
        if self.micro_batch is not None:
            return in_pieces(self.method, views, draw, progress, rows=self.micro_batch, arithmetic=self.arithmetic,
                             seed=partial(self.seed_networks, step))  # fmt: skip
        with self.arithmetic():
            compared = self.model(views, draw, progress)
        compared.loss.backward()
        return compared

    def draw(self, step: int, rows: int) -> Draw:
        """This process' rows of the method's own randomness, drawn for the global batch."""
        draw = self.method.draw(rows * world_size(), random_at(self.seed, "method", step))
        own = slice(rank() * rows, (rank() + 1) * rows)
        return {name: value[own].to(self.device, non_blocking=True) for name, value in draw.items()}

    def seed_networks(self, step: int, piece: int = 0) -> None:
        """For networks with dropout: their random numbers are a function of the step, and no state has to be saved."""
        torch.manual_seed(seed_at(self.seed, "network", step, rank(), piece))
