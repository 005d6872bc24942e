"""The bytes of one image file -> an upright RGB image. The bytes are never trusted.

Eight formats are opened, each by Pillow's own reader for it, chosen from the first bytes and never from the
name; no other reader (PSD, EPS, FITS ...) is ever called. The size is checked in the header, before any
pixel is allocated.
"""

import io
import re
import struct
import zlib

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from diptych.base.errors import DataError

MAX_PIXELS = 64_000_000
EXTENSIONS = tuple(".jpg .jpeg .jpe .jfif .png .apng .webp .avif .gif .bmp .tif .tiff .ppm .pgm .pbm .pnm".split())

# First bytes -> reader. Image.open would choose the same, but warns at 89 and refuses at 179 megapixels,
# with a limit that is global.
READERS = tuple(
    (re.compile(start, re.DOTALL), reader)
    for start, reader in (
        (rb"\xff\xd8\xff", JpegImagePlugin.JpegImageFile),
        (rb"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
        (rb"RIFF.{4}WEBP", WebPImagePlugin.WebPImageFile),
        (rb".{4}ftyp(?:avi[fs]|mif1|msf1)", AvifImagePlugin.AvifImageFile),
        (rb"GIF8[79]a", GifImagePlugin.GifImageFile),
        (rb"BM", BmpImagePlugin.BmpImageFile),
        (rb"II[*+]\0|MM\0[*+]", TiffImagePlugin.TiffImageFile),
        (rb"P[1-6]\s", PpmImagePlugin.PpmImageFile),
    )
)

# What Pillow raises on damaged bytes: observed when flipping bytes of all eight formats, or reported by others.
# An exception that is missing here ends a run.
PILLOW_FAULTS = (
    OSError,
    SyntaxError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    EOFError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Warning,  # raised only where warnings are errors
)
EXIF_FAULTS = (
    Warning,
    SyntaxError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    EOFError,
    OSError,
    struct.error,
)

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
SIXTEEN_TO_EIGHT = np.rint(np.arange(65536) / 257).astype(np.uint8)


class BadImage(DataError):
    """One image that cannot be used. `reason` is one line; the message begins with `key`, if given."""

    def __init__(self, reason: str, key: str | None = None):
        self.reason = " ".join(reason.split())[:200]
        super().__init__(f"{key}: {self.reason}" if key else self.reason)


def decode(data: bytes, max_pixels: float = MAX_PIXELS, background: str = "white") -> np.ndarray:
    """The image in `data` as (H, W, 3) uint8, RGB, upright (EXIF), the first frame of an animation.

    Transparent pixels show `background` (a CSS colour). 16-bit, integer and float gray is rescaled to 0..255,
    never clipped. JPEG, PNG, WebP, AVIF, GIF, BMP, TIFF and PPM only. Raises BadImage for anything else, for
    damage, and for more than `max_pixels` pixels (refused from the header).
    """
    return np.array(open_image(data, max_pixels, background))


def open_image(
    data: bytes, max_pixels: float = MAX_PIXELS, background: str = "white", enough: int | None = None
) -> Image.Image:
    """As `decode`, but a Pillow image; a JPEG may be reduced to 1/2, 1/4 or 1/8, its short side `enough` or more."""
    image = _open(data, max_pixels)
    try:
        if enough is not None:
            image.draft(None, (enough, enough))
        image.load()
        turn, image = _turn(image), _rgb(image, background)
        return image if turn is None else image.transpose(turn)
    except PILLOW_FAULTS as error:
        raise BadImage(str(error) or type(error).__name__) from error


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
        "an alpha channel: laid on the background colour": image.has_transparency_data,
    }
    return [text for text, true in applies.items() if true]


def fit_square(image: Image.Image, size: int, fit: str = "crop") -> np.ndarray:
    """`image` as (size, size, 3) uint8, antialiased bilinear.

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
    if image.size == (size, size):
        return np.asarray(image)
    # reducing_gap 2: whole-number averaging first, then the exact filter over at least 2 pixels (Pillow's
    # thumbnail default)
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box, reducing_gap=2.0))


def _open(data: bytes, max_pixels: float) -> Image.Image:
    if not data:
        raise BadImage("empty file")
    reader = next((reader for start, reader in READERS if start.match(data)), None)
    if reader is None:
        raise BadImage(f"not an image ({_beginning(data)})")
    try:
        image = reader(io.BytesIO(data))
    except PILLOW_FAULTS as error:
        raise BadImage(str(error) or type(error).__name__) from error
    width, height = image.size
    if width * height > max_pixels:
        raise BadImage(f"{width} x {height} pixels are more than max_pixels={max_pixels:.0f}")
    return image


def _beginning(data: bytes) -> str:
    text = re.match(rb"\s*([<%!?]*[A-Za-z0-9]{1,12})", data[:64])
    start = text[1].decode("ascii") if text else data[:8]
    return f"starts with {start!r}"


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return UPRIGHT.get(image.getexif().get(0x0112, 1))
    except EXIF_FAULTS:  # damaged metadata, intact pixels: used as stored
        return None


def _rgb(image: Image.Image, background: str) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = Image.fromarray(_to_8_bit(image))
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, background)
        image = Image.alpha_composite(canvas, image.convert("RGBA"))
    return image.convert("RGB") if image.mode != "RGB" else image


def _to_8_bit(image: Image.Image) -> np.ndarray:
    """Gray beyond 8 bits -> uint8 over its range.

    That is 0..65535 for 16-bit files; else what the TIFF declares; else the smallest of 0..1 (float), 0..255
    and 0..65535 that holds every value; else minimum to maximum.
    """
    values = np.asarray(image)
    if image.mode.startswith("I;16") or isinstance(image, PpmImagePlugin.PpmImageFile):
        return SIXTEEN_TO_EIGHT[values]
    if not np.isfinite(values).all():
        raise BadImage("has NaN or infinite pixels")
    low, high = float(values.min()), float(values.max())
    tags = getattr(image, "tag_v2", {})
    if SMIN_SAMPLE_VALUE in tags and SMAX_SAMPLE_VALUE in tags:
        low = min(low, float(np.ravel(tags[SMIN_SAMPLE_VALUE])[0]))
        high = max(high, float(np.ravel(tags[SMAX_SAMPLE_VALUE])[0]))
    elif low >= 0:
        ranges = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        if holding := [top for top in ranges if top >= high]:
            low, high = 0.0, holding[0]
    scaled = (values.astype(np.float64) - low) * (255.0 / max(high - low, 1e-30))
    return np.rint(scaled).astype(np.uint8)
