"""A folder of embeddings: vectors.npy, index.jsonl and meta.json."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diptych.base.errors import DataError, OutputError
from diptych.base.files import require_free_folder


class Saved(NamedTuple):
    """The result of `load_embeddings`: vectors (M, E), `index` with one row per image, and `meta`."""

    vectors: Tensor
    index: list[dict]
    meta: dict


def save_embeddings(
    folder: str | Path,
    vectors: Tensor | np.ndarray,
    keys: Sequence[str],
    *,
    labels: Sequence[int | str | None] | None = None,
    status: Sequence[str | None] | None = None,
    meta: Mapping[str, object] | None = None,
) -> Path:
    """Write vectors.npy (float32), index.jsonl and meta.json into a new `folder`, all or nothing. Returns the folder.

    keys, labels, status: one entry per requested image, in order. status: None or "ok" for an image that has a vector,
    otherwise the reason why it has none. Such an image has a row in the index, with the error, but no vector.
    index.jsonl: {"key", "label", "status": "ok" or "failed", "row": its row of vectors.npy or null[, "error"]}, ASCII.

    Raises DataError when the counts do not match, OutputError when the folder is not empty or cannot be written.
    """
    folder = require_free_folder(Path(folder))
    array = np.ascontiguousarray(torch.as_tensor(vectors).detach().cpu().numpy(), dtype=np.float32)
    index = _index(keys, labels, status)
    rows = sum(row["row"] is not None for row in index)
    if array.ndim != 2 or rows != len(array):
        raise DataError(f"{rows} images are said to have a vector, the vectors are {array.shape}; each needs one row")
    described = {
        **(meta or {}),
        "rows": rows,
        "width": array.shape[1],
        "dtype": "float32",
        "failed": len(index) - rows,
    }
    work = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
    try:
        work.mkdir(parents=True)
        with open(work / "vectors.npy", "wb") as file:
            np.save(file, array, allow_pickle=False)
            _flush(file)
        _write(work / "index.jsonl", "".join(json.dumps(row) + "\n" for row in index))
        _write(work / "meta.json", json.dumps(described, indent=2) + "\n")
        if folder.is_dir():
            folder.rmdir()  # it is empty, as checked above
        work.rename(folder)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written ({error.strerror}); it needs {array.nbytes:,} bytes") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def load_embeddings(folder: str | Path) -> Saved:
    """Read what `save_embeddings` wrote. Raises DataError when a file is missing, damaged or does not match the others."""
    folder = Path(folder)
    try:
        vectors = torch.from_numpy(np.load(folder / "vectors.npy", allow_pickle=False))
        index = [json.loads(line) for line in (folder / "index.jsonl").read_text("ascii").splitlines()]
        meta = json.loads((folder / "meta.json").read_text("ascii"))
        rows = [row["row"] for row in index if row["status"] == "ok"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{folder} holds no embeddings ({error}); `diptych embed` writes them") from error
    if vectors.ndim != 2 or rows != list(range(len(vectors))):
        shape = tuple(vectors.shape)
        raise DataError(f"{folder}: index.jsonl lists {len(rows)} vectors, vectors.npy is {shape}; embed again")
    return Saved(vectors, index, meta)


def _index(
    keys: Sequence[str], labels: Sequence[int | str | None] | None, status: Sequence[str | None] | None
) -> list[dict]:
    labels, status = (
        [None] * len(keys) if labels is None else labels,
        [None] * len(keys) if status is None else status,
    )
    if not len(keys) == len(labels) == len(status):
        raise DataError(
            f"{len(keys)} keys, {len(labels)} labels and {len(status)} states; each image needs one of each"
        )
    index, row = [], 0
    for key, label, state in zip(keys, labels, status, strict=True):
        plain = label.item() if isinstance(label, Tensor | np.generic) else label
        if state in (None, "ok"):
            index.append({"key": key, "label": plain, "status": "ok", "row": row})
            row += 1
        else:
            index.append({"key": key, "label": plain, "status": "failed", "row": None, "error": state})
    return index


def _write(path: Path, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
        _flush(file)


def _flush(file) -> None:
    file.flush()
    os.fsync(file.fileno())
