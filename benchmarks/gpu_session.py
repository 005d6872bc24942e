"""A call on a lent machine: questions one after the other until its time is over, what is known already left out.

An answer is written as soon as it is there, and a question that fails or does not fit takes nothing from the others.
"""

import argparse
import gc
import hashlib
import json
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.measure import RESULTS, ROOT, Row, goal, result, shown, table, threads_of, write

LEVELS = ("base", "strong", "moonshot")
SAME = ("device", "compile", "epochs", "train", "test", "threads")  # arguments that change an answer


class Question(NamedTuple):
    """part: of the calls; rows: called with the work and the arguments, the first of its rows is held to the goals.

    goals: base, strong, moonshot, in the unit of that row; empty where nothing is promised.
    """

    part: int
    what: str
    rows: Callable[..., Iterator[Row]]
    goals: tuple[float, ...]


class Unmeasured(Exception):
    """Why a question has no answer here."""


class TimeIsOver(Exception):
    """Raised in the middle of a question when the call must end."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raises TimeIsOver inside when so many seconds are over, whatever is computed then."""

    def ring(*_: object) -> None:
        raise TimeIsOver

    if seconds <= 0:
        raise TimeIsOver
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_questions(
    questions: Mapping[str, Question],
    ask: Callable[[Question], Iterator[Row]],
    arguments: argparse.Namespace,
    started: float,
) -> int:
    """Ask, write what is answered, print all tables last; 1 where an answer is missing, else 0.

    started: `time.monotonic` at the start of the call, from which its seconds count.
    """
    tables, summary, missing = [], [], []
    for name, question in questions.items():
        began, rows, reason = time.monotonic(), known_rows(question, arguments), ""
        known = bool(rows)
        if not known:
            rows, reason = answer(ask(question), started + arguments.seconds - began)
            free_memory()
        print(f"{name}: {'known' if known else f'{time.monotonic() - began:.0f} s'}  {reason}".rstrip(), flush=True)
        notes = notes_of(question, rows, arguments)
        if reason:
            missing.append(f"{name}: {reason}")
        if rows:
            tables.append(table(question.what, rows, "", arguments, notes))
        if rows and (arguments.known or not known):
            keep(question, rows, notes, reason, arguments)
        summary.append(summary_line(question, rows, reason))
    print(*tables, sep="\n")
    print(f"\n{'goal':<62}{'base':>12}{'strong':>12}{'moonshot':>12}{'measured':>14}", *summary, sep="\n")
    print(*(f"not complete: {line}" for line in missing), sep="\n")
    if arguments.quick:
        print("--quick: nothing is to be quoted")
    return 1 if missing else 0


def answer(rows: Iterator[Row], seconds: float) -> tuple[list[Row], str]:
    """The rows that came, and why there are no more, if there are to be some."""
    complete: list[Row] = []
    try:
        with within(seconds):
            for row in rows:
                complete.append(row)  # noqa: PERF402  # what came before the time was over counts
    except TimeIsOver:
        return complete, "did not fit into the time of this call: call again"
    except Unmeasured as error:
        return complete, str(error)
    except Exception as error:  # the next questions may still be answered, and device time is short
        traceback.print_exc()
        return complete, f"failed with {type(error).__name__}: {str(error).strip().splitlines()[:1]}"
    return complete, ""


def free_memory() -> None:
    """What a question held is not in the way of the next one."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def notes_of(question: Question, rows: list[Row], arguments: argparse.Namespace) -> list[str]:
    if arguments.quick or not rows or not question.goals:
        return []
    row = rows[0]
    return [goal(question.what, row.median, wanted, f" {row.unit}", row.unit == "s") for wanted in question.goals]


def summary_line(question: Question, rows: list[Row], reason: str) -> str:
    goals = "".join(f"{shown(wanted):>12}" for wanted in question.goals) or " " * 36
    measured = f"{shown(rows[0].median)} {rows[0].unit}" if rows and not reason else "not yet"
    return f"{question.what:<62}{goals}{measured:>14}"


def keep(question: Question, rows: list[Row], notes: list[str], reason: str, arguments: argparse.Namespace) -> None:
    """Write an answer; a quick one only where a folder was named for it."""
    if arguments.quick and arguments.out == RESULTS:
        return
    content = result("gpu", question.what, rows, arguments, notes)
    content |= {"code": code(), "incomplete": reason, "work": [row.work for row in rows], "quick": arguments.quick}
    write("gpu", question.what, content, arguments)


def known_rows(question: Question, arguments: argparse.Namespace) -> list[Row]:
    """The rows of an earlier call, if it was of the same code, machine and arguments and is complete; else none."""
    folder = Path(arguments.known or arguments.out)
    path = folder / f"gpu-{arguments.device}.json"
    entry = json.loads(path.read_text()).get(f"{question.what}; {threads_of(arguments)}") if path.exists() else None
    if entry is None or entry["incomplete"] or entry["quick"] != arguments.quick:
        return []
    now = json.loads(json.dumps(result("gpu", question.what, [], arguments), default=str))
    theirs, ours = entry["arguments"], now["arguments"]
    same = entry["code"] == code() and entry["machine"] == now["machine"]
    if not same or any(theirs.get(key) != ours.get(key) for key in SAME):
        return []
    known = {"name", "unit", "median", "min", "max", "seconds", "note"}
    return [Row(row["name"], row["seconds"], work, row["unit"], row["note"],
                {key: value for key, value in row.items() if key not in known})
            for row, work in zip(entry["rows"], entry["work"], strict=True)]  # fmt: skip


@cache
def code() -> str:
    """A digest of the sources: a copy of the working tree on another machine need not be a git repository."""
    digest = hashlib.sha256()
    for path in sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
