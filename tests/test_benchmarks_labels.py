"""The benchmarks of forecasts count what they say: labels at twice their number, and seconds of a training."""

import sys

import pytest

from benchmarks import labels, plan


def test_forecasts_are_held_to_what_was_measured():
    sizes = [10, 20, 50, 100, 200, 400]
    rows = [{"subject": name, "labels": n, "accuracies": [1 - error - n**-0.5 + shift for shift in (-0.01, 0.0, 0.01)]}
            for name, error in (("a", 0.0), ("b", 0.1)) for n in sizes]  # fmt: skip
    rows[-1]["accuracies"] = [0.2] * 3  # no curve leads there
    result = labels.forecasts({"rows": rows}, "made")
    assert [(row["subject"], row["from"], row["to"], row["held"]) for row in result] == [
        ("a", 200, 400, True),
        ("b", 200, 400, False),
    ]


@pytest.mark.slow
def test_the_plan_is_held_to_a_training(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["plan", "--quick", "--threads", "1"])
    plan.main()
    text = capsys.readouterr().out
    assert "demo" in text and "21 steps of 256: forecast" in text and "goal: the largest error of a forecast" in text
