"""pictures/answers.npz: which test images were answered right, by protocol and subject, so that runs can be compared in pairs.

It takes a bit an image and row, and the names of the images: 80 KB for 10,000 images.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diptych.base.errors import CheckpointError, DataError
from diptych.data.source import digest
from diptych.runs.pictures import picture_path, read_picture, save_picture

SEPARATOR = "\n"  # names of images and classes hold no control characters


@dataclass(frozen=True)
class Answers:
    """names, labels: of the test images, in order. test: hash of both; images: of their contents; train: of the names and
    labels fitted on. right: (protocol, subject) -> bool (S, N) of S seeds."""

    names: list[str]
    labels: list[str]
    test: str
    images: str
    train: str
    right: dict[tuple[str, str], np.ndarray]


def digest_of(names: list[str], labels: list[str]) -> str:
    """Hash of the names and labels of images, in order."""
    return digest(*(f"{name}\0{label}\n" for name, label in zip(names, labels, strict=True)))


def save_answers(folder: Path, answers: Answers) -> None:
    """Write them to a run folder. Rows of an earlier evaluation on the same test images stay where these have none."""
    right = dict(answers.right)
    try:
        earlier = read_answers(folder)
    except (CheckpointError, DataError):
        earlier = None
    if earlier is not None and (earlier.test, earlier.images) == (answers.test, answers.images):
        right = earlier.right | right
    rows = [(*key, row) for key, table in right.items() for row in table]
    protocols, subjects, table = zip(*rows, strict=True)
    save_picture(folder, "answers", protocols=np.array(protocols), subjects=np.array(subjects),
                 right=np.packbits(np.stack(table), axis=1), names=blob(answers.names), labels=blob(answers.labels),
                 digests=np.array([answers.test, answers.images, answers.train]))  # fmt: skip


def has_answers(folder: Path) -> bool:
    return picture_path(folder, "answers").is_file()


def read_answers(folder: Path) -> Answers:
    """Those of a run. Raises DataError where there are none, CheckpointError for a damaged file."""
    path = picture_path(folder, "answers")
    if not has_answers(folder):
        raise DataError(f"{folder} has not been evaluated image by image: run `diptych evaluate {folder} --train SOURCE "
                        "--test SOURCE` again")  # fmt: skip
    arrays = read_picture(folder, "answers")
    try:
        names, labels = (bytes(arrays[key]).decode().split(SEPARATOR) for key in ("names", "labels"))
        rows = np.unpackbits(arrays["right"], axis=1, count=len(names)).astype(bool)
        keys = list(zip(arrays["protocols"].tolist(), arrays["subjects"].tolist(), strict=True))
        test, images, train = (str(text) for text in arrays["digests"])
        right = {key: np.stack([row for row, other in zip(rows, keys, strict=True) if other == key]) for key in keys}
        if test != digest_of(names, labels) or not all(isinstance(part, str) for key in keys for part in key):
            raise ValueError("its names and labels are not those that it was written with")
    except (ValueError, TypeError, IndexError, OverflowError) as error:
        raise CheckpointError(
            f"{path}: {str(error).strip() or type(error).__name__}; remove it and evaluate again"
        ) from None
    return Answers(names, labels, test, images, train, right)


def blob(texts: list[str]) -> np.ndarray:
    return np.frombuffer(SEPARATOR.join(texts).encode(), np.uint8)
