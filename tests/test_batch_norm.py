"""Batch statistics over all rows and over groups of rows, on one process; several processes: tests/test_distributed.py."""

import copy
from contextlib import contextmanager

import pytest
import torch
from test_distributed import Method, normal, same
from timm.layers import BatchNormAct2d
from torch import nn

from diptych.base.errors import DiptychError, RecipeError
from diptych.networks import batch_norm
from diptych.networks.batch_norm import SharedBatchNorm, share_statistics, shared_statistics
from diptych.networks.keras import KerasBatchNorm1d, KerasBatchNorm2d


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
        outputs = [layer(leaf) for layer, leaf in zip((torchs, ours), inputs, strict=True)]
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


LAYERS = {
    "2d": (lambda: nn.BatchNorm2d(5), (5, 4, 3)),
    "1d": (lambda: nn.BatchNorm1d(5), (5,)),
    "3d without affine": (lambda: nn.BatchNorm3d(5, affine=False, eps=0.1), (5, 2, 2, 2)),
    "timm": (lambda: BatchNormAct2d(5, act_layer=nn.SiLU, inplace=False, drop_layer=nn.Tanh), (5, 4, 3)),
    "Keras 1d": (lambda: KerasBatchNorm1d(5), (5,)),
    "Keras 2d": (lambda: KerasBatchNorm2d(5), (5, 4, 3)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("groups", [1, 3])
def test_groups_are_a_loop_over_groups(name, groups):
    """Outputs, gradients and running statistics, beside the layer itself on each group in turn, in float64."""
    make, shape = LAYERS[name]
    slow, fast = make().double(), make().double()
    for number, parameter in enumerate(slow.parameters()):
        nn.init.normal_(parameter, 1.0, 0.3, generator=torch.Generator().manual_seed(number))
    fast.load_state_dict(slow.state_dict())
    x = 2 + normal(4 * groups, *shape, address=("groups", name))
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    layers = [copy.deepcopy(slow) for _ in range(groups)]
    outputs = [layer(group) for layer, group in zip(layers, inputs[0].split(4), strict=True)]
    with shared_statistics(fast, 4):
        y = fast(inputs[1])
    expected, weight = torch.cat(outputs), normal(4 * groups, *shape, address=("slope", name))
    assert same(y, expected)
    for output in (expected, y):
        (output * weight).sum().backward()
    assert same(inputs[1].grad, inputs[0].grad)
    for ours, *theirs in zip(*(layer.parameters() for layer in (fast, *layers)), strict=True):
        assert same(ours.grad, sum(parameter.grad for parameter in theirs))
    for key in ("running_mean", "running_var"):
        assert same(getattr(fast, key), torch.stack([getattr(layer, key) for layer in layers]).mean(0)), key
    assert fast.num_batches_tracked == 1


@pytest.mark.parametrize("make", [lambda: nn.BatchNorm2d(5, track_running_stats=False), lambda: nn.BatchNorm2d(5)])
def test_evaluation_is_the_layers_own(make):
    plain = make().double()
    shared = copy.deepcopy(plain)
    x = normal(6, 5, 4, 3, address=("evaluation",))
    with shared_statistics(shared, 3):
        assert torch.equal(shared.eval()(x), plain.eval()(x))


def test_frozen_layers_stay_frozen():
    layer = KerasBatchNorm2d(5, frozen=True)
    x = normal(6, 5, 4, 3, address=("frozen",)).float()
    before = layer(x)
    with shared_statistics(layer, 3):
        assert torch.equal(layer.train()(x), before)
    assert layer.num_batches_tracked == 0


def test_pieces_of_whole_groups_are_the_batch():
    """Outputs and gradients; the running statistics move once a piece."""
    methods = [Method(), Method()]
    views = [normal(12, 3, 8, 8, address=("pieces", view)) for view in (0, 1)]
    projected = []
    for method, rows in zip(methods, (12, 8), strict=True):
        with shared_statistics(method, 4):
            pieces = zip(*(view.split(rows) for view in views), strict=True)
            z = [torch.cat([method.projector(method.encoder(view)) for view in piece], 1) for piece in pieces]
            projected.append(torch.cat(z))
        projected[-1].square().sum().backward()
    assert same(projected[1], projected[0])
    for a, b in zip(methods[1].parameters(), methods[0].parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("error", [None, RuntimeError])
def test_every_layer_is_of_its_own_class_again(error):
    method = nn.ModuleList([Method(), KerasBatchNorm1d(4), nn.Identity()])
    layers, hooks = [type(layer) for layer in method.modules()], []
    before = method.state_dict(keep_vars=True)
    try:
        with shared_statistics(method, 2):
            shared = [layer for layer in method.modules() if isinstance(layer, SharedBatchNorm)]
            assert len(shared) == 4 and isinstance(shared[0], nn.BatchNorm2d)
            if error is not None:
                raise error
    except RuntimeError:
        hooks.append("seen")
    assert [type(layer) for layer in method.modules()] == layers and len(hooks) == (error is not None)
    after = method.state_dict(keep_vars=True)
    assert list(after) == list(before) and all(after[key] is before[key] for key in before)


def test_on_one_process_all_rows_need_no_other_layer():
    method = Method()
    with shared_statistics(method):
        assert not any(isinstance(layer, SharedBatchNorm) for layer in method.modules())


def test_what_cannot_be_grouped_is_one_clear_error():
    with shared_statistics(layer := nn.BatchNorm1d(3), 4):
        for rows in (6, 3, 0):
            with pytest.raises(RecipeError, match=f"statistics_rows is 4 and a batch normalisation got {rows} rows"):
                layer(torch.ones(rows, 3))
    with pytest.raises(RecipeError, match="statistics_rows is 0"), shared_statistics(layer, 0):
        pass
    known = nn.BatchNorm2d(3)
    for other in (type("Own", (nn.BatchNorm2d,), {})(3), nn.SyncBatchNorm(3)):
        network = nn.Sequential(known, other)
        with pytest.raises(DiptychError, match=f"1 is a {type(other).__name__}"), shared_statistics(network, 2):
            pass
        assert type(known) is nn.BatchNorm2d
