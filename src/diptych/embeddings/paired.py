"""The difference of two accuracies on the same test images. N: test images, S: seeds.

Both classifiers answer the same images, so only the images on which they disagree count. A comparison of two separate
intervals ignores that and overlooks differences that are real.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from diptych.base.errors import DataError
from diptych.embeddings.intervals import FEWEST_GROUPS, spread
from diptych.embeddings.nearest import Array
from diptych.embeddings.scores import accuracy_interval

NORMAL = 1.959964  # 97.5 % quantile of the normal distribution


@dataclass(frozen=True)
class Paired:
    """Accuracy of a less that of b, as a share, with its 95 % interval.

    p: of the exact McNemar test; over seeds or groups, the level at which the interval reaches 0. over: what the interval
    covers. needed: test images that would show this difference in 80 % of all samples, those that there are at least; None
    where no number would. smallest: the difference that these images show as often.
    """

    difference: float
    interval: tuple[float, float]
    p: float
    over: str
    needed: int | None
    smallest: float

    @property
    def significant(self) -> bool:
        """Whether the interval excludes 0 and p is below 0.05."""
        return not self.interval[0] <= 0 <= self.interval[1] and self.p < 0.05


def paired_difference(
    correct_a: Array, correct_b: Array, groups: np.ndarray | None = None, *, same_seeds: bool = True
) -> Paired:
    """The accuracy of a less that of b, from right or wrong on the same images: bool (N,), or (S, N) of S seeds.

    (N,): the interval of Agresti & Min 2005 (half an image added to each cell) and the exact test of McNemar. Both cover the
    choice of test images. (S, N): the mean over seeds, whose interval covers images and seeds (`intervals.spread`). same_seeds:
    row s of both has the same seed; otherwise, and where the numbers of rows differ, seeds are independent. Of one run
    against several, seeds cannot be covered: the interval is over images. groups: (N,) numbers of groups 0 to G - 1 of
    images that are not independent; the interval is then over groups instead of images.
    Raises DataError for arrays that are not boolean, have different images or hold none, and for fewer than 8 groups.
    """
    a, b = checked(correct_a), checked(correct_b)
    if a.shape[1] != b.shape[1]:
        raise DataError(f"a paired comparison needs the same test images, got {a.shape[1]:,} and {b.shape[1]:,}")
    count, groups = a.shape[1], checked_groups(groups, a.shape[1])
    difference = float(a.mean() - b.mean())
    covers_seeds = min(len(a), len(b)) > 1
    if covers_seeds and not (same_seeds and len(a) == len(b)):
        variation = spread([a, b], [1, -1], groups)
    else:
        table = a - b if len(a) == len(b) else a.mean(0, keepdims=True) - b.mean(0, keepdims=True)
        variation = spread([table], [1], groups)
    interval, p = variation.interval(difference), None
    if len(a) == len(b) == 1 and groups is None:
        more, fewer = int((a > b).sum()), int((b > a).sum())
        interval, p = agresti_min(more, fewer, count), mcnemar(more, fewer)
    units = "test images" if groups is None else f"{int(groups.max()) + 1} groups of test images"
    return Paired(difference, interval, variation.p(difference) if p is None else p,
                  f"{units} and seeds" if covers_seeds else units,
                  variation.images_needed(difference, count), variation.smallest())  # fmt: skip


def mean_interval(correct: Array, groups: np.ndarray | None = None) -> tuple[float, float]:
    """95 % interval of an accuracy from right or wrong, (N,) or (S, N): Wilson's of one run, else as `paired_difference`."""
    rows = checked(correct)
    groups = checked_groups(groups, rows.shape[1])
    if len(rows) == 1 and groups is None:
        return accuracy_interval(rows[0])
    low, high = spread([rows], [1], groups).interval(float(rows.mean()))
    return max(0.0, low), high


def agresti_min(more: int, fewer: int, count: int) -> tuple[float, float]:
    """The interval of a difference of two paired shares, from the images on which a alone and b alone is right."""
    middle = (more - fewer) / (count + 2)
    half = NORMAL * math.sqrt(((more + fewer + 1) - (more - fewer) ** 2 / (count + 2)) / (count + 2) ** 2)
    return max(-1.0, middle - half), min(1.0, middle + half)


def mcnemar(more: int, fewer: int) -> float:
    """Two-sided p of the exact test: the images on which a alone or b alone is right are a fair coin's throws."""
    n, smaller = more + fewer, min(more, fewer)
    logs = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(smaller + 1)]
    return min(1.0, 2 * math.fsum(math.exp(log - n * math.log(2)) for log in logs))


def checked_groups(groups: np.ndarray | None, count: int) -> np.ndarray | None:
    """Groups as numbers 0 to G - 1. Raises DataError where they do not fit the images, or are fewer than 8."""
    if groups is None:
        return None
    if len(groups) != count:
        raise DataError(f"there are {len(groups):,} group numbers for {count:,} test images")
    numbers = np.unique(np.asarray(groups), return_inverse=True)[1]
    if numbers.max() + 1 < FEWEST_GROUPS:
        raise DataError(f"an interval over groups takes {FEWEST_GROUPS} groups of test images at least, these have "
                        f"{numbers.max() + 1}; compare by image")  # fmt: skip
    return numbers


def checked(correct: Array) -> np.ndarray:
    """(S, N) float64, 0 or 1. Raises DataError for anything but bool, and without images."""
    rows = torch.as_tensor(correct).cpu()
    if rows.dtype != torch.bool or rows.ndim not in (1, 2) or not rows.numel():
        raise DataError(
            f"right or wrong per image is a boolean array (N,) or (S, N), got {tuple(rows.shape)} {rows.dtype}"
        )
    return rows.reshape(-1, rows.shape[-1]).double().numpy()
