"""A request to stop is a flag that the loop reads between two steps; the second Ctrl-C does not wait."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

PREEMPTED = 75  # EX_TEMPFAIL: saved, run the same command again
INTERRUPTED = 130  # the shell's code for Ctrl-C: stopped at once, the last checkpoint is what there is


class Preempted(SystemExit):
    """The run was asked to stop, has saved, and can be continued (exit code 75)."""

    def __init__(self, message: str):
        super().__init__(PREEMPTED)
        self.message = message


@contextmanager
def leaving() -> Iterator[None]:
    """Outside the loop there is nothing to save: SIGTERM and SIGUSR1 end the command there and then, to be run again."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise Preempted(f"{signal.Signals(number).name}: stopped; run the same command again (pretrain: with --resume)")

    asked = (signal.SIGTERM, signal.SIGUSR1) if threading.current_thread() is threading.main_thread() else ()
    old = {number: signal.signal(number, leave) for number in asked}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


class StopRequest:
    """`with StopRequest() as stop:` turns SIGTERM, SIGUSR1 and Ctrl-C into `stop.asked`, and puts the old handlers back.

    Outside the main thread Python allows no handlers: there `asked` simply stays empty.
    """

    def __init__(self) -> None:
        self.asked = ""
        self._old: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
                self._old[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)  # pyrefly: ignore

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.asked:
            os.write(2, b"\nstopped at once; the last checkpoint is kept\n")
            os._exit(INTERRUPTED)  # not sys.exit: a thread or a finally clause could hold it up
        self.asked = signal.Signals(number).name
