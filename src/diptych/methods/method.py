"""The interface of every method: it takes views and returns a loss. The loop depends on nothing else."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diptych.base.errors import RecipeError
from diptych.base.random_at import Draw

Projections = Mapping[str, Tensor]  # outputs of the networks: named tensors, one row per image
Progress = float | Tensor  # completed share of training, in [0, 1]; the loop passes a 0-d tensor on the device
Rule = Mapping[str, Any]  # for an optimizer's parameter groups, see diptych.training.optimizers


class Compared(NamedTuple):
    """What `compare` returns."""

    loss: Tensor  # scalar, of the global batch
    parts: dict[str, Tensor]  # named terms of the loss, detached scalars
    kept: dict[str, Tensor] = {}  # rows of this process that `after_step` needs (keys, a teacher's outputs), detached


class Method(nn.Module, ABC):
    """Trains an encoder: holds it, the networks on top of it, and a loss.

    The two halves allow the exact loss of a batch that does not fit into memory (gradient caching): `project` runs on pieces
    of it, `compare` sees all projections. The sum of the losses of pieces would be a different loss.

    Everything that changes during training is a parameter or a buffer and is changed in place, so that checkpoints, a
    resumed run and a step that is not finite include it. Before step 0 a method is tried on a few images, two or more.
    """

    encoder: nn.Module  # remains after training: it is saved, watched and evaluated
    views: range = range(2, 3)  # numbers of views that it accepts
    statistics_rows: int | None = None  # rows that share batch statistics; None: all rows of a step, over all processes
    rules: Sequence[Rule] = ()  # parameter groups that it requires; an optimizer's own `groups` take precedence
    collapses: Mapping[str, tuple[float, float]] = {}  # bounds within which the loss or a part of it shows a collapse
    remedies: Sequence[str] = ()  # against it, for the diagnosis
    rising: str = ""  # what to do about a loss that rises again, where that is a fault

    def draw(self, n: int, rng: torch.Generator) -> Draw:
        """Draw random numbers for `n` images, on the CPU: named tensors (n, ...). The loop gives each process its rows."""
        return {}

    @abstractmethod
    def project(self, views: Sequence[Tensor], draw: Draw) -> Projections:
        """Run the networks on views (N, 3, s, s), each view with its own batch statistics; draw: N rows from `self.draw`."""

    @abstractmethod
    def compare(self, projections: Projections, progress: Progress) -> Compared:
        """Compute the loss, its parts, and what `after_step` needs. Uses no network and changes nothing."""

    def forward(self, views: Sequence[Tensor], draw: Draw | None = None, progress: Progress = 0.0) -> Compared:
        if draw is None:  # in a loop that draws nothing itself
            own = self.draw(len(views[0]), torch.default_generator)
            draw = {name: row.to(views[0].device) for name, row in own.items()}
        return self.compare(self.project(views, draw), progress)

    def after_step(self, kept: Mapping[str, Tensor], progress: Progress) -> None:  # noqa: B027
        """Update in place what has no gradient (target, queue, centre), after each optimizer step.

        kept: from `compare` of this step. progress: that of `compare`. Over several processes it must do the same on each:
        `gather` the rows it needs.
        """

    def shown(self, projections: Projections) -> tuple[Tensor, Tensor] | None:
        """Two projections (N, D) of the same images, for the watch, the diagnosis and the report; None: there is no pair."""
        return None


def embedding_width(encoder: nn.Module, width: int | None) -> int:
    """E: `width` if given, else the encoder's `num_features`. Raises RecipeError if both are missing."""
    columns = getattr(encoder, "num_features", None) if width is None else width
    if not isinstance(columns, int):
        name = type(encoder).__name__
        raise RecipeError(f"{name} has no num_features: pass width=E, the columns of its embedding (N, E)")
    return columns


def two_views(views: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the two views of a method that compares two. Raises RecipeError unless there are two, of equally many images."""
    rows = [len(view) for view in views]
    if len(rows) != 2 or rows[0] != rows[1]:
        raise RecipeError(f"this method compares two views of the same images, got views of {rows} images")
    return views[0], views[1]
