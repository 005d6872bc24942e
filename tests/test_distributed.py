"""N processes = 1 process: in loss, gradients, statistics and weights. One process: the identity.

The first test is two processes that check everything at once.
"""

import os
import socket
import time
import warnings
from pathlib import Path

import own_process
import pytest
import slow_kernels
import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import nn

from diptych.base import processes
from diptych.base.errors import DiptychError, RecipeError
from diptych.base.placement import place
from diptych.base.processes import (
    agree,
    average_gradients,
    barrier,
    equal_rows,
    gather,
    gather_rows,
    leave_processes,
    mean_over_ranks,
    rank,
    row_counts,
    start,
    world_size,
    wrap,
)
from diptych.base.random_at import random_at
from diptych.methods import losses
from diptych.methods.losses import barlow_twins, cross_correlation, negative_cosine, standardize
from diptych.networks import batch_norm
from diptych.networks.batch_norm import share_statistics, shared_statistics
from diptych.training.optimizers import lars

IMAGES = 16  # less than half the width of a projection: the Gram form is taken
WIDTH = 40
WEIGHT, EPS = 0.0051, 1e-5


class Method(nn.Module):
    """A small Barlow Twins with each kind of batch normalisation; the same weights wherever it is made."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 6, 3, bias=False),
            BatchNormAct2d(6),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.projector = nn.Sequential(
            nn.Linear(6, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH, bias=False)
        )
        self.double()
        for name, parameter in self.named_parameters():
            nn.init.normal_(parameter, float(parameter.ndim == 1), 0.5, generator=random_at("init", name))

    def forward(self, views):
        return barlow_twins(*(self.projector(self.encoder(view)) for view in views), WEIGHT, EPS)


def normal(*shape, address):
    return torch.randn(*shape, generator=random_at(*address), dtype=torch.float64)


def same(a, b, tolerance=1e-10):
    """Up to rounding; 1e-13 is for what is 0, as the gradient of a bias that a normalisation takes away."""
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance * b.abs().max() + 1e-13)


def train(steps=3, statistics_rows=None):
    """What three LARS steps leave behind, wherever they run: a dict of tensors."""
    method = Method()
    optimizer = lars(method, 0.5, bias_lr=0.05, weight_decay=1e-4)
    with shared_statistics(method, statistics_rows):
        return steps_of(method, optimizer, steps)


def steps_of(method, optimizer, steps):
    model = wrap(method)
    rows = slice(rank() * IMAGES // world_size(), (rank() + 1) * IMAGES // world_size())
    left = {}
    for step in range(steps):
        views = [normal(IMAGES, 3, 8, 8, address=("views", step, view))[rows] for view in (0, 1)]
        loss, parts = model(views)
        optimizer.zero_grad()
        loss.backward()
        left |= {f"loss {step}": loss.detach()} | {f"{name} {step}": value for name, value in parts.items()}
        if step == 0:
            left |= {f"gradient of {name}": p.grad.clone() for name, p in method.named_parameters()}
        optimizer.step()
    return left | {name: value.clone() for name, value in method.state_dict().items()}


# ---- one of two processes


def check_training(alone, statistics_rows=None):
    together = train(statistics_rows=statistics_rows)
    assert list(together) == list(alone)  # the keys of the state dict among them
    for name, value in together.items():
        assert same(value.double(), alone[name].double()), name
    for value in together.values():
        assert torch.equal(mean_over_ranks(value.double()), value.double())  # and bitwise the same on both ranks


def check_both_forms(alone):
    """The training above took the Gram form of Barlow Twins' loss; the correlation form gives the same."""
    gram, losses._gram_is_cheaper = losses._gram_is_cheaper, lambda rows, width: False
    try:
        assert gram(IMAGES, WIDTH)
        check_training(alone)
    finally:
        losses._gram_is_cheaper = gram


def check_the_trap_is_caught(alone):
    """A bare all_reduce gives the right loss and half the gradient. The comparison above must see that."""

    def bare(x):
        total = x.clone()
        dist.all_reduce(total.detach())  # autograd sees only the clone
        return total / world_size()

    right, losses.mean_over_ranks = losses.mean_over_ranks, bare
    try:
        trapped = train(steps=1)
    finally:
        losses.mean_over_ranks = right
    assert same(trapped["loss 0"], alone["loss 0"])
    name = "gradient of projector.3.weight"
    assert not same(trapped[name], alone[name], 0.1)


def check_fused_normalisation(alone):
    """The form for CUDA, with its kernels as plain operations: training and unequal rows as with the other form."""
    batch_norm.KERNELS, batch_norm.has_kernels = slow_kernels, lambda x: True
    other, batch_norm._NormalizeOverRanks = batch_norm._NormalizeOverRanks, None
    try:
        check_training(alone)
        check_unequal_rows()
    finally:
        batch_norm.KERNELS, batch_norm.has_kernels = torch, lambda x: False
        batch_norm._NormalizeOverRanks = other


def check_nobody_asks_for_equal_rows():
    """A loss of equal rows needs no exchange between CPUs, which would wait for the slowest."""
    z1, z2 = (normal(16, 40, address=("promised", view))[8 * rank() : 8 * rank() + 8] for view in (0, 1))
    wanted, ask = barlow_twins(z1, z2, WEIGHT, EPS)[0], dist.all_gather_into_tensor
    asked_for = []

    def counted(gathered, own):
        asked_for.append(own.dtype)
        return ask(gathered, own)

    dist.all_gather_into_tensor = counted
    try:
        barlow_twins(z1, z2, WEIGHT, EPS)
        assert torch.int64 in asked_for
        asked_for.clear()
        with equal_rows():
            assert row_counts(8) == [8, 8] and torch.equal(barlow_twins(z1, z2, WEIGHT, EPS)[0], wanted)
        assert asked_for == [torch.float64] * 2
    finally:
        dist.all_gather_into_tensor = ask


def check_groups_do_not_wait_for_each_other():
    """Outputs and gradients of groups are a process' own; unequal numbers of groups are averaged by their number."""
    whole = normal(12, 5, address=("groups",))
    layers = [nn.BatchNorm1d(5).double() for _ in "ab"]
    mine = whole[:8] if rank() == 0 else whole[8:]
    with shared_statistics(layers[0], 4):
        y = layers[0](mine)
    for group in whole.split(4):
        layers[1].momentum = None  # torch's plain average over all batches
        layers[1](group)
    assert same(y, torch.cat([nn.functional.batch_norm(group, None, None, training=True) for group in mine.split(4)]))
    assert same(layers[0].running_mean, 0.1 * layers[1].running_mean)
    assert same(layers[0].running_var, 0.9 + 0.1 * layers[1].running_var)


def check_unequal_rows():
    """5 and 3 rows: statistics, losses and gradients are those of all 8."""
    mine = slice(0, 5) if rank() == 0 else slice(5, 8)
    for size in ((8, 6), (8, 20), (8, 6, 4, 2)):
        whole = [normal(*size, address=("rows", view)).requires_grad_() for view in (0, 1)]
        part = [z.detach()[mine].requires_grad_() for z in whole]
        if len(size) == 2:
            everything = [barlow_twins_by_hand(*whole), -nn.functional.cosine_similarity(*whole).mean()]
            shared_out = [barlow_twins(*part, WEIGHT, EPS)[0], negative_cosine(*part)]
        else:
            everything = [(BatchNormAct2d(6).double()(whole[0]) * whole[1]).mean()]
            layer = share_statistics(BatchNormAct2d(6).double())
            shared_out = [mean_over_ranks((layer(part[0]) * part[1]).sum()) / whole[0].numel() * 2]
        for expected, result in zip(everything, shared_out, strict=True):
            assert same(result.detach(), expected.detach())
            by_all = torch.autograd.grad(expected, whole)
            by_part = torch.autograd.grad(result, part)
            assert all(same(g / world_size(), e[mine]) for g, e in zip(by_part, by_all, strict=True))
    a, b = (z.detach().flatten(1) for z in whole)
    standard = [(z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt() for z in (a, b)]
    assert same(standardize(a[mine], EPS), standard[0][mine])
    assert same(cross_correlation(a[mine], b[mine], EPS), standard[0].T @ standard[1] / 8)


def barlow_twins_by_hand(z1, z2):
    z1, z2 = ((z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt() for z in (z1, z2))
    c, one = z1.T @ z2 / len(z1), torch.eye(z1.shape[1], dtype=z1.dtype)
    return ((c - one).square() * (0.0051 + (1 - 0.0051) * one)).sum()


def check_the_small_functions():
    assert world_size() == 2 and agree(False) is False and agree(True) is True
    assert agree(rank() == 1) is True
    x = torch.full((3,), float(rank() + 1), requires_grad=True)
    mean = mean_over_ranks(x)
    (mean * (10.0 if rank() == 0 else 30.0)).sum().backward()
    assert mean.tolist() == [1.5] * 3 and x.grad.tolist() == [20.0] * 3 and x.tolist() == [rank() + 1.0] * 3
    for dtype in (torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool):
        everything = (torch.arange(10).reshape(5, 2) % 7).to(dtype)
        for cut in (3, 0, 5):
            mine = everything[:cut] if rank() == 0 else everything[cut:]
            assert torch.equal(gather(mine), everything) and torch.equal(gather_rows(mine), everything)
    assert gather(torch.ones(rank() + 1)).shape == (3,)
    assert not gather(x).requires_grad and row_counts(rank() + 4) == [4, 5]


def check_the_barrier():
    """The second process comes late; the first may not pass before it."""
    if rank() == 1:
        time.sleep(0.5)
    came = time.time()
    barrier()
    passed = torch.tensor([time.time()], dtype=torch.float64)
    assert gather(torch.tensor([came], dtype=torch.float64)).max() <= passed + 1e-3


def info_nce(first, second, temperature=0.2):
    """Each row's cross-entropy of its own partner among the rows of all ranks, as every rank computes it."""
    first, second = (gather_rows(nn.functional.normalize(z)) for z in (first, second))
    return nn.functional.cross_entropy(first @ second.T / temperature, torch.arange(len(first)))


def contrast(rows, pieces=1):
    """Loss and gradients of InfoNCE through a small network under DDP, or by gradient caching in `pieces`."""
    network = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 5)).double()
    for name, parameter in network.named_parameters():
        nn.init.normal_(parameter, 0.0, 0.7, generator=random_at("contrast", name))
    views = [normal(IMAGES, 6, address=("contrast", view))[rows] for view in (0, 1)]
    if pieces == 1:
        model = wrap(network)
        loss = info_nce(*(model(view) for view in views))
        loss.backward()
    else:
        projections = [network(view).detach().requires_grad_() for view in views]
        loss = info_nce(*projections)
        loss.backward()
        for view, z in zip(views, projections, strict=True):
            for piece, gradient in zip(view.tensor_split(pieces), z.grad.tensor_split(pieces), strict=True):
                network(piece).backward(gradient)
        average_gradients(network.parameters())
    return {"loss": loss.detach()} | {name: p.grad.clone() for name, p in network.named_parameters()}


def check_a_loss_of_gathered_rows(alone):
    """Equal rows (8 + 8) and unequal ones (11 + 5), one backward pass and pieces: as one process that holds all rows."""
    for cut in (8, 11):
        mine = slice(0, cut) if rank() == 0 else slice(cut, IMAGES)
        for pieces in (1, 3):
            together = contrast(mine, pieces)
            for name, value in together.items():
                assert same(value, alone[name]), (cut, pieces, name)
    own = normal(IMAGES, 5, address=("gathered",)).requires_grad_()
    (gather_rows(own[: 4 + rank()]) * 1.0).sum().backward()
    assert own.grad[: 4 + rank()].eq(2).all() and own.grad[4 + rank() :].eq(0).all()


def check_unknown_normalisation_is_refused():
    class Own(nn.BatchNorm2d):
        pass

    try:
        share_statistics(nn.Sequential(Own(3)))
    except DiptychError as error:
        assert "0 is a Own" in str(error)
    else:
        raise AssertionError("an unknown BatchNorm must be refused")


def one_of_two():
    warnings.simplefilter("error")
    alone, alone_in_fours, alone_contrast = train(), train(statistics_rows=4), contrast(slice(None))
    assert not same(alone_in_fours["loss 0"], alone["loss 0"], 1e-3)
    assert start("cpu", timeout_seconds=60) == torch.device("cpu")
    check_training(alone)
    check_training(alone_in_fours, statistics_rows=4)
    check_both_forms(alone)
    check_fused_normalisation(alone)
    check_nobody_asks_for_equal_rows()
    check_groups_do_not_wait_for_each_other()
    check_the_trap_is_caught(alone)
    check_unequal_rows()
    check_the_small_functions()
    check_the_barrier()
    check_a_loss_of_gathered_rows(alone_contrast)
    check_unknown_normalisation_is_refused()
    leave_processes()
    assert world_size() == 1 and rank() == 0


# ---- the tests


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


TORCHRUN = {
    "RANK": "0",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "0",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
}
SLURM = {
    "SLURM_PROCID": "1",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_JOB_ID": "123456",
    "SLURM_NTASKS": "2",
}
PLACES = [*TORCHRUN, *SLURM, "SLURM_JOB_NODELIST"]


def run_two_processes(folder: Path, target, *arguments):
    """Call `target` in two processes; the first reads its place in torchrun's words, the second in SLURM's."""
    env = {name: value for name, value in os.environ.items() if name not in PLACES} | {"OMP_NUM_THREADS": "1"}
    places, port = {"first": TORCHRUN, "second": SLURM}, {"MASTER_PORT": free_port()}
    both = [
        own_process.start(target, *arguments, said=folder / name, env=env | place | port)
        for name, place in places.items()
    ]
    codes = [own_process.end(process, 200) for process in both]
    assert codes == [0, 0], "\n".join((folder / name).read_text() for name in places)


def test_two_processes_compute_what_one_computes(tmp_path):
    run_two_processes(tmp_path, one_of_two)


@pytest.fixture
def nowhere(monkeypatch):
    """No variable says that there are several processes."""
    for name in PLACES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_on_one_process_everything_is_the_identity(nowhere):
    assert start("cpu") == torch.device("cpu") and (rank(), world_size()) == (0, 1)
    x, method = torch.ones(3, requires_grad=True), Method()
    assert mean_over_ranks(x) is x and gather(x) is x and gather_rows(x) is x and wrap(method) is method
    assert agree(True) is True and agree(False) is False and barrier() is None and row_counts(3) == [3]
    assert "gloo" in processes.available_backends()
    assert share_statistics(method) is method and type(method.encoder[1]) is nn.BatchNorm2d
    leave_processes()


def test_places():
    assert place({}) is None
    assert place(TORCHRUN | {"WORLD_SIZE": "1"}) is None
    assert place({"WORLD_SIZE": "1", "RANK": "0"}) is None
    assert place(TORCHRUN | SLURM) == TORCHRUN  # torchrun inside a SLURM job
    assert place(SLURM) == TORCHRUN | {"RANK": "1", "LOCAL_RANK": "1", "MASTER_PORT": "23456"}
    assert place(SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}) is None
    batch_script = {k: v for k, v in SLURM.items() if "STEP" not in k}
    assert place(batch_script) is None  # one process of a job that could have had two
    for nodes, first in [
        ("gpu[03-06,9],login", "gpu03"),
        ("a,b", "a"),
        ("r[1-2]n[07,9]", "r1n07"),
        ("x-1", "x-1"),
    ]:
        assert place(SLURM | {"SLURM_STEP_NODELIST": nodes})["MASTER_ADDR"] == first


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"WORLD_SIZE": "2"}, "incomplete, .*RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT missing"),
        ({"RANK": "0"}, "incomplete, .*WORLD_SIZE, LOCAL_RANK"),
        (TORCHRUN | {"MASTER_ADDR": ""}, "incomplete, .*MASTER_ADDR missing"),
        (TORCHRUN | {"RANK": "first"}, "RANK='first' is not a whole number"),
        (TORCHRUN | {"RANK": "-1"}, "RANK='-1' is not a whole number"),
        (TORCHRUN | {"WORLD_SIZE": "\u0662"}, "WORLD_SIZE='.' is not a whole number"),
        (TORCHRUN | {"MASTER_PORT": "0x1"}, "MASTER_PORT='0x1' is not"),
        (TORCHRUN | {"MASTER_PORT": "99999"}, "MASTER_PORT=99999 is not a port"),
        (TORCHRUN | {"MASTER_PORT": "0"}, "MASTER_PORT=0 is not a port"),
        (TORCHRUN | {"RANK": "2"}, "RANK is 2, but WORLD_SIZE is 2"),
        (TORCHRUN | {"WORLD_SIZE": "0"}, "RANK is 0, but WORLD_SIZE is 0"),
        ({"WORLD_SIZE": "1", "RANK": "1"}, "RANK is 1, but WORLD_SIZE is 1"),
        ({k: v for k, v in SLURM.items() if k != "SLURM_LOCALID"}, "incomplete, .*SLURM_LOCALID missing"),
        ({k: v for k, v in SLURM.items() if k != "SLURM_STEP_NODELIST"}, "incomplete, .*SLURM_STEP_NODELIST missing"),
        (SLURM | {"SLURM_JOB_ID": "none"}, "SLURM_JOB_ID='none' is not a whole number"),
        (SLURM | {"MASTER_PORT": "none"}, "MASTER_PORT='none' is not a whole number"),
        (SLURM | {"SLURM_PROCID": "2"}, "SLURM_PROCID is 2, but SLURM_STEP_NUM_TASKS is 2"),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "two"}, "SLURM_STEP_NUM_TASKS='two' is not"),
    ],
)
def test_a_half_set_environment_is_one_clear_error(env, message, nowhere):
    for name, value in env.items():
        nowhere.setenv(name, value)
    with pytest.raises(RecipeError, match=message) as caught:
        start("cpu")
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


def test_a_missing_peer_is_an_error_not_a_hang(nowhere):
    for name, value in (TORCHRUN | {"MASTER_PORT": free_port()}).items():
        nowhere.setenv(name, value)
    with pytest.raises(DiptychError, match="process 0 of 2 could not reach the others at localhost"):
        start("cpu", timeout_seconds=1)
    assert world_size() == 1
