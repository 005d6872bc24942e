"""Optimizers in few launches, on a device that is not there: the published trajectories, and a step that moves nothing."""

import json

import pytest
import torch
from pretend import DEVICE, pretended_device
from shared import shared
from test_optimizers import Kernels, Problem, trajectory
from tiny import TinyEncoder
from torch import Tensor

from diptych.methods import BarlowTwins
from diptych.training import optimizers
from diptych.training.fused import laid_as, ready
from diptych.training.learner import Learner
from diptych.training.optimizers import lamb, lars
from diptych.training.schedules import constant


@pytest.fixture
def device():
    with pretended_device() as pretended:
        yield pretended


@pytest.mark.parametrize(
    ("make", "file", "entry"),
    [
        (lambda net: lamb(net, 1e-2), "keras.json", "lamb_lr1e-2_eps1e-06"),
        (lambda net: lamb(net, 1e-2, eps=1e-7), "keras.json", "lamb_lr1e-2_eps1e-07"),
        (lambda net: lars(net, 1.6, bias_lr=0.0384), "barlowtwins_pytorch.json", "lars_lr1.6_biaslr0.0384_wd1e-6"),
    ],
)
def test_trajectories_on_a_device_are_the_published_programs(make, file, entry, device):
    golden = json.loads(shared(f"golden/{file}").read_text())[entry]
    problem = Problem().to(DEVICE)
    problem.a, problem.t = problem.a.to(DEVICE), problem.t.to(DEVICE)
    assert trajectory(problem, make(problem)) == pytest.approx(golden["loss_per_step"], rel=1e-5)
    assert problem.w.flatten().tolist() == pytest.approx(golden["w_final"], rel=1e-5, abs=1e-6)
    assert problem.b.tolist() == pytest.approx(golden["b_final"], rel=1e-5, abs=1e-6)
    assert "_fused_sgd_.default" in device.launched


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize(
    "make",
    [lambda net, decay: lars(net, 0.3, weight_decay=decay), lambda net, decay: lamb(net, 0.03, weight_decay=decay),
     lambda net, decay: lars(net, 0.3, weight_decay=decay, clip=True)],
    ids=["lars", "lamb", "larc"],
)  # fmt: skip
def test_an_update_on_a_device_is_the_cpus(make, contiguous, decay, device):
    """Kernels of several layouts, weights and gradients that are zero, one without a gradient; a rate that changes."""
    here, there = Kernels(torch.float64), Kernels(torch.float64).to(DEVICE)
    pairs = [(net, make(net, decay)) for net in (here, there)]
    for step in range(6):
        here.set_gradients(step, contiguous)
        for p, q in zip(here.parameters(), there.parameters(), strict=True):
            q.grad = None if p.grad is None else p.grad.to(DEVICE)
        for _, optimizer in pairs:
            optimizers.set_rates(optimizer, 1 - step / 8)
            optimizer.step()
    for p, q in zip(here.parameters(), there.parameters(), strict=True):
        torch.testing.assert_close(q.cpu(), p, rtol=1e-12, atol=1e-13)


def test_layouts_that_differ_in_nothing_are_not_copied():
    weight = torch.randn(4, 3, 1, 1).to(memory_format=torch.channels_last)
    gradient = torch.randn(4, 3, 1, 1)
    gradient = gradient.as_strided(gradient.shape, (3, 1, 1, 1))
    assert weight.stride() != gradient.stride() and laid_as(weight, gradient).data_ptr() == gradient.data_ptr()
    kernel, other = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last), torch.randn(4, 3, 2, 2)
    assert laid_as(kernel, other).stride() == kernel.stride() and torch.equal(laid_as(kernel, other), other)


class Follows(BarlowTwins):
    """With a buffer, and a weight that follows another one after each step; its loss is not finite at some steps."""

    bad: frozenset[int] = frozenset()
    steps = 0

    def __init__(self):
        super().__init__(TinyEncoder(), projector=(16, 16))
        self.target = torch.nn.Parameter(torch.zeros(16, 8), requires_grad=False)
        self.register_buffer("taken", torch.zeros(()))

    def compare(self, projections, progress):
        compared = super().compare(projections, progress)
        self.steps += 1
        return compared._replace(loss=compared.loss * float("nan")) if self.steps - 1 in self.bad else compared

    def after_step(self, kept, progress) -> None:
        self.target.lerp_(self.projector[0].weight, 0.5)
        self.taken += 1


def all_bits(learner: Learner) -> dict[str, Tensor]:
    memory = {f"{k} {name}": value for k, entry in enumerate(learner.optimizer.state.values())
              for name, value in entry.items()}  # fmt: skip
    groups = {f"group {k} {name}": torch.as_tensor(value) for k, group in enumerate(learner.optimizer.param_groups)
              for name, value in group.items() if name in ("step", "lr")}  # fmt: skip
    return {name: value.cpu().clone() for name, value in (learner.method.state_dict() | memory | groups).items()}


@pytest.mark.parametrize("optimizer", ["lars", "lamb", "sgd", "adamw"])
@pytest.mark.parametrize("first_bad", [0, 2])
def test_a_step_that_is_not_finite_moves_nothing_and_is_not_waited_for(optimizer, first_bad, device):
    """Nor do those after it, whose numbers are finite. The optimizer copies no weights for that."""
    method = Follows().to(DEVICE)
    method.bad = frozenset([first_bad])
    views = [torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(k)).to(DEVICE) for k in (0, 1)]
    learner = Learner(method, getattr(optimizers, optimizer)(method, lr=0.1), constant())
    for step in range(first_bad):
        learner.step(step, 9, views)
    learner.guard.settle()
    before = all_bits(learner)
    with device.counting():
        for step in range(first_bad, first_bad + 3):
            learner.step(step, 9, views)
        assert device.waits == []
    learner.guard.settle(3)
    after = all_bits(learner)
    assert (
        before.keys() == after.keys() and [name for name in before if not torch.equal(before[name], after[name])] == []
    )
    copied = sum(copy.numel() for copy in learner.guard.copies)
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    assert copied < trained / 2
    method.bad, learner.fine = frozenset(), torch.ones_like(learner.fine)
    learner.step(first_bad, 9, views)
    assert any(not torch.equal(before[name], now) for name, now in all_bits(learner).items() if name in before)


def test_what_a_checkpoint_remembers_of_a_scalar_comes_to_the_device(device):
    """Such as a learned temperature, whose count of steps has its shape."""
    temperature = torch.nn.Parameter(torch.ones(()).to(DEVICE))
    memory = {"step": torch.tensor(3.0), "exp_avg": torch.tensor(0.5), "exp_avg_sq": torch.tensor(0.1), "other": 7}
    ready(temperature, memory)
    assert {value.device for value in memory.values() if isinstance(value, Tensor)} == {DEVICE}
    assert [float(memory[name]) for name in ("step", "exp_avg")] == [3.0, 0.5] and memory["other"] == 7
