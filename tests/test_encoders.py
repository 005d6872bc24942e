"""Encoders by name, their stems and options; the Keras networks beyond their golden numbers; projectors."""

import copy
import json
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from diptych.base.errors import RecipeError
from diptych.networks.encoders import built_with, copy_of, encoder, not_taken
from diptych.networks.inference import Preprocessing
from diptych.networks.keras import (
    KerasBatchNorm1d,
    KerasBatchNorm2d,
    KerasResNet20v2,
    KerasResNet34,
    SamePad,
    he_normal_,
    keras_predictor,
    keras_projector,
)
from diptych.networks.projectors import mlp
from diptych.runs.encoder import load, save_encoder

TINY = {"channels": (8, 8, 16, 24)}


@pytest.mark.parametrize(
    "name, options, width",
    [
        ("resnet18", TINY, 24),
        ("resnet18", TINY | {"global_pool": "catavgmax"}, 48),
        ("resnet26d", TINY, 96),
        ("mobilenetv3_small_050", {}, 1024),  # timm says 288
        ("vit_tiny_patch16_224", {"depth": 1}, 192),
        ("keras_resnet34", {}, 512),
        ("keras_resnet20v2", {}, 256),
    ],
)
def test_embedding_is_n_by_num_features(name, options, width):
    network = encoder(name, size=32, **options)
    assert network.training
    assert network.num_features == width
    assert network.eval()(torch.rand(3, 3, 32, 32)).shape == (3, width)


def strides(network: nn.Module, size: int) -> int:
    """Pixels of the maps that the first stage gets."""
    seen = []
    network.layer1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[-1]))
    network.eval()(torch.zeros(1, 3, size, size))
    return size // seen[0]


@pytest.mark.parametrize("name", ["resnet18", "resnet26d"])  # one convolution, and three
@pytest.mark.parametrize(
    "stem, size, expected",
    [("auto", 32, 1), ("auto", 33, 2), ("auto", 64, 2), ("auto", 65, 4), ("auto", None, 4), ("standard", 32, 4)]
    + [("small", 96, 1), ("small-stride2", 96, 2)],
)
def test_stems(name, stem, size, expected):
    network = encoder(name, stem, size, **TINY)
    assert strides(network, 96) == expected
    first = network.conv1[0] if name == "resnet26d" else network.conv1
    standard = encoder(name, "standard", **TINY)
    kept = standard.conv1[0] if name == "resnet26d" else standard.conv1
    assert first.out_channels == kept.out_channels
    if expected < 4:
        assert first.kernel_size == (3, 3) and first.padding == (1, 1) and first.bias is None
        assert isinstance(network.maxpool, nn.Identity)
        fan_out = 9 * first.out_channels
        assert first.weight.detach().std() == pytest.approx(math.sqrt(2 / fan_out), rel=0.15)  # timm: kaiming, fan out


def test_residuals_start_at_zero_unless_told_otherwise():
    block = encoder("resnet18", size=32, **TINY).layer1[1].eval()
    x = torch.rand(2, 8, 8, 8)
    assert torch.equal(block(x), F.relu(x))
    block = encoder("resnet18", size=32, zero_init_last=False, **TINY).layer1[1].eval()
    assert not torch.equal(block(x), F.relu(x))


def test_networks_for_one_size_are_built_for_the_asked_one():
    assert encoder("vit_tiny_patch16_224", size=48, depth=1).patch_embed.img_size == (48, 48)


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        ("resnet81", {}, "no encoder is named 'resnet81'; near: .*resnet18"),
        ("keras_resnet43", {}, "near: keras_resnet34"),
        (
            "resnet18",
            {"stem": "tiny"},
            "stem is 'tiny'; it must be one of auto, small, small-stride2, small-padded, standard",
        ),
        ("resnet18", {"chanels": (8, 8, 8, 8)}, "resnet18 has no option 'chanels'; near: channels"),
        (
            "mobilenetv3_small_050",
            {"drop_pth_rate": 0.1},
            "has no option 'drop_pth_rate'; near: drop_path_rate",
        ),
        ("resnet18", {"output_stride": 7}, "timm cannot make resnet18 with {'output_stride': 7}"),
        ("resnet18", {"global_pool": "", "size": 32} | TINY, r"makes \(1, 24, 4, 4\) of one image"),
        ("resnet18", {"features_only": True, "size": 32} | TINY, "makes a list of one image"),
        ("resnet18", {"in_chans": 1, "size": 32} | TINY, "cannot embed images of 32 pixels"),
        ("resnet18.nowhere", {}, "Invalid pretrained tag"),
        ("vit_tiny_patch16_224", {"img_size": 32}, "say size instead of img_size"),
        (
            "convnext_atto",
            {"stem": "small"},
            "convnext_atto has no first convolution and max-pool .* use stem auto",
        ),
        ("resnet18", {"stem": "small", "pretrained": True}, "discards a pretrained layer of resnet18"),
        (
            "keras_resnet34",
            {"stem": "small", "pretrained": True, "depth": 18},
            "not take depth, pretrained, stem 'small'",
        ),
    ],
)
def test_what_cannot_be_is_said_in_one_line(name, arguments, message):
    with pytest.raises(RecipeError, match=message) as raised:
        encoder(name, **arguments)
    assert "\n" not in str(raised.value)


def test_pretrained_without_a_network_is_one_clear_line(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(RecipeError, match="cannot fetch the pretrained weights of resnet10t .* pretrained false"):
        encoder("resnet10t", pretrained=True, cache_dir=tmp_path)


def test_pretrained_weights_keep_their_stem(tmp_path):
    """Also for small images, where "auto" would otherwise replace it."""
    theirs = encoder("resnet18", "standard", **TINY)
    save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    here = {"pretrained_cfg_overlay": {"file": str(tmp_path / "weights.safetensors")}}
    ours = encoder("resnet18", size=32, pretrained=True, **here, **TINY)
    assert torch.equal(ours.conv1.weight, theirs.conv1.weight)
    assert isinstance(ours.maxpool, nn.MaxPool2d)
    assert built_with(ours)["stem"] == "standard"  # or a later one without the weights would not be alike


@pytest.mark.parametrize("name", ["resnet18", "keras_resnet20v2"])
def test_what_it_was_built_with_builds_it_again(name):
    options = TINY if name == "resnet18" else {}
    network = encoder(name, size=32, **options)
    again = encoder(**built_with(network))
    again.load_state_dict(network.state_dict(), strict=True)
    assert built_with(again) == built_with(network) and built_with(again)["name"] == name
    assert not hasattr(network, "built_with"), "nothing is hung on the network"


def test_a_network_of_another_origin_was_built_with_nothing_known():
    network = encoder("resnet18", "small", 32, **TINY)
    assert built_with(nn.Flatten()) is None and built_with(copy.deepcopy(network)) is None
    twin = copy_of(network)
    assert built_with(twin) == built_with(network)
    assert type(copy_of(nn.Flatten())) is nn.Flatten
    with torch.no_grad():
        twin.conv1.weight.zero_()
    assert network.conv1.weight.any(), "a copy has tensors of its own"
    built_with(twin)["name"] = "other"
    assert built_with(twin)["name"] == "resnet18", "what is returned is a copy too"


def test_pretrained_weights_that_do_not_exist():
    with pytest.raises(RecipeError, match="No pretrained weights exist for resnet50t"):
        encoder("resnet50t", pretrained=True)


@pytest.mark.parametrize("size", [5, 6, 7, 18, 19])
@pytest.mark.parametrize("kernel", [3, 7])
def test_same_padding_gives_half_the_pixels_rounded_up(size, kernel):
    padded = SamePad(kernel, 2)(torch.ones(1, 1, size, 4))
    assert F.conv2d(padded, torch.ones(1, 1, kernel, 1), stride=2).shape[2] == math.ceil(size / 2)
    zeros = (padded[0, 0].sum(1) == 0).tolist()
    before, after = zeros.index(False), zeros[::-1].index(False)
    assert after - before in (0, 1) and before + after < kernel


def test_keras_networks_start_as_keras_starts_them():
    for layer in KerasResNet34().modules():
        if isinstance(layer, nn.Conv2d):
            bound = math.sqrt(6 / (layer.weight[0].numel() + layer.weight[:, 0].numel()))
            assert not layer.bias.any()
            assert 0.95 * bound < layer.weight.abs().max() <= bound
    wide = KerasResNet20v2().blocks[5].residual[5].weight.detach()  # (128, 128, 3, 3)
    deviation = math.sqrt(2 / (9 * 128))
    assert wide.std() == pytest.approx(deviation, rel=0.01)
    assert wide.abs().max() <= 2 * deviation / 0.8796
    torch.manual_seed(0)
    assert he_normal_(torch.empty(1000, 50)).std() == pytest.approx(math.sqrt(2 / 50), rel=0.02)


@pytest.mark.parametrize("name", ["keras_resnet34", "keras_resnet20v2"])
def test_keras_networks_take_other_sizes_and_precisions(name):
    network = encoder(name, size=48).double().train()
    embedding = network(torch.rand(2, 3, 48, 48, dtype=torch.float64))
    assert embedding.shape == (2, network.num_features) and embedding.dtype == torch.float64


@pytest.mark.parametrize(
    "ours, theirs, shape",
    [(KerasBatchNorm1d, nn.BatchNorm1d, ()), (KerasBatchNorm2d, nn.BatchNorm2d, (3, 3))],
)
def test_keras_normalisation_differs_from_torch_in_the_running_variance_only(ours, theirs, shape):
    ours, theirs = ours(4).double(), theirs(4, eps=1e-3, momentum=0.01).double()
    x = torch.randn(6, 4, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    for layer, leaf in zip((ours, theirs), inputs, strict=True):
        twice = layer(leaf) + layer(2 * leaf)  # two views, one backward
        twice.square().sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    rows = x.transpose(0, 1).flatten(1)
    population = rows.var(1, correction=0)
    torch.testing.assert_close(ours.running_var, 0.99 * (0.99 + 0.01 * population) + 0.01 * 4 * population)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert ours.num_batches_tracked == 2


def shorthand(network: nn.Sequential) -> str:
    names = {nn.ReLU: "relu", nn.BatchNorm1d: "norm", KerasBatchNorm1d: "keras"}
    words = []
    for layer in network:
        if isinstance(layer, nn.Linear):
            words.append(f"{layer.in_features}-{layer.out_features}{'+b' * (layer.bias is not None)}")
        else:
            plain = "~" * (isinstance(layer, nn.BatchNorm1d) and not layer.affine)
            words.append(names[type(layer)] + plain)
    return " ".join(words)


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ({"widths": (5, 8, 8, 8)}, "5-8 norm relu 8-8 norm relu 8-8"),  # Barlow Twins
        ({"widths": (5, 8, 8, 8), "bias": True}, "5-8+b norm relu 8-8+b norm relu 8-8+b"),  # solo-learn
        ({"widths": (5, 8, 8), "last_norm": "plain"}, "5-8 norm relu 8-8 norm~"),  # SimSiam, CIFAR-10
        ({"widths": (8, 2, 8), "last_bias": True}, "8-2 norm relu 2-8+b"),  # SimSiam's predictor
        ({"widths": (5, 3)}, "5-3"),
    ],
)
def test_projectors_and_predictors(arguments, expected):
    assert shorthand(mlp(**arguments)) == expected


def test_projectors_and_predictors_of_keras():
    assert shorthand(keras_projector((5, 8, 8), bias=True)) == "5-8+b keras relu 8-8+b"  # Barlow Twins
    assert shorthand(keras_projector((5, 8, 8), last_norm=True)) == "5-8 keras relu 8-8 keras"  # SimSiam
    assert shorthand(keras_predictor(8, 2)) == "8-2 relu keras 2-8+b"
    frozen = [*keras_projector((5, 8, 8), last_norm=True, frozen=True), *keras_predictor(8, 2, frozen=True)]
    assert [layer.training for layer in frozen if isinstance(layer, KerasBatchNorm1d)] == [False] * 3
    with pytest.raises(RecipeError, match="predictor is 0"):
        keras_predictor(8, 0)


@pytest.mark.parametrize("widths", [(5,), (5, 0)])
def test_a_projector_has_a_width(widths):
    with pytest.raises(RecipeError, match="needs widths of 1 or more"):
        mlp(widths)


@pytest.mark.parametrize(
    ("name", "size", "stem"),
    [("resnet18", 64, "small"), ("resnet18", 96, "standard"), ("convnext_atto", 32, "standard")],
)
def test_folders_that_do_not_say_their_stem_load_as_they_were_trained(name, size, stem, tmp_path):
    """Before the stem was recorded, "auto" was the small one up to 64 pixels."""
    network = encoder(name, stem, size).eval()
    folder = save_encoder(tmp_path, network, Preprocessing(size, (0.5,) * 3, (0.5,) * 3))
    config = json.loads((folder / "config.json").read_text())
    config["diptych"]["encoder"]["stem"] = "auto"
    (folder / "config.json").write_text(json.dumps(config))
    trained, x = load(folder), torch.rand(2, 3, size, size)
    assert torch.equal(trained.encoder(x), network(x)) and trained.built_with["stem"] == stem


@pytest.mark.parametrize(("size", "stem"), [(32, "small"), (64, "small-stride2"), (96, "standard"), (None, "standard")])
def test_the_stem_that_auto_takes_is_remembered(size, stem):
    assert built_with(encoder("resnet18", size=size, **TINY))["stem"] == stem
    assert built_with(encoder("keras_resnet20v2", size=size))["stem"] == "standard"


def test_options_that_a_network_does_not_take():
    options = {"stem": "small", "channels": [8, 8, 8, 8], "drop_path_rate": 0.1, "size": 32, "pretrained": False}
    assert not_taken("convnext_atto", options) == ["stem", "channels"]
    assert not_taken("resnet34", options) == [] == not_taken("no_such_network", options)
    assert not_taken("keras_resnet34", options) == ["stem", "channels", "drop_path_rate"]
    assert not_taken("keras_resnet34", {"pretrained": True, "stem": "standard"}) == ["pretrained"]
