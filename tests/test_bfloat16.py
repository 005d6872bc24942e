"""bfloat16 on this machine's CPU: convolutions, losses and gradients of the networks used are float32's, but for rounding.

Wrong results have been seen in the field (pytorch #163347), so this is measured where the tests run, in both memory layouts.
"""

import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_images, tiny_views
from torch import nn

import diptych
from diptych.base.random_at import random_at
from diptych.methods import BarlowTwins, SimSiam
from diptych.networks import convolution
from diptych.networks.convolution import Conv2d

LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
ENCODERS = {
    "resnet18": lambda: diptych.encoder("resnet18", stem="small", size=32),
    "keras_resnet34": lambda: diptych.encoder("keras_resnet34"),
    "keras_resnet20v2": lambda: diptych.encoder("keras_resnet20v2"),
}
ROUNDING = 2**-8  # of one bfloat16 number, relative


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The distance, relative."""
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())


def seeded(make, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def convolutions(network: nn.Module) -> dict[tuple, nn.Conv2d]:
    """Each kind of convolution of a network once, by the shape of what it is given (of 4 images) and what it does."""
    found: dict[tuple, nn.Conv2d] = {}

    def look(layer: nn.Conv2d, given: tuple[torch.Tensor]) -> None:
        found[(tuple(given[0].shape), tuple(layer.weight.shape), layer.stride, layer.padding)] = layer

    hooks = [m.register_forward_pre_hook(look) for m in network.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        network(torch.zeros(4, 3, 32, 32))
    for hook in hooks:
        hook.remove()
    return found


def value_and_gradients(layer: nn.Conv2d, x: torch.Tensor, slope: torch.Tensor) -> tuple[torch.Tensor, ...]:
    x = x.detach().requires_grad_()
    y = layer(x)
    return y, *torch.autograd.grad(y, (x, *layer.parameters()), slope)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ENCODERS)
def test_convolutions(name, layout):
    """Of the same numbers, already rounded to bfloat16: what is left is the rounding of the results."""
    layers = convolutions(seeded(ENCODERS[name]))
    assert len(layers) >= 8
    for (shape, *_), layer in layers.items():
        layer.bfloat16()
        x = torch.randn(shape, generator=random_at(name, *shape)).bfloat16()
        slope = torch.randn(layer(x).shape, generator=random_at(name, "slope", *shape)).bfloat16()
        low = layer.to(memory_format=LAYOUTS[layout])
        found = value_and_gradients(low, x.contiguous(memory_format=LAYOUTS[layout]), slope)
        expected = value_and_gradients(
            layer.to(memory_format=torch.contiguous_format).float(), x.float(), slope.float()
        )
        for what, ours, theirs in zip(("value", "slope of x", "of w", "of b"), found, expected, strict=False):
            assert apart(ours, theirs) < 2 * ROUNDING, f"{what} of {layer} of {shape}"


def method_of(name: str, kind: str) -> nn.Module:
    if kind == "barlow_twins":
        return BarlowTwins(ENCODERS[name](), projector=(64, 64, 64))
    return SimSiam(ENCODERS[name](), projector=(64, 64), predictor=16)


@pytest.mark.parametrize(
    ("name", "kind", "alike", "seed"),
    [
        ("resnet18", "barlow_twins", 0.95, 0),
        ("keras_resnet34", "barlow_twins", 0.75, 0),
        (
            "keras_resnet20v2",
            "simsiam",
            0.95,
            5,
        ),  # SimSiam's loss begins near 0; with this seed least so, on torch 2.11 too
    ],
)
def test_training_step(name, kind, alike, seed):
    """Loss and gradient of a method's first step under autocast, beside float32. A network of 34 layers that has not been
    trained enlarges every rounding: there the two gradients have a cosine of 0.83, in both layouts, elsewhere of 0.98."""
    method = seeded(lambda: method_of(name, kind), seed).to(memory_format=torch.channels_last)
    pixels = torch.rand(16, 3, 32, 32, generator=random_at("step"))
    noise = 0.1 * torch.randn(2, 16, 3, 32, 32, generator=random_at("noise"))
    views = [(pixels + each).contiguous(memory_format=torch.channels_last) for each in noise]
    losses, slopes = [], []
    for low in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            loss = method(views)[0]
        losses.append(loss.detach())
        slopes.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(method.parameters()))]))
    assert losses[1].dtype == torch.float32
    assert apart(losses[1], losses[0]) < 0.05
    assert float(F.cosine_similarity(*slopes, dim=0)) > alike
    assert 0.9 < float(slopes[1].norm() / slopes[0].norm()) < 1.1


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize(
    ("size", "stride", "padding"), [(2, 1, 1), (1, 1, 1), (5, 2, 0), (3, 2, 0), (4, 1, 0), (7, 1, 1), (13, 2, 1)]
)
def test_few_pixels_are_a_product(size, stride, padding, kernel, bias, monkeypatch):
    """The same value and gradients in float64, for tiny maps and for those whose kernel's gradient alone is a product."""
    monkeypatch.setitem(convolution.SMALL_MAP, torch.float64, 9)
    size = max(size, kernel)
    layer = Conv2d(6, 7, kernel, stride, padding, bias=bias).double()
    x = torch.randn(4, 6, size, size - (size > 6), generator=random_at(size)).double().requires_grad_()
    assert layer._output_pixels(x) <= 9
    plain = F.conv2d(x, layer.weight, layer.bias, stride, padding)
    slope = torch.randn(plain.shape, generator=random_at("slope", size)).double()
    expected = torch.autograd.grad(plain, (x, *layer.parameters()), slope)
    found = value_and_gradients(layer, x, slope)
    for ours, theirs in zip(found, (plain, *expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert found[0].is_contiguous(memory_format=torch.channels_last) or layer._output_pixels(x) > 2
    assert torch.equal(F.relu(found[0].detach()), layer(x).relu_()), "the next layer may work in place"


@pytest.mark.parametrize("size", [2, 5])
def test_a_product_under_autocast(size):
    """Float32 weights get float32 gradients, those of torch's own layer up to rounding, and the result is bfloat16."""
    layer, twin = Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
    twin.load_state_dict(layer.state_dict())
    x, slope = torch.randn(2, 4, 8, size, size, generator=random_at("x"))
    for each in (layer, twin):
        with torch.autocast("cpu", torch.bfloat16):
            y = each.to(memory_format=torch.channels_last)(x)
        assert y.dtype == torch.bfloat16
        y.backward(slope.bfloat16())
    for ours, theirs in zip(layer.parameters(), twin.parameters(), strict=True):
        assert ours.grad.dtype == torch.float32 and apart(ours.grad, theirs.grad) < 2 * ROUNDING


def test_a_product_computes_what_is_asked_for(monkeypatch):
    made = []
    for name in ("fold_patches", "unfold_patches"):
        real = getattr(convolution, name)
        monkeypatch.setattr(convolution, name, lambda *a, name=name, real=real: made.append(name) or real(*a))
    layer, x = Conv2d(4, 4, 3, padding=1), torch.randn(2, 4, 2, 2)
    y = layer(x)
    made.clear()
    y.sum().backward()
    assert made == ["unfold_patches"], "nobody wants the gradient of these images"
    layer.weight.requires_grad_(False)
    y = layer(x.requires_grad_())
    made.clear()
    y.sum().backward()
    assert made == ["fold_patches"] and x.grad is not None


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 2), (torch.float64, 2), (torch.bfloat16, 7)])
def test_which_way_is_taken(dtype, most, monkeypatch):
    """Small maps in training, tiny ones always; never a network that is being compiled."""
    taken = []
    monkeypatch.setattr(Conv2d, "_as_product", lambda self, x: taken.append(x.shape[2]) or x)
    layer = Conv2d(3, 3, 3, padding=1).to(dtype)

    def all_sizes() -> list[int]:
        taken.clear()
        for size in range(1, 12):
            layer(torch.zeros(1, 3, size, size, dtype=dtype))
        return taken

    assert all_sizes() == list(range(1, most + 1))
    with torch.no_grad():
        assert all_sizes() == [1, 2]
    assert layer.weight.requires_grad_(False) is layer.weight and all_sizes() == [1, 2]
    taken.clear()
    layer(torch.zeros(3, 2, 2, dtype=dtype))  # one image without a batch
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    layer(torch.zeros(1, 3, 2, 2, dtype=dtype))
    assert not taken


def test_which_convolutions_are_quick():
    """All plain ones, while it lasts; never those with groups, dilation, other padding or other classes."""
    network = diptych.encoder("resnet18", stem="small", size=32, channels=(8, 8, 8, 8))
    other = [nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, dilation=2), nn.Conv2d(4, 4, 3, padding="same"),
             nn.Conv2d(4, 4, (3, 1)), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
             type("Own", (nn.Conv2d,), {})(4, 4, 3)]  # fmt: skip
    classes = [type(layer) for layer in other]
    kinds = lambda: {type(layer) for layer in network.modules() if isinstance(layer, nn.Conv2d)}  # noqa: E731
    with pytest.raises(ZeroDivisionError), convolution.quick_convolutions(nn.Sequential(network, *other)):
        assert kinds() == {Conv2d} and [type(layer) for layer in other] == classes
        raise ZeroDivisionError
    assert kinds() == {nn.Conv2d}


def test_pretraining_is_quick_and_leaves_the_network_as_it_was(tmp_path):
    seen = set()
    network = diptych.encoder("resnet18", stem="small", size=12, channels=(8, 8, 8, 8))
    network.conv1.register_forward_hook(lambda layer, given, made: seen.add(type(layer)))
    method = BarlowTwins(network, projector=(8, 8))
    diptych.pretrain(method, tiny_images(), tiny_views(), diptych.optimizers.sgd(method, 0.01), out=tmp_path / "run", epochs=1,
                     batch_size=24, show=False)  # fmt: skip
    assert Conv2d in seen and type(network.conv1) is nn.Conv2d
