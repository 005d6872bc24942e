"""Fine-tune the trained encoder on a part of the labels, beside the same network trained from scratch."""

import copy
import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from diptych.base.device import choose_device
from diptych.base.errors import CheckpointError, DataError, RecipeError
from diptych.base.files import require_writable
from diptych.base.random_at import random_at, seed_at
from diptych.base.terminal import ProgressBar
from diptych.data.images import Images
from diptych.downstream.classifier import (
    Classifier,
    Tell,
    class_names,
    crop_and_flip,
    fit,
    image_batches,
    logits,
    readable,
    steps_of,
    targets,
)
from diptych.downstream.results import Evaluation
from diptych.embeddings.scores import Score, accuracy_interval, chance, check_classes, score
from diptych.methods.method import embedding_width
from diptych.networks.encoders import encoder as make_encoder
from diptych.runs.encoder import Preprocessing, Trained, as_trained
from diptych.runs.run import Run, is_run
from diptych.training.optimizers import sgd
from diptych.training.schedules import cosine

EPOCHS, BATCH_SIZE = 20, 256
ENCODER_LR, HEAD_LR = 0.005, 0.5  # Barlow Twins' README, for 1 % of ImageNet's labels
SCRATCH_LR = 0.1  # without pretraining a network learns little at 0.005, which would make the comparison unfair


@dataclass(frozen=True)
class Tuning:
    """How encoder and linear layer are trained: epochs, images per step, and the peak learning rates of both."""

    epochs: int
    batch_size: int
    encoder_lr: float
    head_lr: float


def finetune(
    trained: Trained | Run | str | Path,
    train: Images,
    test: Images,
    labels: float | str = 0.01,
    *,
    epochs: int = EPOCHS,
    batch_size: int = BATCH_SIZE,
    encoder_lr: float = ENCODER_LR,
    head_lr: float = HEAD_LR,
    scratch_lr: float = SCRATCH_LR,
    seed: int = 0,
    seeds: int = 1,
    device: str = "auto",
    show: bool = True,
) -> Evaluation:
    """Train a copy of an encoder and a linear layer on few labels, beside the same network from scratch on the same labels.

    trained: an encoder (`diptych.load`), or the run or encoder folder that holds one.
    labels: a share of each class (1.0: all), or "10pc" for 10 images of each class. Both networks train on the same images
    for a given seed, and the images of a smaller share are a subset of those of a larger one.
    The rates are those of Barlow Twins' evaluate.py for 1 % of ImageNet (README; it used encoder_lr 0.002 for 10 %): SGD,
    momentum 0.9, no decay, cosine by epoch. From scratch, encoder and layer both have `scratch_lr`.
    seeds: repeat with seed, seed + 1, ..., with other images, crops and initial weights; accuracies are then means.

    Returns the accuracies after the last epoch, of chance, "trained" and "from scratch"; a run folder stores them.
    Everything is checked before the first step. Raises RecipeError for invalid arguments, DataError for missing labels or
    too few images, CheckpointError when there is no encoder or no network to train from scratch, OutputError for a run
    folder that cannot be written, DivergedError for a loss that is not finite.
    """
    if min(epochs, batch_size - 1, seeds) < 1:
        raise RecipeError(f"epochs {epochs}, seeds {seeds} must be at least 1, batch_size {batch_size} at least 2")
    amount = parse_labels(labels)
    trained, where = as_trained(trained), choose_device(device)
    embedding_width(trained.encoder, None)
    starts = {"trained": Tuning(epochs, batch_size, encoder_lr, head_lr),
              "from scratch": Tuning(epochs, batch_size, scratch_lr, scratch_lr)}  # fmt: skip
    run = Run(require_writable(trained.folder)) if trained.folder is not None and is_run(trained.folder) else None
    require_labels(train, test, amount, seed)
    from_scratch(trained, seed)
    test = readable(test)
    scores: dict[str, list[Score]] = {subject: [] for subject in starts}
    with ProgressBar("finetune", show=show) as progress:
        for number in range(seed, seed + seeds):
            part = take_labels(train, amount, number)
            networks = {"trained": copy.deepcopy(trained.encoder), "from scratch": from_scratch(trained, number)}
            for subject, tuning in starts.items():
                progress.say(f"finetune {subject} on {len(part):,} labelled images, seed {number} ...")
                scores[subject].append(
                    tune(networks[subject], part, test, trained.preprocessing, tuning=tuning, device=where, seed=number,
                         tell=progress)
                )  # fmt: skip
    lines = [replace(chance(class_names(test, "test")), protocol="finetune", subject="chance")]
    lines += [replace(mean_score(several, labels), subject=subject) for subject, several in scores.items()]
    evaluation = Evaluation(lines)
    if run is not None:
        run.append("evaluations.jsonl", evaluation.lines())
    return evaluation


def require_labels(train: Images, test: Images, amount: float | int, seed: int) -> None:
    """Raises DataError when labels are missing, do not match between the sets, or are too few, before any image is read."""
    labels = class_names(train, "training")
    check_classes(labels, class_names(test, "test"))
    subset(labels, amount, seed)


def tune(
    network: nn.Module,
    train: Images,
    test: Images,
    expected: Preprocessing,
    *,
    tuning: Tuning,
    device: torch.device,
    seed: int,
    tell: Tell | None = None,
) -> Score:
    """Train `network` (in place) and a linear layer on the labels of `train`. Returns the accuracy on `test` at the end."""
    y_train, y_test, classes = targets(class_names(train, "training"), class_names(test, "test"))
    classifier = Classifier(network, len(classes), seed).to(device)
    optimizer = sgd(classifier, tuning.head_lr, groups=[{"match": "encoder", "lr": tuning.encoder_lr}])
    batches = image_batches(train, y_train, crop_and_flip(expected), tuning.batch_size, seed, device)
    steps = tuning.epochs * steps_of(len(train), tuning.batch_size)
    fit(classifier, optimizer, batches, tuning.epochs, steps, cosine(epochs=tuning.epochs), seed, tell=tell)
    counts = torch.bincount(y_train, minlength=len(classes))
    details = {"as_in": "evaluate.py --weights finetune (Barlow Twins)", "labels_per_class": least_to_most(counts),
               **asdict(tuning), "augmentation": "crop and flip", "reported": "last epoch"}  # fmt: skip
    return score("finetune", logits(classifier, test, expected), y_test, len(train), len(classes), seed, details)


def finetune_copy(network: nn.Module, train: Images, test: Images, expected: Preprocessing, *, device: torch.device,
                  seed: int, tell: Tell | None, scratch: bool) -> Score:  # fmt: skip
    """`tune` a copy on all labels with the published settings; scratch: with the rates for an untrained network."""
    rates = (SCRATCH_LR, SCRATCH_LR) if scratch else (ENCODER_LR, HEAD_LR)
    tuning = Tuning(EPOCHS, BATCH_SIZE, *rates)
    tuned = tune(copy.deepcopy(network), train, test, expected, tuning=tuning, device=device, seed=seed, tell=tell)
    return mean_score([tuned], 1.0)


def mean_score(scores: Sequence[Score], labels: float | str) -> Score:
    """One score of several seeds: the mean, its interval over the test images, and each seed's accuracy."""
    first, accuracies = scores[0], [score.accuracy for score in scores]
    details = {"labels": str(labels)} | first.details
    if len(scores) == 1:
        return replace(first, details=details)
    mean = statistics.fmean(accuracies)
    details |= {"seeds": len(scores), "accuracies": accuracies, "spread": statistics.stdev(accuracies)}
    details.pop("top5_accuracy", None)  # of the first seed only
    interval = accuracy_interval(torch.full((first.test_images,), mean))  # Wilson needs only the share and the count
    return replace(first, accuracy=mean, interval=interval, details=details)


def parse_labels(labels: float | str) -> float | int:
    """A share of each class as float, or a number of images of each class as int ("10pc", "10 per class")."""
    text = str(labels).strip().lower()
    if (count := re.fullmatch(r"(\d+) ?(pc|per class)", text)) and int(count[1]) > 0:
        return int(count[1])
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise RecipeError(f"labels is {labels!r}; give a share such as 0.01 (1.0: all), or 10pc for 10 of each class")
    return share


def subset(labels: Sequence[str] | Sequence[int], amount: float | int, seed: int) -> Tensor:
    """The indices of the images whose labels are used, sorted: the first of each class in a random order given by `seed`.

    amount: a share (float) of each class, rounded, at least one image, or a number (int) of images per class. A smaller
    subset is part of a larger one of the same seed. Raises DataError when a class has fewer images than that number.
    """
    members: dict[str | int, list[int]] = {}
    for row in torch.randperm(len(labels), generator=random_at(seed, "labels", "subset")).tolist():
        members.setdefault(labels[row], []).append(row)
    chosen: list[int] = []
    for label, rows in members.items():
        if isinstance(amount, int) and len(rows) < amount:
            raise DataError(f"class {label!r} has {len(rows)} images, fewer than the {amount} asked for; lower labels")
        chosen += rows[: amount if isinstance(amount, int) else max(1, round(amount * len(rows)))]
    return torch.tensor(sorted(chosen))


def take_labels(train: Images, amount: float | int, seed: int) -> Images:
    """The images of `subset`. From a set that is not in memory, only these are read."""
    train.prepare()
    return readable(train.subset(subset(class_names(train, "training"), amount, seed)))


def from_scratch(trained: Trained, seed: int) -> nn.Module:
    """The encoder's network with new initial weights; for a user's own module, with its weights before training.

    Raises CheckpointError when neither is available.
    """
    if trained.built_with is not None:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(seed_at(seed, "labels", "init"))
            return make_encoder(**trained.built_with)
    untrained = trained.untrained()
    if untrained is None:
        kind, place = type(trained.encoder).__name__, f" in {trained.folder}" if trained.folder else ""
        raise CheckpointError(f"the initial weights of this {kind}{place} are not available, so it cannot be trained "
                              "from scratch for comparison: finetune a run of diptych.pretrain, which stores them")  # fmt: skip
    return untrained.encoder


def least_to_most(counts: Tensor) -> str:
    """The range of `counts` as text: `5`, or `4 to 6`."""
    least, most = int(counts.min()), int(counts.max())
    return str(most) if least == most else f"{least} to {most}"
