"""Exact neighbours at the speed of bfloat16: candidates by rounded products, then their exact cosines, and a proof.

bfloat16 has 8 bits of precision, and processors with instructions for it multiply two to eight times as many numbers a second.
With a' and b' the rounded directions of a query and a row of the bank, p their product rounded to bfloat16,

    |a . b - p| <= |a - a'| + |a'| |b - b'| + |p| / 256,

whose norms are computed, not assumed. Each query keeps more candidates than neighbours, with their exact cosines. Every other
row has p of at most the last candidate's; where that and the bound stay below the exact cosine of neighbour k, no other row can
be among the k. Queries for which this does not hold are computed again in float32.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_NEIGHBOURS, FEWEST_QUERIES, FEWEST_ROWS = 32, 64, 8192  # beyond, candidates or their bookkeeping cost more
PAIRS_PER_BLOCK = 32768  # of a query and a candidate, whose exact cosines are computed at once
ROUNDING = 2.0**-8  # of a product in bfloat16, which is rounded by half of it at most
SUMS = 1e-5  # of a sum in float32: E times 6e-8 at most, 0.03 of which was seen


def pays(query_NE: Tensor, count: int, k: int) -> bool:
    """Whether to screen: few neighbours of many queries in a large bank, on a processor that multiplies bfloat16."""
    large = k <= MOST_NEIGHBOURS and len(query_NE) >= FEWEST_QUERIES and count >= FEWEST_ROWS
    return large and query_NE.device.type == "cpu" and multiplies_bfloat16()


def multiplies_bfloat16() -> bool:
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in names)


def candidates_for(k: int) -> int:
    """More of them prove more queries, and cost time with every block of the bank."""
    return k + 14


class Screened:
    """Products of rounded directions: a drop-in for `nearest.Plain`. query_NE: (N, E) float32."""

    def __init__(self, query_NE: Tensor):
        directions_NE = F.normalize(query_NE, dim=1)
        self.query_NE = directions_NE.bfloat16()
        self.of_query_N = (directions_NE - self.query_NE).norm(dim=1)  # |a - a'|
        self.of_bank = 0.0  # the largest |b - b'|

    def enter(self, bank_ME: Tensor) -> None:
        directions_ME = F.normalize(bank_ME, dim=1)
        self.bank_ME = directions_ME.bfloat16()
        self.of_bank = max(self.of_bank, float((directions_ME - self.bank_ME).norm(dim=1).max()))

    def products(self, rows: slice) -> Tensor:
        return self.query_NE[rows] @ self.bank_ME.T

    def cosines(self, s_Nk: Tensor, rows: slice) -> Tensor:
        return s_Nk.float()

    def most(self, p_N: Tensor) -> Tensor:
        """The largest cosine that a row of the bank with such a product can have."""
        return p_N + ROUNDING * p_N.abs() + self.of_query_N + (1 + self.of_query_N) * self.of_bank + SUMS


def exact_cosines(query_NE: Tensor, index_NC: Tensor, blocks) -> Tensor:
    """The cosines (N, C) of queries with the rows of the bank that `index_NC` names, in one pass over the bank."""
    directions_NE = F.normalize(query_NE, dim=1)
    s_NC = torch.empty(index_NC.shape)
    begin = 0
    for block in blocks():
        bank_ME = F.normalize(block.float(), dim=1)
        inside = ((index_NC >= begin) & (index_NC < begin + len(bank_ME))).nonzero()
        for pairs in inside.split(PAIRS_PER_BLOCK):
            queries, places = pairs.unbind(1)
            rows = index_NC[queries, places] - begin
            s_NC[queries, places] = torch.linalg.vecdot(directions_NE[queries], bank_ME[rows])
        begin += len(bank_ME)
    return s_NC
