"""How many labels are needed? Accuracy over the number of labels, of an encoder and of what it has to be better than."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch

from diptych.base.device import choose_device
from diptych.base.files import require_writable, write_file
from diptych.base.random_at import seed_at
from diptych.base.ranges import Count, Device, Range, Seed, checked
from diptych.base.terminal import ProgressBar
from diptych.data.images import Images
from diptych.downstream.classifier import class_names
from diptych.downstream.evaluate import labelled, subjects
from diptych.downstream.few_labels import subset
from diptych.downstream.finetune import from_scratch
from diptych.downstream.frozen import Task
from diptych.downstream.leaks import PixelDigests
from diptych.downstream.tuning import Budget, tune
from diptych.embeddings.learning_curve import FEWEST_SIZES, LearningCurve, fit_learning_curve
from diptych.embeddings.paired import mean_interval, paired_difference
from diptych.embeddings.scores import Score, linear_probe
from diptych.reporting.gallery import require_page
from diptych.reporting.label_page import label_page, label_table
from diptych.runs.encoder import Trained, as_trained, precision_for
from diptych.runs.run import Run, is_run
from diptych.runs.subjects import JOINED, SCRATCH, main_subject

PER_CLASS = (1, 2, 5)  # and these times 10, 100, ...
SHARES = (0.01, 0.1, 1.0)
FEWEST_DRAWS, NEAR = 5, 0.1  # sizes that differ by less than this share are one
BEYOND = 4  # how many times the labels that there are the curve is drawn to


@dataclass(frozen=True)
class LabelCurves:
    """line: what evaluations.jsonl gets, plain data; curves: by subject, where there are enough sizes. `str`: a table."""

    line: dict[str, Any]
    curves: dict[str, LearningCurve] = field(repr=False)
    page: Path | None = None

    def __str__(self) -> str:
        lines = label_table(self.line)
        return "\n".join(lines if self.page is None else [*lines, f"page: {self.page}"])


@checked
def labels(
    trained: Trained | Run | str | Path,
    train: Images,
    test: Images,
    *,
    draws: Annotated[int, Range(FEWEST_DRAWS, 1000)] = FEWEST_DRAWS,
    scratch: bool = True,
    scratch_steps: Count | None = None,
    target: Annotated[float, Range(above=0, below=1)] | None = None,
    seed: Seed = 0,
    device: Device = "auto",
    out: str | Path | None = None,
    show: bool = True,
) -> LabelCurves:
    """Fit linear layers to 1, 2, 5, 10, 20 ... labels of each class and to 1, 10 and 100 % of all, `draws` times each.

    Rows: the trained encoder, the untrained one, raw pixels and the closed form, with the probe of `evaluate`; and, with
    `scratch`, the same network trained from scratch, as in `finetune` (scratch_steps: its steps, by default fitted), which
    takes most of the time. All rows of a draw use the same labels, and smaller sets are subsets of larger ones. The set
    of all labels is used once. A curve with a band is fitted to each row (`embeddings.learning_curve`) and extrapolated
    to more labels. target: an accuracy for which to estimate the number of labels. out: a page to write. A run folder
    stores the result. Nothing is chosen on the test images.

    Raises DataError for missing labels, RecipeError for invalid arguments, CheckpointError where no network can be trained
    from scratch, OutputError for a page or folder that cannot be written.
    """
    trained, where = as_trained(trained), choose_device(device)
    run = Run(require_writable(trained.folder)) if trained.folder is not None and is_run(trained.folder) else None
    page = None if out is None else require_page(Path(out))
    if scratch:
        from_scratch(trained, seed)
    train, test = labelled(train, test)
    names = class_names(train, "training")
    sizes = label_sizes(names)
    with ProgressBar("labels", show=show) as progress:
        task = Task(
            train, test, names, class_names(test, "test"), trained.preprocessing, where, seed=seed, tell=progress
        )
        tables = {subject: scores for subject, scores in probe_tables(trained, task, sizes, draws, progress)}
        if scratch:
            tables[SCRATCH] = scratch_table(trained, task, sizes, draws, scratch_steps, progress)
    curves = {subject: curve for subject, table in tables.items() if (curve := curve_of(table)) is not None}
    line = {"label_curve": described(tables, curves, task, draws, target, main=main_subject(trained.encoder))}
    if run is not None:
        run.append("evaluations.jsonl", [line])
    if page is not None:
        write_file(page, label_page(line, str(trained.folder or "encoder")).encode("utf-8", "replace"))
    return LabelCurves(line, curves, page)


def label_sizes(names: Sequence[str]) -> dict[int, tuple[str, float | int]]:
    """The number of labels -> its name and the amount of `few_labels.subset`, rising; the last one is all of them."""
    members = {name: names.count(name) for name in set(names)}
    fewest, classes, count = min(members.values()), len(members), len(names)
    wanted: dict[int, tuple[str, float | int]] = {count: ("100 %", 1.0)}
    for share in sorted(SHARES[:-1], reverse=True):
        used = sum(max(1, round(share * size)) for size in members.values())
        wanted.setdefault(used, (f"{100 * share:.0f} %", share))
    for power in range(int(math.log10(fewest)) + 1):
        for factor in PER_CLASS:
            if (number := factor * 10**power) <= fewest:
                wanted[number * classes] = (f"{number} a class", number)
    wanted[count] = ("100 %", 1.0)
    sizes: dict[int, tuple[str, float | int]] = {}
    for number in sorted(wanted, reverse=True):  # a share that is nearly a number of each class is left out
        if all(abs(number / other - 1) > NEAR for other in sizes):
            sizes[number] = wanted[number]
    return dict(sorted(sizes.items()))


Table = dict[int, list[Score]]  # number of labels -> the scores of its draws


def rows_of_draws(
    task: Task, sizes: dict[int, tuple[str, float | int]], draws: int
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """(number of labels, seed of the draw, rows of the training images)."""
    for number, (_, amount) in sizes.items():
        for draw in range(1 if number == len(task.train_labels) else draws):
            seed = seed_at(task.seed, "labels", "draw", draw)
            yield number, seed, subset(task.train_labels, amount, seed)


def probe_tables(
    trained: Trained, task: Task, sizes: dict, draws: int, progress: ProgressBar
) -> Iterator[tuple[str, Table]]:
    """The tables of all that only a linear layer is fitted to."""
    precision = precision_for("auto", trained, task.device)
    options: dict[str, Any] = {"baselines": True, "references": True, "precision": precision, "progress": progress}
    for subject in subjects(trained, task, seen=PixelDigests(), **options):
        if subject.name == JOINED and not subject.pretrained:
            continue
        table: Table = {}
        for number, seed, rows in rows_of_draws(task, sizes, draws):
            if number not in table:
                progress.say(f"labels: {subject.name}, {number:,} labels ...")
            z_NE, chosen = subject.train[rows.to(subject.train.device)], [task.train_labels[i] for i in rows.tolist()]
            table.setdefault(number, []).append(linear_probe(z_NE, chosen, subject.test, task.test_labels, seed=seed))
        yield subject.name, table


def scratch_table(
    trained: Trained, task: Task, sizes: dict, draws: int, steps: int | None, progress: ProgressBar
) -> Table:
    """The table of the same network, trained from scratch."""
    table: Table = {}
    for number, seed, rows in rows_of_draws(task, sizes, draws):
        if number not in table:
            progress.say(f"labels: {SCRATCH}, {number:,} labels ...")
        tuning = Budget(steps=steps).tuning(number, SCRATCH)
        score = tune(from_scratch(trained, seed), task.train.subset(rows), task.test, task.expected, tuning=tuning,
                     device=task.device, seed=seed, tell=progress)  # fmt: skip
        table.setdefault(number, []).append(score)
    return table


def curve_of(table: Table) -> LearningCurve | None:
    if len(table) < FEWEST_SIZES:
        return None
    return fit_learning_curve(list(table), [[score.accuracy for score in scores] for scores in table.values()])


def correct_of(scores: Sequence[Score]) -> torch.Tensor:
    return torch.stack([score.correct for score in scores if score.correct is not None])


def described(
    tables: dict[str, Table],
    curves: dict[str, LearningCurve],
    task: Task,
    draws: int,
    target: float | None,
    *,
    main: str,
) -> dict[str, Any]:
    """The curves as plain data: rows of accuracies, differences from the `main` encoder, fits, and labels for the target."""
    sizes = label_sizes(task.train_labels)
    rows = []
    for subject, table in tables.items():
        for number, scores in table.items():
            accuracies = [round(score.accuracy, 6) for score in scores]
            row = {"subject": subject, "labels": number, "name": sizes[number][0], "accuracies": accuracies}
            row |= {"accuracy": sum(accuracies) / len(accuracies), "interval": list(mean_interval(correct_of(scores)))}
            if subject != main:
                paired = paired_difference(correct_of(tables[main][number]), correct_of(scores))
                row |= {"gain": paired.difference, "gain_interval": list(paired.interval), "gain_p": paired.p}
            rows.append(row)
    fits = {subject: fit_line(curve, target) for subject, curve in curves.items()}
    facts = {"main": main, "draws": draws, "seed": task.seed}
    return {**facts, "test_images": len(task.test_labels), "classes": len(set(task.train_labels)),
            "target": target, "rows": rows, "fits": fits}  # fmt: skip


def fit_line(curve: LearningCurve, target: float | None) -> dict[str, Any]:
    """a, b, c, d; the curve at sizes from the smallest to BEYOND times the largest; the labels for the target."""
    first, last = curve.measured
    steps = [first * (last / first) ** (i / 24) for i in range(25)] + [last * 2 ** (i / 4) for i in range(1, 9)]
    points = [vars(curve.at(round(step))) for step in steps if step <= BEYOND * last * 1.001]
    line: dict[str, Any] = {
        "a": curve.a,
        "b": curve.b,
        "c": curve.c,
        "curve": points,
        "twice": vars(curve.at(2 * last)),
    }
    if target is not None:
        needed = curve.labels_for(target)
        line["needed"] = None if needed is None else vars(curve.at(needed))
    return line
