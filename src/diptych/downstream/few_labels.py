"""Which labelled images are used: a share or a number of each class, balanced, seeded and nested."""

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from diptych.base.errors import DataError, RecipeError
from diptych.base.random_at import random_at
from diptych.data.images import Images
from diptych.downstream.classifier import class_names, readable
from diptych.embeddings.scores import check_classes


def parse_labels(labels: float | str) -> float | int:
    """A share of each class as float, or a number of images of each class as int ("10pc", "10 per class")."""
    text = str(labels).strip().lower()
    if (count := re.fullmatch(r"(\d+) ?(pc|per class)", text)) and int(count[1]) > 0:
        return int(count[1])
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise RecipeError(
            f"labels (--share) is {labels!r}; give a share such as 0.01 (1.0: all), or 10pc for 10 of each class"
        )
    return share


def subset(labels: Sequence[str] | Sequence[int], amount: float | int, seed: int) -> Tensor:
    """The indices of the images whose labels are used, sorted: the first of each class in a random order given by `seed`.

    amount: a share (float) of each class, rounded, at least one image, or a number (int) of images per class. A smaller
    subset is part of a larger one of the same seed. Raises DataError when a class has fewer images than that number.
    """
    members: dict[str | int, list[int]] = {}
    for row in torch.randperm(len(labels), generator=random_at(seed, "labels", "subset")).tolist():
        members.setdefault(labels[row], []).append(row)
    chosen: list[int] = []
    for label, rows in members.items():
        if isinstance(amount, int) and len(rows) < amount:
            raise DataError(
                f"class {label!r} has {len(rows)} images, fewer than the {amount} requested; lower labels (--share)"
            )
        chosen += rows[: amount if isinstance(amount, int) else max(1, round(amount * len(rows)))]
    return torch.tensor(sorted(chosen))


def take_labels(train: Images, amount: float | int, seed: int) -> Images:
    """The images of `subset`. From a set that is not in memory, only these are read."""
    train.prepare()
    return readable(train.subset(subset(class_names(train, "training"), amount, seed)))


def require_labels(train: Images, test: Images, amount: float | int, seed: int) -> None:
    """Raises DataError when labels are missing, do not match between the sets, or are too few, before any image is read."""
    labels = class_names(train, "training")
    check_classes(labels, class_names(test, "test"))
    subset(labels, amount, seed)


def least_to_most(counts: Tensor) -> str:
    """The range of `counts` as text: `5`, or `4 to 6`."""
    least, most = int(counts.min()), int(counts.max())
    return str(most) if least == most else f"{least} to {most}"
