"""Neighbours of embeddings that point nearly the same way, held to float64. N, M: embeddings, E: width."""

import pytest
import torch
import torch.nn.functional as F

from diptych.embeddings import nearest as nearest_file
from diptych.embeddings.nearest import CLOSE, nearest
from diptych.embeddings.scores import knn_accuracy

CLASSES = 10


def around_one_direction(n: int, spread: float, seed: int, width: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, E) float32 at distance `spread` from a common direction, in ten classes, of lengths 1 to 3; and the classes."""
    fixed = torch.Generator().manual_seed(0)
    direction = F.normalize(torch.randn(width, generator=fixed), dim=0)
    centres = torch.randn(CLASSES, width, generator=fixed)
    rng = torch.Generator().manual_seed(seed)
    y = torch.randint(CLASSES, (n,), generator=rng)
    inner = centres[y] + 0.7 * torch.randn(n, width, generator=rng)
    z = direction.double() + spread * F.normalize(inner.double(), dim=1)
    return (z * (1 + 2 * torch.rand(n, 1, generator=rng))).float(), y


def exact(queries: torch.Tensor, bank: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    return (F.normalize(queries.double(), dim=1) @ F.normalize(bank.double(), dim=1).T).topk(k, dim=1)


@pytest.mark.parametrize("spread", [1.0, 0.1, 0.02, 2e-3, 2e-4, 2e-5])
def test_neighbours_are_those_of_float64_at_any_spread(spread, monkeypatch):
    (bank, y), (queries, truth) = around_one_direction(2000, spread, 1), around_one_direction(500, spread, 2)
    monkeypatch.setattr(nearest_file, "BANK_ROWS_PER_BLOCK", 768)
    similarity, index = nearest(queries, bank, 20)
    cosines, rows = exact(queries, bank, 20)
    assert torch.allclose(similarity.double(), cosines, rtol=0, atol=1e-6)
    assert (index == rows).float().mean() > 0.98, "the rest differ by less than rounding"
    votes = torch.zeros(500, CLASSES, dtype=torch.float64)
    votes.scatter_add_(1, y[rows], ((cosines - cosines[:, :1]) / 0.1).exp())
    accuracy = knn_accuracy(bank, y, queries, truth, k=20).accuracy
    assert accuracy == pytest.approx(float((votes.argmax(1) == truth).double().mean()), abs=0.005)
    assert accuracy > 0.9, "the embeddings tell the classes apart"


def test_healthy_embeddings_are_compared_bit_for_bit_as_before():
    (bank, _), (queries, _) = around_one_direction(1500, 2 * CLOSE, 1), around_one_direction(200, 2 * CLOSE, 2)
    s, index = (F.normalize(queries, dim=1) @ F.normalize(bank, dim=1).T).topk(5, dim=1)
    similarity, rows = nearest(queries, bank, 5)
    assert torch.equal(similarity, s) and torch.equal(rows, index)


def test_both_ways_agree_where_both_are_exact(monkeypatch):
    """Also for a query far from the bank, and for zero vectors on either side."""
    bank, queries = around_one_direction(300, 0.5, 1)[0], around_one_direction(40, 0.5, 2)[0]
    bank[7], queries[3], queries[4] = 0, 0, -queries[4]
    plain = nearest(queries, bank, 300)
    monkeypatch.setattr(nearest_file, "CLOSE", 2.0)
    centred = nearest(queries, bank, 300)
    assert torch.allclose(plain[0], centred[0], rtol=0, atol=1e-6)
    assert not centred[0][3].any() or centred[0][3].abs().max() < 1e-7
