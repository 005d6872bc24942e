"""Groups of images that are not independent: frames of a video, tiles of a slide, photographs of a patient."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from diptych.base.errors import CheckpointError, DataError, RecipeError
from diptych.base.files import read_plain

FOLDER = "folder"


def group_numbers(key: str, names: Sequence[str]) -> np.ndarray:
    """The group of each image as a number.

    key: "folder" (the folder of each name), FILE.csv:COLUMN (a table whose first column holds the names), or a regular
    expression with one part in parentheses, which is the group: "(video_[0-9]+)". Raises RecipeError for a key that cannot be
    read and for a column that is missing, DataError for names without a group.
    """
    if key == FOLDER:
        groups: list[str | None] = [str(PurePosixPath(name).parent) for name in names]
    elif ".csv:" in key:
        table = column_of(key, "--group-by")
        groups = [table.get(name) for name in names]
    else:
        groups = [part[1] if (part := pattern_of(key).search(name)) else None for name in names]
    if None in groups:
        name = names[groups.index(None)]
        raise DataError(
            f"--group-by {key}: {groups.count(None):,} of {len(names):,} images have no group (first: {name})"
        )
    return np.unique(np.array(groups), return_inverse=True)[1]


def pattern_of(key: str) -> re.Pattern:
    try:
        pattern = re.compile(key)
    except re.error as error:
        raise RecipeError(f"--group-by {key!r} is not a regular expression ({error})") from None
    if pattern.groups != 1:
        raise RecipeError(f"--group-by {key!r} is not `folder`, FILE.csv:COLUMN, nor a regular expression with one part in "
                          "parentheses, as '(video_[0-9]+)'")  # fmt: skip
    return pattern


def column_of(key: str, option: str) -> dict[str, str]:
    """Name -> value, from the first column of FILE.csv and COLUMN; key: "FILE.csv:COLUMN". option: names it in an error.

    Raises DataError for a file that cannot be read, RecipeError for a missing column.
    """
    file, _, column = key.rpartition(":")
    try:
        header, *rows = list(csv.reader(read_plain(Path(file)).decode("utf-8-sig").splitlines())) or [[]]
    except (CheckpointError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{option} {key}: {error}") from None
    if column not in header[1:]:
        known = ", ".join(header[1:]) or "none"
        raise RecipeError(f"{option}: {file} has no column {column!r} after that of the names; it has {known}")
    place = header.index(column)
    return {row[0]: row[place] for row in rows if len(row) > place}
