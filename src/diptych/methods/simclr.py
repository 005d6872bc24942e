"""SimCLR: Chen, Kornblith, Norouzi and Hinton, ICML 2020 (arXiv:2002.05709).

Two views of an image should be nearer to each other than to any view of another image of the batch. With projections z of
length 1, 2N of them, of which z_i and z_j are of one image:

    l(i, j) = - log [ exp(z_i . z_j / T) / sum_k!=i exp(z_i . z_k / T) ]      (eq. 1)
    L       = 1/N sum over both orders of each pair of l                      (the program's; the paper's is half of it)

The negatives are the batch: it should be large, and is that of all processes.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from diptych.base.ranges import Positive, Width, checked
from diptych.methods.contrast import nt_xent
from diptych.methods.heads import Projector, projector_on
from diptych.methods.method import Compared, Draw, Method, Progress, Projections, two_views


class SimCLR(Method):
    """An encoder and a projector, trained so that each image is distinguished from all others of its batch.

    encoder: images (N, 3, s, s) -> embedding (N, E).
    projector: output widths of its Linear layers, with BN and ReLU between, and finally a BN with scale but no shift,
    as in the program; or a module, (N, E) -> (N, D).
    temperature: T; 0.1 for ImageNet, 0.5 for CIFAR-10 (appendix B.9).
    width: E, needed for an encoder without `num_features`, unless the projector is a module.
    """

    remedies = ("raise pretrain.batch_size: its other images are the negatives", "raise method.temperature")

    @checked
    def __init__(
        self,
        encoder: nn.Module,
        projector: Projector = (2048, 128),
        temperature: Positive = 0.1,
        width: Width | None = None,
    ):
        super().__init__()
        self.encoder = encoder
        self.projector = projector_on(encoder, projector, width, last_norm="affine")
        if not isinstance(projector, nn.Module):
            [*self.projector.children()][-1].bias.requires_grad_(False)  # 0 for good
        self.temperature = temperature

    def project(self, views: Sequence[Tensor], draw: Draw) -> Projections:
        view1, view2 = two_views(views)  #           (N, 3, s, s)
        z1 = self.projector(self.encoder(view1))  #  (N, 3, s, s) -> (N, E) -> (N, D)
        z2 = self.projector(self.encoder(view2))
        return {"z1": z1, "z2": z2}

    def compare(self, projections: Projections, progress: Progress) -> Compared:
        loss, right = nt_xent(projections["z1"], projections["z2"], self.temperature)  # of (N, D)
        return Compared(loss, {"nearest_is_own": right})

    def shown(self, projections: Projections) -> tuple[Tensor, Tensor]:
        return projections["z1"], projections["z2"]
