"""95 % intervals of an accuracy, or of a difference of two, over test images, groups of images, and seeds.

S: runs that differ in their seed; N: test images; G: groups of images that are not independent, such as the frames of one
video (without groups, every image is one). Variances of seeds and of groups are estimated from one table of both
(their sum, less the noise that both contain). The squared quantile lies between those of the two parts, by the seeds' share
of the variance to the power of BLEND: with normal numbers that covers 94.4 to 97.5 % for 2 seeds, 95.0 to 96.3 % for 3 or
more, whatever the share (Howe's approximation of 1974, power 1: up to 98.7 %; Satterthwaite's: down to 89 %). Over groups,
whose number may be small and whose sizes may differ, the quantile is that of the studentised bootstrap: with 8 to 40 groups
of very unequal size, Student's covered 84 to 96 % and the bootstrap's 88 to 97 %, plain percentiles 84 to 94 %.
"""

import math
from dataclasses import dataclass, field, replace
from statistics import NormalDist

import numpy as np

BLEND = 1.5
FEWEST_GROUPS = 8  # below, no interval over groups covers 95 %
RESAMPLES, MOST_DRAWN = 2000, 2**20
POWER = 0.8416  # 80 % quantile of the normal distribution
MOST_IMAGES = 10**9
LARGE = 10_000  # degrees of freedom: more change nothing


@dataclass(frozen=True)
class Spread:
    """The variances of a mean, by their cause, and what gives the quantiles of each.

    seeds: of the mean, from its variation between seeds; 0 with one seed. units: from the variation between images or
    groups. noise: counted in both. degrees: of `seeds`. draws: studentised bootstrap of the groups, sorted; else empty.
    """

    seeds: float
    units: float
    noise: float
    degrees: float
    unit_degrees: float
    draws: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def half(self, level: float | np.ndarray, upper: bool) -> np.ndarray:
        """The distance from the mean to the upper or lower limit that `level` / 2 of all samples are beyond."""
        level = np.asarray(level)
        if len(self.draws):  # the upper limit comes from the low draws
            quantile = np.quantile(-self.draws if upper else self.draws, 1 - level / 2)
        else:
            quantile = student(self.unit_degrees, level)
        squared = np.maximum(0, quantile) ** 2
        if not self.seeds:
            return np.sqrt(squared * self.units)
        variance = self.seeds + max(0.0, self.units - self.noise)
        share = (self.seeds / variance) ** BLEND
        return np.sqrt(variance * (squared + share * (student(self.degrees, level) ** 2 - squared)))

    def interval(self, mean: float, level: float = 0.05) -> tuple[float, float]:
        return max(-1.0, mean - float(self.half(level, False))), min(1.0, mean + float(self.half(level, True)))

    def p(self, mean: float) -> float:
        """The level at which the interval just reaches 0."""
        levels = np.geomspace(1 / RESAMPLES if len(self.draws) else 1e-9, 1, 1000)
        halves = self.half(levels, upper=mean < 0)  # falls as the level rises
        return float(np.interp(-abs(mean), -halves, levels))

    def with_images(self, factor: float) -> "Spread":
        """The spread with so many times the test images (or groups of them) and the same seeds."""
        beyond_images = max(0.0, self.seeds - self.noise)
        seeds = beyond_images + self.noise / factor if self.seeds else 0.0
        return replace(self, seeds=seeds, units=self.units / factor, noise=self.noise / factor)

    def images_needed(self, mean: float, images: int) -> int | None:
        """About how many test images would show a difference of `mean` in 80 % of all samples; None where none would."""
        low, high = 1.0, MOST_IMAGES / images
        if self.smallest() <= abs(mean):
            return images
        if self.with_images(high).smallest() > abs(mean):
            return None
        for _ in range(40):
            factor = math.sqrt(low * high)
            low, high = (low, factor) if self.with_images(factor).smallest() <= abs(mean) else (factor, high)
        return math.ceil(high * images)

    def smallest(self) -> float:
        """The difference that these images and seeds show in 80 % of all samples."""
        return (1 + POWER / NormalDist().inv_cdf(0.975)) * float(self.half(0.05, True))


def spread(tables: list[np.ndarray], signs: list[int], groups: np.ndarray | None = None) -> Spread:
    """The spread of the sum of `signs` times the means of `tables`, each (S, N), on the same images in the same order.

    One table: of its mean (a difference of two accuracies, seed by seed, is one table). Two: of runs with other seeds; the
    variance between seeds is then the sum of both. groups: (N,) numbers 0 to G - 1, all used.
    """
    count = tables[0].shape[1]
    units = count if groups is None else int(groups.max()) + 1
    centred = [summed(table - table.mean(), groups, units) * (units / count) for table in tables]
    together = np.sum([sign * table.mean(0) for sign, table in zip(signs, centred, strict=True)], axis=0)
    of_units = float(together.var(ddof=1)) / units if units > 1 else 0.0
    of_units = max(of_units, 1 / count**2)  # at least that of one image
    of_seeds, noise, squares = 0.0, 0.0, 0.0
    if units > 1 and all(len(table) > 1 for table in centred):
        for table in centred:
            seeds = len(table)
            part = float(table.mean(1).var(ddof=1)) / seeds
            rest = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
            noise += float((rest**2).sum()) / ((seeds - 1) * (units - 1)) / (seeds * units)
            of_seeds, squares = of_seeds + part, squares + part**2 / (seeds - 1)
    degrees = of_seeds**2 / squares if squares else math.inf
    resampled = groups is not None and together.any()
    draws = bootstrap(together, np.bincount(groups), count) if resampled else np.zeros(0)  # pyrefly: ignore
    return Spread(of_seeds, of_units, noise, degrees, max(1.0, units - 1.0), draws)


def summed(table: np.ndarray, groups: np.ndarray | None, units: int) -> np.ndarray:
    """Sums of the columns of each group, (S, G)."""
    return table if groups is None else np.stack([np.bincount(groups, row, minlength=units) for row in table])


def bootstrap(together_G: np.ndarray, sizes_G: np.ndarray, count: int) -> np.ndarray:
    """The mean of resampled groups, less the mean, in units of its own standard error: sorted."""
    rng, units = np.random.default_rng(0), len(sizes_G)
    sums_G, draws = together_G * count / units, []
    rows = max(1, MOST_DRAWN // units)
    for start in range(0, RESAMPLES, rows):
        chosen_BG = rng.integers(0, units, (min(rows, RESAMPLES - start), units))
        total_B = sizes_G[chosen_BG].sum(1)
        mean_B = sums_G[chosen_BG].sum(1) / total_B
        residuals_BG = sums_G[chosen_BG] - mean_B[:, None] * sizes_G[chosen_BG]
        variance_B = (residuals_BG**2).sum(1) * units / (units - 1)
        draws.append(mean_B * total_B / np.sqrt(np.maximum(variance_B, 1.0)))  # half an image twice, at least
    return np.sort(np.concatenate(draws))


def student(degrees: float, level: float | np.ndarray = 0.05) -> np.ndarray:
    """The quantile of Student's t that `level` / 2 of it is above; degrees, at least 1, need not be whole."""
    degrees = min(degrees, LARGE)  # 0.0003 from the normal distribution
    angle = np.linspace(0, np.pi / 2, 5001)  # t = sqrt(degrees) / tan(angle)
    density = np.sin(angle) ** (degrees - 1)
    above = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return math.sqrt(degrees) / np.tan(np.interp(level, above / above[-1], angle))


def holm(p: list[float]) -> list[float]:
    """p of several comparisons, adjusted so that one false difference among all is seen in at most 5 % (Holm 1979)."""
    adjusted, least = [0.0] * len(p), 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        least = max(least, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = least
    return adjusted
