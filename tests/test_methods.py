"""One contract for all methods, then each one's own mathematics against a witness written out by hand."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.base.errors import RecipeError
from diptych.methods import METHODS, BarlowTwins, Method, SimSiam


class Small(nn.Module):
    """(N, 3, s, s) -> (N, 6), for any s."""

    num_features = 6

    def __init__(self, norm: bool = True):
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 3, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.last = nn.Linear(8, 6, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.norm(self.convolution(images)).tanh().mean((2, 3)))


def make(name: str, encoder: nn.Module | None = None, **options) -> Method:
    torch.manual_seed(0)
    return METHODS[name](encoder or Small(), **{"projector": (10, 7)} | options)


def views(n: int = 12, sizes: tuple[int, ...] = (9, 9), dtype: torch.dtype = torch.float32, seed: int = 1):
    rng = torch.Generator().manual_seed(seed)
    return [torch.rand(n, 3, size, size, generator=rng, dtype=dtype) for size in sizes]


every_method = pytest.mark.parametrize("name", METHODS)


@every_method
def test_forward_is_compare_of_project(name):
    method, pair = make(name), views()
    loss, parts, _ = method(pair)
    projections = method.project(pair, {})
    again, parts_again, _ = method.compare(projections, 0.0)
    assert torch.equal(loss, again) and parts == parts_again
    assert isinstance(projections, dict) and all(len(rows) == 12 for rows in projections.values())


@every_method
def test_loss_is_a_scalar_and_parts_are_detached_scalars(name):
    loss, parts, _ = make(name)(views())
    assert loss.ndim == 0 and loss.requires_grad and loss.isfinite()
    assert parts
    assert all(part.ndim == 0 and not part.requires_grad and part.isfinite() for part in parts.values())


@every_method
def test_gradients_reach_every_parameter(name):
    method = make(name)
    method(views())[0].backward()
    for parameter_name, parameter in method.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.any(), parameter_name


@every_method
def test_after_step_is_there(name):
    method = make(name)
    before = copy.deepcopy(method.state_dict())
    assert method.after_step({}, 0.5) is None
    assert all(torch.equal(before[key], value) for key, value in method.state_dict().items())


@every_method
def test_each_view_has_batch_statistics_of_its_own(name):
    method = make(name)
    (first, second), (_, other) = views(), views(seed=2)
    seen, again = method.project([first, second], {}), method.project([first, other], {})
    assert torch.equal(seen["z1"], again["z1"]) and not torch.equal(seen["z2"], again["z2"])


@every_method
def test_views_may_differ_in_size_and_batches_be_short(name):
    method = make(name)
    loss, *_ = method(views(n=3, sizes=(9, 15)))
    loss.backward()
    assert loss.isfinite() and all(parameter.grad.isfinite().all() for parameter in method.parameters())


@every_method
def test_the_loss_counts_the_rows_it_gets(name):
    """Every image twice is the same loss."""
    method = make(name).double()
    projections = method.project(views(dtype=torch.float64), {})
    once, *_ = method.compare(projections, 0.0)
    twice, *_ = method.compare({key: torch.cat([value, value]) for key, value in projections.items()}, 0.0)
    torch.testing.assert_close(once, twice, rtol=1e-12, atol=0)


@every_method
@pytest.mark.parametrize("pair", [views(sizes=(9,)), views(sizes=(9, 9, 9)), [views(4)[0], views(5)[1]]])
def test_two_views_of_the_same_images(name, pair):
    with pytest.raises(RecipeError, match="compares two views of the same images, got views of"):
        make(name)(pair)


@every_method
def test_float64_stays_float64(name):
    loss, parts, _ = make(name).double()(views(dtype=torch.float64))
    assert {loss.dtype, *(part.dtype for part in parts.values())} == {torch.float64}
    single, *_ = make(name)([view.float() for view in views(dtype=torch.float64)])
    torch.testing.assert_close(single, loss.float(), rtol=1e-4, atol=0)
    assert single.item() != loss.item()  # nothing inside rounds to float32


@every_method
def test_the_loss_is_float32_under_autocast(name):
    method = make(name)
    with torch.autocast("cpu", torch.bfloat16):
        projections = method.project(views(), {})
        loss, *_ = method.compare(projections, 0.0)
    assert {value.dtype for value in projections.values()} == {torch.bfloat16}
    assert loss.dtype == torch.float32


@every_method
def test_state_loads_strictly(name):
    method, other = make(name), make(name, Small())
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.1)
    assert not torch.equal(other(views())[0], method(views())[0])
    other.load_state_dict(method.state_dict(), strict=True)
    assert torch.equal(other(views())[0], method(views())[0])
    incomplete = {key: value for key, value in method.state_dict().items() if "encoder.last" not in key}
    with pytest.raises(RuntimeError, match="encoder.last"):
        other.load_state_dict(incomplete, strict=True)


def without_norms(method: Method) -> Method:
    for name, module in list(method.named_modules()):
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            method.set_submodule(name, nn.Identity())
    return method.double()


@every_method
def test_gradient_caching_is_the_large_batch(name):
    """Pieces without gradients, compared once, each one's gradient sent back by projecting it again."""
    large, pieces = (without_norms(make(name)) for _ in range(2))
    pair = views(dtype=torch.float64)
    expected, *_ = large(pair)
    expected.backward()

    rows = [slice(0, 5), slice(5, 10), slice(10, 12)]
    with torch.no_grad():
        parts = [pieces.project([view[piece] for view in pair], {}) for piece in rows]
    whole = {key: torch.cat([part[key] for part in parts]).requires_grad_() for key in parts[0]}
    loss, *_ = pieces.compare(whole, 0.0)
    loss.backward()
    for piece in rows:
        again = pieces.project([view[piece] for view in pair], {})
        sent = {key: value.grad[piece] for key, value in whole.items() if value.grad is not None}
        torch.autograd.backward([again[key] for key in sent], list(sent.values()))

    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    for (key, ours), theirs in zip(pieces.named_parameters(), large.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-12, msg=key)


@every_method
def test_any_module_is_an_encoder(name):
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(3 * 9 * 9, 5, bias=False))
    with pytest.raises(RecipeError, match="Sequential has no num_features: pass width=E"):
        make(name, encoder)
    loss, *_ = make(name, encoder, width=5)(views())
    assert loss.isfinite()


def test_method_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Method()


def test_barlow_twins_is_the_paper_s_equation():
    """Eqs. 1 and 2 by loops; weight, eps and scale differ, so that none can take another's place."""
    weight, eps, scale = 0.3, 0.02, 1.7
    method = make("barlow_twins", off_diagonal_weight=weight, eps=eps, scale=scale).double()
    projections = method.project(views(dtype=torch.float64), {})
    loss, parts, _ = method.compare(projections, 0.0)

    standard = []
    for z in (projections["z1"], projections["z2"]):
        columns = []
        for column in z.detach().T.tolist():
            mean = sum(column) / len(column)
            variance = sum((value - mean) ** 2 for value in column) / len(column)
            columns.append([(value - mean) / math.sqrt(variance + eps) for value in column])
        standard.append(columns)
    on = off = 0.0
    for i, first in enumerate(standard[0]):
        for j, second in enumerate(standard[1]):
            c = sum(a * b for a, b in zip(first, second, strict=True)) / len(first)
            on, off = (on + (1 - c) ** 2, off) if i == j else (on, off + c**2)
    assert parts["on_diagonal"].item() == pytest.approx(on, rel=1e-10)
    assert parts["off_diagonal"].item() == pytest.approx(off, rel=1e-10)
    assert loss.item() == pytest.approx(scale * (on + weight * off), rel=1e-10)


def test_simsiam_s_target_gets_no_gradient():
    """The prediction's gradient is eq. 1's: -(z' - (p'.z') p') / |p| / 2N, with p' and z' of length 1."""
    method = make("simsiam").double()
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
def test_simsiam_s_gradient_through_the_networks(stop_gradient):
    """Eq. 4 row by row, its targets plain numbers; without the stop-gradient eq. 2, its targets alive."""
    method = make("simsiam", stop_gradient=stop_gradient).double()
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


def test_simsiam_without_the_stop_gradient_is_another_gradient():
    gradients = []
    for stop_gradient in (True, False):
        method = make("simsiam", stop_gradient=stop_gradient)
        method(views())[0].backward()
        gradients.append(method.encoder.last.weight.grad)
    assert not torch.allclose(*gradients, rtol=0.1)


def test_published_networks_are_the_defaults():
    with torch.device("meta"):  # shapes without memory
        twins, siamese = BarlowTwins(nn.Identity(), width=1), SimSiam(nn.Identity(), width=1)
    widths = [layer.out_features for layer in twins.projector if isinstance(layer, nn.Linear)]
    assert widths == [8192, 8192, 8192] and isinstance(twins.projector[-1], nn.Linear)
    assert not any(layer.bias is not None for layer in twins.projector if isinstance(layer, nn.Linear))
    assert twins.off_diagonal_weight == 0.0051 and twins.scale == 1.0
    widths = [layer.out_features for layer in siamese.projector if isinstance(layer, nn.Linear)]
    assert widths == [2048, 2048, 2048] and not siamese.projector[-1].affine
    assert [tuple(layer.weight.shape) for layer in siamese.predictor if isinstance(layer, nn.Linear)] == [
        (512, 2048),
        (2048, 512),
    ]
    assert siamese.stop_gradient
