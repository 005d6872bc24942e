"""What cannot work is refused before the first image is embedded: hours earlier than at the end."""

import os

import numpy as np
import pytest
from PIL import Image
from test_cli import diptych as command
from tiny import TinyEncoder, tiny_images, tiny_run

import diptych
from diptych.base import files
from diptych.base.errors import CheckpointError, DataError, OutputError, RecipeError
from diptych.data.images import Images, images
from diptych.data.squares import Squares
from diptych.downstream.classify import classify
from diptych.networks import inference
from diptych.runs.encoder import Preprocessing, Trained, load, save_encoder
from diptych.views import View

QUIET = {"device": "cpu", "show": False}


@pytest.fixture
def batches(monkeypatch) -> list[int]:
    """The sizes of all batches of images that are prepared for an encoder, flattened, or turned into views."""
    sizes: list[int] = []
    prepare, apply = inference.prepare, View.apply

    def count(pixels, *arguments):
        sizes.append(len(pixels))
        return prepare(pixels, *arguments)

    def count_views(view, pixels, draw):
        sizes.append(len(pixels))
        return apply(view, pixels, draw)

    monkeypatch.setattr(inference, "prepare", count)
    monkeypatch.setattr(View, "apply", count_views)
    return sizes


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("runs") / "run", epochs=1)


@pytest.fixture
def trained(run) -> Trained:
    return load(run, TinyEncoder())


def unlabelled():
    return images(tiny_images().pixels().permute(0, 2, 3, 1).numpy())


def one_class():
    return images(tiny_images().pixels().permute(0, 2, 3, 1).numpy(), labels=np.zeros(48, dtype=np.int64))


def other_class():
    return images(tiny_images().pixels().permute(0, 2, 3, 1).numpy(), labels=np.arange(48) % 4 + 1)


UNFIT = [
    (unlabelled, tiny_images, "no labels"),
    (tiny_images, unlabelled, "no labels"),
    (one_class, one_class, "two classes"),
    (tiny_images, other_class, "classes that the training set lacks"),
]


def test_the_count_sees_what_is_embedded(trained, batches):
    """Without this the tests below could not fail."""
    diptych.embed(trained, tiny_images(), **QUIET)
    assert batches == [48]
    diptych.evaluate(trained, tiny_images(), tiny_images(), protocols=["knn"], **QUIET)
    assert batches == [48] * 14  # six for two views of the test images, by two encoders; one resized for copies
    diptych.finetune(trained, tiny_images(), tiny_images(), labels=1.0, epochs=1, batch_size=48, **QUIET)
    assert len(batches) == 23


@pytest.mark.parametrize(("train", "test", "message"), UNFIT)
@pytest.mark.parametrize("baselines", [True, False])
def test_evaluate_checks_labels_first(trained, batches, train, test, message, baselines):
    with pytest.raises(DataError, match=message):
        diptych.evaluate(trained, train(), test(), baselines=baselines, **QUIET)
    assert batches == []


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"protocols": ["knn", "probe"]}, RecipeError, "no protocol 'probe'"),
        ({"protocols": ["linear-keras"]}, RecipeError, "recipe.yaml does not tell"),
        ({"k": 0}, RecipeError, "k is 0"),
        ({"temperature": 0.0}, RecipeError, "temperature"),
        ({"precision": "float16"}, RecipeError, "float16"),
        ({"device": "cuda:99"}, RecipeError, "cuda:99"),
    ],
)
def test_evaluate_checks_its_arguments_first(trained, batches, options, error, message):
    with pytest.raises(error, match=message):
        diptych.evaluate(trained, tiny_images(), tiny_images(), **QUIET | options)
    assert batches == []


def test_a_protocol_that_needs_more_than_embeddings_says_so_first(batches):
    network = TinyEncoder()
    network.num_features = None
    for protocol, message in (("linear-sgd", "no num_features"), ("linear-keras", "no checkpoint")):
        with pytest.raises((RecipeError, CheckpointError), match=message):
            diptych.evaluate(
                Trained(network, Preprocessing(12)), tiny_images(), tiny_images(), protocols=[protocol], **QUIET
            )
    assert batches == []


@pytest.mark.parametrize("use", [diptych.evaluate, diptych.finetune])
def test_a_run_that_keeps_nothing_is_refused_first(trained, batches, use, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: path != trained.folder)
    with pytest.raises(OutputError, match="read-only"):
        use(trained, tiny_images(), tiny_images(), **QUIET)
    assert batches == []


@pytest.mark.parametrize(("train", "test", "message"), UNFIT)
@pytest.mark.parametrize("use", [diptych.evaluate, diptych.finetune])
def test_labels_are_checked_before_an_image_is_read(trained, batches, use, train, test, message, monkeypatch):
    sets = train(), test()
    monkeypatch.setattr(Images, "prepare", lambda *_: batches.append(1))
    monkeypatch.setattr(Images, "read", lambda *_: batches.append(1))
    with pytest.raises(DataError, match=message):
        use(trained, *sets, **QUIET)
    assert batches == []


def test_finetune_checks_the_number_of_labels_first(trained, batches, monkeypatch):
    monkeypatch.setattr(Images, "prepare", lambda *_: batches.append(1))
    with pytest.raises(DataError, match="fewer than the 13 requested"):
        diptych.finetune(trained, tiny_images(), tiny_images(), labels="13pc", **QUIET)
    assert batches == []


@pytest.mark.parametrize(("train", "message"), [(unlabelled, "no labels"), (one_class, "two classes")])
def test_classify_checks_labels_first(trained, batches, train, message):
    with pytest.raises(DataError, match=message):
        classify(trained, tiny_images(), train(), **QUIET)
    assert batches == []


def test_embed_refuses_an_occupied_folder_first(trained, batches, tmp_path):
    (tmp_path / "vectors").mkdir()
    (tmp_path / "vectors" / "mine").write_text("mine")
    for out in (tmp_path / "vectors", tmp_path / "vectors" / "mine"):
        with pytest.raises(OutputError, match="exists and is not empty; choose another --out or remove it") as end:
            diptych.embed(trained, tiny_images(), out=out, **QUIET)
        assert end.value.exit_code == 6
    assert batches == []
    assert [path.name for path in (tmp_path / "vectors").iterdir()] == ["mine"]


def test_the_commands_refuse_before_they_open_the_images(tmp_path, capsys):
    """The source is none: that would be exit code 3."""
    save_encoder(
        tmp_path / "encoder", diptych.encoder("resnet18", "small", 16, channels=(4, 4, 4, 4)), Preprocessing(16)
    )
    occupied, table = tmp_path / "encoder", tmp_path / "labels.csv"
    table.write_text("mine")
    for words in (
        ["embed", tmp_path / "encoder", "nowhere", "--out", occupied],
        ["classify", tmp_path / "encoder", "nowhere", "--train", "nowhere", "--out", table],
        ["import-weights", "nowhere.pth", "--out", occupied],
        ["download", "barlow-twins-resnet50", "--out", table],
    ):
        code, out, err = command(capsys, *words)
        assert code == 6 and out == "" and "exist" in err.splitlines()[-1], words


def test_one_place_says_whether_a_result_may_be_written(tmp_path):
    taken = tmp_path / "taken.csv"
    taken.write_text("mine")
    (tmp_path / "empty").mkdir()
    assert files.require_free_folder(tmp_path / "empty") == tmp_path / "empty"
    assert files.require_free_folder(tmp_path / "new" / "deep") == tmp_path / "new" / "deep"
    assert files.require_free_file(tmp_path / "new.csv") == tmp_path / "new.csv"
    (tmp_path / "page.html").write_bytes(b"<head>" + files.HTML_MARK)
    assert files.require_free_file(tmp_path / "page.html", files.HTML_MARK) == tmp_path / "page.html"
    (tmp_path / "link.html").symlink_to(tmp_path / "page.html")
    os.mkfifo(tmp_path / "pipe.html")
    for refused, message in (
        (lambda: files.require_free_folder(tmp_path), "not empty"),
        (lambda: files.require_free_folder(taken), "not empty"),
        (lambda: files.require_free_file(taken), "exists already"),
        (lambda: files.require_free_file(tmp_path), "exists already"),
        (lambda: files.require_free_file(taken, files.HTML_MARK), "exists already and was not written by diptych"),
        (lambda: files.require_free_file(tmp_path / "link.html", files.HTML_MARK), "was not written by diptych"),
        (lambda: files.require_free_file(tmp_path / "pipe.html", files.HTML_MARK), "was not written by diptych"),
        (lambda: files.require_free_file(tmp_path, files.HTML_MARK), "is a folder"),
        (lambda: files.require_free_file(tmp_path / "no" / "x.csv"), "does not exist; create it"),
        (lambda: files.require_free_file(tmp_path / "no" / "x.csv", files.HTML_MARK), "does not exist; create it"),
    ):
        with pytest.raises(OutputError, match=message):
            refused()


def test_commands_refuse_before_images_are_read(tmp_path, capsys, monkeypatch, run):
    """A batch larger than the set, a protocol that there is not, an --out that is taken: no image is decoded for them."""
    (tmp_path / "photos" / "a").mkdir(parents=True)
    for number in range(4):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(tmp_path / "photos" / "a" / f"{number}.png")
    monkeypatch.setattr(Squares, "square", lambda *_: pytest.fail("an image was decoded"))
    photos, out = str(tmp_path / "photos"), str(tmp_path / "run")
    code, _, err = command(capsys, "pretrain", photos, "--out", out, "pretrain.batch_size=64")
    assert code == 2 and "batch_size 64 is larger than the 4 images; use at most 4" in err
    code, _, err = command(
        capsys, "evaluate", str(run.folder), "--train", photos, "--test", photos, "--protocol", "foo"
    )
    assert code == 2 and "there is no protocol 'foo'" in err
    code, _, err = command(capsys, "pretrain", photos, "--out", str(run.folder), "pretrain.batch_size=4")
    assert code == 6 and "already holds a run" in err
