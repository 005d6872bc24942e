"""The device and the number formats a run computes with."""

import os

import torch

from diptych.base.errors import RecipeError

PRECISIONS = ("float32", "bfloat16", "float64")


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" is this process' GPU where there is one.

    Asking for an absent GPU is a RecipeError, never a silent CPU run.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise RecipeError(f"device {name!r} is unknown; use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise RecipeError(f"device {name} was asked for, but torch sees no GPU; use device=cpu or auto")
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) if device.index is None else device.index)
        if device.index >= torch.cuda.device_count():
            count = torch.cuda.device_count()
            last = f" to cuda:{count - 1}" if count > 1 else ""
            raise RecipeError(f"device {device} was asked for, but there are {count} GPUs; use cuda or cuda:0{last}")
        torch.cuda.set_device(device)
    return device


def waits_for(device: torch.device) -> bool:
    """Whether reading a number that lies on `device` is waiting for all that it has still to do."""
    return device.type != "cpu"
