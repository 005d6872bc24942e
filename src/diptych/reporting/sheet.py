"""The contact sheet of `diptych views`, and how a picture is written."""

import io
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, PngImagePlugin

from diptych.base.errors import OutputError
from diptych.base.files import PNG_MARK, require_free_file, write_file
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


def require_free_picture(out: Path) -> Path:
    """Return `out` if the sheet may be written there. Raises OutputError, also for an ending that is no picture's."""
    if picture_format(out) is None:
        raise OutputError(
            f"cannot write {out} (not the ending of an image format); choose another --out ending in .png"
        )
    return require_free_file(out, PNG_MARK)


def write_picture(out: Path, picture: Image.Image) -> None:
    """Write a picture in the format of its ending; a PNG is marked as Diptych's. Raises OutputError."""
    file, mark = io.BytesIO(), PngImagePlugin.PngInfo()
    mark.add_text("Software", "Diptych")
    kind = picture_format(out)
    try:
        picture.save(file, kind, **{"optimize": True, "pnginfo": mark} if kind == "PNG" else {})
    except (OSError, ValueError, KeyError) as error:
        raise OutputError(f"cannot write {out} ({error}); choose another --out ending in .png") from None
    write_file(out, file.getvalue())


def picture_format(out: Path) -> str | None:
    """The name of the format that an ending belongs to."""
    return Image.registered_extensions().get(out.suffix.lower())
