"""SimSiam: its gradient against a witness written out by hand, its invariances, its defaults."""

import copy

import pytest
import torch
import torch.nn.functional as F
from small import make, views
from torch import nn

from diptych.base.errors import RecipeError
from diptych.methods import SimSiam


def test_the_target_gets_no_gradient():
    """The prediction's gradient is eq. 1's: -(z' - (p'.z') p') / |p| / 2N, with p' and z' of length 1."""
    method = make(SimSiam, projector=(10, 7)).double()
    rng = torch.Generator().manual_seed(3)
    leaves = {
        name: torch.randn(5, 7, generator=rng, dtype=torch.float64).requires_grad_()
        for name in ("p1", "p2", "z1", "z2")
    }
    loss, parts, _ = method.compare(leaves, 0.0)
    loss.backward()
    assert leaves["z1"].grad is None and leaves["z2"].grad is None
    for p, z in ((leaves["p1"], leaves["z2"]), (leaves["p2"], leaves["z1"])):
        for row in range(5):
            length = p[row].norm()
            guess, target = p[row] / length, z[row] / z[row].norm()
            expected = -(target - (guess @ target) * guess) / length / (2 * 5)
            torch.testing.assert_close(p.grad[row], expected.detach(), rtol=1e-10, atol=1e-15)
    assert loss.item() == pytest.approx(-(parts["similarity_1"] + parts["similarity_2"]).item() / 2, rel=1e-12)
    first = F.cosine_similarity(leaves["p1"], leaves["z2"]).mean().item()
    assert parts["similarity_1"].item() == pytest.approx(first, rel=1e-12)


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_the_gradient_through_the_networks(stop_gradient):
    """Eq. 4 row by row, its targets plain numbers; without the stop-gradient eq. 2, its targets alive."""
    method = make(SimSiam, projector=(10, 7), stop_gradient=stop_gradient).double()
    witness, pair = copy.deepcopy(method), views(dtype=torch.float64)
    method(pair)[0].backward()

    alive = [witness.projector(witness.encoder(view)) for view in pair]
    targets = [torch.tensor(z.tolist(), dtype=torch.float64) for z in alive] if stop_gradient else alive
    guesses = [witness.predictor(z) for z in alive]
    total = 0.0
    for guess, target in ((guesses[0], targets[1]), (guesses[1], targets[0])):
        for p, z in zip(guess, target, strict=True):
            total = total - (p * z).sum() / (p.square().sum().sqrt() * z.square().sum().sqrt()) / len(guess) / 2
    total.backward()
    for (key, ours), theirs in zip(method.named_parameters(), witness.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-8, atol=1e-13, msg=key)


def test_training_without_the_stop_gradient_is_another_gradient():
    gradients = []
    for stop_gradient in (True, False):
        method = make(SimSiam, projector=(10, 7), stop_gradient=stop_gradient)
        method(views())[0].backward()
        gradients.append(method.encoder.last.weight.grad)
    assert not torch.allclose(*gradients, rtol=0.1)


def test_projector_and_predictor_may_be_modules_of_your_own():
    encoder, projector = nn.Sequential(nn.Flatten(), nn.Linear(3 * 9 * 9, 5)), nn.Linear(5, 4)
    predictor = nn.Linear(4, 4)
    method = SimSiam(encoder, projector, predictor)  # without a width, too
    assert method.projector is projector and method.predictor is predictor
    projections = method.project(views(), {})
    assert torch.equal(projections["p1"], predictor(projector(encoder(views()[0]))))
    assert SimSiam(encoder, (6, 4), predictor, width=5).predictor is predictor
    with pytest.raises(RecipeError, match="a projector that is a module needs a predictor that is one"):
        SimSiam(encoder, projector, 2)


def test_the_published_network_is_the_default():
    with torch.device("meta"):  # shapes without memory
        method = SimSiam(nn.Identity(), width=1)
    assert [layer.out_features for layer in method.projector if isinstance(layer, nn.Linear)] == [2048, 2048, 2048]
    assert not method.projector[-1].affine
    shapes = [tuple(layer.weight.shape) for layer in method.predictor if isinstance(layer, nn.Linear)]
    assert shapes == [(512, 2048), (2048, 512)] and method.stop_gradient
