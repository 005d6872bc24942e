"""Readings during training: is it collapsing, and is it getting better? Each maker returns `watch(step, encoder) -> dict`."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from diptych.base.processes import rank
from diptych.base.random_at import random_at
from diptych.embeddings.diagnose import correlation_readings, effective_rank, spread
from diptych.embeddings.scores import knn_accuracy, neighbours_for
from diptych.methods import Method
from diptych.networks.inference import Preprocessing, embeddings
from diptych.training.diary import Diary
from diptych.views import View

MOST_NEIGHBOURS = 20  # of the kNN watch, whose images are few

Watch = Callable[[int, nn.Module], Mapping[str, float]]


class Watches:
    """Readings of the encoder before step 0, after every `every` epochs and after the last: logged, and returned by name.

    The first process reads; the others wait for it in the next collective.
    """

    def __init__(self, watches: Sequence[Watch], encoder: nn.Module, diary: Diary, *, every: int = 1):
        self.watches, self.encoder, self.diary, self.every = watches, encoder, diary, every

    def due(self, epoch: int) -> bool:
        return epoch % self.every == 0 or self.diary.state.step == self.diary.total

    def read(self) -> dict[str, float]:
        readings: dict[str, float] = {}
        if rank() == 0 and self.watches:
            for watch in self.watches:
                readings |= watch(self.diary.state.step, self.encoder)
            self.diary.log("watch", epoch=self.diary.epoch, **readings)
        return readings


def collapse_watch(method: Method, images: Tensor, views: Sequence[View], seed: int = 0) -> Watch:
    """Spread and effective rank of the embeddings of `images` (n, 3, S, S) uint8, and how their two views' projections
    correlate (mean of the diagonal, mean absolute off-diagonal). The same images and the same views each time."""
    draws = [view.sample(len(images), random_at(seed, "watch", index)) for index, view in enumerate(views)]

    @torch.no_grad()
    def watch(step: int, encoder: nn.Module) -> dict[str, float]:
        parameter = next(method.parameters())
        method.eval()
        pixels = images.to(parameter.device)
        applied = [view.apply(pixels, draw) for view, draw in zip(views, draws, strict=True)]
        applied = [view.to(parameter.dtype, memory_format=torch.channels_last) for view in applied]
        own = method.draw(len(images), random_at(seed, "watch", "method"))
        shown = method.shown(method.project(applied, {name: value.to(parameter.device) for name, value in own.items()}))
        embedding = encoder(applied[0]).float().cpu()
        method.train()
        readings = {"spread": float(spread(embedding)), "rank": float(effective_rank(embedding))}
        return readings if shown is None else readings | correlation_readings(*(z.float().cpu() for z in shown))

    return watch


def knn_watch(images: Tensor, labels: Sequence[int], mean: Sequence[float], std: Sequence[float], size: int | None = None,
              seed: int = 0, k: int | None = None) -> Watch:  # fmt: skip
    """kNN accuracy on a fifth of `images` (n, 3, S, S) uint8 from the other four fifths; a cheap number to follow.

    k: neighbours that vote, by default as many as the smallest class has images, 10 to 20.
    """
    order = torch.randperm(len(images), generator=random_at(seed, "watch", "knn"))
    images, targets = images[order], torch.as_tensor(labels)[order]
    held, expected = max(1, len(images) // 5), Preprocessing(size or images.shape[-1], tuple(mean), tuple(std))

    k = min(MOST_NEIGHBOURS, neighbours_for(targets[held:])) if k is None else k

    def watch(step: int, encoder: nn.Module) -> dict[str, float]:
        vectors = embeddings(encoder, images, expected)
        result = knn_accuracy(vectors[held:], targets[held:], vectors[:held], targets[:held], k=k)
        return {"knn_accuracy": result.accuracy}

    return watch
