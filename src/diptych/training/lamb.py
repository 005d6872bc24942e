"""LAMB in one pass over a CPU's memory."""

from collections.abc import Callable, Iterable

import timm.optim
import torch
from torch import Tensor
from torch.optim.adam import adam


class Lamb(timm.optim.Lamb):
    """LAMB (You et al. 2020, algorithm 2): timm's, with bias correction and without clipping.

    On a CPU its many passes over parameters and fresh memory took a third of a step of a ResNet-34 with a projector of
    5000-5000-5000. There LAMB's update, which is Adam's up to the trust ratio, is made by torch's fused Adam on a
    tensor of zeros: 2.5 times as fast.
    """

    def __init__(
        self,
        params: Iterable[dict],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ):
        super().__init__(params, lr, betas=betas, eps=eps, weight_decay=weight_decay, max_grad_norm=None)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step. Parameters without a gradient stay as they are."""
        groups = [(group, [p for p in group["params"] if p.grad is not None]) for group in self.param_groups]
        trained = [p for _, parameters in groups for p in parameters]
        if closure is not None or not _fit(trained):
            return super().step(closure)
        # One piece of memory for all updates in turn: fresh memory of this size costs as much as the arithmetic.
        memory = torch.empty(max(p.numel() for p in trained), dtype=trained[0].dtype, device="cpu")
        for group, parameters in groups:
            taken = group.setdefault("step", torch.tensor(0.0, device="cpu"))
            for p in parameters:
                self._step_of(p, group, taken.clone(), torch.as_strided(memory, p.shape, p.stride()).zero_())
            taken.add_(1)
        return None

    def _step_of(self, p: Tensor, group: dict, taken: Tensor, update: Tensor) -> None:
        assert p.grad is not None
        for name in ("exp_avg", "exp_avg_sq"):
            known = self.state[p].get(name)
            self.state[p][name] = torch.zeros_like(p) if known is None else _laid_as(p, known)
        first, second = self.state[p]["exp_avg"], self.state[p]["exp_avg_sq"]
        (beta1, beta2), decay = group["betas"], group["weight_decay"]
        adam([update], [_laid_as(p, p.grad)], [first], [second], [], [taken], fused=True, amsgrad=False, maximize=False,
             beta1=beta1, beta2=beta2, lr=1.0, weight_decay=0.0, eps=group["eps"])  # fmt: skip
        if decay:
            update.sub_(p, alpha=decay)  # the update points downhill: it is minus the paper's
        ratio = 1.0
        if decay or group["always_adapt"]:
            weight, length = (float(torch.linalg.vector_norm(x)) for x in (p, update))
            ratio = weight / length if weight > 0 and length > 0 else 1.0
        p.add_(update, alpha=group["lr"] * ratio)


def _fit(parameters: list[Tensor]) -> bool:
    """Whether the fused Adam takes them: of one type, on the CPU, and without gaps in memory."""
    kinds = {(p.device.type, p.dtype) for p in parameters}
    dense = (p.is_contiguous() or p.is_contiguous(memory_format=torch.channels_last) for p in parameters)
    return len(kinds) == 1 and kinds <= {("cpu", torch.float32), ("cpu", torch.float64)} and all(dense)


def _laid_as(p: Tensor, other: Tensor) -> Tensor:
    """`other` in the order in memory of `p`: the fused Adam walks through memory. A checkpoint's tensors may lie otherwise."""
    return other if other.stride() == p.stride() else torch.empty_like(p).copy_(other)
