"""A signature as a schema: its type hints say what a recipe may give and what the function receives."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from torch import nn

from diptych.base.errors import RecipeError
from diptych.commands import recipe as recipes
from diptych.commands.schema import arguments, call_arguments, fits_hint, is_data, spell


@dataclass(frozen=True)
class Margin:
    """How far a reading must move."""

    least: float = 0.0
    relative: bool = False


@dataclass(frozen=True)
class Stop:
    """A record with a required field, defaults and a record in it."""

    reading: str
    patience: int = 5
    margin: Margin = Margin()

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise RecipeError(f"patience is {self.patience}; it must be at least 1")


@dataclass
class Job:
    """A dataclass that changes is no value."""

    step: int = 0


@dataclass(frozen=True)
class Trained:
    """A frozen dataclass that YAML cannot hold."""

    encoder: nn.Module


def train(
    network: nn.Module,
    views: Sequence[nn.Module],
    out: str | Path,
    job: Job,
    trained: Trained,
    epochs: int,
    schedule: Callable[[float], float] | None = None,
    sides: tuple[int, int] = (1, 2),
    stopping: Stop | None = None,
    margin: Margin = Margin(0.5),
) -> None:
    """Of these, a recipe gives epochs, sides, stopping and margin."""


@pytest.mark.parametrize(
    "hint",
    [
        bool,
        int,
        float,
        str,
        int | None,
        str | Path,
        list,
        list[int],
        tuple[float, ...],
        Sequence[Mapping[str, Any]],
        dict,
        Literal["a", "b"],
        str | Sequence | np.ndarray,
        Stop,
        Stop | None,
    ],
)
def test_what_yaml_can_hold_is_the_recipes(hint):
    assert is_data(hint)


@pytest.mark.parametrize(
    "hint",
    [
        nn.Module,
        nn.Module | None,
        Callable,
        Callable[[int], int] | None,
        Sequence[nn.Module],
        dict[str, nn.Module],
        np.ndarray,
        Path,
        Job,
        Job | None,
        Trained,
        Any,
    ],
)
def test_objects_are_not(hint):
    assert not is_data(hint)


def test_a_new_argument_that_is_an_object_is_no_key():
    filled = arguments(train, {"out"}, {"epochs": 3}, "mine.yaml: pretrain")
    assert filled == {"epochs": 3, "sides": [1, 2], "stopping": None, "margin": {"least": 0.5, "relative": False}}
    for name in ("network", "views", "out", "job", "trained", "schedule"):
        with pytest.raises(RecipeError, match=f"has no '{name}'"):
            arguments(train, {"out"}, {"epochs": 3, name: 1}, "mine.yaml: pretrain")


def test_a_dataclass_is_written_as_a_map_with_every_default():
    options = {"epochs": 3, "stopping": {"reading": "knn_accuracy", "margin": {"relative": True}}}
    filled = arguments(train, {"out"}, options, "mine.yaml: pretrain")
    assert filled["stopping"] == {
        "reading": "knn_accuracy",
        "patience": 5,
        "margin": {"least": 0.0, "relative": True},
    }
    assert arguments(train, {"out"}, filled, "recipe.yaml: pretrain") == filled, "what is written is read as the same"
    call = call_arguments(train, filled)
    assert call["stopping"] == Stop("knn_accuracy", 5, Margin(0.0, True)) and call["margin"] == Margin(0.5)
    assert call["epochs"] == 3 and call["sides"] == [1, 2]
    assert call_arguments(train, {"epochs": 3, "stopping": None}) == {"epochs": 3, "stopping": None}


@pytest.mark.parametrize(
    ("stopping", "message"),
    [
        ({"readin": "loss"}, "pretrain.stopping has no 'readin'; did you mean reading?"),
        ({"patience": 3}, "pretrain.stopping needs reading"),
        (
            {"reading": "loss", "patience": "long"},
            "pretrain.stopping.patience is 'long', which is not a whole number",
        ),
        (
            {"reading": "loss", "margin": {"least": None}},
            "pretrain.stopping.margin.least is None, which is not a number",
        ),
        ({"reading": "loss", "patience": 0}, "mine.yaml: pretrain.stopping: patience is 0; it must be at least 1"),
        ("loss", "pretrain.stopping is 'loss', which is not a map of reading, patience, margin or null"),
    ],
)
def test_a_mistake_in_a_map_is_named_by_its_path(stopping, message):
    with pytest.raises(RecipeError, match=message.replace("?", r"\?")):
        arguments(train, {"out"}, {"epochs": 1, "stopping": stopping}, "mine.yaml: pretrain")


def test_an_override_reaches_into_a_dataclass(monkeypatch, tmp_path):
    """From the text of a recipe to the call's argument, as `diptych pretrain` does it."""
    monkeypatch.setitem(recipes.CALLS, "pretrain", train)
    text = "encoder: {name: resnet18}\nmethod: {name: barlow_twins}\nviews: [{do: [grayscale]}]\n"
    text += "optimizer: {name: sgd, lr: 1}\npretrain: {epochs: 1, stopping: {reading: loss}}\n"
    (tmp_path / "mine.yaml").write_text(text)
    read = recipes.read_recipe(str(tmp_path / "mine.yaml"), ["pretrain.stopping.patience=2"])
    assert call_arguments(train, read["pretrain"])["stopping"] == Stop("loss", 2)


@pytest.mark.parametrize(
    ("value", "hint", "fitting"),
    [
        (1, float, True),
        (True, float, False),
        (True, int, False),
        (1.0, int, False),
        (1, bool, False),
        ([1, 2], tuple[int, int], True),
        ([1], tuple[int, int], False),
        ([1, "a"], list[int], False),
        ([], list[int], True),
        ([1, 2, 3], tuple[int, ...], True),
        ("ab", Sequence[str], False),
        ([{"a": 1}], Sequence[Mapping[str, Any]], True),
        ("a", Literal["a", "b"], True),
        ("c", Literal["a", "b"], False),
        (3, str | Sequence | np.ndarray, False),
        (None, int | None, True),
        (None, int, False),
        ({}, dict, True),
        (3, nn.Module, False),
    ],
)
def test_a_value_fits_its_hint(value, hint, fitting):
    assert fits_hint(value, hint) == fitting


def test_a_type_is_spelled_in_words():
    assert spell(int | None) == "a whole number or null"
    assert spell(str | Sequence | np.ndarray) == "a word or a list"
    assert spell(Literal["a", "b"]) == "one of a, b" and spell(dict) == "a map"
    assert spell(Stop | None) == "a map of reading, patience, margin or null"
