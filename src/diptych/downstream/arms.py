"""Runs side by side: those that differ only in their seed are one arm of a comparison."""

from collections.abc import Sequence
from dataclasses import dataclass
from os.path import commonpath
from pathlib import Path
from typing import Any

import numpy as np

from diptych.base.errors import CheckpointError, DataError, RecipeError
from diptych.reporting.record import Record, read_run, real
from diptych.runs.answers import Answers, read_answers
from diptych.runs.run import HISTORY, Run, flatten

# What may differ within an arm: it changes no number, or only as another seed would.
FREE = ("images.resident", "pretrain.device", "pretrain.log_steps", "pretrain.checkpoint_minutes", *HISTORY)
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass
class Arm:
    """Runs of one recipe. right: protocol -> bool (S, N), a row a run; {} where nothing was evaluated image by image."""

    letter: str
    records: list[Record]
    seeds: list[int | None]
    settings: dict[str, Any]
    answers: list[Answers]

    @property
    def folder(self) -> str:
        folders = [str(record.folder) for record in self.records]
        return folders[0] if len(folders) == 1 else commonpath(folders) or folders[0]

    @property
    def name(self) -> str:
        """`A  runs/first, seeds 0, 1, 2`."""
        seeds = ", ".join(str(seed) for seed in self.seeds if seed is not None)
        return f"{self.folder}, seed{'s' * (len(self.seeds) > 1)} {seeds}" if seeds else self.folder

    @property
    def subject(self) -> str:
        """The row of the runs' own encoder, the same for runs of one recipe."""
        return self.records[0].main

    def right(self, protocol: str) -> np.ndarray:
        return np.concatenate([answers.right[(protocol, self.subject)] for answers in self.answers])

    @property
    def protocols(self) -> list[str]:
        """Those by which every run of the arm was judged."""
        sets = [[name for name, subject in answers.right if subject == self.subject] for answers in self.answers]
        return [name for name in sets[0] if all(name in other for other in sets)] if sets else []

    def seeds_match(self, other: "Arm") -> bool:
        return None not in self.seeds and self.seeds == other.seeds

    def readings(self) -> dict[str, list[float]]:
        """The last readings of training, one of each run: loss, kNN accuracy of the watch, rank, spread."""
        readings: dict[str, list[float]] = {}
        for record in self.records:
            step, watch = (lines[-1] if lines else {} for lines in (record.steps, record.watches))
            last = {"loss": real(step.get("loss"))} | {name: real(watch.get(key)) for name, key in WATCHED.items()}
            for name, value in last.items():
                if value is not None:
                    readings.setdefault(name, []).append(value)
        return readings


WATCHED = {"online kNN accuracy": "knn_accuracy", "rank": "rank", "spread": "spread"}


def arms_of(folders: Sequence[str | Path]) -> list[Arm]:
    """The runs, grouped by recipe without seeds, in the order given.

    Raises RecipeError for a run given twice, DataError for a folder that is no run, CheckpointError for a damaged one.
    """
    arms: dict[str, Arm] = {}
    places: list[Path] = []
    for folder in map(Path, folders):
        if any(folder.exists() and folder.samefile(other) for other in places):
            raise RecipeError(f"{folder} is given twice; name each run once")
        places.append(folder)
        record, recipe = read_run(folder), flatten(Run(folder).recipe)
        seed = next((value for key, value in recipe.items() if is_seed(key) and isinstance(value, int)), None)
        settings = {key: value for key, value in recipe.items() if not is_seed(key) and key not in FREE}
        arm = arms.setdefault(repr(sorted(settings.items(), key=str)), Arm("", [], [], settings, []))
        arm.records.append(record)
        arm.seeds.append(seed)
    if len(arms) > len(LETTERS):
        raise RecipeError(f"{len(arms)} recipes are more than a page can show; compare at most {len(LETTERS)}")
    for letter, arm in zip(LETTERS, arms.values(), strict=False):
        arm.letter = letter
        order = sorted(range(len(arm.seeds)), key=lambda i: (arm.seeds[i] is None, arm.seeds[i] or 0))
        arm.records, arm.seeds = [arm.records[i] for i in order], [arm.seeds[i] for i in order]
    return list(arms.values())


def is_seed(key: str) -> bool:
    return key.split(".")[-1] == "seed"


def add_answers(arms: Sequence[Arm]) -> Answers | None:
    """Read the answers of all runs; None where no run has any.

    Raises DataError in one line where some runs lack them, and where two were judged on different test images.
    """
    records = [(arm, record) for arm in arms for record in arm.records]
    first: tuple[Path, Answers] | None = None
    missing: DataError | None = None
    for arm, record in records:
        try:
            answers = read_answers(record.folder)
        except CheckpointError:
            raise
        except DataError as error:
            missing = missing or error
            continue
        if first is None:
            first = record.folder, answers
        elif why := different(first[1], answers):
            raise DataError(f"{first[0]} and {record.folder} were evaluated on different test images ({why}): evaluate both on "
                            "the same SOURCE")  # fmt: skip
        arm.answers.append(answers)
    if first is not None and missing is not None:
        raise missing
    return None if first is None else first[1]


def different(a: Answers, b: Answers) -> str:
    """Why the answers are of other test images; "" where they are of the same."""
    if a.test != b.test:
        numbers = f"{len(a.names):,} and {len(b.names):,} images" if len(a.names) != len(b.names) else "same number"
        return f"other names or labels, {numbers}"
    return "" if a.images == b.images else "same names and labels, other contents"


def differing_settings(arms: Sequence[Arm]) -> list[tuple[str, list[str]]]:
    """(key, its value in every arm) of the settings that differ; "" where an arm has none.

    A section that an arm lacks, as the closed form has no optimizer, is one row: its name or "set" in the others.
    """
    keys = dict.fromkeys(key for arm in arms for key in arm.settings)
    sections = [{key.split(".")[0] for key in arm.settings} for arm in arms]
    rows: dict[str, list[str]] = {}
    for key in keys:
        section = key.split(".")[0]
        if section == key or all(section in known for known in sections):
            rows[key] = ["" if key not in arm.settings else text_of(arm.settings[key]) for arm in arms]
        else:
            rows[section] = [text_of(arm.settings.get(f"{section}.name", "set")) if section in known else ""
                             for arm, known in zip(arms, sections, strict=True)]  # fmt: skip
    return [(key, values) for key, values in rows.items() if len(set(values)) > 1]


def text_of(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
