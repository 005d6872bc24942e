"""One labelled set as two: images to fit on, and images to test on."""

import re
from typing import Annotated

import numpy as np
import torch

from diptych.base.errors import DataError, RecipeError
from diptych.base.random_at import random_at
from diptych.base.ranges import Range, Seed, checked
from diptych.data.images import Images


@checked
def split(
    images: Images,
    share: Annotated[float, Range(above=0, below=1)] = 0.2,
    *,
    group_by: str | None = None,
    seed: Seed = 0,
) -> tuple[Images, Images]:
    """Split labelled images at random into a training and a test set; the test set gets `share` of each class.

    group_by: a regular expression that finds the group of an image in its key (its first bracket, else all of it), such as
    "patient_(\\d+)": images of one group stay together, as frames of one video must, and the shares hold roughly. Each class
    keeps at least one image in the training set. Raises DataError for images without labels, a class of one image, and a
    grouping that leaves one of the sets empty; RecipeError for a pattern that is none.
    """
    if images.labels is None or images.classes is None:
        raise DataError("images without labels cannot be split for a test; use a folder of class folders")
    labels = np.array(images.labels)
    if lonely := [images.classes[label] for label, count in enumerate(np.bincount(labels)) if count == 1]:
        raise DataError(f"class {lonely[0]!r} has one image, which cannot be split; add images, or give --test")
    groups = np.arange(len(labels)) if group_by is None else groups_of(images, group_by)
    draw = random_at(seed, "split")
    test = grouped(labels, groups, share, draw) if group_by is not None else stratified(labels, share, draw)
    if test.all() or not test.any():
        raise DataError(
            f"group_by={group_by!r} makes {len(set(groups.tolist()))} group(s): no split has images on both sides"
        )
    return images.subset(np.flatnonzero(~test)), images.subset(np.flatnonzero(test))


def groups_of(images: Images, pattern: str) -> np.ndarray:
    """The number of each image's group, (N,). Raises DataError for an image whose key the pattern does not match."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise RecipeError(f"group_by={pattern!r} is no regular expression: {error}") from error
    names: dict[str, int] = {}
    numbers = []
    for key in images.keys:
        match = compiled.search(str(key))
        if match is None:
            raise DataError(f"group_by={pattern!r} does not match {key!r}; it must match the key of every image")
        numbers.append(names.setdefault(match[1] or "" if compiled.groups else match[0], len(names)))
    return np.array(numbers)


def stratified(labels: np.ndarray, share: float, draw: torch.Generator) -> np.ndarray:
    """Which images are for the test, (N,) bool: `share` of each class, one at least, and never all."""
    test = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        count = min(max(1, round(share * len(rows))), len(rows) - 1)
        test[rows[torch.randperm(len(rows), generator=draw)[:count].numpy()]] = True
    return test


def grouped(labels: np.ndarray, groups: np.ndarray, share: float, draw: torch.Generator) -> np.ndarray:
    """As `stratified`, by groups in random order: one is taken while it lacks images of one of its classes."""
    totals = np.bincount(labels)
    wanted, taken = share * totals, np.zeros(len(totals), int)
    test = np.zeros(len(labels), bool)
    for group in torch.randperm(int(groups.max()) + 1, generator=draw).tolist():
        counts = np.bincount(labels[groups == group], minlength=len(totals))
        present = counts > 0
        if (taken + counts < totals)[present].all() and (taken + counts / 2 <= wanted)[present].any():
            test[groups == group] = True
            taken += counts
    return test
