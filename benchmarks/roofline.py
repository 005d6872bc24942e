"""Where do the CPU-seconds of a training step go, and how near are they to what the processor can do? One core, float32.

    python -m benchmarks.roofline [--recipe barlow-twins-cifar10-small] [--batch 256]

First the ceilings, measured: a large product and a large convolution, of which the quicker counts, and a large copy (bytes
read and written; what stays in a cache can be quicker). Then each kind of operation of a step: its floating-point operations, or
the bytes that it must move at least (inputs and outputs once); CPU-seconds; share of the ceiling. Then every convolution by
itself, in the layout of training, in the other one and as a matrix product: what is still to be gained. CPU-seconds are those of
the process; within a step they are divided as torch's profiler divides its time.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import chain, count
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import diptych
from benchmarks.views import pictures
from diptych.base.memory import keep_freed_memory
from diptych.commands import recipe
from diptych.commands.build import Built, build
from diptych.networks.convolution import Conv2d, Product, quick_convolutions
from diptych.training.feed import Feed
from diptych.training.learner import Learner
from diptych.training.schedules import constant

SIDE, MEGABYTES = 2048, 256  # of the product and of the copy that are the ceilings
LAST = torch.channels_last


def cpu_seconds(work: Callable[[], object], repeats: int) -> float:
    """The least of several calls: others compute on this machine too."""
    best = float("inf")
    for _ in range(repeats + 1):
        began = time.process_time()
        work()
        best = min(best, time.process_time() - began)
    return best


def ceilings(repeats: int) -> tuple[float, float, float]:
    """Operations a second of a product and of a convolution, which are two libraries', and bytes a second of a copy."""
    a, b = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    image, kernel = (torch.randn(shape).to(memory_format=LAST) for shape in ((128, 64, 32, 32), (64, 64, 3, 3)))
    source, target = (torch.empty(MEGABYTES * 2**20 // 4).fill_(1.0) for _ in "ab")
    product = cpu_seconds(lambda: torch.mm(a, b), repeats)
    convolution = cpu_seconds(lambda: F.conv2d(image, kernel), repeats)
    copied = 2 * source.nbytes / cpu_seconds(lambda: target.copy_(source), repeats)
    return 2 * SIDE**3 / product, 2 * 128 * 30**2 * 9 * 64**2 / convolution, copied


class Steps:
    """Training steps of a recipe, one a call."""

    def __init__(self, built: Built, batch: int):
        self.method = built.method.to(memory_format=LAST)  # pyrefly: ignore[no-matching-overload]
        photos = diptych.images(pictures(4 * batch, 32), resident=True)
        self.feed = Feed(photos, built.views, epochs=1, batch_size=batch)
        self.learner = Learner(self.method, built.optimizer, constant())
        self.views = chain.from_iterable(self.feed.starting_at(0) for _ in count())

    def __call__(self) -> None:
        step, views = next(self.views)
        self.learner.step(step, self.feed.total, views)


def taps(pixels: int, kernel: int, stride: int, padding: int) -> int:
    """Taps along a side that lie inside of the image, over all outputs: what lies in the padding need not be multiplied."""
    starts = range(-padding, pixels + padding - kernel + 1, stride)
    return sum(min(start + kernel, pixels) - max(start, 0) for start in starts)


def work_of(name: str, shapes: list, values: list) -> tuple[float, float]:
    """(floating-point operations, bytes) that an operation needs at least, of float32; zeros where it is not known.

    shapes and values: of its arguments.
    """
    sizes = [int(torch.Size(shape).numel()) if shape else 0 for shape in shapes]
    match name:
        case "aten::convolution_backward":  # the gradients of the kernel and, but for the first layer, of the input
            (_, o, *_), (n, c, side, _), (_, _, k, _) = shapes[:3]
            return 2 * n * o * c * taps(side, k, values[4][0], values[5][0]) ** 2 * (1 if c == 3 else 2), 0
        case "aten::mkldnn_convolution":
            (n, c, side, _), (o, _, k, _) = shapes[:2]
            return 2 * n * o * c * taps(side, k, values[4][0], values[3][0]) ** 2, 0
        case "aten::mm" | "aten::addmm":
            (m, k), (_, n) = shapes[:2] if name == "aten::mm" else shapes[1:3]
            return 2 * m * n * k, 0
        case "aten::native_batch_norm" | "aten::clamp_min_" | "aten::add_" | "aten::copy_":
            return 0, 4 * sum(sizes[:2]) if name == "aten::add_" else 8 * sizes[0]
        case "aten::native_batch_norm_backward" | "aten::threshold_backward":
            return 0, 12 * sizes[0]
    return 0, 0


def profiled(steps: Steps) -> dict[str, tuple[float, ...]]:
    """Of a step, by operation: the profiler's time in itself, calls, floating-point operations and bytes."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as seen:
        steps()
    rows: dict[str, list[float]] = defaultdict(lambda: [0.0] * 4)
    for event in seen.events() or ():
        if event.self_cpu_time_total > 0:
            numbers = (
                event.self_cpu_time_total,
                1,
                *work_of(event.name, event.input_shapes or [], event.concrete_inputs or []),
            )
            rows[event.name] = [a + b for a, b in zip(rows[event.name], numbers, strict=True)]
    return {name: tuple(row) for name, row in rows.items()}


def table(steps: Steps, repeats: int, flops: float, bandwidth: float) -> str:
    """What the kinds of operations of a step cost, the dearest first."""
    for _ in range(2):
        steps()
    whole = cpu_seconds(steps, repeats)
    rows: dict[str, tuple[float, ...]] = {}
    for _ in range(repeats):
        for name, row in profiled(steps).items():
            rows[name] = min(row, rows.get(name, row))  # the quickest of several steps
    total = sum(row[0] for row in rows.values())
    rows = {name: (row[0] / total * whole, *row[1:]) for name, row in rows.items()}
    lines = [f"{'operation':<34}{'calls':>7}{'CPU ms':>9}{'share':>8}{'GFLOP':>9}{'GB':>8}{'of ceiling':>12}"]
    shown = sorted(rows.items(), key=lambda pair: -pair[1][0])
    for name, (seconds, calls, operations, size) in shown[:10]:
        reached = operations / seconds / flops if operations else size / seconds / bandwidth
        numbers = (
            f"{operations / 1e9:>9.1f}{'':>8}" if operations else f"{'':>9}{size / 1e9:>8.2f}" if size else " " * 17
        )
        lines.append(f"{name:<34}{calls:>7.0f}{1000 * seconds:>9.1f}{seconds / whole:>8.1%}{numbers}"
                     + (f"{reached:>12.0%}" if operations or size else ""))  # fmt: skip
    rest = sum(row[0] for _, row in shown[10:])
    lines.append(f"{'all others':<34}{'':>7}{1000 * rest:>9.1f}{rest / whole:>8.1%}")
    return "\n".join([*lines, f"{'a step':<34}{'':>7}{1000 * whole:>9.1f}"])


def shapes_of(method: nn.Module, steps: Steps) -> dict[tuple, int]:
    """Each convolution of a step, (input shape, kernel shape, stride, padding), and how often it is computed."""
    shapes: dict[tuple, int] = defaultdict(int)

    def note(layer: Any, inputs: tuple, output: object) -> None:
        shapes[tuple(inputs[0].shape), tuple(layer.weight.shape), layer.stride[0], int(layer.padding[0])] += 1

    hooks = [layer.register_forward_hook(note) for layer in method.modules() if isinstance(layer, nn.Conv2d)]
    steps()
    for hook in hooks:
        hook.remove()
    return shapes


def forms(x: torch.Tensor, weight: torch.Tensor, stride: int, padding: int) -> dict[str, Callable[[], object]]:
    """Forward and gradients of a convolution in each form."""

    def of(function: Callable[..., torch.Tensor], layout: torch.memory_format) -> Callable[[], object]:
        image, kernel = (t.to(memory_format=layout).requires_grad_() for t in (x, weight))
        slope = torch.ones_like(function(image, kernel))
        return lambda: torch.autograd.grad(function(image, kernel), (image, kernel), slope)

    def plain(image: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
        return F.conv2d(image, kernel, None, stride, padding)

    def product(tiny: bool) -> Callable[..., torch.Tensor]:
        return lambda image, kernel: Product.apply(image, kernel, None, stride, padding, tiny)

    return {"channels_last": of(plain, LAST), "contiguous": of(plain, torch.contiguous_format),
            "kernel's gradient as product": of(product(False), LAST), "all as products": of(product(True), LAST)}  # fmt: skip


def compare_forms(method: nn.Module, steps: Steps, repeats: int, flops: float) -> str:
    """Each convolution in each form, and what the best ones would save."""
    lines = [
        f"{'convolution':<40}{'times':>6}{'now ms':>9}{'of ceiling':>12}   best, where it is not the form of training"
    ]
    now, best = 0.0, 0.0
    for ((n, c, h, w), (o, _, k, _), stride, padding), times in shapes_of(method, steps).items():
        x, weight = torch.randn(n, c, h, w), torch.randn(o, c, k, k)
        seconds = {name: cpu_seconds(work, repeats) for name, work in forms(x, weight, stride, padding).items()}
        layer = Conv2d(c, o, k, stride, padding)
        pixels = layer._output_pixels(x)
        form = (
            ("all as products" if pixels <= 2 else "kernel's gradient as product")
            if layer._is_better(x)
            else "channels_last"
        )
        operations = 6 * n * o * c * taps(h, k, stride, padding) ** 2
        name = min(seconds, key=lambda key: seconds[key])
        now, best = now + times * seconds[form], best + times * min(seconds.values())
        gain = f"{name}: {1000 * seconds[name]:.1f}" if seconds[name] < 0.97 * seconds[form] else ""
        what = f"{c} -> {o}, {k} x {k}, stride {stride}, {h} x {w}"
        lines.append(
            f"{what:<40}{times:>6}{1000 * seconds[form]:>9.1f}{operations / seconds[form] / flops:>12.0%}   {gain}".rstrip()
        )
    return "\n".join(
        [*lines, f"all convolutions: {1000 * now:.0f} ms a step; each in its best form: {1000 * best:.0f} ms"]
    )


def main(words: list[str] | None = None) -> None:
    options = argparse.ArgumentParser("benchmarks.roofline")
    options.add_argument("--recipe", default="barlow-twins-cifar10-small")
    options.add_argument("--batch", type=int, default=256)
    options.add_argument("--repeats", type=int, default=7)
    options.add_argument("--override", nargs="*", default=[], help="key=value of the recipe")
    arguments = options.parse_args(words)
    torch.set_num_threads(1)
    keep_freed_memory()  # as the command does
    overrides = ["pretrain.precision=float32", f"pretrain.batch_size={arguments.batch}", *arguments.override]
    product, convolution, bandwidth = ceilings(8 * arguments.repeats)
    flops = max(product, convolution)
    print(f"a core: {product / 1e9:.0f} GFLOP/s in a product, {convolution / 1e9:.0f} in a convolution, "
          f"{bandwidth / 1e9:.1f} GB/s in a copy\n")  # fmt: skip
    steps = Steps(build(recipe.read_recipe(arguments.recipe, overrides)), arguments.batch)
    with quick_convolutions(steps.method):
        print(table(steps, arguments.repeats, flops, bandwidth), end="\n\n")
        print(compare_forms(steps.method, steps, arguments.repeats, flops))


if __name__ == "__main__":
    main()
