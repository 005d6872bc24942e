"""The difference of two accuracies on the same test images. N: test images, S: seeds.

Both classifiers answer the same images, so only the images on which they disagree count. A comparison of two separate
intervals ignores that and overlooks differences that are real.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diptych.base.errors import DataError
from diptych.embeddings.nearest import Array

NORMAL = 1.959964  # 97.5 % quantile of the normal distribution
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)  # of Student's t, 1 to 10 degrees


@dataclass(frozen=True)
class Paired:
    """Accuracy of a less that of b, as a share. interval: 95 %. p: of the exact McNemar test; None for several seeds."""

    difference: float
    interval: tuple[float, float]
    p: float | None

    @property
    def significant(self) -> bool:
        """Whether the interval excludes 0 and, if there is a test, p is below 0.05."""
        return not self.interval[0] <= 0 <= self.interval[1] and (self.p is None or self.p < 0.05)


def paired_difference(correct_a: Array, correct_b: Array) -> Paired:
    """The accuracy of a less that of b, from right or wrong on the same images: bool (N,), or (S, N) of S seeds.

    (N,): the interval of Agresti & Min 2005 (half an image added to each cell) and the exact test of McNemar. Both cover the
    choice of test images. (S, N): the mean over seeds; row s of both has the same seed. Its interval covers the choice of
    images and the variation between seeds, whose variances are added; Student's quantile has the degrees of freedom of
    Satterthwaite. Raises DataError for arrays that are not boolean, have different shapes or hold no image.
    """
    a, b = checked(correct_a), checked(correct_b)
    if a.shape != b.shape:
        raise DataError(f"a paired comparison needs the same test images, got {tuple(a.shape)} and {tuple(b.shape)}")
    if len(a) > 1:
        return over_seeds(a.double() - b.double())
    more, fewer, n = int((a & ~b).sum()), int((b & ~a).sum()), a.shape[1]
    middle = (more - fewer) / (n + 2)
    half = NORMAL * math.sqrt(((more + fewer + 1) - (more - fewer) ** 2 / (n + 2)) / (n + 2) ** 2)
    interval = max(-1.0, middle - half), min(1.0, middle + half)
    return Paired((more - fewer) / n, interval, mcnemar(more, fewer))


def mcnemar(more: int, fewer: int) -> float:
    """Two-sided p of the exact test: the images on which a alone or b alone is right are a fair coin's throws."""
    n, smaller = more + fewer, min(more, fewer)
    logs = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(smaller + 1)]
    return min(1.0, 2 * math.fsum(math.exp(log - n * math.log(2)) for log in logs))


def over_seeds(differences_SN: Tensor) -> Paired:
    """The mean of the differences, with the interval of `paired_difference` for several seeds."""
    seeds, n = differences_SN.shape
    mean = differences_SN.mean().item()
    of_images = differences_SN.mean(0).var(correction=0).item() / n
    of_seeds = differences_SN.mean(1).var().item() / seeds
    degrees = (of_images + of_seeds) ** 2 * (seeds - 1) / of_seeds**2 if of_seeds else math.inf
    half = student(degrees) * math.sqrt(of_images + of_seeds)
    return Paired(mean, (max(-1.0, mean - half), min(1.0, mean + half)), None)


def student(degrees: float) -> float:
    """The 97.5 % quantile of Student's t; degrees of freedom are rounded down."""
    if degrees < len(STUDENT) + 1:
        return STUDENT[max(0, math.floor(degrees) - 1)]
    z = NORMAL  # Abramowitz & Stegun 26.7.5; exact to 0.003 from 11 degrees on
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)


def checked(correct: Array) -> Tensor:
    """(S, N) bool on the CPU. Raises DataError for anything else, and without images."""
    rows = torch.as_tensor(correct).cpu()
    if rows.dtype != torch.bool or rows.ndim not in (1, 2) or not rows.numel():
        raise DataError(
            f"right or wrong per image is a boolean array (N,) or (S, N), got {tuple(rows.shape)} {rows.dtype}"
        )
    return rows.reshape(-1, rows.shape[-1])
