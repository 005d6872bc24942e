"""The contract that every method keeps: views in, (loss, parts) out."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from diptych.base.errors import RecipeError

Projections = dict[str, Tensor]  # named tensors of N rows
Parts = dict[str, Tensor]  # named terms of a loss, detached scalars


class Method(nn.Module, ABC):
    """What is trained: an encoder, what stands on it, and a loss.

    Its two halves let a batch that does not fit have its exact loss (gradient caching): project it in pieces
    without gradients, compare the whole once, send each piece's gradient back through a second projection.
    Adding up losses of pieces would be another loss.
    """

    encoder: nn.Module

    @abstractmethod
    def project(self, views: Sequence[Tensor]) -> Projections:
        """Run the networks on views (N, 3, s, s), each by itself, with its own batch statistics."""

    @abstractmethod
    def compare(self, projections: Projections) -> tuple[Tensor, Parts]:
        """The mathematics: the loss, a scalar, and its parts. Uses no network."""

    def forward(self, views: Sequence[Tensor]) -> tuple[Tensor, Parts]:
        return self.compare(self.project(views))

    def after_step(self, progress: float) -> None:  # noqa: B027  most methods have nothing to move
        """After a step, at `progress` in [0, 1]: move what gradients do not (a target network, a queue)."""


def embedding_width(encoder: nn.Module, width: int | None) -> int:
    """E: `width` if given, else the encoder's `num_features`. Raises RecipeError if neither tells."""
    found = getattr(encoder, "num_features", None) if width is None else width
    if not isinstance(found, int):
        name = type(encoder).__name__
        raise RecipeError(f"{name} has no num_features: pass width=E, the columns of its embedding (N, E)")
    return found


def two_views(views: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The views of a method that compares two. Raises RecipeError unless they are two, of as many images."""
    rows = [len(view) for view in views]
    if len(rows) != 2 or rows[0] != rows[1]:
        raise RecipeError(f"this method compares two views of the same images, got views of {rows} images")
    return views[0], views[1]
