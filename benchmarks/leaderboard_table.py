"""The leaderboard's rows as text and as Markdown: accuracies with intervals over seeds, mean rank, cost.

Rows of different budgets are never in one table.
"""

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
    """For each budget a block of every set and one of ranks."""
    blocks = []
    for mine in by_minutes(rows).values():
        blocks += [block(name, of_set) for name, of_set in by_set(mine).items()]
        blocks.append(ranks_block(mine))
    return "\n\n".join([*blocks, CONCLUSIONS]) if blocks else "no row is done yet"


def by_minutes(rows: Sequence[dict]) -> dict[float, list[dict]]:
    """Rows by CPU-minutes of training, the smallest budget first."""
    return {
        minutes: [row for row in rows if row["minutes"] == minutes]
        for minutes in sorted({row["minutes"] for row in rows})
    }


def by_set(rows: Sequence[dict]) -> dict[str, list[dict]]:
    return {name: [row for row in rows if row["set"] == name] for name in dict.fromkeys(row["set"] for row in rows)}


def block(name: str, rows: Sequence[dict]) -> str:
    """The subjects of a set, best linear accuracy first."""
    subjects = list(dict.fromkeys(subject for row in rows for subject in row["subjects"]))
    means = {subject: statistics.fmean(values(rows, subject, "linear")) for subject in subjects}
    head = f"{name}, {rows[0]['minutes']:g} minutes of one core"
    lines = [f"{head:<44}{'linear':>16}{'kNN':>16}{'s/epoch':>10}{'epochs':>8}{'MB':>8}{'seeds':>7}  doctor"]
    for subject in sorted(subjects, key=lambda subject: -means[subject]):
        mine = [row for row in rows if subject in row["subjects"]]
        accuracies = "".join(f"{interval(values(rows, subject, protocol)):>16}" for protocol in ("linear", "knn"))
        costs = ""
        for key, width, digits in (("seconds_per_epoch", 10, 1), ("epochs", 8, 1), ("peak_megabytes", 8, 0)):
            mean = mean_cost(mine, subject, key)
            costs += " " * width if mean is None else f"{mean:>{width}.{digits}f}"
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


def ranks(rows: Sequence[dict]) -> dict[str, float]:
    """Mean rank over the sets of the methods that every set has, the best first."""
    means = []
    for mine in by_set([row for row in rows if "verdict" in row]).values():
        methods = dict.fromkeys(subject for row in mine for subject in row["subjects"])
        means.append({method: statistics.fmean(values(mine, method, "linear")) for method in methods})
    common = set.intersection(*map(set, means)) if means else set()
    rank = {
        method: statistics.fmean(1 + sum(of_set[other] > of_set[method] for other in common) for of_set in means)
        for method in common
    }
    return dict(sorted(rank.items(), key=lambda item: (item[1], item[0])))


def ranks_block(rows: Sequence[dict]) -> str:
    count = len(by_set(rows))
    head = f"mean rank over {count} set{'s' * (count != 1)}"
    return "\n".join(
        [f"{head:<44}{'linear':>16}", *(f"  {method:<42}{value:>16.1f}" for method, value in ranks(rows).items())]
    )


NAMES = {
    "closed form": "closed form (`diptych quick`)", "patch dictionary": "dictionary of patches, 4,608 wide", "simclr": "SimCLR",
    "moco": "MoCo v2", "moco-v3": "MoCo v3", "simsiam": "SimSiam", "barlow-twins": "Barlow Twins", "byol": "BYOL", "swav": "SwAV",
    "vicreg": "VICReg", "dino": "DINO",
}  # fmt: skip


def markdown(rows: Sequence[dict]) -> str:
    """A table for each budget: a row for each subject, best mean of linear accuracies first."""
    return "\n\n".join(map(markdown_table, by_minutes(rows).values()))


def markdown_table(rows: Sequence[dict]) -> str:
    sets, rank = by_set(rows), ranks(rows)
    subjects = dict.fromkeys(subject for row in rows for subject in row["subjects"])
    costly = max(sets, key=lambda name: statistics.fmean(row.get("seconds_per_epoch", 0.0) for row in sets[name]))
    heads = [f"{name}: linear | kNN" for name in sets]
    lines = [
        f"| {rows[0]['minutes']:g} minutes | {' | '.join([*heads, 'mean rank', f'CPU-s an epoch of {costly}', 'MB'])} |"
    ]
    lines.append("|---" * (lines[0].count("|") - 1) + "|")
    for subject in sorted(subjects, key=lambda subject: -over_sets(sets, subject)):
        cells = [accuracy(mine, subject, protocol) for mine in sets.values() for protocol in ("linear", "knn")]
        costs = [mean_cost(sets[costly], subject, key) for key in ("seconds_per_epoch", "peak_megabytes")]
        cells += [
            f"{rank[subject]:.1f}" if subject in rank else "",
            *("" if mean is None else f"{mean:,.0f}" for mean in costs),
        ]
        lines.append(f"| {NAMES.get(subject, subject)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def over_sets(sets: dict[str, list[dict]], subject: str) -> float:
    """The mean of the sets' mean linear accuracies, of the sets that have the subject."""
    return statistics.fmean(
        statistics.fmean(numbers) for rows in sets.values() if (numbers := values(rows, subject, "linear"))
    )


def accuracy(rows: Sequence[dict], subject: str, protocol: str) -> str:
    numbers = values(rows, subject, protocol)
    return interval(numbers).replace("+-", "±").removesuffix(" ± 0.0") if numbers else ""


def mean_cost(rows: Sequence[dict], subject: str, key: str) -> float | None:
    """None where nothing was trained."""
    numbers = [row[key] for row in rows if subject in row["subjects"] and key in row]
    return statistics.fmean(numbers) if numbers else None
