"""Row 25 of docs/faults.md: labels that do not fit end the evaluation with both lists; no label map is ever shifted."""

import json

import pytest
import torch
from PIL import Image
from spoiled import diptych, photographs, refusal

from diptych.data.images import images
from diptych.downstream.evaluate import evaluate
from diptych.networks.encoders import encoder
from diptych.runs.encoder import Preprocessing, save_encoder


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    folder = tmp_path_factory.mktemp("network") / "encoder"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_encoder(folder, encoder("resnet18", "small", 16, channels=(8, 8, 8, 8)), Preprocessing(16))
    return folder


def judged(network, train, test, *words) -> tuple[int, str, str]:
    return diptych("evaluate", network, "--train", train, "--test", test, *words)


@pytest.mark.parametrize("command", ["evaluate", "finetune"])
def test_25_a_class_in_test_that_training_lacks(command, network, tmp_path):
    train = photographs(tmp_path / "train", ("ant", "cow"), 4)
    test = photographs(tmp_path / "test", ("ant", "bee"), 2)
    code, out, err = diptych(command, network, "--train", train, "--test", test)
    told = refusal(err)
    assert code == 3 and out == "" and "the test set has classes that the training set lacks" in told
    assert "the training set has" in told and "ant" in told and "cow" in told and "bee" in told


def test_25_a_single_class(network, tmp_path):
    one, two = photographs(tmp_path / "one", ("ant",), 4), photographs(tmp_path / "two", ("ant", "cow"), 2)
    code, _, err = judged(network, one, one, "--labels", "folder")
    assert code == 3 and "every training image is of class 'ant'" in refusal(err)
    code, _, err = judged(network, one, two)
    assert code == 3 and "the training images have no labels: use a folder of class folders" in refusal(err)


def test_25_one_label_a_class(network, tmp_path):
    train, test = photographs(tmp_path / "train", count=1), photographs(tmp_path / "test", count=5)
    code, out, err = judged(network, train, test)
    assert code == 0, err
    assert "10 test and 2 training images of 2 classes" in out and "nan" not in out.lower()
    lines = evaluate(network, images(train, size=16), images(test, size=16), show=False).lines()
    accuracies = [line["accuracy"] for line in lines if "accuracy" in line]
    assert len(accuracies) >= 4 and all(0 <= accuracy <= 1 for accuracy in accuracies)


COLOURS = {"ant": (250, 0, 0), "bee": (0, 250, 0), "cow": (0, 0, 250), "dog": (250, 250, 0)}


def flat(root, *classes: str):
    """Three images of one colour a class: raw pixels tell the classes apart without fail."""
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (16, 16), tuple(abs(c - 3 * i) for c in COLOURS[name])).save(root / name / f"{i}.png")
    return root


@pytest.mark.parametrize("test", [("bee", "cow"), ("dog",), ("ant", "dog")])
def test_25_a_test_set_that_lacks_classes_keeps_the_names(test, network, tmp_path):
    """Folder numbers of the two sets differ; what counts is the name: a shifted map would give accuracy 0."""
    train = images(flat(tmp_path / "train", *COLOURS), size=16)
    asked = images(flat(tmp_path / "test", *test), size=16, labels="folder")
    lines = evaluate(network, train, asked, k=3, show=False).lines()
    raw = {line["protocol"]: line["accuracy"] for line in lines if line.get("subject") == "raw pixels"}
    assert raw == {"knn": 1.0, "linear": 1.0}, json.dumps(raw)


def test_25_a_folder_of_splits_is_not_two_classes(tmp_path):
    for split in ("train", "test"):
        photographs(tmp_path / "set" / split, ("ant", "cow"), 1)
    with pytest.warns(UserWarning, match="no labels read: the folders test, train look like splits; name one of them"):
        assert images(tmp_path / "set", size=8).labels is None


def test_25_an_image_beside_the_class_folders(network, tmp_path):
    source = photographs(tmp_path / "photos", count=2)
    (source / "loose.jpg").write_bytes((source / "cat" / "00.jpg").read_bytes())
    assert images(source, size=8).labels is None, "unlabelled: training goes on"
    code, _, err = judged(network, source, source, "--labels", "folder")
    assert code == 3 and "loose.jpg is in no class folder: move it into one" in refusal(err)
