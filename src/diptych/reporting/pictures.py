"""Pictures made of arrays: thumbnails, the contact sheet of views, maps in two dimensions.

Pure functions of numpy arrays. Images are (n, H, W, 3) uint8, in the order of axes that image files use.
"""

import base64
import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diptych.base.errors import DataError

PAPER, SOFT, FAINT = (252, 251, 248), (95, 91, 84), (222, 218, 210)
# Colours of the first, second, ... line of a chart.
INKS = ((36, 112, 196), (214, 96, 24), (40, 140, 90), (150, 80, 170), (120, 120, 40), (70, 70, 70))
SMALLEST_TILE, LARGEST_TILE = 96, 192  # pixels of one image on a contact sheet
VIEWS_PER_LINE = 8  # beside each other on a contact sheet


def shrink_to_fit(images: np.ndarray, size: int) -> np.ndarray:
    """Shrink (n, H, W, 3) uint8 images to `size` x `size` pixels, on a plain background where they are not square.

    Images that are small enough are returned unchanged: enlarging them would only make the file larger.
    Raises `DataError` for another shape or dtype.
    """
    images = _require_rgb(images)
    if max(images.shape[1:3]) <= size:
        return images
    return np.array([np.asarray(_tile(image, size)) for image in images]).reshape(-1, size, size, 3)


def data_uri(image: np.ndarray, kind: str = "PNG", **options: int) -> str:
    """An (H, W, 3) or (H, W, 4) uint8 image as a PNG or a JPEG in base64, to embed in the HTML; options: of Pillow."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **(options or {"compress_level": 9}))
    return f"data:image/{kind.lower()};base64," + base64.b64encode(file.getvalue()).decode("ascii")


def contact_sheet(originals: np.ndarray, views: Sequence[np.ndarray]) -> Image.Image:
    """One picture of n rows, an image beside its views: `originals` and all arrays of `views` are (n, H, W, 3) uint8.

    All tiles have one size. Small images are enlarged by a whole number, so that their pixels stay sharp.
    More than VIEWS_PER_LINE views take several lines; many rows are placed in blocks beside each other.
    Raises `DataError` without views or images, and where an array has another number of images than `originals`.
    """
    originals, *views = (_require_rgb(images) for images in (originals, *views))
    counts = [len(images) for images in (originals, *views)]
    if not views or set(counts) != {counts[0]} or not counts[0]:
        raise DataError(f"a contact sheet needs as many images as views, got {counts}")
    side = max(max(view.shape[1:3]) for view in views)
    tile = min(side * math.ceil(SMALLEST_TILE / side), LARGEST_TILE)
    lines = math.ceil(len(views) / VIEWS_PER_LINE)
    line = math.ceil(len(views) / lines)
    n = counts[0]
    # Blocks for rows of 3 tiles (an image and two views); with longer rows, fewer.
    blocks = max(1, round((1 if n <= 6 else 2 if n <= 16 else 3) * 3 / (1 + line)))
    rows = math.ceil(n / blocks)
    # In pixels. The gap between views (hinge) is smaller than the gap between an image and its views (apart).
    margin, hinge, apart, heading = 24, 3, 14, 26
    block = tile + apart + line * (tile + hinge) - hinge + 2 * margin
    row = lines * (tile + hinge) - hinge + apart
    sheet = Image.new("RGB", (math.ceil(n / rows) * block, 2 * margin + heading + rows * row - apart), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=15)
    titles = [f"view {index + 1}" for index in range(line)] if lines == 1 else [f"views 1 to {len(views)}"]
    for index in range(n):
        left, top = margin + index // rows * block, margin + heading + index % rows * row
        places = [
            (left + tile + apart + k % line * (tile + hinge), top + k // line * (tile + hinge))
            for k in range(len(views))
        ]
        if index % rows == 0:
            for title, (x, y) in zip(["image", *titles], [(left, top), *places], strict=False):
                draw.text((x, y - heading - 2), title, fill=SOFT, font=font)
        for images, place in zip([originals, *views], [(left, top), *places], strict=True):
            sheet.paste(_tile(images[index], tile), place)
    return sheet


def line_picture(chart: dict, size: tuple[int, int], scale: int = 3) -> Image.Image:
    """A chart of `charts.line_chart` (places in `size` units) as a picture of `size` times `scale` pixels.

    The picture is drawn four times as large and then shrunk, because Pillow does not smooth the edges of lines.
    """
    fine, (width, height) = 4 * scale, size
    heading = 26  # units above the chart: its title, and the lines' names where there are several
    sheet = Image.new("RGB", (fine * width, fine * (height + heading)), PAPER)
    draw = ImageDraw.Draw(sheet)
    title, small = (ImageFont.load_default(size=fine * points) for points in (10, 8))

    def at(x: float, y: float) -> tuple[float, float]:
        return fine * x, fine * (y + heading)

    across = [x for x, _ in chart["x_ticks"]] + [place[0] for line in chart["lines"] for place in line["hover"]]
    left, right = min(across), max(across)
    for y, text in chart["y_ticks"]:
        draw.line([at(left, y), at(right, y)], fill=FAINT, width=fine)
        draw.text(at(left - 5, y), text, fill=SOFT, font=small, anchor="rm")
    bottom = max(y for y, _ in chart["y_ticks"])
    for x, text in chart["x_ticks"]:
        draw.text(at(x, bottom + 6), text, fill=SOFT, font=small, anchor="mt")
    draw.text(at(right, bottom + 18), "step", fill=SOFT, font=small, anchor="rt")
    draw.text(at(left, -heading + 6), chart["title"], fill=(30, 28, 26), font=title, anchor="lt")
    names = right
    for index, line in reversed(list(enumerate(chart["lines"]))):
        ink, points = INKS[index % len(INKS)], [at(x, y) for x, y, *_ in line["hover"]]
        draw.line(points, fill=ink, width=round(1.6 * fine), joint="curve")
        for x, y in points if len(points) <= 24 else points[-1:]:
            draw.ellipse((x - 2 * fine, y - 2 * fine, x + 2 * fine, y + 2 * fine), fill=ink)
        if len(chart["lines"]) > 1:
            draw.text(at(names, -heading + 8), line["label"], fill=ink, font=small, anchor="rt")
            names -= draw.textlength(line["label"], font=small) / fine + 8
    return sheet.resize((scale * width, scale * (height + heading)), Image.Resampling.LANCZOS)


def _require_rgb(images: np.ndarray) -> np.ndarray:
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8 or 0 in images.shape[1:]:
        raise DataError(f"pictures need images (n, H, W, 3) uint8, got {images.shape} {images.dtype}")
    return images


def _tile(image: np.ndarray, size: int) -> Image.Image:
    """One image with its longer side `size`, in the middle of a square of the background colour."""
    height, width = image.shape[:2]
    scale = size / max(height, width)
    shape = max(1, round(width * scale)), max(1, round(height * scale))
    # Enlarged pixels keep sharp edges. A shrunk image is filtered, or it would alias.
    resampling = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    square = Image.new("RGB", (size, size), PAPER)
    square.paste(Image.fromarray(image).resize(shape, resampling), ((size - shape[0]) // 2, (size - shape[1]) // 2))
    return square
