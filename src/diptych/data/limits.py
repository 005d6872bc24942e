"""What an image may cost, in memory and time: small files that decode into much are refused from their headers.

With max_pixels = 64 million (the default), an image takes at most 1 GiB and about 5 seconds of one core while it is decoded;
both are proportional to max_pixels. docs/faults.md has the measurements.
"""

import io
import re

from PIL import Image, ImageFile

from diptych.data.formats import Format
from diptych.data.untrusted import BadImage

MAX_COST = 16  # bytes for a pixel of an image of max_pixels; in formats that need more, images must be smaller
MAX_SCANS = 25  # of a progressive JPEG of max_pixels (usual are 10); a smaller one may have more
MAX_READS = 200_000  # of a header's parts; Pillow reads some bytes one by one, in 0.3 microseconds
SLOW = 8  # decoders written in Python read max_pixels / SLOW pixels at most: 0.5 microseconds a value
MAX_COMMENTS = 100  # in a plain (text) PPM: the time grows with their square
SEGMENT = re.compile(rb"\xff([^\0\xd0-\xd7\xff])")


class CountedReads(io.BytesIO):
    """The bytes of an image file. Reading them in too many pieces is a BadImage: a comment of 50 MB took 40 seconds."""

    def __init__(self, data: bytes):
        super().__init__(data)
        self.left = MAX_READS

    def read(self, size: int | None = -1) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise BadImage("its header or its comments have too many parts: save the image again without them")
        return super().read(size)


def refuse_costly(image: Image.Image, data: bytes, file: CountedReads, kind: Format, max_pixels: float) -> None:
    """Raise BadImage for an image, opened but not decoded, that would take too much memory or time."""
    pixels, size = image.width * image.height, f"{image.width} x {image.height} pixels"
    if pixels * kind.cost > MAX_COST * max_pixels:
        most = MAX_COST * max_pixels / kind.cost
        raise BadImage(f"{size} are more than {most:.0f}, the most for {kind.name} with max_pixels={max_pixels:.0f}")
    if kind.name == "JPEG":
        most = int(min(MAX_SCANS * max_pixels / max(pixels, 1), 1e9))
        if data.count(b"\xff\xda") > most and more_scans(data, most):
            raise BadImage(f"more than {most} scans for {size}, with max_pixels={max_pixels:.0f}: save the JPEG again")
    tiles = image.tile if isinstance(image, ImageFile.ImageFile) else []
    if slow := [tile[0] for tile in tiles if tile[0] in Image.DECODERS]:  # decoders written in Python
        comments = data.count(b"#") if slow[0] == "ppm_plain" else 0
        if pixels * len(image.getbands()) > max_pixels / SLOW or comments > MAX_COMMENTS:
            problem = f"{size} in a variant of {kind.name} that is read slowly, with {comments} comments"
            raise BadImage(f"{problem}: convert it to PNG, or raise max_pixels={max_pixels:.0f}")
        file.left += 2 * pixels


def more_scans(data: bytes, most: int) -> bool:
    """Whether a JPEG has more than `most` scans. Thumbnails in its metadata and what follows its end do not count."""
    scans, position = 0, 2
    while scans <= most and (marker := SEGMENT.search(data, position)) and marker[1] != b"\xd9":
        scans += marker[1] == b"\xda"
        length = int.from_bytes(data[marker.end() : marker.end() + 2], "big")
        position = marker.end() + (length if marker[1] != b"\x01" else 0)
    return scans > most
