"""The paired comparison of two accuracies, against scipy and against simulated test sets."""

import numpy as np
import pytest
import torch
from scipy import stats

from diptych.base.errors import DataError
from diptych.base.random_at import random_at
from diptych.embeddings.paired import mcnemar, mean_interval, paired_difference
from diptych.embeddings.scores import knn_accuracy, linear_probe, score


def pair(both: int, more: int, fewer: int, neither: int) -> tuple[torch.Tensor, torch.Tensor]:
    a = [True] * (both + more) + [False] * (fewer + neither)
    b = [True] * both + [False] * more + [True] * fewer + [False] * neither
    return torch.tensor(a), torch.tensor(b)


@pytest.mark.parametrize("more, fewer", [(0, 0), (1, 0), (5, 0), (6, 0), (10, 3), (40, 41), (700, 800), (3000, 2500)])
def test_the_test_is_the_binomial_one(more, fewer):
    expected = stats.binomtest(more, more + fewer).pvalue if more + fewer else 1.0
    assert mcnemar(more, fewer) == mcnemar(fewer, more) == pytest.approx(expected, rel=1e-6)


def test_the_difference_and_its_sign():
    a, b = pair(60, 20, 5, 15)
    ours = paired_difference(a, b)
    assert ours.difference == pytest.approx(0.15) and ours.significant and 0 < ours.interval[0] < 0.15
    other = paired_difference(b.numpy(), a.numpy())
    assert other.difference == -ours.difference and other.p == ours.p
    assert other.interval == pytest.approx((-ours.interval[1], -ours.interval[0]))
    middle, half = 15 / 102, 1.959964 * (26 - 15**2 / 102) ** 0.5 / 102
    assert ours.interval == pytest.approx((middle - half, middle + half))


def test_only_images_of_disagreement_count():
    assert paired_difference(*pair(500, 8, 0, 492)).significant  # two separate intervals of +-3 points overlap
    assert not paired_difference(*pair(500, 5, 0, 495)).significant
    same = paired_difference(*pair(30, 0, 0, 20))
    assert same.difference == 0 and same.p == 1 and same.interval[0] < 0 < same.interval[1] and not same.significant


def test_one_lucky_seed_is_not_a_difference():
    rng = np.random.default_rng(3)
    b = rng.random((3, 500)) < 0.6
    a = b.copy()
    a[0] |= rng.random(500) < 0.5
    assert paired_difference(a[0], b[0]).significant and not paired_difference(a, b).significant
    assert paired_difference(a, b).p > 0.05 and paired_difference(a, b).over == "test images and seeds"


def test_what_is_not_right_or_wrong_is_refused():
    right = torch.ones(4, dtype=torch.bool)
    for wrong in (torch.ones(4), right[:0], torch.ones(2, 2, 2).bool()):
        with pytest.raises(DataError, match="boolean"):
            paired_difference(wrong, wrong)
    with pytest.raises(DataError, match="same test images"):
        paired_difference(right, right[:3])
    with pytest.raises(DataError, match="8 groups of test images at least, these have 2"):
        paired_difference(right, right, np.array([0, 0, 1, 1]))
    with pytest.raises(DataError, match="3 group numbers for 4"):
        mean_interval(right, np.array([0, 0, 1]))


def test_scores_know_which_images_were_right():
    z = torch.randn(60, 5, generator=random_at(0, "vectors"))
    y = (z[:, 0] > 0).long() + 2 * (z[:, 1] > 0).long()
    for result in (knn_accuracy(z[:40], y[:40], z[40:], y[40:], k=5), linear_probe(z[:40], y[:40], z[40:], y[40:])):
        assert result.correct is not None and result.correct.dtype == torch.bool and result.correct.shape == (20,)
        assert result.correct.double().mean() == pytest.approx(result.accuracy)
        assert "correct" not in result.line()
    direct = score("p", torch.tensor([[1.0, 0], [1, 0], [0, 1]]), torch.tensor([0, 1, 1]), 3, 2, None, {})
    assert direct.correct is not None and direct.correct.tolist() == [True, False, True]
