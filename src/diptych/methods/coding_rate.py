"""EMP-SSL: Tong, Chen, Ma and LeCun, "Towards Self-Supervised Learning in One Training Epoch", 2023 (arXiv:2304.03977).

Several views of an image should have the same direction, and the directions of a batch should fill the space. With the
projections Z_v (N, D) of view v, rows of length 1, and z the direction of their mean over the views:

    R(Z) = 1/2 logdet(I + D / (N eps) Z Z')                  (the total coding rate)
    L    = - mean_v R(Z_v) - weight * mean_v cos(Z_v, z)

It learns in few passes over the images, as every view of a batch is compared with the mean of all its views.
"""

from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.base.arithmetic import exact_product
from diptych.base.processes import gather_rows
from diptych.base.ranges import Range, Rate, Width, checked
from diptych.methods.losses import wide
from diptych.methods.method import Compared, Draw, Method, Progress, Projections, embedding_width
from diptych.networks.projectors import mlp


class CodingRate(Method):
    """An encoder and a projector, trained on two or more views of each image.

    encoder: images (N, 3, s, s) -> embedding (N, E); views of different sizes need one that takes them.
    projector: output widths of its Linear layers, with BN and ReLU between; or a module, (N, E) -> (N, D).
    weight: of the agreement of views. eps: the distortion that the coding rate allows.
    width: E, needed for an encoder without `num_features`, unless the projector is a module.
    """

    views = range(2, 65)

    @checked
    def __init__(
        self,
        encoder: nn.Module,
        projector: Sequence[Width] | nn.Module = (1024, 512),
        weight: Rate = 200.0,
        eps: Annotated[float, Range(1e-4, 1e4)] = 0.2,
        width: Width | None = None,
    ):
        super().__init__()
        self.encoder = encoder
        if not isinstance(projector, nn.Module):
            projector = mlp((embedding_width(encoder, width), *projector))
        self.projector = projector
        self.weight, self.eps = weight, eps

    def project(self, views: Sequence[Tensor], draw: Draw) -> Projections:
        return {f"z{i}": self.projector(self.encoder(view)) for i, view in enumerate(views, 1)}  # (N, D) each

    def compare(self, projections: Projections, progress: Progress) -> Compared:
        directions = [F.normalize(gather_rows(wide(z)), dim=1) for z in projections.values()]
        mean_ND = F.normalize(sum(directions[1:], directions[0]), dim=1)
        agreement = torch.stack([(z_ND * mean_ND).sum(1).mean() for z_ND in directions]).mean()
        rate = torch.stack([coding_rate(z_ND, self.eps) for z_ND in directions]).mean()
        parts = {"agreement": agreement.detach(), "coding_rate": rate.detach()}
        return Compared(-rate - self.weight * agreement, parts)

    def shown(self, projections: Projections) -> tuple[Tensor, Tensor]:
        return projections["z1"], projections["z2"]


def coding_rate(z_ND: Tensor, eps: float) -> Tensor:
    """1/2 logdet(I + D / (N eps) Z Z'), from the smaller of Z Z' (N, N) and Z' Z (D, D), whose determinants are equal."""
    n, d = z_ND.shape
    with torch.autocast(z_ND.device.type, enabled=False):
        gram = exact_product(z_ND, z_ND.T) if n <= d else exact_product(z_ND.T, z_ND)
        eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        factor = torch.linalg.cholesky_ex(eye + d / (n * eps) * gram).L  # unlike `cholesky`, it waits for no GPU
    return factor.diagonal().log().sum()
