"""Accuracy of embeddings. M: training embeddings, N: test embeddings, E: width, K: classes, k: neighbours; z:
embedding, s: similarity, y: class.

Embeddings are torch tensors or numpy arrays; labels are integers or names. Use names when training and test images come
from separate folders: their numbers may differ when one folder lacks a class.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diptych.base.errors import DataError, RecipeError
from diptych.embeddings.nearest import Array, checked_embeddings, nearest
from diptych.embeddings.probe import PENALTIES, fit_probe

Labels = Sequence[int] | Sequence[str] | Array
FEWEST, NEIGHBOURS, TEMPERATURE = 10, 200, 0.1  # k of the vote at least and at most; its temperature


@dataclass(frozen=True)
class Score:
    """An accuracy and how it was measured. interval: 95 %, over the choice of test images, not over runs."""

    protocol: str
    accuracy: float
    interval: tuple[float, float]
    train_images: int
    test_images: int
    classes: int
    seed: int | None = None  # None: no randomness in this protocol
    details: dict = field(default_factory=dict)
    subject: str | None = None  # whose accuracy, such as "trained" or "untrained"; None: of the given arrays
    # Of each test image, on the CPU, only in memory: whether it was right (N,) or (seeds, N) bool, the predicted class (N,)
    # as a number in `names`, and the probability that the protocol gave it (N,).
    correct: Tensor | None = field(default=None, repr=False, compare=False)
    predicted: Tensor | None = field(default=None, repr=False, compare=False)
    confidence: Tensor | None = field(default=None, repr=False, compare=False)
    names: Sequence = field(default=(), repr=False, compare=False)

    def line(self) -> dict:
        """A line of evaluations.jsonl; without what is known of single images."""
        kept = [known.name for known in fields(self) if known.compare]
        line = {"protocol": self.protocol, "subject": self.subject} | {name: getattr(self, name) for name in kept}
        return line | {"interval": list(self.interval)}


class CheckedSets(NamedTuple):
    """Checked embeddings of both sets, their labels as indices into `classes`, and the sorted `classes`."""

    z_ME: Tensor
    y_M: Tensor
    z_NE: Tensor
    y_N: Tensor
    classes: list


def knn_accuracy(
    train: Array,
    train_labels: Labels,
    test: Array,
    test_labels: Labels,
    *,
    k: int | None = None,
    temperature: float = TEMPERATURE,
) -> Score:
    """Weighted kNN: the k training embeddings of highest cosine s vote with exp(s / temperature).

    Wu et al. 2018, sec. 3.4. train (M, E), test (N, E). k: by default as `neighbours_for`; capped at M, with a note in the
    details, which contain the k that was used. Deterministic, on the device of `train`. Embeddings that point nearly the same
    way keep their order, see `nearest.Centred`; all others are compared in plain float32. Raises DataError as
    `checked_embeddings` and `check_classes` do, RecipeError for k < 1 and a temperature of 0 or less.
    """
    check_vote(k, temperature)
    sets = _checked_sets(train, train_labels, test, test_labels)
    k = neighbours_for(sets.y_M) if k is None else k
    votes_NK = votes(sets.z_ME, sets.y_M, sets.z_NE, len(sets.classes), k=k, temperature=temperature)
    details = {"k": min(k, len(sets.y_M)), "temperature": temperature, "similarity": "cosine"}
    if k > len(sets.y_M):
        details["note"] = f"k was {k}; there are only {len(sets.y_M)} training images"
    shares_NK = votes_NK / votes_NK.sum(1, keepdim=True)
    result = score("knn", votes_NK, sets.y_N, len(sets.y_M), len(sets.classes), None, details)
    return replace(result, confidence=shares_NK.amax(1).cpu(), names=sets.classes)


def neighbours_for(y_M: Tensor) -> int:
    """k of a vote: the training images of the smallest class, 10 at least and 200 at most.

    With more neighbours than a class has images, the others outvote it. Chosen on CIFAR-10's training images, 5 to 500 a
    class: at most 0.8 points below the best k.
    """
    return max(FEWEST, min(NEIGHBOURS, int(y_M.unique(return_counts=True)[1].min())))


def check_vote(k: int | None, temperature: float) -> None:
    """Raises RecipeError for an invalid number of neighbours or temperature of a kNN vote."""
    if k is not None and k < 1:
        raise RecipeError(f"k is the number of neighbours, at least 1; got {k}")
    if temperature <= 0:
        raise RecipeError(f"the temperature of the vote is above 0; got {temperature}")


def votes(z_ME: Tensor, y_M: Tensor, z_NE: Tensor, classes: int, *, k: int, temperature: float) -> Tensor:
    """The sum of exp(s / temperature) for each class, (N, K), of the k nearest of z_ME (classes y_M) to each of z_NE.

    In units of the nearest neighbour's vote, which does not change the order and avoids overflow at a low temperature.
    """
    s_Nk, index_Nk = nearest(z_NE, z_ME, k)
    weights_Nk = ((s_Nk - s_Nk[:, :1]) / temperature).exp()
    return weights_Nk.new_zeros(len(s_Nk), classes).scatter_add_(1, y_M[index_Nk], weights_Nk)


def linear_probe(
    train: Array,
    train_labels: Labels,
    test: Array,
    test_labels: Labels,
    *,
    penalties: Sequence[float] = PENALTIES,
    seed: int = 0,
) -> Score:
    """Softmax regression on frozen embeddings, (M, E) and (N, E), standardized by the training set.

    The L2 penalty is chosen on a seeded, stratified part of the training set; the test set is used once. The details
    contain the penalties tried, the choice, whether it is at an end of the list, and whether the optimizer "converged":
    the objective is at most 0.1 % above its minimum. With tiny penalties float32 may not show that.
    Runs on the device of `train`. Raises DataError as `checked_embeddings` and `check_classes` do, RecipeError for a
    penalty <= 0.
    """
    sets = _checked_sets(train, train_labels, test, test_labels)
    probe = fit_probe(sets.z_ME, sets.y_M, len(sets.classes), penalties, seed)
    details = {
        "penalty": probe.penalty,
        "penalty_at_end": probe.penalty in (min(penalties), max(penalties)),
        "held_out": probe.tried,
        "train_accuracy": top_k_accuracy(probe.scores(sets.z_ME), sets.y_M, 1),
        "gradient_norm": probe.solution.gradient_norm,
        "iterations": probe.solution.iterations,
        "converged": probe.solution.converged,
        "dtype": str(probe.mean_E.dtype).removeprefix("torch."),
    }
    if not probe.tried:
        details["note"] = "one image per class: the penalty could not be chosen, so it is the middle one"
    scores_NK = probe.scores(sets.z_NE)
    result = score("linear", scores_NK, sets.y_N, len(sets.y_M), len(sets.classes), seed, details)
    return replace(result, confidence=scores_NK.softmax(1).amax(1).cpu(), names=sets.classes)


def chance(labels: Labels) -> Score:
    """The share of the most frequent class among the test `labels`: the accuracy of one constant answer."""
    labels = _labels(labels, None, "test")
    answer, count = Counter(labels).most_common(1)[0]
    correct = torch.tensor([label == answer for label in labels])
    accuracy, interval = count / len(labels), accuracy_interval(correct)
    return Score(
        "chance", accuracy, interval, 0, len(labels), len(set(labels)), None, {"answer": answer}, correct=correct
    )


def accuracy_interval(correct: Array | Sequence[bool]) -> tuple[float, float]:
    """95 % interval of an accuracy, from (N,) right or wrong (Wilson 1927). It is valid at 0 and 100 % too.

    It covers the choice of the N test images; variation between seeds and training runs comes on top.
    """
    n, z = len(correct), 1.959964
    share = float(torch.as_tensor(correct).double().mean())
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


def top_k_accuracy(scores_NK: Tensor, y_N: Tensor, k: int) -> float:
    """Share of rows whose class y is among the k highest scores."""
    best_Nk = scores_NK.topk(min(k, scores_NK.shape[1]), dim=1).indices
    return (best_Nk == y_N[:, None]).any(1).double().mean().item()


def check_classes(train_labels: Labels, test_labels: Labels | None = None) -> list:
    """The sorted classes of the training labels; a test set may lack some of them.

    Raises DataError, with both lists, when the test set has a class that the training set lacks, and when there is only
    one class.
    """
    classes = sorted(set(_labels(train_labels, None, "training")))
    tested = classes if test_labels is None else sorted(set(_labels(test_labels, None, "test")))
    if not set(tested) <= set(classes):
        lists = f"the training set has {_listed(classes)}; the test set has {_listed(tested)}"
        raise DataError(f"the test set has classes that the training set lacks: {lists}")
    if len(classes) < 2:
        raise DataError(f"every training image is of class {classes[0]!r}; accuracy needs two classes or more")
    return classes


def _checked_sets(train: Array, train_labels: Labels, test: Array, test_labels: Labels) -> CheckedSets:
    z_ME = checked_embeddings(train, "training")
    z_NE = checked_embeddings(test, "test", z_ME)
    labels_M, labels_N = _labels(train_labels, len(z_ME), "training"), _labels(test_labels, len(z_NE), "test")
    classes = check_classes(labels_M, labels_N)
    y_M, y_N = _numbers(labels_M, classes, z_ME.device), _numbers(labels_N, classes, z_ME.device)
    return CheckedSets(z_ME, y_M, z_NE, y_N, classes)


def _labels(labels: Labels, count: int | None, what: str) -> list:
    if labels is None:
        raise DataError(f"the {what} images have no labels; an accuracy needs them")
    plain = labels.tolist() if isinstance(labels, Tensor | np.ndarray) else list(labels)
    plain = [label.item() if isinstance(label, np.generic | Tensor) else label for label in plain]
    kinds = {type(label) for label in plain}
    if kinds not in ({int}, {str}):
        names = ", ".join(sorted(kind.__name__ for kind in kinds)) or "none at all"
        raise DataError(f"the {what} labels must be whole numbers, or all of them names; got {names}")
    if count is not None and len(plain) != count:
        raise DataError(f"there are {count} {what} embeddings and {len(plain)} labels")
    return plain


def _numbers(labels: list, classes: list, device: torch.device) -> Tensor:
    position = {label: i for i, label in enumerate(classes)}
    return torch.tensor([position[label] for label in labels], device=device)


def _listed(classes: list) -> str:
    return ", ".join(map(str, classes[:20])) + (f" and {len(classes) - 20} more" if len(classes) > 20 else "")


def score(
    protocol: str, scores_NK: Tensor, y_N: Tensor, train_images: int, classes: int, seed: int | None, details: dict
) -> Score:
    """Accuracy and interval of the classes with the highest scores (N, K), against the true ones (N,)."""
    predicted = scores_NK.argmax(1)
    correct = (predicted == y_N).cpu()
    if classes > 5:
        details = details | {"top5_accuracy": top_k_accuracy(scores_NK, y_N, 5)}
    accuracy, interval = correct.double().mean().item(), accuracy_interval(correct)
    return Score(protocol, accuracy, interval, train_images, len(y_N), classes, seed, details, correct=correct,
                 predicted=predicted.cpu())  # fmt: skip
