"""Train an encoder and a linear layer on labels: the budget, fitted to the number of labels, and the published settings.

n: labelled images.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from diptych.base.errors import RecipeError
from diptych.data.images import Images
from diptych.downstream.classifier import (
    Batches,
    Classifier,
    Tell,
    class_names,
    crop_and_flip,
    fit,
    image_batches,
    logits,
    normalize,
    steps_of,
    stream,
    targets,
)
from diptych.downstream.few_labels import least_to_most
from diptych.downstream.flips import flips_keep_classes
from diptych.embeddings.probe import fit_probe
from diptych.embeddings.scores import Score, score
from diptych.networks.inference import embeddings
from diptych.runs.encoder import Preprocessing
from diptych.runs.subjects import SCRATCH, TRAINED
from diptych.training.optimizers import adamw, sgd
from diptych.training.schedules import cosine, warmup_cosine
from diptych.views import HorizontalFlip, RandomResizedCrop, View

SMALLEST_BATCH, LARGEST_BATCH = 8, 64
BATCHES = 8  # per epoch, as long as the batch stays within these sizes
LEAST_STEPS, MOST_STEPS = 600, 2000
FEW_EPOCHS, MANY_EPOCHS = 60, 20  # up to MOST_STEPS steps, and beyond
# Learning rates of the encoder and of the linear layer.
RATES = {TRAINED: (3e-3, 3e-3), SCRATCH: (3e-3, 3e-3)}
PUBLISHED_RATES = {TRAINED: (0.005, 0.5), SCRATCH: (0.1, 0.1)}  # at 0.005 a network from scratch learns little
WEIGHT_DECAY, WARMUP = 0.05, 0.2
SMALLEST_CROP = 0.5  # share of the area


@dataclass(frozen=True)
class Tuning:
    """Settings of `tune`. The details of a score contain all of them.

    start: of the linear layer, "probe" (softmax regression on the embeddings of the same images) or "normal" (random).
    published: optimizer, schedule and views of Barlow Twins' evaluate.py: SGD, cosine by epoch, crops from 8 % of the area.
    """

    steps: int
    batch_size: int
    encoder_lr: float
    head_lr: float
    start: str = "normal"
    published: bool = False


@dataclass(frozen=True)
class Budget:
    """The budget that the caller has set. None: fitted to the number of labels, or as published.

    encoder_lr, head_lr: of the trained encoder and its linear layer; scratch_lr: of both, from scratch.
    """

    epochs: int | None = None
    steps: int | None = None
    batch_size: int | None = None
    encoder_lr: float | None = None
    head_lr: float | None = None
    scratch_lr: float | None = None
    published: bool = False

    def __post_init__(self) -> None:
        """Raises RecipeError for values that cannot train."""
        if self.epochs is not None and self.steps is not None:
            raise RecipeError(f"epochs {self.epochs} and steps {self.steps} are two budgets: give one of them")
        if min(self.epochs or 1, self.steps or 1, (self.batch_size or 2) - 1) < 1 or 0 in (self.epochs, self.steps):
            raise RecipeError(f"epochs {self.epochs}, steps {self.steps} must be at least 1, batch_size {self.batch_size} "
                              "at least 2")  # fmt: skip

    def images_per_step(self, n: int) -> int:
        """n / 8, within 8 and 64, or up to a quarter more so that the last batch of an epoch is nearly full: batch statistics
        need that."""
        if self.batch_size is not None or self.published:
            return self.batch_size or 256
        wanted = min(LARGEST_BATCH, max(SMALLEST_BATCH, n // BATCHES))
        if n <= wanted:
            return max(2, n)
        return min(range(wanted, wanted * 5 // 4 + 1), key=lambda size: -n % size)

    def number_of_steps(self, n: int) -> int:
        """60 epochs, but at least 600 steps. Where 60 epochs exceed 2,000 steps: 2,000, or 20 epochs if these are more."""
        if self.steps is not None:
            return self.steps
        epoch = steps_of(n, self.images_per_step(n))
        if self.epochs is not None or self.published:
            return (self.epochs or MANY_EPOCHS) * epoch
        return max(LEAST_STEPS, min(FEW_EPOCHS * epoch, max(MOST_STEPS, MANY_EPOCHS * epoch)))

    def tuning(self, n: int, subject: str) -> Tuning:
        """The settings for n labels, of the trained encoder or of the same network from scratch."""
        encoder_lr, head_lr = (PUBLISHED_RATES if self.published else RATES)[subject]
        own_encoder, own_head = (self.scratch_lr,) * 2 if subject == SCRATCH else (self.encoder_lr, self.head_lr)
        start = "probe" if subject == TRAINED and not self.published else "normal"
        return Tuning(
            self.number_of_steps(n),
            self.images_per_step(n),
            encoder_lr if own_encoder is None else own_encoder,
            head_lr if own_head is None else own_head,
            start,
            self.published,
        )


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
    if tuning.start == "probe":
        start_from_probe(classifier, train, y_train, expected, seed)
    epoch = steps_of(len(train), tuning.batch_size)
    epochs = math.ceil(tuning.steps / epoch)
    flip = tuning.published or flips_keep_classes(train, y_train)
    view = crop_and_flip(expected) if tuning.published else moderate_views(expected, flip=flip)
    schedule = cosine(epochs=epochs) if tuning.published else warmup_cosine(WARMUP, floor=0.0)
    batches = up_to(tuning.steps, epoch, image_batches(train, y_train, view, tuning.batch_size, seed, device))
    fit(classifier, optimizer_of(classifier, tuning), batches, epochs, tuning.steps, schedule, seed, tell=tell)
    details = described(tuning, flip=flip) | {
        "labels_per_class": least_to_most(torch.bincount(y_train, minlength=len(classes)))
    }
    return score("finetune", logits(classifier, test, expected), y_test, len(train), len(classes), seed, details)


def optimizer_of(classifier: Classifier, tuning: Tuning) -> torch.optim.Optimizer:
    """AdamW without decay of biases and normalisation, or the published SGD."""
    groups = [{"match": "encoder", "lr": tuning.encoder_lr}]
    if tuning.published:
        return sgd(classifier, tuning.head_lr, groups=groups)
    return adamw(classifier, tuning.head_lr, weight_decay=WEIGHT_DECAY,
                 groups=[{"match": "1d", "weight_decay": 0.0}, *groups])  # fmt: skip


def moderate_views(expected: Preprocessing, *, flip: bool) -> View:
    """Crops of at least half of the area, and flips where they keep the class."""
    crop = RandomResizedCrop(expected.size, (SMALLEST_CROP, 1.0))
    return View([crop, *[HorizontalFlip()] * flip, normalize(expected)])


def described(tuning: Tuning, *, flip: bool) -> dict:
    """The details of a score: the settings, and what they stand for."""
    if tuning.published:
        how = {"as_in": "evaluate.py --weights finetune (Barlow Twins)", "optimizer": "SGD", "weight_decay": 0.0,
               "augmentation": "crop and flip"}  # fmt: skip
    else:
        how = {"as_in": "budget fitted to the number of labels", "optimizer": "AdamW", "weight_decay": WEIGHT_DECAY,
               "augmentation": f"crop from {SMALLEST_CROP:.0%} of the area{', flip' * flip}"}  # fmt: skip
    settings = asdict(tuning)
    settings.pop("published")
    return how | settings | {"reported": "last step"}


def up_to(steps: int, epoch: int, batches: Batches) -> Batches:
    """The same batches, `epoch` in each epoch, without those beyond `steps`."""

    def limited(number: int) -> Iterator[tuple[Tensor, Tensor]]:
        return islice(batches(number), max(0, steps - number * epoch))

    return limited


def start_from_probe(
    classifier: Classifier, train: Images, y_train: Tensor, expected: Preprocessing, seed: int
) -> None:
    """Give the linear layer the weights of the linear probe, so that training starts at the frozen encoder's accuracy.

    From random weights, the first steps change the encoder before the layer can use it (Kumar et al. 2022).
    """
    head = classifier.head
    z_NE = embeddings(classifier.encoder, stream(train), expected, output_device=head.weight.device)
    probe = fit_probe(z_NE, y_train.to(z_NE.device), head.out_features, seed=seed)
    weight_EK = probe.solution.weight_EK / probe.scale_E[:, None]
    with torch.no_grad():
        head.weight.copy_(weight_EK.T)
        head.bias.copy_(probe.solution.bias_K - probe.mean_E @ weight_EK)
