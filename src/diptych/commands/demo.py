"""`diptych demo`: train, judge and report on photographs that are already on the disk."""

from pathlib import Path

from diptych.commands import recipe as recipes
from diptych.commands.build import build, build_watches
from diptych.commands.schema import call_arguments
from diptych.data.images import images
from diptych.data.photographs import demo_source
from diptych.downstream.evaluate import evaluate
from diptych.reporting.report import report
from diptych.training.pretrain import pretrain


def run_demo(out: Path, seed: int, resume: bool, overwrite: bool) -> None:
    """Train, judge, report; print one table and the report's path."""
    settings = recipes.read("demo", [f"pretrain.seed={seed}"])
    built = build(settings)
    train, test = images(demo_source("train", seed)), images(demo_source("test", seed))
    watch = build_watches(settings, built, train)
    record = {"recipe": "demo", "source": "demo", **settings}
    run = pretrain(built.method, train, built.views, built.optimizer, schedule=built.schedule, watch=watch, out=out,
                   resume=resume, overwrite=overwrite, record=record,
                   **call_arguments(pretrain, settings["pretrain"]))  # fmt: skip
    print(evaluate(run, train, test, **call_arguments(evaluate, settings["evaluate"])))
    print(f"\nreport: {report(run.folder)}")
