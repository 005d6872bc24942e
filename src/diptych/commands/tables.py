"""The text that a command prints when a run has ended."""

from pathlib import Path

from diptych.base.errors import CheckpointError
from diptych.base.files import read_json_lines
from diptych.downstream.results import verdict_of
from diptych.embeddings.diagnose import Diagnosis
from diptych.runs.proposed import word
from diptych.runs.run import Run


def run_summary(run: Run) -> str:
    """The run's folder, its encoder and stem, the last verdict and the next command."""
    diagnosis = last_diagnosis(run.folder)
    encoder = run.section("encoder")
    stem = f"encoder {encoder.get('name')}, stem {encoder.get('stem')}"
    return "\n".join([str(run.folder), stem, *map(verdict_of, diagnosis), next_step(run.folder)])


def next_step(folder: Path) -> str:
    """What to do with a new encoder."""
    return (
        f"next: diptych evaluate {word(folder)} --train LABELLED (images in class folders; a part of them is held out)"
    )


def last_diagnosis(folder: Path) -> list[Diagnosis]:
    """The last diagnosis in a run's evaluations.jsonl; [] where there is none. Raises CheckpointError for a damaged one."""
    path = folder / "evaluations.jsonl"
    written = [line["diagnosis"] for line in read_json_lines(path) if "diagnosis" in line]
    try:
        diagnoses = [Diagnosis(**part) for part in written[-1:]]
        for diagnosis in diagnoses:
            verdict_of(diagnosis)  # joins its texts
    except TypeError:
        raise CheckpointError(f"{path}: its last diagnosis is damaged; restore or remove the line") from None
    return diagnoses
