"""SwAV, swapped assignments between views: Caron, Misra, Mairal, Goyal, Bojanowski and Joulin, NeurIPS 2020 (arXiv:2006.09882).

Each view should be assigned to the prototypes c_1 ... c_K as the other views of its image are. With z and c of length 1:

    s_nk = z_n . c_k
    Q    = argmax over shares with equal columns of  sum_nk Q_nk s_nk + epsilon H(Q)             (eq. 3, Sinkhorn-Knopp)
    l(s, q) = - sum_k q_k log softmax(s / T)_k                                                   (eq. 2)
    L    = mean over the first two views i of the mean over all other views j of l(s_j, q_i)     (eq. 6)

Only the first two views, the large ones, assign; q gets no gradient. Small batches are assigned together with a queue of
earlier projections, under today's prototypes. At first the loss is about ln K; if it stays there, all images look alike.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.base.processes import gather, rank, world_size
from diptych.base.ranges import Count, Positive, Range, Share, Width, checked
from diptych.methods.assignments import alive, near, of_other_views, reached, sinkhorn
from diptych.methods.heads import Projector, projection_width, projector_on
from diptych.methods.losses import matmul, wide
from diptych.methods.method import Compared, Draw, Method, Progress, Projections
from diptych.methods.target import new_queue, push


class SwAV(Method):
    """An encoder, a projector and prototypes, trained on two large and any number of small views of each image.

    encoder: images (N, 3, s, s) -> embedding (N, E), for views of every size that is used.
    projector: output widths of its Linear layers, with BN and ReLU between; or a module, (N, E) -> (N, D).
    prototypes: K. temperature: T. epsilon: of the entropy; 0.03 where it does not leave ln K. iterations: of Sinkhorn-Knopp.
    queue: earlier projections to assign together with the batch, one queue per large view, used as soon as it is full
    and the fraction `queue_start` of training is over; None: no queue. 3840 from epoch 15 of 100 or 200 for batches of
    256.
    frozen: fraction of training before the prototypes move, by default one epoch of 800.
    width: E, needed for an encoder without `num_features`, unless the projector is a module.
    """

    views = range(2, 65)
    queue: Tensor
    pushed: Tensor
    remedies = (
        "lower method.epsilon to 0.03",
        "raise method.frozen, so that the prototypes wait longer",
        "lower optimizer.lr, with warm-up",
    )

    @checked
    def __init__(
        self,
        encoder: nn.Module,
        projector: Projector = (2048, 128),
        prototypes: Width = 3000,
        temperature: Positive = 0.1,
        epsilon: Annotated[float, Range(1e-4)] = 0.05,
        iterations: Annotated[int, Range(1, 1000)] = 3,
        queue: Count | None = None,
        queue_start: Share = 0.075,
        frozen: Share = 0.00125,
        width: Width | None = None,
    ):
        super().__init__()
        self.encoder = encoder
        self.projector = projector_on(encoder, projector, width, bias=True)
        columns = projection_width(self.projector)
        self.prototypes = nn.Parameter(F.normalize(torch.randn(prototypes, columns), dim=1))  # (K, D)
        if queue is not None:
            self.register_buffer("queue", torch.stack([new_queue(queue, columns) for _ in range(2)]))  # (2, rows, D)
            self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))
        self.has_queue, self.queue_start, self.frozen = queue is not None, queue_start, frozen
        self.temperature, self.epsilon, self.iterations = temperature, epsilon, iterations
        self.collapses = {"loss": near(math.log(prototypes))}
        self.rising = "shorten method.queue, or start it later (method.queue_start)" if queue is not None else ""

    def project(self, views: Sequence[Tensor], draw: Draw) -> Projections:
        return {f"z{i}": self.projector(self.encoder(view)) for i, view in enumerate(views, 1)}  # (N, D) each

    def compare(self, projections: Projections, progress: Progress) -> Compared:
        z = [F.normalize(wide(projections[f"z{i + 1}"]), dim=1) for i in range(len(projections))]  # (N, D) each
        prototypes = alive(self.prototypes, reached(self.frozen, progress, self.prototypes.device))
        scores = [matmul(z_ND, prototypes.T) for z_ND in z]  # (N, K) each
        shares = [self.assign(z_ND.detach(), place, progress) for place, z_ND in enumerate(z[:2])]  # (N, K) each
        first, second = (q_NK.argmax(1) for q_NK in shares)
        same = gather((first == second).to(z[0].dtype)).mean()  # of chance: 1 / K
        kept = {f"z{i}": z_ND.detach() for i, z_ND in enumerate(z[:2], 1)} if self.has_queue else {}
        return Compared(of_other_views(shares, scores, self.temperature), {"same_prototype": same}, kept)

    def assign(self, z_ND: Tensor, place: int, progress: Progress) -> Tensor:
        """This process' rows (N, K) of the shares that the batch of all processes gets, with or without a queue."""
        everything, own = gather(z_ND), slice(rank() * len(z_ND), (rank() + 1) * len(z_ND))
        scores = matmul(everything, wide(self.prototypes.detach()).T)
        shares = sinkhorn(scores, self.epsilon, self.iterations)[own]
        if not self.has_queue:
            return shares
        of_queue = matmul(self.queue[place], wide(self.prototypes.detach()).T)
        with_queue = sinkhorn(torch.cat([scores, of_queue]), self.epsilon, self.iterations)[own]
        in_use = (self.pushed >= self.queue.shape[1]) & reached(self.queue_start, progress, self.queue.device)
        return torch.where(in_use, with_queue, shares)

    @torch.no_grad()
    def after_step(self, kept: Mapping[str, Tensor], progress: Progress) -> None:
        self.prototypes.copy_(F.normalize(self.prototypes, dim=1))
        for place, z in enumerate(kept.values()):
            push(self.queue[place], self.pushed, z)
        if kept:
            self.pushed.add_(len(kept["z1"]) * world_size())

    def shown(self, projections: Projections) -> tuple[Tensor, Tensor]:
        return projections["z1"], projections["z2"]
