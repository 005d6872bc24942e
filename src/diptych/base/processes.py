"""Several processes that compute what one process would. On one process everything here is the identity.

Each process holds some rows of the global batch. `mean_over_ranks` makes its loss the loss of the whole
batch, and DistributedDataParallel averages the gradients: together they give the exact gradient of that one
loss.
"""

import inspect
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.parallel import DistributedDataParallel

from diptych.base.errors import DiptychError


def rank() -> int:
    """Which process this is: 0 for the first or only one."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def mean_over_ranks(x: Tensor) -> Tensor:
    """The mean of `x`, a float tensor of one shape on all ranks, in value and gradient."""
    return x if world_size() == 1 else _MeanOverRanks.apply(x)


class _MeanOverRanks(torch.autograd.Function):
    """The gradient of a mean over ranks is a mean over ranks.

    A bare all_reduce forgets what this rank does to the others' losses: the gradient is then too short, by
    the number of processes.
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

    Ranks may hold unequal numbers of rows, N is their sum; counts: `row_counts(n)`, where it is known already. Let every
    rank compute the same loss from all rows: with DistributedDataParallel's mean (or `average_gradients`) its gradient is
    exactly that of one process with all rows.
    """
    return x if world_size() == 1 else _GatherRows.apply(x, row_counts(len(x)) if counts is None else counts)


class _GatherRows(torch.autograd.Function):
    """The gradients of all ranks are added up.

    Each of R ranks has the gradient of the same loss, so this rank's rows get R times theirs. The mean over ranks of the
    parameters' gradients, which sees each row on one rank only, takes that factor away.
    """

    @staticmethod
    def forward(ctx, x: Tensor, counts: Sequence[int]) -> Tensor:
        start, most = sum(counts[: rank()]), max(counts)
        ctx.rows = slice(start, start + len(x))
        equal = min(counts) == most
        padded = x.contiguous() if equal else torch.cat([x, x.new_zeros(most - len(x), *x.shape[1:])])
        everything = padded.new_empty(len(counts) * most, *x.shape[1:])
        dist.all_gather_into_tensor(everything, padded)
        if equal:
            return everything
        return torch.cat([block[:count] for block, count in zip(everything.split(most), counts, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:  # pyrefly: ignore
        return _all_reduce(gradient)[ctx.rows], None


@torch.no_grad()
def gather(x: Tensor) -> Tensor:
    """`gather_rows` without gradient, for any type of numbers."""
    return gather_rows(x)


def row_counts(rows: int) -> list[int]:
    """How many rows each rank has, by rank: one collective between CPUs, so that no one waits for a GPU."""
    if world_size() == 1:
        return [rows]
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
    """Wait here until all processes have come."""
    means(0.0)


def copy_from_first(module: nn.Module) -> None:
    """Parameters and buffers of the first process' module to all others."""
    for tensor in module.state_dict().values() if world_size() > 1 else ():
        dist.broadcast(tensor, 0)


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Each gradient to its mean over the ranks: what DistributedDataParallel does, for a backward pass in pieces."""
    for parameter in parameters if world_size() > 1 else ():
        if parameter.grad is not None:
            parameter.grad = mean_over_ranks(parameter.grad)


def wrap(method: nn.Module) -> nn.Module:
    """The module to call in training: its gradients are averaged over the processes. Save `method` itself."""
    if world_size() == 1:
        return method
    # Global statistics keep the buffers equal: none is broadcast. torch has renamed the argument for that.
    known = inspect.signature(DistributedDataParallel).parameters
    quiet = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    device = next(method.parameters()).device
    options: dict[str, Any] = {quiet: False, "device_ids": [device] if device.type == "cuda" else None}
    return DistributedDataParallel(method, **options)


def start(device: str | torch.device = "cpu", timeout_seconds: float = 1800.0) -> torch.device:
    """Join the processes that torchrun or srun has started; returns this process' device. `stop` ends it.

    gloo between CPUs, nccl between GPUs. A process that waits longer than `timeout_seconds` for another, now
    or later, gives up. Raises DiptychError when the environment is half set or the others cannot be reached.
    """
    device = torch.device(device)
    place = _place(os.environ)
    if place is None:
        return device
    here, world, local = (int(place[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if device.type == "cuda":
        if torch.cuda.device_count() == 1 and os.environ.get("CUDA_VISIBLE_DEVICES", "").isdecimal():
            local = 0  # each process is shown its own GPU only, as by srun --gpus-per-task=1
        if local >= torch.cuda.device_count():
            shown = f"LOCAL_RANK is {local} but this machine shows {torch.cuda.device_count()} GPUs"
            raise DiptychError(f"{shown}: start one process for each")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if dist.is_initialized():
        return device
    os.environ.update(place)  # torch reads the meeting point from there
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    patience = timedelta(seconds=timeout_seconds)
    try:
        dist.init_process_group(backend, rank=here, world_size=world, timeout=patience)
    except RuntimeError as error:
        raise DiptychError(
            f"process {here} of {world} did not meet the others at {place['MASTER_ADDR']}:"
            f"{place['MASTER_PORT']}: {str(error).splitlines()[0]}"
        ) from error
    return device


def available_backends() -> list[str]:
    """Which of gloo (CPUs) and nccl (GPUs) this torch was built with."""
    return [name for name in ("gloo", "nccl") if dist.is_available() and dist.is_backend_available(name)]


def stop() -> None:
    """Leave the group of processes, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _place(env: Mapping[str, str]) -> dict[str, str] | None:
    """What torchrun or SLURM says about which of several processes this is; None for a single process."""
    if "RANK" not in env and "WORLD_SIZE" not in env:
        if "SLURM_STEP_NUM_TASKS" not in env:
            return None
        env = _from_slurm(env)
    if env.get("WORLD_SIZE") == "1":
        return None
    needed = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    if missing := [name for name in needed if not env.get(name)]:
        raise DiptychError(
            f"the environment is half set for several processes, {', '.join(missing)} missing: start with "
            "`torchrun --nproc-per-node N -m diptych ...`, or unset RANK and WORLD_SIZE for one process"
        )
    if wrong := [name for name in needed if name != "MASTER_ADDR" and not env[name].isdecimal()]:
        raise DiptychError(f"{wrong[0]}={env[wrong[0]]!r} is not a whole number: start with torchrun, or unset it")
    if int(env["RANK"]) >= int(env["WORLD_SIZE"]):
        raise DiptychError(
            f"RANK is {env['RANK']}, but of {env['WORLD_SIZE']} processes the last is "
            f"{int(env['WORLD_SIZE']) - 1}: start with torchrun"
        )
    return {name: env[name] for name in needed}


def _from_slurm(env: Mapping[str, str]) -> dict[str, str]:
    """srun's variables in torchrun's words.

    Only srun sets SLURM_STEP_NUM_TASKS. SLURM_NTASKS is there in a batch script too, which is a single
    process.
    """
    nodes = env.get("SLURM_STEP_NODELIST", env.get("SLURM_JOB_NODELIST", ""))
    first = re.sub(r"\[(\w+)[^\]]*\]", r"\1", nodes).split(",")[0]  # gpu[03-06,9],login -> gpu03
    return {
        "RANK": env.get("SLURM_PROCID", ""),
        "WORLD_SIZE": env["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": env.get("SLURM_LOCALID", ""),
        "MASTER_ADDR": env.get("MASTER_ADDR", first),
        "MASTER_PORT": env.get("MASTER_PORT", str(20000 + int(env.get("SLURM_JOB_ID", "0")) % 20000)),
    }
