"""The books of benchmarks.audit are right."""

import numpy as np
import pytest
import torch
from scenes import scene
from sklearn.metrics import average_precision_score

from benchmarks import audit, audit_planted


def test_copies_are_of_their_kinds():
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(np.stack([scene(rng, 32) for _ in range(10)])).permute(0, 3, 1, 2).contiguous()
    copies = audit_planted.plant(pixels, seed=0)
    assert torch.equal(copies[[0, 5]], pixels[[0, 5]]) and torch.equal(copies[[3, 8]], pixels[[3, 8]].flip(3))
    difference = (copies.float() - pixels.float()).abs().mean((1, 2, 3))
    assert all(0.1 < difference[i] < 40 for i in (1, 2, 4, 6, 7, 9))
    assert torch.equal(copies, audit_planted.plant(pixels, seed=0))


def test_recall_and_precision_are_counted_by_pair():
    truth = {(0, 5): "exact", (1, 6): "mirrored", (2, 7): "mirrored"}
    judged = audit.judged_set({(0, 5), (1, 6), (3, 4)}, truth)
    assert judged["recall"] == pytest.approx(2 / 3, abs=1e-4) and judged["precision"] == pytest.approx(2 / 3, abs=1e-4)
    assert judged["recall_of"]["mirrored"] == 0.5 and judged["recall_of"]["exact"] == 1


def test_average_precision_is_scikit_learns():
    rng = torch.Generator().manual_seed(0)
    score, wrong = torch.rand(200, generator=rng), torch.rand(200, generator=rng) < 0.1
    assert audit.precision(score.argsort(), wrong) == pytest.approx(average_precision_score(wrong, -score), abs=1e-3)


def test_squares_of_photographs_do_not_overlap():
    squares = audit_planted.apart_squares(tries=60)
    assert squares.shape[1:] == (3, 32, 32) and len(squares) > 100
    assert len({row.numpy().tobytes() for row in squares}) == len(squares)


def test_a_picture_of_pairs():
    pixels = torch.zeros(3, 3, 32, 32, dtype=torch.uint8)
    assert audit.draw([(0, 1, 0.9), (1, 2, 0.8)], pixels, pixels).size[0] == 8 * (2 * 84 + 16)
