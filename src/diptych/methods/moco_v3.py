"""MoCo v3: Chen, Xie and He, "An Empirical Study of Training Self-Supervised Vision Transformers" (arXiv:2104.02057).

A predictor's query from one view should be nearest, among the keys of the batch, to the target network's key of the other
view. No queue: the negatives are the batch, and no gradient flows to keys. With q, k of length 1 (alg. 1):

    L(q, k) = - 2 T mean_n log [ exp(q_n . k_n / T) / sum_m exp(q_n . k_m / T) ]
    L       = L(q1, k2) + L(q2, k1)
    xi      <- m xi + (1 - m) theta,    m = 1 - (1 - m_0) (cos(pi progress) + 1) / 2
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from diptych.base.ranges import Positive, Share, Width, checked
from diptych.methods.contrast import info_nce_of_batch
from diptych.methods.heads import Predictor, Projector, predictor_on, projector_on
from diptych.methods.method import Compared, Draw, Method, Progress, Projections, two_views
from diptych.methods.target import falling, follow, target_of


class MoCoV3(Method):
    """An encoder, a projector and a predictor, and a target network that follows the first two.

    encoder: images (N, 3, s, s) -> embedding (N, E).
    projector: output widths of its Linear layers, with BN and ReLU between and a BN without scale and shift last, as for the
    published ResNet-50; three layers for a ViT; or a module, (N, E) -> (N, D).
    predictor: width of its hidden layer; or a module, (N, D) -> (N, D).
    temperature: T; 0.2 for a ViT. momentum: m_0; 0.996 for 1000 epochs.
    width: E, needed for an encoder without `num_features`, unless the projector is a module.
    """

    remedies = ("raise pretrain.batch_size: its other images are the negatives", "raise method.momentum towards 1")

    @checked
    def __init__(
        self,
        encoder: nn.Module,
        projector: Projector = (4096, 256),
        predictor: Predictor = 4096,
        temperature: Positive = 1.0,
        momentum: Share = 0.99,
        width: Width | None = None,
    ):
        super().__init__()
        self.encoder = encoder
        self.projector = projector_on(encoder, projector, width, last_norm="plain")
        self.predictor = predictor_on(self.projector, predictor)
        self.target = target_of(self.encoder, self.projector)
        self.temperature, self.momentum = temperature, momentum

    def project(self, views: Sequence[Tensor], draw: Draw) -> Projections:
        projections = {}
        for i, view in enumerate(two_views(views), 1):  #                     (N, 3, s, s), each by itself
            query = self.predictor(self.projector(self.encoder(view)))  #     (N, 3, s, s) -> (N, E) -> (N, D) -> (N, D)
            with torch.no_grad():
                key = self.target(view)  #                                    (N, D)
            projections |= {f"q{i}": query, f"k{i}": key}
        return projections

    def compare(self, projections: Projections, progress: Progress) -> Compared:
        loss1, right1 = info_nce_of_batch(projections["q1"], projections["k2"], self.temperature)
        loss2, right2 = info_nce_of_batch(projections["q2"], projections["k1"], self.temperature)
        return Compared(loss1 + loss2, {"nearest_is_own": (right1 + right2) / 2})

    def after_step(self, kept: Mapping[str, Tensor], progress: Progress) -> None:
        follow(self.target, (self.encoder, self.projector), falling(1 - self.momentum, progress))

    def shown(self, projections: Projections) -> tuple[Tensor, Tensor]:
        return projections["q1"], projections["q2"]
