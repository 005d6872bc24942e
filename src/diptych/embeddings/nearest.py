"""Nearest neighbours by cosine, exact. M: bank, N: queries, E: width, k: neighbours; z: embedding, s: similarity."""

import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.base.errors import DataError, RecipeError
from diptych.embeddings import screening

Array = Tensor | np.ndarray
Blocks = Callable[[], Iterator[Tensor]]  # each call yields the blocks (m, E) of a bank once, in order

# A block of similarities takes 16 MB. Larger ones get fresh pages from the system each time and take twice as long.
QUERIES_PER_BLOCK, BANK_ROWS_PER_BLOCK, GROUPS_PER_BLOCK = 256, 16384, 8
QUERIES_PER_PASS = 16384  # over the bank, which may have to come from a disk each time
CLOSE = 0.03  # root mean square distance of directions from their mean below which plain float32 cosines lose digits


def nearest(query: Array, bank: Array, k: int) -> tuple[Tensor, Tensor]:
    """Find the k rows of `bank` (M, E) most similar to each row of `query` (N, E). Returns cosines (N, k), highest
    first, and row numbers (N, k).

    Exact, by matrix products in blocks: beyond the two arrays and the output, memory does not grow with M or N. Arrays may
    be memory-mapped (`np.load(file, mmap_mode="c")`, `load_embeddings`) and larger than memory. k is capped at M. A zero
    vector has cosine 0 with everything. The order of equally similar rows is undefined. Where the rows of `bank` point
    nearly the same way, see `Centred`, neighbours are ordered by cosines whose differences are exact. Raises RecipeError
    for k < 1, DataError as `checked_embeddings` does.
    """
    bank_ME = as_rows(bank, "bank")
    return nearest_in_blocks(query, lambda: iter(bank_ME.split(BANK_ROWS_PER_BLOCK)), k)


def nearest_others(vectors: Array, k: int) -> tuple[Tensor, Tensor]:
    """The k rows of `vectors` (M, E) most similar to each of its rows, itself excluded. Returns cosines (M, k), highest
    first, and row numbers (M, k); k is capped at M - 1. Raises DataError for one vector; otherwise as `nearest`."""
    z_ME = as_rows(vectors, "bank")
    if len(z_ME) == 1:
        raise DataError("one vector has no neighbours; give two or more")
    blocks = lambda: iter(z_ME.split(BANK_ROWS_PER_BLOCK))  # noqa: E731
    return nearest_in_blocks(z_ME, blocks, k, among_themselves=True)


def nearest_in_blocks(query: Array, blocks: Blocks, k: int, *, among_themselves: bool = False) -> tuple[Tensor, Tensor]:
    """`nearest` in a bank that is read block by block, once to check it and once for QUERIES_PER_PASS queries.

    among_themselves: the queries are the rows of the bank, and no row is its own neighbour.
    """
    if k < 1:
        raise RecipeError(f"k is the number of neighbours, at least 1; got {k}")
    survey = Survey(blocks)
    query_NE = checked_embeddings(query, "query", survey.mean_E)
    k = min(k, survey.count - among_themselves)
    screen = not survey.is_close and screening.pays(query_NE, survey.count, k)
    answers = []
    for part_NE in query_NE.split(QUERIES_PER_PASS):
        first = QUERIES_PER_PASS * len(answers)
        own_N = torch.arange(first, first + len(part_NE), device=part_NE.device) if among_themselves else None
        if screen:
            answer, proven = screened_pass(part_NE, blocks, k, own_N)
            screen = proven > 0.5
            answers.append(answer)
        else:
            pairs = Centred(part_NE, survey.mean_E) if survey.is_close else Plain(part_NE)
            answers.append(one_pass(pairs, blocks, k, own_N))
    return torch.cat([s for s, _ in answers]), torch.cat([index for _, index in answers])


def screened_pass(
    query_NE: Tensor, blocks: Blocks, k: int, own_N: Tensor | None
) -> tuple[tuple[Tensor, Tensor], float]:
    """As `one_pass` of Plain, by rounded products where they are proof enough (see screening.py); the share that they were."""
    pairs = screening.Screened(query_NE)
    p_NC, index_NC = one_pass(pairs, blocks, screening.candidates_for(k), own_N)
    s_Nk, order = screening.exact_cosines(query_NE, index_NC, blocks).topk(k, dim=1)
    index_Nk = index_NC.gather(1, order)
    doubtful = (pairs.most(p_NC[:, -1]) > s_Nk[:, -1]).nonzero()[:, 0]
    if len(doubtful):
        own = None if own_N is None else own_N[doubtful]
        s_Nk[doubtful], index_Nk[doubtful] = one_pass(Plain(query_NE[doubtful]), blocks, k, own)
    return (s_Nk, index_Nk), 1 - len(doubtful) / len(query_NE)


class Survey:
    """One pass over the bank: its number of rows, and the mean of their directions (E,), in float64.

    is_close: whether the directions lie within CLOSE of their mean, root mean square. Raises DataError as
    `checked_embeddings` does.
    """

    def __init__(self, blocks: Blocks):
        self.count, bad, sum_E = 0, 0, None
        for block in blocks():
            z_ME = as_rows(block, "bank").float()
            # The sum of the directions as one product, which takes a tenth of the time of normalizing and adding. It is NaN
            # where a row is not finite, so that only then every number is looked at.
            scale_M = torch.linalg.vector_norm(z_ME, dim=1).clamp_min(1e-12).reciprocal()
            directions_E = (scale_M @ z_ME).double()
            if not directions_E.isfinite().all():
                bad += not_finite(z_ME)
            sum_E = directions_E if sum_E is None else sum_E + directions_E
            self.count += len(z_ME)
        if sum_E is None:
            raise DataError("the bank embeddings are (0, 0); they must be (images, width), neither 0")
        if bad:
            raise infinite(bad, self.count, "bank")
        self.mean_E: Tensor = sum_E / self.count
        self.is_close = bool(1 - self.mean_E.square().sum() < CLOSE**2)
        if self.is_close:  # float32 sums lose the digits that `Centred` needs
            sums = (F.normalize(block.float(), dim=1).sum(0, dtype=torch.float64) for block in blocks())
            self.mean_E = torch.stack([*sums]).sum(0) / self.count


class Plain:
    """Cosines as inner products of directions (N, E) and (m, E)."""

    def __init__(self, query_NE: Tensor):
        self.query_NE = F.normalize(query_NE, dim=1)

    def enter(self, bank_ME: Tensor) -> None:
        """The block of the bank whose cosines are asked for next."""
        self.bank_ME = F.normalize(bank_ME, dim=1)

    def products(self, rows: slice) -> Tensor:
        """Cosines of some queries with the block of the bank."""
        return self.query_NE[rows] @ self.bank_ME.T

    def cosines(self, s_Nk: Tensor, rows: slice) -> Tensor:
        return s_Nk


class Centred:
    """Cosines of vectors that point nearly the same way, up to a summand for each query.

    With a spread of 0.0002 around a common direction, cosines differ by 4e-8, which float32 cannot tell apart near 1. With
    m near all directions, a' = a - m and b' = b - m, in float64 and then rounded to float32,

        a . b = a' . b' + m . b' + a . m,

    whose first two terms are as small as the differences, and the last one is the same for all of the bank.
    """

    def __init__(self, query_NE: Tensor, mean_E: Tensor):
        self.mean_E = mean_E
        self.query_NE, self.of_query_N = centred(query_NE, mean_E)

    def enter(self, bank_ME: Tensor) -> None:
        self.bank_ME, of_bank_M = centred(bank_ME, self.mean_E)
        self.shift_M = (of_bank_M - self.mean_E.square().sum()).float()  # m . b'

    def products(self, rows: slice) -> Tensor:
        """Cosines without a . m."""
        return torch.addmm(self.shift_M, self.query_NE[rows], self.bank_ME.T)

    def cosines(self, s_Nk: Tensor, rows: slice) -> Tensor:
        return (s_Nk + self.of_query_N[rows, None]).float()


def centred(z_NE: Tensor, mean_E: Tensor) -> tuple[Tensor, Tensor]:
    """Directions a minus m in float32, and a . m (N,) in float64."""
    a_NE = F.normalize(z_NE.double(), dim=1)
    return (a_NE - mean_E).float(), a_NE @ mean_E


def one_pass(
    pairs: Plain | Centred | screening.Screened, blocks: Blocks, k: int, own_N: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The k best of the bank for all queries of `pairs`. own_N: the row of the bank that each query is, if it is one."""
    count = len(pairs.query_NE)
    parts = [slice(start, min(start + QUERIES_PER_BLOCK, count)) for start in range(0, count, QUERIES_PER_BLOCK)]
    best: list[tuple[Tensor, Tensor] | None] = [None] * len(parts)
    begin = 0  # row of the bank where the block begins
    for block in blocks():
        pairs.enter(block.float())
        for number, rows in enumerate(parts):
            s_NM = pairs.products(rows)
            if own_N is not None:
                hide(s_NM, own_N[rows] - begin)
            s, index = _largest(s_NM, k)
            index = index + begin
            if (before := best[number]) is not None:
                s, index = torch.cat([before[0], s], dim=1), torch.cat([before[1], index], dim=1)
                s, order = s.topk(min(k, s.shape[1]), dim=1)
                index = index.gather(1, order)
            best[number] = s, index
        begin += len(block)
    similarities, indices = [], []
    for rows, (s, index) in zip(parts, filter(None, best), strict=True):
        s, order = s.topk(k, dim=1)
        similarities.append(pairs.cosines(s, rows))
        indices.append(index.gather(1, order))
    return torch.cat(similarities), torch.cat(indices)


def hide(s_NM: Tensor, own_N: Tensor) -> None:
    """Make the similarity of each row with its own column the smallest, where it has that column."""
    rows = ((own_N >= 0) & (own_N < s_NM.shape[1])).nonzero()[:, 0]
    s_NM[rows, own_N[rows]] = -torch.inf


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
    z_NE = as_rows(embeddings, what).float()
    if like is not None:
        z_NE = z_NE.to(like.device)
        if z_NE.shape[1] != like.shape[-1]:
            widths = f"{z_NE.shape[1]} wide, the others {like.shape[-1]}"
            raise DataError(f"the {what} embeddings are {widths}; embed both with one encoder")
    if bad := not_finite(z_NE):
        raise infinite(bad, len(z_NE), what)
    return z_NE


def as_rows(embeddings: Array, what: str) -> Tensor:
    """An array as a tensor that shares its memory, if torch can: not of a reversed view or of big-endian numbers.

    Raises DataError unless it is (N, E) numbers, neither N nor E being 0.
    """
    with warnings.catch_warnings():  # an array that cannot be written, such as a memory-mapped one: nothing is written
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        try:
            z_NE = torch.as_tensor(embeddings).detach()
        except (TypeError, ValueError):
            try:
                z_NE = torch.from_numpy(np.array(embeddings, np.float32))
            except (TypeError, ValueError):
                raise DataError(f"the {what} embeddings are not a numeric array (images, width); np.stack makes one "
                                "from a column of arrays") from None  # fmt: skip
    if z_NE.ndim != 2 or 0 in z_NE.shape:
        raise DataError(f"the {what} embeddings are {tuple(z_NE.shape)}; they must be (images, width), neither 0")
    return z_NE


def not_finite(z_NE: Tensor) -> int:
    """The number of rows that hold NaN or infinity, counted in blocks: a mask of all takes a quarter of the array's memory."""
    return int(sum((~z.isfinite().all(1)).sum() for z in z_NE.split(BANK_ROWS_PER_BLOCK)))


def infinite(bad: int, count: int, what: str) -> DataError:
    return DataError(f"{bad} of {count} {what} embeddings hold NaN or infinity; the encoder has diverged")
