"""Nearest neighbours by cosine, exact. M: bank, N: queries, E: width, k: neighbours; z: embedding, s: similarity."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.base.errors import DataError, RecipeError

Array = Tensor | np.ndarray


# Similarities at a time, 16 MB: larger blocks get fresh pages from the system each time and cost twice.
ROWS, COLUMNS, GROUPS = 256, 16384, 8


def nearest(query: Array, bank: Array, k: int) -> tuple[Tensor, Tensor]:
    """The k rows of `bank` (M, E) most similar to each row of `query` (N, E): cosines (N, k), highest first,
    and rows (N, k).

    Exact, by matrix products in blocks: memory beyond the two arrays and the answer does not grow with M or
    N. k is at most M. A zero vector has cosine 0 with everything; which of equally similar rows comes first
    is not said. Raises RecipeError for k < 1, DataError as `checked_embeddings`.
    """
    if k < 1:
        raise RecipeError(f"k is the number of neighbours, at least 1; got {k}")
    bank_ME = F.normalize(checked_embeddings(bank, "bank"), dim=1)
    query_NE = F.normalize(checked_embeddings(query, "query", bank_ME), dim=1)
    k = min(k, len(bank_ME))
    similarities, indices = [], []
    for rows in query_NE.split(ROWS):
        blocks = [_largest(rows @ columns.T, k) for columns in bank_ME.split(COLUMNS)]
        s = torch.cat([values for values, _ in blocks], dim=1)
        index = torch.cat([at + COLUMNS * block for block, (_, at) in enumerate(blocks)], dim=1)
        s, order = s.topk(k, dim=1)
        similarities.append(s)
        indices.append(index.gather(1, order))
    return torch.cat(similarities), torch.cat(indices)


def _largest(s_NM: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row (all, if fewer) and where they stand, in no order.

    The k largest lie in the k groups with the largest maxima, and maxima are cheap: about half the time of
    `topk` on the whole row, whose cost is in carrying an index with every number.
    """
    width = s_NM.shape[1] // GROUPS
    if s_NM.shape[1] % GROUPS or width <= k:
        return s_NM.topk(min(k, s_NM.shape[1]), dim=1, sorted=False)
    maxima = s_NM.view(len(s_NM), GROUPS, width).amax(1)  # group j is columns j, j + width, j + 2 width, ...
    groups = maxima.topk(k, dim=1, sorted=False).indices
    members = torch.arange(GROUPS, device=s_NM.device)[:, None] * width
    index = (groups[:, None, :] + members).flatten(1)
    s, order = s_NM.gather(1, index).topk(k, dim=1, sorted=False)
    return s, index.gather(1, order)


def checked_embeddings(embeddings: Array, what: str, like: Tensor | None = None) -> Tensor:
    """(N, E) as a float32 tensor, on the device of `like` and of its width. Raises DataError for another
    shape, no rows, or values that are not finite: an accuracy is never made of NaN."""
    z_NE = torch.as_tensor(embeddings).detach().float()
    if z_NE.ndim != 2 or 0 in z_NE.shape:
        raise DataError(f"the {what} embeddings are {tuple(z_NE.shape)}; (images, width) is needed, neither 0")
    if like is not None:
        z_NE = z_NE.to(like.device)
        if z_NE.shape[1] != like.shape[1]:
            widths = f"{z_NE.shape[1]} wide, the others {like.shape[1]}"
            raise DataError(f"the {what} embeddings are {widths}; embed both with one encoder")
    if bad := int((~z_NE.isfinite().all(1)).sum()):
        raise DataError(f"{bad} of {len(z_NE)} {what} embeddings hold NaN or infinity; the encoder has diverged")
    return z_NE
