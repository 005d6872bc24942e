"""What a step sees. Order and draws are functions of the seed and the step, so any step can be made again.

(seed, epoch) -> order of the images        (seed, step, view) -> draws of a view
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from diptych.base.processes import rank, world_size
from diptych.base.random_at import random_at
from diptych.data.images import Images
from diptych.views import Together, View, draw_slice


class Feed:
    """The views of this process' images, step by step.

    batch_size: images of a step, over all processes; a short last batch of an epoch is dropped. dtype: of the views.
    `total`, its steps, may be set to any number: the last epoch is then a part of one.
    """

    def __init__(
        self,
        images: Images,
        views: Sequence[View],
        *,
        epochs: int,
        batch_size: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        self.images, self.views, self.together = images, views, Together(views)
        self.batch_size, self.seed = batch_size, seed
        self.device, self.dtype = torch.device(device), dtype
        self.steps_per_epoch = len(images) // batch_size
        self.total = epochs * self.steps_per_epoch

    def starting_at(self, step: int) -> Iterator[tuple[int, list[Tensor]]]:
        """(step, a tensor (n, 3, s, s) for each view) of every step from this one on; n: the process' share of the batch."""
        share = self.batch_size // world_size()
        own = slice(rank() * share, (rank() + 1) * share)
        first, done = divmod(step, self.steps_per_epoch)
        for epoch in range(first, math.ceil(self.total / self.steps_per_epoch)):
            steps = min(self.steps_per_epoch, self.total - epoch * self.steps_per_epoch)
            order = torch.randperm(len(self.images), generator=random_at(self.seed, "order", epoch))
            order = order[: steps * self.batch_size].view(-1, self.batch_size)[done:, own]
            batches = self.images.batches(order.flatten(), share, replace=(self.seed, epoch), device=self.device)
            for step, (_, images, places) in enumerate(batches, epoch * self.steps_per_epoch + done):
                yield step, self.views_of(images, step, places)
            done = 0

    def views_of(self, images: Tensor, step: int, places: Tensor | None = None) -> list[Tensor]:
        """The views of this process' images (n, 3, S, S), or of those at `places` (n,), at a step. Draws are made for the
        global batch and sliced, so the number of processes does not change what is seen."""
        share = len(images if places is None else places)
        own = slice(rank() * share, (rank() + 1) * share)
        draws = [draw_slice(view.sample(self.batch_size, random_at(self.seed, "views", step, index)), own)
                 for index, view in enumerate(self.views)]  # fmt: skip
        views = self.together.apply(images, draws, places)
        return [view.to(self.dtype, memory_format=torch.channels_last) for view in views]

    def examples(self, count: int) -> Tensor:
        """The same few images at each call, from all over the set, as sources come class by class: (n, 3, S, S) uint8."""
        chosen = torch.randperm(len(self.images), generator=random_at(self.seed, "pictures"))[:count]
        return next(self.images.read(chosen, count, replace=(self.seed, 0)))[1]

    def views_of_examples(self, examples: Tensor) -> list[Tensor]:
        """Views of `examples`, the same at each call, on the device and of the type of training."""
        pixels = examples.to(self.device)
        rngs = (random_at(self.seed, "picture", index) for index in range(len(self.views)))
        return [view(pixels, rng).to(self.dtype) for view, rng in zip(self.views, rngs, strict=True)]
