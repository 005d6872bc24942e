"""Does the forecast at twice the labels hold? The curve of `diptych labels`, fitted to fewer labels than there are.

    python -m benchmarks.labels [--sets digits photographs] [--draws 5]
    python -m benchmarks.labels --sets source --name cifar10 --train TRAIN --test TEST [--images 6000]

For every number of labels n whose double was measured too, and five numbers of labels up to n or more, a curve is fitted to the
draws of up to n labels, and its band at 2 n is held to the mean accuracy that was measured there. The encoder is the
closed form of the training images, beside raw pixels; --run takes another.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

import diptych
from benchmarks.few_labels import digits, photographs
from benchmarks.measure import commit, goal, machine, parser
from diptych.base.random_at import random_at
from diptych.data.images import Images
from diptych.embeddings.learning_curve import FEWEST_SIZES, fit_learning_curve

HELD = 0.95  # share of forecasts whose band should hold the measured accuracy
SETS = {"digits": digits, "photographs": lambda: photographs(32)}


def main() -> None:
    arguments = options()
    torch.set_num_threads(arguments.threads)
    rows = []
    for name in arguments.sets:
        began = time.process_time()
        train, test = sources(arguments) if name == "source" else SETS[name]()
        train, test = few(train, arguments.images), few(test, arguments.test_images)
        trained = diptych.quick(train, show=False) if arguments.run is None else diptych.load(arguments.run)
        result = diptych.labels(trained, train, test, draws=arguments.draws, scratch=False, show=False)
        rows += forecasts(result.line["label_curve"], arguments.name if name == "source" else name)
        print(result, f"\n{time.process_time() - began:.0f} CPU-seconds\n", flush=True)
    show(rows)
    if not arguments.quick:
        write(rows, arguments)


def options() -> argparse.Namespace:
    known = parser("labels", threads=1)
    known.add_argument("--sets", nargs="+", default=list(SETS), choices=[*SETS, "source"])
    known.add_argument("--train", help="labelled training images (SOURCE)")
    known.add_argument("--test", help="labelled test images (SOURCE)")
    known.add_argument("--name", default="source", help="of the set, in the JSON")
    known.add_argument("--images", type=int, default=6000, help="training images at most")
    known.add_argument("--test-images", type=int, default=2000, help="test images at most")
    known.add_argument("--draws", type=int, default=5)
    known.add_argument("--run", help="a trained encoder")
    arguments = known.parse_args()
    if arguments.quick:
        arguments.sets, arguments.images, arguments.test_images = ["digits"], 300, 100
    return arguments


def sources(arguments: argparse.Namespace) -> tuple[Images, Images]:
    if not (arguments.train and arguments.test):
        raise SystemExit("this set needs --train SOURCE and --test SOURCE")
    return diptych.images(arguments.train, size=32), diptych.images(arguments.test, size=32)


def few(images: Images, most: int) -> Images:
    chosen = torch.randperm(len(images), generator=random_at(0, "benchmark", "labels"))[:most]
    return images.subset(chosen.sort().values)


def forecasts(curve: dict, name: str) -> list[dict]:
    """A row for every subject and number of labels whose double was measured."""
    rows = []
    for subject in dict.fromkeys(row["subject"] for row in curve["rows"]):
        measured = {row["labels"]: row["accuracies"] for row in curve["rows"] if row["subject"] == subject}
        for n in measured:
            below = [size for size in measured if size <= n]
            if 2 * n in measured and len(below) >= FEWEST_SIZES:
                forecast = fit_learning_curve(below, [measured[size] for size in below]).at(2 * n)
                actual = statistics.fmean(measured[2 * n])
                rows.append({"set": name, "subject": subject, "from": n, "to": 2 * n, "accuracy": actual}
                            | {"forecast": forecast.accuracy, "low": forecast.low, "high": forecast.high}
                            | {"held": forecast.low <= actual <= forecast.high})  # fmt: skip
    return rows


def show(rows: list[dict]) -> None:
    print(f"{'set':<14}{'subject':<13}{'fitted to':>10}{'labels':>8}{'measured':>10}   forecast")
    for row in rows:
        band = f"{100 * row['forecast']:.1f} [{100 * row['low']:.1f} to {100 * row['high']:.1f}]"
        print(f"{row['set']:<14}{row['subject']:<13}{row['from']:>10,}{row['to']:>8,}{100 * row['accuracy']:>10.1f}   {band}"
              f"{'' if row['held'] else '  outside'}")  # fmt: skip
    print(goal("forecasts whose band holds the accuracy", statistics.fmean(row["held"] for row in rows), HELD))


def write(rows: list[dict], arguments: argparse.Namespace) -> None:
    """OUT/labels.json: the rows of this call replace those of the same sets."""
    path: Path = arguments.out / "labels.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    context = {"commit": commit(), "date": time.strftime("%Y-%m-%d"), "machine": machine(), "draws": arguments.draws}
    for name in dict.fromkeys(row["set"] for row in rows):
        known[name] = context | {"forecasts": [row for row in rows if row["set"] == name]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
