"""Optimizers against published trajectories and formulas; who is decayed and adapted can be read."""

import copy
import json
import math

import pytest
import torch
from shared import shared, wave
from torch import nn

from diptych.base.errors import RecipeError
from diptych.methods import SimSiam
from diptych.training.optimizers import OPTIMIZERS, adamw, describe, lamb, lars, set_rates, sgd


class Problem(nn.Module):
    """0.5 * sum((A w + b - T)^2), the problem of the golden files."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.w = nn.Parameter(torch.from_numpy(wave((6, 4), 50)).to(dtype))
        self.b = nn.Parameter(torch.zeros(4, dtype=dtype))
        self.a, self.t = (torch.from_numpy(wave(shape, k)).to(dtype) for shape, k in [((10, 6), 51), ((10, 4), 52)])

    def forward(self):
        return 0.5 * (self.a @ self.w + self.b - self.t).square().sum()


def trajectory(problem, optimizer, steps=20):
    losses = []
    for _ in range(steps):
        loss = problem()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
        self.predictor = nn.Linear(3, 2)
        self.predictor2 = nn.Linear(2, 2, bias=False)
        self.encoder[0].bias.requires_grad_(False)


@pytest.mark.parametrize(
    ("make", "file", "entry"),
    [
        (lambda net: lamb(net, 1e-2), "keras.json", "lamb_lr1e-2_eps1e-06"),
        (lambda net: lamb(net, 1e-2, eps=1e-7), "keras.json", "lamb_lr1e-2_eps1e-07"),
        (
            lambda net: lars(net, 1.6, bias_lr=0.0384),
            "barlowtwins_pytorch.json",
            "lars_lr1.6_biaslr0.0384_wd1e-6",
        ),
    ],
)
def test_trajectories_are_the_published_programs(make, file, entry):
    golden = json.loads(shared(f"golden/{file}").read_text())[entry]
    problem = Problem()
    assert trajectory(problem, make(problem)) == pytest.approx(golden["loss_per_step"], rel=1e-5)
    assert problem.w.flatten().tolist() == pytest.approx(golden["w_final"], rel=1e-5, abs=1e-6)
    assert problem.b.tolist() == pytest.approx(golden["b_final"], rel=1e-5, abs=1e-6)


class Kernels(nn.Module):
    """Shapes and orders in memory that the fast LAMB meets: a matrix, kernels 3 x 3 and 1 x 1, biases, one unused."""

    def __init__(self, dtype):
        super().__init__()
        shapes = {
            "matrix": (40, 30),
            "three": (8, 6, 3, 3),
            "one": (8, 6, 1, 1),
            "bias": (8,),
            "zero": (5, 2),
            "unused": (3,),
        }
        for k, (name, shape) in enumerate(shapes.items()):
            setattr(self, name, nn.Parameter(torch.from_numpy(wave(shape, 60 + k)).to(dtype)))
        self.zero.data.zero_()
        self.to(memory_format=torch.channels_last)

    def set_gradients(self, step, contiguous):
        for k, (name, p) in enumerate(self.named_parameters()):
            g = torch.from_numpy(wave(p.shape, 80 + 7 * step + k)).to(p.dtype)
            if name == "matrix" and step == 2:
                g.zero_()
            p.grad = None if name == "unused" else g if contiguous else torch.empty_like(p).copy_(g)


@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 2e-6), (torch.float64, 1e-13)])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("adapt", [True, False])
@pytest.mark.parametrize("contiguous", [True, False])
def test_the_fast_lamb_is_timms(dtype, within, decay, adapt, contiguous, monkeypatch):
    from timm.optim import Lamb

    fast, slow = Kernels(dtype), Kernels(dtype)
    rules = [] if adapt else [{"match": "1d", "adapt": False, "weight_decay": 0.0}]
    ours = lamb(fast, 0.03, weight_decay=decay, groups=rules)
    twin = Lamb(lamb(slow, 0.03, weight_decay=decay, groups=rules).param_groups, lr=0.03, max_grad_norm=None, eps=1e-6)
    for step in range(6):
        for net, optimizer in ((fast, ours), (slow, twin)):
            set_rates(optimizer, 1 - step / 8)
            net.set_gradients(step, contiguous)
        twin.step()
        with monkeypatch.context() as slow_way_closed:
            slow_way_closed.setattr(Lamb, "step", None)
            ours.step()
        for p, q in zip(fast.parameters(), slow.parameters(), strict=True):
            assert torch.allclose(p, q, rtol=within, atol=within)
        assert [g["step"] for g in ours.param_groups] == [g["step"] for g in twin.param_groups]
        for p, q in zip(ours.state.values(), twin.state.values(), strict=True):
            assert p.keys() == q.keys()
            assert all(torch.allclose(p[name], q[name], rtol=within, atol=within**2) for name in p)


def test_lamb_of_two_types_is_timms_own():
    net = Kernels(torch.float32)
    net.matrix = nn.Parameter(net.matrix.detach().double())
    net.set_gradients(0, contiguous=False)
    before = [p.detach().clone() for p in net.parameters()]
    lamb(net, 0.03).step()
    moved = [not torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True)]
    assert moved == [True, True, True, True, True, False]  # all but the one without a gradient


def test_lamb_goes_on_from_memory_that_lies_otherwise():
    """A checkpoint's tensors are contiguous, a kernel on its way to a CPU's convolution is not."""
    straight, loaded = Kernels(torch.float32), Kernels(torch.float32)
    one, two = lamb(straight, 0.03), lamb(loaded, 0.03)
    for step in range(4):
        if step == 2:
            state = two.state_dict()
            for memory in state["state"].values():
                memory |= {name: tensor.contiguous() for name, tensor in memory.items()}
            two = lamb(loaded, 0.03)
            two.load_state_dict(copy.deepcopy(state))
        for net, optimizer in ((straight, one), (loaded, two)):
            net.set_gradients(step, contiguous=False)
            optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(straight.parameters(), loaded.parameters(), strict=True))


def test_clipped_lars_is_solo_learns_formula():
    """local = min(eta |p| / (|g| + wd |p| + 1e-8) / lr, 1); d = local (g + wd p); m = .9 m + d; p -= lr m."""
    lr, trust, decay = 0.4, 0.9, 1e-2
    problem, slow = Problem(torch.float64), Problem(torch.float64)
    optimizer = lars(problem, lr, weight_decay=decay, trust=trust, clip=True)
    clipped, momentum = [], {}
    for step in range(12):
        rate = lr * (step + 1) / 12
        set_rates(optimizer, (step + 1) / 12)
        trajectory(problem, optimizer, steps=1)
        slow.zero_grad()
        slow().backward()
        with torch.no_grad():
            for name, p in slow.named_parameters():
                d = p.grad
                if p.ndim > 1:
                    size = math.sqrt(sum(x * x for x in p.flatten().tolist()))
                    slope = math.sqrt(sum(x * x for x in d.flatten().tolist()))
                    local = trust * size / (slope + decay * size + 1e-8) / rate
                    clipped.append(local > 1)
                    d = (d + decay * p) * min(local, 1)
                momentum[name] = 0.9 * momentum[name] + d if name in momentum else d.clone()
                p -= rate * momentum[name]
        for p, q in zip(problem.parameters(), slow.parameters(), strict=True):
            assert torch.allclose(p, q, rtol=1e-10, atol=1e-12)
    assert any(clipped) and not all(clipped)


def program_step(w, g, m, *, lr, decay, momentum=0.9, trust=0.001):
    """LARS of Barlow Twins' program on one tensor, number by number in float64. Returns the new w and momentum."""
    h = [gi + decay * wi for wi, gi in zip(w, g, strict=True)]
    size, slope = (math.sqrt(math.fsum(x * x for x in numbers)) for numbers in (w, h))
    q = trust * size / slope if size > 0 and slope > 0 else 1.0
    m = [momentum * mi + q * hi for mi, hi in zip(m, h, strict=True)]
    return [wi - lr * mi for wi, mi in zip(w, m, strict=True)], m


@pytest.mark.parametrize("decay", [1e-6, 1.0])
@pytest.mark.parametrize("case", ["gradients", "a zero gradient", "zero weights"])
def test_lars_is_the_barlow_twins_programs_formula(case, decay):
    """The decay is added to the gradient before its length is taken; timm's form divides by |g| + decay |w|."""
    net = nn.Linear(5, 4, bias=False).double()
    net.weight.data = torch.from_numpy(wave((4, 5), 70)) * (case != "zero weights")
    optimizer = lars(net, 0.7, weight_decay=decay)
    w, m = net.weight.detach().flatten().tolist(), [0.0] * 20
    for step in range(6):
        gradient = torch.from_numpy(wave((4, 5), 71 + step)) * (case != "a zero gradient" or step % 2)
        w, m = program_step(w, gradient.flatten().tolist(), m, lr=0.7 * (step + 1) / 6, decay=decay)
        set_rates(optimizer, (step + 1) / 6)
        net.weight.grad = gradient.clone()
        optimizer.step()
        assert net.weight.flatten().tolist() == pytest.approx(w, rel=1e-12, abs=1e-15)
        assert torch.equal(net.weight.grad, gradient), "the gradient is only read"


@pytest.mark.parametrize("decay", [0.0, 1e-4, 1.0])
@pytest.mark.parametrize("zero", [None, "weights", "gradient"])
def test_clipped_lars_is_timms(decay, zero):
    from timm.optim import Lars

    ours, theirs = Problem(torch.float64), Problem(torch.float64)
    mine = lars(ours, 0.4, weight_decay=decay, trust=0.9, clip=True)
    groups = lars(theirs, 0.4, weight_decay=decay, trust=0.9, clip=True).param_groups
    twin = Lars(groups, lr=0.4, momentum=0.9, eps=1e-8)
    for step in range(5):
        for problem, optimizer in ((ours, mine), (theirs, twin)):
            problem.w.data *= zero != "weights" or step > 0
            set_rates(optimizer, (step + 1) / 5)
            optimizer.zero_grad()
            problem().backward()
            problem.w.grad *= zero != "gradient" or step % 2
            optimizer.step()
        assert torch.allclose(ours.w, theirs.w, rtol=1e-13, atol=0) and torch.equal(ours.b, theirs.b)


@pytest.mark.parametrize("clip", [True, False])
def test_lars_stays_finite_at_rate_zero_and_without_a_gradient(clip):
    """The first step of a warm-up has rate 0; a weight or its gradient may be 0."""
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    nn.init.zeros_(net[1].weight)  # so the first layer gets no gradient
    optimizer = lars(net, 1.0, clip=clip, weight_decay=0.0)
    before = [p.detach().clone() for p in net.parameters()]
    for factor in (0.0, 1.0):
        set_rates(optimizer, factor)
        net(torch.ones(2, 3)).square().sum().backward()
        optimizer.step()
        assert all(p.isfinite().all() for p in net.parameters())
        assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True)) == (factor == 0)


def test_who_is_decayed_and_adapted_can_be_read():
    assert describe(lars(Net(), 1.6, bias_lr=0.0384)) == [
        {
            "name": "rest",
            "lr": 1.6,
            "weight_decay": 1e-6,
            "adapted": True,
            "schedule": "follow",
            "tensors": 3,
            "parameters": 12 + 6 + 4,
        },
        {
            "name": "1d",
            "lr": 0.0384,
            "weight_decay": 0.0,
            "adapted": False,
            "schedule": "follow",
            "tensors": 3,
            "parameters": 3 + 3 + 2,
        },
    ]
    everything = {"name": "rest", "schedule": "follow", "tensors": 6, "parameters": 30}
    assert describe(sgd(Net(), 0.1, weight_decay=1e-4)) == [
        {**everything, "lr": 0.1, "weight_decay": 1e-4, "adapted": False}
    ]
    assert describe(lamb(Net(), 0.001)) == [{**everything, "lr": 0.001, "weight_decay": 0.0, "adapted": True}]
    assert describe(adamw(Net(), 0.001)) == [{**everything, "lr": 0.001, "weight_decay": 0.01, "adapted": False}]
    described = describe(torch.optim.SGD(Net().parameters(), 0.5))  # made elsewhere; its frozen bias counts
    assert described[0]["name"] == "group 0" and described[0]["lr"] == 0.5 and described[0]["parameters"] == 33


@pytest.mark.parametrize("make", [lambda net: lars(net, 0.5, weight_decay=0.0), lambda net: lamb(net, 0.5, eps=0.0)])
def test_an_adapted_step_does_not_depend_on_the_gradients_scale(make):
    """The published LARS has no epsilon: a loss of any scale trains the weights alike."""
    moved = []
    for scale in (1.0, 1e-9):
        problem = Problem(torch.float64)
        optimizer = make(problem)
        (scale * problem()).backward()
        optimizer.step()
        moved.append(problem.w.detach())
    assert torch.allclose(*moved, rtol=1e-12, atol=0)


def test_what_is_described_is_what_happens():
    """With gradients of zero only decay moves a weight."""
    rules = [{"match": "1d", "weight_decay": 0.0, "adapt": False}]
    for make in (
        lambda net: lars(net, 0.1, weight_decay=0.5),
        lambda net: lamb(net, 0.1, weight_decay=0.5, groups=rules),
    ):
        net, moved = Net(), {}
        optimizer = make(net)
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        for p in net.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
        moved = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
        assert moved == {"encoder.0.weight", "predictor.weight", "predictor2.weight"}


def test_each_setting_comes_from_the_first_rule_that_names_it():
    net = Net()
    optimizer = lars(
        net,
        1.0,
        weight_decay=1e-4,
        bias_lr=0.1,
        groups=[
            {"match": "predictor", "schedule": "constant"},
            {"match": "encoder.1.bias", "lr": 7, "adapt": True},
        ],
    )
    by_name = {group["name"]: group for group in optimizer.param_groups}
    assert {name: group["parameters"] for name, group in by_name.items()} == {
        "rest": ["encoder.0.weight", "predictor2.weight"],
        "1d": ["encoder.1.weight"],
        "encoder.1.bias & 1d": ["encoder.1.bias"],
        "predictor": ["predictor.weight"],
        "predictor & 1d": ["predictor.bias"],
    }
    bias = by_name["predictor & 1d"]  # the predictor's schedule, and still the treatment of a bias
    assert (bias["schedule"], bias["peak_lr"], bias["weight_decay"], bias["always_adapt"]) == (
        "constant",
        0.1,
        0,
        False,
    )
    own = by_name["encoder.1.bias & 1d"]
    assert (own["peak_lr"], own["weight_decay"], own["always_adapt"]) == (7, 0.0, True)
    named = dict(net.named_parameters())
    for group in optimizer.param_groups:
        assert all(p is named[name] for p, name in zip(group["params"], group["parameters"], strict=True))


def test_rates_follow_unless_constant():
    optimizer = sgd(Net(), 0.1, groups=[{"match": "predictor", "schedule": "constant"}])
    for factor in (0.0, 0.5, 1.0, 0.25):
        set_rates(optimizer, factor)
        assert [group["lr"] for group in optimizer.param_groups] == [0.1 * factor, 0.1]
    foreign = torch.optim.SGD(Net().parameters(), 0.5)
    for factor in (0.5, 0.1):
        set_rates(foreign, factor)
        assert foreign.param_groups[0]["lr"] == 0.5 * factor


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_survives_a_round_trip(name):
    """Continue after 3 steps, or load those 3 steps into a fresh optimizer: bitwise the same."""
    problem, twin = Problem(), Problem()
    optimizer = OPTIMIZERS[name](problem, lr=0.01)
    trajectory(problem, optimizer, 3)
    twin.load_state_dict(problem.state_dict())
    fresh = OPTIMIZERS[name](twin, lr=0.5)
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert describe(fresh) == describe(optimizer)
    assert trajectory(problem, optimizer, 3) == trajectory(twin, fresh, 3)


@pytest.mark.parametrize(
    ("make", "rule", "message"),
    [
        (
            sgd,
            {"match": "predictr", "lr": 1.0},
            "names no trained parameter; try '1d' or one of .*'predictor'",
        ),
        (sgd, {"lr": 1.0}, "names no trained parameter"),
        (sgd, {"match": "encoder.0.bias"}, "names no trained parameter"),
        (sgd, {"match": "1d", "wd": 0.0}, r"has \['wd'\]; this optimizer's rules take"),
        (sgd, {"match": "1d", "adapt": False}, r"has \['adapt'\]"),
        (lamb, {"match": "1d", "schedule": "linear"}, "'follow' or 'constant'"),
        (lamb, {"match": "1d", "lr": "1e-3"}, "lr is a number"),
        (lamb, {"match": "1d", "weight_decay": -1}, "weight_decay is -1; it must be at least 0"),
        (lars, {"match": "predictor", "adapt": False}, "its weight_decay must be 0.0"),
    ],
)
def test_rules_that_would_be_misread_are_refused(make, rule, message):
    with pytest.raises(RecipeError, match=message):
        make(Net(), 0.1, groups=[rule])


class Insists(SimSiam):
    """Wants a constant rate for its predictor, whatever optimizer trains it."""

    rules = ({"match": "predictor", "schedule": "constant", "lr": 0.3},)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_the_rules_of_a_method_follow_those_of_the_recipe(make):
    method = Insists(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), projector=(4, 4), predictor=2, width=4)

    def of_the_predictor(optimizer: torch.optim.Optimizer) -> list[tuple[float, str]]:
        groups = [group for group in optimizer.param_groups if group["parameters"][0].startswith("predictor.")]
        assert groups, "the predictor has groups of its own"
        return [(group["lr"], group["schedule"]) for group in groups]

    assert set(of_the_predictor(make(method, lr=0.1))) == {(0.3, "constant")}
    own = [{"match": "predictor", "lr": 0.2}]
    assert set(of_the_predictor(make(method, lr=0.1, groups=own))) == {(0.2, "constant")}
