"""DINO: Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021 (arXiv:2104.14294).

The student should find, from any view, the distribution that the teacher finds from a large view. With the logits g of K
outputs, c the teacher's centre, T_t and T_s temperatures, sg no gradient:

    P_t(x) = softmax((g_t(x) - c) / T_t),    P_s(x) = softmax(g_s(x) / T_s)              (eq. 1)
    L      = mean over the large views x and all other views x' of - sg P_t(x) . log P_s(x')      (eq. 3)
    c      <- m c + (1 - m) mean of g_t over the large views of the batch, after the loss         (eq. 4)
    xi     <- l xi + (1 - l) theta,    l = 1 - (1 - l_0) (cos(pi progress) + 1) / 2

The first two views are the large ones. What remains is the teacher's encoder. A loss that stays at ln K is a collapse.
Not here (docs/decisions/0032): a decay that rises, and gradients clipped tensor by tensor.
"""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.base.processes import gather
from diptych.base.ranges import Momentum, Positive, Share, Width, checked
from diptych.methods.assignments import alive, near, of_other_views, reached, soft_cross_entropy
from diptych.methods.heads import Projector, projection_width, projector_on
from diptych.methods.losses import matmul, wide
from diptych.methods.method import Compared, Draw, Method, Progress, Projections
from diptych.methods.target import falling, follow
from diptych.networks.encoders import copy_of


class DINO(Method):
    """A student and a teacher that follows it, each an encoder, a projector and prototypes; trained on two or more views.

    encoder: images (N, 3, s, s) -> embedding (N, E), the student's, for views of every size that is used.
    projector: output widths of its Linear layers, with GELU between; or a module, (N, E) -> (N, D).
    prototypes: K, rows of length 1 that projections of length 1 are multiplied with.
    teacher_temperature: T_t, reached linearly from `first_temperature` over the fraction `warmup` of training, 0: at
    once.
    temperature: T_s. momentum: l_0; 0.9995 for batches of 256. centre_momentum: m.
    frozen: fraction of training before the prototypes move.
    head_norm: BN before each GELU, as in the program for convolutional encoders.
    width: E, needed for an encoder without `num_features`, unless the projector is a module.
    """

    views = range(2, 65)
    centre: Tensor
    remedies = ("lower method.teacher_temperature", "set method.head_norm=true, for a convolutional encoder",
                "raise method.momentum towards 1")  # fmt: skip

    @checked
    def __init__(
        self,
        encoder: nn.Module,
        projector: Projector = (2048, 2048, 256),
        prototypes: Width = 65536,
        teacher_temperature: Positive = 0.04,
        first_temperature: Positive = 0.04,
        warmup: Share = 0.0,
        temperature: Positive = 0.1,
        momentum: Share = 0.996,
        centre_momentum: Momentum = 0.9,
        frozen: Share = 0.01,
        head_norm: bool = False,
        width: Width | None = None,
    ):
        super().__init__()
        norm = nn.BatchNorm1d if head_norm else nn.Identity
        projector = projector_on(encoder, projector, width, bias=True, batch_norm=norm, activation=nn.GELU)
        self.student = nn.ModuleList([encoder, projector])
        self.encoder = copy_of(encoder).requires_grad_(False)  # the teacher's
        self.projector = copy_of(projector).requires_grad_(False)
        for layer in self.encoder.modules():
            if "drop_prob" in vars(layer):
                vars(layer)["drop_prob"] = 0.0  # stochastic depth is the student's alone
        self.prototypes = nn.Linear(projection_width(projector), prototypes, bias=False).weight  # (K, D)
        self.teacher_prototypes = nn.Parameter(self.prototypes.detach().clone(), requires_grad=False)
        self.register_buffer("centre", torch.zeros(prototypes))
        self.temperatures, self.warmup, self.temperature = (first_temperature, teacher_temperature), warmup, temperature
        self.momentum, self.centre_momentum, self.frozen = momentum, centre_momentum, frozen
        self.collapses = {"loss": near(math.log(prototypes))}

    def project(self, views: Sequence[Tensor], draw: Draw) -> Projections:
        encoder, projector = self.student
        projections = {f"z{i}": projector(encoder(view)) for i, view in enumerate(views, 1)}  # (N, D) each
        with torch.no_grad():
            return projections | {
                f"teacher{i}": self.projector(self.encoder(view)) for i, view in enumerate(views[:2], 1)
            }

    def compare(self, projections: Projections, progress: Progress) -> Compared:
        teacher = {name: directions(projections[name].detach()) for name in ("teacher1", "teacher2")}
        student = [directions(projections[f"z{i + 1}"]) for i in range(len(projections) - len(teacher))]
        prototypes = directions(alive(self.prototypes, reached(self.frozen, progress, self.centre.device)))  # (K, D)
        of_student = [matmul(z_ND, prototypes.T) for z_ND in student]  # (N, K) each
        prototypes = directions(self.teacher_prototypes)
        of_teacher = [matmul(z_ND, prototypes.T) for z_ND in teacher.values()]
        loss, entropy = self.loss_of(of_student, of_teacher, progress)
        return Compared(loss, {"teacher_entropy": entropy}, teacher)

    def loss_of(self, student: Sequence[Tensor], teacher: Sequence[Tensor], at: Progress) -> tuple[Tensor, Tensor]:
        """Eq. 3 and the mean entropy of the teacher's distributions, from logits (N, K) of all views and of the large ones."""
        shares = [((g_NK - self.centre) / self.temperature_at(at)).softmax(1) for g_NK in teacher]
        entropies = [soft_cross_entropy(q_NK, q_NK.clamp_min(1e-30).log(), 1.0) for q_NK in shares]
        return of_other_views(shares, student, self.temperature), torch.stack(entropies).mean()

    def temperature_at(self, progress: Progress) -> Tensor:
        first, last = self.temperatures
        progress = torch.as_tensor(progress, dtype=torch.float64, device=self.centre.device)
        share = (progress / self.warmup).clamp_max(1) if self.warmup else torch.ones_like(progress)
        return first + (last - first) * share

    @torch.no_grad()
    def after_step(self, kept: Mapping[str, Tensor], progress: Progress) -> None:
        mean = gather(torch.cat([*kept.values()])).mean(0)  # of projections; multiplied, it is the mean of the logits
        self.move_centre(matmul(directions(self.teacher_prototypes), mean))
        share = falling(1 - self.momentum, progress)
        follow(nn.ModuleList([self.encoder, self.projector]), (self.student,), share)
        self.teacher_prototypes.lerp_(self.prototypes, share.to(self.prototypes))

    def move_centre(self, mean_K: Tensor) -> None:
        self.centre.lerp_(mean_K.to(self.centre.dtype), 1 - self.centre_momentum)

    def shown(self, projections: Projections) -> tuple[Tensor, Tensor]:
        return projections["teacher1"], projections["teacher2"]


def directions(rows: Tensor) -> Tensor:
    """Rows of length 1, in float32 or float64."""
    return F.normalize(wide(rows), dim=1)
