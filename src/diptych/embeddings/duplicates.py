"""Near duplicates among vectors. M: vectors, E: width, k: neighbours, P: pairs; z: embedding, d: distance.

Distances are chords between directions, sqrt(2 - 2 cosine), in units of the distance of the k-th neighbour (of the two ends
of a pair, the nearer). Their null is fitted to the middle of the distribution of all images' nearest neighbours, as Efron's
empirical null is (2004): between its 20 % and 50 % quantiles the share of images that have a neighbour within d is a power
of d, as it is for points at random in any number of dimensions, and the power is continued towards 0. So it holds while
fewer than a fifth of the images have a copy; beyond that it says that too many pairs are wrong.
"""

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from diptych.base.errors import RecipeError
from diptych.embeddings.nearest import Array, checked_embeddings, nearest, nearest_others

NEIGHBOURS = 20  # k of the null; a set of n vectors has at most n - 1
PROPOSED = 5  # nearest neighbours of each vector that may be its copies
WRONG = 0.05  # share of the pairs that may be expected to be wrong
# Similarity of pixels (`downstream.copies`) from which two images are as similar as copies. Of 10,000 farther neighbours in
# CIFAR-10 none reaches it; of those of crops that overlap many others (the demo's squares) 5 % do.
ALIKE = 0.95
QUANTILES = 0.2, 0.5  # of the nearest neighbours' distances, between which the null is fitted
TAIL = 0.02  # share of a null whose tail is fitted


def why_undecided(alike: float) -> str:
    """Why pairs that are as similar as copies are not called copies, as the second half of a sentence."""
    return (f"as similar as copies ({ALIKE} or more), but so are {100 * alike:.2g} % of the pairs that are "
            "assumed not to be copies: overlapping crops or nearly plain images")  # fmt: skip


class Pairs(NamedTuple):
    """Proposed pairs, the surest first.

    first, second: row numbers (P,) int64. score: (P,), 1 is the same. expected_wrong: (P,), the number of pairs among the
    first 1, 2, ... that are expected to be no copies; it never falls. undecided: (2, K) row numbers of pairs that are not
    listed although they are as similar as copies, because the fraction `alike` of the pairs assumed not to be copies is so too.
    """

    first: Tensor
    second: Tensor
    score: Tensor
    expected_wrong: Tensor
    undecided: Tensor = torch.zeros(2, 0, dtype=torch.int64)
    alike: float = 0.0

    def surest(self, wrong: float = WRONG) -> "Pairs":
        """The longest beginning of the list in which a share of at most `wrong` is expected to be wrong."""
        numbers = torch.arange(1, len(self.score) + 1, dtype=torch.float64)
        good = (self.expected_wrong <= wrong * numbers).nonzero()
        end = int(good[-1]) + 1 if len(good) else 0
        first, second, score, expected = (part[:end] for part in self[:4])
        return Pairs(first, second, score, expected)


def near_duplicates(
    vectors: Array, *, mirrored: Array | None = None, k: int = NEIGHBOURS, wrong: float = WRONG
) -> Pairs:
    """Pairs of vectors (M, E) that are nearer to each other than chance explains; score: their cosine.

    mirrored: the embeddings (M, E) of the mirror images, to find mirrored copies too. wrong: the acceptable expected
    fraction of false alarms among the returned pairs, from the null above. A pair must be surprising from both of its
    ends. The null is based on distances only, so two photographs of one thing, or frames of one video, count as
    duplicates. Raises DataError as `checked_embeddings` does, RecipeError for a share outside of [0, 1].
    """
    if not 0 <= wrong <= 1:
        raise RecipeError(f"wrong={wrong} is a share of the pairs, from 0 to 1")
    z_ME = checked_embeddings(vectors, "given")
    cosine, index = nearest_others(z_ME, k)
    scale_M, lists = local_scale(cosine), [(cosine, index)]
    if mirrored is not None:
        lists.append(others_only(*nearest(checked_embeddings(mirrored, "mirrored", z_ME), z_ME, PROPOSED + 1)))
    first, second, cosine_P = pairs_of(lists)
    ratio_P = (chord(cosine_P) / torch.minimum(scale_M[first], scale_M[second])).cpu()
    ratio_M = torch.full((len(z_ME),), torch.inf, dtype=torch.float64)
    for rows in (first, second):
        ratio_M.scatter_reduce_(0, rows.cpu(), ratio_P, "amin")
    order = ratio_P.argsort()
    expected = len(z_ME) / 2 * chance_of_nearest(ratio_P[order], ratio_M)  # a pair has two ends
    return Pairs(first.cpu()[order], second.cpu()[order], cosine_P.cpu()[order], expected).surest(wrong)


def chance_of_nearest(distances: Tensor, nearest_M: Tensor) -> Tensor:
    """The share of images without a copy that have a neighbour as near as `distances` (P,), by the null above, (P,) float64.

    nearest_M: the distance of every image's nearest neighbour.
    """
    low, high = nearest_M.quantile(torch.tensor([QUANTILES[0], QUANTILES[1]], dtype=torch.float64)).clamp_min(1e-9)
    power = math.log(QUANTILES[1] / QUANTILES[0]) / max(1e-9, math.log(high / low))
    return (QUANTILES[0] * (distances.clamp_min(1e-12) / low).log().mul(power).exp()).clamp_max(1.0)


def others_only(cosine: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Neighbour lists (M, k) of mirror images without the image itself, (M, k - 1)."""
    itself = index == torch.arange(len(index), device=index.device)[:, None]
    itself[:, -1] |= ~itself.any(1)
    return cosine[~itself].view(len(index), -1), index[~itself].view(len(index), -1)


def pairs_of(lists: Sequence[tuple[Tensor, Tensor]], proposed: int = PROPOSED) -> tuple[Tensor, Tensor, Tensor]:
    """Unordered pairs (first < second) of rows and their first `proposed` neighbours in any of the lists, with the largest
    cosine of each."""
    rows, columns, cosines = [], [], []
    for cosine, index in lists:
        width = min(proposed, index.shape[1])
        rows.append(torch.arange(len(index), device=index.device).repeat_interleave(width))
        columns.append(index[:, :width].reshape(-1))
        cosines.append(cosine[:, :width].reshape(-1))
    row, column, cosine_P = torch.cat(rows), torch.cat(columns), torch.cat(cosines)
    first, second = torch.minimum(row, column), torch.maximum(row, column)
    count = int(second.max()) + 1
    codes, place = torch.unique(first * count + second, return_inverse=True)
    largest = cosine_P.new_full((len(codes),), -2.0).scatter_reduce_(0, place, cosine_P, "amax")
    return codes // count, codes % count, largest


def chord(cosine: Tensor) -> Tensor:
    """The distance of two directions, in float64."""
    return (2 - 2 * cosine.double().clamp(-1, 1)).sqrt()


def local_scale(cosine: Tensor) -> Tensor:
    """d_k of each row, (M,), from cosines (M, k); a row whose neighbours are all copies of it has the median of the others."""
    scale = chord(cosine[:, -1])
    apart = scale > 1e-3
    return torch.where(apart, scale, scale[apart].median() if apart.any() else 1.0)


def chance_of(distances: Tensor, null: Tensor) -> Tensor:
    """For distances (P,), the probability of one as small under the null, (P,) float64.

    null: distances of pairs that are known to be wrong. Its smallest TAIL are fitted by a power of the distance (Hill
    1975), as distances near 0 in any number of dimensions are; above them, the share that is as small is counted. Without
    any such pairs the probability is 1.
    """
    if not len(null):
        return torch.ones(len(distances), dtype=torch.float64)
    null, d_P = null.double().clamp_min(1e-9).sort().values, distances.double().clamp_min(1e-9)
    count = min(len(null) - 1, max(20, round(TAIL * len(null))))
    counted = (torch.searchsorted(null, d_P, right=True) + 1) / (len(null) + 1)
    if count < 1:
        return counted
    edge = null[count]
    power = count / (edge / null[:count]).log().sum().clamp_min(1e-9)
    return torch.where(d_P < edge, count / len(null) * (d_P / edge).pow(power), counted)


def groups_of(first: Sequence[int] | Tensor, second: Sequence[int] | Tensor) -> list[list[int]]:
    """Connected groups of row numbers, of two or more, in the order in which a pair first names them; each sorted."""
    parent: dict[int, int] = {}

    def root(row: int) -> int:
        parent.setdefault(row, row)
        while parent[row] != row:
            parent[row] = row = parent[parent[row]]
        return row

    pairs = list(zip(map(int, first), map(int, second), strict=True))
    for a, b in pairs:
        parent[root(b)] = root(a)
    members: dict[int, list[int]] = {}
    for row in dict.fromkeys(row for pair in pairs for row in pair):
        members.setdefault(root(row), []).append(row)
    return [sorted(rows) for rows in members.values()]


def equal_groups(hashes: Sequence[Hashable | None]) -> list[list[int]]:
    """Groups of two or more rows with equal hashes, in the order of their first row; None equals nothing."""
    members: dict[Hashable, list[int]] = {}
    for row, value in enumerate(hashes):
        if value is not None:
            members.setdefault(value, []).append(row)
    return [rows for rows in members.values() if len(rows) > 1]
