"""A view: operations applied in the order of the recipe. N images (N, 3, H, W) become N views (N, 3, S, S)."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from diptych.base.errors import DataError, RecipeError
from diptych.base.random_at import Draw, random_at
from diptych.views.colour import Normalize
from diptych.views.geometry import HorizontalFlip, RandomResizedCrop

VALUES_PER_BLOCK = 1_600_000  # pixel values that a CPU processes at a time, 520 images of 32 x 32, to limit memory


class Step(Protocol):
    """An element of a View: an operation of `OPERATIONS`, or any object with these two methods."""

    def sample(self, n: int, rng: torch.Generator) -> Draw: ...
    def apply(self, images: torch.Tensor, draw: Draw) -> torch.Tensor: ...


class View:
    """Makes a view of each image of a batch. `sample` draws one row per image, on the CPU; `apply` runs on any device.

    The view of an image depends only on its row of the draws, not on the rest of the batch: a process that applies
    `draw_slice(draws, rows)` to `images[rows]` gets rows `rows` of the global views, within 1e-6 before `normalize`
    (float32 sums may be ordered differently). The same call gives the same bytes each time.
    """

    def __init__(self, operations: Sequence[Step]):
        self.operations = list(operations)
        for step in self.operations:
            if not (hasattr(step, "sample") and hasattr(step, "apply")):
                raise RecipeError(f"a view takes a list of operations; {step!r} has no sample and apply")
        self._flip_of = flips_of_crops(self.operations)

    def sample(self, n: int, rng: torch.Generator) -> list[Draw]:
        """Draw all random numbers for `n` images: for each operation a dict of tensors (n, ...)."""
        return [step.sample(n, rng) for step in self.operations]

    def __call__(self, images: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        """`apply` with new draws from `rng`, such as `random_at(seed, "views", step, which_view)`."""
        return self.apply(images, self.sample(len(images), rng))

    @torch.no_grad()
    def apply(self, images: torch.Tensor, draws: list[Draw]) -> torch.Tensor:
        """uint8, or float in [0, 1], (N, 3, H, W) -> contiguous float32 (N, 3, S, S) on the same device.

        `images` are not changed. Computes in float32 inside autocast too, and never waits for a GPU. Raises DataError
        for images of another shape or type, ValueError for draws for another number of images.
        """
        known = images.dtype == torch.uint8 or images.is_floating_point()
        if images.ndim != 4 or images.shape[1] != 3 or not known:
            given = f"{tuple(images.shape)} {images.dtype}"
            raise DataError(f"a view takes uint8 or float images of shape (N, 3, H, W); these are {given}")
        n = len(images)
        if any(len(rows) != n for draw in draws for rows in draw.values()):
            raise ValueError(f"the draws are not for {n} images; select the rows of these images with draw_slice")
        with torch.autocast(images.device.type, enabled=False):
            block = max(1, VALUES_PER_BLOCK // max(1, images[:1].numel()))
            if images.device.type != "cpu" or n <= block:
                return self._apply(images, draws)
            blocks = [slice(start, start + block) for start in range(0, n, block)]
            first = self._apply(images[blocks[0]], draw_slice(draws, blocks[0]))
            views = first.new_empty(n, *first.shape[1:])
            views[blocks[0]] = first
            for rows in blocks[1:]:
                views[rows] = self._apply(images[rows], draw_slice(draws, rows))
            return views

    def _apply(self, images: torch.Tensor, draws: list[Draw]) -> torch.Tensor:
        # Only the class itself counts: a derived class may work in place, and these images belong to the caller.
        first = type(next(iter(self.operations), None))
        if images.dtype == torch.uint8 and vars(first).get("takes_bytes", False):
            views = images
        else:  # a copy, because the operations may work in place
            views = images.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
            views = views.div_(255) if images.dtype == torch.uint8 else views
        for i, (step, draw) in enumerate(zip(self.operations, draws, strict=True)):
            if isinstance(step, RandomResizedCrop) and i in self._flip_of:
                views = step.apply_(views, draw, mirrored=draws[self._flip_of[i]]["chosen"])
            elif i not in self._flip_of.values():
                views = getattr(step, "apply_", step.apply)(views, draw)
        return views.contiguous()

    @property
    def size(self) -> int | None:
        """Pixels on a side of the views; None where no operation sets it."""
        sizes = [step.size for step in self.operations if hasattr(step, "size")]
        return sizes[-1] if sizes else None

    @property
    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """(mean, std) of the last Normalize, ((0, 0, 0), (1, 1, 1)) without one."""
        pairs = [(step.mean, step.std) for step in self.operations if isinstance(step, Normalize)]
        return pairs[-1] if pairs else ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

    def display(self, views: torch.Tensor) -> torch.Tensor:
        """Undo the normalization of views (N, 3, S, S) and clamp them to [0, 1], to show them as pictures."""
        mean, std = (torch.tensor(v, device=views.device).view(3, 1, 1) for v in self.normalization)
        return (views.float() * std + mean).clamp(0, 1)

    def describe(self) -> list[str]:
        """One readable line per operation, in order."""
        return [str(step) for step in self.operations]

    def __repr__(self) -> str:
        return f"View({self.operations!r})"


def draw_slice(draws: list[Draw], rows: slice | torch.Tensor) -> list[Draw]:
    """Select the draws of some of the images, as a process does for its rows of the global batch."""
    return [{name: numbers[rows] for name, numbers in draw.items()} for draw in draws]


def flips_of_crops(operations: Sequence[Step], crops: type | tuple[type, ...] = RandomResizedCrop) -> dict[int, int]:
    """{index of a crop: index of the horizontal flip that its resampling can include, as all steps between them commute}."""
    flips = {}
    for i, crop in enumerate(operations):
        for j in range(i + 1, len(operations) if isinstance(crop, crops) else 0):
            if isinstance(operations[j], HorizontalFlip):
                flips[i] = j
                break
            if not getattr(operations[j], "commutes_with_flip", False):
                break
    return flips


def bytes_of(images: torch.Tensor) -> np.ndarray:
    """(n, 3, h, w) in [0, 1] as (n, h, w, 3) uint8."""
    return (255 * images.clamp(0, 1)).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def show_views(views: Sequence[View], originals: torch.Tensor, seed: int) -> list[np.ndarray]:
    """The views of `originals` (n, 3, S, S) with the draws of step 0, for people to look at: (n, s, s, 3) uint8 each."""
    shown = (view.display(view(originals, random_at(seed, "views", 0, index))) for index, view in enumerate(views))
    return [bytes_of(pixels) for pixels in shown]
