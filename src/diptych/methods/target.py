"""What methods keep beside gradients: a target network that follows by a moving average, and a queue of earlier rows."""

import copy
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.base.processes import gather
from diptych.methods.method import Progress


def target_of(*networks: nn.Module) -> nn.Sequential:
    """A copy of networks in a row that gets no gradient: at step 0 it computes what they do.

    It has running statistics of its own, from its own forward passes: in training it normalises by the batch.
    """
    return copy.deepcopy(nn.Sequential(*networks)).requires_grad_(False)


@torch.no_grad()
def follow(target: nn.Module, online: Sequence[nn.Module], share: Tensor | float) -> None:
    """target <- target + share (online - target), in place, parameters only. share: 1 minus the momentum."""
    targets = [p.detach() for p in target.parameters()]  # the same memory
    step = torch._foreach_sub([p.detach() for network in online for p in network.parameters()], targets)
    # A number stays one: as a tensor it would be a copy to the device, which the CPU waits for and no graph may hold.
    torch._foreach_mul_(step, share.to(targets[0]) if isinstance(share, Tensor) else share)
    torch._foreach_add_(targets, step)


def falling(share: float, progress: Progress) -> Tensor:
    """Half a cosine from `share` at progress 0 to 0 at 1: one minus a momentum that rises to 1 (BYOL, sec. 3.2)."""
    return share * (1 + torch.cos(math.pi * torch.as_tensor(progress, dtype=torch.float64))) / 2


def new_queue(rows: int, width: int) -> Tensor:
    """A queue (K, D) of random directions, for a buffer; beside it goes a buffer that counts rows, see `push`."""
    return F.normalize(torch.randn(rows, width), dim=1)


@torch.no_grad()
def push(queue_KD: Tensor, pushed: Tensor, rows_ND: Tensor) -> None:
    """Put this process' rows and, in rank order, those of the others over the oldest of a queue, in place.

    pushed: how many rows there have been before, int64, 0-d; it is not changed here. Any number of rows, more than K too.
    """
    rows_ND = gather(rows_ND.to(queue_KD.dtype))
    last_ND = rows_ND[-len(queue_KD) :]
    first = pushed + len(rows_ND) - len(last_ND)
    places = (first + torch.arange(len(last_ND), device=queue_KD.device)) % len(queue_KD)
    queue_KD.index_copy_(0, places, last_ND)
