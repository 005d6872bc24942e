"""The linear evaluation of the two Keras examples: on the projector, on the embedding, with flips."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diptych.base.errors import CheckpointError, RecipeError
from diptych.base.random_at import random_at
from diptych.downstream.classifier import fit, linear_head, normalize, targets
from diptych.downstream.frozen import Subject, Task, frozen
from diptych.embeddings.scores import Score, score
from diptych.methods import METHODS, Method
from diptych.methods.method import embedding_width
from diptych.runs import checkpoints
from diptych.runs.encoder import Trained
from diptych.runs.run import Run, is_run
from diptych.training.optimizers import lamb
from diptych.training.schedules import constant, cosine
from diptych.views import HorizontalFlip, Resize, VerticalFlip, View

glorot_uniform_ = nn.init.xavier_uniform_  # initialisation of Keras' Dense


def linear_keras(subject: Subject, task: Task) -> Score | None:
    """Keras' Barlow Twins example: one Dense layer on the frozen *projector*'s output, LAMB, L2 0.02, 35 epochs.

    Only for the trained run: the untrained projector is not stored, and raw pixels have none.
    """
    if not subject.pretrained:
        return None
    projector = projector_of(subject.folder, subject.train.shape[1]).to(task.device)
    with torch.no_grad():
        train, test = (
            torch.cat([projector(part.to(task.device)) for part in vectors.split(4096)])
            for vectors in (subject.train, subject.test)
        )
    return keras_dense("linear-keras", train, test, task, on="projection")


def linear_keras_embedding(subject: Subject, task: Task) -> Score:
    """`linear-keras` on the encoder's embedding, as in the example's later version."""
    return keras_dense("linear-keras-embedding", subject.train, subject.test, task, on="embedding")


def keras_dense(name: str, train: Tensor, test: Tensor, task: Task, *, on: str) -> Score:
    """Fit Keras' Dense layer to vectors (M, E). Its `l2(0.02)` adds 0.02 |w|^2 to the loss: a decay of 0.04 w, which
    also enters LAMB's trust ratio. The example validates only on full batches of 512; here on every test image."""
    epochs, batch_size, lr, l2 = 35, 512, 1e-3, 0.02
    y_train, y_test, classes = targets(task.train_labels, task.test_labels)
    head = linear_head(train.shape[1], len(classes), task.seed, glorot_uniform_).to(task.device)
    vectors, numbers = train.to(task.device), y_train.to(task.device)
    steps = max(1, len(vectors) // batch_size)  # per epoch; drop_remainder

    def batches(epoch: int):
        order = torch.randperm(len(vectors), generator=random_at(task.seed, "labels", "order", epoch))
        for rows in order.to(task.device).split(batch_size)[:steps]:
            yield vectors[rows], numbers[rows]

    def penalty() -> Tensor:
        return l2 * head.weight.square().sum()

    fit(head, lamb(head, lr), batches, epochs, epochs * steps, constant(), task.seed, penalty, task.tell)
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
    # The example's cosine counts full batches only, so the last step or two have rate 0.
    total = 5 * max(1, len(task.train_labels) // 128)
    details = {"as_in": "Keras' SimSiam example", "epochs": 5, "batch_size": 128, "lr": 0.03, "weight_decay": 0.0,
               "augmentation": "flips both ways"}  # fmt: skip
    return frozen("linear-keras-simsiam", subject, task, view, schedule=cosine(), total=total, details=details,
                  start_=glorot_uniform_)  # fmt: skip


def projector_of(folder: Path | None, width: int) -> nn.Module:
    """Load the trained projector (N, E) -> (N, D) of a run, in evaluation mode, from its newest checkpoint and its recipe.

    Raises CheckpointError when there is no checkpoint or it does not match, RecipeError when no recipe describes the
    projector.
    """
    checkpoint, make, arguments = projector_source(folder)
    with torch.random.fork_rng(devices=[]):  # its initial weights are replaced
        method = make(nn.Identity(), **arguments, width=width)
    weights = checkpoints.read_tensors(checkpoint / "model.safetensors").items()
    own = {key.removeprefix("projector."): value for key, value in weights if key.startswith("projector.")}
    projector = method.get_submodule("projector")
    checkpoints.load_exactly(projector, own, checkpoint)
    return projector.eval()


def projector_source(folder: Path | None) -> tuple[Path, Callable[..., Method], dict[str, Any]]:
    """The checkpoint of a run's projector, and the callable and arguments that build its method. Raises as `projector_of`."""
    checkpoint = checkpoints.newest(folder / "checkpoints") if folder is not None and is_run(folder) else None
    if folder is None or checkpoint is None:
        place = folder or "a network without a run folder"
        raise CheckpointError(f"{place} has no checkpoint, so no projector: use linear-keras-embedding")
    section = Run(folder).section("method")
    make = METHODS.get(section.get("name", ""))
    arguments = {key: value for key, value in section.items() if key != "name"}
    if make is None or arguments.keys() - inspect.signature(make).parameters.keys():
        raise RecipeError(f"{folder}/recipe.yaml does not tell how its projector was built: use linear-keras-embedding")
    return checkpoint, make, arguments


KERAS_PROTOCOLS: dict[str, Callable[[Subject, Task], Score | None]] = {
    "linear-keras": linear_keras,
    "linear-keras-embedding": linear_keras_embedding,
    "linear-keras-simsiam": linear_keras_simsiam,
}

KERAS_EMBEDDED = {"linear-keras-embedding"}  # those that score embeddings alone

# What they require of the encoder, in addition to its embeddings.
KERAS_REQUIREMENTS: dict[str, Callable[[Trained], object]] = {
    "linear-keras": lambda trained: projector_source(trained.folder),
    "linear-keras-simsiam": lambda trained: embedding_width(trained.encoder, None),
}
