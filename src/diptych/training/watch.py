"""Readings during training: is it collapsing, and is it getting better? Each maker returns `watch(step, encoder) -> dict`."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from diptych.base.random_at import random_at
from diptych.embeddings.diagnose import correlation_readings, effective_rank, spread
from diptych.embeddings.scores import knn_accuracy
from diptych.methods import Method
from diptych.networks.inference import Preprocessing, embeddings
from diptych.views import View

Watch = Callable[[int, nn.Module], Mapping[str, float]]


def collapse_watch(method: Method, images: Tensor, views: Sequence[View], seed: int = 0) -> Watch:
    """Spread and effective rank of the embeddings of `images` (n, 3, S, S) uint8, and how their two views' projections
    correlate (mean of the diagonal, mean absolute off-diagonal). The same images and the same views each time."""
    draws = [view.sample(len(images), random_at(seed, "watch", index)) for index, view in enumerate(views)]

    @torch.no_grad()
    def watch(step: int, encoder: nn.Module) -> dict[str, float]:
        parameter = next(method.parameters())
        method.eval()
        pair = [view.apply(images.to(parameter.device), draw) for view, draw in zip(views, draws, strict=True)]
        first, second = (view.to(parameter.dtype, memory_format=torch.channels_last) for view in pair)
        projections = method.project([first, second])
        embedding = encoder(first).float().cpu()
        method.train()
        readings = {"spread": float(spread(embedding)), "rank": float(effective_rank(embedding))}
        return readings | correlation_readings(projections["z1"].float().cpu(), projections["z2"].float().cpu())

    return watch


def knn_watch(images: Tensor, labels: Sequence[int], mean: Sequence[float], std: Sequence[float], size: int | None = None,
              seed: int = 0, k: int = 20) -> Watch:  # fmt: skip
    """kNN accuracy on a fifth of `images` (n, 3, S, S) uint8 from the other four fifths; a cheap number to follow."""
    order = torch.randperm(len(images), generator=random_at(seed, "watch", "knn"))
    images, targets = images[order], torch.as_tensor(labels)[order]
    held, expected = max(1, len(images) // 5), Preprocessing(size or images.shape[-1], tuple(mean), tuple(std))

    def watch(step: int, encoder: nn.Module) -> dict[str, float]:
        vectors = embeddings(encoder, images, expected)
        result = knn_accuracy(vectors[held:], targets[held:], vectors[:held], targets[:held], k=k)
        return {"knn_accuracy": result.accuracy}

    return watch
