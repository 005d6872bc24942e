"""SimSiam: Chen and He, "Exploring Simple Siamese Representation Learning", CVPR 2021 (arXiv:2011.10566).

A predictor predicts the projection of one view from that of the other; the target gets no gradient:

    D(p, z) = - p/|p| . z/|z|                                       (eq. 1)
    L       = 1/2 D(p1, stopgrad(z2)) + 1/2 D(p2, stopgrad(z1))     (eq. 4)

Without stopgrad it collapses: all images get the same projection, and the loss reaches its minimum, -1 (sec. 4.1).
"""

from collections.abc import Sequence

from torch import Tensor, nn

from diptych.base.errors import RecipeError
from diptych.base.ranges import Width, checked
from diptych.methods.losses import negative_cosine
from diptych.methods.method import Compared, Draw, Method, Progress, Projections, embedding_width, two_views
from diptych.networks.projectors import mlp


class SimSiam(Method):
    """An encoder, a projector, and a predictor whose target gets no gradient.

    encoder: images (N, 3, s, s) -> embedding (N, E).
    projector: output widths of its Linear layers, with BN and ReLU between and BN last, two for CIFAR-10; or a module,
    (N, E) -> (N, D).
    predictor: width of its hidden layer, a bottleneck of a quarter of the projection (sec. 3); or a module,
    (N, D) -> (N, D).
    stop_gradient: False trains eq. 2 instead, to demonstrate the collapse.
    width: E, needed for an encoder without `num_features`, unless the projector is a module.

    Raises RecipeError for a predictor given by a width when the projector is a module, whose D is unknown.
    """

    @checked
    def __init__(
        self,
        encoder: nn.Module,
        projector: Sequence[Width] | nn.Module = (2048, 2048, 2048),
        predictor: Width | nn.Module = 512,
        stop_gradient: bool = True,
        width: Width | None = None,
    ):
        super().__init__()
        self.encoder = encoder
        if not isinstance(projector, nn.Module):
            widths = (embedding_width(encoder, width), *projector)
            self.projector = mlp(widths, last_norm="plain")
            if not isinstance(predictor, nn.Module):
                predictor = mlp((widths[-1], predictor, widths[-1]), last_bias=True)
            self.predictor = predictor
        elif isinstance(predictor, nn.Module):
            self.projector, self.predictor = projector, predictor
        else:
            raise RecipeError("a projector that is a module needs a predictor that is one: (N, D) -> (N, D)")
        self.stop_gradient = stop_gradient

    def project(self, views: Sequence[Tensor], draw: Draw) -> Projections:
        view1, view2 = two_views(views)  #           (N, 3, s, s)
        z1 = self.projector(self.encoder(view1))  #  (N, 3, s, s) -> (N, E) -> (N, D)
        z2 = self.projector(self.encoder(view2))  #  a separate forward pass: batch statistics are per view
        return {"z1": z1, "z2": z2, "p1": self.predictor(z1), "p2": self.predictor(z2)}  # (N, D)

    def compare(self, projections: Projections, progress: Progress) -> Compared:
        p1, p2, z1, z2 = (projections[name] for name in ("p1", "p2", "z1", "z2"))  # (N, D)
        if self.stop_gradient:
            z1, z2 = z1.detach(), z2.detach()
        d1, d2 = negative_cosine(p1, z2), negative_cosine(p2, z1)  # eq. 1, mean over the rows
        parts = {"similarity_1": -d1.detach(), "similarity_2": -d2.detach()}  # of each prediction, in [-1, 1]
        return Compared((d1 + d2) / 2, parts)

    def shown(self, projections: Projections) -> tuple[Tensor, Tensor]:
        return projections["z1"], projections["z2"]
