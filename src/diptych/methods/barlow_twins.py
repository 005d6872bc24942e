"""Barlow Twins: Zbontar, Jing, Misra, LeCun and Deny, ICML 2021 (arXiv:2103.03230).

Two views of an image should have the same projection, and the columns of the projection should not be
redundant. With z1, z2 standardised over a batch of N images:

    C_ij = 1/N sum_b z1_bi z2_bj                                  (eq. 2)
    L    = sum_i (1 - C_ii)^2  +  lambda sum_i sum_j!=i C_ij^2    (eq. 1)
"""

from collections.abc import Sequence

from torch import Tensor, nn

from diptych.base.ranges import Positive, Rate, Width, checked
from diptych.methods.losses import barlow_twins
from diptych.methods.method import Compared, Draw, Method, Progress, Projections, embedding_width, two_views
from diptych.networks.projectors import mlp


class BarlowTwins(Method):
    """An encoder and a projector, trained so that the two projections correlate column by column.

    encoder: images (N, 3, s, s) -> embedding (N, E).
    projector: output widths of its Linear layers, with BN and ReLU between; wider is better (fig. 4). Or a module,
    (N, E) -> (N, D).
    bias: biases in these Linear layers; solo-learn has them, the authors' program does not.
    off_diagonal_weight: lambda of eq. 1.
    eps: added to the variances by which projections are standardised; with 0, a constant dimension has a loss of NaN.
    scale: multiplies the loss. With LARS it does not affect the weights, but it affects biases and BN.
    width: E, needed for an encoder without `num_features`, unless the projector is a module.
    """

    @checked
    def __init__(
        self,
        encoder: nn.Module,
        projector: Sequence[Width] | nn.Module = (8192, 8192, 8192),
        bias: bool = False,
        off_diagonal_weight: Rate = 0.0051,
        eps: Rate = 1e-5,
        scale: Positive = 1.0,
        width: Width | None = None,
    ):
        super().__init__()
        self.encoder = encoder
        if not isinstance(projector, nn.Module):
            projector = mlp((embedding_width(encoder, width), *projector), bias=bias)
        self.projector = projector
        self.off_diagonal_weight, self.eps, self.scale = off_diagonal_weight, eps, scale

    def project(self, views: Sequence[Tensor], draw: Draw) -> Projections:
        view1, view2 = two_views(views)  #           (N, 3, s, s)
        z1 = self.projector(self.encoder(view1))  #  (N, 3, s, s) -> (N, E) -> (N, D)
        z2 = self.projector(self.encoder(view2))  #  a separate forward pass: batch statistics are per view
        return {"z1": z1, "z2": z2}

    def compare(self, projections: Projections, progress: Progress) -> Compared:
        z1, z2 = projections["z1"], projections["z2"]  # (N, D)
        loss, parts = barlow_twins(z1, z2, self.off_diagonal_weight, self.eps)
        return Compared(self.scale * loss, parts)

    def shown(self, projections: Projections) -> tuple[Tensor, Tensor]:
        return projections["z1"], projections["z2"]
