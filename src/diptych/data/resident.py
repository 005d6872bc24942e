"""Decoded images in memory: whether they fit, decoding, and batches on a device."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from diptych.base.device import free_bytes, held_bytes, upload
from diptych.base.errors import DataError
from diptych.base.graph import stays
from diptych.base.threads import in_order
from diptych.data.ahead import copied_ahead
from diptych.data.decode import BadImage
from diptych.data.squares import Squares
from diptych.data.unreadable import Pass

# The other half is for memory that is used later: networks, a second set, the system's file cache.
CPU_SHARE = 0.5
# The images arrive on the GPU before the network: most of the memory must remain for its activations.
GPU_SHARE = 0.25
# The first step waits until all images are decoded. A larger set is streamed, whatever memory is free.
MOST_BYTES = 32 * 2**30
CPU = torch.device("cpu")
IMAGES_PER_TASK = 64  # of a decoding thread, so that scheduling costs little


def fits_in_memory(size: int) -> bool:
    """Whether `size` bytes of images may stay in memory: at most MOST_BYTES, and CPU_SHARE of the free memory."""
    return size <= min(MOST_BYTES, CPU_SHARE * free_bytes(CPU))


def decode_rows(
    squares: Squares,
    rows: np.ndarray,
    bad: Pass,
    *,
    workers: int | None,
    slow: Callable[[float], object],
    progress: Callable[[int, int], None] | None,
) -> tuple[Tensor, np.ndarray]:
    """(images (P, 3, S, S) uint8 of the readable rows, the position (N,) of every row among them, or -1).

    slow, workers: see `in_order`; progress: called with (images done, images in all). Raises DataError and BadImage as
    `bad.add`, and DataError if no image can be read.
    """
    count = len(rows)
    pixels = np.empty((count, 3, squares.size, squares.size), np.uint8)

    def work(chunk: range) -> list[tuple[int, str]]:
        faults = []
        for k in chunk:
            try:
                pixels[k] = squares(int(rows[k])).transpose(2, 0, 1)
            except BadImage as error:
                faults.append((k, error.reason))
        return faults

    chunks = [range(start, min(start + IMAGES_PER_TASK, count)) for start in range(0, count, IMAGES_PER_TASK)]
    for chunk, faults in zip(chunks, in_order(work, chunks, workers, slow), strict=True):
        for k, reason in faults:
            bad.add(k, int(rows[k]), reason)
        if progress:
            progress(chunk.stop, count)
    good = np.setdiff1d(np.arange(count), bad.positions)
    if count and not len(good):
        first = bad.unreadable.listed[0]
        raise DataError(f"no image can be read, first: {first['key']} ({first['reason']}); "
                        "`diptych doctor SOURCE` lists the others")  # fmt: skip
    for new, old in enumerate(good.tolist() if bad.positions else ()):
        pixels[new] = pixels[old]  # in place: a second copy may not fit
    places = np.full(count, -1)
    places[good] = np.arange(len(good))
    return torch.from_numpy(pixels[: len(good)]), places


class Decoded:
    """Images in memory: `pixels` (P, 3, S, S) uint8 on the CPU, and a copy on every GPU that has read them."""

    def __init__(self, pixels: Tensor):
        self.pixels = pixels
        self._copies: dict[torch.device, Tensor] = {}

    def batches(self, places: Tensor, batch_size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor | None]]:
        """`pixels[places]` on `device`, `batch_size` images at a time; `places` (n,) int64 on the CPU.

        Yields (all images, places of the batch) where they lie there, else (the images of the batch, None).
        """
        pixels = self._pixels_for(device)
        parts = [places[start : start + batch_size] for start in range(0, len(places), batch_size)]
        if pixels.device.type == device.type:
            for part in parts:
                yield pixels, upload(part, pixels.device)
            return
        gathered = (
            torch.index_select(pixels, 0, part, out=empty_batch(len(part), pixels.shape[-1], device)) for part in parts
        )
        yield from ((batch, None) for _, batch in copied_ahead(((None, batch) for batch in gathered), device))

    def _pixels_for(self, device: torch.device) -> Tensor:
        """The pixels on a GPU, if they take at most GPU_SHARE of its free memory; else those on the CPU.

        Decided at the first call for a device. A copy stays on the GPU as long as this object exists.
        """
        if device.type == "cpu":
            return self.pixels
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        if device not in self._copies:
            fit = self.pixels.nbytes <= GPU_SHARE * free_bytes(device)
            self._copies[device] = self.pixels.to(device) if fit else self.pixels
            if fit:
                stays(self._copies[device])
                held_bytes["the images (images.resident=false keeps them out)"] = self.pixels.nbytes
        return self._copies[device]


def empty_batch(count: int, size: int, device: torch.device) -> Tensor:
    """An uninitialised (count, 3, size, size) uint8 tensor on the CPU, to be filled and then moved to `device`."""
    shape = (count, 3, size, size)
    if device.type == "cuda":  # pinned: the copy to the GPU then overlaps with computation
        return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
    return torch.from_numpy(np.empty(shape, np.uint8))
