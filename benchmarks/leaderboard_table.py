"""The leaderboard's rows as a text table: accuracies with intervals over seeds, mean rank, cost."""

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from diptych.embeddings.intervals import student

CONCLUSIONS = """Intervals: 95 %, Student's t over seeds; one seed has none. They hold the variation of seeds, not the choice of
test images. Rank: of the linear accuracies' means, averaged over the sets, of the methods that all sets have.
What can be concluded: which method learns more in this time, on one core, with this network, batch and these recipes, where
intervals are apart. What cannot: which is better after long training, on a GPU, in a larger network, or with rates tuned
for each. References cost no training, and most of them less time than a row."""


def read_rows(runs: Path) -> list[dict]:
    """The results that lie beside the run folders, ordered by set, method and seed."""
    return [json.loads(path.read_text()) for path in sorted(runs.glob("*/*.json"))]


def table(rows: Sequence[dict]) -> str:
    """A block for each set and one of ranks; "" where there is no row."""
    sets = list(dict.fromkeys(row["set"] for row in rows))
    blocks = [block(name, [row for row in rows if row["set"] == name]) for name in sets]
    return "\n\n".join([*blocks, ranks(rows), CONCLUSIONS]) if blocks else "no row is done yet"


def block(name: str, rows: Sequence[dict]) -> str:
    """The subjects of a set, best linear accuracy first."""
    subjects = list(dict.fromkeys(subject for row in rows for subject in row["subjects"]))
    means = {subject: statistics.fmean(values(rows, subject, "linear")) for subject in subjects}
    minutes = ", ".join(f"{m:g}" for m in sorted({row["minutes"] for row in rows}))
    head = f"{name}, {minutes} minutes of one core{'':<8}"
    lines = [f"{head:<44}{'linear':>16}{'kNN':>16}{'s/epoch':>10}{'epochs':>8}{'MB':>8}{'seeds':>7}  doctor"]
    for subject in sorted(subjects, key=lambda subject: -means[subject]):
        mine = [row for row in rows if subject in row["subjects"]]
        accuracies = "".join(f"{interval(values(rows, subject, protocol)):>16}" for protocol in ("linear", "knn"))
        costs = ""
        for key, width, digits in (("seconds_per_epoch", 10, 1), ("epochs", 8, 1), ("peak_megabytes", 8, 0)):
            numbers = [row[key] for row in mine if key in row]
            costs += f"{statistics.fmean(numbers):>{width}.{digits}f}" if numbers else " " * width
        verdicts = ", ".join(dict.fromkeys(row["verdict"] for row in mine if "verdict" in row))
        lines.append(f"  {subject:<42}{accuracies}{costs}{len(mine):>7}  {verdicts}".rstrip())
    return "\n".join(lines)


def values(rows: Sequence[dict], subject: str, protocol: str) -> list[float]:
    return [row["subjects"][subject][protocol] for row in rows if subject in row["subjects"]]


def interval(numbers: Sequence[float]) -> str:
    """Mean and half of its 95 % interval over seeds."""
    mean, n = statistics.fmean(numbers), len(numbers)
    if n < 2:
        return f"{mean:.1f}"
    quantile = float(student(n - 1))
    return f"{mean:.1f} +- {quantile * statistics.stdev(numbers) / math.sqrt(n):.1f}"


def ranks(rows: Sequence[dict]) -> str:
    """Mean rank of the methods over the sets; of those alone that every set has."""
    by_set: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(row["set"] for row in rows):
        mine = [row for row in rows if row["set"] == name and "verdict" in row]
        methods = dict.fromkeys(subject for row in mine for subject in row["subjects"])
        by_set[name] = {method: statistics.fmean(values(mine, method, "linear")) for method in methods}
    common = set.intersection(*map(set, by_set.values())) if by_set else set()
    rank = {
        method: statistics.fmean(1 + sum(means[other] > means[method] for other in common) for means in by_set.values())
        for method in common
    }
    lines = [
        f"  {method:<42}{value:>16.1f}" for method, value in sorted(rank.items(), key=lambda item: (item[1], item[0]))
    ]
    head = f"mean rank over {len(by_set)} set{'s' * (len(by_set) != 1)}"
    return "\n".join([f"{head:<44}{'linear':>16}", *lines])
