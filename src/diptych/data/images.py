"""Images as uint8 squares: a small set once into memory (`pixels`), a large one as a stream (`batches`)."""

import copy
import os
import warnings
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from diptych.base.errors import DataError, RecipeError
from diptych.base.random_at import random_at
from diptych.base.threads import in_order
from diptych.data.arrays import Pixels
from diptych.data.decode import MAX_PIXELS, BadImage
from diptych.data.labels import all_labels
from diptych.data.open import NAMED, Source, open_source
from diptych.data.source import KeyView, digest
from diptych.data.squares import Squares

__all__ = ["NAMED", "BadImage", "Images", "Source", "images", "open_source"]

RESIDENT_BYTES = 4e9  # sets up to this size are decoded once and kept; larger ones are streamed
BAD_SHARE, BAD_FEW, BAD_RUN = 0.01, 10, 100  # tolerated: 1 % of the images or 10, and 100 one after the other
CHUNK = 64  # images per task of `pixels`, so that handing out tasks costs nothing
REPLACEMENTS = 16  # tried for one bad image; if 1 % are bad, all 16 are bad once in 1e32 times


def images(
    source: str | os.PathLike | Source | np.ndarray | torch.Tensor,
    size: int | None = None,
    labels: str | Sequence | np.ndarray = "auto",
    on_bad: str = "skip",
    max_pixels: float = MAX_PIXELS,
    background: str = "white",
    fit: str = "crop",
    follow_symlinks: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> "Images":
    """The images of a source, as squares of `size` pixels. Nothing but labels and a few headers is read yet.

    source: a path or a name (see `open_source`), a Source, or uint8 pixels (N, H, W, 3), (N, 3, H, W) or (N,
    H, W).
    size: pixels; None for the native size, when all images are squares of one size.
    labels: "auto", "folder" or "none" (see `open_source`), or one class number or name per image.
    on_bad: an unreadable image is left out, see `.failed` ("skip"; up to 1 % or 10), or raises ("error").
    max_pixels, background: see `decode`.
    fit: "crop" (short side to `size`, then the centre) or "squash" (both sides to `size`).
    progress: called by `pixels` with (images done, images in all).
    Raises DataError (source, size, labels) and RecipeError (options).
    """
    if on_bad not in ("skip", "error"):
        raise RecipeError(f"on_bad={on_bad!r} is not one of skip, error")
    given = None if isinstance(labels, str) else labels
    if isinstance(source, torch.Tensor):
        source = source.detach().cpu().numpy()
    if isinstance(source, np.ndarray):
        source = Pixels(source)
    elif isinstance(source, str | os.PathLike):
        source = open_source(source, labels if isinstance(labels, str) else "none", follow_symlinks)
    if not len(source):
        raise DataError("the source holds no images")
    if left_out := getattr(source, "skipped", ()):
        first = f"{left_out[0]['key']} ({left_out[0]['reason']})"
        warnings.warn(f"{len(left_out)} entries of the source left out, first: {first}", stacklevel=2)
    squares = Squares(source, size, max_pixels, background, fit)
    numbers, classes = (None, None) if given is None and labels == "none" else all_labels(source, given)
    return Images(squares, numbers, classes, on_bad, progress)


class Images:
    """Images of one source as (3, size, size) uint8 squares, RGB. Made by `images`.

    `keys`, `labels` and every index speak of the same rows, also after `pixels` has left bad images out.
    """

    def __init__(
        self,
        squares: Squares,
        labels: list[int] | None,
        classes: list[str] | None,
        on_bad: str,
        progress: Callable[[int, int], None] | None,
    ):
        self.source, self.size = squares.source, squares.size
        self.labels, self.classes = labels, classes
        self.squares, self.on_bad, self.progress = squares, on_bad, progress
        self.rows = self._asked = np.arange(len(squares.source))
        self._bad: dict[int, str] = {}
        self._pixels: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def keys(self) -> KeyView:
        """The name of every image, read from the source when asked for."""
        return KeyView(self.source, self.rows)

    @property
    def all_keys(self) -> KeyView:
        """The name of every image that was asked for, bad ones included."""
        return KeyView(self.source, self._asked)

    @property
    def failed(self) -> list[dict]:
        """{"key", "reason"} of every image that was tried and could not be read."""
        return [{"key": self.source.key(row), "reason": self._bad[row]} for row in sorted(self._bad)]

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of names and file sizes (for arrays, of the pixels); of a subset, also of its rows.

        Neither times nor the place count, so a copy has the same one. Images that turned out bad do not
        change it.
        """
        whole = getattr(self.source, "fingerprint", None)
        if whole is None:
            whole = digest(*(self.source.key(i) + "\n" for i in range(len(self.source))))
        if np.array_equal(self._asked, np.arange(len(self.source))):
            return whole
        return digest(whole, self._asked.astype("<i8"))

    @property
    def bytes_in_memory(self) -> int:
        """What `pixels` takes."""
        return len(self) * 3 * self.size**2

    def load(self, i: int) -> torch.Tensor:
        """Image `i` as (3, size, size) uint8. Raises BadImage, which names its key."""
        return self._pixels[i] if self._pixels is not None else torch.from_numpy(self._square(i).copy())

    def _square(self, i: int) -> np.ndarray:
        """Image `i` as (3, size, size) uint8. Raises BadImage, which names its key."""
        if self._pixels is not None:
            return self._pixels[i].numpy()
        row = int(self.rows[i])
        try:
            return self.squares(row).transpose(2, 0, 1)
        except BadImage as error:
            raise BadImage(error.reason, self.source.key(row)) from error

    def pixels(self, workers: int | None = None) -> torch.Tensor:
        """All images (N, 3, size, size) uint8, decoded once on `workers` threads (None: one per CPU).

        Bad images are left out of the tensor, `keys` and `labels`. Raises DataError when they are too many.
        """
        if self._pixels is not None:
            return self._pixels
        count = len(self)
        kept = torch.empty((count, 3, self.size, self.size), dtype=torch.uint8)
        target, bad = kept.numpy(), _Run(self)

        def work(chunk: range) -> list[tuple[int, str]]:
            faults = []
            for k in chunk:
                try:
                    target[k] = self.squares(int(self.rows[k])).transpose(2, 0, 1)
                except BadImage as error:
                    faults.append((k, error.reason))
            return faults

        chunks = [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
        for chunk, faults in zip(chunks, in_order(work, chunks, workers, self._slow), strict=True):
            for k, reason in faults:
                bad.add(k, int(self.rows[k]), reason)
            if self.progress:
                self.progress(chunk.stop, count)
        good = np.setdiff1d(np.arange(count), bad.positions)
        if not len(good):
            raise DataError(f"no image can be read, first: {self.failed[0]['key']} ({self.failed[0]['reason']}); "
                            "`diptych doctor SOURCE` lists the others")  # fmt: skip
        for new, old in enumerate(good.tolist() if bad.positions else ()):
            target[new] = target[old]  # in place: a second copy may not fit
        self._keep(good)
        self._pixels = kept[: len(good)]
        return self._pixels

    def batches(
        self,
        indices: Sequence[int] | np.ndarray | torch.Tensor,
        batch_size: int,
        workers: int | None = None,
        replace: tuple[int, int] | None = None,
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yields (indices (n,), images (n, 3, size, size) uint8) in order; n is batch_size but for the last.

        `workers` threads (None: one per CPU) work ahead by as many batches, so memory is bounded. A bad image
        is left out, so n is smaller; or, with replace=(seed, epoch), another image stands in for it, the same
        one on every machine. Raises DataError when bad images are too many.
        """
        indices = np.asarray(indices, np.int64)
        parts = [indices[start : start + batch_size].tolist() for start in range(0, len(indices), batch_size)]
        made = in_order(lambda part: self._batch(part, replace), parts, workers, self._slow)
        bad = _Run(self)
        for start, (used, pixels, faults) in zip(range(0, len(indices), batch_size), made, strict=True):
            for k, i, reason in faults:
                bad.add(start + k, int(self.rows[i]), reason)
            yield torch.tensor(used, dtype=torch.int64), pixels

    def replacements(self, seed: int, epoch: int, index: int) -> list[int]:
        """The images tried, in this order, in place of image `index` when it is bad in this epoch."""
        rng = random_at(seed, "replacement", epoch, index)
        return torch.randint(len(self), (REPLACEMENTS,), generator=rng).tolist()

    def subset(self, indices: Sequence[int] | np.ndarray | torch.Tensor) -> "Images":
        """The images at `indices`, in that order; classes keep their numbers."""
        indices = np.asarray(indices, np.int64).reshape(-1)
        part = copy.copy(self)
        part._keep(indices)
        part._asked, part._bad = part.rows, {}
        if self._pixels is not None:
            part._pixels = self._pixels[torch.from_numpy(indices)]
        return part

    def _batch(self, part: list[int], replace: tuple[int, int] | None) -> tuple[list[int], torch.Tensor, list[tuple]]:
        """(indices used, their images, (place in `part`, index, reason) of the bad ones)."""
        # numpy copies, not torch: a second thread that enters torch's parallel loops would have threads of its own for them,
        # and OpenMP, seeing more threads than CPUs, would let all of them sleep between loops: training at half its speed.
        pixels = np.empty((len(part), 3, self.size, self.size), dtype=np.uint8)
        used, faults = [], []
        for k, index in enumerate(part):
            for i in [index] if replace is None else [index, *self.replacements(*replace, index)]:
                try:
                    pixels[len(used)] = self._square(i)
                except BadImage as error:
                    faults.append((k, i, error.reason))
                else:
                    used.append(i)
                    break
        return used, torch.from_numpy(pixels[: len(used)]), faults

    def _slow(self, seconds: float) -> None:
        """Names the images that the threads are at: a disk of the network that is gone makes a read wait for ever."""
        rows = list(self.squares.reading.values())
        shown = ", ".join(self.source.key(row) for row in rows[:5]) + (", ..." if len(rows) > 5 else "")
        warnings.warn(f"no image came for {seconds:.0f} s; still being read: {shown}", stacklevel=2)

    def _keep(self, indices: np.ndarray) -> None:
        self.rows = self.rows[indices]
        if self.labels is not None:
            self.labels = [self.labels[i] for i in indices.tolist()]


class _Run:
    """The bad images of one pass over `images`, noted in order; stops the pass when they are too many."""

    def __init__(self, images: Images):
        self.images, self.positions, self.run = images, [], 0

    def add(self, position: int, row: int, reason: str) -> None:
        """Raises BadImage where on_bad="error"; DataError beyond 1 % (and 10), or 100 one after the other."""
        images = self.images
        if images.on_bad == "error":
            raise BadImage(f"{reason}; mend or remove it, or say on_bad=skip", images.source.key(row))
        images._bad[row] = reason
        self.run = self.run + 1 if self.positions and position - self.positions[-1] <= 1 else 1
        self.positions.append(position)
        bad, total = len(images._bad), len(images._asked)
        if too_many(bad, total) or self.run > BAD_RUN:
            first = f"{images.failed[0]['key']} ({images.failed[0]['reason']})"
            found = f"{bad} of {total} images cannot be read, too many; first: {first}"
            raise DataError(f"{found}; `diptych doctor SOURCE` lists them all: mend or remove them")


def too_many(bad: int, total: int) -> bool:
    """Whether so many unreadable images stop a run: more than 1 % of all, and more than 10."""
    return bad > max(BAD_FEW, BAD_SHARE * total)
