"""Estimates as dots with their intervals, on one axis: places in percent of its length, for templates/dots.html.jinja."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from diptych.reporting.charts import linear_ticks, number


class Dot(NamedTuple):
    """An estimate and its interval, as shares. text: written beside it. colour: 0 to 9, or -1 for none."""

    label: str
    value: float
    low: float
    high: float
    text: str
    colour: int = -1


def dot_chart(dots: Sequence[Dot], *, zero: bool = False) -> dict:
    """The dots of one axis. zero: the axis holds 0, which is marked, and its ticks have signs."""
    ends = [100 * end for dot in dots for end in (dot.low, dot.high)] + [0.0] * zero
    ends = [end for end in ends if math.isfinite(end)] or [0.0, 100.0]
    ticks, low, high = linear_ticks(min(ends), max(ends), 4)

    def place(share: float) -> float:
        return round(100 * (share - low) / (high - low), 2)

    rows = [{"label": dot.label, "text": dot.text, "colour": dot.colour, "at": place(100 * dot.value),
             "from": place(100 * dot.low), "to": place(100 * dot.high)} for dot in dots]  # fmt: skip
    names = [(place(tick), f"{'+' * (zero and tick > 0)}{number(tick)}") for tick in ticks]
    return {"rows": rows, "ticks": names, "zero": place(0.0) if zero else None}
