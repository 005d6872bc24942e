"""One labelled set as two: images to fit on, and images to test on."""

from typing import Annotated

import numpy as np
import torch

from diptych.base.errors import DataError
from diptych.base.random_at import random_at
from diptych.base.ranges import Range, Seed, checked
from diptych.data.groups import group_numbers
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

    group_by: as in `groups.group_numbers`, such as "patient_([0-9]+)": images of one group, such as frames of a video,
    stay together, and the shares are approximate. Each class keeps at least one image in the training set. Raises
    DataError for images without labels, a class of one image, and a grouping that leaves one of the sets empty;
    RecipeError for an invalid pattern.
    """
    if images.labels is None or images.classes is None:
        raise DataError(
            "images without labels cannot be split for a test; use class folders, or --labels FILE.csv:COLUMN"
        )
    labels = np.array(images.labels)
    if lonely := [images.classes[label] for label, count in enumerate(np.bincount(labels)) if count == 1]:
        raise DataError(f"class {lonely[0]!r} has one image, which cannot be split; add images, or give --test")
    groups = None if group_by is None else group_numbers(group_by, [str(key) for key in images.keys])
    draw = random_at(seed, "split")
    test = stratified(labels, share, draw) if groups is None else grouped(labels, groups, share, draw)
    if test.all() or not test.any():
        raise DataError(f"group_by={group_by!r}: no split of these groups has images on both sides")
    return images.subset(np.flatnonzero(~test)), images.subset(np.flatnonzero(test))


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
