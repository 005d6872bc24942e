"""A request to stop is a flag that the loop reads between two steps; a second Ctrl-C ends the process at once."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

PREEMPTED = 75  # EX_TEMPFAIL: saved, run the same command again
INTERRUPTED = 130  # the shell's code for Ctrl-C: stopped at once, only the last checkpoint remains


class Preempted(SystemExit):
    """The run was asked to stop, has saved, and can be continued (exit code 75)."""

    def __init__(self, message: str):
        super().__init__(PREEMPTED)
        self.message = message


@contextmanager
def leaving() -> Iterator[None]:
    """Outside the loop there is nothing to save: SIGTERM and SIGUSR1 end the command at once."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise Preempted(f"{signal.Signals(number).name}: stopped; run the same command again (pretrain: with --resume)")

    handled = (signal.SIGTERM, signal.SIGUSR1) if threading.current_thread() is threading.main_thread() else ()
    old = {number: signal.signal(number, leave) for number in handled}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


class StopRequest:
    """`with StopRequest() as stop:` sets `stop.signal_name` at SIGTERM, SIGUSR1 or Ctrl-C.

    The old handlers are restored at the end. Outside the main thread Python allows no handlers: `signal_name` stays empty.
    """

    def __init__(self) -> None:
        self.signal_name = ""
        self._old: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
                self._old[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)  # pyrefly: ignore

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal_name:
            os.write(2, b"\nstopped at once; the last checkpoint is kept\n")
            os._exit(INTERRUPTED)  # not sys.exit: a thread or a finally clause could hold it up
        self.signal_name = signal.Signals(number).name
