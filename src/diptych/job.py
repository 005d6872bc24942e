"""What the loop keeps books about: where it stands, what it logs, what a checkpoint holds, how a run begins and ends."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diptych import checkpoints
from diptych.distributed import agree, mean_over_ranks, rank
from diptych.errors import DivergedError
from diptych.images import Images
from diptych.methods import Method
from diptych.run import Run
from diptych.views import View
from diptych.watch import Watch


@dataclass
class State:
    """All that a checkpoint remembers beside weights and the optimizer's memory."""

    step: int = 0
    elapsed_seconds: float = 0.0
    epoch_loss: float = 0.0  # summed over the steps of the epoch so far
    best: float = math.inf  # of the number that early stopping looks at; smaller is better
    best_epoch: int = 0
    finished: bool = False
    best_weights: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def numbers(self) -> dict:
        return {name: value for name, value in vars(self).items() if name != "best_weights"}


@dataclass
class Job:
    """One run's things, named once, so that the loop reads like a recipe."""

    run: Run
    state: State
    method: Method
    images: Images
    views: Sequence[View]
    optimizer: torch.optim.Optimizer
    schedule: Callable[[float], float]
    epochs: int
    batch_size: int
    steps_per_epoch: int
    seed: int
    device: torch.device
    dtype: torch.dtype
    autocast: bool
    clip_norm: float | None
    watches: tuple[Watch, ...]
    watch_epochs: int
    stop_on: str | None
    patience: int
    log_steps: int
    checkpoint_minutes: float

    def __post_init__(self) -> None:
        self.began = time.monotonic() - self.state.elapsed_seconds
        self.saved_at = time.monotonic()
        self.first_step = self.state.step
        self.warm_at: float | None = None
        self.resident: Tensor | None = None  # the whole set on the GPU, after its first use
        self.buffers = list(self.method.buffers())
        self.kept_buffers = [buffer.clone() for buffer in self.buffers]

    @property
    def total(self) -> int:
        return self.epochs * self.steps_per_epoch

    def remember_buffers(self) -> None:
        """Running statistics as they are before a step: a step that turns out not finite has already moved them."""
        torch._foreach_copy_(self.kept_buffers, self.buffers)

    def count(self, step: int, loss: float, parts: Mapping[str, Tensor], norm: Tensor) -> str:
        """Count a step that has ended, log it when it is its turn, and return the line for the progress bar."""
        state, now = self.state, time.monotonic()
        state.step, state.epoch_loss, state.elapsed_seconds = (
            step + 1,
            state.epoch_loss + loss,
            now - self.began,
        )
        if self.warm_at is None:
            self.warm_at = now  # the first step warms up: it does not count for the rate
        done = (state.step - self.first_step - 1) * self.batch_size
        rate = done / (now - self.warm_at) if done else 0.0
        if state.step % self.log_steps == 0 or step == self.first_step or state.step == self.total:
            self.log_step(loss, parts, norm, rate)
        return f"{rate:,.0f} img/s  loss {loss:.4g}  {tell(parts)}"

    def log_step(self, loss: float, parts: Mapping[str, Tensor], norm: Tensor, rate: float) -> None:
        values = {name: float(mean_over_ranks(part.detach())) for name, part in parts.items()}
        if rank() == 0:
            state, rates = self.state, [group["lr"] for group in self.optimizer.param_groups]
            self.run.log("step", step=state.step, epoch=(state.step - 1) // self.steps_per_epoch + 1,
                         progress=state.step / self.total, loss=loss, parts=values, gradient_norm=float(norm), lr=rates,
                         images_per_second=round(rate, 1), elapsed_seconds=round(state.elapsed_seconds, 3))  # fmt: skip

    def end_epoch(self) -> bool:
        """Log the epoch's mean loss, look, and say whether to stop early."""
        state, epoch = self.state, self.state.step // self.steps_per_epoch
        readings = {"loss": state.epoch_loss / self.steps_per_epoch}
        state.epoch_loss = 0.0
        if rank() == 0:
            self.run.log("epoch", step=state.step, epoch=epoch, loss=readings["loss"])
        if epoch % self.watch_epochs == 0 or epoch == self.epochs:
            readings |= self.look(epoch)
        if self.stop_on is None:
            return False
        name = self.stop_on.removeprefix("-")
        if name in readings:  # on the first process alone where a watch made it; it decides for all
            value = readings[name] * (-1 if self.stop_on.startswith("-") else 1)
            if value < state.best:
                state.best, state.best_epoch = value, epoch
                state.best_weights = checkpoints.plain(self.method.state_dict())
        return agree(rank() == 0 and epoch - state.best_epoch >= self.patience)

    def look(self, epoch: int) -> dict[str, float]:
        """What the watches read, logged. The first process looks, the others wait for it in the next gradient."""
        readings: dict[str, float] = {}
        if rank() == 0 and self.watches:
            for watch in self.watches:
                readings |= watch(self.state.step, self.method.encoder)
            self.run.log("watch", step=self.state.step, epoch=epoch, **readings)
        return readings

    def diverged(self, step: int, loss: Tensor, parts: Mapping[str, Tensor], norm: Tensor) -> None:
        """Save the last good step, write down what is known of the bad one, and stop."""
        torch._foreach_copy_(self.buffers, self.kept_buffers)
        self.save()
        rates = [group["lr"] for group in self.optimizer.param_groups]
        told = {"step": step, "rank": rank(), "loss": str(float(loss.detach())), "gradient_norm": str(float(norm)), "lr": rates,
                "parts": {name: str(float(value)) for name, value in parts.items()}}  # fmt: skip
        folder = self.run.folder / "crash"
        folder.mkdir(exist_ok=True)
        checkpoints.write_file(folder / f"step_{step:07d}_rank_{rank()}.json", json.dumps(told, indent=1).encode())
        raise DivergedError(
            f"loss {told['loss']} ({tell(parts)}), gradient norm {told['gradient_norm']} at step {step}; step {step - 1} is "
            f"saved: lower optimizer.lr, lengthen the warm-up or set pretrain.clip_norm (details in {folder})"
        )

    def save(self) -> None:
        """A checkpoint of the step that has just ended (first process)."""
        self.saved_at = time.monotonic()
        if rank() == 0:
            memory, remainder = checkpoints.pack_optimizer(self.optimizer)
            tensors = {"model": self.method.state_dict(), "optimizer": memory}
            if self.state.best_weights:
                tensors["best"] = self.state.best_weights
            numbers = self.state.numbers() | {"optimizer": remainder, "data": self.images.fingerprint}
            checkpoints.save(self.run.folder / "checkpoints", self.state.step, tensors, numbers)


def tell(parts: Mapping[str, Tensor]) -> str:
    return "  ".join(f"{name} {float(value):.4g}" for name, value in parts.items())
