"""A view: operations in the order of the recipe. N images of shape (3, H, W) become N views of shape (3, S, S)."""

from collections.abc import Sequence
from typing import Protocol

import torch

from diptych.errors import DataError, RecipeError
from diptych.views.colour import Normalize
from diptych.views.geometry import HorizontalFlip, RandomResizedCrop
from diptych.views.operation import Draw

BLOCK = 2**19  # pixel values that a CPU works on at a time: more leave its cache and cost two to five times as much


class Step(Protocol):
    """What a View is made of; `diptych.views.OPERATIONS` or anything else with these two functions."""

    def sample(self, n: int, rng: torch.Generator) -> Draw: ...
    def apply(self, images: torch.Tensor, draw: Draw) -> torch.Tensor: ...


class View:
    """Turns a batch of images into one view of each. `sample` draws, on the CPU, one row per image; `apply` computes, anywhere.

    The same draws give the same views on every device to float32 rounding, whatever else is in the batch: a rank that takes
    `draw_slice(draws, rows)` of the global batch sees rows `rows` of the global views, equal within 1e-6 before `normalize`.
    """

    def __init__(self, operations: Sequence[Step]):
        self.operations = list(operations)
        for step in self.operations:
            if not (hasattr(step, "sample") and hasattr(step, "apply")):
                raise RecipeError(f"a view is made of operations with sample and apply; {step!r} has not both")
        self._flips = flips_to_fuse(self.operations)

    def sample(self, n: int, rng: torch.Generator) -> list[Draw]:
        """All randomness for `n` images: one dict per operation, tensors (n, ...)."""
        return [step.sample(n, rng) for step in self.operations]

    def __call__(self, images: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        """`apply` with fresh draws; `rng` is best `random_at(seed, "views", step, which_view)`."""
        return self.apply(images, self.sample(len(images), rng))

    @torch.no_grad()
    def apply(self, images: torch.Tensor, draws: list[Draw]) -> torch.Tensor:
        """(N, 3, H, W), uint8 or float in [0, 1] -> contiguous float32 (N, 3, S, S) on the same device; `images` stay unchanged.

        Float32 under autocast too. Does not wait for the GPU. Raises DataError for another shape.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise DataError(f"a view takes images of shape (N, 3, H, W); these are {tuple(images.shape)}")
        n = len(images)
        if any(len(rows) != n for draw in draws for rows in draw.values()):
            raise ValueError(f"draws for another number of images than {n}; slice them with draw_slice")
        block = max(1, n if images.device.type != "cpu" else BLOCK // max(1, images[0].numel()))
        with torch.autocast(images.device.type, enabled=False):
            if n <= block:
                return self._apply(images, draws)
            views = None
            for start in range(0, n, block):
                rows = slice(start, start + block)
                part = self._apply(images[rows], draw_slice(draws, rows))
                views = part.new_empty(n, *part.shape[1:]) if views is None else views
                views[rows] = part
            return views

    def _apply(self, images: torch.Tensor, draws: list[Draw]) -> torch.Tensor:
        views = images.to(torch.float32, memory_format=torch.contiguous_format, copy=True)  # ours: steps may work in place
        if images.dtype == torch.uint8:
            views.div_(255)
        for i, (step, draw) in enumerate(zip(self.operations, draws, strict=True)):
            if i in self._flips:
                views = step.apply_(views, draw, draws[self._flips[i]]["chosen"])
            elif i not in self._flips.values():
                views = getattr(step, "apply_", step.apply)(views, draw)
        return views.contiguous()

    @property
    def size(self) -> int | None:
        """Pixels on a side of the views; None where no operation sets it."""
        return next((step.size for step in reversed(self.operations) if hasattr(step, "size")), None)

    @property
    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """(mean, std) of the last Normalize, else ((0, 0, 0), (1, 1, 1))."""
        last = next((step for step in reversed(self.operations) if isinstance(step, Normalize)), None)
        return (last.mean, last.std) if last else ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

    def display(self, views: torch.Tensor) -> torch.Tensor:
        """(N, 3, S, S) views as pictures: normalization undone, clamped to [0, 1]."""
        mean, std = (torch.tensor(values, device=views.device).view(3, 1, 1) for values in self.normalization)
        return (views.float() * std + mean).clamp(0, 1)

    def describe(self) -> list[str]:
        """One line for humans per operation, in order."""
        return [str(step) for step in self.operations]

    def __repr__(self) -> str:
        return f"View({self.operations!r})"


def draw_slice(draws: list[Draw], rows: slice | torch.Tensor) -> list[Draw]:
    """The draws of some of the images: `apply(images[rows], draw_slice(draws, rows))` is `apply(images, draws)[rows]`."""
    return [{name: numbers[rows] for name, numbers in draw.items()} for draw in draws]


def flips_to_fuse(operations: Sequence[Step]) -> dict[int, int]:
    """{place of a crop: place of the horizontal flip that its resampling can do for nothing}, where all between commute."""
    flips = {}
    for i, crop in enumerate(operations):
        if not isinstance(crop, RandomResizedCrop):
            continue
        for j in range(i + 1, len(operations)):
            if isinstance(operations[j], HorizontalFlip):
                flips[i] = j
                break
            if not getattr(operations[j], "commutes_with_flip", False):
                break
    return flips
