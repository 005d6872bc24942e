"""The formats of image files: their endings and first bytes, the reader of each, and what those without a reader need."""

import importlib
import importlib.util
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

CONVERT = "convert it to PNG or JPEG"
REBUILD = "this Pillow was built without it: install Pillow's own wheel, or convert it to PNG or JPEG"
HEIF = "pip install pillow-heif reads it"


class Format(NamedTuple):
    """start: a pattern of the first bytes ("": recognised by the ending alone). reader: None if it cannot be read here.

    cost: bytes for a pixel, at most, while an image is decoded (measured with Pillow 13; the file itself not counted).
    """

    name: str
    endings: str
    start: bytes = b""
    reader: Callable[..., Any] | None = None
    cost: int = 16
    needs: str = CONVERT

    @property
    def reason(self) -> str:
        """Why a file of this format is not read, and what helps."""
        return f"{self.name}: {self.needs}"


def read_heif(file: Any) -> Any:
    """pillow-heif's reader, which states the size from the header. It is imported at the first such image."""
    return importlib.import_module("pillow_heif").HeifImageFile(file)


# Readers that Pillow may have been built without.
AVIF = AvifImagePlugin.AvifImageFile if AvifImagePlugin.SUPPORTED else None
WEBP = WebPImagePlugin.WebPImageFile if WebPImagePlugin.SUPPORTED else None
JPEG_2000 = Jpeg2KImagePlugin.Jpeg2KImageFile if hasattr(Image.core, "jpeg2k_decoder") else None
HEIC = read_heif if importlib.util.find_spec("pillow_heif") else None
# Each of them is read by Pillow's own reader for it, chosen by the first bytes. `Image.open` would choose the same, but asks
# readers of other formats too, warns at 89 and refuses at 179 megapixels, with a limit that is global.
FORMATS = (
    Format("JPEG", ".jpg .jpeg .jpe .jfif", rb"\xff\xd8\xff", JpegImagePlugin.JpegImageFile),
    Format("PNG", ".png .apng", rb"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
    Format("WebP", ".webp", rb"RIFF.{4}WEBP", WEBP, needs=REBUILD),
    Format(
        "HEIC", ".heic .heif .hif", rb".{4}ftyp(?:he[iv][cfmsx]|m[is]f1(?:.{4}){1,9}?he[iv][cfmsx])", HEIC, 20, HEIF
    ),
    Format("AVIF", ".avif", rb".{4}ftyp(?:avi[fs]|mif1|msf1)", AVIF, 24, REBUILD),
    Format("GIF", ".gif", rb"GIF8[79]a", GifImagePlugin.GifImageFile),
    Format("BMP", ".bmp", rb"BM", BmpImagePlugin.BmpImageFile),
    Format("TIFF", ".tif .tiff", rb"II[*+]\0|MM\0[*+]", TiffImagePlugin.TiffImageFile),
    Format("PPM", ".ppm .pgm .pbm .pnm", rb"P[1-6]\s", PpmImagePlugin.PpmImageFile),
    Format(
        "JPEG 2000",
        ".jp2 .j2k .j2c .jpc .jpf .jpx",
        rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n",
        JPEG_2000,
        28,
        REBUILD,
    ),
    # The plugin for Pillow decodes a whole image before its size is known, so no limit would hold.
    Format("JPEG XL", ".jxl", rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n", needs="convert it, as by `djxl a.jxl a.png`"),
    Format(
        "camera raw",
        ".dng .cr2 .cr3 .crw .nef .nrw .arw .sr2 .srf .orf .rw2 .raf .pef .srw .x3f .3fr .iiq .rwl .erf .kdc .mrw",
        needs="develop it to PNG or JPEG (rawpy, darktable)",
    ),  # fmt: skip
    Format("DICOM", ".dcm .dicom"),
    Format("OpenEXR", ".exr"),
    Format("TGA", ".tga"),
)
READERS = tuple((re.compile(kind.start, re.DOTALL), kind) for kind in FORMATS if kind.start)
EXTENSIONS = tuple(ending for kind in FORMATS if kind.reader for ending in kind.endings.split())
UNREAD = {ending.encode(): kind.reason for kind in FORMATS if not kind.reader for ending in kind.endings.split()}


def format_of(data: bytes) -> Format | None:
    """The format that the first bytes belong to."""
    return next((kind for start, kind in READERS if start.match(data)), None)
