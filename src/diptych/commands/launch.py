"""`--gpus N`: this command again, in N processes of this machine that begin and end together.

torchrun returns 1 whatever its processes return. Here the exit code that says most survives, so that a job script can
tell "saved, run me again" from "your images are broken". Several machines are torchrun's or srun's work.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import IO

from diptych.base.errors import DiptychError, RecipeError
from diptych.base.signals import INTERRUPTED, PREEMPTED

PATIENCE = 30.0  # seconds for the others when one has ended badly: they find out by themselves, or are saving
MERCY = 5.0  # seconds between SIGTERM and SIGKILL
FORWARDED: dict[int, int] = {signal.SIGTERM: PREEMPTED, signal.SIGUSR1: PREEMPTED, signal.SIGINT: INTERRUPTED}
MARK = "DIPTYCH_LAUNCHED"
COMMAND = (sys.executable, "-P", "-m", "diptych")  # -P: no module is imported from the current folder


def launch(count: int, device: str) -> int:
    """Run this very command in `count` processes, one a GPU (or all on the CPU), and return their exit code.

    The first process speaks on this terminal; of the others, the one that is the cause is quoted at the end. They follow
    the launcher: a signal to it is a signal to all, and when it is killed they save and stop. Raises RecipeError when there
    are not so many GPUs, DiptychError when a process was ended by a signal of somebody else.
    """
    check(count, device)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), MARK: "1"}
    place["LOCAL_WORLD_SIZE"] = place["WORLD_SIZE"]  # they share this machine's memory
    place["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // count)))
    children: list[subprocess.Popen] = []
    with ExitStack() as stack, listening() as heard:
        said = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(count - 1)]
        stack.callback(lambda: [child.kill() for child in children])  # whom something unforeseen has left running
        for rank, stderr in enumerate([None, *said]):
            here = os.environ | place | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            # A session of its own: Ctrl-C on the terminal reaches the launcher alone, which forwards it once
            children.append(subprocess.Popen([*COMMAND, *sys.argv[1:]], env=here, stdin=subprocess.PIPE, stderr=stderr,
                                             start_new_session=True))  # fmt: skip
            stack.enter_context(children[-1].stdin)  # pyrefly: ignore[bad-argument-type]
        forwarded, ended = wait(children, heard)
        codes = [0 if child in ended else FORWARDED[-child.returncode] if -child.returncode in forwarded
                 else child.returncode for child in children]  # fmt: skip
        return conclude(codes, said)


def launched() -> bool:
    """Whether `launch` has started this process; if so, it stops (as at SIGTERM) when the launcher is gone."""
    if MARK not in os.environ:
        return False

    def follow() -> None:
        os.read(0, 1)  # returns when the other end of the pipe has closed: nobody ever writes
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=follow, daemon=True).start()
    return True


def check(count: int, device: str) -> None:
    """RecipeError where `count` processes cannot be started."""
    if "RANK" in os.environ:
        raise RecipeError("--gpus starts the processes itself: leave it out under torchrun, or start without torchrun")
    if device == "cpu":
        return
    if device not in ("auto", "cuda"):
        raise RecipeError(f"pretrain.device={device} is one device and --gpus {count} asks for {count}: leave one out")
    import torch  # 2 s, and only here

    if count > (have := torch.cuda.device_count()):
        instead = f"use at most {have}, or " if have else ""
        raise RecipeError(f"--gpus {count} was asked for, but torch sees {have} GPUs; {instead}"
                          "add pretrain.device=cpu for processes on the CPU")  # fmt: skip


@contextmanager
def listening() -> Iterator[list[int]]:
    """The signals that arrive meanwhile, in a list."""
    heard: list[int] = []
    old = {number: signal.signal(number, lambda number, frame: heard.append(number)) for number in FORWARDED}
    try:
        yield heard
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def wait(children: Sequence[subprocess.Popen], heard: list[int]) -> tuple[set[int], list[subprocess.Popen]]:
    """Wait until all have ended; returns the signals that were passed on, and whom the launcher itself has ended."""
    forwarded: set[int] = set()
    ended: list[subprocess.Popen] = []
    limit = None
    while running := [child for child in children if child.poll() is None]:
        while heard:
            forwarded.add(number := heard.pop(0))
            for child in running:
                child.send_signal(number)
        if limit is None and any(child.returncode for child in children):
            limit = time.monotonic() + PATIENCE
        elif limit is not None and time.monotonic() > limit:
            for child in running:
                child.kill() if ended else child.terminate()
            ended, limit = ended or running, time.monotonic() + MERCY
        time.sleep(0.05)
    return forwarded, ended


def conclude(codes: Sequence[int], said: Sequence[IO[bytes]]) -> int:
    """The exit code of all: what a user can mend, before a crash, before "run it again"; the cause is quoted."""
    crashed = next((rank for rank, code in enumerate(codes) if code < 0), None)
    told = [code for code in codes if code not in (0, 1, PREEMPTED) and code > 0]
    chosen = told[0] if told else 1 if crashed is not None or 1 in codes else max(codes)
    for rank, file in enumerate(said, 1):
        if codes[rank] == chosen != 0 and (chosen == 1 or codes[0] != chosen):
            file.seek(0)
            print(f"process {rank} of {len(codes)}:\n{file.read().decode(errors='replace').rstrip()}", file=sys.stderr)
    if crashed is not None and not told:
        name = signal.Signals(-codes[crashed]).name
        reason = " (the system does that when memory runs out)" if name == "SIGKILL" else ""
        raise DiptychError(f"process {crashed} of {len(codes)} was ended by {name}{reason}; the last checkpoint is kept: "
                           "run again with --resume")  # fmt: skip
    return chosen
