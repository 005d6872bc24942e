"""The verdict beside references: never OK below raw pixels or the closed form."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from diptych.data.images import images
from diptych.downstream.worth import closed_form, gains, with_worth
from diptych.embeddings.diagnose import Diagnosis
from diptych.embeddings.lamps import Lamp
from diptych.embeddings.scores import Score
from diptych.networks.encoders import encoder
from diptych.networks.inference import Preprocessing
from diptych.runs.encoder import Trained

HEALTHY = Diagnosis("OK", {"spread": 0.9, "rank": 40.0})
LEARNS = Lamp("OK", "it has learned")


def scored(subject: str, right: int, n: int = 400, protocol: str = "linear") -> Score:
    """A score whose first `right` of n test images are right."""
    correct = torch.arange(n) < right
    return Score(protocol=protocol, subject=subject, accuracy=right / n, interval=(0.0, 1.0), train_images=n, test_images=n,
                 classes=2, seed=0, details={}, correct=correct)  # fmt: skip


def verdict(*scores: Score, before: Diagnosis = HEALTHY) -> Diagnosis:
    return with_worth(before, LEARNS, gains(scores, "trained"))


def test_above_all_references_is_ok():
    judged = verdict(scored("raw pixels", 200), scored("closed form", 250), scored("trained", 300))
    assert judged.verdict == "OK" and judged.advice == []
    assert judged.lamps["worth"] == {"word": "OK", "text": "linear: 12.5 points above the closed form [+9.2 to +15.7]"}


def test_a_gain_within_chance_is_not_ok():
    judged = verdict(scored("raw pixels", 200), scored("closed form", 299), scored("trained", 300))
    assert judged.verdict == judged.lamps["worth"]["word"] == "WARNING"
    assert "0.2 points above the closed form" in judged.lamps["worth"]["text"]


def test_one_clear_gain_over_the_best_reference_is_enough():
    clear = scored("raw pixels", 100), scored("closed form", 200), scored("trained", 300)
    little = scored("closed form", 299, protocol="knn"), scored("trained", 300, protocol="knn")
    assert verdict(*clear, *little).verdict == "OK"


@pytest.mark.parametrize("reference", ["raw pixels", "closed form", "untrained"])
def test_clearly_below_a_reference_is_worse(reference):
    judged = verdict(scored(reference, 300), scored("trained", 250))
    assert judged.verdict == "WORSE"
    assert "12.5 points below" in judged.lamps["worth"]["text"] and reference in judged.lamps["worth"]["text"]
    assert any("diptych quick" in text for text in judged.advice)


def test_a_little_below_is_a_warning_and_never_ok():
    judged = verdict(scored("closed form", 301), scored("trained", 300))
    assert judged.verdict == "WARNING"


def test_one_protocol_below_is_enough():
    better = scored("raw pixels", 100), scored("trained", 300)
    worse = scored("raw pixels", 300, protocol="knn"), scored("trained", 200, protocol="knn")
    judged = verdict(*better, *worse)
    assert judged.verdict == "WORSE" and judged.lamps["worth"]["word"] == "WORSE"
    assert judged.lamps["worth"]["text"] == "knn: 25.0 points below raw pixels [-29.1 to -20.6]"


def test_a_collapse_remains_a_collapse():
    collapsed = Diagnosis("COLLAPSED", {}, ["spread 0.01"], ["a lower rate"])
    judged = verdict(scored("raw pixels", 300), scored("trained", 10), before=collapsed)
    assert judged.verdict == "COLLAPSED" and judged.advice == ["a lower rate"]
    assert judged.lamps["collapse"] == {"word": "COLLAPSED", "text": "spread 0.01"}


def test_no_closed_form_of_itself_and_of_too_few_images():
    few = images(np.random.default_rng(0).integers(0, 255, (20, 16, 16, 3), dtype=np.uint8))
    own = Trained(encoder("patch_dictionary", size=16, entries=8), Preprocessing(16))
    other = Trained(SimpleNamespace(), Preprocessing(16), built_with={"name": "x"})  # pyrefly: ignore
    assert closed_form(own, few, 0, print) is None
    assert closed_form(other, few, 0, print) is None


def test_joining_is_advised_only_where_it_is_clearly_better():
    worse = scored("closed form", 250), scored("trained", 200)
    advice = [with_worth(HEALTHY, LEARNS, gains([*worse, joined], "trained"), gains([*worse, joined], "joined")).advice
              for joined in (scored("joined", 300), scored("joined", 251))]  # fmt: skip
    assert "--join" in advice[0][0] and "12.5 points above the closed form" in advice[0][0]
    assert not any("--join" in text for text in advice[1]) and "diptych quick" in advice[1][0]
