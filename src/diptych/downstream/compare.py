"""Compare runs: their recipes, curves and accuracies on the same test images, in pairs."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from diptych.base.errors import RecipeError
from diptych.base.files import write_file
from diptych.data.groups import group_numbers
from diptych.downstream.arms import Arm, add_answers, arms_of, differing_settings
from diptych.downstream.comparison import points, probability
from diptych.embeddings.intervals import holm
from diptych.embeddings.paired import Paired, mean_interval, paired_difference
from diptych.reporting.compare_page import Sentence, Side, comparison_page
from diptych.reporting.dots import Dot
from diptych.reporting.gallery import require_page
from diptych.runs.proposed import word


@dataclass(frozen=True)
class Pair:
    """The accuracy of arm `a` less that of arm `b` by one protocol; p adjusted for all pairs of the protocol (Holm)."""

    protocol: str
    a: str
    b: str
    paired: Paired
    p: float

    @property
    def decided(self) -> bool:
        return self.paired.significant and self.p < 0.05

    def __str__(self) -> str:
        text = f"{self.protocol}: {self.a} minus {self.b} {points(self.paired)} points{probability(self.p)}; "
        if self.decided:
            return text + f"{self.a if self.paired.difference > 0 else self.b} is better"
        smallest = f"these images would show {100 * self.paired.smallest:.1f} points"
        if self.paired.difference == 0:
            return text + f"no significant difference: {smallest}"
        needed = self.paired.needed
        more = (
            "more seeds would be needed"
            if needed is None
            else f"this one would take about {rounded(needed):,} test images"
        )
        return text + f"no significant difference: {smallest}, {more}"


@dataclass(frozen=True)
class Comparison:
    """Arms (`arms.Arm`); the settings that differ; accuracies {protocol: [(mean, interval) of each arm]}; pairs of arms.

    covers: what the intervals cover. notes: what a reader must know. page: the HTML file, None where none was written.
    """

    arms: list[Arm]
    settings: list[tuple[str, list[str]]]
    accuracies: dict[str, list[tuple[float, tuple[float, float]]]] = field(default_factory=dict)
    pairs: list[Pair] = field(default_factory=list)
    covers: str = ""
    notes: list[str] = field(default_factory=list)
    page: Path | None = None

    def __str__(self) -> str:
        letters = [arm.letter for arm in self.arms]
        lines = [f"{arm.letter}  {arm.name}" for arm in self.arms]
        if self.settings:
            lines += ["", *table(["recipe", *letters], [[key, *values] for key, values in self.settings])]
        readings = readings_table(self.arms)
        if readings:
            lines += ["", *table(["at the end of training", *letters], readings)]
        if self.accuracies:
            rows = [[name, *(percent(*cell) for cell in cells)] for name, cells in self.accuracies.items()]
            lines += ["", *table(["accuracy, %", *letters], rows), f"[95 % interval, over {self.covers}]"]
        lines += ["", *map(str, self.pairs)] if self.pairs else []
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines if self.page is None else [*lines, f"page: {self.page}"])


def compare(*runs: str | Path, group_by: str | None = None, out: str | Path | None = None) -> Comparison:
    """Compare runs on the test images of their evaluations, and write a page to `out`.

    Runs whose recipes differ only in the seed form one arm, which measures the variation between seeds. Accuracies have
    intervals over test images (and seeds, where there are several), or over groups of images: group_by is "folder",
    FILE.csv:COLUMN, or a regular expression with one part in parentheses, matched with the images' names. Pairs of arms
    are compared image by image: McNemar's exact test for one run each, else the test of the interval; Holm's adjustment
    for all pairs of a protocol. Runs that were not evaluated are compared only by recipe, curves and readings.

    Raises RecipeError for no run, a run given twice and a wrong group_by, DataError for runs evaluated on different
    test images and for fewer than 8 groups, CheckpointError for a damaged run, OutputError for a page that cannot be
    written.
    """
    if not runs:
        raise RecipeError("name the runs to compare")
    page = None if out is None else require_page(Path(out))
    arms = arms_of(runs)
    answers = add_answers(arms)
    if answers is None:
        notes = [
            "the runs have not been evaluated on labelled images: `diptych evaluate RUN --train SOURCE --test SOURCE`"
        ]
        comparison = Comparison(arms, differing_settings(arms), notes=notes, page=page)
    else:
        groups = None if group_by is None else group_numbers(group_by, answers.names)
        comparison = judged(arms, groups, page)
    if len(runs) == 1:
        comparison.notes.append(
            f"this is only one run: name another to compare it with; for its own page: `diptych report {word(runs[0])}`"
        )
    if page is not None:
        write_file(page, page_of(comparison).encode("utf-8", "replace"))
    return comparison


def judged(arms: list[Arm], groups: np.ndarray | None, page: Path | None) -> Comparison:
    """The comparison of runs that were judged on the same test images."""
    protocols = [name for name in arms[0].protocols if all(name in arm.protocols for arm in arms)]
    accuracies, pairs = {}, []
    for name in protocols:
        tables = [arm.right(name) for arm in arms]
        accuracies[name] = [(float(table.mean()), mean_interval(table, groups)) for table in tables]
        pairs += pairs_of(name, arms, tables, groups)
    several = max(len(arm.records) for arm in arms) > 1
    images = len(arms[0].answers[0].names)
    units = f"{images:,} test images" if groups is None else f"{int(groups.max()) + 1} groups of {images:,} test images"
    return Comparison(arms, differing_settings(arms), accuracies, pairs, units + " and seeds" * several,
                      notes_on(arms, protocols), page)  # fmt: skip


def pairs_of(protocol: str, arms: Sequence[Arm], tables: Sequence[np.ndarray], groups: np.ndarray | None) -> list[Pair]:
    chosen = [(i, j) for i in range(len(arms)) for j in range(i + 1, len(arms))]
    results = []
    for i, j in chosen:
        same = arms[i].seeds_match(arms[j])
        results.append(paired_difference(tables[i], tables[j], groups, same_seeds=same))
    adjusted = holm([result.p for result in results])
    return [Pair(protocol, arms[i].letter, arms[j].letter, result, p)
            for (i, j), result, p in zip(chosen, results, adjusted, strict=True)]  # fmt: skip


def notes_on(arms: Sequence[Arm], protocols: Sequence[str]) -> list[str]:
    """What the comparison does not show."""
    notes = []
    if len(arms) > 1 and min(len(arm.records) for arm in arms) == 1:
        notes.append("one run of a recipe shows which encoder is better, not which recipe: another seed may give another order "
                     "(`diptych pretrain --seeds 3`)")  # fmt: skip
    if len(arms) > 2:
        notes.append(
            f"p is adjusted for the {len(arms) * (len(arms) - 1) // 2} pairs of a protocol (Holm); intervals are not"
        )
    if len({answers.train for arm in arms for answers in arm.answers}) > 1:
        notes.append("the runs were fitted on different labelled images, which may explain part of a difference")
    left = {name for arm in arms for name in arm.protocols} - set(protocols)
    if left:
        notes.append(f"not all runs were evaluated by {', '.join(sorted(left))}")
    return notes


def page_of(comparison: Comparison) -> str:
    """The HTML of a comparison."""
    arms = comparison.arms
    accuracies = {
        name: [Dot(f"{arm.letter}  {arm.folder}", mean, *interval, percent(mean, interval), colour)
               for colour, (arm, (mean, interval)) in enumerate(zip(arms, cells, strict=True))]
        for name, cells in comparison.accuracies.items()
    }  # fmt: skip
    pairs: dict[str, list[Sentence]] = {}
    for pair in comparison.pairs:
        result = pair.paired
        dot = Dot(f"{pair.a} minus {pair.b}", result.difference, *result.interval, points(result))
        pairs.setdefault(pair.protocol, []).append(Sentence(dot, str(pair), pair.decided))
    return comparison_page(
        [Side(arm.letter, arm.name, arm.records) for arm in arms], comparison.settings, [(row[0], row[1:]) for row in
        readings_table(arms)], accuracies, pairs=pairs, covers=comparison.covers, notes=comparison.notes,
    )  # fmt: skip


def readings_table(arms: Sequence[Arm]) -> list[list[str]]:
    """Rows of text: the last readings of training, their mean and standard deviation over seeds."""
    readings = [arm.readings() for arm in arms]
    names = dict.fromkeys(name for part in readings for name in part)
    rows = [[name, *(mean_and_deviation(part.get(name, [])) for part in readings)] for name in names]
    verdicts = [
        ", ".join(dict.fromkeys(str((r.diagnosis or {}).get("verdict", "-")) for r in arm.records)) for arm in arms
    ]
    return rows + [["verdict", *verdicts]] if rows else []


def mean_and_deviation(values: Sequence[float]) -> str:
    if not values:
        return "-"
    deviation = f" +- {statistics.stdev(values):.2g}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4g}{deviation}"


def percent(mean: float, interval: tuple[float, float]) -> str:
    return f"{100 * mean:.1f} [{100 * interval[0]:.1f}-{100 * interval[1]:.1f}]"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in [header, *rows]) + 2 for i in range(len(header))]
    return [
        "".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [header, *rows]
    ]


def rounded(count: int) -> int:
    """Two significant digits: more would say too much."""
    return round(count, 1 - len(str(count))) if count >= 100 else count
