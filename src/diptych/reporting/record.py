"""Reads a run folder for the report. Missing files give empty fields; damaged parts are left out and noted."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from diptych.base.errors import CheckpointError, DataError, RecipeError
from diptych.base.files import read_json_lines, read_object, read_plain
from diptych.base.strict_yaml import parse
from diptych.reporting.arrays import check_arrays
from diptych.runs.contents import is_run
from diptych.runs.pictures import PICTURES, picture_path, read_picture
from diptych.runs.subjects import main_of_recipe

LONGEST_TEXT = 300  # characters of one text on the page (a class, a reason, a path)
RECIPE_LINES = 400
LARGEST_NUMBER = 1e100  # of those that are drawn: beyond it, the arithmetic of axes leaves the range of floats


@dataclass
class Record:
    """The contents of one run folder."""

    folder: Path
    recipe_text: str = ""
    recipe: dict = field(default_factory=dict)
    steps: list[dict] = field(default_factory=list)
    watches: list[dict] = field(default_factory=list)
    end: dict | None = None
    crash: dict | None = None
    results: list[dict] = field(default_factory=list)
    diagnosis: dict | None = None
    leaks: dict | None = None
    label_curve: dict | None = None
    environment: dict = field(default_factory=dict)
    pictures: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def closed_form(self) -> bool:
        """Whether the run is one of `diptych quick`, which trains nothing."""
        return "quick" in self.recipe

    @property
    def main(self) -> str:
        """The subject that the run's own encoder is: "trained", "closed form" or "joined"."""
        return main_of_recipe(self.recipe)

    @property
    def unlabelled(self) -> bool:
        """Whether its images are known to have no labels: none of those on the map has one, and nothing was evaluated."""
        return "map" in self.pictures and not self.results and bool((self.pictures["map"]["labels"] < 0).all())

    @property
    def name(self) -> str:
        return clip(self.folder.resolve().name) or "run"


def read_run(folder: str | Path) -> Record:
    """Read all that a report needs. Raises `DataError` for a folder that is absent or not a run's."""
    folder = Path(folder)
    if not folder.is_dir() or not (is_run(folder) or (folder / "recipe.yaml").is_file()):
        problem = (
            "is not a run folder (it has no log.jsonl and no recipe.yaml)" if folder.exists() else "does not exist"
        )
        raise DataError(f"{folder} {problem}; `diptych pretrain SOURCE --out {folder}` makes a run")
    run = Record(folder)
    text = read_text(run, "recipe.yaml")
    run.recipe_text = "\n".join(clip(line) for line in text.splitlines()[:RECIPE_LINES])
    try:
        recipe = parse(text, "recipe.yaml") if text else {}
        run.recipe = recipe if isinstance(recipe, dict) else {}
    except RecipeError as error:
        run.notes.append(str(error))
    read_log(run)
    read_evaluations(run)
    run.environment = read_noted(run, "environment.json")
    crashes = sorted((folder / "crash").glob("step_*.json"))
    if crashes and not run.end:
        run.crash = read_noted(run, f"crash/{crashes[-1].name}")
    for name, picture in PICTURES.items():
        if picture.drawn:
            add_picture(run, name, picture.required[0])
    return run


def read_log(run: Record) -> None:
    """Steps and watches in order. A resumed run may log a step twice: the later line counts."""
    steps, watches = {}, {}
    for line in read_valid_lines(run, "log.jsonl"):
        step, event = real(line.get("step")), line.get("event")
        if event == "end":
            run.end = line
        if step is not None and event == "step":
            steps[step] = line
            run.end = None  # training went on after that end
        elif step is not None and event == "watch":
            watches[step] = line
    run.steps = [steps[step] for step in sorted(steps)]
    run.watches = [watches[step] for step in sorted(watches)]


def read_evaluations(run: Record) -> None:
    """The latest result of each protocol and subject, and the latest leaks, curve of labels and diagnosis."""
    latest: dict[tuple[str, str], dict] = {}
    for line in read_valid_lines(run, "evaluations.jsonl"):
        if isinstance(line.get("diagnosis"), dict):
            run.diagnosis = line["diagnosis"]
        if isinstance(line.get("leaks"), dict):
            run.leaks = line["leaks"]
        if isinstance(line.get("label_curve"), dict):
            run.label_curve = line["label_curve"]
        accuracy = real(line.get("accuracy"))
        if accuracy is None or "protocol" not in line or "subject" not in line:
            continue
        details = line.get("details")
        labels = (
            details.get("labels") if isinstance(details, dict) else None
        )  # of fine-tuning: a column per share of labels
        protocol = line["protocol"] if labels is None else f"{line['protocol']}, labels {labels}"
        key = clip(protocol), clip(line["subject"])
        measurements = latest.pop(key, {}).get("measurements", 0) + 1
        latest[key] = {
            **line,
            "protocol": key[0],
            "subject": key[1],
            "accuracy": accuracy,
            "measurements": measurements,
            "interval": interval(line.get("interval")),
        }
    run.results = list(latest.values())


def add_picture(run: Record, name: str, first: str) -> None:
    """Add the arrays of pictures/NAME.npz, unless `first` of them is empty. A damaged file is left out and noted."""
    path = picture_path(run.folder, name)
    if not os.path.lexists(path):
        return
    try:
        arrays = read_picture(run.folder, name)
        check_arrays(name, arrays)
    except (CheckpointError, ValueError) as error:
        reason = clip(str(error).removeprefix(f"{path}: "), 120)
        run.notes.append(f"pictures/{name}.npz cannot be drawn ({reason})")
        return
    if len(arrays[first]):
        run.pictures[name] = arrays


def read_valid_lines(run: Record, name: str) -> list[dict]:
    """The objects of a JSON-lines file. Other lines are noted, except the last one: a kill may have cut it short."""
    damaged: list[str] = []
    try:
        lines = read_json_lines(run.folder / name, damaged=damaged)
    except CheckpointError as error:
        run.notes.append(str(error))
        return []
    if damaged:
        run.notes.append(f"{name}: {len(damaged)} line(s) could not be read and are left out")
    return lines


def read_noted(run: Record, name: str) -> dict:
    """The object of a JSON file; {} when it is absent or damaged. Damage is noted."""
    try:
        return read_object(run.folder / name) if os.path.lexists(run.folder / name) else {}
    except CheckpointError as error:
        run.notes.append(f"{name} could not be read ({error})")
        return {}


def read_text(run: Record, name: str) -> str:
    """A file's text, "" when it is absent. Bytes that are not UTF-8 become replacement characters."""
    try:
        return read_plain(run.folder / name).decode("utf-8", "replace") if os.path.lexists(run.folder / name) else ""
    except CheckpointError as error:
        run.notes.append(str(error))
        return ""


def real(value: object) -> float | None:
    """A finite number of at most LARGEST_NUMBER as float, what is next to nothing as 0; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= LARGEST_NUMBER:
        return None
    return float(value) if abs(value) >= 1 / LARGEST_NUMBER else 0.0


def interval(value: object) -> tuple[float, float] | None:
    """[low, high] as two floats; None for anything else."""
    ends = [real(end) for end in value] if isinstance(value, (list, tuple)) and len(value) == 2 else [None]
    return (ends[0], ends[1]) if None not in ends else None  # pyrefly: ignore


def clip(value: object, longest: int = LONGEST_TEXT) -> str:
    """Any value as a text of bounded length."""
    text = value if isinstance(value, str) else str(value)
    return text if len(text) <= longest else text[: longest - 1] + "…"
