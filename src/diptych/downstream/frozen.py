"""Subject and task of an evaluation, and a linear layer trained on views of images through a frozen encoder."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diptych.data.images import Images
from diptych.downstream.classifier import (
    Batches,
    Classifier,
    Start,
    Tell,
    fit,
    image_batches,
    logits,
    small_normal_,
    targets,
)
from diptych.embeddings.scores import TEMPERATURE, Score, score
from diptych.runs.encoder import Preprocessing
from diptych.training.optimizers import sgd
from diptych.training.schedules import Schedule
from diptych.views import View


@dataclass(frozen=True)
class Subject:
    """The subject of an evaluation: its embeddings, and the network that computed them (None: raw pixels)."""

    name: str
    train: Tensor  # (M, E), on the task's device
    test: Tensor  # (N, E)
    network: nn.Module | None
    folder: Path | None  # of the run or encoder
    pretrained: bool = False  # whether the network's weights come from training
    names: Mapping[str, str] = field(default_factory=dict)  # other names in the table, by protocol

    def name_in(self, protocol: str) -> str:
        return self.names.get(protocol, self.name)


@dataclass(frozen=True)
class Task:
    """The labelled images of an evaluation, and its settings."""

    train: Images
    test: Images
    train_labels: list[str]
    test_labels: list[str]
    expected: Preprocessing
    device: torch.device
    k: int | None = None
    temperature: float = TEMPERATURE
    seed: int = 0
    tell: Tell | None = None


def frozen(
    name: str,
    subject: Subject,
    task: Task,
    view: View,
    *,
    schedule: Schedule,
    total: int,
    details: dict[str, Any],
    start_: Start = small_normal_,
) -> Score | None:
    """Train a linear layer by SGD on views of the images through the frozen encoder, which must not change by a single bit.

    total: the steps of the schedule. details: epochs, batch_size, lr and weight_decay, and further details of the score.
    start_: fills the layer's weights. Returns None for a subject without a network.
    """
    if subject.network is None:
        return None
    y_train, y_test, classes = targets(task.train_labels, task.test_labels)
    before = {key: value.clone() for key, value in subject.network.state_dict().items()}
    classifier = Classifier(subject.network, len(classes), task.seed, frozen=True, start_=start_).to(task.device)
    optimizer = sgd(classifier.head, details["lr"], momentum=0.9, weight_decay=details["weight_decay"])
    batches: Batches = image_batches(task.train, y_train, view, details["batch_size"], task.seed, task.device)
    fit(classifier, optimizer, batches, details["epochs"], total, schedule, task.seed, tell=task.tell)
    require_unmoved(before, subject.network)
    details = {"on": "embedding", "optimizer": "SGD", **details, "reported": "last epoch"}
    scores = logits(classifier, task.test, task.expected)
    return score(name, scores, y_test, len(y_train), len(classes), task.seed, details)


def require_unmoved(before: dict[str, Tensor], encoder: nn.Module) -> None:
    """Raises RuntimeError, a bug of this package, when a weight or a running statistic of a frozen encoder has changed."""
    moved = [key for key, value in encoder.state_dict().items() if not torch.equal(value, before[key].to(value.device))]
    if moved:
        raise RuntimeError(f"the frozen encoder has moved: {', '.join(moved[:3])}")
