"""Training on labels: a linear layer on an encoder, frozen or not, by cross-entropy, with reproducible views and orders."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.base.errors import DataError, DivergedError
from diptych.base.random_at import random_at, seed_at
from diptych.data.images import Images
from diptych.embeddings.scores import check_classes
from diptych.methods.method import embedding_width
from diptych.networks.inference import embeddings
from diptych.runs.encoder import Preprocessing
from diptych.training.optimizers import set_rates
from diptych.training.schedules import Schedule
from diptych.views import HorizontalFlip, Normalize, RandomResizedCrop, View

Batches = Callable[[int], Iterator[tuple[Tensor, Tensor]]]  # epoch -> (inputs, classes) of each step
Tell = Callable[[int, str], object]  # called with the number of steps done and a description of the current work
Start = Callable[..., Tensor]  # (weight, generator=rng): fills a layer's weights in place
IMAGES_PER_BATCH = 512  # of `stream` and of reading images once


def small_normal_(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Fill with normal numbers of deviation 0.01, as Barlow Twins' evaluate.py."""
    return nn.init.normal_(weight, std=0.01, generator=generator)


class Classifier(nn.Module):
    """An encoder and a linear layer: images (N, 3, S, S) -> logits (N, classes).

    frozen: the encoder stays in evaluation mode and gets no gradient. The layer starts as in Barlow Twins' evaluate.py:
    normal weights of deviation 0.01, zero bias; start_(weight, generator=rng) replaces this initialisation.
    """

    def __init__(
        self, encoder: nn.Module, classes: int, seed: int, *, frozen: bool = False, start_: Start = small_normal_
    ):
        super().__init__()
        parameter = next(encoder.parameters(), torch.empty(0))
        self.encoder, self.frozen = encoder, frozen
        self.head = linear_head(embedding_width(encoder, None), classes, seed, start_).to(parameter.dtype)

    def forward(self, images: Tensor) -> Tensor:
        if not self.frozen:
            return self.head(self.encoder(images))
        with torch.no_grad():
            embedding = self.encoder(images)
        return self.head(embedding)

    def train(self, mode: bool = True) -> "Classifier":
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self


def linear_head(width: int, classes: int, seed: int, start_: Start = small_normal_) -> nn.Linear:
    """A linear layer whose weights `start_` fills from a separate random generator; biases are zero."""
    rng = random_at(seed, "labels", "head")
    # torch initialises a new layer from the CPU's global generator; these numbers are then replaced.
    with torch.random.fork_rng(devices=[]):
        head = nn.Linear(width, classes)
    start_(head.weight, generator=rng)
    nn.init.zeros_(head.bias)
    return head


def fit(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    epochs: int,
    total: int,
    schedule: Schedule,
    seed: int,
    penalty: Callable[[], Tensor] | None = None,
    tell: Tell | None = None,
) -> None:
    """Train `network` in place by cross-entropy (+ `penalty()`) and leave it in evaluation mode.

    total: the number of steps over which the schedule runs from 0 to 1. Raises DivergedError at the end of an epoch whose last
    loss is not finite.
    """
    network.train()
    step, loss = 0, torch.zeros(())
    gpus = (
        range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    )  # to ask one for its state is to start it
    with torch.random.fork_rng(devices=gpus):
        for epoch in range(epochs):
            for inputs, classes in batches(epoch):
                set_rates(optimizer, schedule(step / total))
                torch.manual_seed(seed_at(seed, "labels", "network", step))  # for networks with dropout
                loss = F.cross_entropy(network(inputs), classes)
                if penalty is not None:
                    loss = loss + penalty()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                step += 1
            last = float(loss.detach())  # waits for the device, once per epoch
            if not math.isfinite(last):
                raise DivergedError(
                    f"training on labels: loss {last} in epoch {epoch + 1} of {epochs}; lower its learning rates"
                )
            if tell is not None:
                tell(step, f"epoch {epoch + 1} of {epochs}, loss {last:.4g}")
    network.eval()


def image_batches(
    images: Images, classes: Tensor, view: View, batch_size: int, seed: int, device: torch.device
) -> Batches:
    """Views of all images, in a new order every epoch. The last batch may be short, but a single image is left out until
    the next epoch, because it has no batch statistics."""

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(images), generator=random_at(seed, "labels", "order", epoch))
        if len(order) % batch_size == 1 and len(order) > 1:
            order = order[:-1]
        for number, (rows, pixels) in enumerate(images.read(order, batch_size, device=device)):
            views = view(pixels, random_at(seed, "labels", "views", epoch, number))
            yield views.contiguous(memory_format=torch.channels_last), classes[rows].to(device)

    return batches


def steps_of(images: int, batch_size: int) -> int:
    """Steps per epoch of `image_batches`."""
    return max(1, math.ceil((images - (images % batch_size == 1)) / batch_size))


def readable(images: Images) -> Images:
    """The images that can be read, so that rows, labels and keys match. A set that is not in memory is read once to find
    them."""
    images.prepare()
    if images.resident:
        return images
    used = torch.cat([rows for rows, _ in images.read(range(len(images)), IMAGES_PER_BATCH)])
    return images if len(used) == len(images) else images.subset(used)


def stream(images: Images, device: torch.device | str = "cpu") -> Iterator[Tensor]:
    """All readable images, as (n, 3, S, S) uint8 batches on `device`."""
    images.prepare()
    yield from (pixels for _, pixels in images.read(range(len(images)), IMAGES_PER_BATCH, device=device))


def logits(classifier: nn.Module, images: Images, expected: Preprocessing) -> Tensor:
    """(N, classes) on the CPU, in evaluation mode, of images without augmentation: resized and centre-cropped."""
    return embeddings(classifier, stream(images), expected)


def normalize(expected: Preprocessing) -> Normalize:
    return Normalize(expected.mean, expected.std)  # pyrefly: ignore[bad-argument-type]


def crop_and_flip(expected: Preprocessing) -> View:
    """The augmentation of training images in Barlow Twins' evaluate.py."""
    return View([RandomResizedCrop(expected.size), HorizontalFlip(), normalize(expected)])


def class_names(images: Images, what: str) -> list[str]:
    """The class name of each image: unlike class numbers, names can be compared between two sets."""
    if images.labels is None or images.classes is None:
        raise DataError(f"the {what} images have no labels: use a folder of class folders, a source with labels, or a "
                        "table (--labels FILE.csv:COLUMN)")  # fmt: skip
    return [images.classes[label] for label in images.labels]


def targets(train_labels: Sequence[str], test_labels: Sequence[str]) -> tuple[Tensor, Tensor, list[str]]:
    """The classes of both sets as numbers, and the names of the classes. Raises DataError as `check_classes` does."""
    classes = check_classes(train_labels, test_labels)
    number = {name: i for i, name in enumerate(classes)}
    y_train, y_test = (torch.tensor([number[name] for name in labels]) for labels in (train_labels, test_labels))
    return y_train, y_test, classes
