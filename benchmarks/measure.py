"""What all benchmarks share: rivals timed in turns, a table on the screen, JSON with commit and machine.

Rivals take turns within each repeat, so that a slow minute of the machine hits all of them, and only ratios within one run are
quoted. A number is the median of the repeats; its spread is the smallest and the largest.
"""

import argparse
import ctypes
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
LIBRARIES = "torch torchvision timm lightly kornia tensorflow keras scikit-learn numpy pillow".split()


@dataclass
class Row:
    """One rival's answer to one question: `work` units (views, pairs, ...) done in each of `seconds`."""

    name: str
    seconds: list[float]
    work: float = 1.0
    unit: str = "s"  # "s": lower is better; "views/s" and the like: higher is better
    note: str = ""
    extra: dict = field(default_factory=dict)

    @property
    def values(self) -> list[float]:
        return self.seconds if self.unit == "s" else [self.work / second for second in self.seconds]

    @property
    def median(self) -> float:
        return statistics.median(self.values)


def parser(question: str, threads: int | None = None) -> argparse.ArgumentParser:
    """The options that every benchmark takes."""
    made = argparse.ArgumentParser(prog=f"python -m benchmarks.{question}", description=f"benchmarks.{question}")
    made.add_argument("--threads", type=int, default=threads or len(os.sched_getaffinity(0)), help="of torch")
    made.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    made.add_argument("--repeats", type=int, default=5)
    made.add_argument("--quick", action="store_true", help="tiny work, to see that it runs; nothing to quote")
    made.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON")
    return made


def in_turns(rivals: Mapping[str, Callable[[], object]], repeats: int = 5, warm_up: int = 1, device: str = "cpu"):
    """Seconds of each call, {name: [seconds of each repeat]}; on a GPU until it has finished."""
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for repeat in range(-warm_up, repeats):
        for name, work in rivals.items():
            started = clock(device)
            work()
            if repeat >= 0:
                seconds[name].append(clock(device) - started)
    return seconds


def clock(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def missing(*libraries: str) -> str:
    """Empty where all are installed, else the line to print for the rival that is left out."""
    lost = [name for name in libraries if not version_of(name)]
    return f"not measured: {', '.join(lost)} not installed (pip install -e '.[benchmarks]')" if lost else ""


def version_of(library: str) -> str:
    """Empty where it is not installed. TensorFlow without a GPU is a distribution of another name."""
    for name in (library, f"{library}-cpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def machine() -> dict:
    """What the numbers were measured on; no host or user name."""
    found = {"cpu": cpu_name(), "cores": len(os.sched_getaffinity(0)), "threads": torch.get_num_threads(),
             "python": platform.python_version(), "system": platform.system(),
             "libraries": {name: version for name in LIBRARIES if (version := version_of(name))}}  # fmt: skip
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def cpu_name() -> str:
    """With what it multiplies bfloat16, where Linux tells."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = facts.get("model name", platform.processor() or platform.machine())
    return name + " with AMX" * ("amx_bf16" in facts.get("flags", ""))


def commit() -> str:
    """Of the code that was measured, with "+" where files are changed or new since; "unknown" outside of git."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "src", "benchmarks/*.py")
        return (git("rev-parse", "--short", "HEAD") or "unknown") + "+" * bool(changed)
    except OSError:
        return "unknown"


def faster(ours: Row, row: Row) -> float:
    """How many times as fast ours is, from the medians of one run."""
    return row.median / ours.median if row.unit == "s" else ours.median / row.median


def goal(what: str, reached: float, wanted: float, unit: str = "", at_most: bool = False) -> str:
    """A note for `report`: what was promised, and whether it holds here."""
    holds = reached <= wanted if at_most else reached >= wanted
    limit = f"at {'most' if at_most else 'least'} {shown(wanted)}{unit}"
    return f"goal: {what} {limit}: {shown(reached)}{unit}, {'reached' if holds else 'MISSED'}"


def peak_bytes(work: Callable[[], object], device: str = "cpu") -> int | None:
    """The most memory that a call holds over what was held before; on a CPU from Linux' own count, elsewhere None."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    reset = Path("/proc/self/clear_refs")
    if not os.access(reset, os.W_OK):
        return None
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)  # what earlier work has freed goes back to the system, else nothing new would show
    reset.write_text("5")  # sets the peak back to what is resident now
    before = kilobytes("VmRSS")
    work()
    return 1024 * max(0, kilobytes("VmHWM") - before)


def kilobytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def report(question: str, what: str, rows: list[Row], against: str, arguments: argparse.Namespace, notes=()) -> None:
    """Print the table and write OUT/QUESTION-DEVICE.json, a table for each `what` and number of threads.

    against: the name of our row, which the ratios refer to; "" where the rows answer different questions.
    """
    print(table(what, rows, against, arguments, notes))
    if arguments.quick:
        return print("--quick: nothing is written, nothing is to be quoted")
    write(question, what, result(question, what, rows, arguments, notes), arguments)


def table(what: str, rows: list[Row], against: str, arguments: argparse.Namespace, notes=()) -> str:
    ours = next((row for row in rows if row.name == against), None)
    if against and ours is None:
        raise ValueError(f"no row is called {against!r}; there are {[row.name for row in rows]}")
    heads = f"{rows[0].unit:>12}{'min':>12}{'max':>12}" + f"{'ours is':>18}" * bool(ours)
    lines = [f"\n{what}\n{f'{threads_of(arguments)}, {arguments.device}':<44}{heads}"]
    for row in rows:
        against_ours = (
            f"{faster(ours, row):.2f} x as fast" if ours and row is not ours and row.unit == ours.unit else ""
        )
        numbers = "".join(f"{shown(value):>12}" for value in (row.median, min(row.values), max(row.values)))
        lines.append(f"{row.name:<44}{numbers}{against_ours:>18}  {row.note}".rstrip())
    return "\n".join([*lines, *notes])


def threads_of(arguments: argparse.Namespace) -> str:
    return f"{arguments.threads} thread{'s' * (arguments.threads != 1)}"


def result(question: str, what: str, rows: list[Row], arguments: argparse.Namespace, notes=()) -> dict:
    """What a table says, and of what commit and machine it is."""
    return {"question": question, "what": what, "commit": commit(), "date": time.strftime("%Y-%m-%d"), "machine": machine(),
            "arguments": {key: value for key, value in vars(arguments).items() if key not in ("out", "quick")},
            "rows": [{"name": row.name, "unit": row.unit, "median": row.median, "min": min(row.values), "max": max(row.values),
                      "seconds": row.seconds, "note": row.note, **row.extra} for row in rows], "notes": list(notes)}  # fmt: skip


def written(question: str, arguments: argparse.Namespace) -> dict[str, dict]:
    """The results of OUT/QUESTION-DEVICE.json, by table and number of threads."""
    path = arguments.out / f"{question}-{arguments.device}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def write(question: str, what: str, content: dict, arguments: argparse.Namespace) -> None:
    """Add a result to OUT/QUESTION-DEVICE.json, whole or not at all: a benchmark may be killed at any time."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    known = written(question, arguments) | {f"{what}; {threads_of(arguments)}": content}
    path = arguments.out / f"{question}-{arguments.device}.json"
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(known, indent=1, default=str) + "\n")
    partial.replace(path)


def shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
