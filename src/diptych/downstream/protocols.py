"""Evaluation protocols by name. The details of a score contain its source and the vectors that it uses.

A protocol is a function of a subject (what is evaluated) and a task (the labelled images). It returns None for a subject
to which it does not apply, such as training on crops for raw pixels. All accuracies are of the last epoch; nothing is
chosen on the test set.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from diptych.base.errors import RecipeError
from diptych.downstream.classifier import crop_and_flip, steps_of
from diptych.downstream.finetune import finetune_copy
from diptych.downstream.frozen import Subject, Task, frozen
from diptych.downstream.keras import KERAS_EMBEDDED, KERAS_PROTOCOLS, KERAS_REQUIREMENTS
from diptych.embeddings.scores import Score, knn_accuracy, linear_probe
from diptych.methods.method import embedding_width
from diptych.runs.encoder import Trained
from diptych.training.schedules import cosine


def knn(subject: Subject, task: Task) -> Score:
    """Weighted kNN: `embeddings.scores.knn_accuracy`."""
    arrays = subject.train, task.train_labels, subject.test, task.test_labels
    return with_source(
        knn_accuracy(*arrays, k=task.k, temperature=task.temperature), "Wu et al. 2018, sec. 3.4", "embedding"
    )


def linear(subject: Subject, task: Task) -> Score:
    """Softmax regression, its penalty chosen on a held-out part of the training set: `embeddings.scores.linear_probe`."""
    arrays = subject.train, task.train_labels, subject.test, task.test_labels
    return with_source(
        linear_probe(*arrays, seed=task.seed),
        "softmax regression by L-BFGS, its penalty chosen on a held-out part",
        "embedding",
    )


def with_source(score: Score, as_in: str, on: str) -> Score:
    """Add the source of the protocol and the vectors that it uses to the details of a score."""
    return replace(score, details={"as_in": as_in, "on": on} | score.details)


def linear_sgd(subject: Subject, task: Task) -> Score | None:
    """Barlow Twins' evaluate.py: crops and flips, frozen encoder in evaluation mode, SGD 0.3 cosine, 100 epochs of 256.

    The published number is the best of all epochs on the test set; this one is of the last epoch.
    """
    total = 100 * steps_of(len(task.train_labels), 256)
    details = {"as_in": "evaluate.py (Barlow Twins)", "epochs": 100, "batch_size": 256, "lr": 0.3, "weight_decay": 1e-6,
               "augmentation": "crop and flip"}  # fmt: skip
    view, schedule = crop_and_flip(task.expected), cosine(epochs=100)
    return frozen("linear-sgd", subject, task, view, schedule=schedule, total=total, details=details)


def fine_tuned(subject: Subject, task: Task) -> Score | None:
    """`diptych.finetune` on all labels of the training images; for the untrained encoder this is training from scratch."""
    if subject.network is None:
        return None
    return finetune_copy(subject.network, task.train, task.test, task.expected, device=task.device, seed=task.seed,
                         tell=task.tell, scratch=not subject.pretrained)  # fmt: skip


def require_protocols(protocols: Sequence[str], trained: Trained) -> None:
    """Raises RecipeError for an unknown protocol, and the errors that a protocol would raise for this encoder later."""
    require_names(protocols)
    for name in protocols:
        if name in REQUIREMENTS:
            REQUIREMENTS[name](trained)


def require_names(protocols: Sequence[str]) -> None:
    """Raises RecipeError for an unknown protocol."""
    for name in protocols:
        if name not in PROTOCOLS:
            raise RecipeError(f"there is no protocol {name!r}; there are {', '.join(PROTOCOLS)}")


PROTOCOLS: dict[str, Callable[[Subject, Task], Score | None]] = {
    "knn": knn,
    "linear": linear,
    **KERAS_PROTOCOLS,
    "linear-sgd": linear_sgd,
    "finetune": fine_tuned,
}

# Protocols that score embeddings alone, so that the references without a network have a score.
ON_EMBEDDINGS = {"knn", "linear"} | KERAS_EMBEDDED

# What a protocol requires of the encoder, in addition to its embeddings. They raise the errors of the protocol itself.
REQUIREMENTS: dict[str, Callable[[Trained], object]] = {
    **KERAS_REQUIREMENTS,
    "linear-sgd": lambda trained: embedding_width(trained.encoder, None),
    "finetune": lambda trained: embedding_width(trained.encoder, None),
}
