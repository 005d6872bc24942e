"""MoCo v2: He et al., CVPR 2020 (arXiv:1911.05722), with the head and views of Chen et al. 2020 (arXiv:2003.04297).

A query should be nearer to its key, which is the key network's projection of the other view, than to the K keys of a queue,
which are those of earlier batches. With q, k of length 1:

    L    = - log [ exp(q . k / T) / (exp(q . k / T) + sum_queue exp(q . k_i / T)) ]      (eq. 1)
    xi   <- m xi + (1 - m) theta,    m = 0.999                                           (eq. 2)

The keys join the queue after the loss. The published program moves the key network before it computes keys, with the weights of
before the step: as it starts as a copy, that is what moving it after each step does.

Batch statistics tell images of one batch from the queue. Therefore `statistics_rows` images share them, and the key network
sees the images of all processes in another order (sec. 3.3). That is what one device needs too.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.base.processes import gather, rank, world_size
from diptych.base.ranges import Count, Momentum, Positive, Width, checked
from diptych.methods.contrast import info_nce
from diptych.methods.heads import Projector, projection_width, projector_on
from diptych.methods.losses import wide
from diptych.methods.method import Compared, Draw, Method, Progress, Projections, two_views
from diptych.methods.target import follow, new_queue, push, target_of


class MoCo(Method):
    """An encoder and a projector, a key network that follows them, and a queue of its projections.

    encoder: images (N, 3, s, s) -> embedding (N, E).
    projector: output widths of its Linear layers, with ReLU and no BN between; or a module, (N, E) -> (N, D).
    queue: K. temperature: T; 0.07 in v1. momentum: m.
    statistics_rows: how many images share batch statistics, the published 8 GPUs' 32; None: all, without shuffling.
    With `pretrain.micro_batch`, groups are of images of a piece.
    symmetric: the sum of both directions, as in v3 and in the authors' CIFAR-10 program; the keys of both join the queue, and
    one epoch then does about the work of two.
    width: E, needed for an encoder without `num_features`, unless the projector is a module.
    """

    queue: Tensor
    pushed: Tensor
    remedies = ("keep method.statistics_rows well below the batch", "raise method.momentum towards 1")

    @checked
    def __init__(
        self,
        encoder: nn.Module,
        projector: Projector = (2048, 128),
        queue: Count = 65536,
        temperature: Positive = 0.2,
        momentum: Momentum = 0.999,
        statistics_rows: Count | None = 32,
        symmetric: bool = False,
        width: Width | None = None,
    ):
        super().__init__()
        self.encoder = encoder
        self.projector = projector_on(encoder, projector, width, bias=True, batch_norm=nn.Identity)
        self.target = target_of(self.encoder, self.projector)
        self.register_buffer("queue", new_queue(queue, projection_width(self.projector)))  # (K, D)
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))  # keys so far
        self.temperature, self.momentum, self.symmetric = temperature, momentum, symmetric
        self.statistics_rows = statistics_rows

    def draw(self, n: int, rng: torch.Generator) -> Draw:
        return {"order": torch.rand(n, generator=rng)}  # of the images in the key network

    def project(self, views: Sequence[Tensor], draw: Draw) -> Projections:
        view1, view2 = two_views(views)  #                                         (N, 3, s, s)
        projections = {
            "q1": self.projector(self.encoder(view1)),  #                          (N, 3, s, s) -> (N, E) -> (N, D)
            "k2": self.keys(view2, draw["order"]),
        }
        if self.symmetric:
            projections |= {"q2": self.projector(self.encoder(view2)), "k1": self.keys(view1, draw["order"])}
        return projections

    @torch.no_grad()
    def keys(self, view: Tensor, order: Tensor) -> Tensor:
        """Projections (N, D) by the key network; in training, groups of images share statistics that `order` (N,) mixes."""
        if self.statistics_rows is None or not self.training:
            return self.target(view)
        rows, everything = len(view), gather(view)
        shuffled = gather(order).argsort()
        own = slice(rank() * rows, (rank() + 1) * rows)
        return gather(self.target(everything[shuffled[own]]))[shuffled.argsort()[own]]

    def compare(self, projections: Projections, progress: Progress) -> Compared:
        pairs = (("q1", "k2"), ("q2", "k1")) if self.symmetric else (("q1", "k2"),)
        results = [info_nce(projections[q], projections[k], self.queue, self.temperature) for q, k in pairs]
        losses, rights = zip(*results, strict=True)
        kept = {k: projections[k].detach() for k in ("k1", "k2") if k in projections}  # in the program's order
        return Compared(torch.stack(losses).sum(), {"nearest_is_own": torch.stack(rights).mean()}, kept)

    def after_step(self, kept: Mapping[str, Tensor], progress: Progress) -> None:
        follow(self.target, (self.encoder, self.projector), 1 - self.momentum)
        for key in kept.values():
            push(self.queue, self.pushed, F.normalize(wide(key), dim=1))
            self.pushed.add_(len(key) * world_size())

    def shown(self, projections: Projections) -> tuple[Tensor, Tensor]:
        return projections["q1"], projections["k2"]
