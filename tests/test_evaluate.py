"""Accuracies, held to scikit-learn and to slow versions written from the papers."""

import json
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from diptych.base.errors import DataError, RecipeError
from diptych.downstream.results import Evaluation
from diptych.embeddings import nearest as nearest_file
from diptych.embeddings import probe
from diptych.embeddings.diagnose import Diagnosis, diagnose
from diptych.embeddings.lamps import VERDICTS
from diptych.embeddings.nearest import nearest
from diptych.embeddings.probe import PENALTIES, fit_probe, softmax_regression, split, value_and_gradient
from diptych.embeddings.scores import (
    accuracy_interval,
    chance,
    check_classes,
    knn_accuracy,
    linear_probe,
    top_k_accuracy,
    votes,
)


def clusters(n, width=12, classes=4, noise=1.5, seed=0):
    """Embeddings (n, width) around one centre a class, strongly correlated and of unlike scales, and their
    classes."""
    rng = torch.Generator().manual_seed(100)
    centres, mix = torch.randn(classes, width, generator=rng), torch.randn(width, width, generator=rng)
    mix *= torch.logspace(0, -2, width)[:, None]
    rng = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (n,), generator=rng)
    return ((centres[y] + noise * torch.randn(n, width, generator=rng)) @ mix + 3), y


# --- nearest neighbours -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bank", "k"), [(2 * 16384 + 77, 200), (16384, 3), (300, 200), (5, 9), (1, 1)])
def test_nearest_is_scikit_learns(bank, k):
    z, queries = clusters(bank, 8)[0], clusters(260, 8, seed=1)[0]
    similarity, index = nearest(queries, z, k)
    oracle = NearestNeighbors(n_neighbors=min(k, bank), metric="cosine", algorithm="brute").fit(z.double().numpy())
    distance, rows = oracle.kneighbors(queries.double().numpy())
    assert similarity.shape == index.shape == (260, min(k, bank))
    torch.testing.assert_close(similarity.double(), 1 - torch.from_numpy(distance), atol=1e-5, rtol=0)
    # float32 may order neighbours otherwise that float64 tells apart in the seventh digit
    assert (index == torch.from_numpy(rows)).double().mean() > 0.98
    cosine = torch.cosine_similarity(queries[:, None].double(), z[index].double(), dim=2)
    torch.testing.assert_close(similarity.double(), cosine, atol=1e-5, rtol=0)
    assert all(len(set(row)) == len(row) for row in index.tolist())


@pytest.mark.parametrize("k", [1, 7, 15, 16, 17, 128, 500])
def test_blocks_and_groups_do_not_show(monkeypatch, k):
    z, queries = clusters(500, 8)[0], clusters(41, 8, seed=1)[0]
    whole = nearest(queries, z, k)
    for rows, columns in ((1, 500), (7, 128), (41, 129), (8, 1)):
        monkeypatch.setattr(nearest_file, "QUERIES_PER_BLOCK", rows)
        monkeypatch.setattr(nearest_file, "BANK_ROWS_PER_BLOCK", columns)
        parts = nearest(queries, z, k)
        torch.testing.assert_close(parts[0], whole[0])
        assert torch.equal(parts[1].sort(1)[0], whole[1].sort(1)[0])


def test_the_vote_is_the_papers():
    """Wu et al. 2018, by loops in float64: the sum over the k nearest of the class of exp(cosine /
    temperature)."""
    (z, y), (queries, truth) = clusters(120), clusters(60, seed=1)
    answers = votes(z, y, queries, 4, k=15, temperature=0.07).argmax(1).tolist()
    for query, answer in zip(queries.double(), answers, strict=True):
        cosines = [float(query @ row / query.norm() / row.norm()) for row in z.double()]
        sums = dict.fromkeys(range(4), 0.0)
        for at in sorted(range(120), key=lambda i: -cosines[i])[:15]:
            sums[int(y[at])] += math.exp(cosines[at] / 0.07)
        assert answer == max(sums, key=sums.get)
    score = knn_accuracy(z, y, queries, truth, k=15, temperature=0.07)
    assert score.accuracy == pytest.approx(np.mean(np.array(answers) == truth.numpy()))
    assert 0.3 < score.accuracy < 1  # neither chance nor trivial: the comparison above means something


def test_knn_is_scikit_learns():
    (z, y), (queries, truth) = clusters(900, 16), clusters(300, 16, seed=1)
    oracle = KNeighborsClassifier(50, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.1))
    expected = oracle.fit(z.double().numpy(), y.numpy()).score(queries.double().numpy(), truth.numpy())
    assert knn_accuracy(z, y, queries, truth, k=50).accuracy == pytest.approx(expected, abs=1e-9)


def test_near_neighbours_outvote_many():
    bank, near_or_far = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0]]), torch.tensor([0, 1, 1])
    for temperature, answer in ((0.1, 0), (50, 1)):
        counts = votes(bank, near_or_far, torch.tensor([[1.0, 0.2]]), 2, k=3, temperature=temperature)
        assert counts.argmax(1).tolist() == [answer]


def test_knn_sees_directions_only():
    (z, y), (queries, truth) = clusters(200), clusters(100, seed=1)
    score = knn_accuracy(z, y, queries, truth, k=20)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    stretch = torch.rand(200, 1, generator=torch.Generator().manual_seed(1)) + 0.5
    assert knn_accuracy((z * stretch)[order], y[order], queries * 7, truth, k=20).accuracy == score.accuracy
    cold = knn_accuracy(z, y, queries, truth, k=20, temperature=1e-4)
    assert cold.accuracy == knn_accuracy(z, y, queries, truth, k=1).accuracy  # the nearest alone, and no overflow


def test_k_is_capped_and_told():
    (z, y), (queries, truth) = clusters(50), clusters(20, seed=1)
    score = knn_accuracy(z, y, queries, truth, k=200)
    assert score.details["k"] == 50 and score.details["note"] == "k was 200; there are only 50 training images"
    assert "note" not in knn_accuracy(z, y, queries, truth, k=50).details
    for wrong in ({"k": 0}, {"temperature": 0.0}):
        with pytest.raises(RecipeError):
            knn_accuracy(z, y, queries, truth, **wrong)


@pytest.mark.parametrize(
    ("counts", "k"), [((4, 30), 10), ((11, 30), 11), ((60, 75, 90), 60), ((200, 1000), 200), ((5000, 5000), 200)]
)
def test_k_follows_the_smallest_class(counts, k):
    """As many as it has images, 10 to 200: the published 200 for all sets with enough of them."""
    y = torch.cat([torch.full((n,), label) for label, n in enumerate(counts)])
    z = torch.randn(len(y), 3, generator=torch.Generator().manual_seed(0))
    score = knn_accuracy(z, y, z[:40], y[:40])
    assert score.details["k"] == k and "note" not in score.details
    assert score.accuracy == knn_accuracy(z, y, z[:40], y[:40], k=k).accuracy
    table = str(Evaluation([replace(score, subject="trained")]))
    assert f"knn: vote of the k = {k} nearest training images" in table
    linear = replace(score, subject="trained", protocol="linear", details={})
    assert "vote" not in str(Evaluation([linear]))


# --- the linear probe ---------------------------------------------------------------------------------------


def scikit(x, y, penalty):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on the way to 1e-9 it runs out of iterations, after the digits that count
        return LogisticRegression(C=1 / (penalty * len(x)), tol=1e-9, max_iter=5000).fit(x.double().numpy(), y.numpy())


@pytest.mark.parametrize("penalty", [1.0, 1e-2, 1e-4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_softmax_regression_is_scikit_learns(penalty, dtype):
    z, y = clusters(1500, 24, 5, noise=2.0)
    x = ((z - z.mean(0)) / z.std(0)).to(dtype)
    found = softmax_regression(x, y, 5, penalty)
    oracle = scikit(x, y, penalty)
    ours = (x @ found.weight_EK + found.bias_K).argmax(1).numpy()
    assert np.mean(ours == oracle.predict(x.double().numpy())) >= 0.999
    weights, bias = torch.from_numpy(oracle.coef_.T), torch.from_numpy(oracle.intercept_)
    best, *_ = value_and_gradient(x.double(), y, weights, bias, penalty)
    value, *_ = value_and_gradient(x.double(), y, found.weight_EK.double(), found.bias_K.double(), penalty)
    assert float(value) <= float(best) + 1e-7
    assert found.gradient_norm < 1e-4
    assert 0.4 < oracle.score(x.double().numpy(), y.numpy()) < 0.99


def test_the_gradient_is_autograds(monkeypatch):
    z, y = clusters(60, 6, 4)
    z = z.double()
    rng = torch.Generator().manual_seed(0)
    w = torch.randn(6, 4, dtype=torch.float64, generator=rng, requires_grad=True)
    b = torch.randn(4, dtype=torch.float64, generator=rng, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(z @ w + b, y) + 0.05 * w.square().sum()
    loss.backward()
    for block in (2**24, 28, 1):
        monkeypatch.setattr(probe, "LOGITS_PER_BLOCK", block)
        value, slope_w, slope_b = value_and_gradient(z, y, w.detach(), b.detach(), 0.1)
        torch.testing.assert_close(value, loss.detach())
        torch.testing.assert_close(slope_w, w.grad)
        torch.testing.assert_close(slope_b, b.grad)


def test_a_start_changes_the_way_only():
    z, y = clusters(400, 12, 4, noise=3.0)
    x = ((z - z.mean(0)) / z.std(0)).double()
    cold = softmax_regression(x, y, 4, 1e-3)
    warm = softmax_regression(x, y, 4, 1e-3, start=cold)
    assert warm.iterations <= 1 < cold.iterations
    torch.testing.assert_close(warm.weight_EK, cold.weight_EK, atol=1e-3, rtol=1e-3)


def test_linear_probe_is_scikit_learn_at_the_chosen_penalty():
    (z, y), (queries, truth) = clusters(800, 16, 4, noise=3.0), clusters(400, 16, 4, noise=3.0, seed=1)
    score = linear_probe(z, y, queries, truth)
    scale = lambda v: (v.double() - z.double().mean(0)) / z.double().std(0, correction=0)  # noqa: E731
    oracle = scikit(scale(z), y, score.details["penalty"])
    assert score.accuracy == pytest.approx(oracle.score(scale(queries).numpy(), truth.numpy()), abs=0.0026)
    assert score.details["train_accuracy"] == pytest.approx(oracle.score(scale(z).numpy(), y.numpy()), abs=0.0013)
    assert score.details["converged"] and score.details["gradient_norm"] < 1e-4 and score.details["dtype"] == "float64"
    assert not score.details["penalty_at_end"] or score.details["penalty"] in (PENALTIES[0], PENALTIES[-1])


def test_large_sets_are_fitted_in_float32(monkeypatch):
    """On these columns, nearly all of them mixtures of few, float32 cannot show convergence at 1e-6, and does not say so."""
    (z, y), (queries, truth) = clusters(800, 16), clusters(400, 16, seed=1)
    for penalties, converged in ((PENALTIES[:-1], True), ((1e-6,), False)):
        monkeypatch.setattr(probe, "DOUBLE", 2**22)
        wide = linear_probe(z, y, queries, truth, penalties=penalties)
        monkeypatch.setattr(probe, "DOUBLE", 100)
        narrow = linear_probe(z, y, queries, truth, penalties=penalties)
        assert wide.details["converged"] and narrow.details["dtype"] == "float32"
        assert narrow.details["converged"] == converged
        assert narrow.accuracy == pytest.approx(wide.accuracy, abs=0.005)


def test_the_penalty_is_chosen_without_the_test_set():
    (z, y), (queries, truth) = clusters(120, 60, 4, noise=3.0), clusters(200, 60, 4, noise=3.0, seed=1)
    score = linear_probe(z, y, queries, truth)
    shuffled = linear_probe(z, y, queries.flip(0), truth)
    assert shuffled.details["held_out"] == score.details["held_out"]
    tried = score.details["held_out"]
    assert [one["penalty"] for one in tried] == list(PENALTIES[: len(tried)])
    best = max(one["accuracy"] for one in tried)
    assert score.details["penalty"] == next(one["penalty"] for one in tried if one["accuracy"] == best)


def test_the_path_ends_after_two_weaker_penalties_in_vain():
    z, y = clusters(200, 150, 4, noise=6.0)  # nearly as many dimensions as images: weak penalties overfit
    probe = fit_probe(z, y, 4)
    accuracies = [one["accuracy"] for one in probe.tried]
    assert len(accuracies) < len(PENALTIES)
    assert len(accuracies) - 1 - accuracies.index(max(accuracies)) == 2


def test_the_same_seed_gives_the_same_number():
    (z, y), (queries, truth) = clusters(300, 16, noise=4.0), clusters(200, 16, noise=4.0, seed=1)
    assert linear_probe(z, y, queries, truth, seed=3) == linear_probe(z, y, queries, truth, seed=3)
    others = {str(linear_probe(z, y, queries, truth, seed=s).details["held_out"]) for s in range(4)}
    assert len(others) > 1


def test_the_split_holds_out_a_fifth_of_each_class():
    y = torch.tensor([0] * 50 + [1] * 10 + [2] * 2 + [3])
    kept, held = split(y, 0)
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(63))
    assert torch.bincount(y[held], minlength=4).tolist() == [10, 2, 1, 0]
    assert not torch.equal(held, split(y, 1)[1])


def test_shifting_and_stretching_columns_changes_nothing():
    (z, y), (queries, truth) = clusters(300, 12, noise=3.0), clusters(300, 12, noise=3.0, seed=1)
    stretch, shift = torch.logspace(-2, 2, 12), torch.linspace(-5, 5, 12)
    plain = linear_probe(z, y, queries, truth)
    moved = linear_probe(z * stretch + shift, y, queries * stretch + shift, truth)
    assert moved.accuracy == pytest.approx(plain.accuracy, abs=0.004)


@pytest.mark.parametrize("value", [0.0, 7.3, 1e4])
def test_a_constant_column_changes_nothing(value):
    (z, y), (queries, truth) = clusters(200, 12, noise=2.0), clusters(200, 12, noise=2.0, seed=1)
    rounding = value * (1 + 1e-7 * torch.randn(200, 1, generator=torch.Generator().manual_seed(0)))
    plain, extra = linear_probe(z, y, queries, truth), torch.full((200, 1), value)
    with_column = linear_probe(torch.cat([z, rounding], 1), y, torch.cat([queries, extra], 1), truth)
    assert with_column.accuracy == plain.accuracy
    knn = knn_accuracy(torch.cat([z, extra], 1), y, torch.cat([queries, extra], 1), truth)
    assert math.isfinite(knn.accuracy)


def test_hard_arrays_give_numbers():
    (z, y), (queries, truth) = clusters(40, 12, noise=0.1), clusters(40, 12, noise=0.1, seed=1)
    doubled = linear_probe(torch.cat([z, z], 1), y, torch.cat([queries, queries], 1), truth)  # singular covariance
    assert doubled.accuracy == 1 and doubled.details["converged"]
    wide = linear_probe(z.repeat(1, 20), y, queries.repeat(1, 20), truth)  # more dimensions than images
    assert wide.accuracy == 1 and wide.details["converged"]
    same = linear_probe(torch.ones(40, 3), y, torch.ones(40, 3), truth)  # a collapsed encoder
    assert same.accuracy == pytest.approx((truth == y.mode()[0]).double().mean().item())
    assert knn_accuracy(torch.zeros(40, 3), y, torch.zeros(40, 3), truth).accuracy <= 1


def test_rounding_of_a_flat_spectrum_is_survived():
    """400 columns that are mixtures of two: in float32 their Gram matrix has eigenvalues below -1e-6."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(100, 2, generator=rng) @ torch.randn(2, 400, generator=rng)
    x = (x - x.mean(0)) / x.std(0)
    assert torch.linalg.cholesky_ex(x.T @ x / 200 + 1e-6 * torch.eye(400)).info > 0
    found = softmax_regression(x, (x[:, 0] > 0).long(), 2, 1e-6)
    assert ((x @ found.weight_EK + found.bias_K).argmax(1) == (x[:, 0] > 0)).all()


def test_one_image_a_class_is_told():
    z, y = torch.eye(4), torch.arange(4)
    score = linear_probe(z, y, z, y)
    assert score.accuracy == 1 and score.details["held_out"] == [] and "one image per class" in score.details["note"]


def test_penalties_are_positive():
    z, y = clusters(20)
    for penalties in ((), (0.0, 1.0), (-1.0,)):
        with pytest.raises(RecipeError, match="penalties"):
            linear_probe(z, y, z, y, penalties=penalties)


# --- what surrounds an accuracy -----------------------------------------------------------------------------


def test_wilsons_interval():
    """The worked case 95 of 100 (0.888, 0.978); and at 0 and 100 % z^2 / (n + z^2)."""
    low, high = accuracy_interval(torch.arange(100) < 95)
    assert (low, high) == pytest.approx((0.88825, 0.97846), abs=1e-4)
    edge = 1.959964**2 / (20 + 1.959964**2)
    assert accuracy_interval([False] * 20) == pytest.approx((0, edge))
    assert accuracy_interval(np.ones(20, dtype=bool)) == pytest.approx((1 - edge, 1))


def test_the_interval_covers_95_percent():
    rng, share, n = np.random.default_rng(0), 0.87, 200
    drawn = [accuracy_interval(rng.random(n) < share) for _ in range(2000)]
    assert 0.93 < np.mean([low <= share <= high for low, high in drawn]) < 0.97


def test_chance_is_the_largest_class():
    score = chance(["cat", "dog", "cat", "emu"])
    assert score.accuracy == 0.5 and score.details == {"answer": "cat"} and score.classes == 3
    assert score.interval[0] < 0.5 < score.interval[1]


def test_top_k():
    scores = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    truth = torch.tensor([0, 1, 2])
    assert [top_k_accuracy(scores, truth, k) for k in (1, 2, 3, 9)] == pytest.approx([1 / 3, 2 / 3, 1, 1])


def test_top5_is_told_where_it_says_something():
    (z, y), (queries, truth) = clusters(300, 12, 9, noise=3.0), clusters(100, 12, 9, noise=3.0, seed=1)
    for score in (knn_accuracy(z, y, queries, truth), linear_probe(z, y, queries, truth)):
        assert score.accuracy < score.details["top5_accuracy"] < 1
    (z, y), (queries, truth) = clusters(50), clusters(50, seed=1)
    assert "top5_accuracy" not in knn_accuracy(z, y, queries, truth).details


def test_labels_may_be_numbers_or_names():
    (z, y), (queries, truth) = clusters(100), clusters(50, seed=1)
    names = np.array(["dog", "ant", "cat", "bee"])
    expected = [judge(z, y, queries, truth).accuracy for judge in (knn_accuracy, linear_probe)]
    for a, b in (
        (y.tolist(), truth.numpy()),
        (list(y), truth.tolist()),
        (names[y], names[truth].tolist()),
        (y * 7, truth * 7),
    ):
        found = [judge(z.numpy(), a, queries.numpy(), b).accuracy for judge in (knn_accuracy, linear_probe)]
        assert found == pytest.approx(expected, abs=0.021)  # other names, other split of the training set
    lacking = truth != 2
    assert knn_accuracy(z, y, queries[lacking], truth[lacking]).classes == 4  # a test set may lack a class


@pytest.mark.parametrize("judge", [knn_accuracy, linear_probe])
def test_what_cannot_be_judged(judge):
    (z, y), (queries, truth) = clusters(50), clusters(20, seed=1)
    bad = queries.clone()
    bad[3, 2], bad[7] = math.nan, math.inf
    faults = {
        r"2 of 20 test embeddings": (z, y, bad, truth),
        r"2 of 20 training embeddings": (bad, truth, z, y),
        r"training set has 0, 1, 2, 3; the test set has 0, 1, 2, 3, 9": (
            z,
            y,
            queries,
            [9, *truth[1:].tolist()],
        ),
        r"has 0, 1, 2, 3; the test set has a, b": (z, y, queries, ["a", "b"] * 10),
        r"every training image is of class 'cat'": (z, ["cat"] * 50, queries, ["cat"] * 20),
        r"50 training embeddings and 49 labels": (z, y[1:], queries, truth),
        r"12 wide": (z[:, :5], y, queries, truth),
        r"\(0, 12\)": (z, y, queries[:0], truth[:0]),
        r"\(50,\)": (z[:, 0], y, queries, truth),
        r"have no labels": (z, None, queries, truth),
        r"got NoneType, int": (z, [None, *y[1:].tolist()], queries, truth),
        r"got float": (z, y.float(), queries, truth),
    }
    for message, arrays in faults.items():
        with pytest.raises(DataError, match=message):
            judge(*arrays)


def test_many_classes_are_not_all_listed():
    with pytest.raises(DataError, match=r"0, 1, .*, 19 and 80 more; the test set has 0, 5000"):
        check_classes(range(100), [0, 5000])
    assert check_classes(["b", "a", "b"]) == ["a", "b"]


def test_an_evaluation_is_lines_of_the_log():
    (z, y), (queries, truth) = clusters(200, noise=0.5), clusters(100, noise=0.5, seed=1)
    scores = [knn_accuracy(z, y, queries, truth), linear_probe(z, y, queries, truth, seed=4)]
    scores = [replace(score, subject="trained") for score in scores]
    evaluation = Evaluation([replace(chance(truth), protocol="knn", subject="chance"), *scores], diagnose(queries))
    lines = evaluation.lines()
    assert lines == json.loads(json.dumps(lines))
    assert [(line["protocol"], line["subject"]) for line in lines[:-1]] == [
        ("knn", "chance"),
        ("knn", "trained"),
        ("linear", "trained"),
    ]
    sizes = {"train_images", "test_images", "classes"}
    assert all(set(line) == {"protocol", "subject", "accuracy", "interval", "seed", "details"} | sizes
               and len(line["interval"]) == 2 for line in lines[:-1])  # fmt: skip
    assert set(lines[-1]) == {"diagnosis"} and lines[-1]["diagnosis"]["verdict"] in VERDICTS
    assert (lines[1]["seed"], lines[2]["seed"]) == (None, 4)
    assert lines[1]["train_images"] == 200 and lines[1]["test_images"] == 100
    assert evaluation.score("linear") == scores[1] and evaluation.score("knn", "chance").details == {
        "answer": truth.mode()[0]
    }
    with pytest.raises(RecipeError, match="knn of trained"):
        evaluation.score("knn", "untrained")


def test_an_evaluation_is_a_table():
    (z, y), (queries, truth) = clusters(200, noise=0.5), clusters(100, noise=0.5, seed=1)
    knn = replace(knn_accuracy(z, y, queries, truth), subject="trained")
    seeds = {"accuracies": [0.5, 0.75], "spread": 0.125}
    scratch = replace(
        knn, protocol="finetune", subject="from scratch", accuracy=0.625, interval=(0.5, 0.7), details=seeds
    )
    text = str(Evaluation([knn, scratch], Diagnosis("WARNING", {}, ["few dimensions"], ["a lower rate"])))
    header, first, second, sizes, vote, spread, *verdict = text.splitlines()
    assert header.split() == ["accuracy,", "%", "knn", "finetune"]
    low, high = (f"{100 * end:.1f}" for end in knn.interval)
    assert first.split() == ["trained", f"{100 * knn.accuracy:.1f}", f"[{low}-{high}]"]
    assert second.endswith("62.5 [50.0-70.0]") and second.startswith("from scratch") and len(second) == len(header)
    assert sizes == "100 test and 200 training images of 4 classes; [95 % interval over the test images]"
    assert vote == "knn: vote of the k = 42 nearest training images"
    assert spread == "from scratch: mean of 2 seeds, standard deviation 12.5 (50.0, 75.0)"
    assert verdict == ["verdict: WARNING; few dimensions", "  try: a lower rate"]
    assert "verdict" not in str(Evaluation([knn]))
