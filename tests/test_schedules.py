"""Schedules against the numbers of the published programs, and their shape between."""

import json
import math

import pytest
from shared import shared

from diptych.base.errors import RecipeError
from diptych.training.schedules import SCHEDULES, constant, cosine, warmup_cosine


def test_warmup_cosine_is_the_original_barlow_twins_schedule():
    golden = json.loads(shared("golden/barlowtwins_pytorch.json").read_text())["schedule_1000ep_bs2048_626steps"]
    factor = warmup_cosine()
    for step, (weights, biases) in golden.items():
        progress = int(step) / (1000 * 626)
        assert 0.2 * 2048 / 256 * factor(progress) == pytest.approx(weights, rel=1e-9, abs=1e-15)
        assert 0.0048 * 2048 / 256 * factor(progress) == pytest.approx(biases, rel=1e-9, abs=1e-15)


def test_cosine_is_keras_cosine_decay():
    golden = json.loads(shared("golden/keras.json").read_text())["keras_cosine_decay"]
    for step, rate in golden.items():  # Keras computes in float32
        assert 0.03 * cosine()(int(step) / (5 * 390)) == pytest.approx(rate, rel=1e-5, abs=2e-9)


@pytest.mark.parametrize(("epochs", "steps"), [(800, 97), (100, 626), (7, 13), (160, 1)])
def test_cosine_by_epochs_is_constant_within_each(epochs, steps):
    """SimSiam adjusts its rate once an epoch, with the epoch's number."""
    factor = cosine(epochs=epochs)
    for epoch in range(epochs):
        expected = 0.5 * (1 + math.cos(math.pi * epoch / epochs))
        for step in {0, steps // 2, steps - 1}:
            assert factor((epoch * steps + step) / (epochs * steps)) == pytest.approx(expected, abs=1e-12)


def test_ends_and_corners():
    assert [constant()(p) for p in (0, 0.5, 1)] == [1, 1, 1]
    assert cosine(floor=0.25)(0) == 1 and cosine(floor=0.25)(1) == pytest.approx(0.25)
    warm = warmup_cosine(warmup=0.1, floor=0.0)
    assert warm(0) == 0 and warm(0.05) == pytest.approx(0.5) and warm(0.1) == 1 and warm(1) == pytest.approx(0)
    assert [warmup_cosine(warmup=0, floor=0)(p) for p in (0, 0.3, 1)] == [cosine()(p) for p in (0, 0.3, 1)]


def test_a_warm_up_as_long_as_training_is_refused():
    with pytest.raises(RecipeError, match="warmup is .*; it must be at least 0 and below 1"):
        warmup_cosine(warmup=10)


def test_every_schedule_has_a_name_and_stays_in_its_range():
    for name, make in SCHEDULES.items():
        values = [make()(i / 1000) for i in range(1001)]
        assert name == make.__name__ and all(0 <= v <= 1 for v in values)
