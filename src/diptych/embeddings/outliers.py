"""Outliers among vectors: rows that are far from all others. M: vectors, E: width, k: neighbours; z: embedding."""

import torch
from torch import Tensor

from diptych.embeddings.duplicates import chord
from diptych.embeddings.nearest import Array, nearest_others

NEIGHBOURS = 10
UPPER = 0.5, 0.9  # quantiles between which the ordinary images' distances are fitted


def outlier_scores(vectors: Array, k: int = NEIGHBOURS) -> tuple[Tensor, Tensor]:
    """How far each row of `vectors` (M, E) is from its neighbours, (M,) float64, and its nearest row, (M,) int64.

    The score is the mean distance (chord of the directions, 0 to 2) of the k nearest other rows (Angiulli & Pizzuti 2002).
    k is capped at M - 1. Fewer than k copies of an outlier hide it only partly, since the mean still includes other
    rows. Raises DataError as `nearest_others`.
    """
    cosine, index = nearest_others(vectors, k)
    return chord(cosine).mean(1).cpu(), index[:, 0].cpu()


def expected_ordinary(scores: Tensor) -> Tensor:
    """For outlier scores (M,), sorted from the largest, how many of the first 1, 2, ... are expected to be ordinary images.

    Ordinary images are those whose log-distances are normal; mean and deviation are fitted to the quantiles 0.5 and 0.9 of
    all scores, which holds while fewer than a tenth are outliers. A set with a long upper tail of ordinary images has more
    of them than this says. Returns (M,) float64, never falling.
    """
    logs = scores.double().clamp_min(1e-9).log()
    normal = torch.distributions.Normal(0.0, 1.0)
    middle, high = logs.quantile(torch.tensor(UPPER, dtype=torch.float64))
    deviation = ((high - middle) / float(normal.icdf(torch.tensor(UPPER[1])))).clamp_min(1e-9)
    share = torch.special.ndtr((middle - logs) / deviation)
    numbers = torch.arange(1, len(scores) + 1, dtype=torch.float64)
    return torch.minimum(len(scores) * share, numbers).cummax(0).values
