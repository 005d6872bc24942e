"""What does a step of each method cost? CPU-seconds and memory of the small recipes, on the same network and batch.

    python -m benchmarks.method_costs [--methods byol simclr] [--batch 256]

Each method takes `--repeats` steps after one that warms up, in float32, in a process of its own: forward, loss, backward, update
and what the method moves itself; views are made before the clock starts. CPU-seconds are counted, so that other work on the
machine matters less; the smallest is the number. Memory is the most that the steps hold over what was held before them.
"""

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.leaderboard import METHODS
from benchmarks.measure import machine, parser, peak_bytes
from diptych.base.random_at import random_at
from diptych.commands.build import build
from diptych.commands.recipe import read_recipe
from diptych.networks.batch_norm import shared_statistics


def main(words: list[str] | None = None) -> None:
    command = parser("method_costs", threads=1)
    command.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    command.add_argument("--batch", type=int, default=256)
    command.add_argument("--one", action="store_true", help="the first method, in this process")
    arguments = command.parse_args(words)
    torch.set_num_threads(arguments.threads)
    if arguments.one:
        print(json.dumps(cost(arguments.methods[0], arguments.batch, 1 if arguments.quick else arguments.repeats)))
        return
    print(f"{arguments.threads} thread{'s' * (arguments.threads != 1)}, {machine()['cpu']}, batch {arguments.batch}")
    print(f"{'':<14}{'views':>6}{'CPU-s a step':>14}{'largest':>9}{'MB':>7}{'million parameters':>20}")
    options = [
        "--batch",
        str(arguments.batch),
        "--threads",
        str(arguments.threads),
        "--repeats",
        str(arguments.repeats),
    ]
    for name in arguments.methods:
        line = [sys.executable, "-m", "benchmarks.method_costs", "--methods", name, "--one", *options]
        ran = subprocess.run([*line, *["--quick"] * arguments.quick], check=True, capture_output=True, text=True,
                             cwd=Path(__file__).resolve().parents[1])  # fmt: skip
        row = json.loads(ran.stdout)
        print(f"{name:<14}{row['views']:>6}{min(row['seconds']):>14.2f}{max(row['seconds']):>9.2f}{row['megabytes']:>7.0f}"
              f"{row['parameters'] / 1e6:>20.1f}", flush=True)  # fmt: skip


def cost(name: str, batch: int, steps: int) -> dict:
    """Seconds of each step after the first, and the most memory that they hold over what was held before."""
    built = build(read_recipe(f"{name}-cifar10-small"))
    method = built.method.to(memory_format=torch.channels_last).train()  # pyrefly: ignore[no-matching-overload]
    pixels = torch.randint(256, (batch, 3, 32, 32), dtype=torch.uint8, generator=random_at("pixels"))
    views = [
        view(pixels, random_at("views", k)).to(memory_format=torch.channels_last) for k, view in enumerate(built.views)
    ]
    seconds = []

    def train() -> None:
        for step in range(steps + 1):
            started = time.process_time()
            compared = method(views, dict(method.draw(batch, random_at("draw", step))), 0.5)
            built.optimizer.zero_grad()
            compared.loss.backward()
            built.optimizer.step()
            method.after_step(compared.kept, 0.5)
            seconds.append(time.process_time() - started)

    with shared_statistics(method, method.statistics_rows):
        held = peak_bytes(train)
    return {"views": len(views), "seconds": seconds[1:], "megabytes": math.nan if held is None else held / 2**20,
            "parameters": sum(p.numel() for p in method.parameters())}  # fmt: skip


if __name__ == "__main__":
    main()
