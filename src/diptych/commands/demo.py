"""`diptych demo`: train, evaluate and report on photographs that installed packages contain."""

from pathlib import Path

from diptych.commands.build import build, build_watches
from diptych.commands.recipe import read_recipe
from diptych.commands.schema import call_arguments
from diptych.data.images import images
from diptych.data.photographs import demo_source
from diptych.downstream.evaluate import evaluate
from diptych.reporting.report import report
from diptych.runs.contents import require_place
from diptych.training.pretrain import pretrain


def run_demo(out: Path, seed: int, resume: bool, overwrite: bool) -> None:
    """Train, evaluate and report; print a table and the report's path."""
    sections = read_recipe("demo", [f"pretrain.seed={seed}"])
    built = build(sections)
    require_place(out, resume, overwrite)
    train, test = images(demo_source("train", seed)), images(demo_source("test", seed))
    watch = build_watches(sections, built, train)
    record = {"recipe": "demo", "source": "demo", **sections}
    run = pretrain(built.method, train, built.views, built.optimizer, schedule=built.schedule, watch=watch, out=out,
                   resume=resume, overwrite=overwrite, record=record,
                   **call_arguments(pretrain, sections["pretrain"]))  # fmt: skip
    print(evaluate(run, train, test, **call_arguments(evaluate, sections["evaluate"])))
    print(f"\nreport: {report(run.folder)}\nthe closed form alone: diptych quick demo --out {run.folder}-quick")
