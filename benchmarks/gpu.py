"""What does one GPU do? All goals for it, in two calls of at most ten minutes; the tables come last.

    python -m benchmarks.gpu --part 1 --out RESULTS
    python -m benchmarks.gpu --part 2 --out RESULTS --train TRAIN --test TEST

part 1: views; whole epochs and runs of recipes; embedding, kNN and probe; ResNet-50. part 2: what precision, graphs,
determinism and torch.compile cost; then `accuracy`, which trains barlow-twins-cifar10 on TRAIN for --epochs and judges it on
TEST by the protocol `linear`. Without TRAIN and TEST it is left out. Images are made up elsewhere.

What is timed is what users call: `diptych.pretrain` (the seconds between lines of its log, ten steps a line, as a line waits
for the device), the protocols of `diptych.evaluate`, the feed of a run. A call ends within --seconds, and the question that
did not fit is named. What RESULTS (or --known FOLDER) has of the same code and machine is not measured again, so a
call that was cut off goes on where it was. The published seconds are of other GPUs.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch

import diptych
from benchmarks.gpu_profile import Profiled
from benchmarks.gpu_session import Question, Unmeasured, run_questions
from benchmarks.measure import Row, clock, parser
from benchmarks.training import ours
from benchmarks.views import pictures
from diptych.base.terminal import ProgressBar
from diptych.commands import recipe
from diptych.commands.build import build
from diptych.commands.schema import call_arguments
from diptych.data.images import Images
from diptych.downstream.embed import embed_sets
from diptych.downstream.frozen import Subject, Task
from diptych.downstream.protocols import PROTOCOLS
from diptych.networks.inference import Preprocessing
from diptych.runs.encoder import Trained
from diptych.runs.run import Run
from diptych.training.feed import Feed
from diptych.training.pretrain import pretrain
from diptych.views.presets import CIFAR10

CLASSES = 10
SECONDS = 530.0  # of a call that may take 600: on a fresh machine torch and timm take half a minute to import
TINY = ["encoder={name: resnet18, channels: [8, 8, 8, 8]}", "pretrain.batch_size=8"]


class Work(NamedTuple):
    """How much of each: images of a set, readings of ten steps, images of 256 pixels, batches of ResNet-50 and of views."""

    images: int = 50_000
    tests: int = 10_000
    readings: int = 20
    photos: int = 2048
    size: int = 256
    batch: int = 512
    many: int = 8192


QUICK = Work(images=64, tests=32, readings=1, photos=16, size=40, batch=4, many=16)


def read(name: str, arguments: argparse.Namespace, *overrides: str) -> dict:
    """A recipe in bfloat16; for --quick with a network that a CPU takes at once."""
    small = [*TINY, "method.projector=[16, 16, 16]" if "barlow" in name else "method.projector=[16, 16]"]
    if "keras-published" in name and "simsiam" in name:
        small = small[1:]  # its network is small, and no other can freeze its statistics
    compiled = ["pretrain.torch_compile=true"] * arguments.compile
    return recipe.read_recipe(name, ["pretrain.precision=bfloat16", *compiled, *overrides, *small * arguments.quick])


def step_row(name: str, sections: dict, size: int, readings: int, arguments: argparse.Namespace) -> Row:
    """Seconds of a step of a recipe, as users train it, and a profile of ten of its steps."""
    options = sections["pretrain"]
    pixels = pictures(4 * options["batch_size"], size)
    run = ours(sections, pixels, options["precision"], arguments.device)
    seconds = run(readings)
    if arguments.without_profile:
        return Row(name, seconds)
    try:
        with Profiled(arguments.device) as profile:
            run(2)
    except RuntimeError as error:  # of a machine that allows no profile: the seconds are known
        return Row(name, seconds, note=f"no profile: {str(error).strip().splitlines()[:1]}")
    return Row(name, seconds, note=profile.in_words(), extra={"profile": profile.summary()})


def scaled(row: Row, steps: int, note: str = "") -> Row:
    """A row of seconds a step as one of `steps` steps."""
    notes = ", ".join(filter(None, (note, f"{1000 * row.median:.3g} ms a step", row.note)))
    return replace(row, seconds=[steps * second for second in row.seconds], note=notes)


def whole_run(sections: dict, photos: Images, folder: str, arguments: argparse.Namespace) -> tuple[Run, float]:
    """A run of the recipe in `folder`, and its seconds, the start and the end included."""
    built = build(sections)
    settings = call_arguments(pretrain, sections["pretrain"]) | {"device": arguments.device}
    started = clock(arguments.device)
    run = diptych.pretrain(built.method, photos, built.views, built.optimizer, out=f"{folder}/run",
                           schedule=built.schedule, show=False, **settings)  # fmt: skip
    return run, clock(arguments.device) - started


def views(work: Work, arguments: argparse.Namespace) -> Iterator[Row]:
    """A run's feed: rows of a resident set, draws of the CPU, one upload, one pass; that pass as a graph where there are any."""
    sections = read("barlow-twins-cifar10", arguments)
    for batch in (work.many, work.batch):
        photos = diptych.images(pictures(2 * batch, 32), resident=True)
        for graph in (True, False) if arguments.device != "cpu" else (False,):
            feed = Feed(photos, build(sections).views, epochs=work.readings, batch_size=batch, device=arguments.device)
            reasons: list[str] = []
            if graph:
                feed.together.capture(reasons.append)
            seconds = seconds_of(feed.starting_at(0), arguments.device, warm_up=5)
            note = ", ".join([f"batch {batch}", *(f"no graph: {reason}" for reason in reasons)])
            yield Row(f"views {'as a graph' if graph else 'without graph'}", seconds, 2 * batch, "views/s", note)


def seconds_of(steps: Iterator, device: str, warm_up: int) -> list[float]:
    """Seconds of each step after the first ones, of which there are fewer where there are few steps."""
    ends = [clock(device)]
    for _ in steps:
        ends.append(clock(device))
    seconds = [after - before for before, after in zip(ends, ends[1:], strict=False)]
    return seconds[min(warm_up, len(seconds) - 1) :]


def barlow(work: Work, arguments: argparse.Namespace) -> Iterator[Row]:
    sections = read("barlow-twins-cifar10", arguments)
    row = step_row("barlow-twins-cifar10", sections, 32, work.readings, arguments)
    yield scaled(row, work.images // sections["pretrain"]["batch_size"])


def keras(work: Work, arguments: argparse.Namespace) -> Iterator[Row]:
    sections = read("barlow-twins-keras-published", arguments)
    options = sections["pretrain"]
    row = step_row("barlow-twins-keras-published", sections, 32, work.readings, arguments)
    yield scaled(row, options["epochs"] * (work.images // options["batch_size"]), "published: 4,560 s")


def simsiam(work: Work, arguments: argparse.Namespace) -> Iterator[Row]:
    short = ["pretrain.epochs=1"] * arguments.quick
    sections = read("simsiam-keras-published", arguments, *short)
    photos = diptych.images(pictures(work.images, 32))
    with tempfile.TemporaryDirectory() as folder:
        _, seconds = whole_run(sections, photos, folder, arguments)
    yield Row("simsiam-keras-published", [seconds], note="published: 78 s")
    yield step_row("a step of it", sections, 32, work.readings, arguments)


def labelled_pictures(count: int, part: str) -> Images:
    """Made-up images of CLASSES classes, which even an untrained network tells apart in part."""
    y = torch.randint(CLASSES, (count,), generator=torch.Generator().manual_seed(len(part)))
    pixels = (pictures(count, 32).float() + pictures(CLASSES, 32).flip(1).float()[y]) / 2
    return diptych.images(pixels.byte(), labels=[f"class {number}" for number in y.tolist()], resident=True)


def judge(work: Work, arguments: argparse.Namespace) -> Iterator[Row]:
    """As many images as CIFAR-10 has, through what `diptych.evaluate` calls, and through all of it for one subject."""
    network = build(read("barlow-twins-cifar10", arguments)).method.encoder
    trained = Trained(network, Preprocessing(32, *CIFAR10))
    sets = labelled_pictures(work.images, "train"), labelled_pictures(work.tests, "test")
    names = [[photos.classes[number] for number in photos.labels] for photos in sets]
    seconds: dict[str, list[float]] = {}
    evaluation = partial(diptych.evaluate, trained, *sets, baselines=False, device=arguments.device, show=False,
                         precision="bfloat16")  # fmt: skip
    for repeat in range(-1, min(arguments.repeats, 3)):
        times = parts_of_evaluation(trained, sets, names, arguments.device)
        started = clock(arguments.device)
        evaluation()
        times["diptych.evaluate, all of it"] = clock(arguments.device) - started
        for name, second in times.items() if repeat >= 0 else ():
            seconds.setdefault(name, []).append(second)
    for name, several in seconds.items():
        yield Row(name, several)


def parts_of_evaluation(trained: Trained, sets: tuple[Images, Images], names: list[list[str]], device: str) -> dict:
    """Seconds of embedding, kNN and probe, and their sum."""
    where, times = torch.device(device), {}
    with ProgressBar("evaluate", show=False) as progress:
        started = clock(device)
        vectors = embed_sets(trained, sets, device=where, precision="bfloat16", progress=progress, what="encoder")
        times["embedding"] = clock(device) - started
        task = Task(*sets, *names, trained.preprocessing, where)
        subject = Subject("trained", *vectors, trained.encoder, None)
        for name in ("knn", "linear"):
            started = clock(device)
            PROTOCOLS[name](subject, task)
            times[name] = clock(device) - started
    return {"embedding, kNN and probe": sum(times.values())} | times


def resnet50(work: Work, arguments: argparse.Namespace) -> Iterator[Row]:
    sections = read("barlow-twins-imagenet", arguments, f"pretrain.batch_size={work.batch}")
    batch = sections["pretrain"]["batch_size"]
    row = step_row("barlow-twins-imagenet", sections, work.size, -(-work.readings // 4), arguments)
    yield replace(row, work=batch, unit="pairs/s", note=f"resident images of 256 pixels, batch {batch}, {row.note}")


OPTIONS: dict[str, list[str]] = {
    "bfloat16": [],
    "bfloat16, no graph": ["pretrain.cuda_graph=false"],
    "bfloat16, deterministic": ["pretrain.deterministic=true"],
    "tf32": ["pretrain.precision=tf32"],
    "float32": ["pretrain.precision=float32"],
    "bfloat16, torch_compile": ["pretrain.torch_compile=true"],
}


def options(work: Work, arguments: argparse.Namespace) -> Iterator[Row]:
    """A step of barlow-twins-cifar10 under each option that costs or gains something."""
    for name, overrides in OPTIONS.items():
        if "torch_compile" in name and arguments.quick:
            continue  # a minute, and a C++ compiler
        sections = read("barlow-twins-cifar10", arguments, *overrides)
        yield step_row(name, sections, 32, -(-work.readings // 2), arguments)


def accuracy(work: Work, arguments: argparse.Namespace) -> Iterator[Row]:
    """Seconds of the whole training, and what the encoder is then worth."""
    if arguments.train is None or arguments.test is None:
        raise Unmeasured("it needs labelled images: --train TRAIN --test TEST")
    sections = read("barlow-twins-cifar10", arguments, f"pretrain.epochs={arguments.epochs}")
    train, test = (diptych.images(source, size=32) for source in (arguments.train, arguments.test))
    train.prepare(), test.prepare()
    with tempfile.TemporaryDirectory() as folder:
        run, seconds = whole_run(sections, train, folder, arguments)
        score = diptych.evaluate(run, train=train, test=test, protocols=["linear"], baselines=False,
                                 device=arguments.device, show=False).score("linear")  # fmt: skip
    reached = "" if score.accuracy >= 0.9 else ", NOT the 90 % that are asked for: take more --epochs"
    yield Row(f"{arguments.epochs} epochs", [seconds], note=f"linear {100 * score.accuracy:.1f} %{reached}",
              extra={"linear": score.accuracy})  # fmt: skip


QUESTIONS: dict[str, Question] = {
    "views": Question(1, "two views of 32 pixels, Barlow Twins", views, (2e6, 5e6, 50e6)),
    "barlow": Question(1, "an epoch of 50,000 pairs, ResNet-18, Barlow Twins", barlow, (1.7, 1.1, 0.85)),
    "keras": Question(1, "160 epochs of the Keras Barlow Twins recipe", keras, (160, 100, 60)),
    "simsiam": Question(1, "5 epochs of the Keras SimSiam recipe, start and end included", simsiam, (8, 4, 2)),
    "judge": Question(1, "embedding, kNN and probe of CIFAR-10, ResNet-18", judge, (5, 2, 1)),
    "resnet50": Question(1, "ResNet-50 at 224 pixels, 8192-8192-8192", resnet50, (2000, 3500, 5000)),
    "options": Question(2, "a step of ResNet-18, Barlow Twins, batch 256", options, ()),
    "accuracy": Question(2, "training until a linear accuracy of 90 %", accuracy, (300, 180, 120)),
}


def main(words: list[str] | None = None) -> None:
    started = time.monotonic()
    options_of_call = parser("gpu")
    options_of_call.set_defaults(device="cuda")
    options_of_call.add_argument("--part", type=int, choices=[1, 2], help="of the questions; without it both")
    options_of_call.add_argument("--only", nargs="+", choices=list(QUESTIONS), help="of the questions")
    options_of_call.add_argument(
        "--seconds", type=float, default=SECONDS, help="in which the call ends, without the start of Python and torch"
    )
    options_of_call.add_argument("--known", type=str, help="a folder of results of an earlier call (default: --out)")
    options_of_call.add_argument("--compile", action="store_true", help="pretrain.torch_compile")
    options_of_call.add_argument("--without-profile", action="store_true", help="time only")
    options_of_call.add_argument("--train", help="labelled images to train on (accuracy)")
    options_of_call.add_argument("--test", help="labelled images to judge by (accuracy)")
    options_of_call.add_argument("--epochs", type=int, default=100, help="of accuracy")
    arguments = options_of_call.parse_args(words)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("benchmarks.gpu: no GPU here: nothing was measured (--quick --device cpu tries the code)")
    torch.set_num_threads(arguments.threads)
    chosen = {name: question for name, question in QUESTIONS.items()
              if (arguments.part in (None, question.part) if arguments.only is None else name in arguments.only)}  # fmt: skip
    work: Any = QUICK if arguments.quick else Work()
    ask: Callable[[Question], Iterator[Row]] = lambda question: question.rows(work, arguments)  # noqa: E731
    sys.exit(run_questions(chosen, ask, arguments, started))


if __name__ == "__main__":
    main()
