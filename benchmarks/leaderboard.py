"""Which method learns most in the same time? Nine methods and five references, on the same network, seeds and CPU budget.

    python -m benchmarks.leaderboard --train TRAIN --test TEST [--minutes 15] [--seeds 3] [--runs FOLDER]
    python -m benchmarks.leaderboard --sets demo --methods byol simclr --minutes 2
    python -m benchmarks.leaderboard --sets demo --override pretrain.batch_size=32 optimizer.lr=0.0007 --runs FOLDER
    python -m benchmarks.leaderboard --table        (what is there, nothing is trained; --markdown: as in the README)

cifar10 is any labelled SOURCE of 32 pixels, demo are the squares of `diptych demo`, backgrounds those of photographs that
Debian ships (benchmarks/backgrounds.py; `--backgrounds FOLDER` where they are not installed). A row is a method's recipe
NAME-cifar10-small, a seed and one thread, in a process of its own: a run folder that `diptych report` opens,
FOLDER/SET-MINUTESmin/METHOD-SEED. It is judged by kNN and a linear probe on the test images, which nothing is chosen on. A row
that is done is not done again; one that was stopped goes on.

The CPU-seconds of a step of every method are measured first, in turns, and FOLDER/paces.json keeps them: the budget is a
number of steps, which other work on the machine does not change afterwards. Rows with other overrides need a FOLDER of their own.
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import diptych
from benchmarks.backgrounds import backgrounds
from benchmarks.few_labels import photographs
from benchmarks.leaderboard_table import markdown, read_rows, table
from benchmarks.measure import ROOT, commit, machine, parser
from diptych.base.random_at import random_at
from diptych.commands.build import build
from diptych.commands.planning import plan
from diptych.commands.recipe import read_recipe
from diptych.commands.schema import call_arguments
from diptych.data.images import Images
from diptych.downstream.evaluate import evaluate
from diptych.embeddings.scores import Score, chance, knn_accuracy, linear_probe
from diptych.networks.inference import raw_pixels
from diptych.runs.run import Run
from diptych.training.pretrain import pretrain
from diptych.training.quick import quick

METHODS = ("barlow-twins", "simsiam", "simclr", "byol", "moco", "moco-v3", "swav", "vicreg", "dino")
SAME = ("pretrain.device=cpu", "pretrain.precision=bfloat16")  # for all rows alike
REFERENCES = "references"  # a row of its own: chance, raw pixels, untrained, dictionary, closed form


@dataclass(frozen=True)
class Task:
    """One row of the leaderboard. overrides: of the recipe, beside the budget and the seed."""

    name: str  # of the set
    method: str  # or REFERENCES
    seed: int
    runs: Path
    minutes: float
    pace: float  # CPU-seconds a step
    overrides: tuple[str, ...] = SAME

    @property
    def run(self) -> Path:
        return self.runs / f"{self.name}-{self.minutes:g}min" / f"{self.method}-{self.seed}"

    @property
    def steps(self) -> int:
        return max(1, round(60 * self.minutes / self.pace))

    @property
    def result(self) -> Path:
        return self.run.with_name(f"{self.run.name}.json")


def cifar10(arguments: argparse.Namespace) -> tuple[Images, Images]:
    if not (arguments.train and arguments.test):
        raise SystemExit("the set cifar10 needs --train SOURCE and --test SOURCE (or --sets demo backgrounds)")
    train, test = (diptych.images(source, size=32) for source in (arguments.train, arguments.test))
    if arguments.images is not None and arguments.images < len(train):
        order = torch.randperm(len(train), generator=random_at(0, "leaderboard's images"))
        train = train.subset(sorted(order[: arguments.images].tolist()))
    return train, test


SETS: dict[str, Callable[[argparse.Namespace], tuple[Images, Images]]] = {  # all of 32 pixels
    "cifar10": cifar10,
    "demo": lambda arguments: photographs(32),
    "backgrounds": lambda arguments: backgrounds(arguments.backgrounds),
}


def main(words: list[str] | None = None) -> None:
    arguments = options(words)
    torch.set_num_threads(1)
    if arguments.pace is not None:
        return print(json.dumps(pace(arguments.pace, arguments.override)))
    if arguments.row is not None:
        return do(task_of(arguments, *arguments.row), arguments)
    if not arguments.table:
        measure_paces(arguments, words)
        for task in tasks(arguments):
            if not task.result.exists():
                print(f"{task.name}: {task.method}, seed {task.seed} ...", flush=True)
                in_a_process(task, arguments, words)
    rows = read_rows(arguments.runs)
    print(markdown(rows) if arguments.markdown else table(rows))
    if rows and not (arguments.quick or arguments.table):
        arguments.out.mkdir(parents=True, exist_ok=True)
        context = {"commit": commit(), "date": time.strftime("%Y-%m-%d"), "machine": machine(), "rows": rows}
        (arguments.out / f"leaderboard-{arguments.device}.json").write_text(json.dumps(context, indent=1) + "\n")


def options(words: list[str] | None) -> argparse.Namespace:
    command = parser("leaderboard", threads=1)
    command.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    command.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    command.add_argument("--train", help="labelled training images of cifar10 (SOURCE)")
    command.add_argument("--test", help="labelled test images of cifar10 (SOURCE)")
    command.add_argument("--images", type=int, help="of cifar10's training images, drawn at random; all by default")
    command.add_argument(
        "--backgrounds", type=Path, default=Path("/"), help="folder that holds usr/share of Debian's packages"
    )
    command.add_argument("--override", nargs="+", default=[], metavar="KEY=VALUE", help="of the recipes, for all rows")
    command.add_argument("--minutes", type=float, default=15.0, help="CPU-minutes of training, each row")
    command.add_argument("--seeds", type=int, default=3)
    command.add_argument("--runs", type=Path, default=ROOT / "runs" / "leaderboard", help="folder of the run folders")
    command.add_argument("--table", action="store_true", help="print what is there")
    command.add_argument("--markdown", action="store_true", help="print tables of Markdown, one for each budget")
    command.add_argument("--row", nargs=3, metavar=("SET", "METHOD", "SEED"), help="one row, in this process")
    command.add_argument("--pace", metavar="METHOD", help="a measurement, in this process")
    return command.parse_args(words)


def tasks(arguments: argparse.Namespace) -> list[Task]:
    """Seed by seed, so that what is stopped early has all methods; references last, as they need an untrained encoder."""
    names = [*arguments.methods, REFERENCES]
    seeds = range(1 if arguments.quick else arguments.seeds)
    return [task_of(arguments, name, method, seed) for seed in seeds for name in arguments.sets for method in names]


def task_of(arguments: argparse.Namespace, name: str, method: str, seed: int | str) -> Task:
    seconds = known_paces(arguments.runs).get(method, math.nan)
    minutes = 0.02 if arguments.quick else arguments.minutes
    return Task(name, method, int(seed), arguments.runs, minutes, seconds, (*SAME, *arguments.override))


def in_a_process(task: Task, arguments: argparse.Namespace, words: list[str] | None) -> None:
    """The row in a process of its own, whose peak of memory is the row's. Raises CalledProcessError where it fails."""
    process(words, "--row", task.name, task.method, str(task.seed))


def process(words: list[str] | None, *more: str, **options: bool) -> str:
    line = [sys.executable, "-m", "benchmarks.leaderboard", *(sys.argv[1:] if words is None else words), *more]
    return subprocess.run(line, check=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
                          cwd=Path(__file__).resolve().parents[1], **options).stdout  # fmt: skip


def known_paces(runs: Path) -> dict[str, float]:
    """CPU-seconds of a step, by method."""
    kept = runs / "paces.json"
    return json.loads(kept.read_text()) if kept.exists() else {}


def measure_paces(arguments: argparse.Namespace, words: list[str] | None) -> None:
    """The smallest of `--repeats` measurements, all methods in turn, so that all meet the same other work."""
    known, kept = known_paces(arguments.runs), arguments.runs / "paces.json"
    missing = [method for method in arguments.methods if method not in known]
    for _ in range(1 if arguments.quick else arguments.repeats):
        for method in missing:
            seconds = float(process(words, "--pace", method, stdout=subprocess.PIPE))
            known[method] = min(seconds, known.get(method, math.inf))
            print(f"{method}: {seconds:.3f} CPU-s a step", flush=True)
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(known, indent=1) + "\n")


def pace(method: str, override: Sequence[str]) -> float:
    """CPU-seconds of a step of the method's recipe: views, forward, loss, backward, update."""
    sections = read_recipe(f"{method}-cifar10-small", [*SAME, *override])
    train, _ = photographs(32)  # the pixels make no difference
    return plan(sections, train, train.subset(range(min(256, len(train)))).pixels(), 1.0).pace.cpu


def do(task: Task, arguments: argparse.Namespace) -> None:
    """Train and judge one row, and write its result beside the run folder, at the end."""
    train, test = SETS[task.name](arguments)
    row = references(task, train, test) if task.method == REFERENCES else trained(task, train, test)
    task.result.parent.mkdir(parents=True, exist_ok=True)
    about = {
        "set": task.name,
        "seed": task.seed,
        "minutes": task.minutes,
        "commit": commit(),
        "machine": machine(),
        "overrides": task.overrides,
    }
    temporary = task.result.with_suffix(".tmp")
    temporary.write_text(json.dumps(about | row, indent=1) + "\n")
    temporary.replace(task.result)


def trained(task: Task, train: Images, test: Images) -> dict:
    """A run of the method's small recipe within the budget, and its accuracies."""
    began = time.process_time()
    recipe = f"{task.method}-cifar10-small"
    sections = read_recipe(
        recipe, [f"pretrain.budget={task.steps} steps", f"pretrain.seed={task.seed}", *task.overrides]
    )
    built = build(sections)
    run = pretrain(built.method, train, built.views, built.optimizer, schedule=built.schedule, out=task.run, resume=True,
                   record={"recipe": recipe, "source": task.name, **sections}, show=False,
                   **call_arguments(pretrain, sections["pretrain"]))  # fmt: skip
    cpu_seconds, peak = time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    scores = {score.protocol: score for score in evaluate(run, train, test, baselines=False, device="cpu", show=False).scores
              if score.subject == "trained"}  # fmt: skip
    return {"subjects": {task.method: accuracies(scores["knn"], scores["linear"])}, "peak_megabytes": peak / 1024,
            "cpu_seconds": cpu_seconds, "seconds_per_step": task.pace} | about(run, len(train), task.pace)  # fmt: skip


def about(run: Run, images: int, seconds_per_step: float) -> dict[str, float | str]:
    """Epochs that the budget allowed, CPU-seconds of each, and what the run says of itself."""
    batch = run.recipe["pretrain"]["batch_size"]
    verdict = json.loads((run.folder / "evaluations.jsonl").read_text().splitlines()[0])["diagnosis"]["verdict"]
    return {"epochs": run.lines("step")[-1]["step"] * batch / images, "verdict": verdict,
            "seconds_per_epoch": images / batch * seconds_per_step}  # fmt: skip


def references(task: Task, train: Images, test: Images) -> dict:
    """Accuracies without training: a constant answer, pixels, the network before training, patches, the closed form."""
    from benchmarks.closed_form import first_layer

    pixels = [images.pixels() for images in (train, test)]
    closed = quick(diptych.images(pixels[0]), seed=task.seed, show=False)
    codes = [first_layer(closed, part) for part in pixels]
    scale = codes[0].std(0).clamp_min(1e-3)
    vectors = {
        "raw pixels": [raw_pixels(part, (0.5,) * 3, (0.25,) * 3) for part in pixels],
        "patch dictionary": [(z - codes[0].mean(0)) / scale for z in codes],
        "closed form": [closed(part) for part in pixels],
    }
    started = sorted(task.run.parent.glob(f"*-{task.seed}/untrained"))
    if started:
        before = diptych.load(started[0])
        vectors["untrained"] = [before(part) for part in pixels]
    names = [[str(label) for label in images.labels or ()] for images in (train, test)]
    constant = chance(names[1])
    subjects = {"chance": accuracies(constant, constant)}
    for name, (z_train, z_test) in vectors.items():
        arrays = z_train, names[0], z_test, names[1]
        subjects[name] = accuracies(knn_accuracy(*arrays), linear_probe(*arrays, seed=task.seed))
    return {"subjects": subjects}


def accuracies(knn: Score, linear: Score) -> dict[str, float]:
    return {"knn": 100 * knn.accuracy, "linear": 100 * linear.accuracy}


if __name__ == "__main__":
    main()
