"""Suspected wrong labels, from vectors and labels alone.

M: vectors, E: width, K: classes; z: embedding, y: label, p: probability.

Probabilities are out of sample: of a vector, from classifiers that have not seen its label. The score of a label is their
probability of it (self-confidence, Northcutt et al. 2021). How many of the first k are right is computed by Bayes' rule from
a noise model: a share e of the labels is replaced by another class, each equally often.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.base.errors import DataError
from diptych.base.random_at import random_at
from diptych.embeddings.nearest import Array, checked_embeddings
from diptych.embeddings.probe import PENALTIES, fit_probe
from diptych.embeddings.scores import TEMPERATURE, check_classes, neighbours_for, votes

FOLDS = 5
LOGIT_FACTORS = torch.logspace(-1.5, 1, 101, dtype=torch.float64)  # of the calibration
CONFIDENT, NEARLY = 0.05, 0.98  # share of the images on which the noise is counted; and those nearly as confident
FEWEST_CONFIDENT = 50
FEWEST_HITS, MOST_BINS = 10, 200  # of the calibration of all probabilities
PRIOR = 1.0  # images added to each class of a vote


class Suspects(NamedTuple):
    """Labels by suspicion, the most suspect first; all arrays (M,).

    row: row numbers. score: the probability of the given label, out of sample. suggestion: the most probable class, as an
    index into `classes`. noise: the share of wrong labels, at most. expected_right: of the first 1, 2, ... labels, how many
    are expected to be right; at least, where the vectors do not separate the classes (see `noise_of`).
    """

    row: Tensor
    score: Tensor
    suggestion: Tensor
    expected_right: Tensor
    noise: float
    classes: list


def suspect_labels(vectors: Array, labels: Sequence[int] | Sequence[str], *, seed: int = 0) -> Suspects:
    """Rank the labels of `vectors` (M, E) by how improbable they are for their vectors.

    The probability is the mean of two: of a linear probe fitted on other folds, and of the vote of the nearest other rows.
    Raises DataError for one class, a class of one vector, and as `checked_embeddings`.
    """
    z_ME = checked_embeddings(vectors, "labelled")
    classes = check_classes(labels)
    if len(labels) != len(z_ME):
        raise DataError(f"there are {len(z_ME)} embeddings and {len(labels)} labels")
    number = {name: i for i, name in enumerate(classes)}
    y_M = torch.tensor([number[label] for label in labels], device=z_ME.device)
    p_MK = (probe_probabilities(z_ME, y_M, len(classes), seed) + vote_probabilities(z_ME, y_M, len(classes))) / 2
    return suspects_of(p_MK.cpu(), y_M.cpu(), classes)


def suspects_of(p_MK: Tensor, y_M: Tensor, classes: list) -> Suspects:
    """Rank labels y (M,) by their out-of-sample probabilities (M, K), of any classifier; classes: the names of the K classes."""
    score = p_MK.gather(1, y_M[:, None])[:, 0]
    order = score.argsort(stable=True)
    noise = noise_of(p_MK, y_M)
    right = probability_right(calibrated(p_MK, y_M), y_M, noise)[order].cumsum(0)
    return Suspects(order, score[order], p_MK.argmax(1)[order], right, noise, classes)


def folds_of(y_M: Tensor, folds: int, seed: int) -> Tensor:
    """The fold of each row, (M,): members of every class are dealt out in random order."""
    order = torch.randperm(len(y_M), generator=random_at(seed, "labels", "folds"))
    order = order[y_M.cpu()[order].argsort(stable=True)]
    fold_M = torch.empty(len(y_M), dtype=torch.int64)
    fold_M[order] = torch.arange(len(y_M)) % folds
    return fold_M


def probe_probabilities(z_ME: Tensor, y_M: Tensor, classes: int, seed: int = 0, folds: int = FOLDS) -> Tensor:
    """Probabilities (M, K) float64 of a linear probe, out of sample by cross-validation and calibrated by one temperature.

    The penalty is chosen in the first fold's training part, and used in all.
    """
    fold_M, logits, penalties = folds_of(y_M, folds, seed).to(z_ME.device), None, PENALTIES
    for fold in range(folds):
        fitted, held = (fold_M != fold).nonzero()[:, 0], (fold_M == fold).nonzero()[:, 0]
        if not len(held):
            continue
        probe = fit_probe(z_ME[fitted], y_M[fitted], classes, penalties, seed)
        penalties = (probe.penalty,)
        scores = probe.scores(z_ME[held]).double()
        logits = scores.new_zeros(len(z_ME), classes) if logits is None else logits
        logits[held] = scores
    assert logits is not None
    losses = [F.cross_entropy(factor * logits, y_M, label_smoothing=2 / (len(y_M) + 2)) for factor in LOGIT_FACTORS]
    return (LOGIT_FACTORS[torch.stack(losses).argmin()].item() * logits).softmax(1)


def vote_probabilities(z_ME: Tensor, y_M: Tensor, classes: int) -> Tensor:
    """Probabilities (M, K) float64 from the weighted vote of the nearest other rows (`scores.votes`), with the classes'
    shares as a prior of one image."""
    k = neighbours_for(y_M)
    own = torch.zeros(len(z_ME), classes, device=z_ME.device)
    # A row is its own nearest neighbour, with a vote of 1: that is left out.
    own[torch.arange(len(z_ME)), y_M] = 1.0
    counts_MK = (votes(z_ME, y_M, z_ME, classes, k=k + 1, temperature=TEMPERATURE) - own).clamp_min(0).double()
    counts_MK = counts_MK / counts_MK.sum(1, keepdim=True).clamp_min(1e-12) * k
    share_K = torch.bincount(y_M, minlength=classes).double() / len(y_M)
    return (counts_MK + PRIOR * share_K) / (counts_MK.sum(1, keepdim=True) + PRIOR)


def calibrated(p_MK: Tensor, y_M: Tensor) -> Tensor:
    """Probabilities (M, K) replaced by how often a class of such a probability is the label: bins of all M x K numbers in
    order, of equally many labels, made non-decreasing."""
    p, order = p_MK.flatten().sort(stable=True)
    hits = F.one_hot(y_M, p_MK.shape[1]).flatten()[order].double()
    per_bin = max(FEWEST_HITS, len(y_M) // MOST_BINS)
    bin_of = ((hits.cumsum(0) - hits) / per_bin).floor().long()
    count = int(bin_of[-1]) + 1
    sizes = torch.zeros(count, dtype=torch.float64).index_add_(0, bin_of, torch.ones_like(p))
    sums = torch.zeros(count, dtype=torch.float64).index_add_(0, bin_of, hits)
    frequency = torch.tensor(isotonic(sums.tolist(), sizes.tolist()), dtype=torch.float64)
    return torch.empty_like(p).scatter_(0, order, frequency[bin_of]).view_as(p_MK)


def isotonic(sums: Sequence[float], sizes: Sequence[float]) -> list[float]:
    """The non-decreasing means closest to sums / sizes (pool adjacent violators)."""
    pools: list[list[float]] = []  # sum, size, number of bins
    for total, size in zip(sums, sizes, strict=True):
        pools.append([total, size, 1])
        while len(pools) > 1 and pools[-2][0] * pools[-1][1] > pools[-1][0] * pools[-2][1]:
            last = pools.pop()
            pools[-1] = [a + b for a, b in zip(pools[-1], last, strict=True)]
    return [total / size for total, size, count in pools for _ in range(int(count))]


def noise_of(p_MK: Tensor, y_M: Tensor) -> float:
    """The share of wrong labels: the smallest of several upper estimates.

    One counts labels among the b classes that are least probable for each image, for every b from 1 to K / 2: b / (K - 1) of
    the wrong ones are there, and those right ones for which the classifier is entirely wrong. Its standard error is added.
    The other counts the labels that differ from the answer where the class is clearest: the twentieth of the images with
    the largest probability of a class, and all that come within 2 % of theirs (anchor points: Liu & Tao 2016).
    """
    classes = p_MK.shape[1]
    top, answer = p_MK.max(1)
    count = min(len(y_M), max(FEWEST_CONFIDENT, round(CONFIDENT * len(y_M))))
    sure = top >= NEARLY * top.topk(count).values[-1]
    estimates = [float((answer[sure] != y_M[sure]).double().mean())]
    rank_M = (p_MK < p_MK.gather(1, y_M[:, None])).sum(1)  # 0: the label is the least probable class
    for b in range(1, classes // 2 + 1):
        hits = int((rank_M < b).sum())
        estimates.append((hits + (hits + 1) ** 0.5) * (classes - 1) / b / len(y_M))
    return min(1.0, *estimates)


def probability_right(p_MK: Tensor, y_M: Tensor, noise: float) -> Tensor:
    """P(label right | vector, label), (M,), from p(label | vector) of labels that are wrong with probability `noise`.

    p = (1 - e) q + e (1 - q) / (K - 1) for the probability q of the true class; by Bayes, the label is right with (1 - e) q / p.
    """
    wrong = noise / (p_MK.shape[1] - 1)
    p_M = p_MK.gather(1, y_M[:, None])[:, 0].double()
    q_M = ((p_M - wrong) / max(1e-9, 1 - noise - wrong)).clamp(0, 1)
    return ((1 - noise) * q_M / ((1 - noise) * q_M + wrong * (1 - q_M)).clamp_min(1e-12)).clamp(0, 1)
