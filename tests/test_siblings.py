"""SimCLR, BYOL, MoCo, SwAV, VICReg and DINO: their losses against slow witnesses, and the pitfalls of other programs.

Run as a program, this file is one of two processes.
"""

import copy
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from doubles import rows_of_this_process
from small import Small, make, views
from test_distributed import run_two_processes, same
from timm.layers import DropPath
from torch import nn

from diptych.base.errors import RecipeError
from diptych.base.processes import leave_processes, start, world_size
from diptych.methods import BYOL, DINO, METHODS, MoCo, MoCoV3, SimCLR, SwAV, VICReg, vicreg
from diptych.methods.assignments import of_other_views, sinkhorn
from diptych.methods.contrast import info_nce, info_nce_of_batch, nt_xent
from diptych.methods.losses import negative_cosine
from diptych.methods.target import follow, new_queue, push, target_of
from diptych.methods.vicreg import vicreg_terms
from diptych.networks.batch_norm import shared_statistics

OPTIONS = {"moco": {"queue": 30, "statistics_rows": None}, "swav": {"prototypes": 9}, "dino": {"prototypes": 9}}
WITH_TARGET = {"byol": BYOL, "moco": MoCo, "moco_v3": MoCoV3}


def small(name: str, **options):
    return make(METHODS[name], projector=(10, 7), **OPTIONS.get(name, {}) | options)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(ours, theirs, tolerance: float = 1e-12) -> None:
    ours, theirs = (torch.as_tensor(x, dtype=torch.float64).detach() for x in (ours, theirs))
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=1e-12)


# ---- slow witnesses: loops over Python floats, from the papers


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def cross_entropy(logits: list[float], own: int) -> float:
    return math.log(math.fsum(math.exp(value) for value in logits)) - logits[own]


@pytest.mark.parametrize("n", [2, 5])
def test_nt_xent(n):
    a, b, temperature = numbers(n, 3), numbers(n, 3, seed=1), 0.3
    everything = [*a.tolist(), *b.tolist()]
    total = 0.0
    for i, row in enumerate(everything):
        others = [j for j in range(2 * n) if j != i]
        logits = [cosine(row, everything[j]) / temperature for j in others]
        total += cross_entropy(logits, others.index((i + n) % (2 * n)))
    loss, right = nt_xent(a, b, temperature)
    close(loss, total / n)  # the paper's is the mean over 2n
    nearest = [max((j for j in range(2 * n) if j != i), key=lambda j, i=i: cosine(everything[i], everything[j]))
               for i in range(2 * n)]  # fmt: skip
    close(right, sum(j == (i + n) % (2 * n) for i, j in enumerate(nearest)) / (2 * n))


def test_info_nce_with_a_queue():
    q, key, queue = numbers(4, 3), numbers(4, 3, seed=1), F.normalize(numbers(6, 3, seed=2), dim=1)
    logits = [[cosine(a, c) / 0.2 for c in [k, *queue.tolist()]] for a, k in zip(q.tolist(), key.tolist(), strict=True)]
    loss, right = info_nce(q, key, queue, 0.2)
    close(loss, sum(cross_entropy(row, 0) for row in logits) / 4)
    close(right, sum(row.index(max(row)) == 0 for row in logits) / 4)


def test_info_nce_of_the_batch():
    q, key = numbers(4, 3), numbers(4, 3, seed=1).requires_grad_()
    logits = [[cosine(a, k) / 0.2 for k in key.tolist()] for a in q.tolist()]
    loss, right = info_nce_of_batch(q.requires_grad_(), key, 0.2)
    close(loss, 2 * 0.2 * sum(cross_entropy(row, i) for i, row in enumerate(logits)) / 4)
    close(right, sum(row.index(max(row)) == i for i, row in enumerate(logits)) / 4)
    loss.backward()
    assert key.grad is None


def slow_sinkhorn(scores: list[list[float]], epsilon: float, iterations: int) -> list[list[float]]:
    n, k = len(scores), len(scores[0])
    q = [[math.exp(s / epsilon) for s in row] for row in scores]
    total = math.fsum(map(math.fsum, q))
    q = [[x / total for x in row] for row in q]
    for _ in range(iterations):
        columns = [math.fsum(row[j] for row in q) for j in range(k)]
        q = [[x / columns[j] / k for j, x in enumerate(row)] for row in q]
        q = [[x / math.fsum(row) / n for x in row] for row in q]
    return [[x * n for x in row] for row in q]


@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_sinkhorn(iterations):
    scores = numbers(5, 4).tanh()
    close(sinkhorn(scores, 0.05, iterations), slow_sinkhorn(scores.tolist(), 0.05, iterations), 1e-10)


def test_sinkhorn_gives_equal_prototypes_and_never_overflows():
    """Scores of projections that nobody normalised, in half precision, at an epsilon that would make e^4000 of them."""
    scores = (200 * numbers(64, 8)).half()
    shares = sinkhorn(scores, 0.05, 400)
    assert shares.dtype == torch.float32 and shares.isfinite().all()
    close(shares.double().sum(1), torch.ones(64), 1e-5)
    spread = sinkhorn(numbers(64, 8).tanh(), 0.5, 100)
    close(spread.sum(0), torch.full((8,), 8.0), 1e-6)
    moved = sinkhorn(numbers(64, 8) + 1000, 0.5, 3)  # an offset changes nothing
    close(moved, sinkhorn(numbers(64, 8), 0.5, 3), 1e-9)


def test_views_are_assigned_as_the_others():
    shares = [F.softmax(numbers(4, 3, seed=i), dim=1) for i in (0, 1)]
    scores = [numbers(4, 3, seed=i) for i in range(2, 5)]
    total = 0.0
    for i, j in ((0, 1), (0, 2), (1, 0), (1, 2)):
        for q, s in zip(shares[i].tolist(), scores[j].tolist(), strict=True):
            total += sum(q[k] * cross_entropy([x / 0.3 for x in s], k) for k in range(3)) / 4 / 4
    close(of_other_views(shares, scores, 0.3), total)


def slow_vicreg(x, y, eps):
    n, d = len(x), len(x[0])
    invariance = math.fsum((a - b) ** 2 for r, t in zip(x, y, strict=True) for a, b in zip(r, t, strict=True)) / n / d
    variance, covariance = 0.0, 0.0
    for z in (x, y):
        means = [math.fsum(row[j] for row in z) / n for j in range(d)]
        for i in range(d):
            for j in range(d):
                c = math.fsum((row[i] - means[i]) * (row[j] - means[j]) for row in z) / (n - 1)
                if i == j:
                    variance += max(0.0, 1 - math.sqrt(c + eps)) / d / 2
                else:
                    covariance += c * c / d
    return {"invariance": invariance, "variance": variance, "covariance": covariance}


@pytest.mark.parametrize("shape", [(7, 4), (4, 9), (2, 3)])
def test_vicreg_with_matrices_of_either_side(shape):
    """(4, 9) takes the (N, N) matrix, (7, 4) the (D, D) one."""
    x, y = numbers(*shape) * torch.linspace(0.2, 3, shape[1]), 0.5 * numbers(*shape, seed=1) + 1
    terms = vicreg_terms(x.requires_grad_(), y, 1e-4)
    for name, expected in slow_vicreg(x.tolist(), y.tolist(), 1e-4).items():
        close(terms[name], expected, 1e-10)
    (gradient,) = torch.autograd.grad(sum(terms.values()), x)
    for row, column in ((0, 0), (1, 2)):
        sides = []
        for step in (1e-5, -1e-5):
            moved = x.tolist()
            moved[row][column] += step
            sides.append(sum(slow_vicreg(moved, y.tolist(), 1e-4).values()))
        close(gradient[row, column], (sides[0] - sides[1]) / 2e-5, 1e-6)


def test_vicreg_of_a_constant_dimension_has_gradients():
    """With the smallest epsilon that is allowed; without one they would be NaN."""
    with pytest.raises(RecipeError, match="eps"):
        VICReg(nn.Identity(), projector=nn.Identity(), width=4, eps=0.0)
    smallest = VICReg(nn.Identity(), projector=nn.Identity(), width=4, eps=1e-12).eps
    for eps, finite in ((0.0, False), (smallest, True)):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
        x[:, 1] = 0.25
        sum(vicreg_terms(x.requires_grad_(), torch.zeros(8, 4), eps).values()).backward()
        assert bool(x.grad.isfinite().all()) == finite


@pytest.mark.parametrize("loss, bound", [
    (negative_cosine, 1e8 / 8),
    (lambda z, other: nt_xent(z, other, 0.5)[0], 2e12 / (8 * 0.5)),
    (lambda z, other: info_nce_of_batch(z, other, 0.5)[0], 2 * 2e12 / 8),
])  # fmt: skip
def test_a_row_of_zeros_has_the_gradient_that_is_documented(loss, bound):
    z, other = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0))
    z[0] = 0
    loss(z.requires_grad_(), other).backward()
    assert bound / 100 < z.grad[0].norm() < 1.01 * bound and z.grad[1:].norm(dim=1).max() < 1


def test_vicreg_makes_no_matrix_of_the_wide_side(monkeypatch):
    shapes = []
    product = vicreg.matmul
    monkeypatch.setattr(vicreg, "matmul", lambda a, b: shapes.append((a @ b).shape) or product(a, b))
    for shape in ((4, 9), (9, 4)):
        vicreg_terms(numbers(*shape), numbers(*shape), 1e-4)
    assert set(shapes) == {(4, 4)}


@pytest.mark.parametrize("loss", [nt_xent, info_nce_of_batch, lambda a, b, t: vicreg_terms(a, b, t)])
@pytest.mark.parametrize("second", [torch.ones(4, 1), torch.ones(1, 4), torch.ones(4)])
def test_shapes_that_would_broadcast_are_refused(loss, second):
    with pytest.raises(ValueError, match="expected two"):
        loss(torch.ones(4, 4), second, 0.1)


# ---- target networks


@pytest.mark.parametrize("name", WITH_TARGET)
def test_the_target_is_a_copy_at_step_0(name):
    """Its head too, which some programs draw anew."""
    method = small(name)
    online = [*method.encoder.parameters(), *method.projector.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(method.target.parameters(), online, strict=True))
    assert not any(p.requires_grad for p in method.target.parameters())


def test_dino_keeps_the_teachers_encoder():
    method = small("dino")
    student, teacher = method.student, [method.encoder, method.projector]
    assert all(
        torch.equal(a, b) for a, b in zip(student.parameters(), nn.ModuleList(teacher).parameters(), strict=True)
    )
    assert torch.equal(method.prototypes, method.teacher_prototypes)
    assert not any(p.requires_grad for p in method.encoder.parameters())


def test_a_target_follows_by_its_weights_and_counts_its_own_statistics():
    online = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    target = target_of(online)
    with torch.no_grad():
        online[0].weight.add_(1.0)
    online(torch.randn(8, 3))
    before = target[0][0].weight.clone()
    follow(target, (online,), 0.25)
    close(target[0][0].weight.double(), (0.75 * before + 0.25 * online[0].weight).double(), 1e-6)
    assert target[0][1].running_mean.eq(0).all() and online[1].running_mean.any()


@pytest.mark.parametrize("name", METHODS)
def test_looking_moves_nothing(name):
    """As a watch does: no queue, target, centre or statistic moves in evaluation."""
    method = make(METHODS[name], projector=(10, 7), **OPTIONS.get(name, {})).eval()
    before = copy.deepcopy(method.state_dict())
    method(views(), dict(method.draw(12, torch.Generator())))
    assert all(torch.equal(before[key], value) for key, value in method.state_dict().items())


# ---- queues


@pytest.mark.parametrize(("size", "batch"), [(7, 3), (6, 3), (5, 12), (4, 4), (3, 8)])
def test_a_queue_takes_any_batch(size, batch):
    """The last rows in their order, also at the end of the queue and for a batch larger than it."""
    queue, pushed, everything = new_queue(size, 2), torch.tensor(0), []
    for step in range(5):
        rows = torch.arange(step * batch, (step + 1) * batch, dtype=torch.float32)[:, None].expand(-1, 2)
        everything += rows[:, 0].tolist()
        push(queue, pushed, rows)
        pushed += batch
        known = everything[-size:]
        assert set(known) <= set(queue[:, 0].tolist())
        assert queue[(len(everything) - 1) % size, 0] == everything[-1]
    assert sorted(queue[:, 0].tolist()) == sorted(everything[-size:])


def test_a_queue_starts_as_directions():
    close(new_queue(9, 5).norm(dim=1).double(), torch.ones(9), 1e-6)


def test_swav_uses_its_queue_when_it_is_full_and_time_has_come():
    method = small("swav", queue=20, queue_start=0.5).double()
    z = F.normalize(numbers(12, 7), dim=1)
    method.after_step({}, 0.0)  # length 1 in float64 too
    without = sinkhorn(z @ method.prototypes.T, 0.05, 3)
    close(method.assign(z, 0, 0.9), without)
    method.after_step({"z1": z, "z2": z}, 0.0)
    close(method.assign(z, 0, 0.9), without)  # 12 of 20
    method.after_step({"z1": z, "z2": z}, 0.0)
    close(method.assign(z, 0, 0.4), without)
    assert not torch.allclose(method.assign(z, 0, 0.5), without, atol=1e-3)
    assert not torch.equal(method.queue[0, -1], method.queue[0, 0]) and method.pushed == 24


def test_moco_pushes_keys_after_the_loss():
    method = small("moco")
    before = method.queue.clone()
    compared = method(views(), dict(method.draw(12, torch.Generator())))
    assert torch.equal(method.queue, before)
    method.after_step(compared.kept, 0.0)
    close(method.queue[:12].double(), F.normalize(compared.kept["k2"], dim=1).double(), 1e-6)
    assert torch.equal(method.queue[12:], before[12:])


def test_moco_of_both_directions_is_their_sum_and_its_queue_takes_both():
    """As in the authors' CIFAR-10 program: the loss is not the mean, and the first view's keys join first."""
    method, draw = small("moco", queue=50), {"order": torch.zeros(12)}
    first, second = views()
    one, two = (method(pair, draw) for pair in ((first, second), (second, first)))
    method.symmetric = True
    both = method((first, second), draw)
    close(both.loss, one.loss + two.loss, 1e-6)
    close(both.parts["nearest_is_own"], (one.parts["nearest_is_own"] + two.parts["nearest_is_own"]) / 2)
    method.after_step(both.kept, 0.0)
    keys = F.normalize(torch.cat([two.kept["k2"], one.kept["k2"]]), dim=1)  # of the first view, of the second
    close(method.queue[:24], keys, 1e-6)
    assert method.pushed == 24


# ---- statistics of groups


def test_moco_mixes_the_groups_of_its_keys():
    """A group that shares statistics in the query network is not one in the key network, also on one device."""
    method = small("moco", statistics_rows=4).double()
    pair, order = views(dtype=torch.float64), {"order": torch.arange(12).flip(0) * 5 % 12 / 12}
    with shared_statistics(method, 4):
        keys = method.project(pair, order)["k2"]
        moved = [pair[1].clone(), pair[1].clone()]
        moved[1][0] += 1.0
        depends = [(method.project([pair[0], view], order)["k2"] - keys).abs().amax(1) > 1e-9 for view in moved]
        straight = method.project([moved[1], pair[1]], order)["q1"] - method.project([pair[1], pair[1]], order)["q1"]
    assert not depends[0].any() and depends[1].sum() == 4, "keys come back in the order of their images"
    of_query = straight.abs().amax(1) > 1e-9
    assert of_query[:4].all() and of_query.sum() == 4 and not torch.equal(of_query, depends[1])


def moco_keys() -> torch.Tensor:
    method = small("moco", statistics_rows=3).double()
    share = 12 // world_size()
    rows = rows_of_this_process(
        [views(dtype=torch.float64)[1], torch.rand(12, generator=torch.Generator().manual_seed(0))], share
    )
    with shared_statistics(method, 3):
        return method.keys(*rows)


def one_of_two() -> None:
    warnings.simplefilter("error")
    alone = moco_keys()
    start("cpu", timeout_seconds=60)
    assert same(moco_keys(), rows_of_this_process([alone], 6)[0])
    leave_processes()


@pytest.mark.slow
def test_moco_mixes_over_processes():
    run_two_processes(__file__)


# ---- prototypes


@pytest.mark.parametrize(("name", "of"), [("swav", "prototypes"), ("dino", "prototypes")])
def test_prototypes_wait(name, of):
    method = small(name, frozen=0.5)
    for progress, moves in ((0.4, False), (torch.tensor(0.5), True)):
        method.zero_grad()
        method(views(), progress=progress).loss.backward()
        assert bool(getattr(method, of).grad.any()) == moves


def test_swavs_prototypes_have_length_1_after_each_step():
    method = small("swav")
    with torch.no_grad():
        method.prototypes.mul_(3.0)
    method.after_step({}, 0.0)
    close(method.prototypes.norm(dim=1).double(), torch.ones(9), 1e-6)


def test_dinos_centre_moves_after_the_loss_to_the_mean_of_the_logits():
    method = small("dino", momentum=0.0).double()
    compared = method(views(dtype=torch.float64))
    assert not method.centre.any()
    logits = [F.normalize(z, dim=1) @ F.normalize(method.teacher_prototypes, dim=1).T for z in compared.kept.values()]
    method.after_step(compared.kept, 0.0)
    close(method.centre, 0.1 * torch.cat(logits).mean(0))


@pytest.mark.parametrize("progress", [0.0, 0.05, 0.3, 0.7, 1.0])
def test_dinos_teacher_warms_up_in_double_precision(progress):
    """With a Python number for the progress too; without a warm-up it begins where it ends."""
    options = {"first_temperature": 0.03, "teacher_temperature": 0.07}
    method = small("dino", warmup=0.6, **options)
    close(method.temperature_at(progress), 0.03 + 0.04 * min(progress / 0.6, 1.0), 1e-14)
    close(small("dino", **options).temperature_at(progress), 0.07, 1e-14)


# ---- number types


@pytest.mark.parametrize("name", ["moco", "swav", "dino"])
@pytest.mark.parametrize(("module", "numbers"), [(torch.float32, torch.float64), (torch.bfloat16, torch.bfloat16)])
def test_a_step_of_any_type_of_numbers(name, module, numbers):
    """Queue, prototypes and centre may be narrower than projections, which losses widen: then the wider type is computed in."""
    method = small(name, encoder=nn.Linear(4, 6), width=6, **{"queue": 20} if name == "swav" else {}).to(module)
    batch, draw = [torch.rand(12, 4, dtype=module) for _ in range(2)], method.draw(12, torch.Generator())
    projections = {key: z.to(numbers) for key, z in method.project(batch, draw).items()}
    compared = method.compare(projections, 0.5)
    compared.loss.backward()
    method.after_step(compared.kept, 0.5)
    assert compared.loss.dtype == (torch.float32 if numbers == torch.bfloat16 else numbers)
    assert all(value.dtype in (module, torch.int64) for value in method.state_dict().values())


# ---- networks


def test_stochastic_depth_is_the_students_alone():
    encoder = nn.Sequential(Small(), DropPath(0.5))
    method = DINO(encoder, (10, 7), prototypes=9, width=6)
    assert encoder[1].drop_prob == 0.5 and method.encoder[1].drop_prob == 0.0
    assert torch.equal(*(method.project(views(), {})["teacher1"] for _ in range(2)))


def test_the_published_heads_are_the_defaults():
    def shapes(network):
        return [layer.out_features for layer in network.modules() if isinstance(layer, nn.Linear)]

    with torch.device("meta"):  # shapes without memory
        encoder = nn.Linear(1, 1)
        simclr, byol, moco, moco_v3, swav, made_of_vicreg = (
            kind(encoder, width=1) for kind in (SimCLR, BYOL, MoCo, MoCoV3, SwAV, VICReg)
        )
        dino = DINO(encoder, width=1)
    assert shapes(simclr.projector) == [2048, 128] and not simclr.projector[-1].bias.requires_grad
    assert shapes(byol.projector) == shapes(byol.predictor) == [4096, 256]
    assert [layer.bias is None for layer in byol.projector if isinstance(layer, nn.Linear)] == [False, True]
    assert shapes(moco.projector) == [2048, 128] and moco.queue.shape == (65536, 128)
    assert not any(isinstance(layer, nn.BatchNorm1d) for layer in moco.projector)
    assert shapes(moco_v3.projector) == [4096, 256] and not moco_v3.projector[-1].affine
    assert shapes(swav.projector) == [2048, 128] and swav.prototypes.shape == (3000, 128)
    assert shapes(made_of_vicreg.projector) == [8192] * 3 and made_of_vicreg.projector[-1].bias is None
    assert shapes(dino.projector) == [2048, 2048, 256] and dino.prototypes.shape == (65536, 256)
    assert swav.collapses["loss"][0] < 8.006 < swav.collapses["loss"][1]  # ln 3000
    assert dino.collapses["loss"][0] < 11.09 < dino.collapses["loss"][1]  # ln 65536


def test_dinos_prototypes_start_as_published():
    """As torch's Linear, of length 1 / sqrt(3): a step of Adam has the same length for all, so that long ones hardly turn."""
    method = make(DINO, projector=(400, 300), prototypes=200)
    assert (method.prototypes.norm(dim=1) - 3**-0.5).abs().max() < 0.1
    assert method.prototypes.abs().max() <= 300**-0.5


@pytest.mark.parametrize("name", ["byol", "moco", "moco_v3", "swav", "dino"])
def test_a_projector_of_ones_own_tells_its_width(name):
    method = make(METHODS[name], projector=nn.Sequential(nn.Linear(6, 5), nn.Tanh()), **OPTIONS.get(name, {}))
    assert method(views(), dict(method.draw(12, torch.Generator()))).loss.isfinite()
    with pytest.raises(RecipeError, match="the projector Identity has no Linear layer"):
        make(METHODS[name], encoder=Small(), projector=nn.Identity(), **OPTIONS.get(name, {}))


if __name__ == "__main__":
    one_of_two()
