"""The contact sheet of `diptych views`."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from diptych.base.errors import OutputError
from diptych.base.random_at import random_at
from diptych.data.images import Images
from diptych.reporting import pictures
from diptych.views import View
from diptych.views.view import bytes_of, show_views


def view_sheet(images: Images, views: Sequence[View], count: int, seed: int) -> Image.Image:
    """`count` of the images, chosen by `seed`, beside their views."""
    chosen = torch.randperm(len(images), generator=random_at(seed, "sheet"))[:count]
    _, originals = next(images.read(chosen, count, replace=(seed, 0)))
    return pictures.contact_sheet(bytes_of(originals / 255), show_views(views, originals, seed))


def save_sheet(picture: Image.Image, out: Path) -> None:
    """Write the sheet. Raises OutputError for a path that cannot be written or has no ending of pictures."""
    try:
        picture.save(out)
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot write {out} ({error}); choose another --out ending in .png") from None
