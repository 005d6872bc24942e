"""A whole step as one graph of operations on tensors without numbers: nothing in it asks what a number is.

Rows of the images, views, forward, loss, backward, update: traced by `make_fx` on fake tensors beneath the pretended device.
"""

import pytest
import torch
from pretend import DEVICE, PretendDevice, There, pretended_device
from tiny import TinyEncoder
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from diptych.base.random_at import random_at
from diptych.methods import BarlowTwins, SimSiam
from diptych.training import optimizers
from diptych.training.learner import Learner
from diptych.training.schedules import constant
from diptych.views import barlow_twins, simsiam
from diptych.views.together import Together

ROWS, SIZE = 12, 12


class Reads(BarlowTwins):
    def compare(self, projections, progress):
        return super().compare(projections, float(progress))


METHODS = {
    "barlow_twins": (lambda: BarlowTwins(TinyEncoder(), projector=(16, 16)), barlow_twins, "lars"),
    "simsiam": (lambda: SimSiam(TinyEncoder(), projector=(16, 16), predictor=8), simsiam, "sgd"),
    "barlow_twins, lamb": (lambda: BarlowTwins(TinyEncoder(), projector=(16, 16)), barlow_twins, "lamb"),
    "reads a number": (lambda: Reads(TinyEncoder(), projector=(16, 16)), barlow_twins, "lars"),
}


def trace(what: str) -> tuple[GraphModule, list]:
    """The graph of a step, and what in it would have waited."""
    make, preset, optimizer = METHODS[what]
    views, waits = preset(SIZE), []
    ((numbers, chain),) = Together(views).chains
    draws = [views[number].sample(ROWS, random_at("traced", number)) for number in numbers]
    images, rows = torch.zeros(4 * ROWS, 3, SIZE, SIZE, dtype=torch.uint8), torch.arange(ROWS)
    torch.manual_seed(0)
    method = make()
    with pretended_device():
        method.to(DEVICE).to(memory_format=torch.channels_last)
        learner = Learner(method, getattr(optimizers, optimizer)(method, lr=0.05), constant())
        chain.apply(
            images.to(DEVICE), chain.pack(draws, ROWS, SIZE, SIZE).to(DEVICE), rows.to(DEVICE)
        )  # uploads constants
    method.train()
    rates = [group["lr"] for group in learner.optimizer.param_groups]

    def step(*given):
        with PretendDevice() as device:
            images, rows, packed, numbers = map(There, given)
            learner.guard.note()
            _, taken = learner.device_step(0, numbers, chain.apply(images, packed, rows), {})
            waits.extend(device.waits)
            return taken.held

    inputs = images, rows, chain.pack(draws, ROWS, SIZE, SIZE), torch.tensor([0.5, *rates])
    return make_fx(step, tracing_mode="fake", _allow_non_fake_inputs=True)(*inputs), waits


@pytest.mark.parametrize("what", [name for name in METHODS if name != "reads a number"])
def test_a_whole_step_is_one_graph(what):
    graph, waits = trace(what)
    targets = [str(node.target) for node in graph.graph.nodes]
    assert waits == [] and not [target for target in targets if "_local_scalar_dense" in target or "nonzero" in target]
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    assert len(inputs) == 4 and all(node.users for node in inputs), "no input is frozen into the graph"
    for part in (
        "aten.index.Tensor",
        "aten.bmm",
        "aten.convolution.default",
        "aten.convolution_backward",
        "aten._fused_sgd_",
    ):
        assert any(part in target for target in targets), part
    [output] = [node for node in graph.graph.nodes if node.op == "output"]
    assert len(output.args[0].meta["val"]) == 4


def test_a_step_that_reads_a_number_is_none():
    with pytest.raises(GuardOnDataDependentSymNode, match="data-dependent"):
        trace("reads a number")
