"""Evaluation knows which test images are in the training set, and what they are worth."""

import json

import numpy as np
import pytest
import torch
from scenes import KINDS, copy_of, scene
from test_audit import ENCODER, Means, crowded

from diptych.base.errors import DataError
from diptych.commands.tables import last_diagnosis
from diptych.data.images import images
from diptych.data.splitting import split
from diptych.downstream.evaluate import evaluate
from diptych.downstream.leaks import Leaks
from diptych.embeddings.scores import Score
from diptych.reporting.record import read_run
from diptych.runs.encoder import Preprocessing, Trained


def sets(leaked: int, count: int = 120, size: int = 40):
    """Labelled scenes whose labels only a copy gives away; `leaked` test images are copies of training images."""
    rng = np.random.default_rng(0)
    train = [scene(rng, size) for _ in range(count)]
    test = [scene(rng, size) for _ in range(60)]
    test[:leaked] = [copy_of(train[i], KINDS[i % 5], rng) for i in range(leaked)]
    labels = rng.integers(0, 2, count).tolist()
    answers = labels[:leaked] + rng.integers(0, 2, 60 - leaked).tolist()
    names = [["a", "b"][label] for label in labels], [["a", "b"][label] for label in answers]
    return images(np.stack(train), labels=names[0], size=32), images(np.stack(test), labels=names[1], size=32)


@pytest.mark.parametrize("resident", [True, False])
def test_leaks_are_counted_and_left_out(resident):
    train, test = sets(20)
    for part in (train, test):
        part._resident_option = part._resident = resident
    evaluation = evaluate(ENCODER, train, test, k=1, baselines=False, protocols=["knn"], show=False)
    leaks = evaluation.leaks
    assert leaks.exact == 4 and 14 <= leaks.near <= 17 and leaks.expected_wrong < 3
    assert sum(row < 20 for row in leaks.rows) >= 18
    assert leaks.pairs[0][2] == 1.0 and all(score <= 1 for _, _, score in leaks.pairs)
    [chance, knn] = leaks.without(evaluation.scores)
    assert knn.test_images == 60 - len(leaks.rows) == len(knn.correct)
    assert knn.accuracy < evaluation.score("knn").accuracy - 0.1
    text = str(evaluation)
    assert f"leaks: {len(leaks.rows)} of 60 test images are in the training set: same pixels 4" in text
    assert "accuracy of the trained encoder without them, %: knn" in text


def test_without_leaks_nothing_is_said():
    evaluation = evaluate(ENCODER, *sets(0), baselines=False, protocols=["knn"], show=False)
    assert len(evaluation.leaks.rows) <= 1
    if not evaluation.leaks.rows:
        assert "leaks" not in str(evaluation) and evaluation.leaks.without(evaluation.scores) == []


def test_leaks_that_cannot_be_told_from_farther_neighbours_are_counted():
    photos, labels = crowded()
    train, test = split(images(photos, labels=labels), 0.2)
    leaks = evaluate(ENCODER, train, test, baselines=False, protocols=["knn"], show=False).leaks
    assert leaks.undecided + len(leaks.rows) > 20 and leaks.undecided > 0 and leaks.alike > 0.05
    assert any("test images, not counted here, are as similar as copies" in line for line in leaks.text([], "trained"))
    assert leaks.line([])["leaks"]["undecided"] == leaks.undecided


def test_a_set_tested_on_itself_has_no_clean_image():
    train, _ = sets(0)
    evaluation = evaluate(ENCODER, train, train, baselines=False, protocols=["knn"], show=False)
    assert evaluation.leaks.exact == 120 and "no test image is left" in str(evaluation)


def test_the_line_is_read_by_those_who_know_it_and_by_those_who_do_not(tmp_path):
    from fake_run import fake_run

    folder = fake_run(tmp_path / "run")
    before = read_run(folder)
    leaks = Leaks([3], [("test/3.png", "train/8.png", 0.98)], 0, 1, 0.2, 5)
    score = Score(
        "knn", 0.6, (0.2, 0.9), 10, 5, 2, subject="trained", correct=torch.tensor([True, True, False, True, False])
    )
    line = json.loads(json.dumps(leaks.line([score])))
    assert line["leaks"]["near"] == 1 and line["leaks"]["pairs"] == [["test/3.png", "train/8.png", 0.98]]
    [clean] = line["leaks"]["without"]
    assert clean["interval"] == pytest.approx([0.15, 0.85], abs=0.01)
    assert {key: clean[key] for key in ("protocol", "accuracy", "test_images")} == {
        "protocol": "knn",
        "accuracy": 0.5,
        "test_images": 4,
    }
    with open(folder / "evaluations.jsonl", "a") as file:
        file.write(json.dumps(line) + "\n")
    after = read_run(folder)
    assert after.results == before.results and after.diagnosis == before.diagnosis and not after.notes
    assert last_diagnosis(folder)


def test_other_classes_are_refused_before_anything_is_embedded():
    rng = np.random.default_rng(0)
    pixels = np.stack([scene(rng, 32) for _ in range(8)])
    used = []

    class Watched(Means):
        def forward(self, pixels):
            used.append(len(pixels))
            return super().forward(pixels)

    one, other = images(pixels, labels=["a", "b"] * 4), images(pixels, labels=["a", "c"] * 4)
    with pytest.raises(DataError, match="classes that the training set lacks"):
        evaluate(Trained(Watched(), Preprocessing(32)), one, other, baselines=False, show=False)
    assert not used
