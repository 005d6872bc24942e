"""LARS with the trust ratio of Barlow Twins' program, or with that of LARC."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from diptych.training.fused import gradients_of, is_fused, memory_of, move, norm_quotients

LARC_EPS = 1e-8  # added to the denominator by LARC as in solo-learn; the paper and Barlow Twins' program add nothing


class Lars(torch.optim.Optimizer):
    """LARS (You et al. 2017). With weight w, gradient g, decay d and momentum buffer m of an adapted tensor:

        h = g + d w;    q = trust |w| / |h|;    m <- momentum m + q h;    w <- w - lr m

    q is 1 where |w| or |h| is 0, so that a weight without a gradient is moved by an adapted decay. This is the form of Barlow
    Twins' program; timm's divides by |g| + d |w| instead, and does not adapt the decay where |g| is 0.

    clip: LARC as in solo-learn's recipes. It does divide by |g| + d |w| + 1e-8, and q is at most lr, in units of lr:
    q = min(trust |w| / (|g| + d |w| + 1e-8) / lr, 1). A tensor whose group has `always_adapt` False has q = 1.
    """

    skips_bad_steps = True  # on a device that is no CPU, see `training.fused`

    def __init__(self, params: Iterable[dict], lr: float, momentum: float, trust: float, clip: bool):
        super().__init__(params, {"lr": lr, "momentum": momentum, "trust_coeff": trust, "trust_clip": clip})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyrefly: ignore[bad-override]
        """One step. Parameters without a gradient stay as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if is_fused(parameters):
                self._fused_step(parameters, group)
                continue
            for p in parameters:  # one after the other, for a CPU's caches
                self._step_of([p], group)
        return loss

    def _fused_step(self, parameters: list[Tensor], group: dict) -> None:
        """All at once: nine launches for a group that is adapted (LARC: 13), else one. Skips if `found_inf` says so."""
        momenta, updates = memory_of(self, parameters, "momentum_buffer"), gradients_of(parameters)
        if group["weight_decay"] or group["always_adapt"]:
            gradients = updates
            updates = torch._foreach_add(gradients, parameters, alpha=group["weight_decay"])
            if group["always_adapt"]:
                if group["trust_clip"]:
                    share = {"share": group["weight_decay"], "eps": LARC_EPS}
                    ratios = norm_quotients(parameters, gradients, group["trust_coeff"], **share)
                    ratios = (ratios / group["lr"]).clamp_max_(1.0)
                else:
                    ratios = norm_quotients(parameters, updates, group["trust_coeff"])
                torch._foreach_mul_(updates, list(ratios.unbind()))
        move(self, parameters, updates, group["lr"], momenta, group["momentum"])

    def _step_of(self, parameters: list[Tensor], group: dict) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        updates = torch._foreach_add(gradients, parameters, alpha=group["weight_decay"])  # new tensors
        if group["always_adapt"]:
            torch._foreach_mul_(updates, trust_ratios(parameters, gradients, updates, group))
        for p in parameters:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        momenta = [self.state[p]["momentum_buffer"] for p in parameters]
        torch._foreach_mul_(momenta, group["momentum"])
        torch._foreach_add_(momenta, updates)
        torch._foreach_add_(parameters, momenta, alpha=-group["lr"])


def trust_ratios(
    parameters: list[Tensor], gradients: list[Tensor], decayed: Sequence[Tensor], group: dict
) -> list[Tensor]:
    """q of each parameter, 0-d. Computed on their device, without waiting for it."""
    weight = torch.stack(torch._foreach_norm(parameters))
    slope = torch.stack(torch._foreach_norm(gradients if group["trust_clip"] else list(decayed)))
    size = slope + group["weight_decay"] * weight + LARC_EPS if group["trust_clip"] else slope
    ratio = torch.where((weight > 0) & (slope > 0), group["trust_coeff"] * weight / size, 1.0)
    return list((ratio / group["lr"]).clamp_max(1.0) if group["trust_clip"] else ratio)
