"""VICReg: Bardes, Ponce and LeCun, ICLR 2022 (arXiv:2105.04906).

Two views of an image should have the same projection, no dimension of it should become constant, and no two dimensions
should say the same. For projections X, Y (N, D), with the unbiased variance and covariance over the N images:

    s(X, Y) = 1/N sum_n |x_n - y_n|^2                                   (invariance, eq. 5)
    v(X)    = 1/D sum_j max(0, gamma - sqrt(Var(x_j) + eps))            (variance, eq. 1; gamma is 1)
    c(X)    = 1/D sum_i!=j Cov(X)_ij^2                                  (covariance, eq. 4)
    L       = lambda s(X, Y) + mu [v(X) + v(Y)] + nu [c(X) + c(Y)]      (eq. 6)

The published program, and this file, divide s by D too, and the sum of the two v by 2.
"""

from collections.abc import Sequence
from typing import Annotated

from torch import Tensor, nn

from diptych.base.processes import gather_rows, mean_over_ranks, row_counts
from diptych.base.ranges import Range, Rate, Width, checked
from diptych.methods.heads import Projector, projector_on
from diptych.methods.losses import check_pair, matmul, mean_of_all, wide
from diptych.methods.method import Compared, Draw, Method, Progress, Projections, two_views


class VICReg(Method):
    """An encoder and a projector, without negatives, target network or stop-gradient.

    encoder: images (N, 3, s, s) -> embedding (N, E).
    projector: output widths of its Linear layers, with BN and ReLU between; or a module, (N, E) -> (N, D).
    invariance, variance, covariance: lambda, mu and nu of eq. 6. Without variance it collapses.
    eps: added to the variances, 1e-12 at least: the square root of 0, of a constant dimension, has no gradient.
    width: E, needed for an encoder without `num_features`, unless the projector is a module.
    """

    collapses = {"variance": (0.9, 1.0)}  # standard deviations below 0.1
    remedies = ("raise method.variance to the published 25: it alone keeps projections of different images apart",)

    @checked
    def __init__(
        self,
        encoder: nn.Module,
        projector: Projector = (8192, 8192, 8192),
        invariance: Rate = 25.0,
        variance: Rate = 25.0,
        covariance: Rate = 1.0,
        eps: Annotated[float, Range(1e-12)] = 1e-4,
        width: Width | None = None,
    ):
        super().__init__()
        self.encoder = encoder
        self.projector = projector_on(encoder, projector, width, bias=True, last_bias=False)
        self.weights = {"invariance": invariance, "variance": variance, "covariance": covariance}
        self.eps = eps

    def project(self, views: Sequence[Tensor], draw: Draw) -> Projections:
        view1, view2 = two_views(views)  #           (N, 3, s, s)
        z1 = self.projector(self.encoder(view1))  #  (N, 3, s, s) -> (N, E) -> (N, D)
        z2 = self.projector(self.encoder(view2))
        return {"z1": z1, "z2": z2}

    def compare(self, projections: Projections, progress: Progress) -> Compared:
        z1, z2 = projections["z1"], projections["z2"]  # (N, D)
        terms = vicreg_terms(z1, z2, self.eps)
        loss = sum((self.weights[name] * term for name, term in terms.items()), z1.new_zeros(()))
        return Compared(loss, {name: term.detach() for name, term in terms.items()})

    def shown(self, projections: Projections) -> tuple[Tensor, Tensor]:
        return projections["z1"], projections["z2"]


def vicreg_terms(x_ND: Tensor, y_ND: Tensor, eps: float) -> dict[str, Tensor]:
    """The scalars {"invariance", "variance", "covariance"} of eq. 6 before their weights, over the rows of all processes.

    x_ND, y_ND: (N, D) projections of two views of the same images. eps: above 0, or a constant dimension has a gradient that is
    not finite. Raises ValueError when the shapes differ.
    """
    check_pair(x_ND, y_ND)
    counts = row_counts(len(x_ND))
    x_ND, y_ND = wide(x_ND), wide(y_ND)
    squares = mean_of_all((x_ND - y_ND).square().sum(), rows=len(x_ND))
    by_view = [variance_and_covariance(z_ND, counts, eps) for z_ND in (x_ND, y_ND)]
    return {
        "invariance": squares / x_ND.shape[1],
        "variance": (by_view[0][0] + by_view[1][0]) / 2,
        "covariance": by_view[0][1] + by_view[1][1],
    }


def variance_and_covariance(z_ND: Tensor, counts: list[int], eps: float) -> tuple[Tensor, Tensor]:
    """v and c of one view; counts: the numbers of rows of all processes, whose sum is N."""
    rows, n, d = len(z_ND), sum(counts), z_ND.shape[1]
    unbiased = n / (n - 1)
    z_ND = z_ND - mean_of_all(z_ND.sum(0), rows)
    variance_D = mean_of_all(z_ND.square().sum(0), rows) * unbiased
    if n < d:  # |Z' Z|^2 = |Z Z'|^2, exactly: (N, N), this process' rows of it, instead of (D, D)
        own_squares = matmul(z_ND, gather_rows(z_ND, counts).T).square().sum()
        all_squares = mean_over_ranks(own_squares) * len(counts) / (n - 1) ** 2
    else:
        all_squares = (mean_of_all(matmul(z_ND.T, z_ND), rows) * unbiased).square().sum()
    hinge = (1 - (variance_D + eps).sqrt()).relu().mean()
    return hinge, (all_squares - variance_D.square().sum()) / d
