"""Updates of all parameters at once, for a device on which each launch costs time. T tensors of one type.

They honour torch's convention for a step that is not finite: where `optimizer.found_inf` is a 0-d tensor of 1, nothing moves,
neither weights nor the optimizer's memory. Nobody waits for the device to learn that. A rate may be a 0-d tensor there.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

TORCHS_OWN = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)  # exactly these, whose fused forms skip


def is_fused(parameters: Sequence[Tensor]) -> bool:
    """Whether the functions here take them: of one floating type, on one device that is no CPU, without gaps in memory."""
    kinds = {(p.device, p.dtype) for p in parameters}
    if len(kinds) != 1 or parameters[0].device.type == "cpu" or not parameters[0].is_floating_point():
        return False
    return all(p.is_contiguous() or p.is_contiguous(memory_format=torch.channels_last) for p in parameters)


def laid_as(p: Tensor, other: Tensor) -> Tensor:
    """`other` in the order in memory of `p`, through which fused updates walk. A checkpoint's tensors may lie otherwise.

    Without a copy where they differ only in the strides of dimensions of size 1, as the gradients of 1 x 1 convolutions do.
    """
    if other.stride() == p.stride():
        return other
    pairs = zip(p.shape, p.stride(), other.stride(), strict=True)
    if all(mine == its for size, mine, its in pairs if size > 1):
        return other.as_strided(p.shape, p.stride())
    return torch.empty_like(p).copy_(other)


def gradients_of(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [laid_as(p, p.grad) for p in parameters if p.grad is not None]


def memory_of(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], name: str) -> list[Tensor]:
    """What the optimizer remembers of each parameter by this name, laid as the parameter; zeros at first."""
    for p in parameters:
        known = optimizer.state[p].get(name)
        optimizer.state[p][name] = torch.zeros_like(p) if known is None else laid_as(p, known)
    return [optimizer.state[p][name] for p in parameters]


def norm_quotients(parameters: Sequence[Tensor], updates: Sequence[Tensor], scale: float = 1.0, *,
                   share: float = 0.0, eps: float = 0.0) -> Tensor:  # fmt: skip
    """`scale` |w| / (|u| + share |w| + eps) of each parameter w and its update u, (T,); 1 where one of the lengths is 0."""
    norms = torch.stack(torch._foreach_norm([*parameters, *updates]))
    length, size = norms[: len(parameters)], F.threshold(norms[len(parameters) :], 0.0, math.inf)
    size = torch.add(size, length, alpha=share).add_(eps) if eps else size
    quotient = length / size if scale == 1.0 else length * scale / size
    return F.threshold(quotient, 0.0, 1.0)


def move(optimizer: torch.optim.Optimizer, parameters: list[Tensor], updates: Sequence[Tensor], lr: float | Tensor,
         momenta: list[Tensor] | None = None, momentum: float = 0.0, *, uphill: bool = False) -> None:  # fmt: skip
    """w <- w - lr m with m <- momentum m + u, or w <- w - lr u without momenta, in one launch; uphill: plus."""
    torch._fused_sgd_(parameters, list(updates), momenta or [], weight_decay=0.0, momentum=momentum, lr=lr, dampening=0.0,
                      nesterov=False, maximize=uphill, is_first_step=False, grad_scale=None,
                      found_inf=getattr(optimizer, "found_inf", None))  # fmt: skip


class Updates:
    """Takes the steps of an optimizer; where it skips, a step that is not to move anything is left to the device.

    skips: whether it honours `found_inf`: on a device that is no CPU, one of ours, or one of torch's in its fused form.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device):
        self.optimizer, self.device = optimizer, device
        self.torchs_own = type(optimizer) in TORCHS_OWN
        self.form = {"fused": True, "foreach": False} if self.torchs_own else {}
        if "capturable" in optimizer.defaults:
            self.form["capturable"] = True
            # torch does not warn of steps without a graph, but a copy of an optimizer has forgotten that.
            optimizer._warned_capturable_if_run_uncaptured = True  # pyrefly: ignore[missing-attribute]
        groups = ([p for p in group["params"] if p.requires_grad] for group in optimizer.param_groups)
        honours = self.torchs_own or getattr(type(optimizer), "skips_bad_steps", False)
        self.skips = honours and all(is_fused(parameters) for parameters in groups)

    def take(self, fine: Tensor, rates: Tensor) -> None:
        """One step; unless the 0-d `fine`, of an optimizer that skips, one that moves nothing. rates: (G,), of the groups."""
        if not self.skips:
            self.optimizer.step()
            return
        with self.fused(rates, found_inf=fine.logical_not().float()):
            self.optimizer.step()

    def replayed(self) -> None:
        """The device has taken a step of its own: count it on the host."""
        getattr(self.optimizer, "count_on_host", lambda: None)()

    @contextmanager
    def fused(self, rates: Tensor, found_inf: Tensor) -> Iterator[None]:
        """Inside, the groups' rates are 0-d tensors, and torch's own optimizers take their fused form.

        Afterwards all is as a checkpoint on any device wants it.
        """
        optimizer, form = self.optimizer, self.form
        before = [dict(group) for group in optimizer.param_groups]
        optimizer.found_inf = found_inf  # pyrefly: ignore[missing-attribute]
        for group, rate in zip(optimizer.param_groups, rates.unbind(), strict=True):
            group |= {"lr": rate} | form
            for p in group["params"] if form else ():
                ready(p, optimizer.state.get(p, {}))
        try:
            yield
        finally:
            del optimizer.found_inf  # pyrefly: ignore[missing-attribute]
            for group, old in zip(optimizer.param_groups, before, strict=True):
                group |= {key: old[key] for key in ("lr", *form) if key in old}


def ready(p: Tensor, memory: dict) -> None:
    """A parameter's gradient and what torch's optimizer remembers of it, where and as its fused form needs them."""
    if p.grad is not None:
        p.grad = laid_as(p, p.grad)
    for name, value in memory.items():
        if isinstance(value, Tensor):
            value = value.to(p.device)  # Adam's count of steps, from a checkpoint
            memory[name] = laid_as(p, value) if value.shape == p.shape else value
