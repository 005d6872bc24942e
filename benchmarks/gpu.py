"""What does one GPU do? The goals for it, one table each: whole epochs and runs of recipes, judging, ResNet-50, time to 90 %.

    python -m benchmarks.gpu [--only barlow keras simsiam judge resnet50] [--compile]
    python -m benchmarks.gpu --only accuracy --train TRAIN --test TEST [--epochs 60]

Views are `python -m benchmarks.views --device cuda --sizes 32`. Images are made up, but for `accuracy`, which trains
barlow-twins-cifar10 for so many epochs on TRAIN and judges it on TEST by the protocol `linear`. Epochs are computed from steps, a
reading every ten of them, as a log line waits for the device; `simsiam` takes its five epochs whole, the start included. The
published seconds are of other GPUs.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence

import torch

import diptych
from benchmarks.evaluation import clusters
from benchmarks.measure import Row, clock, goal, parser, report
from benchmarks.training import ours
from benchmarks.views import pictures
from diptych.commands import recipe
from diptych.commands.build import build
from diptych.data.images import Images
from diptych.embeddings.scores import knn_accuracy, linear_probe
from diptych.networks.inference import Preprocessing, embeddings
from diptych.runs.run import Run
from diptych.views.presets import CIFAR10

WORK = {"images": 50_000, "tests": 10_000, "steps": 8, "photos": 2048, "photo": 256, "batch": 512}
QUICK = {"images": 64, "tests": 16, "steps": 1, "photos": 16, "photo": 40, "batch": 8}
TINY = ["encoder={name: resnet18, channels: [8, 8, 8, 8]}", "pretrain.batch_size=8"]
PUBLISHED = {"keras": "published: 4,560 s", "simsiam": "published: 78 s"}
GOALS = {  # base, strong, moonshot
    "barlow": (1.7, 1.1, 0.85),
    "keras": (160, 100, 60),
    "simsiam": (8, 4, 2),
    "judge": (5, 2, 1),
    "resnet50": (2000, 3500, 5000),
    "accuracy": (300, 180, 120),
}


def asked(name: str, arguments: argparse.Namespace, *overrides: str) -> dict:
    """A recipe in bfloat16; for --quick with a network that a CPU takes at once."""
    small = [*TINY, "method.projector=[16, 16, 16]" if "barlow" in name else "method.projector=[16, 16]"]
    if "keras-published" in name and "simsiam" in name:
        small = small[1:]  # its network is small, and no other can freeze its statistics
    compiled = ["pretrain.torch_compile=true"] * arguments.compile
    return recipe.read_recipe(name, ["pretrain.precision=bfloat16", *overrides, *compiled, *small * arguments.quick])


def seconds_of_steps(made: dict, size: int, work: dict, arguments: argparse.Namespace) -> list[float]:
    pixels = pictures(min(work["photos"], 4 * made["pretrain"]["batch_size"]), size)
    return ours(made, pixels, "bfloat16", arguments.device)(work["steps"])


def whole_run(made: dict, photos: Images, folder: str, arguments: argparse.Namespace) -> tuple[Run, float]:
    """A run of the recipe in `folder`, and its seconds, the start and the end included."""
    built, options = build(made), made["pretrain"]
    started = time.perf_counter()
    run = diptych.pretrain(built.method, photos, built.views, built.optimizer, out=f"{folder}/run", epochs=options["epochs"],
                           batch_size=options["batch_size"], schedule=built.schedule, precision="bfloat16",
                           device=arguments.device, torch_compile=arguments.compile, show=False)  # fmt: skip
    return run, time.perf_counter() - started


def told(kind: str, what: str, row: Row, arguments: argparse.Namespace) -> None:
    at_most, unit = row.unit == "s", f" {row.unit}"
    notes = [] if arguments.quick else [goal(what, row.median, wanted, unit, at_most) for wanted in GOALS[kind]]
    report("gpu", what, [row], "", arguments, notes)


def barlow(work: dict, arguments: argparse.Namespace) -> None:
    made = asked("barlow-twins-cifar10", arguments)
    steps = work["images"] // made["pretrain"]["batch_size"]
    epochs = [steps * second for second in seconds_of_steps(made, 32, work, arguments)]
    told("barlow", "an epoch of 50,000 pairs, ResNet-18, Barlow Twins", Row("barlow-twins-cifar10", epochs), arguments)


def keras(work: dict, arguments: argparse.Namespace) -> None:
    made = asked("barlow-twins-keras-published", arguments)
    steps = made["pretrain"]["epochs"] * (work["images"] // made["pretrain"]["batch_size"])
    runs = [steps * second for second in seconds_of_steps(made, 32, work, arguments)]
    row = Row("barlow-twins-keras-published", runs, note=PUBLISHED["keras"])
    told("keras", "160 epochs of the Keras Barlow Twins recipe", row, arguments)


def simsiam(work: dict, arguments: argparse.Namespace) -> None:
    photos = diptych.images(pictures(work["images"], 32))
    with tempfile.TemporaryDirectory() as folder:
        _, seconds = whole_run(asked("simsiam-keras-published", arguments), photos, folder, arguments)
    row = Row("simsiam-keras-published", [seconds], note=PUBLISHED["simsiam"])
    told("simsiam", "5 epochs of the Keras SimSiam recipe, start and end included", row, arguments)


def judge(work: dict, arguments: argparse.Namespace) -> None:
    """Embeddings of as many images as CIFAR-10 has; judged are clusters of that size, as made-up images have no classes."""
    network = build(asked("barlow-twins-cifar10", arguments)).method.encoder.to(arguments.device).eval()
    pixels = pictures(work["images"] + work["tests"], 32)
    (z, y), width = clusters(len(pixels), network.num_features, "judge"), work["images"]
    expected = Preprocessing(32, *CIFAR10)
    seconds = []
    for _ in range(min(arguments.repeats, 3)):
        started = clock(arguments.device)
        embeddings(network, pixels, expected, device=arguments.device, precision="bfloat16")
        for protocol in (linear_probe, knn_accuracy):
            protocol(
                z[:width].to(arguments.device), y[:width].tolist(), z[width:].to(arguments.device), y[width:].tolist()
            )
        seconds.append(clock(arguments.device) - started)
    told("judge", "features, probe and kNN of CIFAR-10, ResNet-18", Row("features + linear + kNN", seconds), arguments)


def resnet50(work: dict, arguments: argparse.Namespace) -> None:
    made = asked("barlow-twins-imagenet", arguments, f"pretrain.batch_size={work['batch']}")
    seconds = seconds_of_steps(made, work["photo"], work, arguments)
    row = Row(
        "barlow-twins-imagenet", seconds, made["pretrain"]["batch_size"], "pairs/s", "resident images of 256 pixels"
    )
    told("resnet50", "ResNet-50 at 224 pixels, 8192-8192-8192, batch 512", row, arguments)


def accuracy(work: dict, arguments: argparse.Namespace) -> None:
    """Seconds of the whole training, and what the encoder is then worth."""
    if arguments.train is None or arguments.test is None:
        sys.exit("benchmarks.gpu: accuracy needs labelled images: --train TRAIN --test TEST")
    made = asked("barlow-twins-cifar10", arguments, f"pretrain.epochs={arguments.epochs}")
    train, test = (diptych.images(source, size=32) for source in (arguments.train, arguments.test))
    train.prepare(), test.prepare()
    with tempfile.TemporaryDirectory() as folder:
        run, seconds = whole_run(made, train, folder, arguments)
        evaluation = diptych.evaluate(
            run, train=train, test=test, protocols=["linear"], baselines=False, device=arguments.device
        )
    worth = evaluation.score("linear").accuracy
    row = Row(f"{arguments.epochs} epochs", [seconds], note=f"linear {100 * worth:.1f} %", extra={"linear": worth})
    reached = "reached 90 %" if worth >= 0.9 else "did NOT reach 90 %: take more --epochs"
    print(f"\n{arguments.epochs} epochs {reached}")
    told("accuracy", "training until a linear accuracy of 90 %", row, arguments)


QUESTIONS = {
    "barlow": barlow,
    "keras": keras,
    "simsiam": simsiam,
    "judge": judge,
    "resnet50": resnet50,
    "accuracy": accuracy,
}


def main(words: Sequence[str] | None = None) -> None:
    made = parser("gpu")
    made.set_defaults(device="cuda")
    without_data = [name for name in QUESTIONS if name != "accuracy"]
    made.add_argument("--only", nargs="+", choices=list(QUESTIONS), default=without_data, help="of the tables")
    made.add_argument("--compile", action="store_true", help="pretrain.torch_compile")
    made.add_argument("--train", help="labelled images to train on (accuracy)")
    made.add_argument("--test", help="labelled images to judge by (accuracy)")
    made.add_argument("--epochs", type=int, default=60, help="of accuracy")
    arguments = made.parse_args(words)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("benchmarks.gpu: no GPU here: nothing was measured (--quick --device cpu tries the code)")
    torch.set_num_threads(arguments.threads)
    for name in arguments.only:
        QUESTIONS[name](QUICK if arguments.quick else WORK, arguments)


if __name__ == "__main__":
    main()
