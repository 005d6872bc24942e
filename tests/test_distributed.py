"""N processes = 1 process: in loss, gradients, statistics and weights. One process: the identity.

The first test starts this very file twice, as a program: then it is one of two processes that check
everything at once.
"""

import os
import socket
import subprocess
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import nn

import diptych
from diptych.base import processes
from diptych.base.errors import DiptychError
from diptych.base.processes import agree, gather, mean_over_ranks, rank, start, stop, world_size, wrap
from diptych.base.random_at import random_at
from diptych.methods import losses
from diptych.methods.losses import barlow_twins, cross_correlation, negative_cosine, standardize
from diptych.networks import batch_norm
from diptych.networks.batch_norm import SharedBatchNorm, share_statistics
from diptych.training.optimizers import lars

IMAGES = 16  # less than half the width of a projection: one process takes the Gram form, two the correlation form
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


def train(steps=3):
    """What three LARS steps leave behind, wherever they run: a dict of tensors."""
    method = Method()
    optimizer = lars(method, 0.5, bias_lr=0.05, weight_decay=1e-4)
    model = wrap(share_statistics(method))
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


def check_training(alone):
    together = train()
    assert list(together) == list(alone)  # the keys of the state dict among them
    for name, value in together.items():
        assert same(value.double(), alone[name].double()), name
    for value in together.values():
        assert torch.equal(mean_over_ranks(value.double()), value.double())  # and bitwise the same on both ranks


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


def check_unequal_rows():
    """5 and 3 rows: statistics, losses and gradients are those of all 8."""
    mine = slice(0, 5) if rank() == 0 else slice(5, 8)
    for size in ((8, 6), (8, 6, 4, 2)):
        whole = [normal(*size, address=("rows", view)).requires_grad_() for view in (0, 1)]
        part = [z.detach()[mine].requires_grad_() for z in whole]
        if len(size) == 2:
            everything = [barlow_twins_by_hand(*whole), -nn.functional.cosine_similarity(*whole).mean()]
            shared_out = [barlow_twins(*part, WEIGHT, EPS)[0], negative_cosine(*part)]
        else:
            everything = [(BatchNormAct2d(6).double()(whole[0]) * whole[1]).mean()]
            layer = share_statistics(BatchNormAct2d(6).double())
            shared_out = [mean_over_ranks((layer(part[0]) * part[1]).sum()) / whole[0].numel() * 2]
        for expected, found in zip(everything, shared_out, strict=True):
            assert same(found.detach(), expected.detach())
            by_all = torch.autograd.grad(expected, whole)
            by_part = torch.autograd.grad(found, part)
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
            assert torch.equal(gather(everything[:cut] if rank() == 0 else everything[cut:]), everything)
    assert gather(torch.ones(rank() + 1)).shape == (3,)


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
    alone = train()
    assert start("cpu", timeout_seconds=60) == torch.device("cpu")
    check_training(alone)
    check_the_trap_is_caught(alone)
    check_unequal_rows()
    check_the_small_functions()
    check_unknown_normalisation_is_refused()
    stop()
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


def test_two_processes_compute_what_one_computes():
    """The first rank is told its place in torchrun's words, the second in SLURM's."""
    src, port = Path(diptych.__file__).parents[1], free_port()
    env = {name: value for name, value in os.environ.items() if name not in PLACES}
    env |= {"PYTHONPATH": str(src), "OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen(
            [sys.executable, __file__],
            env=env | place | {"MASTER_PORT": port},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for place in (TORCHRUN, SLURM)
    ]
    try:
        said = [process.communicate(timeout=200)[0] for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], "\n".join(said)


@pytest.fixture
def nowhere(monkeypatch):
    """No variable says that there are several processes."""
    for name in PLACES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_on_one_process_everything_is_the_identity(nowhere):
    assert start("cpu") == torch.device("cpu") and (rank(), world_size()) == (0, 1)
    x, method = torch.ones(3, requires_grad=True), Method()
    assert mean_over_ranks(x) is x and gather(x) is x and wrap(method) is method
    assert agree(True) is True and agree(False) is False
    assert "gloo" in processes.available_backends()
    assert share_statistics(method) is method and type(method.encoder[1]) is nn.BatchNorm2d
    stop()


@contextmanager
def as_if_two(monkeypatch):
    """For the conversion only, so that what it makes can be compared on one process."""
    with monkeypatch.context() as patch:
        patch.setattr(batch_norm, "world_size", lambda: 2)
        yield


def test_conversion_keeps_keys_parameters_hooks_and_modes(monkeypatch):
    method = Method()
    method.encoder[1].eval()
    before = method.state_dict(keep_vars=True)
    with as_if_two(monkeypatch):
        assert share_statistics(share_statistics(method)) is method
    after = method.state_dict(keep_vars=True)
    assert list(before) == list(after) and all(before[key] is after[key] for key in before)
    converted = [method.encoder[1], method.encoder[4], method.projector[1]]
    assert all(isinstance(layer, SharedBatchNorm) for layer in converted)
    assert [layer.training for layer in converted] == [False, True, True]


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.BatchNorm2d(5),
        lambda: nn.BatchNorm2d(5, affine=False, eps=0.1),
        lambda: nn.BatchNorm2d(5, momentum=None),
        lambda: nn.BatchNorm2d(5, track_running_stats=False),
        lambda: BatchNormAct2d(5, act_layer=nn.SiLU, inplace=False, drop_layer=nn.Tanh),
        lambda: BatchNormAct2d(5, apply_act=False, momentum=0.3),
    ],
)
def test_shared_batch_norm_is_torchs_on_one_process(make, monkeypatch):
    torchs, ours = make().double(), make().double()
    with as_if_two(monkeypatch):
        share_statistics(ours)
    for step in range(3):
        x = 3 + normal(6, 5, 4, 3, address=("x", step))
        inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
        outputs = [layer(each) for layer, each in zip((torchs, ours), inputs, strict=True)]
        for y in outputs:
            (y * normal(6, 5, 4, 3, address=("y", step))).sum().backward()
        assert same(outputs[1], outputs[0]) and same(inputs[1].grad, inputs[0].grad)
    for (name, a), b in zip(torchs.named_parameters(), ours.parameters(), strict=True):
        assert same(b.grad, a.grad), name
    for (name, a), b in zip(torchs.named_buffers(), ours.buffers(), strict=True):
        assert same(b.double(), a.double()), name
    assert same(ours.eval()(x), torchs.eval()(x))


def test_shared_batch_norm_in_other_types_and_layouts(monkeypatch):
    torchs, ours = nn.BatchNorm2d(5), nn.BatchNorm2d(5)
    with as_if_two(monkeypatch):
        share_statistics(ours)
    x = (1000 + normal(6, 5, 4, 3, address=("x",))).float()  # a mean far above the spread
    assert (ours(x) - torchs(x)).abs().max() < 1e-3 and (ours.running_var - torchs.running_var).abs().max() < 1e-4
    small = x.bfloat16().contiguous(memory_format=torch.channels_last).requires_grad_()
    y = ours(small)
    y.sum().backward()
    assert y.dtype == small.grad.dtype == torch.bfloat16 and ours.weight.grad.dtype == torch.float32
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_places():
    assert processes._place({}) is None
    assert processes._place(TORCHRUN | {"WORLD_SIZE": "1"}) is None
    assert processes._place({"WORLD_SIZE": "1", "RANK": "0"}) is None
    assert processes._place(TORCHRUN | SLURM) == TORCHRUN  # torchrun inside a SLURM job
    assert processes._place(SLURM) == TORCHRUN | {"RANK": "1", "LOCAL_RANK": "1", "MASTER_PORT": "23456"}
    assert processes._place(SLURM | {"SLURM_STEP_NUM_TASKS": "1"}) is None
    batch_script = {k: v for k, v in SLURM.items() if "STEP" not in k}
    assert processes._place(batch_script) is None  # one process of a job that could have had two
    for nodes, first in [
        ("gpu[03-06,9],login", "gpu03"),
        ("a,b", "a"),
        ("r[1-2]n[07,9]", "r1n07"),
        ("x-1", "x-1"),
    ]:
        assert processes._place(SLURM | {"SLURM_STEP_NODELIST": nodes})["MASTER_ADDR"] == first


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"WORLD_SIZE": "2"}, "half set .* RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT missing"),
        ({"RANK": "0"}, "half set .* WORLD_SIZE, LOCAL_RANK"),
        (TORCHRUN | {"MASTER_ADDR": ""}, "half set .* MASTER_ADDR missing"),
        ({k: v for k, v in SLURM.items() if k != "SLURM_LOCALID"}, "half set .* LOCAL_RANK missing"),
        (TORCHRUN | {"RANK": "first"}, "RANK='first' is not a whole number"),
        (TORCHRUN | {"MASTER_PORT": "0x1"}, "MASTER_PORT='0x1' is not"),
        (TORCHRUN | {"RANK": "2"}, "RANK is 2"),
    ],
)
def test_a_half_set_environment_is_one_clear_error(env, message, nowhere):
    for name, value in env.items():
        nowhere.setenv(name, value)
    with pytest.raises(DiptychError, match=message) as caught:
        start("cpu")
    assert "\n" not in str(caught.value)


def test_a_missing_peer_is_an_error_not_a_hang(nowhere):
    for name, value in (TORCHRUN | {"MASTER_PORT": free_port()}).items():
        nowhere.setenv(name, value)
    with pytest.raises(DiptychError, match="process 0 of 2 did not meet the others at localhost"):
        start("cpu", timeout_seconds=1)
    assert world_size() == 1


if __name__ == "__main__":
    one_of_two()
