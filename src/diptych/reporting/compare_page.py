"""The page of a comparison of runs: recipes, accuracies and their differences with intervals, curves over each other."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from diptych.reporting.charts import COLOURS, line_chart
from diptych.reporting.dots import Dot, dot_chart
from diptych.reporting.figures import SENTENCES, TITLES, values
from diptych.reporting.numbers import protocol_title
from diptych.reporting.page import page_template, text_of
from diptych.reporting.record import Record, clip

CURVES = ("loss", "knn_accuracy", "rank", "spread")
STEP_CURVES, PERCENT, WIDE = ("loss",), ("knn_accuracy",), ("loss",)


class Side(NamedTuple):
    """One arm: its letter, its name and its runs."""

    letter: str
    name: str
    records: Sequence[Record]


class Sentence(NamedTuple):
    """A difference in words; decided: whether it can be told."""

    dot: Dot
    text: str
    decided: bool


def comparison_page(
    sides: Sequence[Side],
    settings: Sequence[tuple[str, Sequence[str]]],
    readings: Sequence[tuple[str, Sequence[str]]],
    accuracies: Mapping[str, Sequence[Dot]],
    *,
    pairs: Mapping[str, Sequence[Sentence]],
    covers: str,
    notes: Sequence[str],
) -> str:
    """The HTML. settings: keys with a value for every side; readings: names with a text for every side.

    accuracies, pairs: by protocol. covers: what the intervals cover, "" where nothing was evaluated.
    """
    judged = [{"name": protocol_title(name), "dots": dot_chart(dots),
               "pairs": pairs.get(name, ()), "gaps": dot_chart([pair.dot for pair in pairs.get(name, ())], zero=True)}
              for name, dots in accuracies.items()]  # fmt: skip
    shown = [
        {"letter": side.letter, "name": clip(side.name), "colour": colour % COLOURS, "runs": len(side.records)}
        for colour, side in enumerate(sides)
    ]
    return page_template("compare.html.jinja").render(
        sides=shown, settings=settings, readings=readings, judged=judged, covers=covers, notes=notes,
        curves=curves(sides), style=text_of("report.css", "compare.css"),
    )  # fmt: skip


def curves(sides: Sequence[Side]) -> list[dict]:
    """Loss and readings over steps: a line a run, in the colour of its side."""
    charts = []
    for name in CURVES:
        series, colours = {}, []
        for colour, side in enumerate(sides):
            for index, record in enumerate(side.records):
                points = values(record.steps if name in STEP_CURVES else record.watches, name)
                if points:
                    series[f"{side.letter}{index + 1 if len(side.records) > 1 else ''}"] = points
                    colours.append(colour % COLOURS)
        chart = line_chart(name, TITLES[name], SENTENCES[name], series, percent=name in PERCENT, wide=name in WIDE)
        if chart is not None:
            for line, colour in zip(chart["lines"], colours, strict=True):
                line["colour"] = colour
            charts.append(chart)
    return charts
