"""Nearest neighbours by cosine, exact. M: bank, N: queries, E: width, k: neighbours; z: embedding, s: similarity."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.base.errors import DataError, RecipeError

Array = Tensor | np.ndarray

# A block of similarities takes 16 MB. Larger ones get fresh pages from the system each time and take twice as long.
QUERIES_PER_BLOCK, BANK_ROWS_PER_BLOCK, GROUPS_PER_BLOCK = 256, 16384, 8
CLOSE = 0.03  # root mean square distance of directions from their mean below which plain float32 cosines lose digits


def nearest(query: Array, bank: Array, k: int) -> tuple[Tensor, Tensor]:
    """Find the k rows of `bank` (M, E) most similar to each row of `query` (N, E). Returns cosines (N, k), highest
    first, and row numbers (N, k).

    Exact, by matrix products in blocks: beyond the two arrays and the output, memory does not grow with M or N. k is
    capped at M. A zero vector has cosine 0 with everything. The order of equally similar rows is undefined. Where the rows
    of `bank` point nearly the same way, see `Centred`, neighbours are ordered by cosines whose differences are exact. Raises
    RecipeError for k < 1, DataError as `checked_embeddings` does.
    """
    if k < 1:
        raise RecipeError(f"k is the number of neighbours, at least 1; got {k}")
    bank_ME = checked_embeddings(bank, "bank")
    query_NE = checked_embeddings(query, "query", bank_ME)
    directions_ME = F.normalize(bank_ME, dim=1)
    close = nearly_one_direction(directions_ME)
    mean_E = directions_ME.mean(0, dtype=torch.float64)
    pairs = Centred(query_NE, bank_ME, mean_E) if close else Plain(F.normalize(query_NE, dim=1), directions_ME)
    k = min(k, len(bank_ME))
    similarities, indices = [], []
    for start in range(0, len(query_NE), QUERIES_PER_BLOCK):
        rows = slice(start, start + QUERIES_PER_BLOCK)
        blocks = [largest(s_NM, k) for s_NM in pairs.blocks(rows)]
        s = torch.cat([values for values, _ in blocks], dim=1)
        index = torch.cat([at + BANK_ROWS_PER_BLOCK * block for block, (_, at) in enumerate(blocks)], dim=1)
        s, order = s.topk(k, dim=1)
        similarities.append(pairs.cosines(s, rows))
        indices.append(index.gather(1, order))
    return torch.cat(similarities), torch.cat(indices)


def nearly_one_direction(directions_ME: Tensor) -> bool:
    """Whether plain float32 cosines of these directions lose the digits in which they differ."""
    return bool(1 - directions_ME.mean(0, dtype=torch.float64).square().sum() < CLOSE**2)


class Plain:
    """Cosines as inner products of directions (N, E) and (M, E)."""

    def __init__(self, query_NE: Tensor, bank_ME: Tensor):
        self.query_NE, self.bank_ME = query_NE, bank_ME

    def blocks(self, rows: slice) -> Iterator[Tensor]:
        """Cosines of some queries with the bank, a block of its rows at a time."""
        for columns_ME in self.bank_ME.split(BANK_ROWS_PER_BLOCK):
            yield self.query_NE[rows] @ columns_ME.T

    def cosines(self, s_Nk: Tensor, rows: slice) -> Tensor:
        return s_Nk


class Centred:
    """Cosines of vectors that point nearly the same way, up to a summand for each query.

    With a spread of 0.0002 around a common direction, cosines differ by 4e-8, which float32 cannot tell apart near 1. With
    m near all directions, a' = a - m and b' = b - m, in float64 and then rounded to float32,

        a . b = a' . b' + m . b' + a . m,

    whose first two terms are as small as the differences, and the last one is the same for all of the bank.
    """

    def __init__(self, query_NE: Tensor, bank_ME: Tensor, mean_E: Tensor):
        self.query_NE, self.of_query_N = centred(query_NE, mean_E)
        self.bank_ME, of_bank_M = centred(bank_ME, mean_E)
        self.shift_M = (of_bank_M - mean_E.square().sum()).float()  # m . b'

    def blocks(self, rows: slice) -> Iterator[Tensor]:
        """Cosines without a . m, a block of the bank's rows at a time."""
        parts = zip(self.bank_ME.split(BANK_ROWS_PER_BLOCK), self.shift_M.split(BANK_ROWS_PER_BLOCK), strict=True)
        for columns_ME, shift_M in parts:
            yield torch.addmm(shift_M, self.query_NE[rows], columns_ME.T)

    def cosines(self, s_Nk: Tensor, rows: slice) -> Tensor:
        return (s_Nk + self.of_query_N[rows, None]).float()


def centred(z_NE: Tensor, mean_E: Tensor) -> tuple[Tensor, Tensor]:
    """Directions a minus m in float32, and a . m (N,) in float64; float64 copies of a block at a time."""
    differences, products = [], []
    for z in z_NE.split(BANK_ROWS_PER_BLOCK):
        a_NE = F.normalize(z.double(), dim=1)
        differences.append((a_NE - mean_E).float())
        products.append(a_NE @ mean_E)
    return torch.cat(differences), torch.cat(products)


def largest(s_NM: Tensor, k: int) -> tuple[Tensor, Tensor]:
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
