"""The contract that every method keeps: views in, a loss out, and nothing else that a loop has to know."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diptych.base.errors import RecipeError

Draw = Mapping[str, Tensor]  # randomness of a method's own: named tensors, a row an image
Projections = Mapping[str, Tensor]  # what the networks give: named tensors, a row an image
Progress = float | Tensor  # share of training that is done, in [0, 1]; in a loop a 0-d tensor on the device
Rule = Mapping[str, Any]  # of an optimizer's parameter groups, see diptych.optimizers


class Compared(NamedTuple):
    """What `compare` returns."""

    loss: Tensor  # scalar, of the global batch
    parts: dict[str, Tensor]  # named terms of the loss, detached scalars
    kept: dict[str, Tensor] = {}  # this process' rows that `after_step` needs (keys, a teacher's outputs), detached


class Method(nn.Module, ABC):
    """What is trained: an encoder, what stands on it, and a loss.

    Its two halves let a batch that does not fit have its exact loss (gradient caching): `project` runs the networks on
    pieces of a batch, `compare` sees the projections of all of it. Adding up losses of pieces would be another loss.

    Everything that changes during training is a parameter or a buffer and is changed in place, so that checkpoints, a
    resumed run and a step that is not finite see it. A method takes any number of rows from two on: before step 0 it is
    tried on a few images.
    """

    encoder: nn.Module  # what remains: saved, watched, evaluated
    views: range = range(2, 3)  # how many views it takes
    statistics_rows: int | None = None  # rows that share batch statistics; None: all of a step, over all processes
    rules: Sequence[Rule] = ()  # parameter groups it insists on; an optimizer's own `groups` come before them

    def draw(self, n: int, rng: torch.Generator) -> Draw:
        """Randomness of its own for `n` images, on the CPU: named tensors (n, ...). The loop gives each process its rows."""
        return {}

    @abstractmethod
    def project(self, views: Sequence[Tensor], draw: Draw) -> Projections:
        """Run the networks on views (N, 3, s, s), each by itself, with its own batch statistics; draw: N rows of `draw`."""

    @abstractmethod
    def compare(self, projections: Projections, progress: Progress) -> Compared:
        """The mathematics: the loss, its parts, and what `after_step` needs. Uses no network and changes nothing."""

    def forward(self, views: Sequence[Tensor], draw: Draw | None = None, progress: Progress = 0.0) -> Compared:
        return self.compare(self.project(views, draw or {}), progress)

    def after_step(self, kept: Mapping[str, Tensor], progress: Progress) -> None:  # noqa: B027
        """After an update, with what `compare` kept of it: move in place what gradients do not (target, queue, centre).

        progress: after the step. Over several processes it must do the same on each: `gather` the rows it needs.
        """

    def shown(self, projections: Projections) -> tuple[Tensor, Tensor] | None:
        """Two projections (N, D) of the same images, for the watch, the diagnosis and the report; None: it has no pair."""
        return None


def embedding_width(encoder: nn.Module, width: int | None) -> int:
    """E: `width` if given, else the encoder's `num_features`. Raises RecipeError if neither tells."""
    columns = getattr(encoder, "num_features", None) if width is None else width
    if not isinstance(columns, int):
        name = type(encoder).__name__
        raise RecipeError(f"{name} has no num_features: pass width=E, the columns of its embedding (N, E)")
    return columns


def two_views(views: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The views of a method that compares two. Raises RecipeError unless they are two, of as many images."""
    rows = [len(view) for view in views]
    if len(rows) != 2 or rows[0] != rows[1]:
        raise RecipeError(f"this method compares two views of the same images, got views of {rows} images")
    return views[0], views[1]
