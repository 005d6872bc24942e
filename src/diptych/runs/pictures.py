"""The arrays that a run keeps for its report: the files pictures/NAME.npz, their keys, their writer and their reader."""

import io
import itertools
import lzma
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diptych.base.errors import CheckpointError
from diptych.base.files import make_folder, read_plain, write_file

MOST_ARRAY_BYTES = 512 * 2**20  # of one file's arrays, unpacked
# What numpy and zipfile raise for damaged files.
FAULTS = (OSError, ValueError, KeyError, EOFError, MemoryError, RuntimeError, OverflowError, TypeError, SyntaxError,
          lzma.LZMAError, zipfile.BadZipFile, zlib.error)  # fmt: skip


class Picture(NamedTuple):
    """The keys of one file of arrays. drawn: whether the report draws it."""

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    drawn: bool = True


PICTURES = {
    "views": Picture(("originals", "view_0")),  # and view_1, view_2, ...
    "correlation": Picture(("matrix",)),
    "projections": Picture(("z1", "z2"), drawn=False),  # `evaluate` diagnoses them
    # of the last evaluation, for `compare` (answers.py)
    "answers": Picture(("protocols", "subjects", "right", "names", "labels", "digests"), drawn=False),
    # m mapped images, k neighbours; `shows` says what they are. Keys that name images hold their places, 0 to m - 1.
    "map": Picture(
        ("xy", "labels", "thumbnails", "names", "shows"),
        (
            "classes",
            "made_by",
            "near_trained",
            "near_untrained",
            "near_pixels",
            "cosine_trained",
            "cosine_untrained",
            "cosine_pixels",
            "cluster",
            "members",
            "oddness",
            "copies",
            "likeness",
            "queries",
            "predicted",
            "confidence",
            "large",
            "large_rows",
        ),
    ),
    # Of every test image, by one protocol.
    "predictions": Picture(("labels", "predicted", "confidence", "classes", "protocol")),
}
# The charts and the contact sheet that a report also leaves as figures/NAME.png.
FIGURES = ("loss", "gradient_norm", "lr", "knn_accuracy", "rank", "spread", "correlation", "images_per_second", "views")


def picture_path(run_folder: Path, name: str) -> Path:
    """The file of the arrays called `name`, one of PICTURES."""
    if name not in PICTURES:
        raise ValueError(f"no picture is named {name!r}; there are: {', '.join(PICTURES)}")
    return run_folder / "pictures" / f"{name}.npz"


def optional_keys(name: str, keys: Collection[str]) -> list[str]:
    """The optional keys of picture `name` among `keys`; of "views", view_1, view_2, ... up to the first gap."""
    if name == "views":
        return list(itertools.takewhile(keys.__contains__, (f"view_{index}" for index in itertools.count(1))))
    return [key for key in PICTURES[name].optional if key in keys]


def save_picture(run_folder: Path, name: str, **arrays: np.ndarray) -> Path:
    """Write `arrays` to pictures/NAME.npz of a run.

    Raises ValueError for arrays other than those that PICTURES lists, OutputError when the file cannot be written.
    """
    path = picture_path(run_folder, name)
    required = PICTURES[name].required
    missing = sorted(set(required) - set(arrays))
    unknown = sorted(set(arrays) - {*required, *optional_keys(name, arrays)})
    if missing or unknown:
        raise ValueError(
            f"pictures/{name}.npz needs the arrays {', '.join(required)}; missing: {', '.join(missing) or 'none'}, "
            f"unknown: {', '.join(unknown) or 'none'}"
        )
    make_folder(path.parent)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_file(path, buffer.getvalue())
    return path


def read_picture(run_folder: Path, name: str) -> dict[str, np.ndarray]:
    """The required and the optional arrays of pictures/NAME.npz. Raises CheckpointError, "PATH: reason", for a damaged file."""
    path = picture_path(run_folder, name)
    try:
        file = io.BytesIO(read_plain(path, MOST_ARRAY_BYTES))
        with zipfile.ZipFile(file) as archive:
            if sum(member.file_size for member in archive.infolist()) > MOST_ARRAY_BYTES:
                raise ValueError(f"its arrays are larger than {MOST_ARRAY_BYTES // 2**20} MiB")
        with np.load(file, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in (*PICTURES[name].required, *optional_keys(name, arrays))}
    except FAULTS as error:
        raise CheckpointError(f"{path}: {str(error).strip() or type(error).__name__}") from None
