"""Losses beside lightly's, where it is installed (the extra "benchmarks"): equal, or apart by the factor that is named."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.methods import BYOL, DINO, BarlowTwins, SimCLR, SimSiam, SwAV, VICReg
from diptych.methods.contrast import info_nce

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    theirs = pytest.importorskip("lightly.loss", reason="lightly is an extra: benchmarks")


def projections(count: int, rows: int = 12, width: int = 16) -> list[Tensor]:
    """`count` views of the same rows, float64, with gradients."""
    rng = torch.Generator().manual_seed(0)
    same = torch.randn(rows, width, generator=rng, dtype=torch.float64)
    return [
        (same + torch.randn(rows, width, generator=rng, dtype=torch.float64)).requires_grad_() for _ in range(count)
    ]


def agree(ours: Tensor, other: Tensor, inputs: list[Tensor], factor: float = 1.0, offset: float = 0.0) -> None:
    """Ours is factor * lightly's + offset, and the gradients are in that ratio."""
    torch.testing.assert_close(ours, factor * other.reshape(()) + offset, rtol=1e-9, atol=1e-9)
    gradients = [torch.autograd.grad(loss, inputs, allow_unused=True, retain_graph=True) for loss in (ours, other)]
    for own, their in zip(*gradients, strict=True):
        assert (own is None) == (their is None)
        if own is not None and their is not None:
            torch.testing.assert_close(own, factor * their, rtol=1e-8, atol=1e-9)
            assert own.abs().max() > 0


def test_barlow_twins():
    z1, z2 = inputs = projections(2)
    method = BarlowTwins(nn.Identity(), nn.Identity(), off_diagonal_weight=0.01)
    other = theirs.BarlowTwinsLoss(lambda_param=0.01)
    agree(method.compare({"z1": z1, "z2": z2}, 0.0).loss, other(z1, z2), inputs)


def test_simsiam():
    p1, p2, z1, z2 = inputs = projections(4)
    method, other = SimSiam(nn.Linear(1, 1), nn.Linear(1, 1), nn.Identity()), theirs.NegativeCosineSimilarity()
    ours = method.compare({"p1": p1, "p2": p2, "z1": z1, "z2": z2}, 0.0).loss
    agree(ours, (other(p1, z2.detach()) + other(p2, z1.detach())) / 2, inputs)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_simclr_is_the_sum_of_both_directions(temperature):
    """lightly takes the mean over 2 N, which is half of it."""
    z1, z2 = inputs = projections(2)
    method = SimCLR(nn.Identity(), nn.Identity(), temperature=temperature)
    agree(method.compare({"z1": z1, "z2": z2}, 0.0).loss, theirs.NTXentLoss(temperature)(z1, z2), inputs, factor=2)


def test_byol_has_its_constants():
    """lightly has two negative cosines; ours is twice their sum, plus 4."""
    p1, p2, t1, t2 = inputs = projections(4)
    method, other = BYOL(nn.Linear(1, 1), nn.Linear(1, 1), nn.Identity()), theirs.NegativeCosineSimilarity()
    ours = method.compare({"p1": p1, "p2": p2, "target1": t1, "target2": t2}, 0.0).loss
    agree(ours, other(p1, t2.detach()) + other(p2, t1.detach()), inputs, factor=2, offset=4)


def test_moco():
    """Of one direction; lightly's bank starts with rows of its own, so ours are set."""
    q, k = inputs = projections(2)
    queue = F.normalize(torch.randn(32, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64), dim=1)
    other = theirs.NTXentLoss(0.2, memory_bank_size=(32, 16))
    other.memory_bank.bank, other.memory_bank.bank_ptr = queue.clone(), torch.zeros(1, dtype=torch.int64)
    agree(info_nce(q, k, queue, 0.2)[0], other(q, k.detach()), inputs)


def test_vicreg():
    z1, z2 = inputs = projections(2)
    method = VICReg(nn.Identity(), nn.Identity())
    agree(method.compare({"z1": z1, "z2": z2}, 0.0).loss, theirs.VICRegLoss()(z1, z2), inputs)


@pytest.mark.parametrize("queued", [False, True])
def test_swav(queued):
    inputs = projections(4)
    method = SwAV(nn.Identity(), nn.Linear(16, 16), prototypes=10, queue=24 if queued else None, queue_start=0.0,
                  frozen=0.0).double()  # fmt: skip
    scores = [F.normalize(z, dim=1) @ method.prototypes.T for z in inputs]
    queues = None
    if queued:
        method.pushed.fill_(24)
        queues = [rows @ method.prototypes.T for rows in method.queue]
    ours = method.compare({f"z{i}": z for i, z in enumerate(inputs, 1)}, 0.5).loss
    agree(ours, theirs.SwaVLoss(0.1, 3, 0.05)(scores[:2], scores[2:], queues), inputs)


def test_dino():
    """Of logits; lightly's centre has moved after the first call, as ours has after `move_centre`."""
    inputs = projections(4)
    teacher = [z.detach() for z in projections(2)]
    method = DINO(nn.Linear(1, 1), nn.Linear(1, 16), prototypes=16, teacher_temperature=0.04).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of arguments that it will take at calls
        other = theirs.DINOLoss(16, warmup_teacher_temp_epochs=0).double()
    for _ in range(2):
        agree(method.loss_of(inputs, teacher, torch.tensor(0.5))[0], other(teacher, inputs, epoch=5), inputs)
        method.move_centre(torch.cat(teacher).mean(0))
        torch.testing.assert_close(method.centre, other.center.flatten())
