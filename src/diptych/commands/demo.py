"""`diptych demo`: train, evaluate and report on photographs that installed packages contain."""

from pathlib import Path

from diptych.commands.build import build, build_watches
from diptych.commands.recipe import read_recipe
from diptych.commands.schema import call_arguments
from diptych.commands.seeds import run_seeds
from diptych.data.images import images
from diptych.data.photographs import demo_source
from diptych.downstream.evaluate import evaluate
from diptych.downstream.results import Evaluation
from diptych.reporting.report import report
from diptych.runs.answers import has_answers
from diptych.runs.contents import is_run, require_place
from diptych.runs.proposed import Proposed
from diptych.runs.run import Run
from diptych.training.pretrain import pretrain


def run_demo(out: Path, seed: int, resume: bool, overwrite: bool) -> None:
    """Train, evaluate and report; print a table and the report's path."""
    evaluation, page = train_and_judge(out, seed, seed, resume=resume, overwrite=overwrite)
    print(evaluation)
    print(f"\nreport: {page}\nthe closed form alone: {Proposed('demo', out).closed_form}")


def run_demos(out: Path, first: int, count: int, overwrite: bool) -> str:
    """`run_demo` with several seeds, on the squares of the first, so that accuracies can be compared; returns their table."""

    def one(seed: int, folder: Path) -> None:
        if overwrite or not is_run(folder) or not Run(folder).finished or not has_answers(folder):
            resume = is_run(folder) and not overwrite
            train_and_judge(folder, seed, first, resume=resume, overwrite=overwrite, record={"squares": first})

    return run_seeds(count, first, out, one)


def train_and_judge(
    out: Path, seed: int, squares: int, *, resume: bool, overwrite: bool, record: dict | None = None
) -> tuple[Evaluation, Path]:
    """The evaluation and the report of a run with `seed` on the demo's squares of the seed `squares`."""
    sections = read_recipe("demo", [f"pretrain.seed={seed}"])
    built = build(sections)
    require_place(out, resume, overwrite)
    train, test = images(demo_source("train", squares)), images(demo_source("test", squares))
    watch = build_watches(sections, built, train)
    record = {"recipe": "demo", "source": "demo", **(record or {}), **sections}
    run = pretrain(built.method, train, built.views, built.optimizer, schedule=built.schedule, watch=watch, out=out,
                   resume=resume, overwrite=overwrite, record=record,
                   **call_arguments(pretrain, sections["pretrain"]))  # fmt: skip
    evaluation = evaluate(run, train, test, **call_arguments(evaluate, sections["evaluate"]))
    return evaluation, report(run.folder)
