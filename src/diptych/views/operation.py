"""The base class and helpers of all operations of a view. N images (N, 3, H, W) in [0, 1]; a draw is {name: (N, ...)}."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch

from diptych.base.errors import RecipeError
from diptych.base.random_at import Draw
from diptych.base.ranges import is_real, short

MOST, MOST_PIXELS = 1e6, 2**13  # of an operation's numbers, and of its sizes
CACHE = 200_000  # pixel values that fit into a core's second-level cache together with temporary results


class Operation(ABC):
    """One step of a view. `sample` draws all its random numbers; `apply` is deterministic.

    A user's own operation needs no base class: a View accepts any object with `sample` and `apply`.
    """

    takes_bytes = False  # True: `apply_` also takes uint8 images and converts them to float in [0, 1]
    commutes_with_flip = False  # True: a later horizontal flip may be applied earlier, in the resampling of a crop

    @abstractmethod
    def sample(self, n: int, rng: torch.Generator) -> Draw:
        """Draw all random numbers for `n` images, one row per image, on the CPU. Does not depend on the images."""

    def apply(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        """Float images (N, 3, H, W) on any device -> new images on the same device; row i of `draw` is for image i."""
        return self.apply_(images.clone(memory_format=torch.contiguous_format), draw)

    @abstractmethod
    def apply_(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        """As `apply`, but may overwrite `images` (contiguous). A View calls this to save a copy."""


def cache_slices(images: torch.Tensor, n: int) -> list[slice]:
    """Split `n` rows into slices that fit into a CPU's caches, which is 1.5 times as fast. On other devices one slice."""
    most = CACHE * torch.get_num_threads() // max(1, images[:1].numel())
    count = -(-n // max(1, most)) if images.device.type == "cpu" else 1
    return [slice(n * k // count, n * (k + 1) // count) for k in range(count)]


def by_cache_slices(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Run an in-place function of images and numbers (N,) on one cache-sized slice at a time."""

    @functools.wraps(function)
    def sliced(images: torch.Tensor, *numbers_N: torch.Tensor) -> torch.Tensor:
        for rows in cache_slices(images, len(images)):
            function(*(tensor[rows] for tensor in (images, *numbers_N)))
        return images

    return sliced


def coins(n: int, p: float, rng: torch.Generator) -> torch.Tensor:
    """(n,) bool, True with probability p. Takes n numbers from `rng` for any p."""
    return torch.rand(n, generator=rng) < p


def uniform(n: int, low: float, high: float, rng: torch.Generator) -> torch.Tensor:
    """(n,) float32 between low and high."""
    return torch.rand(n, generator=rng) * (high - low) + low


def chosen(draw: Draw, device: torch.device) -> torch.Tensor:
    """The rows drawn for this operation, on `device`. They are counted on the CPU, without waiting for a GPU."""
    return draw["chosen"].nonzero().squeeze(1).to(device, non_blocking=True)


def require(holds: bool, message: str) -> None:
    """RecipeError(message) unless the condition holds."""
    if not holds:
        raise RecipeError(message)


def is_number(value: object) -> bool:
    """Whether an argument is a number of a size that means something for colours and pixels; NaN is not."""
    return is_real(value) and abs(value) <= MOST


def check_probability(name: str, p: float) -> None:
    require(is_number(p) and 0 <= p <= 1, f"{name}: p is {p!r}; give a probability from 0 to 1")


def check_pixels(name: str, key: str, value: int, least: int) -> None:
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    allowed = f"{least} or more and at most {MOST_PIXELS:,}"
    require(
        is_integer and least <= value <= MOST_PIXELS, f"{name}: {key} is {short(value)}; give whole pixels, {allowed}"
    )


def check_range(
    name: str, key: str, value: tuple[float, float], above: float, most: float = MOST
) -> tuple[float, float]:
    """`value` as a tuple of two floats with above < value[0] <= value[1] <= most, or RecipeError."""
    pair = isinstance(value, list | tuple) and len(value) == 2 and all(is_number(v) for v in value)
    limits = f"above {above:g} and up to {most:g}"
    require(
        pair and above < value[0] <= value[1] <= most,
        f"{name}: {key} is {value!r}; give two numbers {limits}, the smaller first",
    )
    return float(value[0]), float(value[1])
