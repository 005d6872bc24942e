"""Decoded images in memory: whether they fit, how they get there, and batches of them on a device."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from diptych.base.device import free_bytes
from diptych.base.errors import DataError
from diptych.base.threads import in_order
from diptych.data.decode import BadImage
from diptych.data.squares import Squares
from diptych.data.unreadable import Pass

# The other half is for what is not here yet: networks, a second set, the system's cache of files.
CPU_SHARE = 0.5
# Nothing of the network is on the GPU when the images arrive: most of the memory has to be left to its activations.
GPU_SHARE = 0.25
# A first step waits until all images are decoded. A larger set begins at once as a stream, however much memory is free.
MOST_BYTES = 32 * 2**30
CPU = torch.device("cpu")
CHUNK = 64  # images per task of a decoding thread, so that handing out tasks costs nothing


def fits(size: int) -> bool:
    """Whether `size` bytes of images are decoded once and held: at most MOST_BYTES, and CPU_SHARE of what is free."""
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
    """(images (P, 3, S, S) uint8 of the rows that can be read, the place (N,) of each row among them or -1).

    slow, workers: see `in_order`; progress: called with (images done, images in all). Raises DataError and BadImage as
    `bad.add`, and DataError where no image can be read.
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

    chunks = [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
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
    """Images in memory: `pixels` (P, 3, S, S) uint8 on the CPU, and their copy on each GPU that has read from them."""

    def __init__(self, pixels: Tensor):
        self.pixels = pixels
        self._copies: dict[torch.device, Tensor] = {}

    def batches(self, places: Tensor, batch_size: int, device: torch.device) -> Iterator[Tensor]:
        """Yields `pixels[places]` on `device`, `batch_size` images at a time; `places` (n,) int64 on the CPU."""
        pixels = self._nearest(device)
        for start in range(0, len(places), batch_size):
            part = places[start : start + batch_size]
            if pixels.device.type == device.type:
                yield pixels[part.to(pixels.device, non_blocking=True)]
            else:
                batch = empty_batch(len(part), pixels.shape[-1], device)
                yield moved(torch.index_select(pixels, 0, part, out=batch), device)

    def _nearest(self, device: torch.device) -> Tensor:
        """The pixels on that GPU, if they take at most GPU_SHARE of its free memory; else those on the CPU.

        Decided at the first call for a device. A copy stays on the GPU as long as these images exist.
        """
        if device.type != "cuda":
            return self.pixels
        if device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        if device not in self._copies:
            fit = self.pixels.nbytes <= GPU_SHARE * free_bytes(device)
            self._copies[device] = self.pixels.to(device) if fit else self.pixels
        return self._copies[device]


def empty_batch(count: int, size: int, device: torch.device) -> Tensor:
    """Room for (count, 3, size, size) uint8 on the CPU, to be filled and then `moved` to `device`."""
    shape = (count, 3, size, size)
    if device.type == "cuda":  # pinned: the copy to the GPU then goes on beside the computation
        return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
    return torch.from_numpy(np.empty(shape, np.uint8))


def moved(batch: Tensor, device: torch.device) -> Tensor:
    """The batch on `device`; from pinned memory to a GPU without waiting."""
    return batch.to(device, non_blocking=device.type == "cuda")
