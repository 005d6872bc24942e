"""Duplicates, outliers and wrong labels among vectors: held to slow versions, and their expected errors to planted ones."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diptych.base.errors import DataError, RecipeError
from diptych.embeddings.duplicates import (
    chance_of,
    equal_groups,
    groups_of,
    near_duplicates,
)
from diptych.embeddings.label_errors import (
    folds_of,
    probability_right,
    probe_probabilities,
    suspect_labels,
    vote_probabilities,
)
from diptych.embeddings.nearest import nearest_others
from diptych.embeddings.outliers import expected_ordinary, outlier_scores
from diptych.embeddings.picking import pick


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def with_copies(count=800, copies=40, width=8, noise=0.02, seed=0):
    """Points of three clusters in `width` dimensions, and slightly moved copies of the first ones behind them."""
    z = normal(count, width, seed=seed) + 2 * normal(3, width, seed=seed + 1)[torch.arange(count) % 3]
    return torch.cat([z, z[:copies] + noise * normal(copies, width, seed=seed + 2)])


def classes_and_noise(share, gap=2.0, count=3000, classes=4, seed=0):
    """Vectors around one centre a class, their true classes, and labels of which a share is replaced by another class."""
    rng = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (count,), generator=rng)
    z = gap * torch.eye(classes, 12)[y] * 2 + torch.randn(count, 12, generator=rng)
    wrong = torch.rand(count, generator=rng) < share
    labels = torch.where(wrong, (y + 1 + torch.randint(classes - 1, (count,), generator=rng)) % classes, y)
    return z, y, labels


# --- neighbours and duplicates


def test_neighbours_leave_out_the_row_itself():
    z = with_copies(60, 5)
    z[10:16] = z[10]  # more copies than neighbours are wanted
    cosine, index = nearest_others(z, 4)
    assert cosine.shape == index.shape == (65, 4)
    slow = F.normalize(z.double(), dim=1) @ F.normalize(z.double(), dim=1).T
    slow.fill_diagonal_(-2)
    torch.testing.assert_close(cosine.double(), slow.topk(4, dim=1).values, atol=1e-6, rtol=0)
    assert not (index == torch.arange(65)[:, None]).any()
    assert nearest_others(z[:3], 9)[0].shape == (3, 2)
    with pytest.raises(DataError, match="one vector has no neighbours"):
        nearest_others(z[:1], 3)


@pytest.mark.parametrize("seed", range(3))
def test_planted_copies_are_proposed_and_little_else(seed):
    z = with_copies(seed=10 * seed)
    pairs = near_duplicates(z)
    truth = {(i, 800 + i) for i in range(40)}
    proposed = set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))
    assert len(proposed & truth) >= 36
    assert len(proposed - truth) <= max(3, 0.1 * len(proposed))
    assert (pairs.expected_wrong.diff() >= 0).all()


def test_without_copies_next_to_nothing_is_proposed():
    counts = [len(near_duplicates(with_copies(copies=0, seed=seed)).first) for seed in range(5)]
    assert sum(counts) <= 5


def test_the_expected_number_of_wrong_pairs_is_about_right():
    """Summed over sets: never fewer than half of those that are wrong, and not ten times as many."""
    expected, wrong = 0.0, 0
    for seed in range(6):
        pairs = near_duplicates(with_copies(copies=20, seed=100 + seed), wrong=1.0)
        right = (pairs.second == pairs.first + 800).tolist()
        first = 40
        expected += float(pairs.expected_wrong[first - 1])
        wrong += right[:first].count(False)
    assert wrong / 2 <= expected <= 10 * wrong


def test_mirrored_vectors_find_mirrored_copies():
    z = normal(400, 8)
    z[200:220] = z[:20].flip(1)
    mirrored = z.flip(1)
    assert len(near_duplicates(z).first) <= 2
    pairs = near_duplicates(z, mirrored=mirrored)
    assert {(i, 200 + i) for i in range(20)} <= set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))


def test_groups_are_connected():
    assert groups_of([5, 1, 7, 2], [3, 2, 8, 4]) == [[3, 5], [1, 2, 4], [7, 8]]
    assert groups_of([], []) == []
    assert equal_groups(["a", None, "b", "a", None, "b", "a", "c"]) == [[0, 3, 6], [2, 5]]


def test_the_tail_of_a_null_is_its_power():
    null = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** (1 / 3)
    at = torch.tensor([0.02, 0.1, 0.5, 0.9], dtype=torch.float64)
    torch.testing.assert_close(chance_of(at, null), at**3, rtol=0.6, atol=0)
    assert chance_of(at, null[:0]).tolist() == [1.0] * 4


# --- outliers


def test_outliers_come_first_with_an_honest_count():
    expected, ordinary = 0.0, 0
    for seed in range(6):
        z = torch.cat([normal(1000, 6, seed=seed) + torch.tensor([6.0, 0, 0, 0, 0, 0]), -normal(10, 6, seed=seed + 50)])
        scores, near = outlier_scores(z)
        order = scores.argsort(descending=True)
        assert near.shape == scores.shape == (1010,)
        assert (order[:10] >= 1000).sum() >= 8
        expected += float(expected_ordinary(scores[order])[39])
        ordinary += int((order[:40] < 1000).sum())
    assert ordinary / 2 <= expected <= 2 * ordinary


def test_outlier_score_is_the_mean_distance():
    z = normal(50, 5)
    u = F.normalize(z.double(), dim=1)
    distance = torch.cdist(u, u)
    distance.fill_diagonal_(math.inf)
    torch.testing.assert_close(
        outlier_scores(z, 7)[0], distance.topk(7, largest=False).values.mean(1), atol=1e-5, rtol=0
    )


# --- labels


def test_no_label_is_used_for_its_own_probability():
    z, y, _ = classes_and_noise(0.0, count=300)
    for probabilities in (lambda y: probe_probabilities(z, y, 4), lambda y: vote_probabilities(z, y, 4)):
        before = probabilities(y)
        torch.testing.assert_close(before.sum(1), torch.ones(300, dtype=torch.float64))
        other = y.clone()
        other[7] = (y[7] + 1) % 4
        after = probabilities(other)
        assert after[7, other[7]] < 0.6 and after[7].argmax() == before[7].argmax()
    fold_M = folds_of(y, 5, 0)
    assert all(int((fold_M[y == c] == f).sum()) >= int((y == c).sum()) // 5 for c in range(4) for f in range(5))


@pytest.mark.parametrize("share", [0.02, 0.1])
def test_planted_labels_come_first(share):
    z, y, labels = classes_and_noise(share)
    suspects = suspect_labels(z, labels.tolist())
    wrong = (labels != y)[suspects.row]
    count = int(wrong.sum())
    assert wrong[:count].double().mean() > 0.8
    assert suspects.noise == pytest.approx(share, abs=0.02)
    right_suggestion = torch.tensor(suspects.classes)[suspects.suggestion[:count]] == y[suspects.row[:count]]
    assert right_suggestion[wrong[:count]].double().mean() > 0.9


@pytest.mark.parametrize(("share", "gap"), [(0.02, 2.0), (0.05, 1.3), (0.1, 2.0), (0.1, 1.3)])
def test_the_expected_number_of_right_labels_is_about_right(share, gap):
    """Of the first k labels, with classes that are apart (gap 2) and that overlap (1.3)."""
    expected, right, count = 0.0, 0, 0
    for seed in range(3):
        z, y, labels = classes_and_noise(share, gap, seed=seed)
        suspects = suspect_labels(z, labels.tolist())
        k = int(1.5 * share * len(y))
        expected += float(suspects.expected_right[k - 1])
        right += int((labels == y)[suspects.row[:k]].sum())
        count += k
    assert abs(expected - right) < 0.15 * count


def test_bayes_by_counting():
    """P(label right | vector, label), against draws from the noise model."""
    rng = np.random.default_rng(0)
    q, noise = np.array([0.7, 0.2, 0.1]), 0.2
    true = rng.choice(3, 200_000, p=q)
    labels = np.where(rng.random(200_000) < noise, (true + rng.integers(1, 3, 200_000)) % 3, true)
    p = torch.from_numpy(np.bincount(labels, minlength=3) / 200_000).repeat(3, 1)
    computed = probability_right(p, torch.arange(3), noise)
    counted = torch.tensor([(true == labels)[labels == c].mean() for c in range(3)])
    torch.testing.assert_close(computed, counted, atol=0.02, rtol=0)


def test_where_classes_overlap_the_expected_number_is_a_lower_bound():
    z, y, labels = classes_and_noise(0.1, 0.6)
    suspects = suspect_labels(z, labels.tolist())
    right = (labels == y)[suspects.row].cumsum(0)
    assert all(float(suspects.expected_right[k]) < int(right[k]) for k in (100, 300, 600))


# --- picking


def test_picks_are_different_typical_and_the_same_again():
    z = with_copies(300, 100, noise=0.001)
    rows = pick(z, 30)
    assert (
        len(set(rows.tolist())) == 30 and torch.equal(rows, pick(z, 30)) and not torch.equal(rows, pick(z, 30, seed=1))
    )
    parents = {row if row < 300 else row - 300 for row in rows.tolist()}
    assert len(parents) == 30, "an image and its copy"
    torch.testing.assert_close(pick(z * 3.0, 30), rows)  # directions alone count


def test_a_cluster_is_never_left_out():
    """Nine large clusters and a small one: random picks of ten miss the small one as a rule."""
    sizes = [100] * 9 + [30]
    of = torch.repeat_interleave(torch.arange(10), torch.tensor(sizes))
    z = 5 * torch.eye(10)[of] + 0.3 * normal(len(of), 10)
    assert set(of[pick(z, 10)].tolist()) == set(range(10))


def test_all_distinct_rows_are_picked_where_the_budget_allows():
    z = torch.cat([normal(12, 4)] * 2)
    assert sorted(row % 12 for row in pick(z, 24).tolist()) == list(range(12))
    assert pick(z[:1], 1).tolist() == [0]


# --- bad input

NAN = torch.full((30, 3), math.nan)


@pytest.mark.parametrize(
    ("function", "error", "words"),
    [
        (lambda: near_duplicates(NAN), DataError, "30 of 30 given embeddings hold NaN"),
        (lambda: near_duplicates(normal(30, 3), mirrored=normal(30, 2)), DataError, "2 wide, the others 3"),
        (lambda: near_duplicates(normal(30, 3), wrong=2), RecipeError, "from 0 to 1"),
        (lambda: outlier_scores(torch.zeros(0, 3)), DataError, "neither 0"),
        (lambda: suspect_labels(normal(30, 3), [1] * 30), DataError, "two classes or more"),
        (lambda: suspect_labels(normal(30, 3), [1, 2]), DataError, "30 embeddings and 2 labels"),
        (lambda: suspect_labels(NAN, [0, 1] * 15), DataError, "NaN"),
        (lambda: pick(NAN, 3), DataError, "NaN"),
        (lambda: pick(normal(30, 3), 31), RecipeError, "a budget of 31 cannot be picked from 30 vectors; give 1 to 30"),
        (lambda: pick(normal(30, 3), 0), RecipeError, "a budget of 0"),
    ],
)
def test_bad_input_is_one_line(function, error, words):
    with pytest.raises(error, match=words) as raised:
        function()
    assert "\n" not in str(raised.value)
