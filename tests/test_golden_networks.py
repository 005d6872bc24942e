"""The Keras examples' networks, filled by a formula, return what Keras returned for the same weights."""

import json
from collections.abc import Iterator

import pytest
import torch
from shared import shared, wave
from torch import Tensor, nn

from diptych.methods import BarlowTwins, SimSiam
from diptych.methods.keras import keras_barlow_twins, keras_simsiam
from diptych.networks.keras import KerasBatchNorm1d, KerasBatchNorm2d, KerasResNet20v2, KerasResNet34

# What Keras and PyTorch call a weight, and its amplitude and centre in the formula.
NORM = {
    "gamma": ("weight", 0.2, 1.0),
    "beta": ("bias", 0.1, 0.0),
    "moving_mean": ("running_mean", 0.1, 0.0),
    "moving_variance": ("running_var", 0.2, 1.0),
}


def golden(name: str) -> dict:
    return json.loads(shared("golden/keras.json").read_text())[name]


def fill_order(name: str) -> list:
    return json.loads(shared(f"golden/{name}_fill_order.json").read_text())


def weights_of(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(Keras' name, tensor) of every weight, in the order in which `network` made its layers."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            yield "kernel", layer.weight
            if layer.bias is not None:
                yield "bias", layer.bias
        elif isinstance(layer, KerasBatchNorm1d | KerasBatchNorm2d):
            yield from ((name, getattr(layer, ours)) for name, (ours, _, _) in NORM.items())


def in_keras_layout(name: str, tensor: Tensor) -> Tensor:
    """A view of `tensor` in Keras' layout: kernels are (height, width, in, out), or (in, out)."""
    if name != "kernel":
        return tensor
    return tensor.permute(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T


def fill(network: nn.Module, order: list | None = None) -> int:
    """Fill the k-th weight by number k of the formula, held to row k of `order`. Returns how many."""
    k = -1
    for k, (name, tensor) in enumerate(weights_of(network)):
        target = in_keras_layout(name, tensor.data)
        if order is not None:
            assert [k, name, [*target.shape]] == [order[k][0], order[k][2], order[k][3]]
        fan_in = target[..., 0].numel()
        amplitude, centre = ((6 / fan_in) ** 0.5, 0.0) if name == "kernel" else (0.1, 0.0)
        if name in NORM:
            _, amplitude, centre = NORM[name]
        target.copy_(torch.from_numpy(wave(tuple(target.shape), k, amplitude, centre)))
    return k + 1


def weight_count(*networks: nn.Module) -> int:
    """As Keras counts: moving statistics included."""
    return sum(tensor.numel() for network in networks for _, tensor in weights_of(network))


def images() -> Tensor:
    """(8, 3, 32, 32) in [0, 1]."""
    return torch.from_numpy(wave((8, 32, 32, 3), 1000, 0.5, 0.5)).permute(0, 3, 1, 2).float()


def hits(ours: Tensor, theirs: list, tolerance: float = 1e-4) -> None:
    """Within `tolerance` of the largest number of `theirs`."""
    expected = torch.tensor(theirs)
    torch.testing.assert_close(ours, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


@pytest.fixture(scope="module")
def filled_twin() -> BarlowTwins:
    network = keras_barlow_twins(KerasResNet34(), projector=(5000, 5000, 5000))
    assert fill(network, fill_order("resnet34")) == golden("resnet34")["n_weights_filled"]
    return network


@pytest.fixture
def twin(filled_twin) -> Iterator[BarlowTwins]:
    """Filled once, 73.9 million weights; each test finds its moving statistics as filled."""
    buffers = {name: buffer.clone() for name, buffer in filled_twin.named_buffers()}
    yield filled_twin
    filled_twin.load_state_dict(buffers, strict=False)


@pytest.fixture
def siamese() -> SimSiam:
    network = keras_simsiam(KerasResNet20v2(), projector=(2048, 2048), predictor=512)
    order = fill_order("resnet20v2")
    assert fill(nn.ModuleList([network.encoder, network.projector]), order) == len(order)
    fill(network.predictor)
    return network


def test_resnet34_counts(twin):
    expected = golden("resnet34")
    assert weight_count(twin.encoder) == expected["encoder_params"]
    assert weight_count(twin) == expected["params_total_with_projector"]
    assert sum(p.numel() for p in twin.parameters() if p.requires_grad) == expected["trainable"]


@torch.no_grad()
def test_resnet34_in_evaluation(twin):
    expected = golden("resnet34")
    embedding = twin.encoder.eval()(images())
    assert [*embedding.shape] == expected["feature_shape"]
    hits(embedding[0, :8], expected["eval_first8_of_row0"])
    hits(embedding.norm(dim=1), expected["eval_row_norms"])
    hits(embedding.mean(), expected["eval_mean"])
    hits(embedding.std(correction=0), expected["eval_std"])


@torch.no_grad()
def test_resnet34_with_batch_statistics(twin):
    expected = golden("resnet34")
    embedding = twin.encoder.train()(images())
    hits(embedding[0, :8], expected["train_first8_of_row0"])
    hits(embedding.norm(dim=1), expected["train_row_norms"])
    hits(embedding.mean(), expected["train_mean"])
    hits(embedding.std(correction=0), expected["train_std"])


@torch.no_grad()
def test_resnet34_projection(twin):
    """Keras' run had moved the encoder's statistics by one training step: this proves that step too."""
    expected = golden("resnet34_projection")
    twin.encoder.train()(images())
    twin.eval()
    projection = twin.projector(twin.encoder(images()))
    assert [*projection.shape] == expected["shape"]
    hits(projection[0, :8], expected["eval_first8_of_row0"])
    hits(projection.norm(dim=1), expected["row_norms"])


def test_resnet20v2_counts(siamese):
    expected = golden("resnet20v2")
    assert weight_count(siamese.encoder) == expected["backbone_params"]
    assert weight_count(siamese.encoder, siamese.projector) == expected["encoder_with_projector_params"]
    assert weight_count(siamese.predictor) == expected["predictor_params"]


@torch.no_grad()
def test_resnet20v2_in_evaluation(siamese):
    expected = golden("resnet20v2")
    embedding = siamese.encoder.eval()(images())
    assert [*embedding.shape] == expected["feature_shape"]
    hits(embedding[0, :8], expected["eval_first8_of_row0"])
    hits(embedding.norm(dim=1), expected["eval_row_norms"])


@torch.no_grad()
def test_resnet20v2_with_batch_statistics(siamese):
    expected = golden("resnet20v2")
    embedding = siamese.encoder.train()(images())
    hits(embedding[0, :8], expected["train_first8_of_row0"])
    hits(embedding.norm(dim=1), expected["train_row_norms"])


@torch.no_grad()
def test_simsiam_projection_and_prediction(siamese):
    """As for the ResNet-34: after one step of the encoder's moving statistics."""
    expected = golden("resnet20v2")
    siamese.encoder.train()(images())
    siamese.eval()
    projection = siamese.projector(siamese.encoder(images()))
    hits(projection[0, :8], expected["projection_eval_first8_of_row0"])
    hits(siamese.predictor(projection)[0, :8], expected["prediction_eval_first8_of_row0"])


@torch.no_grad()
@pytest.mark.parametrize("shape, norm", [((16, 5), KerasBatchNorm1d), ((16, 5, 1, 1), KerasBatchNorm2d)])
def test_batch_normalisation_after_one_step(shape, norm):
    expected = golden("keras_batchnorm_after_one_step")
    layer = norm(5)
    y = layer(torch.from_numpy(wave((16, 5), 70, 2.0, 1.0)).float().reshape(shape))
    hits(y[0].flatten(), expected["y_row0"], 1e-6)
    hits(layer.running_mean, expected["moving_mean"], 1e-6)
    hits(layer.running_var, expected["moving_variance"], 1e-6)


@pytest.mark.parametrize("name", ["N64_D32_k0", "N64_D300_k2", "N512_D128_k4"])
def test_barlow_twins_compares_as_published(name):
    expected = golden(f"barlow_loss_{name}")
    rows, width, k = (int(part[1:]) for part in name.split("_"))
    first, second = (torch.from_numpy(wave((rows, width), number)) for number in (k, k + 1))
    method = BarlowTwins(nn.Identity(), projector=(1,), width=1, off_diagonal_weight=5e-3, eps=0.0)
    loss, parts, _ = method.compare({"z1": first, "z2": 0.7 * first + 0.3 * second}, 0.0)
    assert loss.item() == pytest.approx(expected["loss_float64"], rel=1e-10)
    assert parts["on_diagonal"].item() == pytest.approx(expected["on_diagonal"], rel=1e-10)
    assert parts["off_diagonal"].item() == pytest.approx(expected["off_diagonal"], rel=1e-10)


def test_simsiam_compares_as_published():
    waves = {name: torch.from_numpy(wave((64, 48), 60 + k)) for k, name in enumerate(("p1", "z1", "p2", "z2"))}
    loss, *_ = SimSiam(nn.Identity(), projector=(1,), predictor=1, width=1).compare(waves, 0.0)
    assert loss.item() == pytest.approx(golden("simsiam_loss_N64_D48_k60"), rel=1e-6)
