"""Protocols by name: what "accuracy" means. Each tells in its details which one it is and what it stands on.

A protocol is a function of a subject (what is judged) and a task (the labelled images). It returns None where it has
nothing to say, as training on crops has of raw pixels. Every number is of the last epoch; the test set chooses nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diptych.base.errors import CheckpointError, RecipeError
from diptych.base.random_at import random_at
from diptych.data.images import Images
from diptych.downstream.classifier import (
    Batches,
    Classifier,
    Tell,
    crop_and_flip,
    fit,
    image_batches,
    linear_head,
    logits,
    normalize,
    steps_of,
    targets,
)
from diptych.downstream.finetune import finetune_copy
from diptych.embeddings.scores import NEIGHBOURS, TEMPERATURE, Score, knn_accuracy, linear_probe, score
from diptych.methods import METHODS
from diptych.methods.method import embedding_width
from diptych.runs import checkpoints
from diptych.runs.encoder import Preprocessing, Trained
from diptych.runs.run import Run, is_run
from diptych.training.optimizers import lamb, sgd
from diptych.training.schedules import Schedule, constant, cosine
from diptych.views import HorizontalFlip, Resize, VerticalFlip, View


@dataclass(frozen=True)
class Subject:
    """What is judged: the embeddings it gives, and the network that gave them (None: raw pixels)."""

    name: str
    train: Tensor  # (M, E), on the task's device
    test: Tensor  # (N, E)
    network: nn.Module | None
    folder: Path | None  # of the run or encoder
    pretrained: bool = False  # whether the network's weights come from training
    names: Mapping[str, str] = field(default_factory=dict)  # what it is called in the table of some protocols

    def name_in(self, protocol: str) -> str:
        return self.names.get(protocol, self.name)


@dataclass(frozen=True)
class Task:
    """The labelled images, and how to treat them."""

    train: Images
    test: Images
    train_labels: list[str]
    test_labels: list[str]
    expected: Preprocessing
    device: torch.device
    k: int = NEIGHBOURS
    temperature: float = TEMPERATURE
    seed: int = 0
    tell: Tell | None = None


def knn(subject: Subject, task: Task) -> Score:
    """Weighted kNN: `embeddings.scores.knn_accuracy`."""
    arrays = subject.train, task.train_labels, subject.test, task.test_labels
    return with_source(
        knn_accuracy(*arrays, k=task.k, temperature=task.temperature), "Wu et al. 2018, sec. 3.4", "embedding"
    )


def linear(subject: Subject, task: Task) -> Score:
    """Softmax regression, its penalty chosen on a held-out part of the training set: `embeddings.scores.linear_probe`."""
    arrays = subject.train, task.train_labels, subject.test, task.test_labels
    return with_source(linear_probe(*arrays, seed=task.seed), "decision 6: L-BFGS, chosen penalty", "embedding")


def with_source(score: Score, as_in: str, on: str) -> Score:
    """The score with where its protocol comes from, and on which vectors it stands."""
    return replace(score, details={"as_in": as_in, "on": on} | score.details)


def linear_keras(subject: Subject, task: Task) -> Score | None:
    """Keras' Barlow Twins example: one Dense layer on the frozen *projector*'s output, LAMB, L2 0.02, 35 epochs.

    Of the trained run alone: the untrained projector is not kept, raw pixels have none.
    """
    if not subject.pretrained:
        return None
    projector = projector_of(subject.folder, subject.train.shape[1]).to(task.device)
    with torch.no_grad():
        train, test = (torch.cat([projector(part.to(task.device)) for part in each.split(4096)])
                       for each in (subject.train, subject.test))  # fmt: skip
    return keras_dense("linear-keras", train, test, task, "projection")


def linear_keras_embedding(subject: Subject, task: Task) -> Score:
    """`linear-keras` on the encoder's embedding instead, as the example's later version does."""
    return keras_dense("linear-keras-embedding", subject.train, subject.test, task, "embedding")


def keras_dense(name: str, train: Tensor, test: Tensor, task: Task, on: str) -> Score:
    """Fit Keras' Dense layer to vectors (M, E). Its `l2(0.02)` adds 0.02 |w|^2 to the loss: a decay of 0.04 w, and
    one that LAMB's trust ratio sees. The example validates on whole batches of 512 only; this on every test image."""
    epochs, batch_size, lr, l2 = 35, 512, 1e-3, 0.02
    y_train, y_test, classes = targets(task.train_labels, task.test_labels)
    head = linear_head(train.shape[1], len(classes), task.seed, keras=True).to(task.device)
    vectors, numbers = train.to(task.device), y_train.to(task.device)
    whole = max(1, len(vectors) // batch_size)  # drop_remainder

    def batches(epoch: int):
        order = torch.randperm(len(vectors), generator=random_at(task.seed, "labels", "order", epoch))
        for rows in order.to(task.device).split(batch_size)[:whole]:
            yield vectors[rows], numbers[rows]

    def penalty() -> Tensor:
        return l2 * head.weight.square().sum()

    fit(head, lamb(head, lr), batches, epochs, epochs * whole, constant(), task.seed, penalty, task.tell)
    with torch.no_grad():
        scores = head(test.to(task.device)).cpu()
    details = {"as_in": "Keras' Barlow Twins example", "on": on, "width": train.shape[1], "optimizer": "LAMB",
               "lr": lr, "l2": l2, "epochs": epochs, "batch_size": batch_size, "augmentation": "none",
               "reported": "last epoch"}  # fmt: skip
    return score(name, scores, y_test, len(train), len(classes), task.seed, details)


def linear_keras_simsiam(subject: Subject, task: Task) -> Score | None:
    """Keras' SimSiam example: one Dense layer on the frozen encoder, random flips, SGD 0.03 cosine, 5 epochs of 128."""
    expected = task.expected
    resize = [Resize(expected.size)] if task.train.size != expected.size else []
    view = View([*resize, HorizontalFlip(), VerticalFlip(), normalize(expected)])
    # The example's cosine counts whole batches only, so its last step or two stand at rate 0.
    total = 5 * max(1, len(task.train_labels) // 128)
    asked = {"epochs": 5, "batch_size": 128, "lr": 0.03, "weight_decay": 0.0, "augmentation": "flips both ways"}
    return frozen("linear-keras-simsiam", subject, task, view, cosine(), total, "Keras' SimSiam example", asked, True)


def linear_sgd(subject: Subject, task: Task) -> Score | None:
    """Barlow Twins' evaluate.py: crops and flips, frozen encoder in evaluation mode, SGD 0.3 cosine, 100 epochs of 256.

    Its number is the best of all epochs on the test set; this is the last one.
    """
    total = 100 * steps_of(len(task.train_labels), 256)
    asked = {"epochs": 100, "batch_size": 256, "lr": 0.3, "weight_decay": 1e-6, "augmentation": "crop and flip"}
    view, as_in = crop_and_flip(task.expected), "evaluate.py (Barlow Twins)"
    return frozen("linear-sgd", subject, task, view, cosine(epochs=100), total, as_in, asked)


def frozen(name: str, subject: Subject, task: Task, view: View, schedule: Schedule, total: int, as_in: str,
           asked: dict[str, Any], keras: bool = False) -> Score | None:  # fmt: skip
    """A linear layer trained on views of the images through the frozen encoder, which must not move by a single bit."""
    if subject.network is None:
        return None
    y_train, y_test, classes = targets(task.train_labels, task.test_labels)
    before = {key: value.clone() for key, value in subject.network.state_dict().items()}
    classifier = Classifier(subject.network, len(classes), task.seed, frozen=True, keras=keras).to(task.device)
    optimizer = sgd(classifier.head, asked["lr"], momentum=0.9, weight_decay=asked["weight_decay"])
    batches: Batches = image_batches(task.train, y_train, view, asked["batch_size"], task.seed, task.device)
    fit(classifier, optimizer, batches, asked["epochs"], total, schedule, task.seed, tell=task.tell)
    require_unmoved(before, subject.network)
    details = {"as_in": as_in, "on": "embedding", "optimizer": "SGD", **asked, "reported": "last epoch"}
    scores = logits(classifier, task.test, task.expected)
    return score(name, scores, y_test, len(y_train), len(classes), task.seed, details)


def require_unmoved(before: dict[str, Tensor], encoder: nn.Module) -> None:
    """Raises RuntimeError, our bug, when a weight or a running statistic of a frozen encoder has changed."""
    moved = [key for key, value in encoder.state_dict().items() if not torch.equal(value, before[key].to(value.device))]
    if moved:
        raise RuntimeError(f"the frozen encoder has moved: {', '.join(moved[:3])}")


def fine_tuned(subject: Subject, task: Task) -> Score | None:
    """`diptych.finetune` on all labels of the training images; of the untrained encoder it is training from scratch."""
    if subject.network is None:
        return None
    return finetune_copy(subject.network, task.train, task.test, task.expected, device=task.device, seed=task.seed,
                         tell=task.tell, scratch=not subject.pretrained)  # fmt: skip


def projector_of(folder: Path | None, width: int) -> nn.Module:
    """The trained projector (N, E) -> (N, D) of a run, in evaluation mode, from its newest checkpoint and its recipe.

    Raises CheckpointError where there is no checkpoint or it does not fit, RecipeError where no recipe says how the
    projector was built.
    """
    checkpoint, section = projector_source(folder)
    arguments = {key: value for key, value in section.items() if key != "name"}
    with torch.random.fork_rng(devices=[]):  # its starting weights are replaced
        method = METHODS[section["name"]](nn.Identity(), **arguments, width=width)
    weights = checkpoints.read_tensors(checkpoint / "model.safetensors").items()
    own = {key.removeprefix("projector."): value for key, value in weights if key.startswith("projector.")}
    checkpoints.load_exactly(method.projector, own, checkpoint)
    return method.projector.eval()


def projector_source(folder: Path | None) -> tuple[Path, dict[str, Any]]:
    """The checkpoint that holds a run's projector, and the recipe's section that builds it. Raises as `projector_of`."""
    checkpoint = checkpoints.newest(folder / "checkpoints") if folder is not None and is_run(folder) else None
    if folder is None or checkpoint is None:
        place = folder or "a network without a run folder"
        raise CheckpointError(f"{place} has no checkpoint, so no projector: use linear-keras-embedding")
    section = Run(folder).recipe.get("method") or {}
    if section.get("name") not in METHODS:
        raise RecipeError(f"{folder}/recipe.yaml does not tell how its projector was built: use linear-keras-embedding")
    return checkpoint, section


def require_protocols(protocols: Sequence[str], trained: Trained) -> None:
    """Raises RecipeError for an unknown protocol, and what else a protocol would raise for this encoder, before any work."""
    for name in protocols:
        if name not in PROTOCOLS:
            raise RecipeError(f"there is no protocol {name!r}; there are {', '.join(PROTOCOLS)}")
        if name in REQUIREMENTS:
            REQUIREMENTS[name](trained)


PROTOCOLS: dict[str, Callable[[Subject, Task], Score | None]] = {
    "knn": knn,
    "linear": linear,
    "linear-keras": linear_keras,
    "linear-keras-embedding": linear_keras_embedding,
    "linear-keras-simsiam": linear_keras_simsiam,
    "linear-sgd": linear_sgd,
    "finetune": fine_tuned,
}

# What a protocol needs of the encoder, beyond its embeddings: each raises the error that its protocol would end with.
REQUIREMENTS: dict[str, Callable[[Trained], object]] = {
    "linear-keras": lambda trained: projector_source(trained.folder),
    "linear-keras-simsiam": lambda trained: embedding_width(trained.encoder, None),
    "linear-sgd": lambda trained: embedding_width(trained.encoder, None),
    "finetune": lambda trained: embedding_width(trained.encoder, None),
}
