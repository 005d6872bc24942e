"""What a command opens: the images of a SOURCE, at the size and in the way that an encoder wants them."""

from pathlib import Path


def open_images(source: str, options: dict, size: int | None):
    """The images of SOURCE at the recipe's size, or at the size that the views ask for."""
    from diptych.base.terminal import Progress
    from diptych.commands.schema import call_arguments
    from diptych.data.images import images

    wanted = options | {"size": options.get("size") or size}
    wanted = {key: value for key, value in wanted.items() if value is not None}
    with Progress("read images") as progress:
        photos = images(source, **call_arguments(images, wanted), progress=progress)
        count = len(photos)
        photos.prepare()
        if bad := photos.failed:
            first = f"first: {bad[0]['key']} ({bad[0]['reason']})"
            progress.say(f"{source}: {len(bad)} of {count} images cannot be read and are left out, {first}")
    return photos


def image_options(run: Path, recipe: dict) -> tuple[int, dict]:
    """How a run's encoder wants its images: its own size; background, fit and bad images as in training."""
    from diptych.runs.encoder import encoder_folder, preprocessing_of, read_config

    config = read_config(encoder_folder(run))
    options = recipe.get("images") or {}
    # Of that set and that machine, not of how to read. A run made in Python wrote down its size and count.
    others = ("size", "labels", "count", "resident")
    return preprocessing_of(config["diptych"]).opened, {k: v for k, v in options.items() if k not in others}
