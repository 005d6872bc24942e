"""The verdict on an encoder is the worst of three lamps, which answer one question each.

    collapse   Do different images have different embeddings?                       `diagnose`
    learning   Does it recognise another view of an image, better than before?      `recognition`, no labels needed
    worth      Is it better than the best reference that costs seconds?             `downstream.worth`, with labels

OK needs worth: without labels, the best verdict is UNPROVEN.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from diptych.embeddings.diagnose import Diagnosis

NOT_MEASURED = "NOT MEASURED"
VERDICTS = ("OK", "UNPROVEN", "WARNING", "WORSE", "COLLAPSED")  # from the best to the worst
NO_COLLAPSE = "different images have different embeddings"


class Lamp(NamedTuple):
    """The answer to one question: one of VERDICTS or NOT_MEASURED, and a sentence with the numbers."""

    word: str
    text: str


UNLABELLED = Lamp(NOT_MEASURED, "it needs labelled images: `diptych evaluate`")


def judge(diagnosis: Diagnosis, learning: Lamp, worth: Lamp = UNLABELLED, advice: Sequence[str] = ()) -> Diagnosis:
    """The diagnosis of a collapse, extended to the verdict of all three lamps; `advice` comes first."""
    collapse = Lamp(diagnosis.verdict, "; ".join(diagnosis.reasons) or NO_COLLAPSE)
    lamps = {"collapse": collapse, "learning": learning, "worth": worth}
    words = [lamp.word for lamp in lamps.values() if lamp.word != NOT_MEASURED]
    words += ["UNPROVEN"] * (worth.word == NOT_MEASURED)
    return replace(diagnosis, verdict=max(words, key=VERDICTS.index), advice=[*advice, *diagnosis.advice],
                   lamps={name: lamp._asdict() for name, lamp in lamps.items()})  # fmt: skip
