"""How accuracy grows with the number of labels: error(n) = c + a (n + d)^-b, fitted to some sizes, with a band for others.

n: labels; c: the error that no number of labels removes; d: labels that go by before the curve bends, as with wide embeddings.
The band is that of all such curves, each with the weight that the measurements give it: b, c and d on a grid, a by weighted
least squares, and a misfit of the formula, larger for small n, where real curves leave it. So it widens where the
measurements leave the curve open. Nothing in it is random.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from diptych.base.errors import DataError

FEWEST_SIZES = 5  # below, four parameters fit anything
POWERS = np.geomspace(0.08, 4, 40)
FLOORS = np.linspace(0, 1, 25)[:-1]  # c, as a share of the smallest error
DELAYS = np.array([0, 0.05, 0.15, 0.4, 1, 2.5])  # d, as a share of the largest size
MISFITS = np.geomspace(5e-4, 0.1, 12)
CANDIDATES = 512
LEAST_DEVIATION = 2e-3  # of the error at a size, where draws hardly differ


@dataclass(frozen=True)
class Forecast:
    """The accuracy at n labels, its 95 % band, and whether n is beyond the measured sizes."""

    labels: int
    accuracy: float
    low: float
    high: float
    beyond: bool


@dataclass(frozen=True)
class LearningCurve:
    """A fitted curve: a, b, c, d of the best candidate, and all candidates, as often as their weight says."""

    a: float
    b: float
    c: float
    d: float
    measured: tuple[int, int]  # the smallest and the largest size
    powers: np.ndarray = field(repr=False)  # (CANDIDATES,), as the following
    floors: np.ndarray = field(repr=False)
    delays: np.ndarray = field(repr=False)
    factors: np.ndarray = field(repr=False)  # a of each
    variances: np.ndarray = field(repr=False)  # of that a
    misfits: np.ndarray = field(repr=False)
    draw: float = field(repr=False, default=0.0)  # variance of the mean of as many draws at the largest size

    def at(self, labels: int) -> Forecast:
        """The forecast for the mean accuracy of as many draws of `labels` labels."""
        scale = (labels + self.delays) ** -self.powers
        means = self.floors + self.factors * scale
        far = 1 + abs(math.log2(max(1.0, labels / self.measured[1])))
        draw = self.draw * min(1.0, self.measured[1] / labels)
        deviations = np.sqrt(self.variances * scale**2 + self.misfits**2 * far + draw)
        low, middle, high = mixture_quantiles(means, deviations, (0.025, 0.5, 0.975))
        accuracy = 1 - np.clip([high, middle, low], 0, 1)
        return Forecast(labels, float(accuracy[1]), float(accuracy[0]), float(accuracy[2]), labels > self.measured[1])

    def labels_for(self, accuracy: float, most: int = 10**8) -> int | None:
        """The labels at which the forecast reaches `accuracy`; None where up to `most` do not."""
        low, high = 1, most
        if self.at(high).accuracy < accuracy:
            return None
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.at(middle).accuracy >= accuracy else (middle + 1, high)
        return low


def fit_learning_curve(sizes: Sequence[int], accuracies: Sequence[Sequence[float]]) -> LearningCurve:
    """sizes: numbers of labels; accuracies: of each size, one a draw of the labels.

    Raises DataError for fewer than FEWEST_SIZES different sizes.
    """
    order = np.argsort(sizes)
    n = np.array(sizes, float)[order]
    draws = [np.array(accuracies[i], float) for i in order]
    if len(set(sizes)) < FEWEST_SIZES or min(map(len, draws)) < 1:
        raise DataError(f"a learning curve takes {FEWEST_SIZES} numbers of labels at least; got {sorted(set(sizes))}")
    error = 1 - np.array([draw.mean() for draw in draws])
    variance = np.array([draw.var(ddof=1) / len(draw) if len(draw) > 1 else 0.0 for draw in draws])
    variance = np.maximum(variance, LEAST_DEVIATION**2)
    grid = np.meshgrid(POWERS, FLOORS * error.min(), DELAYS * n[-1], MISFITS)
    powers, floors, delays, misfits = (part.reshape(-1) for part in grid)
    far = 1 + np.log2(n[-1] / n)  # 1 at the largest size, 8 at a hundredth of it
    spread = variance + misfits[:, None] ** 2 * far**2  # (P, sizes)
    design, target = (n + delays[:, None]) ** -powers[:, None], error - floors[:, None]
    precision = (design**2 / spread).sum(1)
    factors = np.maximum(0.0, (design * target / spread).sum(1) / precision)
    residual = (target - factors[:, None] * design) ** 2 / spread
    # `a` is integrated out, in units of its effect at the largest size, so that no power is favoured.
    log_weight = -0.5 * (residual.sum(1) + np.log(spread).sum(1) + np.log(precision) - 2 * np.log(design[:, -1]))
    weights = np.exp(log_weight - log_weight.max())
    weights /= weights.sum()
    best = int(weights.argmax())
    # Of each candidate as many as its weight says: the few that count, and always the same ones.
    chosen = np.searchsorted(np.cumsum(weights), (np.arange(CANDIDATES) + 0.5) / CANDIDATES).clip(max=len(weights) - 1)
    return LearningCurve(
        float(factors[best]), float(powers[best]), float(floors[best]), float(delays[best]), (int(n[0]), int(n[-1])),
        powers=powers[chosen], floors=floors[chosen], delays=delays[chosen], factors=factors[chosen],
        variances=1 / precision[chosen], misfits=misfits[chosen], draw=float(variance[-1]),
    )  # fmt: skip


def mixture_quantiles(means: np.ndarray, deviations: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    """Quantiles of a mixture of normal distributions of equal weight."""
    grid = np.linspace((means - 4 * deviations).min(), (means + 4 * deviations).max(), 400)
    below = torch.special.ndtr(torch.from_numpy((grid[:, None] - means) / deviations)).numpy().mean(1)
    return np.interp(shares, below, grid)
