"""How few labels suffice: the trained encoder fine-tuned on some of them, beside the same network from scratch."""

import copy
import math
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from diptych.base.device import choose_device
from diptych.base.errors import DataError, RecipeError
from diptych.base.random_at import random_at, seed_at
from diptych.base.terminal import Progress
from diptych.data.images import Images
from diptych.downstream.classifier import (
    Classifier,
    Tell,
    crop_and_flip,
    fit,
    image_batches,
    logits,
    names,
    readable,
    steps_of,
    targets,
)
from diptych.embeddings.scores import Score, accuracy_interval, chance, score
from diptych.networks.encoders import encoder as make_encoder
from diptych.runs.encoder import Preprocessing, load
from diptych.runs.run import Run, is_run
from diptych.training.optimizers import sgd
from diptych.training.schedules import cosine

EPOCHS, BATCH_SIZE = 20, 256
ENCODER_LR, HEAD_LR = 0.005, 0.5  # Barlow Twins' README, for 1 % of ImageNet's labels
SCRATCH_LR = 0.1  # a network without pretraining learns little at 0.005: it would lose for that alone


def finetune(
    run: Run | str | Path,
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
    encoder: nn.Module | None = None,
    show: bool = True,
) -> list[dict]:
    """Train a run's encoder and a linear layer on few labels, beside the same network from scratch on the same labels.

    labels: a share of each class (1.0: all), or "10pc", 10 of each class. The images of seed s are the same for both, and
    those of a smaller share are among those of a larger one.
    The rates are those of Barlow Twins' evaluate.py for 1 % of ImageNet (README; it took encoder_lr 0.002 for 10 %): SGD,
    momentum 0.9, no decay, cosine by epoch. From scratch, encoder and layer both have `scratch_lr`.
    seeds: repeat with seed, seed + 1, ...: other images, crops and starting weights; accuracies are then means.

    Returns the lines of evaluations.jsonl (chance, "trained", "from scratch") of the last epoch; a run keeps them. Raises
    RecipeError for impossible arguments, DataError for missing labels or too few images, CheckpointError when there is
    no encoder, DivergedError for a loss that is not finite.
    """
    if min(epochs, batch_size - 1, seeds) < 1:
        raise RecipeError(f"epochs {epochs}, seeds {seeds} must be at least 1, batch_size {batch_size} at least 2")
    amount = parse_labels(labels)
    folder, where = run.folder if isinstance(run, Run) else Path(run), choose_device(device)
    test = readable(test)
    truth = names(test, "test")
    found: dict[str, list[Score]] = {"trained": [], "from scratch": []}
    with Progress("finetune", show=show) as progress:
        for each in range(seed, seed + seeds):
            part = take_labels(train, amount, each)
            trained = copy.deepcopy(load(folder, encoder))  # a user's own module is the same one each time
            expected: Preprocessing = trained.preprocessing  # pyrefly: ignore[bad-assignment]
            fresh = from_scratch(folder, each, encoder)
            starts = {"trained": (trained, encoder_lr, head_lr), "from scratch": (fresh, scratch_lr, scratch_lr)}
            for subject, (network, lr, last_lr) in starts.items():
                progress.say(f"finetune {subject} on {len(part):,} labelled images, seed {each} ...")
                done = tune(network, part, test, expected, where, epochs, batch_size, lr, last_lr, each, progress)
                found[subject].append(done)
    lines = [chance(truth).row("chance") | {"protocol": "finetune"}]
    lines += [mean_score(scores, labels).row(subject) for subject, scores in found.items()]
    if is_run(folder):
        Run(folder).append("evaluations.jsonl", lines)
    return lines


def tune(network: nn.Module, train: Images, test: Images, expected: Preprocessing, device: torch.device, epochs: int,
         batch_size: int, encoder_lr: float, head_lr: float, seed: int, tell: Tell | None) -> Score:  # fmt: skip
    """Train `network` (in place) and a linear layer on the labels of `train`; the accuracy on `test` after the last epoch."""
    y_train, y_test, classes = targets(names(train, "training"), names(test, "test"))
    classifier = Classifier(network, len(classes), seed).to(device)
    optimizer = sgd(classifier, head_lr, groups=[{"match": "encoder", "lr": encoder_lr}])
    view = crop_and_flip(expected)
    steps = epochs * steps_of(len(train), batch_size)
    fit(classifier, optimizer, image_batches(train, y_train, view, batch_size, seed, device), epochs, steps,
        cosine(epochs=epochs), seed, tell=tell)  # fmt: skip
    counts = torch.bincount(y_train, minlength=len(classes))
    details = {"as_in": "evaluate.py --weights finetune (Barlow Twins)", "labels_per_class": spread_of(counts),
               "epochs": epochs, "batch_size": batch_size, "encoder_lr": encoder_lr, "head_lr": head_lr,
               "augmentation": "crop and flip", "reported": "last epoch"}  # fmt: skip
    return score("finetune", logits(classifier, test, expected), y_test, len(train), len(classes), seed, details)


def finetune_copy(network: nn.Module, train: Images, test: Images, expected: Preprocessing, device: torch.device, seed: int,
                  tell: Tell | None, scratch: bool) -> Score:  # fmt: skip
    """`tune` with the published numbers on all labels, on a copy; with `scratch`, at the rates of an untrained network."""
    rates = (SCRATCH_LR, SCRATCH_LR) if scratch else (ENCODER_LR, HEAD_LR)
    found = tune(copy.deepcopy(network), train, test, expected, device, EPOCHS, BATCH_SIZE, *rates, seed, tell)
    return mean_score([found], 1.0)


def mean_score(scores: Sequence[Score], labels: float | str) -> Score:
    """One score of several seeds: the mean, its interval over the test images, and each seed's accuracy."""
    first, accuracies = scores[0], [each.accuracy for each in scores]
    details = {"labels": str(labels)} | first.details
    if len(scores) == 1:
        return Score(**vars(first) | {"details": details})
    mean = statistics.fmean(accuracies)
    details |= {"seeds": len(scores), "accuracies": accuracies, "spread": statistics.stdev(accuracies)}
    details.pop("top5_accuracy", None)  # of the first seed only
    interval = accuracy_interval(torch.full((first.test_images,), mean))  # Wilson needs the share and the count alone
    return Score(**vars(first) | {"accuracy": mean, "interval": interval, "details": details})


def parse_labels(labels: float | str) -> float | int:
    """A share of each class as float, or a number of images of each class as int ("10pc", "10 per class")."""
    text = str(labels).strip().lower()
    if (found := re.fullmatch(r"(\d+) ?(pc|per class)", text)) and int(found[1]) > 0:
        return int(found[1])
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise RecipeError(f"labels is {labels!r}; give a share such as 0.01 (1.0: all), or 10pc for 10 of each class")
    return share


def subset(labels: Sequence[str] | Sequence[int], amount: float | int, seed: int) -> Tensor:
    """Which images keep their label, in rising order: of each class the first in an order that `seed` makes.

    amount: a share (float) of each class, rounded, at least one image, or a number (int) of images of each. A smaller
    subset is part of a larger one of the same seed. Raises DataError when a class has fewer images than asked for.
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
    """The images of `subset`; of a set that is not held in memory, only these are read."""
    train.prepare()
    return readable(train.subset(subset(names(train, "training"), amount, seed)))


def from_scratch(folder: Path, seed: int, encoder: nn.Module | None) -> nn.Module:
    """The run's network with fresh weights; of a user's own module, with those it had before training."""
    built = getattr(load(folder, encoder), "built_with", None)
    if built is None:
        return copy.deepcopy(load(folder / "untrained", encoder))
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed_at(seed, "labels", "init"))
        return make_encoder(**built)


def spread_of(counts: Tensor) -> str:
    """`5`, or `4 to 6`."""
    least, most = int(counts.min()), int(counts.max())
    return str(most) if least == most else f"{least} to {most}"
