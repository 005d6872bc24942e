"""Several processes that compute what one process would. With one process every function here is the identity.

Each process holds some rows of the global batch. `mean_over_ranks` turns the loss of these rows into the loss of the
global batch, and DistributedDataParallel averages the gradients: together they give the exact gradient of that loss.
"""

import inspect
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.parallel import DistributedDataParallel

from diptych.base.device import own_gpu
from diptych.base.errors import DiptychError, RecipeError
from diptych.base.heartbeat import Heartbeat
from diptych.base.placement import place

_heartbeats: list[Heartbeat] = []  # one at most
_promises: list[str] = []  # of `equal_rows`, one for each block that is open


def rank() -> int:
    """The number of this process: 0 for the first or only one."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def mean_over_ranks(x: Tensor) -> Tensor:
    """The mean of `x` over the ranks, in value and gradient; a float tensor of the same shape on all of them."""
    return x if world_size() == 1 else _MeanOverRanks.apply(x)


def on_all_ranks(flag: Tensor) -> Tensor:
    """Whether a 0-d flag is true on every process."""
    return flag if world_size() == 1 else mean_over_ranks(flag.float()) == 1


class _MeanOverRanks(torch.autograd.Function):
    """The gradient of a mean over ranks is a mean over ranks.

    A bare all_reduce ignores the effect of this rank on the losses of the others: its gradient is too small, by a factor
    of the number of processes.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return _all_reduce(x) / world_size()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> Tensor:  # pyrefly: ignore
        return _all_reduce(gradient) / world_size()


def _all_reduce(x: Tensor) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


def gather_rows(x: Tensor, counts: Sequence[int] | None = None) -> Tensor:
    """The rows of all ranks, in rank order, on every rank, with gradient: (n, ...) -> (N, ...).

    Ranks may hold unequal numbers of rows; N is their sum. counts: `row_counts(n)`, if it is known already. When every
    rank computes the same loss from all rows, DistributedDataParallel's mean (or `average_gradients`) yields exactly the
    gradient of one process with all rows.
    """
    return x if world_size() == 1 else _GatherRows.apply(x, row_counts(len(x)) if counts is None else counts)


class _GatherRows(torch.autograd.Function):
    """The backward pass sums the gradients of all ranks.

    Each of R ranks has the gradient of the same loss, so the rows of this rank get R times their gradient. The mean over
    ranks of the parameters' gradients, in which each row contributes on one rank only, removes that factor.
    """

    @staticmethod
    def forward(ctx, x: Tensor, counts: Sequence[int]) -> Tensor:
        start, most = sum(counts[: rank()]), max(counts)
        ctx.rows = slice(start, start + len(x))
        equal = min(counts) == most
        padded = x.contiguous() if equal else torch.cat([x, x.new_zeros(most - len(x), *x.shape[1:])])
        gathered = padded.new_empty(len(counts) * most, *x.shape[1:])
        dist.all_gather_into_tensor(gathered, padded)
        if equal:
            return gathered
        return torch.cat([block[:count] for block, count in zip(gathered.split(most), counts, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:  # pyrefly: ignore
        return _all_reduce(gradient)[ctx.rows], None


@torch.no_grad()
def gather(x: Tensor) -> Tensor:
    """`gather_rows` without gradient, for any type of numbers."""
    return gather_rows(x)


@contextmanager
def equal_rows() -> Iterator[None]:
    """Inside, every process promises to hold as many rows as the others: `row_counts` need not ask them."""
    _promises.append("equal rows")
    try:
        yield
    finally:
        _promises.pop()


def row_counts(rows: int) -> list[int]:
    """The number of rows of each rank, in rank order; one collective between CPUs, so that nothing waits for a GPU, and none
    inside `equal_rows`."""
    if world_size() == 1 or _promises:
        return [rows] * world_size()
    counts = torch.zeros(world_size(), dtype=torch.int64)
    dist.all_gather_into_tensor(counts, torch.tensor([rows]))
    return counts.tolist()


def means(*numbers: float) -> list[float]:
    """The mean over the ranks of each number, in one collective between CPUs. All ranks wait for each other here."""
    if world_size() == 1:
        return [float(number) for number in numbers]
    return (_all_reduce(torch.tensor(numbers, dtype=torch.float64)) / world_size()).tolist()


def agree(flag: bool) -> bool:
    """True on every rank as soon as it is true on one. All ranks wait for each other here."""
    return means(flag)[0] > 0


def barrier() -> None:
    """Wait until all processes have arrived here."""
    means(0.0)


def copy_from_first(module: nn.Module) -> None:
    """Copy the parameters and buffers of the first process's module to all others."""
    for tensor in module.state_dict().values() if world_size() > 1 else ():
        dist.broadcast(tensor, 0)


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace each gradient by its mean over the ranks, like DistributedDataParallel; for a backward pass in pieces."""
    for parameter in parameters if world_size() > 1 else ():
        if parameter.grad is not None:
            parameter.grad = mean_over_ranks(parameter.grad)


def wrap(method: nn.Module) -> nn.Module:
    """The module to call in training: its gradients are averaged over the processes. Save `method` itself."""
    if world_size() == 1:
        return method
    # Global statistics keep the buffers equal, so none is broadcast. torch has renamed the argument that says so.
    parameters = inspect.signature(DistributedDataParallel).parameters
    broadcast = "forward_sync_buffers" if "forward_sync_buffers" in parameters else "broadcast_buffers"
    device = next(method.parameters()).device
    options: dict[str, Any] = {broadcast: False, "device_ids": [device] if device.type == "cuda" else None}
    return DistributedDataParallel(method, **options)


def start(device: str | torch.device = "cpu", timeout_seconds: float = 1800.0) -> torch.device:
    """Join the processes that torchrun or srun has started; return the device of this one. `leave_processes` undoes it.

    CPUs communicate by gloo, GPUs by nccl. A process that waits longer than `timeout_seconds` for another, now or later,
    gives up; from now on it notices much sooner when another one does not run any more (see `Heartbeat`). Raises RecipeError
    when the environment is half set or asks for GPUs that are not there, DiptychError when the others cannot be reached.
    """
    device = torch.device(device)
    here = place(os.environ)
    if here is None:
        return device
    number, world = (int(here[name]) for name in ("RANK", "WORLD_SIZE"))
    if device.type == "cuda":
        local = own_gpu(os.environ | here)
        if local >= torch.cuda.device_count():
            gpus = torch.cuda.device_count()
            raise RecipeError(f"LOCAL_RANK is {local}, but torch sees {gpus} GPUs: start one process per GPU")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        os.environ.update(here)  # torch reads the address of the first process there
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        timeout = timedelta(seconds=timeout_seconds)
        try:
            dist.init_process_group(backend, rank=number, world_size=world, timeout=timeout)
        except RuntimeError as error:
            raise DiptychError(
                f"process {number} of {world} could not reach the others at {here['MASTER_ADDR']}:"
                f"{here['MASTER_PORT']}: {str(error).splitlines()[0]}"
            ) from error
    if not _heartbeats:
        connect = partial(dist.TCPStore, here["MASTER_ADDR"], int(here["MASTER_PORT"]), is_master=False)
        _heartbeats.append(Heartbeat(connect, number, world))
    return device


@contextmanager
def together() -> Iterator[None]:
    """What holds while processes train together, and ends with the block: they watch over each other once `start` is called,
    and hold equal numbers of rows.

    For one process it does nothing. Raises RecipeError when the environment is half set.
    """
    if place(os.environ) is None:
        yield
        return
    with warnings.catch_warnings():
        # A false alarm of DistributedDataParallel: the strides of a dimension of size 1 (a 1 x 1 convolution) mean nothing
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        try:
            with equal_rows():
                yield
        finally:
            _stop_heartbeat()


def _stop_heartbeat() -> None:
    while _heartbeats:
        _heartbeats.pop().stop()


def available_backends() -> list[str]:
    """Which of gloo (CPUs) and nccl (GPUs) this torch was built with."""
    return [name for name in ("gloo", "nccl") if dist.is_available() and dist.is_backend_available(name)]


def leave_processes() -> None:
    """Leave the group of processes that `start` joined, if any."""
    _stop_heartbeat()
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
