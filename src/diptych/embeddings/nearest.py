"""Nearest neighbours by cosine, exact. M: bank, N: queries, E: width, k: neighbours; z: embedding, s: similarity."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.base.errors import DataError, RecipeError

Array = Tensor | np.ndarray

# A block of similarities takes 16 MB. Larger ones get fresh pages from the system each time and take twice as long.
QUERIES_PER_BLOCK, BANK_ROWS_PER_BLOCK, GROUPS_PER_BLOCK = 256, 16384, 8


def nearest(query: Array, bank: Array, k: int) -> tuple[Tensor, Tensor]:
    """Find the k rows of `bank` (M, E) most similar to each row of `query` (N, E). Returns cosines (N, k), highest
    first, and row numbers (N, k).

    Exact, by matrix products in blocks: beyond the two arrays and the output, memory does not grow with M or N. k is
    capped at M. A zero vector has cosine 0 with everything. The order of equally similar rows is undefined. Raises
    RecipeError for k < 1, DataError as `checked_embeddings` does.
    """
    if k < 1:
        raise RecipeError(f"k is the number of neighbours, at least 1; got {k}")
    bank_ME = F.normalize(checked_embeddings(bank, "bank"), dim=1)
    query_NE = F.normalize(checked_embeddings(query, "query", bank_ME), dim=1)
    k = min(k, len(bank_ME))
    similarities, indices = [], []
    for rows in query_NE.split(QUERIES_PER_BLOCK):
        blocks = [_largest(rows @ columns.T, k) for columns in bank_ME.split(BANK_ROWS_PER_BLOCK)]
        s = torch.cat([values for values, _ in blocks], dim=1)
        index = torch.cat([at + BANK_ROWS_PER_BLOCK * block for block, (_, at) in enumerate(blocks)], dim=1)
        s, order = s.topk(k, dim=1)
        similarities.append(s)
        indices.append(index.gather(1, order))
    return torch.cat(similarities), torch.cat(indices)


def _largest(s_NM: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row (all, if there are fewer) and their columns, unordered.

    The k groups with the largest maxima contain the k largest numbers, and maxima are cheap. This takes about half the
    time of `topk` on the full row, which carries an index with every number.
    """
    width = s_NM.shape[1] // GROUPS_PER_BLOCK
    if s_NM.shape[1] % GROUPS_PER_BLOCK or width <= k:
        return s_NM.topk(min(k, s_NM.shape[1]), dim=1, sorted=False)
    maxima = s_NM.view(len(s_NM), GROUPS_PER_BLOCK, width).amax(1)  # group j is columns j, j + width, j + 2 width, ...
    groups = maxima.topk(k, dim=1, sorted=False).indices
    members = torch.arange(GROUPS_PER_BLOCK, device=s_NM.device)[:, None] * width
    index = (groups[:, None, :] + members).flatten(1)
    s, order = s_NM.gather(1, index).topk(k, dim=1, sorted=False)
    return s, index.gather(1, order)


def checked_embeddings(embeddings: Array, what: str, like: Tensor | None = None) -> Tensor:
    """(N, E) as a float32 tensor on the device of `like`. Raises DataError for another shape, another width than that
    of `like`, no rows, or values that are not finite: no accuracy is computed from NaN."""
    z_NE = torch.as_tensor(embeddings).detach().float()
    if z_NE.ndim != 2 or 0 in z_NE.shape:
        raise DataError(f"the {what} embeddings are {tuple(z_NE.shape)}; they must be (images, width), neither 0")
    if like is not None:
        z_NE = z_NE.to(like.device)
        if z_NE.shape[1] != like.shape[1]:
            widths = f"{z_NE.shape[1]} wide, the others {like.shape[1]}"
            raise DataError(f"the {what} embeddings are {widths}; embed both with one encoder")
    if bad := int((~z_NE.isfinite().all(1)).sum()):
        raise DataError(f"{bad} of {len(z_NE)} {what} embeddings hold NaN or infinity; the encoder has diverged")
    return z_NE
