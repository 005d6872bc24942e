"""How many pairs a second does training take in? Whole steps: images, views, two forwards, loss, backward, optimizer.

    python -m benchmarks.training [--only keras barlow simsiam] [--device cuda] [--xla]

keras: Keras' Barlow Twins example (batch 256) as Diptych trains it and as a Keras program does (keras_program.py).
barlow, simsiam: ResNet-18 with a small stem, three layers of 2048, SGD (batch 128), by Diptych and by a plain PyTorch loop with
lightly's transform, heads and loss in float32, its DataLoader on as many processes as there are threads.

Ours is `diptych.pretrain` itself: the seconds between the lines of its log. Rivals take two turns of a few steps, and the first
step of each turn is not counted: it compiles, fills caches and starts the DataLoader's processes. Ours has the process keep freed
memory (decision 17), for the rivals after it too.
"""

import argparse
import tempfile
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import diptych
from benchmarks.keras_program import keras_step
from benchmarks.measure import Row, clock, faster, goal, missing, parser, report
from benchmarks.views import Mapped, pictures
from diptych.base.memory import keep_freed_memory
from diptych.commands import recipe
from diptych.commands.build import build
from diptych.commands.schema import call_arguments
from diptych.training.pretrain import pretrain

OURS, OURS_32 = "Diptych, bfloat16", "Diptych, float32"
KERAS, XLA = "the Keras program, float32", "the Keras program, float32, XLA"
PLAIN = "plain PyTorch, lightly's parts, float32"
SGD = "optimizer={name: sgd, lr: 0.06, momentum: 0.9, weight_decay: 0.0005}"
THREE = "method.projector=[2048, 2048, 2048]"
WORK = {  # recipe, batch, overrides
    "keras": ("barlow-twins-keras-published", 256, []),
    "barlow": ("barlow-twins-cifar10", 128, [SGD]),
    "simsiam": ("simsiam-cifar10", 128, [SGD, THREE]),
}
QUICK = ["encoder={name: resnet18, stem: small, channels: [8, 8, 8, 8]}", "method.projector=[16, 16, 16]"]
GOALS = {KERAS: 2.5, XLA: 2.5, PLAIN: 1.5}
TURNS = 2

Rival = Callable[[int], list[float]]  # takes one step and then so many more; the seconds of each of these


def ours(asked: dict, pixels: Tensor, precision: str, device: str) -> Rival:
    """`diptych.pretrain` with what the recipe names; the networks stay from turn to turn. On a GPU ten steps a reading, as a
    log line waits for the device."""
    built, options = build(asked), asked["pretrain"]
    batch, every = options["batch_size"], 10 if device == "cuda" else 1
    once = diptych.images(pixels, resident=True)
    once.prepare()
    settings = call_arguments(pretrain, options) | {"epochs": 1, "device": device, "precision": precision}

    def run(steps: int) -> list[float]:
        count = (steps + 1) * every * batch  # the first reading has the start in it
        photos = once.subset(torch.arange(count) % len(pixels))  # of a few images, without a copy of them
        with tempfile.TemporaryDirectory() as folder:
            trained = diptych.pretrain(built.method, photos, built.views, built.optimizer, out=f"{folder}/run",
                                       schedule=built.schedule,
                                       **settings | {"log_steps": every, "checkpoint_minutes": 1e9, "show": False})  # fmt: skip
            lines = [(line["step"], line["elapsed_seconds"]) for line in trained.lines("step")]
        seconds = [(after - before) / every for (a, before), (b, after) in pairwise(lines) if b - a == every]
        assert len(seconds) == steps, lines
        return seconds

    return run


def keras_rival(pixels: Tensor, batch: int, jit: bool, arguments: argparse.Namespace) -> Rival:
    small = {"blocks": (1, 1), "width": 16} if arguments.quick else {}
    step = keras_step(pixels.permute(0, 2, 3, 1).numpy(), batch, arguments.threads, jit, **small)
    return lambda steps: timed(step, steps, "cpu")


def timed(step: Callable[[], object], steps: int, device: str) -> list[float]:
    """Seconds a step; on a GPU the clock is read every ten steps, as of ours."""
    every = 10 if device == "cuda" else 1
    step()
    ends = [clock(device)]
    for _ in range(steps):
        for _ in range(every):
            step()
        ends.append(clock(device))
    return [(after - before) / every for before, after in pairwise(ends)]


class Twin(nn.Module):
    """The network of a recipe under lightly's heads: two views -> the loss."""

    def __init__(self, kind: str, encoder: nn.Module, width: int):
        from lightly.loss import BarlowTwinsLoss, NegativeCosineSimilarity
        from lightly.models.modules import BarlowTwinsProjectionHead, SimSiamPredictionHead, SimSiamProjectionHead

        super().__init__()
        heads = {"barlow": BarlowTwinsProjectionHead, "simsiam": SimSiamProjectionHead}
        self.encoder, self.projector = encoder, heads[kind](encoder.num_features, width, width)
        self.predictor = SimSiamPredictionHead(width, width // 4, width) if kind == "simsiam" else None
        self.criterion = NegativeCosineSimilarity() if kind == "simsiam" else BarlowTwinsLoss()

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        z1, z2 = self.projector(self.encoder(first)), self.projector(self.encoder(second))
        if self.predictor is None:
            return self.criterion(z1, z2)
        p1, p2 = self.predictor(z1), self.predictor(z2)
        return 0.5 * (self.criterion(p1, z2.detach()) + self.criterion(p2, z1.detach()))


def lightly_transform(kind: str) -> Callable:
    """As lightly's CIFAR-10 benchmark sets it: 32 pixels, no blur."""
    from lightly.transforms import BYOLTransform, SimSiamTransform
    from lightly.transforms.byol_transform import BYOLView1Transform, BYOLView2Transform

    if kind == "simsiam":
        return SimSiamTransform(input_size=32, gaussian_blur=0.0)
    views = BYOLView1Transform(input_size=32, gaussian_blur=0.0), BYOLView2Transform(input_size=32, gaussian_blur=0.0)
    return BYOLTransform(*views)


def plain(kind: str, asked: dict, pixels: Tensor, arguments: argparse.Namespace) -> Rival:
    """The loop of a tutorial: float32, contiguous, a DataLoader that shuffles."""
    from PIL import Image

    device, batch = arguments.device, asked["pretrain"]["batch_size"]
    twin = Twin(kind, build(asked).method.encoder, asked["method"]["projector"][-1]).to(device).train()
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.06, momentum=0.9, weight_decay=5e-4)
    photos = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in pixels]
    workers = arguments.threads if arguments.threads > 1 else 0

    def run(steps: int) -> list[float]:
        # so many batches that its processes are still at work when the last step is taken
        every = 10 if arguments.device == "cuda" else 1
        enough = batch * (1 + steps * every + 2 * workers)
        some = (photos * -(-enough // len(photos)))[:enough]
        loader = DataLoader(
            Mapped(some, lightly_transform(kind)), batch, shuffle=True, drop_last=True, num_workers=workers
        )
        batches = iter(loader)

        def step() -> None:
            first, second = next(batches)
            loss = twin(first.to(device), second.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        return timed(step, steps, device)

    return run


def rivals(kind: str, arguments: argparse.Namespace) -> tuple[dict[str, Rival], int, list[str]]:
    """Who can be measured here, the batch, and lines about who cannot."""
    name, batch, overrides = WORK[kind]
    batch, small = (8, QUICK) if arguments.quick else (batch, [])
    asked = recipe.read_recipe(name, [*overrides, *small, f"pretrain.batch_size={batch}"])
    pixels = pictures(4 * batch, 32)
    found = {
        OURS: ours(asked, pixels, "bfloat16", arguments.device),
        OURS_32: ours(asked, pixels, "float32", arguments.device),
    }
    others = [PLAIN] if kind != "keras" else [KERAS, *[XLA] * arguments.xla]
    lost = missing("lightly") if kind != "keras" else missing("tensorflow", "keras")
    if kind == "keras" and arguments.device != "cpu":
        lost = lost or "not measured: its TensorFlow is the CPU's"
    if lost:
        return found, batch, [f"{other}: {lost}" for other in others]
    for other in others:
        found[other] = (
            plain(kind, asked, pixels, arguments)
            if kind != "keras"
            else keras_rival(pixels, batch, other == XLA, arguments)
        )
    return found, batch, []


def measure(kind: str, arguments: argparse.Namespace) -> None:
    found, batch, notes = rivals(kind, arguments)
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(TURNS):
        for name, run in found.items():
            seconds[name] += run(-(-arguments.repeats // TURNS))
    rows = [Row(name, each, batch, "pairs/s") for name, each in seconds.items()]
    for row in rows[2:]:
        limit = GOALS[row.name]
        notes.append(goal(f"{OURS} against {row.name},", faster(rows[0], row), limit, " times as fast"))
        notes.append(goal(f"{OURS_32} against {row.name},", faster(rows[1], row), limit, " times as fast"))
    what = {"keras": "the Keras example's ResNet-34 and 5000-5000-5000", "barlow": "ResNet-18, Barlow Twins",
            "simsiam": "ResNet-18, SimSiam"}[kind]  # fmt: skip
    report("training", f"training steps: {what}, batch {batch}", rows, OURS, arguments, notes)


def main(words: list[str] | None = None) -> None:
    made = parser("training")
    made.set_defaults(repeats=4)
    made.add_argument("--only", nargs="+", choices=list(WORK), default=list(WORK), help="of the three tables")
    made.add_argument("--xla", action="store_true", help="the Keras program compiled by XLA too (a minute more)")
    arguments = made.parse_args(words)
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()  # as the command does
    for kind in arguments.only:
        measure(kind, arguments)


if __name__ == "__main__":
    main()
