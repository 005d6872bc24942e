"""Images as uint8 squares with one way to read them: from memory if the set fits, else decoded when needed."""

import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from diptych.base.errors import DataError
from diptych.base.random_at import random_at
from diptych.base.ranges import Range, Side, Words, checked
from diptych.base.threads import in_order
from diptych.data.ahead import copied_ahead
from diptych.data.arrays import Pixels
from diptych.data.decode import MAX_PIXELS
from diptych.data.gray import Gray, gray_ends
from diptych.data.labels import is_table, labels_of
from diptych.data.open import NAMED, Source, open_source
from diptych.data.resident import Decoded, decode_rows, empty_batch, fits_in_memory
from diptych.data.source import KeyView, content_digest, digest
from diptych.data.squares import Squares
from diptych.data.unreadable import Pass, Unreadable, left_out
from diptych.data.untrusted import BadImage

__all__ = ["NAMED", "BadImage", "Images", "Source", "images", "open_source"]

LABELS_FROM = "auto, folder, none or FILE.csv:COLUMN"
REPLACEMENTS = 16  # tried for one bad image; if 1 % are bad, all 16 are bad once in 1e32 times


@checked
def images(
    source: str | os.PathLike | Source | np.ndarray | Tensor,
    size: Side | None = None,
    labels: Annotated[str, Words("auto|folder|none|.+[.]csv:.+", LABELS_FROM)] | Sequence | np.ndarray = "auto",
    on_bad: Annotated[str, Words("skip|error")] = "skip",
    max_pixels: Annotated[float, Range(1, math.inf)] = MAX_PIXELS,
    background: str = "white",
    fit: Annotated[str, Words("crop|squash")] = "crop",
    gray_range: tuple[Gray, Gray] | Annotated[str, Words("auto", "auto or two values, [low, high]")] = "auto",
    follow_symlinks: bool = False,
    resident: bool | Annotated[str, Words("auto", "auto, true or false")] = "auto",
    fingerprint: Annotated[str, Words("sampled|full")] = "sampled",
    progress: Callable[[int, int], None] | None = None,
) -> "Images":
    """The images of a source, as squares of `size` pixels. Only labels and a few headers are read now.

    source: a path or a name (see `open_source`), a Source, or uint8 pixels (N, H, W, 3), (N, 3, H, W) or (N, H, W).
    size: pixels; None for the native size, when all images are squares of one size.
    labels: "auto", "folder" or "none" (see `open_source`), "FILE.csv:COLUMN" (a table whose first column holds the names of
    all images), or one class number or name per image.
    on_bad: an unreadable image is left out, see `.failed` ("skip"; up to 1 % or 10), or raises ("error").
    fit: "crop" (short side to `size`, then the centre) or "squash" (both sides to `size`). max_pixels, background: see `decode`.
    gray_range: 16-bit gray values that become 0 and 255; "auto": see `gray_range_of`. A run records them for later images.
    resident: True decodes the images once into memory (3 * size * size bytes an image), False decodes them anew each
    time they are read. "auto" decodes once a set that takes at most half of the memory that is free at the first read,
    and at most 32 GiB.
    fingerprint: how a resumed run recognises its images: by names, sizes and parts of the contents ("sampled", see
    `Images.fingerprint`), or by every byte of them ("full", as long as reading them takes).
    progress: called with (images done, images in all) while a resident set is decoded.
    Raises DataError (source, size, labels) and RecipeError (options).
    """
    origin = os.fsdecode(source) if isinstance(source, str | os.PathLike) else None
    if isinstance(source, Tensor):
        source = source.detach().cpu().numpy()
    if isinstance(source, np.ndarray):
        source = Pixels(source)
    elif isinstance(source, str | os.PathLike):
        source = open_source(
            source, labels if isinstance(labels, str) and not is_table(labels) else "none", follow_symlinks
        )
    if not len(source):
        raise DataError("the source holds no images")
    if skipped := getattr(source, "skipped", ()):
        warnings.warn(left_out(skipped), stacklevel=3)
    squares = Squares(source, size, max_pixels, background, fit, gray_ends(gray_range))
    numbers, classes = labels_of(source, labels)
    in_memory = None if resident == "auto" else bool(resident)
    photos = Images(squares, numbers, classes, on_bad=on_bad, resident=in_memory, progress=progress)
    photos.reads_all, photos.origin = fingerprint == "full", origin
    return photos


class Images:
    """Images of one source as (3, size, size) uint8 squares, RGB; built by `images`.

    `keys`, `labels` and all indices refer to the same rows, also after `prepare` has removed bad images.
    """

    def __init__(
        self, squares: Squares, labels: list[int] | None, classes: list[str] | None, *, on_bad: str = "skip",
        resident: bool | None = None, progress: Callable[[int, int], None] | None = None, rows: np.ndarray | None = None,
    ):  # fmt: skip
        """rows: of the source, in order; None for all. labels: one per row. resident: None for "auto"."""
        self.source, self.size = squares.source, squares.size
        self.labels, self.classes = labels, classes
        self.squares, self.on_bad, self.progress = squares, on_bad, progress
        self.rows = self._all_rows = np.arange(len(squares.source)) if rows is None else rows
        self._unreadable = Unreadable(squares.source, len(self._all_rows), on_bad)
        self._resident_option = self._resident = resident
        self.reads_all = False  # for the fingerprint
        self.origin: str | None = None  # the path or name that `images` was given, for commands that are proposed
        self._decoded: Decoded | None = None
        self._places = np.zeros(0, np.int64)  # position of every row in `_decoded`; -1 if it cannot be read

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def keys(self) -> KeyView:
        """The name of every image, read from the source on access."""
        return KeyView(self.source, self.rows)

    @property
    def all_keys(self) -> KeyView:
        """The name of every image, including the bad ones that `prepare` has removed."""
        return KeyView(self.source, self._all_rows)

    @property
    def failed(self) -> list[dict]:
        """{"key", "reason"} of every image that was tried and could not be read."""
        return self._unreadable.listed

    @property
    def left_out(self) -> list[dict]:
        """{"key", "reason"} of everything in the source that is not used: what the source has omitted, and `failed`."""
        return [*getattr(self.source, "skipped", ()), *self.failed]

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) of names, sizes and contents; of a subset, also of its rows.

        It does not depend on times or the location, so a copy has the same one; nor on which images are bad. Computed at
        the first use. Of a folder or a tar, three blocks of 4 KiB of every file (all of a file of up to 12 KiB); of more
        than 10,000 files, of 10,000 evenly spaced ones. Of a zip, all checksums. Of Parquet, 10,000 blocks. Of arrays, all
        pixels up to 1 GiB, else 10,000 rows. With fingerprint="full" of `images`, every byte.
        """
        of_source = content_digest(self.source) if self.reads_all else getattr(self.source, "fingerprint", None)
        if of_source is None:
            of_source = digest(*(self.source.key(i) + "\n" for i in range(len(self.source))))
        if np.array_equal(self._all_rows, np.arange(len(self.source))):
            return of_source
        return digest(of_source, self._all_rows.astype("<i8"))

    @property
    def resident(self) -> bool:
        """Whether the images are decoded once and held in memory; else `read` decodes them each time.

        Decided once, at the first use, from the memory that is free then (see `images`).
        """
        if self._resident is None:
            self._resident = fits_in_memory(len(self) * 3 * self.size**2)
        return self._resident

    def prepare(self, workers: int | None = None) -> None:
        """Decode a resident set now and remove its bad images from length, rows, `keys` and `labels`.

        Call it before counting or numbering images. Nothing is read from a set that is not resident. Raises DataError
        when the bad images are too many, BadImage with on_bad="error".
        """
        if self.resident:
            self._decode(workers)
            if (good := np.flatnonzero(self._places >= 0)).size < len(self):
                self._select(good)

    def read(
        self,
        order: Sequence[int] | np.ndarray | Tensor,
        batch_size: int,
        *,
        replace: tuple[int, int] | None = None,
        device: torch.device | str | None = None,
        workers: int | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields (rows (n,) int64 on the CPU, images (n, 3, size, size) uint8 on `device`); n is at most batch_size.

        order: the rows to read, (N,); device: None for the CPU. A resident set is decoded at its first use. On a GPU it
        is copied there once if it takes at most a quarter of the memory free there, else batch by batch. Other sets are
        decoded on `workers` threads (None: one per CPU), at most that many batches ahead, so memory is bounded.

        A bad image is left out, so n is smaller; or, with replace=(seed, epoch), another image takes its place, the
        same one on every machine. Raises DataError when bad images are too many, BadImage with on_bad="error".
        """
        for rows, pixels, places in self.batches(order, batch_size, replace=replace, device=device, workers=workers):
            yield rows, pixels if places is None else pixels[places]

    def batches(
        self, order: Sequence[int] | np.ndarray | Tensor, batch_size: int, *, replace: tuple[int, int] | None = None,
        device: torch.device | str | None = None, workers: int | None = None,
    ) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:  # fmt: skip
        """`read`, for a caller that gathers by itself: yields (rows, images, places).

        places: where the batch is among `images`, which all lie on the device, (n,) int64 there; None: `images` are it.
        """
        order, target = np.asarray(order, np.int64).copy(), torch.device(device or "cpu")
        if self.resident:
            self._decode(workers)
        if self._decoded is not None and (places := self._places[order]).min(initial=0) >= 0:
            rows = [torch.from_numpy(order[start : start + batch_size]) for start in range(0, len(order), batch_size)]
            batches = self._decoded.batches(torch.from_numpy(places), batch_size, target)
            yield from ((own, *batch) for own, batch in zip(rows, batches, strict=True))
        else:
            streamed = copied_ahead(self._stream(order, batch_size, replace, target, workers), target)
            yield from ((own, pixels, None) for own, pixels in streamed)

    def load(self, i: int) -> Tensor:
        """Image `i` as (3, size, size) uint8. Raises BadImage with its key."""
        return torch.from_numpy(self._square(i).copy())

    def pixels(self, workers: int | None = None) -> Tensor:
        """All images as one tensor (N, 3, size, size) uint8, row by row, without bad images, as after `prepare`.

        All are decoded and stay in memory whatever their size: `resident` is True from then on.
        """
        self._resident = True
        self.prepare(workers)
        pixels = self._decode().pixels
        same = np.array_equal(self._places, np.arange(len(pixels)))
        return pixels if same else pixels[torch.from_numpy(self._places)]

    def subset(self, indices: Sequence[int] | np.ndarray | Tensor) -> "Images":
        """The images at `indices`, in that order; classes keep their numbers.

        Images that are already decoded are shared, not copied. Otherwise the subset decides by itself whether it is
        resident, and detects its own bad images.
        """
        indices = np.asarray(indices, np.int64).reshape(-1)
        labels = None if self.labels is None else [self.labels[i] for i in indices.tolist()]
        part = Images(self.squares, labels, self.classes, on_bad=self.on_bad, resident=self._resident_option,
                      progress=self.progress, rows=self.rows[indices])  # fmt: skip
        part.reads_all, part.origin = self.reads_all, self.origin
        if self._decoded is not None and (places := self._places[indices]).min(initial=0) >= 0:
            part._resident, part._decoded, part._places = True, self._decoded, places
        return part

    def replacements(self, seed: int, epoch: int, index: int) -> list[int]:
        """The images to try, in this order, in place of image `index` if it is bad in this epoch."""
        rng = random_at(seed, "replacement", epoch, index)
        return torch.randint(len(self), (REPLACEMENTS,), generator=rng).tolist()

    def _square(self, i: int) -> np.ndarray:
        """Image `i` as (3, size, size) uint8. Raises BadImage with its key."""
        row = int(self.rows[i])
        if self._decoded is not None:
            if (place := self._places[i]) < 0:
                raise BadImage(self._unreadable.reasons[row], self.source.key(row))
            return self._decoded.pixels[place].numpy()
        try:
            return self.squares(row).transpose(2, 0, 1)
        except BadImage as error:
            raise BadImage(error.reason, self.source.key(row)) from error

    def _decode(self, workers: int | None = None) -> Decoded:
        """All rows in memory, decoded at the first call on `workers` threads; `self.rows` does not change."""
        if self._decoded is not None:
            return self._decoded
        pixels, self._places = decode_rows(self.squares, self.rows, Pass(self._unreadable), workers=workers,
                                           slow=self.squares.warn_slow, progress=self.progress)  # fmt: skip
        self._decoded = Decoded(pixels)
        return self._decoded

    def _stream(self, order: np.ndarray, batch_size: int, replace: tuple[int, int] | None, device: torch.device,
                workers: int | None) -> Iterator[tuple[Tensor, Tensor]]:  # fmt: skip
        """`read`, image by image on threads, from memory of the CPU that suits `device`."""
        parts = [order[start : start + batch_size].tolist() for start in range(0, len(order), batch_size)]
        batches = in_order(lambda part: self._batch(part, replace, device), parts, workers, self.squares.warn_slow)
        bad = Pass(self._unreadable)
        for start, (used, pixels, faults) in zip(range(0, len(order), batch_size), batches, strict=True):
            for k, i, reason in faults:
                bad.add(start + k, int(self.rows[i]), reason)
            yield torch.tensor(used, dtype=torch.int64), pixels

    def _batch(
        self, part: list[int], replace: tuple[int, int] | None, device: torch.device
    ) -> tuple[list[int], Tensor, list[tuple[int, int, str]]]:
        """(indices used, their images on the CPU, (place in `part`, index, reason) of the bad ones)."""
        # Copy by numpy, not torch: a second thread that enters torch's parallel loops gets its own OpenMP threads, and
        # with more threads than CPUs OpenMP lets all of them sleep between loops, which halves the speed of training.
        batch = empty_batch(len(part), self.size, device)
        pixels, used, faults = batch.numpy(), [], []
        for k, index in enumerate(part):
            for i in [index] if replace is None else [index, *self.replacements(*replace, index)]:
                try:
                    pixels[len(used)] = self._square(i)
                except BadImage as error:
                    faults.append((k, i, error.reason))
                else:
                    used.append(i)
                    break
        return used, batch[: len(used)], faults

    def _select(self, indices: np.ndarray) -> None:
        self.rows, self._places = self.rows[indices], self._places[indices]
        if self.labels is not None:
            self.labels = [self.labels[i] for i in indices.tolist()]
