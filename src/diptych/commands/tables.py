"""The text that a command prints when a run has ended."""

from diptych.base.files import read_json_lines
from diptych.downstream.results import verdict_of
from diptych.embeddings.diagnose import Diagnosis
from diptych.runs.run import Run


def run_summary(run: Run) -> str:
    """The run's folder, its encoder and stem, the last verdict and the next command."""
    lines = read_json_lines(run.folder / "evaluations.jsonl")
    diagnoses = [Diagnosis(**line["diagnosis"]) for line in lines if "diagnosis" in line]
    after = f"next: diptych evaluate {run.folder} --train SOURCE --test SOURCE, or diptych report {run.folder}"
    encoder = run.recipe.get("encoder", {})
    stem = f"encoder {encoder.get('name')}, stem {encoder.get('stem')}"
    return "\n".join([str(run.folder), stem, *map(verdict_of, diagnoses[-1:]), after])
