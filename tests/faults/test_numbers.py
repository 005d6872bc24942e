"""Rows 31 to 33 of docs/faults.md: numbers that are not finite, images with nothing in them, arrays that teach nothing."""

import json
import math
import warnings

import numpy as np
import pytest
import torch
from spoiled import SMALL, diptych, encoded, put
from tiny import tiny_method, tiny_run

from diptych.base.errors import DataError, DivergedError
from diptych.commands import ending
from diptych.embeddings.diagnose import diagnose
from diptych.embeddings.plane import map_2d
from diptych.embeddings.scores import knn_accuracy, linear_probe
from diptych.runs import checkpoints

RNG = np.random.default_rng(0)


# ---- 31


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_31_a_loss_that_is_not_finite_is_exit_code_5_and_the_last_good_step_is_kept(value, tmp_path, capsys):
    method = tiny_method()
    compare, calls = method.compare, []

    def broken(projections, progress):
        compared = compare(projections, progress)
        calls.append(compared.loss)
        return (
            compared._replace(loss=compared.loss * float(value)) if len(calls) == 8 else compared
        )  # one is the trial's

    method.compare = broken
    with pytest.raises(SystemExit) as end:
        ending.run_command(lambda: tiny_run(tmp_path / "run", method) and None)
    told = capsys.readouterr().err
    assert end.value.code == DivergedError.exit_code == 5
    assert told.count("\n") == 1 and f"loss {value}" in told and "lower optimizer.lr" in told and "crash" in told
    newest = checkpoints.newest(tmp_path / "run" / "checkpoints")
    assert newest.name == "step_0000006"
    assert all(
        bool(value.isfinite().all()) for value in checkpoints.read_tensors(newest / "model.safetensors").values()
    )
    (crash,) = (tmp_path / "run" / "crash").iterdir()
    assert json.loads(crash.read_text())["step"] == 6


# ---- 32


@pytest.mark.parametrize("kind", ["black", "one colour each"])
def test_32_images_with_nothing_in_them_train_and_are_judged_with_a_warning(kind, tmp_path):
    """A network with weights of its own makes finite numbers of them, and nobody is told that all is well."""
    pixels = [np.full((32, 32, 3), 0 if kind == "black" else 20 * i, np.uint8) for i in range(12)]
    photos = put(tmp_path / "photos", {f"{'ab'[i % 2]}/{i:02}.png": encoded(pixels[i], "PNG") for i in range(12)})
    code, _, err = diptych("pretrain", photos, *SMALL, "--out", tmp_path / "run")
    assert code == 0, err
    code, out, err = diptych("evaluate", tmp_path / "run", "--train", photos, "--test", photos)
    assert code == 0 and "nan" not in out.lower(), err
    lines = [json.loads(line) for line in (tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()]
    accuracies = [line["accuracy"] for line in lines if "accuracy" in line]
    assert accuracies and all(0 <= accuracy <= 1 for accuracy in accuracies)
    readings = [
        value for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines() for value in flat(json.loads(line))
    ]
    assert all(map(math.isfinite, readings))
    if kind == "black":
        assert "verdict: OK" not in out
    assert diptych("report", tmp_path / "run")[0] == 0


def flat(value) -> list[float]:
    if isinstance(value, dict | list):
        return [number for inner in (value.values() if isinstance(value, dict) else value) for number in flat(inner)]
    return [value] if isinstance(value, int | float) else []


# ---- 33

MANY = RNG.normal(size=(40, 6)).astype(np.float32)
LABELS = np.arange(40) % 4


@pytest.mark.parametrize("judge", [knn_accuracy, linear_probe])
@pytest.mark.parametrize(
    ("spoil", "labels"),
    [
        (lambda z: z * [1, 1, 0, 1, 1, 1], LABELS),
        (lambda z: z[:, :1] * np.ones(6), LABELS),
        (lambda z: z * 0, LABELS),
        (lambda z: z * 1e30, LABELS),
        (lambda z: z * 1e-30, LABELS),
        (lambda z: z, np.arange(40)),
    ],
    ids=["constant column", "singular covariance", "all zero", "huge", "minute", "one image a class"],
)
def test_33_an_accuracy_is_a_number_between_0_and_1(judge, spoil, labels):
    made = spoil(MANY).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = judge(made, labels, made, labels)
    assert 0 <= result.accuracy <= 1 and 0 <= result.interval[0] <= result.interval[1] <= 1


@pytest.mark.parametrize("judge", [knn_accuracy, linear_probe])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_33_what_is_not_finite_is_no_accuracy(judge, value):
    spoiled = MANY.copy()
    spoiled[3, 2] = value
    for train, test, what in ((spoiled, MANY, "training"), (MANY, spoiled, "test")):
        with pytest.raises(DataError, match=f"1 of 40 {what} embeddings hold NaN or infinity") as error:
            judge(train, LABELS, test, LABELS)
        assert error.value.exit_code == 3


def test_33_more_neighbours_than_images_are_all_of_them():
    assert (
        knn_accuracy(MANY, LABELS, MANY, LABELS, k=10_000).accuracy
        == knn_accuracy(MANY, LABELS, MANY, LABELS, k=40).accuracy
    )


def test_33_the_map_and_the_diagnosis_are_finite():
    for made in (MANY * 0, MANY * [1, 0, 0, 0, 0, 0], np.ones((40, 6)), MANY[:3]):
        assert np.isfinite(map_2d(made.astype(np.float32), seed=0)[0]).all()
        assert all(map(math.isfinite, diagnose(torch.as_tensor(made).float()).readings.values()))
