"""Copies of images: proposed by their embeddings, verified by their pixels.

M: images, P: pairs, T: placements of a crop, D: values of a small picture. Embeddings take two photographs of one thing for
neighbours; a copy also has the same pixels in the same places, after a flip, a resize or a crop. Small pictures of both
images are laid over each other in every placement, and the best one counts.
"""

import torch
from torch import Tensor

from diptych.base.random_at import random_at
from diptych.embeddings.duplicates import (
    ALIKE,
    NEIGHBOURS,
    PROPOSED,
    WRONG,
    Pairs,
    chance_of,
    others_only,
    pairs_of,
)
from diptych.embeddings.nearest import nearest, nearest_others

THUMBNAIL = 32  # pixels of the pictures that are compared
# Pixels of a side at which they are compared, and the scales of crops: roughly for all pairs, finely for the rest.
ROUGH, FINE = (6, (0.85, 0.7)), (12, (0.9, 0.8, 0.7, 0.6))
PROMISING = 0.8  # likeness at the rough size from which a pair is compared finely; others are never proposed
NOISE = 3.0**2 * 3  # a squared difference for each pixel that compression alone may leave, of values from 0 to 255
PAIRS_PER_BLOCK = 128
DECOYS = 10_000  # pairs of which the null is made, at most


def find_copies(
    vectors: Tensor,
    thumbnails: Tensor,
    *,
    mirrored: Tensor | None = None,
    apart: Tensor | None = None,
    wrong: float = WRONG,
    proposed: int = PROPOSED,
    decoys: int = DECOYS,
    seed: int = 0,
) -> Pairs:
    """Pairs of images of which one is a copy of the other: the same, resized, encoded again, mirrored or cropped.

    vectors: embeddings (M, E); mirrored: those of the mirror images; thumbnails: (M, 3, 32, 32) uint8 of the same images.
    apart: (M,) bool, two sets (training and test) whose nearest images of the other set are compared in any case.
    The `proposed` nearest neighbours by embedding are compared by `likeness`, which is their score. wrong: the share of the
    returned pairs that may be expected to be wrong. The null is the likeness of `decoys` farther neighbours, the 6th to
    10th, which are as much of one kind but rarely copies. Raises DataError as `nearest_others`.
    """
    cosine, index = nearest_others(vectors, NEIGHBOURS)
    lists = [(cosine, index)]
    if mirrored is not None:
        lists.append(others_only(*nearest(mirrored, vectors, PROPOSED + 1)))
    first, second, _ = (part.cpu() for part in pairs_of(lists, proposed))
    if apart is not None:
        ours, others = apart.nonzero()[:, 0], (~apart).nonzero()[:, 0]
        across = others[nearest(vectors[ours], vectors[others], PROPOSED)[1].cpu()]
        pairs = torch.stack([ours[:, None].expand_as(across).reshape(-1), across.reshape(-1)]).sort(0).values
        first, second = torch.cat([torch.stack([first, second]), pairs], 1).unique(dim=1)
    return verified(thumbnails, first, second, farther(index.cpu(), decoys, seed), wrong)


def verified(
    thumbnails: Tensor,
    first: Tensor,
    second: Tensor,
    decoys: tuple[Tensor, Tensor],
    wrong: float = WRONG,
    *,
    compared: int | None = None,
) -> Pairs:
    """The pairs whose pixels show a copy, the surest first. decoys: pairs, as two lists of rows, that are taken for none.
    compared: the number of pairs from which these were taken; None: all. Pairs of ALIKE or more that are left out are
    `undecided`.
    """
    score, null = likeness(thumbnails, first, second), likeness(thumbnails, *decoys)
    order = score.argsort(descending=True, stable=True)
    order = order[score[order] > PROMISING]
    expected = (compared or len(score)) * chance_of(1 - score[order], 1 - null)
    pairs = Pairs(first[order], second[order], score[order], expected).surest(wrong)
    rest = order[len(pairs.score) :]
    rest = rest[score[rest] >= ALIKE]
    alike = float((null >= ALIKE).double().mean()) if len(null) else 0.0
    return pairs._replace(undecided=torch.stack([first[rest], second[rest]]), alike=alike)


def farther(index: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """At most `count` pairs of rows and their 6th to 10th neighbours, the nearest after those that may be copies.

    index: neighbours (M, k) in order."""
    beyond = index[:, PROPOSED : 2 * PROPOSED] if index.shape[1] > PROPOSED else index[:, -1:]
    rows, columns = torch.arange(len(index)).repeat_interleave(beyond.shape[1]), beyond.reshape(-1)
    chosen = torch.randperm(len(rows), generator=random_at(seed, "copies", "decoys"))[:count]
    return rows[chosen], columns[chosen]


def likeness(thumbnails: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """How alike the pixels of pairs of images are, (P,): 1 is the same, 0 is unrelated; the best of all placements.

    thumbnails: (M, 3, 32, 32) uint8. first, second: row numbers (P,). The score is 1 - |a - b|^2 / (var a + var b) of two
    small pictures a and b: like a correlation, but a shift of brightness or colour counts as a difference. One picture is
    laid over all crops of the other, down to 0.6 of its side, and mirrored; pairs that are unlike at 6 x 6 pixels are not
    compared at 12 x 12. About 0.2 ms a pair on one core.
    """
    scores = likeness_at(thumbnails, first, second, crops(*ROUGH))
    promising = (scores > PROMISING).nonzero()[:, 0]
    if len(promising):
        scores[promising] = likeness_at(thumbnails, first[promising], second[promising], crops(*FINE))
    return scores


def likeness_at(thumbnails: Tensor, first: Tensor, second: Tensor, places: list[Tensor]) -> Tensor:
    """`likeness` at one size."""
    scores = []
    for a, b in zip(first.split(PAIRS_PER_BLOCK), second.split(PAIRS_PER_BLOCK), strict=True):
        forward = best_placement(thumbnails, a, b, places)
        scores.append(torch.maximum(forward, best_placement(thumbnails, b, a, places)))
    return torch.cat(scores) if scores else torch.zeros(0)


def best_placement(thumbnails: Tensor, rows: Tensor, others: Tensor, places: list[Tensor]) -> Tensor:
    """The likeness of the images `others` to the best crop of the images `rows`, (P,)."""
    side = places[0].shape[1]
    owners, owner_of = torch.unique(rows, return_inverse=True)
    entire = thumbnails[others].float()
    small = (
        placed(torch.cat([entire, entire.flip(3)]), places[0]).view(2, len(others), -1).permute(1, 2, 0)
    )  # (P, D, 2)
    images = thumbnails[owners].float()
    cuts = torch.cat([placed(images, operator) for operator in places], 1)  # (owners, T, D)
    squares, spread = cuts.square().sum(2), variance(cuts)
    cross = torch.bmm(cuts[owner_of], small)  # (P, T, 2)
    differences = squares[owner_of][:, :, None] + small.square().sum(1)[:, None] - 2 * cross
    total = spread[owner_of][:, :, None] + variance(small.transpose(1, 2))[:, None] + NOISE * side * side
    return (1 - differences.clamp_min(0) / total).flatten(1).amax(1)


def variance(pictures: Tensor) -> Tensor:
    """The squared distance of pictures (..., D) from their mean colours, summed over pixels."""
    channels = pictures.unflatten(-1, (3, -1))
    return (channels - channels.mean(-1, keepdim=True)).square().sum((-1, -2))


def placed(images: Tensor, operator_qjw: Tensor) -> Tensor:
    """Crops of one scale at all places, (n, T, D), of images (n, 3, 32, 32)."""
    wide = torch.einsum("nchw,qjw->nqchj", images, operator_qjw)
    cut = torch.einsum("nqchj,pih->npqcij", wide, operator_qjw)
    return cut.flatten(3).flatten(1, 2)


def crops(side: int, scales: tuple[float, ...]) -> list[Tensor]:
    """For every scale the operators (places, side, THUMBNAIL) that cut and shrink a line of pixels, by averaging."""
    operators = []
    for scale in (1.0, *scales):
        steps = round((1 - scale) * 2 * side * 0.85)  # places about half a pixel of the small picture apart
        starts = [(1 - scale) * i / steps for i in range(steps + 1)] if steps else [0.0]
        operators.append(torch.stack([averaging(start, scale, side) for start in starts]))
    return operators


def averaging(start: float, length: float, side: int) -> Tensor:
    """The matrix (side, THUMBNAIL) that averages the part [start, start + length] of a line of pixels."""
    edges = (start + length * torch.arange(side + 1, dtype=torch.float64) / side) * THUMBNAIL
    pixel = torch.arange(THUMBNAIL, dtype=torch.float64)
    upper = torch.minimum(edges[1:, None], pixel + 1)
    return ((upper - torch.maximum(edges[:-1, None], pixel)).clamp_min(0) / (edges[1:] - edges[:-1])[:, None]).float()
