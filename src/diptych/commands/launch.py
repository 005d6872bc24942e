"""`--gpus N`: run this command again in N processes of this machine that start and end together.

torchrun returns 1 for any code of its processes. This launcher returns the most informative code, so that a job script
can distinguish "saved, run again" from "the images are broken". For several machines, use torchrun or srun.
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
from diptych.base.signals import INTERRUPTED, PREEMPTED, STOPPING, end_at_once, follow_parent, handling

# Seconds from the failure of one process to SIGTERM for the others, which notice it themselves or are saving.
TERMINATE_AFTER = 30.0
KILL_AFTER = 5.0  # seconds between SIGTERM and SIGKILL
ORPHAN_SECONDS = 300.0  # that processes whose launcher has been killed have to save and end
FORWARDED: dict[int, int] = dict.fromkeys(STOPPING, PREEMPTED) | {signal.SIGINT: INTERRUPTED}
LAUNCHED_VARIABLE = "DIPTYCH_LAUNCHED"
COMMAND = (sys.executable, "-P", "-m", "diptych")  # -P: no module is imported from the current folder


def launch(count: int, device: str) -> int:
    """Run this command in `count` processes, one per GPU (or all on the CPU), and return their exit code.

    The first process writes to this terminal. If another one is the cause of a failure, its output is printed at the
    end. The launcher forwards signals to all processes; when it is killed, they save and stop. A second Ctrl-C kills them.
    Raises RecipeError when there are fewer than `count` GPUs or cores, or when the processes could not reach each other,
    DiptychError when a signal that the launcher did not send has ended a process.
    """
    check_launch(count, device)
    port = free_port()
    variables = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), LAUNCHED_VARIABLE: "1"}
    variables["LOCAL_WORLD_SIZE"] = variables["WORLD_SIZE"]  # they share this machine's memory
    variables["TORCH_CPP_LOG_LEVEL"] = os.environ.get(
        "TORCH_CPP_LOG_LEVEL", "ERROR"
    )  # torch's traces of a lost process
    variables["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // count)))
    children: list[subprocess.Popen] = []
    with ExitStack() as stack, listening() as signals:
        outputs = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(count - 1)]
        stack.callback(lambda: [child.kill() for child in children])  # if an exception has left some running
        for rank, stderr in enumerate([None, *outputs]):
            env = os.environ | variables | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            # In a session of its own: Ctrl-C on the terminal reaches only the launcher, which forwards it once
            children.append(subprocess.Popen([*COMMAND, *sys.argv[1:]], env=env, stdin=subprocess.PIPE, stderr=stderr,
                                             start_new_session=True))  # fmt: skip
            stack.enter_context(children[-1].stdin)  # pyrefly: ignore[bad-argument-type]
        forwarded, ended, failed = wait(children, signals)
        codes = [0 if child in ended else FORWARDED[-child.returncode] if -child.returncode in forwarded
                 else child.returncode for child in children]  # fmt: skip
        return conclude(codes, outputs, [children.index(child) for child in failed])


def launched() -> bool:
    """Whether `launch` has started this process. If so, it gets SIGTERM when the launcher has ended, and has to end, too."""
    if LAUNCHED_VARIABLE not in os.environ:
        return False
    follow_parent()

    def stop_with_launcher() -> None:
        os.read(0, 1)  # returns when the launcher's end of the pipe closes: nothing is written to it
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(ORPHAN_SECONDS)
        end_at_once("the launcher was killed: stopped without saving; run again with --resume", PREEMPTED)

    threading.Thread(target=stop_with_launcher, daemon=True).start()
    return True


def check_launch(count: int, device: str) -> None:
    """Raise RecipeError where `count` processes cannot be started."""
    if "RANK" in os.environ:
        raise RecipeError("--gpus starts the processes itself: leave it out under torchrun, or start without torchrun")
    if device == "cpu":
        if count > (most := max(2, len(os.sched_getaffinity(0)))):
            raise RecipeError(f"--gpus {count} on the CPU needs as many cores, and this process may use "
                              f"{len(os.sched_getaffinity(0))}; use at most {most}")  # fmt: skip
        return
    if device not in ("auto", "cuda"):
        raise RecipeError(f"pretrain.device={device} is one device and --gpus {count} asks for {count}: leave one out")
    import torch  # takes 2 s, and only this branch needs it

    if count > (gpus := torch.cuda.device_count()):
        instead = f"use at most {gpus}, or " if gpus else ""
        raise RecipeError(f"--gpus {count} needs {count} GPUs, but torch sees {gpus}; {instead}"
                          "add pretrain.device=cpu for processes on the CPU")  # fmt: skip


def free_port() -> int:
    """A free port of this machine. Raises RecipeError where its processes could not reach each other there."""
    with socket.socket() as probe:
        probe.settimeout(5)
        try:
            probe.bind(("127.0.0.1", 0))
            probe.listen()
            with socket.create_connection(probe.getsockname(), 5):
                return probe.getsockname()[1]
        except OSError as error:
            raise RecipeError(f"--gpus: processes of this machine cannot reach each other at 127.0.0.1 ({error.strerror}); "
                              "bring up its loopback device (`ip link set lo up`)") from error  # fmt: skip


@contextmanager
def listening() -> Iterator[list[int]]:
    """A list that collects the signals of FORWARDED while the block runs."""
    received: list[int] = []
    with handling(lambda number, frame: received.append(number)):
        yield received


Processes = list[subprocess.Popen]


def wait(children: Processes, signals: list[int]) -> tuple[set[int], Processes, Processes]:
    """Wait until all processes have ended.

    Returns the forwarded signals, the processes that the launcher ended, and those that failed, in this order. A Ctrl-C
    after another signal is a KeyboardInterrupt here: nothing is waited for.
    """
    forwarded: set[int] = set()
    ended: Processes = []
    failed: Processes = []
    limit = None
    while True:
        running = [child for child in children if child.poll() is None]
        failed += [child for child in children if child.returncode and child not in failed]
        if not running:
            return forwarded, ended, failed
        while signals:
            number = signals.pop(0)
            if number == signal.SIGINT and forwarded:
                raise KeyboardInterrupt
            forwarded.add(number)
            for child in running:
                child.send_signal(number)
        if limit is None and failed:
            limit = time.monotonic() + TERMINATE_AFTER
        elif limit is not None and time.monotonic() > limit:
            for child in running:
                child.kill() if ended else child.terminate()
            ended, limit = ended or running, time.monotonic() + KILL_AFTER
        time.sleep(0.05)


def conclude(codes: Sequence[int], outputs: Sequence[IO[bytes]], failed: Sequence[int]) -> int:
    """The exit code of all: an error a user can fix, else a crash, else "run again". Prints its process's output.

    failed: the ranks that failed, in this order. Of several crashes the first is named, and one by SIGABRT only if there
    is no other: gloo may abort a process that loses another.
    """
    crashed = min(
        (rank for rank in failed if codes[rank] < 0), key=lambda rank: codes[rank] == -signal.SIGABRT, default=None
    )
    errors = [code for code in codes if code not in (0, 1, PREEMPTED) and code > 0]
    chosen = errors[0] if errors else 1 if crashed is not None or 1 in codes else max(codes)
    for rank, file in enumerate(outputs, 1):
        if codes[rank] == chosen != 0 and (chosen == 1 or codes[0] != chosen):
            file.seek(0)
            print(f"process {rank} of {len(codes)}:\n{file.read().decode(errors='replace').rstrip()}", file=sys.stderr)
    if crashed is not None and not errors:
        name = signal.Signals(-codes[crashed]).name
        reason = " (the system does that when memory runs out)" if name == "SIGKILL" else ""
        raise DiptychError(f"process {crashed} of {len(codes)} was killed by {name}{reason}; the last checkpoint is kept: "
                           "run again with --resume")  # fmt: skip
    return chosen
