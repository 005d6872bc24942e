"""A folder of embeddings, written block by block and read without loading it.

vectors.npy    (M, E) float32, a row per image that has a vector; numpy maps it into memory as it is
index.jsonl    a line per image, in order: key, label, status, its row of vectors.npy
meta.json      what made them; written last, so that a folder which has it is complete
progress.json  only while embedding: what of the other files is safely on the disk, so that a killed command can go on
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diptych.base.errors import CheckpointError, DataError
from diptych.base.files import new_folder, read_object, read_plain
from diptych.embeddings.writer import FORMAT, INDEX, META, PROGRESS, VECTORS, Entry, Writer

__all__ = ["FORMAT", "Index", "Saved", "Writer", "load_embeddings", "map_vectors", "read_meta", "save_embeddings"]


class Saved(NamedTuple):
    """The result of `load_embeddings`: `vectors` (M, E) float32, memory-mapped; `index` with one row per image; `meta`."""

    vectors: Tensor
    index: "Index"
    meta: dict


class Index(Sequence[dict]):
    """The lines of index.jsonl: {"key", "label", "status": "ok" or "failed", "row": its row or None[, "error"]}.

    Parsed when they are read; in memory are the text and 16 bytes per image. `images`: (M,) the image of every row.
    Raises ValueError for a line that is none of these, and for rows that are not 0, 1, 2, ...
    """

    def __init__(self, text: bytes):
        self._text = text
        ends = np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n")).astype(np.int64)
        if len(text) and (not len(ends) or ends[-1] != len(text) - 1):
            raise ValueError("the last line is cut short")
        self._starts = np.concatenate([np.zeros(1, np.int64), ends + 1])
        images = [number for number, row in enumerate(self._checked()) if row is not None]
        self.images = np.asarray(images, np.int64)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(f"{i} of {len(self)} images")
        i = int(i) % len(self)
        return json.loads(self._text[self._starts[i] : self._starts[i + 1]])

    def __iter__(self) -> Iterator[dict]:
        return (self[i] for i in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def of_row(self, row: int) -> dict:
        """The line of the image whose vector is `row`."""
        return self[self.images[row]]

    def _checked(self) -> Iterator[int | None]:
        """The row of every line."""
        count = 0
        for number, line in enumerate(self, 1):
            status, row = (line["status"], line["row"]) if isinstance(line, dict) else (None, None)
            if not (isinstance(row, int) and row == count if status == "ok" else status == "failed" and row is None):
                raise ValueError(
                    f"index.jsonl, line {number}: status {status!r} and row {row!r} where row {count} is next"
                )
            if not isinstance(line["key"], str):
                raise ValueError(f"index.jsonl, line {number}: the key is not text")
            count += row is not None
            yield row


def save_embeddings(
    folder: str | Path,
    vectors: Tensor | np.ndarray,
    keys: Sequence[str],
    *,
    labels: Sequence[int | str | None] | None = None,
    status: Sequence[str | None] | None = None,
    meta: Mapping[str, object] | None = None,
) -> Path:
    """Write vectors.npy (float32), index.jsonl and meta.json into a new `folder`, atomically. Returns the folder.

    keys, labels, status: one entry per requested image, in order. status: None or "ok" for an image that has a vector,
    otherwise the reason why it has none. Such an image has a row in the index, with the error, but no vector.
    index.jsonl: {"key", "label", "status": "ok" or "failed", "row": its row of vectors.npy or null[, "error"]}, ASCII.

    Raises DataError when the counts do not match, OutputError when the folder is not empty or cannot be written.
    """
    folder = Path(folder)
    array = np.ascontiguousarray(torch.as_tensor(vectors).detach().cpu().numpy(), dtype=np.float32)
    entries = as_entries(keys, labels, status)
    rows = sum(entry.error is None for entry in entries)
    if array.ndim != 2 or rows != len(array):
        raise DataError(f"{rows} images are said to have a vector, the vectors are {array.shape}; each needs one row")
    with new_folder(folder) as work, Writer(work, {}) as writer:
        writer.add(entries, array)
        writer.finish(meta or {})
    return folder


def as_entries(
    keys: Sequence[str], labels: Sequence[int | str | None] | None, status: Sequence[str | None] | None
) -> list[Entry]:
    labels, status = (
        [None] * len(keys) if labels is None else labels,
        [None] * len(keys) if status is None else status,
    )
    if not len(keys) == len(labels) == len(status):
        raise DataError(
            f"{len(keys)} keys, {len(labels)} labels and {len(status)} states; each image needs one of each"
        )
    plain = [label.item() if isinstance(label, Tensor | np.generic) else label for label in labels]
    errors = [None if state in (None, "ok") else state for state in status]
    return [Entry(*parts) for parts in zip(keys, plain, errors, strict=True)]


def load_embeddings(folder: str | Path) -> Saved:
    """Read a folder of embeddings; vectors are memory-mapped, and changing them changes no file.

    Raises DataError when a file is missing, damaged or does not match the others, and for an unfinished embedding.
    """
    folder = Path(folder)
    meta = read_meta(folder)
    vectors = map_vectors(folder)
    try:
        index = Index(read_plain(folder / INDEX))
    except (ValueError, TypeError, KeyError, RecursionError, CheckpointError) as error:
        raise no_embeddings(folder, error) from None
    if not len(index.images) == len(vectors) == meta["rows"] or vectors.shape[1] != meta["width"]:
        shape = tuple(vectors.shape)
        raise DataError(f"{folder}: index.jsonl lists {len(index.images)} vectors, vectors.npy is {shape} and meta.json "
                        f"says {meta['rows']} x {meta['width']}; embed again")  # fmt: skip
    return Saved(vectors, index, meta)


def read_meta(folder: Path) -> dict:
    """meta.json of a complete folder. Raises DataError, also for one of another version and for an unfinished one."""
    if (folder / PROGRESS).is_file() and not (folder / META).exists():
        raise DataError(f"{folder}: its embedding has not finished; run `diptych embed` again with --resume")
    try:
        meta = read_object(folder / META)
    except CheckpointError as error:
        raise no_embeddings(folder, error) from None
    if meta.get("format") != FORMAT:
        raise DataError(
            f"{folder} has format {meta.get('format')!r}, this version of diptych reads {FORMAT}; embed again"
        )
    for key in ("rows", "width", "failed"):
        if not isinstance(meta.get(key), int):
            raise no_embeddings(folder, f"meta.json: {key} is {meta.get(key)!r}")
    return meta


def map_vectors(folder: Path) -> Tensor:
    """vectors.npy, memory-mapped: (M, E) float32. Raises DataError."""
    file = folder / VECTORS
    try:
        if not file.is_file():
            raise ValueError("vectors.npy is missing, or no file")
        # "c": copy on write. torch wants arrays that can be written, and no file changes.
        array = np.load(file, mmap_mode="c", allow_pickle=False)
        if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype != np.float32:
            raise ValueError("vectors.npy is not an array (M, E) of float32")
        return torch.from_numpy(array)
    except (OSError, ValueError, TypeError, EOFError, SyntaxError) as error:
        raise no_embeddings(folder, error) from None


def no_embeddings(folder: Path, reason: object) -> DataError:
    return DataError(f"{folder} holds no embeddings ({' '.join(str(reason).split())}); `diptych embed` writes them")
