"""BYOL: Grill et al., "Bootstrap Your Own Latent", NeurIPS 2020 (arXiv:2006.07733).

A predictor q predicts, from the projection z of one view, the target network's projection z' of the other. The target's
weights xi follow the online ones theta after each step k of K:

    L(p1, z2') = |p1/|p1| - z2'/|z2'||^2 = 2 - 2 cos(p1, z2')              (eq. 2)
    L          = L(p1, z2') + L(p2, z1')                                   (mean over the images, in [0, 8])
    xi         <- tau xi + (1 - tau) theta,
    tau        = 1 - (1 - tau_0) (cos(pi k / K) + 1) / 2                   (eq. 1; sec. 3.2)

Nothing pushes images apart. Without the predictor it collapses (sec. 5). The published program draws the target's first
weights anew; here the target starts as a copy.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from diptych.base.ranges import Share, Width, checked
from diptych.methods.heads import Predictor, Projector, predictor_on, projector_on
from diptych.methods.losses import negative_cosine
from diptych.methods.method import Compared, Draw, Method, Progress, Projections, two_views
from diptych.methods.target import falling, follow, target_of


class BYOL(Method):
    """An encoder, a projector and a predictor, and a target network that follows the first two.

    encoder: images (N, 3, s, s) -> embedding (N, E).
    projector: output widths of its Linear layers, with BN and ReLU between; or a module, (N, E) -> (N, D).
    predictor: width of its hidden layer; or a module, (N, D) -> (N, D). `nn.Identity()` demonstrates the collapse.
    momentum: tau_0; 0.996 for 1000 epochs, 0.99 for 300 and 100, 0.97 for 40 (the published program).
    width: E, needed for an encoder without `num_features`, unless the projector is a module.
    """

    remedies = ("keep method.predictor, with batch normalisation in it", "raise method.momentum towards 1")

    @checked
    def __init__(
        self,
        encoder: nn.Module,
        projector: Projector = (4096, 256),
        predictor: Predictor = 4096,
        momentum: Share = 0.996,
        width: Width | None = None,
    ):
        super().__init__()
        self.encoder = encoder
        self.projector = projector_on(encoder, projector, width, bias=True, last_bias=False)
        self.predictor = predictor_on(self.projector, predictor, bias=True, last_bias=False)
        self.target = target_of(self.encoder, self.projector)
        self.momentum = momentum

    def project(self, views: Sequence[Tensor], draw: Draw) -> Projections:
        projections = {}
        for i, view in enumerate(two_views(views), 1):  # (N, 3, s, s), each by itself
            z = self.projector(self.encoder(view))  #     (N, 3, s, s) -> (N, E) -> (N, D)
            with torch.no_grad():
                target = self.target(view)  #             (N, D)
            projections |= {f"z{i}": z, f"p{i}": self.predictor(z), f"target{i}": target}
        return projections

    def compare(self, projections: Projections, progress: Progress) -> Compared:
        similarity1, similarity2 = (
            -negative_cosine(projections[p], projections[target].detach())
            for p, target in (("p1", "target2"), ("p2", "target1"))
        )
        parts = {"similarity_1": similarity1.detach(), "similarity_2": similarity2.detach()}  # in [-1, 1]
        return Compared(4 - 2 * similarity1 - 2 * similarity2, parts)

    def after_step(self, kept: Mapping[str, Tensor], progress: Progress) -> None:
        follow(self.target, (self.encoder, self.projector), falling(1 - self.momentum, progress))

    def shown(self, projections: Projections) -> tuple[Tensor, Tensor]:
        return projections["z1"], projections["z2"]
