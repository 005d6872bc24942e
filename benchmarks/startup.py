"""How long until something happens? Imports, `--help`, and the demo's first training step, each in a fresh process.

    python -m benchmarks.startup [--threads 1]

"added by" is counted after torch's own import, in the same process. The files are in the system's cache: the warm-up sees to it.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.measure import Row, goal, missing, parser, report

TORCH, OURS, ALL, HELP = "import torch", "import diptych adds", "every public name adds", "python -m diptych --help"
DEMO = "diptych demo: until its first step has ended"
AFTER_TORCH = {
    OURS: "import diptych",
    ALL: "import diptych; [getattr(diptych, name) for name in diptych.__all__]",
    "import lightly adds": "import lightly.loss, lightly.transforms, lightly.models",
    "import keras, with TensorFlow, adds": "import keras",
}
PATIENCE = 300  # seconds until a process that has said nothing is given up


def environment(arguments: argparse.Namespace) -> dict[str, str]:
    threads = str(arguments.threads)
    return os.environ | {"OMP_NUM_THREADS": threads, "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}


def fresh(program: str, variables: dict[str, str]) -> float:
    """Runs a program in a fresh Python; the last line that it prints, a number of seconds."""
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=PATIENCE, check=True)
    return float(ended.stdout.splitlines()[-1])


def timed_import(statement: str, before: str, variables: dict[str, str]) -> float:
    clock = "time.perf_counter()"
    return fresh(f"import time\n{before}\nstarted = {clock}\n{statement}\nprint({clock} - started)", variables)


def whole(command: list[str], variables: dict[str, str]) -> float:
    """Seconds of a process from its start to its end."""
    started = time.perf_counter()
    subprocess.run(command, capture_output=True, env=variables, timeout=PATIENCE, check=True)
    return time.perf_counter() - started


def until_logged(command: list[str], run: Path, variables: dict[str, str]) -> float:
    """Seconds from a process' start to the first step in the log of its run folder; the process is then killed."""
    log, started = run / "log.jsonl", time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=variables)
    logged, passed = False, 0.0
    while not logged and process.poll() is None and passed < PATIENCE:
        time.sleep(0.01)
        logged = log.exists() and '"event": "step"' in log.read_text()
        passed = time.perf_counter() - started
    process.kill()
    said = process.communicate()[1]
    if not logged:
        raise RuntimeError(f"{command} logged no step in {passed:.0f} s: {said}")
    return passed


def demo(variables: dict[str, str]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        return until_logged([sys.executable, "-m", "diptych", "demo", "--out", str(run)], run, variables)


def questions(arguments: argparse.Namespace) -> tuple[dict[str, Callable[[], float]], list[str]]:
    """What can be measured here, each a function that returns seconds, and lines about what cannot."""
    variables, notes = environment(arguments), []
    asked: dict[str, Callable[[], float]] = {TORCH: lambda: timed_import("import torch", "", variables)}
    for name, statement in AFTER_TORCH.items():
        library = name.split()[1].strip(",")
        needed = {"keras": ["keras", "tensorflow"], "diptych": [], "public": []}.get(library, [library])
        if lost := missing(*needed):
            notes.append(f"{name}: {lost}")
        else:
            before = "" if library == "keras" else "import torch"
            asked[name] = lambda statement=statement, before=before: timed_import(statement, before, variables)
    asked[HELP] = lambda: whole([sys.executable, "-m", "diptych", "--help"], variables)
    if lost := missing("scikit-image", "scikit-learn"):
        notes.append(f"{DEMO}: {lost}")
    else:
        asked[DEMO] = lambda: demo(variables)
    return asked, notes


def main(words: Sequence[str] | None = None) -> None:
    arguments = parser("startup").parse_args(words)
    asked, notes = questions(arguments)
    if arguments.quick:  # what takes no torch: this is to see that it runs
        arguments.repeats = 1
        asked = {OURS: lambda: timed_import("import diptych", "", environment(arguments)), HELP: asked[HELP]}
    warm_up = 0 if arguments.quick else 1
    seconds: dict[str, list[float]] = {name: [] for name in asked}
    for repeat in range(-warm_up, arguments.repeats):
        for name, ask in asked.items():
            found = ask()
            if repeat >= 0:
                seconds[name].append(found)
    rows = {name: Row(name, found) for name, found in seconds.items()}
    limits = {} if arguments.quick else {OURS: 0.3, HELP: 0.5, DEMO: 10.0}
    notes += [goal(name, rows[name].median, most, " s", at_most=True) for name, most in limits.items() if name in rows]
    report("startup", "seconds until something happens, in fresh processes", list(rows.values()), "", arguments, notes)


if __name__ == "__main__":
    main()
