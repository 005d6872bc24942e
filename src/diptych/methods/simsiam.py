"""SimSiam: Chen and He, "Exploring Simple Siamese Representation Learning", CVPR 2021 (arXiv:2011.10566).

From the projection of one view a predictor guesses the projection of the other, which is held still:

    D(p, z) = - p/|p| . z/|z|                                       (eq. 1)
    L       = 1/2 D(p1, stopgrad(z2)) + 1/2 D(p2, stopgrad(z1))     (eq. 4)

Without stopgrad it collapses: all images get one projection, and the loss its minimum, -1 (sec. 4.1).
"""

from collections.abc import Sequence

from torch import Tensor, nn

from diptych.methods.losses import negative_cosine
from diptych.methods.method import Compared, Draw, Method, Progress, Projections, embedding_width, two_views
from diptych.networks.projectors import mlp


class SimSiam(Method):
    """An encoder, a projector, and a predictor whose target gets no gradient.

    encoder: images (N, 3, s, s) -> embedding (N, E).
    projector: output widths of its Linear layers, with BN and ReLU between and BN last. Two for CIFAR-10.
    predictor: width of its hidden layer, a bottleneck of a quarter of the projection (sec. 3).
    stop_gradient: False trains eq. 2 instead, to watch the collapse.
    keras: as Keras' example: its batch normalisation and starting weights, scale and shift in the last BN,
    ReLU before BN in the predictor.
    frozen_statistics: BN takes its moving averages for mean and variance, which then never change, and nothing
    is normalised by its batch. Keras' example trains so, as its train_step does not say `training=True`.
    width: E, needed for an encoder without `num_features`.
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: Sequence[int] = (2048, 2048, 2048),
        predictor: int = 512,
        stop_gradient: bool = True,
        keras: bool = False,
        frozen_statistics: bool = False,
        width: int | None = None,
    ):
        super().__init__()
        self.encoder = encoder
        widths = (embedding_width(encoder, width), *projector)
        self.projector = mlp(widths, last_norm="affine" if keras else "plain", keras=keras)
        bottleneck = (widths[-1], predictor, widths[-1])
        self.predictor = mlp(bottleneck, last_bias=True, relu_first=keras, keras=keras)
        self.stop_gradient, self.frozen_statistics = stop_gradient, frozen_statistics

    def project(self, views: Sequence[Tensor], draw: Draw) -> Projections:
        if self.frozen_statistics:
            freeze_statistics(self)
        view1, view2 = two_views(views)  #           (N, 3, s, s)
        z1 = self.projector(self.encoder(view1))  #  (N, 3, s, s) -> (N, E) -> (N, D)
        z2 = self.projector(self.encoder(view2))  #  a forward of its own: batch statistics are per view
        return {"z1": z1, "z2": z2, "p1": self.predictor(z1), "p2": self.predictor(z2)}  # (N, D)

    def compare(self, projections: Projections, progress: Progress) -> Compared:
        p1, p2, z1, z2 = (projections[name] for name in ("p1", "p2", "z1", "z2"))  # (N, D)
        if self.stop_gradient:
            z1, z2 = z1.detach(), z2.detach()
        d1, d2 = negative_cosine(p1, z2), negative_cosine(p2, z1)  # eq. 1, mean over the rows
        parts = {"similarity_1": -d1.detach(), "similarity_2": -d2.detach()}  # of each guess, in [-1, 1]
        return Compared((d1 + d2) / 2, parts)

    def shown(self, projections: Projections) -> tuple[Tensor, Tensor]:
        return projections["z1"], projections["z2"]


def freeze_statistics(network: nn.Module) -> None:
    """Evaluation mode for each layer that keeps moving averages, until somebody calls `train` again."""
    for layer in network.modules():
        if hasattr(layer, "running_mean"):
            layer.eval()
