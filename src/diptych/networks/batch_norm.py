"""Batch normalisation over the rows of all processes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from diptych.base.errors import DiptychError
from diptych.base.processes import mean_over_ranks, world_size


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
