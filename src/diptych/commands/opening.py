"""What a command opens: the images of a SOURCE, at the size and in the way that an encoder wants them."""

from pathlib import Path


def open_images(source: str, options: dict, size: int | None):
    """The images of SOURCE at the recipe's size, or at the size that the views ask for."""
    from diptych.base.terminal import Progress
    from diptych.commands.schema import call_arguments
    from diptych.data.images import RESIDENT_BYTES, images

    wanted = options | {"size": options.get("size") or size}
    wanted = {key: value for key, value in wanted.items() if value is not None}
    with Progress("read images") as progress:
        photos = images(source, **call_arguments(images, wanted), progress=progress)
        if photos.bytes_in_memory <= RESIDENT_BYTES:
            count = len(photos)
            photos.pixels()
            if bad := photos.failed:
                first = f"first: {bad[0]['key']} ({bad[0]['reason']})"
                progress.say(f"{source}: {len(bad)} of {count} images cannot be read and are left out, {first}")
    return photos


def image_options(run: Path, recipe: dict) -> tuple[int, dict]:
    """How a run's encoder wants its images: its own size; background, fit and bad images as in training."""
    from diptych.runs.encoder import encoder_folder, preprocessing_of, read_config

    config = read_config(encoder_folder(run))
    asked = recipe.get("images") or {}
    told = ("size", "labels", "count")  # not how to read: of these, a run made in Python wrote down size and count
    return preprocessing_of(config["diptych"]).opened, {k: v for k, v in asked.items() if k not in told}
