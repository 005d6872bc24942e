"""What every operation of a view shares. N images of shape (3, H, W) in [0, 1]; a draw is a dict of (N, ...) CPU tensors."""

from abc import ABC, abstractmethod
from numbers import Real

import torch

from diptych.errors import RecipeError

Draw = dict[str, torch.Tensor]


class Operation(ABC):
    """One step of a view. `sample` holds all its randomness; `apply` is a function of its two arguments and nothing else.

    A user's own operation needs no base class: any object with `sample` and `apply` may stand in a View.
    """

    commutes_with_flip = False  # True lets a later horizontal flip move in front, into the crop's resampling

    @abstractmethod
    def sample(self, n: int, rng: torch.Generator) -> Draw:
        """All randomness for `n` images, one row each, on the CPU; needs no image, so it costs no decoding to redraw."""

    def apply(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        """Float images (N, 3, H, W) -> new images, on their device, row i by row i of `draw`; `images` stay as they are."""
        return self.apply_(images.clone(memory_format=torch.contiguous_format), draw)

    @abstractmethod
    def apply_(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        """As `apply`, but may overwrite `images` (contiguous): what View calls, one copy of the batch cheaper each."""


def coins(n: int, p: float, rng: torch.Generator) -> torch.Tensor:
    """(n,) bool, True with probability p; takes n numbers from `rng` whatever p is."""
    return torch.rand(n, generator=rng) < p


def uniform(n: int, low: float, high: float, rng: torch.Generator) -> torch.Tensor:
    """(n,) float32 in [low, high)."""
    return torch.rand(n, generator=rng) * (high - low) + low


def chosen(draw: Draw, device: torch.device) -> torch.Tensor:
    """Rows whose coin fell, as an index on `device`. The coins lie on the CPU, so no one waits for the GPU to count them."""
    return draw["chosen"].nonzero().squeeze(1).to(device, non_blocking=True)


def require(holds: bool, message: str) -> None:
    """RecipeError(message) unless the condition holds."""
    if not holds:
        raise RecipeError(message)


def check_probability(name: str, p: float) -> None:
    require(isinstance(p, Real) and 0 <= p <= 1, f"{name}: p is {p!r}; a probability lies in 0 to 1")


def check_size(name: str, size: int) -> None:
    require(isinstance(size, int) and size >= 1, f"{name}: size is {size!r}; give a whole number of pixels, 1 or more")


def check_range(name: str, key: str, value: tuple[float, float], low: float, high: float) -> tuple[float, float]:
    """`value` as a tuple (low, high) of floats with low < value[0] <= value[1] <= high, or RecipeError."""
    ok = isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(v, Real) for v in value)
    require(
        ok and low < value[0] <= value[1] <= high,
        f"{name}: {key} is {value!r}; give two numbers, the smaller first, above {low:g} and up to {high:g}",
    )
    return (float(value[0]), float(value[1]))
