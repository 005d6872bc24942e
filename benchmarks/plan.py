"""Is the forecast of `diptych plan` right? The seconds it names beside those that the training then takes.

    python -m benchmarks.plan [--recipes demo coding-rate-cifar10-small simsiam-small] [--epochs 3] [--cpu]
    python -m benchmarks.plan --source SOURCE ...

--cpu counts the CPU-seconds of this process instead of those of the clock, so that other programs on the machine do not matter;
with one thread both are the same on a quiet machine. Each recipe is forecast and then trained, in turns, --repeats times.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import torch

from benchmarks.measure import commit, goal, machine, parser
from diptych.commands import planning, pretraining
from diptych.commands.recipe import read_recipe
from diptych.training import budget, forecast

WITHIN = 0.15  # of the time that training takes


def main() -> None:
    arguments = options()
    torch.set_num_threads(arguments.threads)
    if arguments.cpu:  # the clocks of the forecast
        clock = SimpleNamespace(
            monotonic=time.process_time, perf_counter=time.process_time, process_time=time.process_time
        )
        budget.time = forecast.time = planning.time = clock  # pyrefly: ignore[bad-assignment]
    rows = []
    for recipe in arguments.recipes:
        for repeat in range(arguments.repeats):
            rows.append(compare(recipe, arguments) | {"recipe": recipe, "repeat": repeat})
            show(rows[-1])
    worst = max(abs(row["forecast"] / row["seconds"] - 1) for row in rows)
    print(goal("the largest error of a forecast, as a share of the time,", worst, WITHIN, at_most=True))
    if not arguments.quick:
        path: Path = arguments.out / "plan.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        context = {
            "commit": commit(),
            "date": time.strftime("%Y-%m-%d"),
            "machine": machine(),
            "cpu_seconds": arguments.cpu,
        }
        path.write_text(json.dumps(context | {"rows": rows}, indent=1) + "\n")


def options() -> argparse.Namespace:
    known = parser("plan", threads=1)
    known.set_defaults(repeats=1)
    known.add_argument("--recipes", nargs="+", default=["demo", "coding-rate-cifar10-small", "simsiam-small"])
    known.add_argument("--source", default="demo")
    known.add_argument("--epochs", type=int, default=3)
    known.add_argument("--overrides", nargs="*", default=[], metavar="KEY=VALUE")
    known.add_argument("--cpu", action="store_true", help="count CPU-seconds of this process")
    arguments = known.parse_args()
    if arguments.quick:
        small = ["encoder.channels=[8,8,8,8]", "method.projector=[16,16]", "pretrain.batch_size=256", "watch.images=16"]
        arguments.recipes, arguments.epochs, arguments.overrides = ["demo"], 1, small
    return arguments


def compare(recipe: str, arguments: argparse.Namespace) -> dict:
    """The seconds of the forecast, of its making, and of the training."""
    clock = time.process_time if arguments.cpu else time.perf_counter
    overrides = [*arguments.overrides, f"pretrain.epochs={arguments.epochs}", f"pretrain.device={arguments.device}"]
    began = clock()
    sections = read_recipe(recipe, overrides)
    photos = planning.open_part(arguments.source, sections)
    planned = planning.plan(sections, photos, *planning.sample(photos))
    made_in = clock() - began
    with tempfile.TemporaryDirectory() as folder:
        began = clock()
        pretraining.run_pretraining(arguments.source, overrides, recipe, Path(folder) / "run", resume=False, overwrite=False,
                                    gpus=None, extend=None, start_from=None)  # fmt: skip
        seconds = clock() - began
    return {"forecast": planned.seconds + planned.reading, "seconds": seconds, "made_in": made_in, "steps": planned.steps,
            "step": planned.pace.step, "batch_size": planned.batch, "measured": planned.pace.measured}  # fmt: skip


def show(row: dict) -> None:
    error = statistics.fmean([100 * (row["forecast"] / row["seconds"] - 1)])
    print(f"{row['recipe']:<28}{row['steps']:>6} steps of {row['batch_size']}: forecast {row['forecast']:.1f} s, took "
          f"{row['seconds']:.1f} s ({error:+.1f} %); forecast in {row['made_in']:.1f} s, steps of {row['measured']} measured",
          flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
