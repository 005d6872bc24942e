"""What torch's fused kernels of batch normalisation compute, which exist on CUDA only, operation by operation.

As torch/nn/modules/_functions.py (SyncBatchNorm) uses them: sums over all dimensions but the channels', counts of rank by rank.
"""

import torch
from torch import Tensor


def layout(x: Tensor) -> tuple[list[int], list[int]]:
    return [d for d in range(x.ndim) if d != 1], [-1 if d == 1 else 1 for d in range(x.ndim)]


def wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def batch_norm_stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(wide(x), layout(x)[0], correction=0)
    return mean, (variance + eps).rsqrt()


def batch_norm_gather_stats_with_counts(x, means, inverses, running_mean, running_var, momentum, eps, counts):
    assert counts.dtype == running_mean.dtype == means.dtype and means.shape == (len(counts), x.shape[1])
    total, share = counts.sum(), (counts / counts.sum())[:, None]
    mean = (share * means).sum(0)
    variance = (share * (inverses.pow(-2) - eps + (means - mean).square())).sum(0)
    running_mean.lerp_(mean, momentum)
    running_var.lerp_(variance * total / (total - 1), momentum)
    return mean, (variance + eps).rsqrt()


def batch_norm_elemt(x, weight, bias, mean, inverse, eps):
    column = layout(x)[1]
    y = (wide(x) - mean.view(column)) * inverse.view(column)
    y = y if weight is None else y * weight.view(column)
    return (y if bias is None else y + bias.view(column)).to(x.dtype)


def batch_norm_backward_reduce(gradient, x, mean, inverse, weight, for_x: bool, for_weight: bool, for_bias: bool):
    assert weight is not None or not (for_weight or for_bias), "on CUDA a gradient has the type of the weight"
    assert gradient.stride() == x.stride(), "on CUDA both are read in the order of one of them"
    dims, column = layout(x)
    gradient = wide(gradient)
    by_deviation = (gradient * (wide(x) - mean.view(column))).sum(dims)
    to_weight = by_deviation * inverse if for_weight else None
    return gradient.sum(dims), by_deviation, to_weight, gradient.sum(dims) if for_bias else None


def batch_norm_backward_elemt(gradient, x, mean, inverse, weight, sum_dy, sum_dy_xmu, counts):
    assert counts.dtype == torch.int32
    column, total = layout(x)[1], counts.sum()
    deviation = wide(x) - mean.view(column)
    to_x = (
        wide(gradient)
        - (sum_dy / total).view(column)
        - deviation * (inverse.square() * sum_dy_xmu / total).view(column)
    )
    factor = inverse if weight is None else inverse * weight
    return (to_x * factor.view(column)).to(x.dtype)
