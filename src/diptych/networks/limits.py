"""A bound on the size of a network that is being built: it is refused before its memory is filled."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from diptych.base.device import free_bytes
from diptych.base.errors import RecipeError

MOST_PARAMETERS, MOST_LAYERS = 2**33, 4_000  # the largest networks of timm have 6.7e9 parameters and 1,844 layers


def check_parameters(count: int, what: str) -> None:
    """RecipeError for more parameters than `MOST_PARAMETERS`, or than fit into the free memory in float32."""
    most = min(MOST_PARAMETERS, free_bytes(torch.device("cpu")) // 4)
    if count > most:
        raise RecipeError(f"{what} has {count:,} parameters or more; there is room for {most:,}")


@contextmanager
def bounded(what: str) -> Iterator[None]:
    """Count the parameters and layers that are created within; RecipeError as soon as there are too many.

    A parameter's memory is only reserved when it is counted: filling it with initial weights comes after that.
    """
    parameters, layers = 0, 0

    def count_parameter(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal parameters
        size = 0 if parameter is None or isinstance(parameter, nn.UninitializedParameter) else parameter.numel()
        if parameters // 10**7 != (parameters + size) // 10**7:  # reading the free memory takes a while
            check_parameters(parameters + size, what)
        parameters += size

    def count_layer(module: nn.Module, name: str, layer: nn.Module | None) -> None:
        nonlocal layers
        layers += 1
        if layers > MOST_LAYERS:
            raise RecipeError(f"{what} has more than {MOST_LAYERS:,} layers")

    hooks = [
        register_module_parameter_registration_hook(count_parameter),
        register_module_module_registration_hook(count_layer),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
