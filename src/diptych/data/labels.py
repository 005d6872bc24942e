"""Class numbers of images from folder names, columns and arrays."""

import warnings
from collections.abc import Sequence

import numpy as np

from diptych.base.errors import DataError, RecipeError
from diptych.data.groups import column_of
from diptych.data.source import Keys, Source, key_of

LABELS = ("auto", "folder", "none")
SPLITS = {b"train", b"training", b"test", b"testing", b"val", b"valid", b"validation"}
MAX_CLASSES = 1 << 20


def check_label_option(labels: str) -> None:
    """Raises RecipeError unless `labels` is one of "auto", "folder", "none"."""
    if labels not in LABELS:
        raise RecipeError(f"labels={labels!r} is not one of {', '.join(LABELS)}")


def no_folders(path: str, labels: str) -> None:
    """Check the option for a source without class folders. Raises RecipeError unless `labels` is "auto" or "none"."""
    check_label_option(labels)
    if labels == "folder":
        raise RecipeError(f"{path} has no class folders: use labels='auto' for the labels in it, or 'none'")


def label_level(keys: Keys, labels: str, top: int = 0) -> int | None:
    """The level of the class folder in every name: `top` (0 is the first), or None for no labels.

    "folder": every image must be in a class folder. "auto": labels only if every image is, and there are two or more.
    Raises DataError and RecipeError.
    """
    check_label_option(labels)
    if labels == "none":
        return None
    classes = set()
    for name in keys.raws():
        parts = name.split(b"/", top + 1)
        if len(parts) < top + 2:
            if labels == "auto":
                return None
            raise DataError(f"{key_of(name)} is in no class folder: move it into one, or pass labels='none'")
        classes.add(parts[top])
    if labels == "auto" and len(classes) < 2:
        return None
    if labels == "auto" and {name.lower() for name in classes} <= SPLITS:
        splits = ", ".join(sorted(map(key_of, classes)))
        warnings.warn(f"no labels read: the folders {splits} look like splits; name one of them", stacklevel=2)
        return None
    return top


def numbered(
    labels: np.ndarray | Sequence, count: int, where: str, classes: list[str] | None = None
) -> tuple[np.ndarray, list[str]]:
    """Labels (count,) or (count, 1) -> (class numbers (count,) int64, -1 for none; the names of the classes).

    Numbers are used unchanged; `classes` names them, else their digits do. Strings are numbered in sorted
    order. Raises DataError naming `where`.
    """
    labels = np.asarray(labels)
    if labels.shape not in ((count,), (count, 1)):
        raise DataError(f"{where}: {count} images need labels of shape ({count},), these are {labels.shape}")
    labels = labels.reshape(-1)
    if labels.dtype.kind in "US":
        names, numbers = np.unique(labels.astype(str), return_inverse=True)
        return numbers.astype(np.int64), names.tolist()
    if labels.dtype.kind not in "iu":
        raise DataError(f"{where}: labels must be whole numbers or words, not {labels.dtype}")
    low, high = (int(labels.min()), int(labels.max())) if count else (0, -1)
    most = MAX_CLASSES if classes is None else len(classes)
    if low < -1 or high >= most:
        raise DataError(f"{where}: labels {low} to {high} are not class numbers 0 to {most - 1} (-1: none)")
    return labels.astype(np.int64), classes or [str(number) for number in range(high + 1)]


def is_table(labels: object) -> bool:
    """Whether labels are "FILE.csv:COLUMN"."""
    return isinstance(labels, str) and ".csv:" in labels


def labels_of(source: Source, labels: str | Sequence | np.ndarray) -> tuple[list[int] | None, list[str] | None]:
    """`all_labels` by the option `labels` of `images`: from the source, a table, or one for each image."""
    if is_table(labels):
        table = column_of(str(labels), "labels")
        names = [table.get(source.key(i), "") for i in range(len(source))]
        if "" in names:
            first = source.key(names.index(""))
            raise DataError(f"labels {labels}: {names.count('')} of {len(names)} images have no label (first: {first}); the "
                            "first column holds the names, as this one, and all images need a label")  # fmt: skip
        return all_labels(source, names)
    if isinstance(labels, str):
        return (None, None) if labels == "none" else all_labels(source)
    return all_labels(source, labels)


def all_labels(source: Source, given: Sequence | np.ndarray | None = None) -> tuple[list[int] | None, list[str] | None]:
    """(class number of every image, class names), given or from the source; (None, None) without labels.

    Classes are in the order of the source, else sorted. Raises DataError if only some images have a label.
    """
    if given is not None:
        numbers, classes = numbered(given, len(source), "labels")
    else:
        names = [source.label(i) for i in range(len(source))]
        classes = getattr(source, "classes", None) or sorted({name for name in names if name is not None})
        number_of = {name: number for number, name in enumerate(classes)}
        numbers = np.array([-1 if name is None else number_of[name] for name in names])
    unknown = np.flatnonzero(numbers < 0)
    if len(unknown) == len(numbers):
        return None, None
    if len(unknown):
        some = f"{len(unknown)} of {len(numbers)} images have no label (first: {source.key(int(unknown[0]))})"
        raise DataError(f"{some}: labels='none' ignores them")
    shared = list(range(int(numbers.max()) + 1))  # one object per class; tolist would create one of 32 bytes per image
    return [shared[number] for number in numbers], classes
