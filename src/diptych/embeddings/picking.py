"""What to label next: rows that stand for many others and for all of them. M: vectors, E: width, B: picks; z: embedding.

k-means from k-means++ starts gives B clusters; of each, the most typical row is picked (TypiClust, Hacohen et al. 2022).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.base.errors import RecipeError
from diptych.base.random_at import random_at
from diptych.embeddings.duplicates import chord, groups_of, near_duplicates
from diptych.embeddings.nearest import Array, checked_embeddings, nearest, nearest_others

NEIGHBOURS = 20  # of typicality
ROUNDS = 10  # of k-means
FEWEST = 20  # vectors, below which no null can be fitted and only equal vectors count as duplicates


def pick(vectors: Array, budget: int, *, seed: int = 0) -> Tensor:
    """Choose `budget` rows of `vectors` (M, E) to label: their numbers (budget,), those of the largest clusters first.

    Of near duplicates (`duplicates.near_duplicates`) only the most typical one can be chosen; with fewer distinct rows than
    the budget, all of those are returned. Typicality is the inverse of the mean distance to the 20 nearest rows. The same
    vectors and seed give the same rows. Raises RecipeError for a budget below 1 or above M, DataError as
    `checked_embeddings`.
    """
    z_ME = F.normalize(checked_embeddings(vectors, "given"), dim=1)
    if not 1 <= budget <= len(z_ME):
        raise RecipeError(
            f"a budget of {budget:,} cannot be picked from {len(z_ME):,} vectors; give 1 to {len(z_ME):,}"
        )
    if len(z_ME) == 1:
        return torch.zeros(1, dtype=torch.int64)
    typicality_M = 1 / chord(nearest_others(z_ME, NEIGHBOURS)[0]).mean(1).clamp_min(1e-6)
    rows = distinct(z_ME, typicality_M)
    if len(rows) <= budget:
        return rows
    cluster_M = clusters(z_ME[rows], budget, seed)
    order = typicality_M[rows].argsort(descending=True, stable=True)
    best: dict[int, int] = {}
    for place, cluster in zip(order.tolist(), cluster_M[order].tolist(), strict=True):
        best.setdefault(cluster, place)
    sizes = torch.bincount(cluster_M, minlength=budget).tolist()
    chosen = sorted(best, key=lambda cluster: (-sizes[cluster], best[cluster]))
    picked = [best[cluster] for cluster in chosen]
    taken = set(picked)
    picked += [place for place in order.tolist() if place not in taken][: budget - len(picked)]  # for empty clusters
    return rows[torch.tensor(picked)].cpu()


def distinct(z_ME: Tensor, typicality_M: Tensor) -> Tensor:
    """The rows without near duplicates, and the most typical one of each group, in order."""
    equal = neighbours_equal(z_ME)
    near = near_duplicates(z_ME) if len(z_ME) >= FEWEST else None
    first, second = (torch.cat([a, b]) for a, b in zip(equal, near[:2] if near is not None else equal, strict=True))
    left = torch.ones(len(z_ME), dtype=torch.bool)
    for group in groups_of(first, second):
        best = max(group, key=lambda row: (float(typicality_M[row]), -row))
        left[[row for row in group if row != best]] = False
    return left.nonzero()[:, 0].to(z_ME.device)


def neighbours_equal(z_ME: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs of rows and their nearest rows where both are equal but for rounding."""
    cosine, index = nearest_others(z_ME, 1)
    equal = (cosine[:, 0] > 1 - 1e-6).nonzero()[:, 0].cpu()
    return equal, index[:, 0].cpu()[equal]


def clusters(z_ME: Tensor, count: int, seed: int) -> Tensor:
    """The cluster of each row, (M,), 0 to count - 1: spherical k-means, ROUNDS rounds from k-means++ (Arthur & Vassilvitskii
    2007)."""
    centres = z_ME[plus_plus(z_ME, count, seed)]
    cluster_M = torch.zeros(len(z_ME), dtype=torch.int64, device=z_ME.device)
    for _ in range(ROUNDS):
        before, cluster_M = cluster_M, nearest(z_ME, centres, 1)[1][:, 0]
        if torch.equal(before, cluster_M):
            break
        sums = torch.zeros_like(centres).index_add_(0, cluster_M, z_ME)
        empty = ~(sums.square().sum(1, keepdim=True) > 1e-12)
        centres = torch.where(empty, centres, F.normalize(sums, dim=1))
    return cluster_M


def plus_plus(z_ME: Tensor, count: int, seed: int) -> Tensor:
    """`count` different rows as starts: of several candidates, drawn with probability proportional to the squared distance
    from those before, the one that leaves the smallest sum of squared distances (greedy k-means++)."""
    candidates = 2 + int(math.log(count))
    draws = torch.rand(count, candidates, generator=random_at(seed, "pick", "starts"), dtype=torch.float64)
    chosen = [int(draws[0, 0] * len(z_ME))]
    distance = squared_distances(z_ME, chosen)[:, 0]
    for draw in draws[1:]:
        distance[chosen[-1]] = 0
        total = distance.cumsum(0)
        rows = torch.searchsorted(total, draw * total[-1], right=True).clamp_max(len(z_ME) - 1).tolist()
        left = torch.minimum(distance[:, None], squared_distances(z_ME, rows))
        best = int(left.sum(0).argmin())
        chosen.append(rows[best])
        distance = left[:, best].clone()
    return torch.tensor(chosen, device=z_ME.device)


def squared_distances(z_ME: Tensor, rows: list[int]) -> Tensor:
    """(M, rows) float64 on the CPU, never quite 0."""
    return (2 - 2 * (z_ME @ z_ME[rows].T)).double().clamp_min(1e-12).cpu()
