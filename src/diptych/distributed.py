"""Several processes that compute what one process would. On one process everything here is the identity.

Each process holds some rows of the global batch. `mean_over_ranks` makes its loss the loss of the whole
batch, and DistributedDataParallel averages the gradients: together they give the exact gradient of that one
loss.
"""

import inspect
import os
import re
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from diptych.errors import DiptychError


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


@torch.no_grad()
def gather(x: Tensor) -> Tensor:
    """The rows of all ranks, in their order, on every rank; ranks may hold unequal numbers. No gradient."""
    if world_size() == 1:
        return x
    counts = [torch.zeros(1, dtype=torch.int64, device=x.device) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor([len(x)], device=x.device))
    rows = [int(count) for count in counts]  # waits for the device
    padded = x.new_zeros(max(rows), *x.shape[1:])
    padded[: len(x)] = x
    pieces = [torch.empty_like(padded) for _ in rows]
    dist.all_gather(pieces, padded)
    return torch.cat([piece[:n] for piece, n in zip(pieces, rows, strict=True)])


def means(*numbers: float) -> list[float]:
    """The mean over the ranks of each number, in one collective between CPUs. All ranks wait for each other here."""
    if world_size() == 1:
        return [float(number) for number in numbers]
    return (_all_reduce(torch.tensor(numbers, dtype=torch.float64)) / world_size()).tolist()


def agree(flag: bool) -> bool:
    """True on every rank as soon as it is true on one. All ranks wait for each other here."""
    return means(flag)[0] > 0


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
    """The module to call in training: global statistics, averaged gradients. Save `method` itself."""
    if world_size() == 1:
        return method
    with_global_statistics(method)
    # Global statistics keep the buffers equal: none is broadcast. torch has renamed the argument for that.
    known = inspect.signature(DistributedDataParallel).parameters
    quiet = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    device = next(method.parameters()).device
    options: dict[str, Any] = {quiet: False, "device_ids": [device] if device.type == "cuda" else None}
    return DistributedDataParallel(method, **options)


def with_global_statistics(module: nn.Module) -> nn.Module:
    """Let every BatchNorm in `module`, also timm's BatchNormAct2d, train on the statistics of all ranks.

    In place: parameters, buffers, hooks and state-dict keys stay the very same, an optimizer made before
    remains right. Raises DiptychError at a kind of batch normalisation that it does not know.
    """
    if world_size() == 1:
        return module
    from timm.layers import BatchNormAct2d  # imported late: timm takes two seconds

    known = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNormAct2d)
    for name, child in module.named_modules():
        if type(child) in known or getattr(child, "population_variance", False):  # the latter: Keras', see there
            child.__class__ = GlobalBatchNorm  # only forward differs
        elif isinstance(child, _BatchNorm) and not isinstance(child, GlobalBatchNorm | nn.SyncBatchNorm):
            raise DiptychError(
                f"{name or 'module'} is a {type(child).__name__}, whose statistics cannot be made "
                "global: use BatchNorm2d, or train on one process"
            )
    return module


class GlobalBatchNorm(_BatchNorm):
    """BatchNorm over the rows of all ranks, on any device, in any float type, with unequal numbers of rows.

    In evaluation it is torch's own and talks to nobody. Children (timm's drop and act) follow in their order.
    """

    def forward(self, x: Tensor) -> Tensor:  # pyrefly: ignore
        if self.training:
            x, mean, variance, count = _NormalizeOverRanks.apply(x, self.weight, self.bias, self.eps)
            # Unbiased, as torch remembers it, but for Keras' layers.
            keras = getattr(self, "population_variance", False)
            self._remember(mean, variance if keras else variance * count / (count - 1))
        else:
            mean, variance = self.running_mean, self.running_var
            x = F.batch_norm(x, mean, variance, self.weight, self.bias, mean is None, 0.0, self.eps)
        for child in self.children():
            x = child(x)
        return x

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        means, variances, batches = self.running_mean, self.running_var, self.num_batches_tracked
        if not self.track_running_stats or means is None or variances is None or batches is None:
            return
        batches.add_(1)
        # momentum None is torch's plain average over all batches; float() waits for the device
        share = 1 / float(batches) if self.momentum is None else self.momentum
        means.lerp_(mean.to(means.dtype), share)
        variances.lerp_(variance.to(variances.dtype), share)


class _NormalizeOverRanks(torch.autograd.Function):
    """`weight * (x - mean) / sqrt(variance + eps) + bias` over the rows of all ranks, and those statistics.

    x: (N, C, ...). Ioffe & Szegedy 2015, algorithm 1 and its gradients, in float32 (float64 stays). Written
    out, not composed, so that only x is kept for the backward pass, as in torch's own. Three small
    collectives a step.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, ...]:
        wide = x if x.dtype == torch.float64 else x.float()
        dims, column = _layout(x)
        count = wide.new_full((1,), x.numel() // x.shape[1])
        variance, mean = torch.var_mean(wide, dims, correction=0)
        # Pool means, then spreads around the pooled mean (Chan et al. 1979): no difference of large squares
        pooled = mean_over_ranks(torch.cat([count * mean, count]))
        share, global_mean = count / pooled[-1], pooled[:-1] / pooled[-1]
        variance = mean_over_ranks(share * (variance + (mean - global_mean).square()))
        inverse = (variance + eps).rsqrt()
        ctx.save_for_backward(x, weight, global_mean, inverse, pooled[-1])
        y = (wide - global_mean.view(column)) * (inverse if weight is None else inverse * weight).view(column)
        y = y if bias is None else y + bias.view(column)
        statistics = global_mean, variance, pooled[-1] * world_size()
        ctx.mark_non_differentiable(*statistics)
        return y.to(x.dtype), *statistics

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore
        x, weight, mean, inverse, mean_count = ctx.saved_tensors
        dims, column = _layout(x)
        gradient = gradient.to(mean.dtype)
        standard = (x.to(mean.dtype) - mean.view(column)) * inverse.view(column)
        to_bias, to_weight = gradient.sum(dims), (gradient * standard).sum(dims)
        # What all rows do together, through the mean and through the variance
        by_mean, by_variance = mean_over_ranks(torch.stack([to_bias, to_weight])) / mean_count
        to_x = gradient - by_mean.view(column) - standard * by_variance.view(column)
        to_x = to_x * (inverse if weight is None else inverse * weight).view(column)
        affine = (None, None) if weight is None else (to_weight, to_bias)
        return to_x.to(x.dtype), *affine, None


def _layout(x: Tensor) -> tuple[list[int], list[int]]:
    """All dimensions but the channels', and the shape in which one number a channel meets x."""
    return [d for d in range(x.ndim) if d != 1], [-1 if d == 1 else 1 for d in range(x.ndim)]


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
