"""Losses that compare assignments to K prototypes. N: images of a batch, of all processes; s: scores (N, K)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from diptych.methods.losses import mean_of_all, wide
from diptych.methods.method import Progress


@torch.no_grad()
def sinkhorn(scores_NK: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Shares (N, K) of prototypes for each image, which all prototypes get about equally: Sinkhorn-Knopp, SwAV sec. 3.1.

    Q = exp(s / epsilon), divided by its mean row sum; `iterations` times, each prototype's column is divided by its sum, then
    each image's row. Computed by logarithms, so that no score overflows. Takes the rows of all processes: `gather` them first.
    """
    log_NK = wide(scores_NK) / epsilon
    log_NK = log_NK - log_NK.logsumexp((0, 1)) + math.log(len(log_NK))
    for _ in range(iterations):
        log_NK = log_NK - log_NK.logsumexp(0)
        log_NK = log_NK - log_NK.logsumexp(1, keepdim=True)
    return log_NK.exp()


def soft_cross_entropy(shares_NK: Tensor, scores_NK: Tensor, temperature: float) -> Tensor:
    """mean_n - sum_k q_nk log softmax(s_n / temperature)_k, over the rows of all processes; q gets no gradient."""
    log_NK = (wide(scores_NK) / temperature).log_softmax(1)
    return mean_of_all(-(shares_NK.detach() * log_NK).sum(), len(log_NK))


def of_other_views(shares: Sequence[Tensor], scores: Sequence[Tensor], temperature: float) -> Tensor:
    """The mean `soft_cross_entropy` of the first views' shares with the scores of every other view, (N, K) each.

    shares: of the first len(shares) views; scores: of all views, in the same order. No view predicts itself.
    """
    losses = [
        soft_cross_entropy(shares_NK, scores_NK, temperature)
        for i, shares_NK in enumerate(shares)
        for j, scores_NK in enumerate(scores)
        if i != j
    ]
    return torch.stack(losses).mean()


def alive(parameter: Tensor, flag: Tensor) -> Tensor:
    """The parameter itself; its gradient is 0 unless `flag`, a 0-d tensor on its device. Nothing waits for the flag."""
    still = parameter.detach()
    return still + (parameter - still) * flag.to(parameter.dtype)


def reached(start: float, progress: Progress, device: torch.device) -> Tensor:
    """Whether the share `start` of training is over: a flag on the device."""
    return torch.as_tensor(progress, device=device) >= start


def near(loss: float) -> tuple[float, float]:
    """Bounds of 1 %: ln K, the loss of an assignment that says nothing, is not left by chance."""
    return 0.99 * loss, 1.01 * loss
