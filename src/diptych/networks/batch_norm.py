"""Batch normalisation over the rows of all processes, or over groups of rows, on any number of processes."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from diptych.base.errors import DiptychError, RecipeError
from diptych.base.processes import gather_rows, mean_over_ranks, world_size


@contextmanager
def shared_statistics(module: nn.Module, rows: int | None = None) -> Iterator[None]:
    """Inside the context, `rows` rows share batch statistics in every BatchNorm of `module`; afterwards its class is restored.

    rows: as `Method.statistics_rows`; None: all rows of all processes. Parameters, buffers, hooks and state-dict keys do
    not change, so existing optimizers remain valid. On one process None changes nothing. Raises DiptychError for an
    unknown kind of batch normalisation, RecipeError for fewer than one row.
    """
    before = [(layer, type(layer)) for layer in module.modules() if isinstance(layer, _BatchNorm)]
    try:
        share_statistics(module, rows)
        yield
    finally:
        for layer, kind in before:
            layer.__class__ = kind


def share_statistics(module: nn.Module, rows: int | None = None) -> nn.Module:
    """`shared_statistics` for good: changes the BatchNorms of `module` in place and returns it."""
    if rows is not None and rows < 1:
        raise RecipeError(f"statistics_rows is {rows}; it must be at least 1, or None for all rows of a step")
    if rows is None and world_size() == 1:
        return module
    from timm.layers import BatchNormAct2d  # imported late: timm takes two seconds

    known = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNormAct2d)
    for name, layer in module.named_modules():
        if not isinstance(layer, _BatchNorm) or isinstance(layer, SharedBatchNorm):
            continue
        if type(layer) in known or hasattr(type(layer), "remember"):
            layer.__class__ = _shared(type(layer), rows)  # only forward differs
        elif rows is not None or not isinstance(layer, nn.SyncBatchNorm):
            raise DiptychError(
                f"{name or 'module'} is a {type(layer).__name__}, whose statistics cannot be shared over processes or "
                "groups of rows: use BatchNorm2d, or train on one process without statistics_rows"
            )
    return module


@cache
def _shared(kind: type[_BatchNorm], rows: int | None) -> type[_BatchNorm]:
    """`kind` with the forward pass of SharedBatchNorm. A layer's own `remember(mean, variance, count)` is preserved."""
    return type(f"Shared{kind.__name__}", (SharedBatchNorm, kind), {"rows": rows, "__module__": __name__})


class SharedBatchNorm(_BatchNorm):
    """BatchNorm over the rows of all ranks, or over groups of `rows` consecutive rows, on any device, in any float type.

    In evaluation it behaves like the layer that it replaces, without communication. Its children (timm's drop and act)
    follow in their order.
    """

    rows: int | None = None

    def forward(self, x: Tensor) -> Tensor:  # pyrefly: ignore
        if not self.training:
            return super().forward(x)
        if self.rows is None:
            form = _FusedOverRanks if has_kernels(x) else _NormalizeOverRanks
            x, *statistics = form.apply(x, self.weight, self.bias, self.eps)
        else:
            x, *statistics = _normalize_groups(x, self.rows, weight=self.weight, bias=self.bias, eps=self.eps)
        if self.track_running_stats and self.running_mean is not None:
            getattr(self, "remember", self._remember)(*statistics)
        for child in self.children():
            x = child(x)
        return x

    def _remember(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Update the running statistics as torch does: towards the mean and the unbiased variance."""
        means, variances, batches = self.running_mean, self.running_var, self.num_batches_tracked
        if means is None or variances is None or batches is None:
            return
        batches.add_(1)
        # momentum None means the plain average over all batches, as in torch; float() waits for the device
        share = 1 / float(batches) if self.momentum is None else self.momentum
        means.lerp_(mean.to(means.dtype), share)
        variances.lerp_((variance * count / (count - 1)).to(variances.dtype), share)


def _normalize_groups(
    x: Tensor, rows: int, *, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normalise each group of `rows` rows of x (N, C, ...) by its own statistics, without communication.

    Also returns the mean of these means and (population) variances over the groups of all processes, for the running
    statistics, by one small collective without gradient; and the number of values per channel in a group.
    """
    groups, rest = divmod(len(x), rows)
    if rest or not groups:
        raise RecipeError(
            f"statistics_rows is {rows} and a batch normalisation got {len(x)} rows: each process' share of the batch "
            f"(and micro_batch) must be a multiple of {rows}"
        )
    dtype, channels = x.dtype if x.dtype == torch.float64 else torch.float32, x.shape[1]
    # With momentum 1 the running statistics become those of the group, without a second pass over x.
    statistics = torch.zeros(2, groups, channels, dtype=dtype, device=x.device)
    y = torch.cat(
        [
            F.batch_norm(group, mean, variance, weight, bias, training=True, momentum=1.0, eps=eps)
            for group, mean, variance in zip(x.split(rows), *statistics, strict=True)
        ]
    )
    count = torch.full((), x[:rows].numel() // channels, dtype=dtype, device=x.device)
    pooled = mean_over_ranks(torch.cat([statistics.sum(1), statistics.new_full((1, channels), groups)]))
    mean, unbiased = pooled[:2] / pooled[2]
    return y, mean, unbiased * (count - 1) / count, count


class _NormalizeOverRanks(torch.autograd.Function):
    """`weight * (x - mean) / sqrt(variance + eps) + bias` over the rows of all ranks, and those statistics.

    x: (N, C, ...). Ioffe & Szegedy 2015, algorithm 1 and its gradients, in float32 (float64 stays float64). It is one
    autograd function, so that only x is saved for the backward pass, as in torch. Three small collectives per step.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, ...]:
        wide = x if x.dtype == torch.float64 else x.float()
        dims, column = _layout(x)
        count = wide.new_full((1,), x.numel() // x.shape[1])
        variance, mean = torch.var_mean(wide, dims, correction=0)
        # Pool means, then variances around the pooled mean (Chan et al. 1979): avoids a difference of large squares
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
        # The effect of all rows through the mean and through the variance
        by_mean, by_variance = mean_over_ranks(torch.stack([to_bias, to_weight])) / mean_count
        to_x = gradient - by_mean.view(column) - standard * by_variance.view(column)
        to_x = to_x * (inverse if weight is None else inverse * weight).view(column)
        affine = (None, None) if weight is None else (to_weight, to_bias)
        return to_x.to(x.dtype), *affine, None


KERNELS: Any = torch  # the module whose fused batch normalisation is called; it exists on CUDA only


def has_kernels(x: Tensor) -> bool:
    return x.device.type == "cuda"


class _FusedOverRanks(torch.autograd.Function):
    """`_NormalizeOverRanks` by torch's fused kernels, those of its SyncBatchNorm: two passes over x instead of about eight.

    Two collectives a step instead of three. Numbers of rows travel with the statistics, on the device, so ranks may hold
    unequal numbers and nothing waits for the host. The other form is the witness that this one is held to.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, ...]:
        x = _dense(x)
        mean, inverse = KERNELS.batch_norm_stats(x, eps)
        channels = len(mean)
        count = mean.new_full((1,), x.numel() // channels)
        gathered = gather_rows(torch.cat([mean, inverse, count])[None], [1] * world_size())
        means, inverses, counts = gathered.split([channels, channels, 1], 1)
        counts, remembered = counts.flatten(), mean.new_zeros(2, channels)
        # With momentum 1 the running statistics become those of this step: the unbiased variance, not only its inverse root.
        mean, inverse = KERNELS.batch_norm_gather_stats_with_counts(x, means, inverses, *remembered, 1.0, eps, counts)
        ctx.save_for_backward(x, weight, mean, inverse, counts.to(torch.int32))
        total = counts.sum()
        statistics = mean, remembered[1] * ((total - 1) / total), total
        ctx.mark_non_differentiable(*statistics)
        return KERNELS.batch_norm_elemt(x, weight, bias, mean, inverse, eps), *statistics

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore
        x, weight, mean, inverse, counts = ctx.saved_tensors
        gradient = _dense(gradient, like=x)
        affine = weight is not None  # without a weight the kernel has no type for its gradient
        sums = KERNELS.batch_norm_backward_reduce(gradient, x, mean, inverse, weight, True, affine, affine)
        summed = mean_over_ranks(torch.stack(sums[:2])) * world_size()
        wide = None if weight is None else weight.to(mean.dtype)
        to_x = KERNELS.batch_norm_backward_elemt(gradient, x, mean, inverse, wide, *summed, counts)
        return to_x, *(sums[2:] if affine else (None, None)), None


def _dense(x: Tensor, like: Tensor | None = None) -> Tensor:
    """x as the kernels take it: without gaps, in channels_last or as it is by default; with another, in the order of that one,
    as they read both by the order of one of them."""
    like = x if like is None else like
    wide = like.ndim == 4 and like.is_contiguous(memory_format=torch.channels_last)
    return x.contiguous(memory_format=torch.channels_last if wide else torch.contiguous_format)


def _layout(x: Tensor) -> tuple[list[int], list[int]]:
    """All dimensions but the channels', and the shape that broadcasts one number per channel over x."""
    return [d for d in range(x.ndim) if d != 1], [-1 if d == 1 else 1 for d in range(x.ndim)]
