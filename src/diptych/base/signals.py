"""Signals ask a command to stop. They are heard while the main thread waits inside a library, too.

Python runs the handler of a signal between two operations of the main thread: never while that waits inside a collective for
a process that does not answer. But the interpreter also writes the signal's number to a pipe at once (`set_wakeup_fd`), and
a thread reads it there. `hearing` is both, and the only place that sets handlers for a command and its training: a second
Ctrl-C ends the process at once, and so does a first signal whose `patience` is over. In the loop patience has no end, for
who saves may take long; there `base/heartbeat.py` ends a process that waits for one that does not run any more.
"""

import ctypes
import math
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import NoReturn

PREEMPTED = 75  # EX_TEMPFAIL: saved, run the same command again
INTERRUPTED = 130  # the shell's code for Ctrl-C: stopped at once, only the last checkpoint remains
STOPPING: tuple[int, ...] = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
PARENT_DEATH_SIGNAL = 1  # Linux's PR_SET_PDEATHSIG
PATIENCE = 5.0  # seconds that a command has to end where there is nothing to save

Handler = Callable[[int, FrameType | None], object]
_received: list[int] = []  # by the innermost `hearing`, in order
_pipes: list[int] = []  # of each `hearing`, the innermost last


class Preempted(SystemExit):
    """The run was asked to stop, has saved, and can be continued (exit code 75)."""

    def __init__(self, message: str):
        super().__init__(PREEMPTED)
        self.message = message


@contextmanager
def leaving() -> Iterator[None]:
    """Outside the loop there is nothing to save: a signal ends the command, within PATIENCE seconds wherever it is."""

    def leave(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise Preempted(f"{signal.Signals(number).name}: stopped; run the same command again (pretrain: with --resume)")

    with hearing(leave, patience=PATIENCE):
        yield


class StopRequest:
    """`with StopRequest() as stop:` sets `stop.signal_name` at SIGTERM, SIGUSR1, SIGHUP or Ctrl-C.

    The old handlers are restored at the end. Outside the main thread Python allows no handlers: `signal_name` stays empty.
    """

    def __init__(self) -> None:
        self.signal_name = ""
        self._hearing = hearing(self._receive)

    def __enter__(self) -> "StopRequest":
        self._hearing.__enter__()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._hearing.__exit__(kind, error, trace)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.signal_name = signal.Signals(number).name


def follow_parent() -> None:
    """Have the system continue this process when its parent ends: one that is stopped would hear nothing. Linux only."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, int(signal.SIGCONT))


@contextmanager
def handling(handler: Handler, numbers: Iterable[int] = (*STOPPING, signal.SIGINT)) -> Iterator[None]:
    """Set `handler` for the signals while the block runs. A SIGHUP that was ignored at the start, by nohup, stays ignored."""
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    old = {n: signal.signal(n, handler) for n in numbers if n != signal.SIGHUP or not ignored}
    pipe = signal.set_wakeup_fd(-1)
    try:
        yield
    finally:
        signal.set_wakeup_fd(pipe)
        for number, former in old.items():
            signal.signal(number, former or signal.SIG_DFL)


@contextmanager
def hearing(handler: Handler, patience: float = math.inf) -> Iterator[None]:
    """`handling`, and a thread that hears what the main thread does not. Outside the main thread: nothing.

    It ends the process at a Ctrl-C that is not the first signal, and `patience` seconds after the first signal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    thread = threading.Thread(target=_listen, args=(reading, patience), daemon=True)
    with handling(handler):
        _received.clear()
        _pipes.append(writing)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        thread.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(-1)
            os.close(_pipes.pop())  # the thread reads the end
            thread.join()
            os.close(reading)
            _received.clear()


def _listen(reading: int, patience: float) -> None:
    limit = math.inf
    while True:
        seconds = None if limit == math.inf else max(0.0, limit - time.monotonic())
        if not select.select([reading], [], [], seconds)[0]:
            end_at_once(f"{received()}: stopped; run the same command again (pretrain: with --resume)")
        numbers = os.read(reading, 64)
        if not numbers:
            return
        for number in numbers:
            if number == signal.SIGINT and _received:
                end_at_once("stopped at once; the last checkpoint is kept", INTERRUPTED)
            if number in (*STOPPING, signal.SIGINT):
                _received.append(number)
                limit = min(limit, time.monotonic() + patience)


def received() -> str:
    """The name of the first signal that asked this process to stop; "" as long as none has."""
    return signal.Signals(_received[0]).name if _received else ""


def end_at_once(message: str, code: int | None = None) -> NoReturn:
    """End this process, whatever its threads wait for; its code is that of the signal received, else `code`, else 1.

    Not sys.exit: a thread or a finally clause could hold it up. So could standard error, if nobody reads its pipe.
    """
    if code is None:
        code = {"": 1, "SIGINT": INTERRUPTED}.get(received(), PREEMPTED)
    with suppress(OSError, ValueError):
        if select.select([], [2], [], 0)[1]:
            before = "\x1b[?25h\n" if os.isatty(2) else ""  # the bar has hidden the cursor
            os.write(2, f"{before}diptych: {message}\n".encode(errors="replace"))
    os._exit(code)


def _deafen() -> None:
    """What is forked off has the same pipe, and its signals are not this process's."""
    if _pipes:
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_deafen)
