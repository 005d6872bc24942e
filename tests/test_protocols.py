"""Protocols by name: each does what its name says, and says so."""

import math

import pytest
import torch
import torch.nn.functional as F
from tiny import TinyEncoder, tiny_images, tiny_method, tiny_run

from diptych.base.errors import CheckpointError, RecipeError
from diptych.base.random_at import random_at
from diptych.base.strict_yaml import read, write
from diptych.downstream import keras
from diptych.downstream.classifier import linear_head
from diptych.downstream.evaluate import evaluate
from diptych.downstream.frozen import Subject, Task, require_unmoved
from diptych.downstream.keras import projector_of
from diptych.downstream.protocols import PROTOCOLS
from diptych.methods import BarlowTwins
from diptych.runs import checkpoints
from diptych.runs.encoder import Preprocessing, load

EXPECTED = Preprocessing(12, (0.5,) * 3, (0.25,) * 3)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose recipe tells how its projector was built, as those of the command line do."""
    made = tiny_run(tmp_path_factory.mktemp("runs") / "run", epochs=1)
    recipe = read(made.folder / "recipe.yaml")
    recipe["method"] = {"name": "barlow_twins", "projector": [16, 16]}
    (made.folder / "recipe.yaml").write_text(write(recipe))
    return made


@pytest.fixture
def task():
    photos = tiny_images()
    names = [photos.classes[label] for label in photos.labels]
    return Task(photos, photos, names, names, EXPECTED, torch.device("cpu"))


def subject_of(width: int = 6, count: int = 48, **rest) -> Subject:
    z = torch.randn(count, width, generator=random_at(5, "vectors")) + 3 * F.one_hot(torch.arange(count) % 4, width)
    return Subject("untrained", z, z.clone(), rest.get("network"), rest.get("folder"))


def lamb_by_hand(z, y, weight, bias, epochs, lr=1e-3, l2=0.02):
    """The published probe written out: cross-entropy + 0.02 |w|^2, LAMB of TensorFlow Addons, without any decay."""
    state = {name: [torch.zeros_like(p), torch.zeros_like(p)] for name, p in (("w", weight), ("b", bias))}
    n, step = len(z), 0
    for _ in range(epochs):  # one batch an epoch here: the order of its rows does not matter
        step += 1
        error = (z @ weight.T + bias).softmax(1) - F.one_hot(y, len(bias))
        gradients = {"w": error.T @ z / n + 2 * l2 * weight, "b": error.mean(0)}
        for name, parameter in (("w", weight), ("b", bias)):
            m, v = state[name]
            m.mul_(0.9).add_(0.1 * gradients[name])
            v.mul_(0.999).add_(0.001 * gradients[name] ** 2)
            update = (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-6)
            size = parameter.norm()
            ratio = size / update.norm() if size > 0 else 1.0
            parameter -= lr * ratio * update
    return weight, bias


def test_keras_dense_is_its_formula(task, monkeypatch):
    subject, kept = subject_of(), {}

    def keep(*arguments, **rest):
        kept["head"] = linear_head(*arguments, **rest)
        kept["start"] = kept["head"].weight.detach().clone()
        return kept["head"]

    monkeypatch.setattr(keras, "linear_head", keep)
    found = keras.linear_keras_embedding(subject, task)
    start = kept["start"].double()
    bound = math.sqrt(6 / (6 + 4))  # Glorot
    assert start.abs().max() <= bound and start.abs().max() > 0.7 * bound
    y = torch.arange(48) % 4
    weight, bias = lamb_by_hand(subject.train.double(), y, start.clone(), torch.zeros(4).double(), 35)
    assert torch.allclose(kept["head"].weight.double(), weight, atol=1e-5)
    assert torch.allclose(kept["head"].bias.double(), bias, atol=1e-5)
    without, _ = lamb_by_hand(subject.train.double(), y, start.clone(), torch.zeros(4).double(), 35, l2=0.01)
    assert not torch.allclose(without, weight, atol=1e-4), "this test would not see another penalty"
    assert (
        found.details["on"] == "embedding"
        and found.details["l2"] == 0.02
        and found.protocol == "linear-keras-embedding"
    )


def test_whole_batches_only(task, monkeypatch):
    sizes = []
    monkeypatch.setattr(keras, "fit", lambda head, optimizer, batches, *rest: sizes.extend(
        [len(y) for _, y in batches(0)] + [rest[1]]))  # fmt: skip
    count = 1100
    names = [f"class {i % 4}" for i in range(count)]
    subject = subject_of(count=count)
    keras.linear_keras_embedding(subject, Task(task.train, task.test, names, names, EXPECTED, task.device))
    assert sizes == [512, 512, 70]


def test_the_projector_is_the_trained_one(run, tmp_path):
    method = tiny_method()
    tensors = checkpoints.read_tensors(checkpoints.newest(run.folder / "checkpoints") / "model.safetensors")
    method.load_state_dict(tensors)
    z = torch.randn(5, 8, generator=random_at(0, "z"))
    projector = projector_of(run.folder, 8)
    assert not projector.training
    assert torch.equal(projector(z), method.eval().projector(z))
    assert not torch.allclose(projector(z), BarlowTwins(TinyEncoder(), (16, 16)).eval().projector(z))
    with pytest.raises(CheckpointError, match="linear-keras-embedding"):
        projector_of(tmp_path, 8)
    plain = tiny_run(tmp_path / "plain", epochs=1)
    with pytest.raises(RecipeError, match="linear-keras-embedding"):
        projector_of(plain.folder, 8)
    recipe = read(plain.folder / "recipe.yaml") | {"method": {"name": "barlow_twins", "another": 1}}
    (plain.folder / "recipe.yaml").write_text(write(recipe))
    with pytest.raises(RecipeError, match="recipe.yaml does not tell how its projector was built"):
        projector_of(plain.folder, 8)


def test_frozen_protocols_learn_and_leave_the_encoder(task, monkeypatch):
    torch.manual_seed(3)
    encoder = TinyEncoder().eval()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    subject = subject_of(width=8, network=encoder)
    for name, details in {
        "linear-sgd": {"lr": 0.3, "weight_decay": 1e-6, "epochs": 100, "batch_size": 256},
        "linear-keras-simsiam": {"lr": 0.03, "weight_decay": 0.0, "epochs": 5, "batch_size": 128},
    }.items():
        found = PROTOCOLS[name](subject, task)
        assert found.protocol == name and details.items() <= found.details.items()
        assert found.details["reported"] == "last epoch" and found.details["on"] == "embedding"
        assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())
        assert PROTOCOLS[name](Subject("raw pixels", subject.train, subject.test, None, None), task) is None
        if name == "linear-sgd":
            assert found.accuracy > 0.7
    encoder[1].running_mean += 1e-7
    with pytest.raises(RuntimeError, match="frozen encoder has moved"):
        require_unmoved(before, encoder)


@pytest.mark.slow
def test_every_protocol_stands_in_the_table(run):
    photos, network = tiny_images(), TinyEncoder()
    trained = load(run, network)
    lines = evaluate(trained, photos, photos, protocols=list(PROTOCOLS), device="cpu", show=False).lines()
    found = {(line["protocol"], line["subject"]): line for line in lines if "protocol" in line}
    everyone = {"chance", "raw pixels", "untrained", "trained"}
    expected = {"knn": everyone, "linear": everyone, "linear-keras-embedding": everyone}
    expected |= {"linear-keras": {"chance", "trained"}, "finetune": {"chance", "from scratch", "trained"}}
    expected |= {name: everyone - {"raw pixels"} for name in ("linear-keras-simsiam", "linear-sgd")}
    assert set(found) == {(name, subject) for name, subjects in expected.items() for subject in subjects}
    for (protocol, subject), line in found.items():
        if subject != "chance":
            assert line["details"]["as_in"], protocol
    assert found["linear-keras", "trained"]["details"]["on"] == "projection"
    assert found["linear-keras", "trained"]["details"]["width"] == 16
    order = [line["protocol"] for line in lines if "protocol" in line]
    assert order == sorted(order, key=list(PROTOCOLS).index)
    with pytest.raises(RecipeError, match="linear-sgd"):
        evaluate(trained, photos, photos, protocols=["probe"], device="cpu", show=False)
