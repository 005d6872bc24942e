"""What the loop keeps books about: where it stands, what it logs, what a checkpoint holds, how a run begins and ends."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diptych.base import files
from diptych.base.errors import DivergedError, RecipeError
from diptych.base.processes import agree, mean_over_ranks, means, rank
from diptych.data.images import Images
from diptych.methods import Method
from diptych.runs import checkpoints
from diptych.runs.run import Run
from diptych.training.watch import Watch
from diptych.views import View


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


Taken = tuple[int, Tensor, Mapping[str, Tensor], Tensor]  # step, loss, parts, norm of the gradient, on the device


@dataclass
class Kept:
    """Weights, buffers and the optimizer's memory as they were at a look, on their device."""

    tensors: list[Tensor]
    memory: list[tuple[dict, dict]]  # each dict of the optimizer, and what stood in it

    @classmethod
    def of(cls, method: Method, optimizer: torch.optim.Optimizer, before: "Kept | None") -> "Kept":
        """A copy, into the memory of the one before where that fits."""
        live = live_tensors(method, optimizer)
        fits = before is not None and len(before.tensors) == len(live)
        tensors = before.tensors if before is not None and fits else [torch.empty_like(tensor) for tensor in live]
        copy(live, tensors)
        return cls(tensors, [(owner, dict(owner)) for owner in owners(optimizer)])

    def put_back(self, method: Method, optimizer: torch.optim.Optimizer) -> None:
        """What the optimizer has begun to remember since the look is forgotten."""
        known = {id(owner) for owner, _ in self.memory}
        for parameter in [p for p, memory in optimizer.state.items() if id(memory) not in known]:
            del optimizer.state[parameter]
        for owner, content in self.memory:
            owner.clear()
            owner.update(content)
        copy(self.tensors, live_tensors(method, optimizer))


def owners(optimizer: torch.optim.Optimizer) -> list[dict]:
    """The dicts in which an optimizer remembers: one a parameter, one a group (timm's LAMB counts its steps there)."""
    return [*optimizer.state.values(), *optimizer.param_groups]


def live_tensors(method: Method, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """All that a step changes, in one order."""
    remembered = [value for owner in owners(optimizer) for value in owner.values() if isinstance(value, Tensor)]
    return [*(p.data for p in method.parameters()), *method.buffers(), *remembered]


def copy(tensors: list[Tensor], into: list[Tensor]) -> None:
    if into:  # a network without buffers is one too
        torch._foreach_copy_(into, tensors)


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
    micro_batch: int | None
    torch_compile: bool
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
        self.taken: list[Taken] = []  # since the last look
        self.waits = self.device.type != "cpu"  # to look at a number of the device is to wait for it
        self.kept: Kept | None = None

    @property
    def total(self) -> int:
        return self.epochs * self.steps_per_epoch

    @property
    def careful(self) -> bool:
        """Look at every step: on a CPU, where it costs nothing, and as long as there is nothing to go back to."""
        return not self.waits or self.kept is None

    def looks_at(self, step: int) -> bool:
        """Whether the step's numbers are waited for when it has been taken."""
        return self.careful or (step + 1) % self.log_steps == 0 or (step + 1) % self.steps_per_epoch == 0

    def arithmetic(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast)

    def remember_buffers(self) -> None:
        """Running statistics as they are before a step: a step that turns out not finite has already moved them."""
        copy(self.buffers, self.kept_buffers)

    def look_back(self, *flags: bool) -> tuple[str, bool, bool] | None:
        """Count and log the steps taken since the last look: one wait for the device, one collective.

        Returns the line for the progress bar and each flag as soon as one rank raised it; None where a number was not
        finite: then everything is back at the last look, and the job has become careful.
        """
        own = torch.stack([torch.stack((loss.double(), norm.double())) for _, loss, _, norm in self.taken]).tolist()
        *losses, asked, due = means(*(loss for loss, _ in own), *flags)
        if not all(math.isfinite(loss + norm) for loss, (_, norm) in zip(losses, own, strict=True)):
            self.go_back()
            return None
        line = ""
        for (step, _, parts, _), loss, (_, norm) in zip(self.taken, losses, own, strict=True):
            line = self.count(step, loss, parts, norm)
        self.taken.clear()
        if self.waits:
            self.kept = Kept.of(self.method, self.optimizer, self.kept)
        return line, asked > 0, due > 0

    def go_back(self) -> None:
        assert self.kept is not None  # a careful job has stopped before
        self.kept.put_back(self.method, self.optimizer)
        self.taken.clear()
        self.waits = False

    def count(self, step: int, loss: float, parts: Mapping[str, Tensor], norm: float) -> str:
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

    def log_step(self, loss: float, parts: Mapping[str, Tensor], norm: float, rate: float) -> None:
        values = {name: float(mean_over_ranks(part.detach())) for name, part in parts.items()}
        if rank() == 0:
            state, rates = self.state, [group["lr"] for group in self.optimizer.param_groups]
            self.run.log("step", step=state.step, epoch=(state.step - 1) // self.steps_per_epoch + 1,
                         progress=state.step / self.total, loss=loss, parts=values, gradient_norm=norm, lr=rates,
                         images_per_second=round(rate, 1), elapsed_seconds=round(state.elapsed_seconds, 3))  # fmt: skip

    def end_epoch(self) -> bool:
        """Log the epoch's mean loss, look, and say whether to stop early."""
        state, epoch = self.state, self.state.step // self.steps_per_epoch
        readings = {"loss": state.epoch_loss / self.steps_per_epoch}
        state.epoch_loss = 0.0
        if rank() == 0:
            self.run.log("epoch", step=state.step, epoch=epoch, loss=readings["loss"])
        looked = epoch % self.watch_epochs == 0 or epoch == self.epochs
        if looked:
            readings |= self.look(epoch)
        if self.stop_on is None:
            return False
        name = self.stop_on.removeprefix("-")
        read = name in readings  # on the first process alone where a watch made it; it decides for all
        if agree(rank() == 0 and looked and not read):
            told = ", ".join(readings) if rank() == 0 else "those of the watches"
            raise RecipeError(f"stop_on names {name!r}, which nothing reads; there are {told}")
        if read:
            value = readings[name] * (-1 if self.stop_on.startswith("-") else 1)
            if value < state.best:
                state.best, state.best_epoch = value, epoch
                state.best_weights = checkpoints.plain(self.method.state_dict())
        return agree(rank() == 0 and read and epoch - state.best_epoch >= self.patience)

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
        copy(self.kept_buffers, self.buffers)
        self.save()
        rates = [group["lr"] for group in self.optimizer.param_groups]
        told = {"step": step, "rank": rank(), "loss": str(float(loss.detach())), "gradient_norm": str(float(norm)), "lr": rates,
                "parts": {name: str(float(value)) for name, value in parts.items()}}  # fmt: skip
        folder = self.run.folder / "crash"
        folder.mkdir(exist_ok=True)
        files.write_file(folder / f"step_{step:07d}_rank_{rank()}.json", json.dumps(told, indent=1).encode())
        saved = f"step {step - 1} is saved" if step else "nothing has been trained"
        raise DivergedError(
            f"loss {told['loss']} ({tell(parts)}), gradient norm {told['gradient_norm']} at step {step}; {saved}: lower "
            f"optimizer.lr, lengthen the warm-up or set pretrain.clip_norm (details in {folder})"
        )

    def save(self) -> None:
        """A checkpoint of the step that has just ended (first process)."""
        self.saved_at = time.monotonic()
        if rank() == 0:
            memory, remainder = checkpoints.pack_optimizer(self.optimizer)
            tensors = {"model": self.method.state_dict(), "optimizer": memory}
            if self.state.best_weights:
                tensors["best"] = self.state.best_weights
            numbers = self.state.numbers() | {
                "optimizer": remainder,
                "data": self.images.fingerprint,
                "images": len(self.images),
            }
            self.run.flush()
            checkpoints.save(self.run.folder / "checkpoints", self.state.step, tensors, numbers)
        agree(False)  # all leave together: who starts the processes ends them soon after the first has gone


def tell(parts: Mapping[str, Tensor]) -> str:
    return "  ".join(f"{name} {float(value):.4g}" for name, value in parts.items())
