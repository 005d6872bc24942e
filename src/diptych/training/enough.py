"""Are there enough images for a batch? Asked before the first one is decoded."""

from diptych.base.errors import RecipeError
from diptych.base.processes import world_size


def require_images(count: int, batch_size: int) -> None:
    """RecipeError for a batch that is larger than the set."""
    if batch_size > count:
        most = count // world_size() * world_size()
        fix = f"use at most {most}" if most > 1 else f"bring more images, at least {max(2, world_size())}"
        raise RecipeError(f"batch_size {batch_size} is larger than the {count} images; {fix}")
