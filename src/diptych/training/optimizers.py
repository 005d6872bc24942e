"""Optimizers as the papers set them. `describe(optimizer)` lists what is decayed, adapted or scheduled.

`groups` is a sequence of rules, such as `{"match": "predictor", "schedule": "constant"}`. "match" is "1d"
(biases and normalisation: at most one dimension) or a dotted name ("predictor" matches predictor.0.weight).
Each setting of a parameter comes from the first matching rule that names it, and from the optimizer's
arguments where none does. The rules that a method insists on (`Method.rules`) follow those of `groups`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diptych.base.errors import RecipeError
from diptych.base.ranges import Momentum, Positive, Rate, check_range, checked
from diptych.methods.method import Method, Rule
from diptych.training.lars import Lars


@checked
def sgd(
    module: nn.Module,
    lr: Rate = 0.05,
    momentum: Momentum = 0.9,
    weight_decay: Rate = 0.0,
    groups: Sequence[Rule] = (),
) -> torch.optim.Optimizer:
    """Stochastic gradient descent with momentum, and L2 decay added to the gradient, as in SimSiam.

    lr: by default SimSiam's for a batch of 256 (sec. 3); for another batch, multiply it by batch_size / 256.
    """
    return torch.optim.SGD(_groups(module, _rules(module, groups), lr, weight_decay), lr=lr, momentum=momentum)


@checked
def adamw(
    module: nn.Module,
    lr: Rate = 1e-3,
    betas: tuple[Momentum, Momentum] = (0.9, 0.999),
    weight_decay: Rate = 0.01,
    groups: Sequence[Rule] = (),
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019)."""
    return torch.optim.AdamW(_groups(module, _rules(module, groups), lr, weight_decay), lr=lr, betas=tuple(betas))


@checked
def lars(
    module: nn.Module,
    lr: Rate = 0.2,
    momentum: Momentum = 0.9,
    weight_decay: Rate = 1e-6,
    trust: Positive = 0.001,
    clip: bool = False,
    bias_lr: Rate | None = None,
    groups: Sequence[Rule] = (),
) -> torch.optim.Optimizer:
    """LARS (You et al. 2017), as in Barlow Twins: 1-d parameters not decayed, not adapted, at `bias_lr`.

    A weight w with gradient g moves by `lr * trust * |w| / |g + weight_decay * w|` times g + weight_decay * w, which is the
    form of Barlow Twins' program. clip: LARC as in solo-learn, which divides by |g| + weight_decay * |w| and moves w by at
    most `lr` times its decayed gradient. `groups` come before the rule for 1-d parameters, and so can overrule it. lr: by
    default Barlow Twins' for a batch of 256 (sec. 2.2); for another batch, multiply it by batch_size / 256.
    """
    plain: dict[str, Any] = {"match": "1d", "weight_decay": 0.0, "adapt": False}
    if bias_lr is not None:
        plain["lr"] = bias_lr
    rules = (*_rules(module, groups), plain)
    return Lars(_groups(module, rules, lr, weight_decay, adapts=True), lr=lr, momentum=momentum, trust=trust, clip=clip)


@checked
def lamb(
    module: nn.Module,
    lr: Rate = 1e-3,
    betas: tuple[Momentum, Momentum] = (0.9, 0.999),
    weight_decay: Rate = 0.0,
    eps: Rate = 1e-6,
    groups: Sequence[Rule] = (),
) -> torch.optim.Optimizer:
    """LAMB (You et al. 2020) with TensorFlow Addons' defaults: every parameter adapted, no clipping."""
    from diptych.training.lamb import Lamb  # imported late: timm takes two seconds

    rules = _rules(module, groups)
    return Lamb(_groups(module, rules, lr, weight_decay, adapts=True), lr=lr, betas=tuple(betas), eps=eps)


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": sgd,
    "adamw": adamw,
    "lars": lars,
    "lamb": lamb,
}


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's learning rate to its peak times `factor`; groups with a constant schedule keep their peak.

    The peaks of an optimizer created elsewhere are its initial rates.
    """
    for group in optimizer.param_groups:
        peak = group.setdefault("peak_lr", group["lr"])
        group["lr"] = peak if group.get("schedule") == "constant" else peak * factor


def describe(optimizer: torch.optim.Optimizer) -> list[dict[str, object]]:
    """One row per group: name, lr (peak), weight_decay, adapted, schedule, counts of tensors and parameters."""
    return [
        {
            "name": group.get("name", f"group {index}"),
            "lr": group.get("peak_lr", group["lr"]),
            "weight_decay": group.get("weight_decay", 0.0),
            "adapted": group.get("always_adapt", False),
            "schedule": group.get("schedule", "follow"),
            "tensors": len(group["params"]),
            "parameters": sum(parameter.numel() for parameter in group["params"]),
        }
        for index, group in enumerate(optimizer.param_groups)
    ]


def _rules(module: nn.Module, groups: Sequence[Rule]) -> tuple[Rule, ...]:
    """`groups`, then the rules of a method itself."""
    return (*groups, *(module.rules if isinstance(module, Method) else ()))


def _groups(
    module: nn.Module, rules: Sequence[Rule], lr: float, weight_decay: float, adapts: bool = False
) -> list[dict]:
    """Parameter groups for torch, one for each combination of rules that matches, in the module's order."""
    trained = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    for rule in rules:
        _check(rule, trained, adapts)
    groups: dict[str, dict] = {}
    for name, parameter in trained:
        matching = [rule for rule in rules if _matches(rule, name, parameter)]
        label = " & ".join(dict.fromkeys(rule["match"] for rule in matching)) or "rest"
        if label not in groups:
            said = {"lr": lr, "weight_decay": weight_decay, "adapt": adapts, "schedule": "follow"}
            for rule in reversed(matching):
                said |= dict(rule)  # the first rule has the last word
            groups[label] = _group(label, said, adapts)
        groups[label]["params"].append(parameter)
        groups[label]["parameters"].append(name)
    return list(groups.values())


def _group(label: str, said: Rule, adapts: bool) -> dict[str, Any]:
    """An empty group with these settings, in the words of torch and timm."""
    group = {key: said[key] for key in ("lr", "weight_decay", "schedule")}
    group |= {"name": label, "params": [], "parameters": [], "peak_lr": said["lr"]}
    if adapts:
        group["always_adapt"] = said["adapt"]
        if said["weight_decay"] and not said["adapt"]:  # timm adapts whatever it decays
            raise RecipeError(f"groups: {label!r} is not adapted, so its weight_decay must be 0.0 too")
    return group


def _matches(rule: Rule, name: str, parameter: Tensor) -> bool:
    if rule.get("match") == "1d":
        return parameter.ndim <= 1
    return f"{name}.".startswith(f"{rule.get('match')}.")


def _check(rule: Rule, trained: Sequence[tuple[str, Tensor]], adapts: bool) -> None:
    """Refuse a rule that would be misread or do nothing."""
    known = ["match", "lr", "weight_decay", "schedule"] + ["adapt"] * adapts
    if unknown := sorted(set(rule) - set(known)):
        raise RecipeError(f"groups: {dict(rule)} has {unknown}; this optimizer's rules take {known}")
    if rule.get("schedule", "follow") not in ("follow", "constant"):
        raise RecipeError(f"groups: schedule is 'follow' or 'constant', not {rule['schedule']!r}")
    for key in ("lr", "weight_decay"):
        if type(rule.get(key, 0.0)) not in (int, float):
            raise RecipeError(f"groups: {key} is a number of at least 0, not {rule[key]!r}")
        check_range(rule.get(key, 0.0), Rate, f"groups: {key}")
    if rule.get("match") != "1d" and not any(_matches(rule, name, p) for name, p in trained):
        parts = sorted({name.split(".")[0] for name, _ in trained})
        raise RecipeError(f"groups: match {rule.get('match')!r} names no trained parameter; try '1d' or one of {parts}")
