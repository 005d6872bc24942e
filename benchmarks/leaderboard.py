"""Which method learns most in the same time? Nine methods and five references, on the same network, seeds and CPU budget.

    python -m benchmarks.leaderboard --train TRAIN --test TEST [--minutes 15] [--seeds 3] [--runs FOLDER]
    python -m benchmarks.leaderboard --sets demo --methods byol simclr --minutes 2
    python -m benchmarks.leaderboard --table        (the text table of what is there, nothing is trained)

cifar10 is any labelled SOURCE of 32 pixels; demo are the squares of `diptych demo`, photographs64 the same photographs at 64
pixels. A row is a method's recipe NAME-cifar10-small with `pretrain.budget`, a seed and one thread, in a process of its own: a
run folder FOLDER/SET/METHOD-SEED that `diptych report` opens. It is judged by kNN and a linear probe on the test images, which
nothing is chosen on. A row that is done is not done again; one that was stopped goes on. Nothing else may run on the core.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

import diptych
from benchmarks.few_labels import photographs
from benchmarks.leaderboard_table import read_rows, table
from benchmarks.measure import ROOT, commit, machine, parser
from diptych.commands.build import build
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
REFERENCES = "references"  # a row of its own: chance, raw pixels, untrained, dictionary, closed form


@dataclass(frozen=True)
class Task:
    """One row of the leaderboard. overrides: of the recipe, beside the budget and the seed."""

    name: str  # of the set
    method: str  # or REFERENCES
    seed: int
    runs: Path
    minutes: float
    overrides: tuple[str, ...] = ()

    @property
    def run(self) -> Path:
        return self.runs / self.name / f"{self.method}-{self.seed}"

    @property
    def result(self) -> Path:
        return self.run.with_name(f"{self.run.name}.json")


def cifar10(arguments: argparse.Namespace) -> tuple[Images, Images]:
    if not (arguments.train and arguments.test):
        raise SystemExit("the set cifar10 needs --train SOURCE and --test SOURCE (or --sets demo photographs64)")
    train, test = (diptych.images(source, size=32) for source in (arguments.train, arguments.test))
    return train, test


SETS: dict[str, tuple[int, Callable[[argparse.Namespace], tuple[Images, Images]]]] = {  # with the pixels of a side
    "cifar10": (32, cifar10),
    "demo": (32, lambda arguments: photographs(32)),
    "photographs64": (64, lambda arguments: photographs(64)),
}


def main(words: list[str] | None = None) -> None:
    arguments = options(words)
    torch.set_num_threads(1)
    if arguments.row is not None:
        return do(task_of(arguments, *arguments.row), arguments)
    if not arguments.table:
        for task in tasks(arguments):
            if not task.result.exists():
                print(f"{task.name}: {task.method}, seed {task.seed} ...", flush=True)
                in_a_process(task, arguments, words)
    rows = read_rows(arguments.runs)
    print(table(rows))
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
    command.add_argument("--minutes", type=float, default=15.0, help="of training, each row")
    command.add_argument("--seeds", type=int, default=3)
    command.add_argument("--runs", type=Path, default=ROOT / "runs" / "leaderboard", help="folder of the run folders")
    command.add_argument("--table", action="store_true", help="print what is there")
    command.add_argument("--row", nargs=3, metavar=("SET", "METHOD", "SEED"), help="one row, in this process")
    return command.parse_args(words)


def tasks(arguments: argparse.Namespace) -> list[Task]:
    """Seed by seed, so that what is stopped early has all methods; references last, as they need an untrained encoder."""
    names = [*arguments.methods, REFERENCES]
    seeds = range(1 if arguments.quick else arguments.seeds)
    return [task_of(arguments, name, method, seed) for seed in seeds for name in arguments.sets for method in names]


def task_of(arguments: argparse.Namespace, name: str, method: str, seed: int | str) -> Task:
    size, _ = SETS[name]
    overrides = ("pretrain.precision=bfloat16", *(() if size == 32 else (f"images.size={size}",)))  # for all rows alike
    return Task(name, method, int(seed), arguments.runs, 0.02 if arguments.quick else arguments.minutes, overrides)


def in_a_process(task: Task, arguments: argparse.Namespace, words: list[str] | None) -> None:
    """The row in a process of its own, whose peak of memory is the row's. Raises CalledProcessError where it fails."""
    passed = [*(sys.argv[1:] if words is None else words), "--row", task.name, task.method, str(task.seed)]
    subprocess.run([sys.executable, "-m", "benchmarks.leaderboard", *passed], check=True,
                   env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=Path(__file__).resolve().parents[1])  # fmt: skip


def do(task: Task, arguments: argparse.Namespace) -> None:
    """Train and judge one row, and write its result beside the run folder, at the end."""
    train, test = SETS[task.name][1](arguments)
    row = references(task, train, test) if task.method == REFERENCES else trained(task, train, test)
    task.result.parent.mkdir(parents=True, exist_ok=True)
    about = {"set": task.name, "seed": task.seed, "minutes": task.minutes, "commit": commit(), "machine": machine()}
    temporary = task.result.with_suffix(".tmp")
    temporary.write_text(json.dumps(about | row, indent=1) + "\n")
    temporary.replace(task.result)


def trained(task: Task, train: Images, test: Images) -> dict:
    """A run of the method's small recipe within the budget, and its accuracies."""
    began = time.process_time()
    recipe = f"{task.method}-cifar10-small"
    budget = f"pretrain.budget={round(60 * task.minutes, 3)}s"
    sections = read_recipe(recipe, [budget, f"pretrain.seed={task.seed}", "pretrain.device=cpu", *task.overrides])
    built = build(sections)
    run = pretrain(built.method, train, built.views, built.optimizer, schedule=built.schedule, out=task.run, resume=True,
                   record={"recipe": recipe, "source": task.name, **sections}, show=False,
                   **call_arguments(pretrain, sections["pretrain"]))  # fmt: skip
    cpu_seconds, peak = time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    scores = {score.protocol: score for score in evaluate(run, train, test, baselines=False, device="cpu", show=False).scores
              if score.subject == "trained"}  # fmt: skip
    return {"subjects": {task.method: accuracies(scores["knn"], scores["linear"])}, "peak_megabytes": peak / 1024,
            "cpu_seconds": cpu_seconds} | pace(run, len(train))  # fmt: skip


def pace(run: Run, images: int) -> dict[str, float | str]:
    """Epochs that the budget allowed, seconds of each (unless it was one step), and what the run says of itself."""
    step = run.lines("step")[-1]
    batch = run.recipe["pretrain"]["batch_size"]
    verdict = json.loads((run.folder / "evaluations.jsonl").read_text().splitlines()[0])["diagnosis"]["verdict"]
    about = {"epochs": step["step"] * batch / images, "verdict": verdict}
    rate = step["images_per_second"]
    return about | ({"seconds_per_epoch": images / rate} if rate else {})


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
