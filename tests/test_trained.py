"""A trained encoder is one object: what it carries, what takes it, and what stays as it was."""

import copy
import json

import numpy as np
import pytest
import torch
from tiny import TinyEncoder, tiny_images, tiny_run
from torch import nn

import diptych
from diptych import Preprocessing, Trained, load
from diptych.base.errors import CheckpointError, DataError, RecipeError
from diptych.downstream.classify import classify
from diptych.embeddings.store import load_embeddings
from diptych.networks.encoders import encoder
from diptych.networks.inference import embeddings
from diptych.runs.encoder import save_encoder
from diptych.runs.run import Run

QUIET = {"device": "cpu", "show": False}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """Trained is a module of the user's own."""
    return tiny_run(tmp_path_factory.mktemp("runs") / "run", epochs=1)


def pixels(count: int = 5, size: int = 12) -> torch.Tensor:
    return torch.randint(256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(size))


def test_it_carries_what_using_it_takes(run, tmp_path):
    trained = load(run, TinyEncoder())
    assert isinstance(trained.encoder, TinyEncoder) and not trained.encoder.training
    assert trained.preprocessing == Preprocessing(12, (0.5,) * 3, (0.25,) * 3)
    assert trained.built_with is None and trained.folder == run.folder
    network = encoder("resnet18", "small", 16, channels=(4, 4, 4, 4))
    folder = save_encoder(tmp_path / "encoder", network, Preprocessing(16))
    trained = load(folder)
    assert trained.built_with == {"name": "resnet18", "stem": "small", "size": 16, "channels": [4, 4, 4, 4]}
    assert trained.folder == folder and trained.untrained() is None
    assert Trained(network, Preprocessing(16)).built_with["channels"] == (4, 4, 4, 4), (
        "known of a network in memory too"
    )


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_calling_it_embeds(run, precision):
    trained, images = load(run, TinyEncoder()), pixels()
    wanted = embeddings(trained.encoder, images, trained.preprocessing, precision=precision)
    assert wanted.shape == (5, 8) and wanted.dtype == torch.float32
    for given in (images, images.numpy(), iter(images.split(5)), [images]):
        assert torch.equal(trained(given, precision=precision), wanted)
    assert torch.equal(trained(images, precision="float32"), wanted) == (precision == "float32")
    mixed = trained([pixels(2), pixels(3, 20)])  # images of two sizes, in batches of their own
    torch.testing.assert_close(mixed[2:], trained(pixels(3, 20)))
    with pytest.raises(DataError, match="uint8"):
        trained(images.float())
    with pytest.raises(DataError, match="no images"):
        trained(np.zeros((0, 3, 12, 12), dtype=np.uint8))


def test_a_users_module_stays_as_it_is(run):
    own = TinyEncoder()
    own[1].eval()
    before, attributes = copy.deepcopy(own.state_dict()), set(vars(own))
    trained = load(run, own)
    untrained = trained.untrained()
    diptych.evaluate(trained, tiny_images(), tiny_images(), **QUIET)
    assert all(torch.equal(value, before[name]) for name, value in own.state_dict().items())
    assert set(vars(own)) == attributes and own.training and not own[1].training
    after, start = (one.encoder.state_dict()["0.weight"] for one in (trained, untrained))
    assert not torch.equal(after, start) and not torch.equal(after, before["0.weight"])


def test_every_use_takes_it_in_place_of_a_run(run, tmp_path):
    """The module is given once; what a run keeps it keeps, and the numbers are those of the encoder in memory."""
    trained, photos = load(run, TinyEncoder()), tiny_images()
    vectors = diptych.embed(trained, photos, out=tmp_path / "vectors", **QUIET)
    assert torch.equal(vectors, trained(photos.pixels()))
    assert load_embeddings(tmp_path / "vectors").meta["encoder"] == str(run.folder)
    lines = len((run.folder / "evaluations.jsonl").read_text().splitlines())
    evaluation = diptych.evaluate(trained, photos, photos, **QUIET)
    assert {score.subject for score in evaluation.scores} == {"chance", "raw pixels", "untrained", "trained"}
    written = (run.folder / "evaluations.jsonl").read_text().splitlines()[lines:]
    assert [json.loads(line) for line in written] == json.loads(json.dumps(evaluation.lines()))
    assert classify(trained, photos, photos, **QUIET).held_out is not None
    tuned = diptych.finetune(trained, photos, photos, labels=1.0, epochs=1, batch_size=16, **QUIET)
    assert [score.subject for score in tuned.scores] == [
        "chance",
        "raw pixels",
        "trained, frozen",
        "from scratch",
        "trained",
    ] and tuned.diagnosis is None
    assert torch.equal(trained(photos.pixels()), vectors), "its weights stay as they are"


def test_a_network_without_a_folder_is_used_alike(tmp_path):
    torch.manual_seed(0)
    trained, photos = Trained(TinyEncoder(), Preprocessing(12)), tiny_images()
    diptych.embed(trained, photos, out=tmp_path / "vectors", **QUIET)
    assert load_embeddings(tmp_path / "vectors").meta["encoder"] == "TinyEncoder"
    evaluation = diptych.evaluate(trained, photos, photos, **QUIET)
    assert {score.subject for score in evaluation.scores} == {"chance", "raw pixels", "trained"}
    assert evaluation.diagnosis is not None
    assert classify(trained, photos, photos, **QUIET).labelled == 48
    with pytest.raises(CheckpointError, match="the initial weights of this TinyEncoder"):
        diptych.finetune(trained, photos, photos, labels=1.0, epochs=1, **QUIET)
    known = Trained(encoder("resnet18", "small", 12, channels=(4, 4, 4, 4)), Preprocessing(12))
    tuned = diptych.finetune(known, photos, photos, labels=1.0, epochs=1, batch_size=16, **QUIET)
    assert tuned.score("finetune", "from scratch").train_images == 48


def test_a_module_that_must_be_passed_is_asked_for(run):
    for use in (lambda: load(run), lambda: diptych.embed(run, tiny_images(), **QUIET)):
        with pytest.raises(
            CheckpointError, match=r"custom TinyEncoder: pass the module, load\(.*--encoder MODULE:FUNCTION"
        ):
            use()
    with pytest.raises(CheckpointError):
        load(run, nn.Linear(3, 3))


def test_evaluation_embeds_in_the_precision_asked_for(run):
    trained, photos = load(run, TinyEncoder()), tiny_images()
    options = {"protocols": ["knn"], "baselines": False, **QUIET}
    full, same, half = (
        diptych.evaluate(trained, photos, photos, precision=precision, **options).diagnosis.readings
        for precision in ("float32", "float32", "bfloat16")
    )
    assert full == same != half and full["spread"] == pytest.approx(half["spread"], rel=0.02)
    with pytest.raises(RecipeError, match="float32, tf32, bfloat16"):
        diptych.evaluate(trained, photos, photos, precision="float16", **options)
