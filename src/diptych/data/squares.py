"""One image of a source -> a square of pixels: read, decode, turn upright, resize, crop."""

import errno
import functools
import threading
import warnings

import numpy as np
from PIL import Image, ImageColor

from diptych.base.errors import DataError, RecipeError
from diptych.data.decode import BadImage, fit_square, header_size, open_image
from diptych.data.gray import gray_range_of, spread
from diptych.data.source import Source

HEADERS_READ = 8  # headers read to determine the native size


class Squares:
    """Rows of `source` as (size, size, 3) uint8: `squares(row)`. Safe to call from several threads.

    size: pixels, or None for the native size when all images are squares of one size. The rest: see `images`.
    Raises DataError when there is no native size, RecipeError for unknown options.
    """

    def __init__(
        self,
        source: Source,
        size: int | None,
        max_pixels: float,
        background: str,
        fit: str,
        gray_range: tuple[float, float] | None = None,
    ):
        try:
            if not all(0 <= part <= 255 for part in ImageColor.getrgb(background)):
                raise ValueError("out of range")
        except ValueError as error:
            raise RecipeError(f"background={background!r} is not a colour: use white, #808080 or the like") from error
        self.source, self.max_pixels, self.background, self.fit = source, max_pixels, background, fit
        self._gray_range = gray_range
        self.reading: dict[int, int] = {}  # thread -> its row, for the warning of a slow read
        self.native = size is None
        self.size = self._native_size() if size is None else size

    def __call__(self, row: int) -> np.ndarray:
        """Raises BadImage without the key. Any other exception of the source gets a note that names the image."""
        thread = threading.get_ident()
        self.reading[thread] = row
        try:
            return self.square(row, self.read(row))
        except BaseException as error:
            error.add_note(f"while reading image {self.source.key(row)}")
            raise
        finally:
            del self.reading[thread]

    def read(self, row: int) -> bytes | np.ndarray:
        """What the source returns. Raises BadImage in place of OSError."""
        try:
            return self.source.read(row)
        except OSError as error:
            raise BadImage(f"{errno.errorcode.get(error.errno or 0, 'OSError')}: {error.strerror or error}") from error

    def square(self, row: int, data: bytes | np.ndarray) -> np.ndarray:
        """The square from what `read` has returned. Raises BadImage."""
        if isinstance(data, np.ndarray) and data.shape[:2] == (self.size, self.size):
            return data
        # a JPEG may be decoded smaller, to at least twice the size, for the antialiasing filter
        image = self.opened(data, None if self.native else 2 * self.size)
        if self.native and image.size != (self.size, self.size):
            width, height = image.size
            difference = f"{self.source.key(row)} is {width} x {height}, others are {self.size} x {self.size}"
            raise DataError(f"{difference}: pass size, such as size={self.size}")
        return fit_square(image, self.size, self.fit)

    def opened(self, data: bytes | np.ndarray, enough: int | None = None) -> Image.Image:
        """What `read` has returned as an image at its full size, RGB or gray; `enough`: see `open_image`. Raises BadImage."""
        if isinstance(data, np.ndarray):
            return Image.fromarray(np.ascontiguousarray(data))
        return open_image(data, self.max_pixels, self.background, enough, lambda: self.gray_range)

    @functools.cached_property
    def gray_range(self) -> tuple[float, float]:
        """The values of 16-bit images that become 0 and 255: those given, else looked up when the first such image is met."""
        return self._gray_range or gray_range_of(self.source, self.max_pixels)

    def warn_slow(self, seconds: float) -> None:
        """Name the images that are being read: a read from a network disk that has gone never returns."""
        rows = list(self.reading.values())
        shown = ", ".join(self.source.key(row) for row in rows[:5]) + (", ..." if len(rows) > 5 else "")
        warnings.warn(f"no image came for {seconds:.0f} s; still being read: {shown}", stacklevel=3)

    def _native_size(self) -> int:
        known = getattr(self.source, "native_size", None)
        sizes = self._some_sizes() if known is None else {tuple(known)}
        if len(sizes) == 1 and len(sides := set(*sizes)) == 1:
            return int(sides.pop())
        seen = ", ".join(f"{width} x {height}" for height, width in sorted(sizes)) or "unreadable"
        raise DataError(f"pass size, such as size=224: the images are not squares of one size (seen: {seen})")

    def _some_sizes(self) -> set[tuple[int, int]]:
        """(H, W) of a few images, spread over the source."""
        sizes, count = set(), len(self.source)
        for row in spread(count, HEADERS_READ):
            try:
                data = self.source.read(row)
                if isinstance(data, np.ndarray):
                    sizes.add(data.shape[:2])
                else:
                    sizes.add(header_size(data, self.max_pixels)[::-1])
            except (BadImage, OSError):  # reported when the image itself is read
                continue
        return sizes
