"""The bytes of one image file -> an upright RGB image. The bytes are never trusted.

The formats of `formats.py` are opened, each by its own reader, chosen from the first bytes and never from the name; no other
reader (PSD, EPS, FITS ...) is ever called. What an image may cost is checked in its header, before any pixel is allocated.
"""

import re
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, PpmImagePlugin

from diptych.data.formats import EXTENSIONS, format_of
from diptych.data.limits import CountedReads, refuse_costly
from diptych.data.untrusted import FAULTS, BadImage

GrayRange = Callable[[], tuple[float, float]]
__all__ = ["EXTENSIONS", "MAX_PIXELS", "BadImage", "decode", "fit_square", "header_size", "open_image", "remarks"]

MAX_PIXELS = 64_000_000
# What Pillow raises on damaged bytes; a Warning only where warnings are errors. An exception that is missing ends a run.
PILLOW_FAULTS = (*FAULTS, Warning)
UPRIGHT = {  # EXIF 2.3, tag 0x0112: the operation on the stored pixels
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SMIN_SAMPLE_VALUE, SMAX_SAMPLE_VALUE = 340, 341  # TIFF 6.0: the declared range of the samples
PART = 1 << 20  # pixels that are converted at once
SIXTEEN_TO_EIGHT = np.rint(np.arange(65536) / 257).astype(np.uint8)


def decode(data: bytes, max_pixels: float = MAX_PIXELS, background: str = "white") -> np.ndarray:
    """The image in `data` as (H, W, 3) uint8, RGB, upright (EXIF), the first frame of an animation.

    Transparent pixels show `background` (a CSS colour). 16-bit, integer and float gray is rescaled to 0..255,
    never clipped. Raises BadImage for formats without a reader in `formats.py`, for damage, for more than `max_pixels`
    pixels, and for what `limits.py` refuses, from the header.
    """
    return np.array(open_image(data, max_pixels, background).convert("RGB"))


def open_image(
    data: bytes,
    max_pixels: float = MAX_PIXELS,
    background: str = "white",
    enough: int | None = None,
    gray_range: GrayRange | None = None,
) -> Image.Image:
    """As `decode`, but a Pillow image, RGB or gray (L); a JPEG may be reduced to 1/2, 1/4 or 1/8, its short side `enough` or
    more. gray_range: returns the values of a 16-bit image that become 0 and 255; None: 0 and 65535."""
    image = _open(data, max_pixels)
    try:
        if enough is not None:
            image.draft(None, (enough, enough))
        image.load()
        turn, image = _turn(image), _without_alpha(image, background, gray_range)
        return image if turn is None else image.transpose(turn)
    except PILLOW_FAULTS as error:
        raise BadImage(str(error) or type(error).__name__) from error


def lazily_opened(data: bytes, max_pixels: float = MAX_PIXELS) -> Image.Image:
    """A Pillow image whose pixels are not decoded yet. Raises BadImage."""
    return _open(data, max_pixels)


def header_size(data: bytes, max_pixels: float = MAX_PIXELS) -> tuple[int, int]:
    """(width, height) in the header, before EXIF turns the image. Raises BadImage."""
    return _open(data, max_pixels).size


def remarks(data: bytes, max_pixels: float = MAX_PIXELS) -> list[str]:
    """What `decode` changes or omits, from the header of a readable image; [] if nothing."""
    try:
        image = _open(data, max_pixels)
        several = getattr(image, "is_animated", False)
    except (BadImage, *PILLOW_FAULTS):
        return []
    applies = {
        "an animation or several pages: only the first is used": several,
        "gray beyond 8 bits: rescaled to 0..255": image.mode in ("I", "F") or image.mode.startswith("I;16"),
        "an alpha channel: composited onto the background colour": image.has_transparency_data,
        "no colour (gray): the same in all three channels": image.mode in ("1", "L"),
    }
    return [text for text, true in applies.items() if true]


def fit_square(image: Image.Image, size: int, fit: str = "crop") -> np.ndarray:
    """`image`, RGB or gray, as (size, size, 3) uint8, antialiased bilinear.

    "crop": short side to `size`, then the centre; done as one resampling of the central square, so that a 1 x
    20000 strip is never enlarged as a strip. "squash": both sides to `size`, proportions lost.
    """
    width, height = image.size
    box = (0.0, 0.0, float(width), float(height))
    if fit == "crop":
        short = min(width, height)
        step = short / size  # source pixels per output pixel; whole output pixels are cut off, so no half-pixel blur
        left, top = ((side - short) / step // 2 * step for side in (width, height))
        box = (left, top, left + short, top + short)
    if image.size != (size, size):
        # reducing_gap 2: whole-number averaging first, then the exact filter over at least 2 pixels (Pillow's
        # thumbnail default)
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _open(data: bytes, max_pixels: float) -> Image.Image:
    if not data:
        raise BadImage("empty file")
    kind = format_of(data)
    if kind is None:
        raise BadImage(f"not an image ({_beginning(data)})")
    if kind.reader is None:
        raise BadImage(kind.reason)
    file = CountedReads(data)
    try:
        image = kind.reader(file)
    except PILLOW_FAULTS as error:
        raise BadImage(str(error) or type(error).__name__) from error
    width, height = image.size
    if width * height > max_pixels:
        raise BadImage(f"{width} x {height} pixels are more than max_pixels={max_pixels:.0f}")
    refuse_costly(image, data, file, kind, max_pixels)
    return image


def _beginning(data: bytes) -> str:
    text = re.match(rb"\s*([<%!?]*[A-Za-z0-9]{1,12})", data[:64])
    start = text[1].decode("ascii") if text else data[:8]
    return f"starts with {start!r}"


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return UPRIGHT.get(image.getexif().get(0x0112, 1))
    except PILLOW_FAULTS:  # damaged metadata, intact pixels: used as stored
        return None


def _without_alpha(image: Image.Image, background: str, gray_range: GrayRange | None) -> Image.Image:
    """The image as RGB, or as 8-bit gray (L)."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _to_8_bit(image, gray_range)
    if image.has_transparency_data:
        return _in_parts(image, "RGB", lambda part: _laid_on(part, background))
    gray = image.mode in ("1", "L")
    return image if image.mode in ("L", "RGB") else image.convert("L" if gray else "RGB")


def _laid_on(part: Image.Image, background: str) -> Image.Image:
    canvas = Image.new("RGBA", part.size, background)
    return Image.alpha_composite(canvas, part.convert("RGBA")).convert("RGB")


def _in_parts(image: Image.Image, mode: str, change: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """`change`, which acts pixel by pixel, part by part: beside the image and the result, only a part is in memory."""
    if image.width * image.height <= PART:
        return change(image)
    result = Image.new(mode, image.size)
    for box in _boxes(image):
        result.paste(change(image.crop(box)), box)
    return result


def _boxes(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    """Boxes of at most PART pixels that cover the image."""
    columns = min(image.width, PART)
    rows = max(1, PART // columns)
    for top in range(0, image.height, rows):
        for left in range(0, image.width, columns):
            yield left, top, min(left + columns, image.width), min(top + rows, image.height)


def _to_8_bit(image: Image.Image, gray_range: GrayRange | None) -> Image.Image:
    """Gray beyond 8 bits -> L over its range.

    That is `gray_range()` or 0..65535 for 16-bit files; else what the TIFF declares; else the smallest of 0..1 (float), 0..255
    and 0..65535 that holds every value; else minimum to maximum.
    """
    ends = (0.0, 65535.0) if gray_range is None or not has_16_bits(image) else gray_range()
    if has_16_bits(image) and ends == (0.0, 65535.0):
        return _in_parts(image, "L", lambda part: Image.fromarray(SIXTEEN_TO_EIGHT[np.asarray(part)]))
    low, high = ends if has_16_bits(image) else _range(image)

    def scale(part: Image.Image) -> Image.Image:
        scaled = (np.asarray(part).astype(np.float64) - low) * (255.0 / max(high - low, 1e-30))
        return Image.fromarray(np.rint(scaled.clip(0, 255)).astype(np.uint8))

    return _in_parts(image, "L", scale)


def has_16_bits(image: Image.Image) -> bool:
    return image.mode.startswith("I;16") or (isinstance(image, PpmImagePlugin.PpmImageFile) and image.mode == "I")


def _range(image: Image.Image) -> tuple[float, float]:
    """The values of integer or float gray that become 0 and 255."""
    ends = []
    for box in _boxes(image):
        values = np.asarray(image.crop(box))
        if not np.isfinite(values).all():
            raise BadImage("has NaN or infinite pixels")
        ends += [float(values.min()), float(values.max())]
    low, high = min(ends), max(ends)
    tags = getattr(image, "tag_v2", {})
    if SMIN_SAMPLE_VALUE in tags and SMAX_SAMPLE_VALUE in tags:
        low = min(low, float(np.ravel(tags[SMIN_SAMPLE_VALUE])[0]))
        high = max(high, float(np.ravel(tags[SMAX_SAMPLE_VALUE])[0]))
    elif low >= 0:
        ranges = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        if holding := [top for top in ranges if top >= high]:
            low, high = 0.0, holding[0]
    return low, high
