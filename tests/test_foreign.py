"""Published checkpoints, made here with their exact keys: every tensor finds its place, a hostile file runs nothing."""

import argparse
import hashlib
import json
import os

import pytest
import torch
import torchvision
from torch import nn
from torchvision.transforms.v2 import functional as reference

from diptych.base.errors import CheckpointError, OutputError
from diptych.networks.encoders import encoder
from diptych.networks.inference import prepare
from diptych.runs.encoder import Preprocessing, load, save_encoder
from diptych.runs.encoder_config import preprocessing_of
from diptych.runs.foreign import (
    CIFAR_MEAN_STD,
    IMAGENET_MEAN_STD,
    import_weights,
    read_torch_file,
    recognise,
    split_parts,
)

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


def named(name: str, small: bool = False) -> dict[str, torch.Tensor]:
    """A ResNet's tensors under torchvision's names, each filled with a number of its own and one number large."""
    with torch.device("meta"):
        network = getattr(torchvision.models, name)()
        network.fc = nn.Identity()
        if small:
            network.conv1 = nn.Conv2d(3, 64, 3, bias=False)
    return {
        key: torch.tensor(float(i)).expand(tensor.shape) for i, (key, tensor) in enumerate(network.state_dict().items())
    }


def heads(**widths: int) -> dict[str, torch.Tensor]:
    """Three tensors of a projector and the like: `projector.0.weight`, ..."""
    return {f"{name}.{i}.weight": torch.zeros(width, 2) for name, width in widths.items() for i in (0, 1, 3)}


def under(prefix: str, tensors: dict) -> dict:
    return {prefix + key: value for key, value in tensors.items()}


def numbered(tensors: dict, layers_from: int) -> dict:
    numbers = {"conv1": 0, "bn1": 1} | {f"layer{i}": layers_from + i - 1 for i in (1, 2, 3, 4)}
    renamed = {}
    for key, value in tensors.items():
        first, _, rest = key.partition(".")
        renamed[f"{numbers[first]}.{rest}"] = value
    return renamed


def barlow_twins(net):
    model = under("module.", under("backbone.", net) | heads(projector=4) | {"bn.running_mean": torch.zeros(2)})
    return {"epoch": 7, "model": model, "optimizer": {"state": {0: {"mu": torch.zeros(3)}}, "param_groups": []}}


def simsiam(net):
    model = under("module.encoder.", net | heads(fc=4) | {"fc.6.bias": torch.zeros(2)})
    return {"epoch": 100, "arch": "resnet50", "state_dict": model | heads(**{"module.predictor": 4}), "optimizer": {}}


def lightning(state):
    return {"epoch": 3, "global_step": 9, "pytorch-lightning_version": "2.1.2", "state_dict": state}


def solo(net):
    rest = heads(projector=4, predictor=4) | {"classifier.weight": torch.zeros(10, 512)}
    return lightning(under("backbone.", net) | rest)


def lightly(net):
    return lightning(under("backbone.", net) | heads(**{"projection_head.layers": 4, "prediction_head.layers": 3}))


def generator(net):
    inner = {key.replace("downsample", "shortcut"): value for key, value in numbered(net, 2).items()}
    return lightning(under("backbone.", inner) | heads(projection_head=4))


LAYOUTS = {
    "encoder alone": (lambda net: dict(net), "resnet50", False, "standard", {}),
    "Barlow Twins": (barlow_twins, "resnet50", False, "standard",
                     {"projector": 3, "normalization of the projections": 1}),
    "SimSiam": (simsiam, "resnet50", False, "standard", {"projector": 4, "predictor": 3}),
    "solo-learn": (solo, "resnet18", True, "small-padded", {"projector": 3, "predictor": 3, "classifier": 1}),
    "lightly": (lightly, "resnet18", False, "standard", {"projector": 3, "predictor": 3}),
    "lightly, numbered": (lambda net: lightly(numbered(net, 4)), "resnet34", True, "small",
                          {"projector": 3, "predictor": 3}),
    "lightly, ResNetGenerator": (generator, "resnet18", True, "small", {"projector": 3}),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_tensor_finds_its_place(layout, tmp_path):
    made, name, small, stem, groups = LAYOUTS[layout]
    net = named(name, small)
    torch.save(made(net), tmp_path / "file")
    found = split_parts(read_torch_file(tmp_path / "file"), tmp_path / "file")
    assert found.name == layout
    assert {key: float(value.flatten()[0]) for key, value in found.weights.items()} == {
        key: float(value.flatten()[0]) for key, value in net.items()
    }
    assert {group: len(keys) for group, keys in found.left_out.items()} == groups and not found.unexpected
    assert recognise(found, tmp_path) == (name, stem)


@pytest.mark.parametrize("name", RESNETS)
def test_the_network_is_recognised(name, tmp_path):
    assert recognise(split_parts(named(name), tmp_path), tmp_path) == (name, "standard")


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_outputs_are_those_of_torchvision(name, tmp_path):
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, name)()
    for module in theirs.modules():  # as after training: statistics of their own
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    torch.save(theirs.state_dict(), tmp_path / f"{name}.pth")
    made = import_weights(tmp_path / f"{name}.pth", tmp_path / "encoder")
    theirs.fc = nn.Identity()
    theirs.eval()
    ours = load(tmp_path / "encoder")
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        assert torch.equal(ours.encoder(images), theirs(images))
    assert made.origin["left_out"] == {"classifier": ["fc.weight", "fc.bias"]}
    assert made.origin["missing"] == made.origin["unexpected"] == []
    assert ours.preprocessing == Preprocessing(224, *IMAGENET_MEAN_STD, 256)

    config = json.loads((tmp_path / "encoder" / "config.json").read_text())
    data = (tmp_path / f"{name}.pth").read_bytes()
    assert config["diptych"]["origin"]["sha256"] == hashlib.sha256(data).hexdigest()
    assert (
        config["diptych"]["origin"]["bytes"] == len(data) and config["diptych"]["origin"]["layout"] == "encoder alone"
    )
    assert config["pretrained_cfg"]["crop_pct"] == 0.875
    text = str(made)
    assert "fc.weight" in text and "shorter side to 256" in text and f"{name}, stem standard" in text


def test_a_small_stem_has_small_images(tmp_path):
    """solo-learn's CIFAR networks pad by 2: with another padding every embedding would differ."""
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18()
    theirs.conv1, theirs.maxpool, theirs.fc = nn.Conv2d(3, 64, 3, 1, 2, bias=False), nn.Identity(), nn.Identity()
    torch.save(solo(theirs.state_dict()), tmp_path / "last.ckpt")
    made = import_weights(tmp_path / "last.ckpt", tmp_path / "encoder")
    ours, theirs = load(tmp_path / "encoder"), theirs.eval()
    assert ours.preprocessing == Preprocessing(32, *CIFAR_MEAN_STD)
    pixels = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        wanted = theirs(reference.normalize(pixels / 255, *CIFAR_MEAN_STD))
    torch.testing.assert_close(ours(pixels), wanted, atol=1e-5, rtol=1e-5)
    assert "padding 2" in str(made) and "classifier.weight" in str(made) and "projector.0.weight" in str(made)
    told = import_weights(tmp_path / "last.ckpt", tmp_path / "told", 48, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    assert told.preprocessing == Preprocessing(48, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


def test_resize_then_crop_is_torchvisions():
    pixels = torch.randint(256, (2, 3, 300, 420), dtype=torch.uint8)
    wanted = reference.resize(pixels.float() / 255, [256], antialias=True)
    wanted = reference.normalize(reference.center_crop(wanted, [224, 224]), *IMAGENET_MEAN_STD)
    torch.testing.assert_close(prepare(pixels, *IMAGENET_MEAN_STD, 224, 256), wanted, atol=1e-5, rtol=1e-5)
    square = pixels[:, :, :256, :256]  # as `images(..., size=256)` gives them: a crop and nothing else
    middle = square[:, :, 16:240, 16:240]
    torch.testing.assert_close(prepare(square, (0, 0, 0), (1, 1, 1), 224, 256), middle / 255)
    assert prepare(pixels[:, :, :224, :224], *IMAGENET_MEAN_STD, 224, 256).shape == (2, 3, 224, 224)


def test_folders_of_before_resize_still_load(tmp_path):
    network = encoder("resnet18", "small", 32, channels=(8, 8, 8, 8))
    save_encoder(tmp_path / "old", network, Preprocessing(32))
    config = json.loads((tmp_path / "old" / "config.json").read_text())
    assert config["pretrained_cfg"]["crop_pct"] == 1.0 and "origin" not in config["diptych"]
    del config["diptych"]["preprocessing"]["resize"]
    (tmp_path / "old" / "config.json").write_text(json.dumps(config))
    assert load(tmp_path / "old").preprocessing == Preprocessing(32)
    assert preprocessing_of(config["diptych"]).opened == 32


class Hostile:
    """Unpickled by a careless reader, it makes the file `canary`."""

    def __init__(self, canary):
        self.canary = str(canary)

    def __reduce__(self):
        return os.mkdir, (self.canary,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_hostile_file_runs_nothing(tmp_path, zipped):
    canary = tmp_path / "canary"
    content = {"state_dict": named("resnet18"), "args": Hostile(canary)}
    torch.save(content, tmp_path / "evil.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"evil.pth holds more than tensors.*posix\.mkdir") as caught:
        import_weights(tmp_path / "evil.pth", tmp_path / "encoder")
    assert not canary.exists() and not (tmp_path / "encoder").exists()
    assert "\n" not in str(caught.value) and "weights_only" not in str(caught.value)
    torch.load(tmp_path / "evil.pth", weights_only=False)  # the canary does sing
    assert canary.exists()


def test_a_file_that_wants_a_class_is_told_which(tmp_path):
    torch.save({"args": argparse.Namespace(lr=1), "model": {}}, tmp_path / "checkpoint.pth")
    with pytest.raises(CheckpointError, match=r"building its 'argparse\.Namespace'.*save the tensors alone"):
        read_torch_file(tmp_path / "checkpoint.pth")


def test_the_older_file_layout_is_read(tmp_path):
    torch.save(named("resnet18"), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert recognise(split_parts(read_torch_file(tmp_path / "old.pth"), tmp_path), tmp_path) == ("resnet18", "standard")


def test_damaged_files_are_named(tmp_path):
    torch.save(under("module.encoder.", {"conv1.weight": torch.zeros(64, 3, 7, 7)}), tmp_path / "whole")
    data = (tmp_path / "whole").read_bytes()
    for cut in (0, 1, 10, len(data) // 2, len(data) - 30):
        (tmp_path / "cut").write_bytes(data[:cut])
        with pytest.raises(CheckpointError, match="cut is damaged, or was not written by torch.save"):
            read_torch_file(tmp_path / "cut")
    for text in (b"hello", b"<html>404</html>", b"\x80\x02.", b"\x00" * 100):
        (tmp_path / "cut").write_bytes(text)
        with pytest.raises(CheckpointError, match="cut "):
            read_torch_file(tmp_path / "cut")
    for path, word in ((tmp_path / "nowhere", "missing"), (tmp_path, "a folder")):
        with pytest.raises(CheckpointError, match=word):
            read_torch_file(path)
    torch.save(torch.zeros(3), tmp_path / "tensor")
    with pytest.raises(CheckpointError, match="holds a Tensor"):
        read_torch_file(tmp_path / "tensor")


def test_what_is_no_known_resnet_is_refused(tmp_path):
    file = tmp_path / "x.pth"
    net = named("resnet18")
    three = {key: value for key, value in net.items() if not key.startswith("layer4")}
    deep = {key: value for key, value in net.items() if key != "conv1.weight"}
    five = net | {"conv1.weight": torch.zeros(64, 3, 5, 5)}
    for tensors, message in (
        ({"blocks.0.weight": torch.zeros(1)}, "holds no ResNet .* blocks.0.weight"),
        ({}, "holds no ResNet .* nothing"),
        (three, r"\(2, 2, 2, 0\) basic blocks; known are resnet18"),
        (deep, "without conv1"),
        (five, r"conv1.weight is \(64, 3, 5, 5\)"),
    ):
        with pytest.raises(CheckpointError, match=message):
            recognise(split_parts(tensors, file), file)
    assert split_parts(net | {"queue": torch.zeros(1)}, file).unexpected == ["queue"]


def test_no_tensor_of_the_encoder_is_guessed_or_ignored(tmp_path):
    net = named("resnet18")
    lacking = {key: value for key, value in net.items() if key != "layer2.0.conv1.weight"}
    wide = net | {"layer1.0.conv1.weight": torch.zeros(128, 64, 3, 3)}
    more = net | {"layer1.0.se.weight": torch.zeros(1)}
    file = tmp_path / "x.pth"
    for tensors, message in (
        (lacking, r"missing layer2.0.conv1.weight \(1\)"),
        (wide, "another shape layer1.0.conv1.weight"),
        (more, "unexpected layer1.0.se.weight"),
    ):
        torch.save(tensors, file)
        with pytest.raises(CheckpointError, match=f"x.pth, read as a resnet18, does not fit.*{message}"):
            import_weights(file, tmp_path / "encoder", 32)
    assert not (tmp_path / "encoder").exists()
    torch.save({key: value for key, value in net.items() if "num_batches" not in key}, file)
    made = import_weights(file, tmp_path / "encoder", 64)
    assert len(made.origin["missing"]) == 20 and made.preprocessing.resize == 73
    with pytest.raises(OutputError, match="not empty"):
        import_weights(file, tmp_path / "encoder")
