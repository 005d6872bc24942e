"""Neighbours in blocks, among themselves, and by candidates that are proven: all are those of float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diptych.base.errors import DataError
from diptych.embeddings import nearest as nearest_file
from diptych.embeddings import screening
from diptych.embeddings.nearest import nearest, nearest_others


def exact(queries: torch.Tensor, bank: torch.Tensor, k: int) -> torch.Tensor:
    """Cosines in float64."""
    return (F.normalize(queries.double(), dim=1) @ F.normalize(bank.double(), dim=1).T).topk(k, dim=1)[0]


def cosines_of(queries: torch.Tensor, bank: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """What the rows that were named are worth, in float64."""
    queries, bank = (F.normalize(part.double(), dim=1) for part in (queries, bank))
    return (queries[:, None] * bank[rows]).sum(2)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(nearest_file, "BANK_ROWS_PER_BLOCK", 96)
    monkeypatch.setattr(nearest_file, "QUERIES_PER_BLOCK", 32)
    monkeypatch.setattr(nearest_file, "QUERIES_PER_PASS", 100)


@pytest.fixture
def screened(monkeypatch) -> list[float]:
    """Screening for any number of rows, on any processor. Returns the shares of queries that were proven."""
    shares, one = [], nearest_file.screened_pass

    def count(*arguments):
        answer = one(*arguments)
        shares.append(answer[1])
        return answer

    monkeypatch.setattr(nearest_file, "screened_pass", count)
    monkeypatch.setattr(screening, "FEWEST_ROWS", 1)
    monkeypatch.setattr(screening, "FEWEST_QUERIES", 1)
    monkeypatch.setattr(screening, "multiplies_bfloat16", lambda: True)
    return shares


def scattered(n: int, seed: int, width: int = 32) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def crowded(n: int, seed: int) -> torch.Tensor:
    """Cosines between 0.99 and 1: bfloat16 tells hardly any two of them apart."""
    return scattered(1, 99) + 0.08 * scattered(n, seed)


@pytest.mark.parametrize("screen", [True, False])
@pytest.mark.parametrize("kind", [scattered, crowded])
def test_queries_in_another_bank(kind, screen, small_blocks, request):
    shares = request.getfixturevalue("screened") if screen else []
    bank, queries = kind(1000, 1), kind(250, 2)
    similarity, rows = nearest(queries, bank, 7)
    wanted = exact(queries, bank, 7)
    assert torch.allclose(similarity.double(), wanted, rtol=0, atol=2e-6)
    assert torch.allclose(cosines_of(queries, bank, rows), wanted, rtol=0, atol=2e-6)
    assert bool(shares) == screen and (not shares or (shares[0] > 0.9) == (kind is scattered))
    assert len(shares) in (0, 1 if kind is crowded else 3), "where it proves little it is not tried again"


def test_without_its_proof_screening_would_be_wrong(small_blocks, screened, monkeypatch):
    bank, queries = crowded(1000, 1), crowded(250, 2)
    monkeypatch.setattr(screening.Screened, "most", lambda self, p: p - 10)
    rows = nearest(queries, bank, 7)[1]
    assert not torch.allclose(cosines_of(queries, bank, rows), exact(queries, bank, 7), rtol=0, atol=2e-6)


def test_the_bound_holds(screened):
    """Of each query with each row, for random directions, equal ones, opposite ones and zeros."""
    bank, queries = torch.cat([scattered(300, 1), crowded(100, 3), torch.zeros(2, 32)]), scattered(50, 2)
    queries[:10] = bank[:10]
    queries[10:20] = -bank[10:20]
    pairs = screening.Screened(queries)
    pairs.enter(bank)
    products = pairs.products(slice(0, 50))
    true = F.normalize(queries.double(), dim=1) @ F.normalize(bank.double(), dim=1).T
    for column in range(len(bank)):
        assert (pairs.most(products[:, column].float()) >= true[:, column]).all()
    assert (pairs.most(products[:, 0].float()) - true[:, 0]).max() < 0.02, "and says something"


@pytest.mark.parametrize("screen", [True, False])
@pytest.mark.parametrize("kind", [scattered, crowded])
def test_no_row_is_its_own_neighbour(kind, screen, small_blocks, request):
    if screen:
        request.getfixturevalue("screened")
    vectors = kind(333, 1)
    vectors[200] = vectors[10]  # a copy is a neighbour
    similarity, rows = nearest_others(vectors, 5)
    cosines = F.normalize(vectors.double(), dim=1) @ F.normalize(vectors.double(), dim=1).T
    wanted = cosines.fill_diagonal_(-2).topk(5, dim=1)[0]
    assert torch.allclose(similarity.double(), wanted, rtol=0, atol=2e-6)
    assert not (rows == torch.arange(333)[:, None]).any() and rows[10, 0] == 200 and rows[200, 0] == 10


@pytest.mark.parametrize("count", [2, 5])
def test_few_rows_have_few_neighbours(count):
    vectors = scattered(count, 1)
    assert nearest_others(vectors, 10)[1].shape == (count, count - 1)
    assert nearest(vectors, vectors, 10)[1].shape == (count, count)


def test_a_mapped_array_is_searched_as_it_is(small_blocks, tmp_path):
    """Also one that cannot be written to; a row that is not finite is counted wherever it is."""
    bank, queries = scattered(500, 1), scattered(20, 2)
    np.save(tmp_path / "x.npy", bank.numpy())
    wanted = nearest(queries, bank, 5)
    for mode in ("r", "c"):
        mine = nearest(queries, np.load(tmp_path / "x.npy", mmap_mode=mode), 5)
        assert torch.equal(mine[0], wanted[0]) and torch.equal(mine[1], wanted[1])
    for value in (np.nan, np.inf, -np.inf):
        bank[400, 3], bank[100, 0] = value, value
        with pytest.raises(DataError, match="2 of 500 bank embeddings hold NaN or infinity"):
            nearest(queries, bank, 5)


BANK = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)


@pytest.mark.parametrize("array", [BANK[::-1], BANK[::-1].astype(">f4"), BANK[::-1].astype(">f8")])
def test_arrays_that_torch_cannot_share(array):
    assert torch.equal(nearest_others(array, 3)[1], nearest_others(BANK[::-1].copy(), 3)[1])


@pytest.mark.parametrize(
    "array", [np.full((3, 2), "a"), np.array([["a", 1.0]], object), np.array([BANK[0], BANK[0, :3]], object)]
)
def test_arrays_of_no_numbers_are_one_line(array):
    with pytest.raises(DataError, match="^the bank embeddings are not a numeric array"):
        nearest_others(array, 3)
