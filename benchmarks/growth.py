"""What happens when the batch, the projection, or the number of images grows?

    python -m benchmarks.growth [--only batch pieces width images index folder stream] [--device cuda]

Compared with itself, smaller: time per pair from batch 256 to 4096 and the memory that a pair needs, time and memory from
projections 2048 wide to 16384, time per image of an epoch, and the bytes a name takes. `folder` makes 200,000 tiny files (hard
links) in a temporary folder, `stream` trains from a folder of JPEG files as from one that does not fit into memory.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import diptych
from benchmarks.measure import Row, goal, in_turns, kilobytes, parser, report
from benchmarks.training import ours
from benchmarks.views import pictures
from diptych.base.memory import keep_freed_memory
from diptych.base.random_at import random_at
from diptych.commands import recipe
from diptych.commands.build import build
from diptych.data.source import Files, Keys
from diptych.methods import losses

RECIPE = "barlow-twins-cifar10"
SMALL = [
    "encoder={name: resnet18, stem: small-stride2, channels: [32, 32, 64, 64]}",
    "method.projector=[512, 512, 512]",
    "optimizer={name: sgd, lr: 0.06}",
]
WORK = {"batches": (256, 512, 1024, 2048, 4096), "pairs": 8192, "widths": (2048, 16384), "wide": 512,
        "images": (2048, 4096, 8192), "names": 1_000_000, "files": 200_000, "photos": 4096, "side": 256}  # fmt: skip
QUICK = {"batches": (8, 16), "pairs": 16, "widths": (32, 64), "wide": 8, "images": (16, 32), "names": 2000, "files": 200,
         "photos": 24, "side": 40}  # fmt: skip


def tiny(arguments: argparse.Namespace, batch: int, *overrides: str) -> dict:
    """The recipe, small enough that a CPU takes a batch of 4096 in seconds."""
    least = ["encoder.channels=[8, 8, 8, 8]", "method.projector=[16, 16, 16]"] if arguments.quick else []
    return recipe.read_recipe(RECIPE, [*SMALL, *least, f"pretrain.batch_size={batch}", *overrides])


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that anything made here."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for each in made if isinstance(made, tuple | list) else (made,):
            if isinstance(each, Tensor):
                self.bytes = max(self.bytes, each.numel() * each.element_size())
        return made


def loss_step(n: int, width: int, device: str) -> Callable[[], object]:
    pair = torch.randn(2, n, width, generator=random_at("benchmark", "growth", n, width)).to(device)
    first, second = (z.detach().clone().requires_grad_() for z in pair)
    return lambda: torch.autograd.grad(losses.barlow_twins(first, second, 0.0051, 1e-5)[0], (first, second))


def saved_bytes(asked: dict, device: str) -> int:
    """What a forward of both views keeps for the backward, without the weights: each storage once."""
    built, batch = build(asked), asked["pretrain"]["batch_size"]
    method = built.method.to(device).to(memory_format=torch.channels_last).train()
    weights = {parameter.untyped_storage().data_ptr() for parameter in method.parameters()}
    kept: dict[int, Tensor] = {}  # the tensors themselves, so that no address is used twice

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    views = [torch.rand(batch, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last) for _ in "ab"]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast(device, torch.bfloat16):
        loss = method(views)[0]
    total = sum(each.untyped_storage().nbytes() for address, each in kept.items() if address not in weights)
    return total if loss.requires_grad else 0


def of_batch(work: dict, arguments: argparse.Namespace) -> None:
    """Whole steps, and of them views and loss alone, per pair."""
    batches, pairs, device = work["batches"], work["pairs"], arguments.device
    pixels = pictures(max(batches), 32)
    made = {batch: tiny(arguments, batch) for batch in batches}
    steps = {batch: ours(asked, pixels, "bfloat16", device) for batch, asked in made.items()}
    seconds: dict[int, list[float]] = {batch: [] for batch in batches}
    for _ in range(arguments.repeats):
        for batch, run in steps.items():
            seconds[batch].append(sum(run(pairs // batch)))
    rows = [Row(f"steps of {batch}", seconds[batch], pairs, "pairs/s") for batch in batches]
    notes = [spread_of("time per pair, steps,", [row.median for row in rows], 5)]
    resident = pixels.to(device)
    for part in ("views", "loss"):
        runs = {}
        for batch in batches:
            views = build(made[batch]).views
            loss = loss_step(batch, made[batch]["method"]["projector"][-1], device)
            runs[f"{part} of {batch}"] = (
                loss if part == "loss" else lambda b=batch, v=views: [view(resident[:b], random_at(0)) for view in v]
            )
        found = in_turns(runs, arguments.repeats, device=device)
        part_rows = [Row(f"{part} of {batch}", found[f"{part} of {batch}"], batch, "pairs/s") for batch in batches]
        notes.append(spread_of(f"time per pair, {part} alone,", [row.median for row in part_rows], 5))
        rows += part_rows
    memory = [saved_bytes(made[batch], device) / batch / 2**20 for batch in batches]
    for row, megabytes in zip(rows, memory, strict=False):
        row.note, row.extra = f"keeps {megabytes:.3f} MiB a pair for the backward", {"mebibytes_a_pair": megabytes}
    notes.append(spread_of("memory per pair,", [1 / each for each in memory], 5))
    report("growth", f"batch {batches[0]} to {batches[-1]}, a small network, bfloat16", rows, "", arguments, notes)


def spread_of(what: str, rates: Sequence[float], wanted: float) -> str:
    """How much more the dearest costs than the first; growth that makes it cheaper is no fault."""
    return goal(f"{what} grows by", 100 * max(0.0, rates[0] / min(rates) - 1), wanted, " %", at_most=True)


def of_width(work: dict, arguments: argparse.Namespace) -> None:
    """A projector that ends in a wider layer: ResNet-18 with a small stem, batch 512."""
    batch, widths = work["wide"], work["widths"]
    small = ["encoder={name: resnet18, stem: small, channels: [8, 8, 8, 8]}"] * arguments.quick
    pixels = pictures(batch, 32)
    seconds: dict[int, list[float]] = {width: [] for width in widths}
    for width in widths:
        options = [*small, f"method.projector=[{widths[0]}, {widths[0]}, {width}]", f"pretrain.batch_size={batch}"]
        run = ours(recipe.read_recipe(RECIPE, options), pixels, "bfloat16", arguments.device)
        seconds[width] = run(min(arguments.repeats, 3))
    rows = [Row(f"steps, projections {width} wide", seconds[width], batch, "pairs/s") for width in widths]
    notes = [spread_of(f"a step from {widths[0]} to {widths[-1]} wide", [row.median for row in rows], 30)]
    alone = {width: loss_step(batch, width, arguments.device) for width in widths}
    found = in_turns({str(width): run for width, run in alone.items()}, arguments.repeats, device=arguments.device)
    for width, run in alone.items():
        with Largest() as largest:
            run()
        square = 4 * width**2
        note = f"largest tensor {largest.bytes / 2**20:,.1f} MiB, a (D, D) one has {square / 2**20:,.0f}"
        rows.append(Row(f"loss alone, projections {width} wide", found[str(width)], batch, "pairs/s", note))
        if 2 * batch < width:
            notes.append(goal(f"largest tensor at {width}", largest.bytes / square, 0.99, " of (D, D)", at_most=True))
    report(
        "growth", f"projection width {widths[0]} to {widths[-1]}, batch {batch}, bfloat16", rows, "", arguments, notes
    )


def of_images(work: dict, arguments: argparse.Namespace) -> None:
    """Seconds of a second epoch: the first one warms up."""
    batch = 8 if arguments.quick else 256
    rows = []
    for count in work["images"]:
        asked = tiny(arguments, batch)
        run, steps = ours(asked, pictures(batch, 32), "bfloat16", arguments.device), count // batch
        rows.append(Row(f"an epoch of {count}", [sum(run(steps)) for _ in range(2)], count, "images/s"))
    notes = [spread_of("time per image", [row.median for row in rows], 5)]
    report("growth", f"epochs of {work['images'][0]} to {work['images'][-1]} images", rows, "", arguments, notes)


def told(
    rows: list[Row], what: str, count: int, seconds: float, bytes_: float, arguments, wanted: float | None
) -> None:
    rows.append(Row(what, [seconds], note=f"{bytes_ / count:.0f} bytes a name", extra={"bytes_a_name": bytes_ / count}))
    notes = [] if wanted is None else [goal("seconds", seconds, wanted, " s", at_most=True)]
    notes.append(goal("memory", bytes_ / count, 150, " bytes a path", at_most=True))
    report("growth", f"{what} of {count:,} images", rows, "", arguments, notes)


def imported() -> None:
    """What reading images imports is no memory of theirs."""
    few = diptych.images(Files(Keys([b"a/a.jpg", b"b/b.jpg"]), np.full(1, 2), lambda row: b"", 0, []), size=32)
    assert few.fingerprint and few.classes


def of_index(work: dict, arguments: argparse.Namespace) -> None:
    """Names from nowhere, as a folder's scan hands them on: source, labels, fingerprint."""
    count = work["names"]
    imported()
    names = (b"class_%03d/photograph_%07d.jpg" % (i // 1000, i) for i in range(count))
    before, started = kilobytes("VmRSS"), time.perf_counter()
    source = Files(Keys(names), np.full(count, 1000), lambda row: b"", 0, [])
    photos = diptych.images(source, size=32)
    assert len(photos) == count and photos.fingerprint and photos.classes
    seconds, held = time.perf_counter() - started, 1024 * (kilobytes("VmRSS") - before)
    told([], "index", count, seconds, held, arguments, 20)


def of_folder(work: dict, arguments: argparse.Namespace) -> None:
    """Tiny JPEG files, 1,000 a class folder, each folder's but the first hard links to one file."""
    count, rows = work["files"], []
    imported()
    with tempfile.TemporaryDirectory() as folder:
        for first in range(0, count, 1000):
            place = Path(folder) / f"class_{first // 1000:03d}"
            place.mkdir()
            Image.new("RGB", (32, 32), (first % 251, 80, 80)).save(place / "photograph_0000000.jpg")
            for i in range(1, min(1000, count - first)):
                os.link(place / "photograph_0000000.jpg", place / f"photograph_{first + i:07d}.jpg")
        before, started = kilobytes("VmRSS"), time.perf_counter()
        photos = diptych.images(folder, size=32)
        assert len(photos) == count and photos.fingerprint
        seconds, held = time.perf_counter() - started, 1024 * (kilobytes("VmRSS") - before)
        told(rows, "scan of a folder", count, seconds, held, arguments, None)


def of_stream(work: dict, arguments: argparse.Namespace) -> None:
    """An epoch from JPEG files that are decoded as they are needed, as of a set too large for memory."""
    batch, cores = 8 if arguments.quick else 64, len(os.sched_getaffinity(0))
    asked = tiny(arguments, batch)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "photos"
        place.mkdir()
        for i, pixels in enumerate(pictures(work["photos"], work["side"])):
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(place / f"{i:06d}.jpg", quality=90)
        built, marks = build(asked), []

        def mark(*_) -> None:
            marks.append((time.perf_counter(), time.process_time(), kilobytes("VmRSS") / 1024))

        built.method.after_step = mark  # after each step, so that neither the start nor the last look counts
        photos = diptych.images(place, size=work["side"], resident=False)
        diptych.pretrain(built.method, photos, built.views, built.optimizer, out=f"{folder}/run", epochs=1,
                         batch_size=batch, precision="bfloat16", log_steps=1, device=arguments.device,
                         checkpoint_minutes=1e9, show=False)  # fmt: skip
    seconds, cpu = (marks[-1][k] - marks[0][k] for k in (0, 1))
    third = max(1, len(marks) // 3)
    start, middle, end = (max(memory for *_, memory in marks[i * third : (i + 1) * third + 1]) for i in range(3))
    busy = 100 * cpu / seconds / cores
    notes = [f"resident memory at most {start:,.0f}, {middle:,.0f}, {end:,.0f} MiB in the three thirds of the epoch",
             goal("memory of the last third against the second", end / middle, 1.05, " times", at_most=True),
             goal(f"{cores} cores busy", busy, 90, " %")]  # fmt: skip
    row = Row("an epoch from files", [seconds], (len(marks) - 1) * batch, "images/s", f"cores {busy:.0f} % busy")
    report("growth", f"streaming {work['photos']} JPEG files of {work['side']} pixels", [row], "", arguments, notes)


def of_pieces(work: dict, arguments: argparse.Namespace) -> None:
    """`micro_batch`: the same loss and gradient with the networks on pieces of the batch."""
    batch = work["batches"][1]
    pixels, pieces = pictures(batch, 32), [batch, batch // 2, batch // 8]
    rows, runs = [], {}
    for piece in pieces:
        asked = tiny(arguments, batch, *[f"pretrain.micro_batch={piece}"] * (piece < batch))
        runs[piece] = ours(asked, pixels, "bfloat16", arguments.device)
        kept = saved_bytes(tiny(arguments, piece), arguments.device) / 2**20
        rows.append(Row("whole" if piece == batch else f"micro_batch {piece}", [], batch, "pairs/s",
                        f"keeps {kept:.1f} MiB for the backward", {"mebibytes": kept}))  # fmt: skip
    for _ in range(arguments.repeats):
        for row, run in zip(rows, runs.values(), strict=True):
            row.seconds += run(2)
    cost = rows[0].median / rows[-1].median
    notes = [
        goal("time in the smallest pieces over the whole (a forward pass more)", cost, 1.5, " times", at_most=True)
    ]
    report("growth", f"a batch of {batch} in pieces, a small network, bfloat16", rows, rows[0].name, arguments, notes)


QUESTIONS = {"batch": of_batch, "pieces": of_pieces, "width": of_width, "images": of_images, "index": of_index,
             "folder": of_folder, "stream": of_stream}  # fmt: skip


def main(words: Sequence[str] | None = None) -> None:
    made = parser("growth")
    made.set_defaults(repeats=3)
    made.add_argument("--only", nargs="+", choices=list(QUESTIONS), default=list(QUESTIONS), help="of the tables")
    arguments = made.parse_args(words)
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()  # as the command does
    if (
        len(arguments.only) > 1 and not arguments.quick
    ):  # a process each: pretraining keeps what it has freed (decision 17)
        options = ("threads", "device", "repeats", "out")
        same = [word for option in options for word in (f"--{option}", str(getattr(arguments, option)))]
        for name in arguments.only:
            subprocess.run([sys.executable, "-m", "benchmarks.growth", *same, "--only", name], check=True)
        return
    for name in arguments.only:
        QUESTIONS[name](QUICK if arguments.quick else WORK, arguments)


if __name__ == "__main__":
    main()
