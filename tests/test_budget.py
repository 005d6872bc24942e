"""A budget of time becomes a number of steps once, before step 0, and nothing of the run moves while it is measured."""

import pytest
import torch
from tiny import SIGTERM, tiny_method, tiny_run, told, weights_of

from diptych.base.errors import RecipeError
from diptych.base.signals import Preempted
from diptych.commands.recipe import read_recipe
from diptych.training import budget as budgets
from diptych.training.budget import check_length, seconds_of, steps_of

MEASURE = budgets.seconds_a_step


def paced(monkeypatch, seconds: float) -> None:
    """Steps are taken as ever; the rate is then what the test says, as if no time had passed."""

    def measured(*arguments) -> float:
        assert MEASURE(*arguments) > 0
        return seconds

    monkeypatch.setattr(budgets, "seconds_a_step", measured)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("20m", 1200), ("2h", 7200), ("1h30m", 5400), ("1.5h", 5400), (" 5m ", 300)]
)
def test_lengths_of_time(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "20", "m", "20 minutes", "-5m", "0s", "1.2.3m", "30m1h", "20M", ".s"])
def test_what_is_no_length_of_time_is_refused(text):
    with pytest.raises(RecipeError, match="write 90s, 20m, 2h or 1h30m"):
        seconds_of(text)


def test_numbers_of_steps():
    assert [steps_of(text) for text in ("1 step", "5000steps", " 12 steps ", "20m")] == [1, 5000, 12, None]
    for text in ("0 steps", "2000000000 steps"):
        with pytest.raises(RecipeError, match="must be 1 to 1000000000 steps"):
            check_length(None, text)
    for text in ("steps", "-3 steps", "1.5 steps", "3 stepss"):
        with pytest.raises(RecipeError, match="or 5000 steps"):
            check_length(None, text)


def test_a_budget_of_steps_is_the_same_run_as_its_epochs(tmp_path):
    ours, theirs = tiny_run(tmp_path / "run", epochs=None, budget="8 steps"), tiny_run(tmp_path / "counted", epochs=2)
    weights = weights_of(ours), weights_of(theirs)
    assert [name for name in weights[0] if not torch.equal(weights[0][name], weights[1][name])] == []
    assert told(ours) == told(theirs)
    three = tiny_run(tmp_path / "three", epochs=None, budget="3 steps")
    assert three.lines("end")[0]["step"] == 3 and three.lines("budget") == []


@pytest.mark.parametrize(
    ("epochs", "budget", "message"),
    [
        (None, None, "give epochs, or a budget"),
        (3, "20m", "are both given"),
        (None, "1x", "'1x'"),
    ],
)
def test_one_of_both_is_needed(epochs, budget, message, tmp_path):
    with pytest.raises(RecipeError, match=message):
        check_length(epochs, budget)
    with pytest.raises(RecipeError, match=message):
        tiny_run(tmp_path / "run", epochs=epochs, budget=budget)
    assert not (tmp_path / "run").exists()


def test_an_override_replaces_the_length_of_the_recipe():
    pretrain = read_recipe("barlow-twins-small", ["pretrain.budget=20m"])["pretrain"]
    assert (pretrain["epochs"], pretrain["budget"]) == (None, "20m")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["pretrain.budget=20m", "pretrain.epochs=3"], "barlow-twins-small.yaml: pretrain: epochs 3 and budget '20m' are both"),
        (["pretrain.budget=soon"], "pretrain: budget 'soon' is not a duration"),
        (["pretrain.budget=20"], "pretrain.budget is 20, which is not a word"),
        (["pretrain.epochs=null"], "pretrain: how long to train is missing"),
    ],
)  # fmt: skip
def test_recipes_are_checked_before_an_image_is_read(overrides, message):
    with pytest.raises(RecipeError) as error:
        read_recipe("barlow-twins-small", overrides)
    assert message in str(error.value) and error.value.exit_code == 2


def test_a_budget_is_the_same_run_as_its_epochs(tmp_path, monkeypatch):
    paced(monkeypatch, 100.0)
    timed = tiny_run(tmp_path / "timed", epochs=None, budget="899s")
    counted = tiny_run(tmp_path / "counted", epochs=2)
    ours, theirs = weights_of(timed), weights_of(counted)
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    [line] = timed.lines("budget")
    assert (line["budget"], line["steps"], line["epochs"]) == ("899s", 8, 2.0)
    assert [row for row in told(timed) if row["event"] != "budget"] == told(counted)
    assert timed.recipe["pretrain"]["budget"] == "899s"


def test_a_resumed_run_keeps_its_number_of_steps(tmp_path, monkeypatch):
    paced(monkeypatch, 100.0)
    quiet = tiny_run(tmp_path / "quiet", epochs=None, budget="1099s")  # 10 steps, two epochs and a half
    method = tiny_method()
    method.signal_at = (4, SIGTERM)  # step 3: progress of 4 in 10 is nearest to 5 in 12, the total of `tiny`
    with pytest.raises(Preempted) as stopped:
        tiny_run(tmp_path / "run", method, epochs=None, budget="1099s")
    assert "saved at step 4 of 10" in stopped.value.message
    paced(monkeypatch, 1.0)
    run = tiny_run(tmp_path / "run", epochs=None, budget="1099s")
    ours, theirs = weights_of(run), weights_of(quiet)
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert [row for row in told(run) if row["event"] != "budget"] == [
        row for row in told(quiet) if row["event"] != "budget"
    ]
    assert run.lines("step")[-1]["step"] == 10 and run.lines("step")[-1]["progress"] == 1.0


def test_the_steps_are_those_that_the_measured_rate_allows(tmp_path):
    run = tiny_run(tmp_path / "run", epochs=None, budget="3s", checkpoint_minutes=5.0, log_steps=1000)
    [line] = run.lines("budget")
    assert 0 < line["measured_in"] < 3 and line["steps"] > 20
    assert line["steps"] == pytest.approx((3 - line["measured_in"]) / line["seconds_per_step"], rel=0.02, abs=1)
    assert run.lines("end")[0]["step"] == line["steps"]


def test_a_budget_shorter_than_a_step_is_one_step(tmp_path, monkeypatch):
    paced(monkeypatch, 100.0)
    assert tiny_run(tmp_path / "run", epochs=None, budget="1s").lines("end")[0]["step"] == 1
