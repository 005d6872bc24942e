"""Progress for people: a bar with the time left on a terminal, a plain line now and then elsewhere.

Everything is written to standard error; standard output is for results.
"""

import errno
import io
import os
import sys
import time
from types import TracebackType
from typing import Any

QUIET_SECONDS = 10.0  # between two lines where there is no terminal
BAR_WIDTH = 16  # columns, so that 80 hold the count, the time left and the beginning of a text


def counted(count: int, noun: str) -> str:
    """`1 image`, `2,000 images`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


class ProgressBar:
    """`with ProgressBar("pretrain", total) as bar: bar(done, "loss 3.2")`; silent when `show` is False."""

    def __init__(self, title: str, total: int | None = None, show: bool = True):
        self.title, self.total, self.show = title, total, show
        self._begin = self._printed_at = time.monotonic()
        self._first: int | None = None  # where this process began: the rate of a resumed run counts only its own steps
        self._bar: Any = None  # rich's, imported where there is a terminal to draw on
        self._task: Any = None

    def __enter__(self) -> "ProgressBar":
        if self.show and sys.stderr.isatty():
            from rich import progress  # 60 ms

            self._bar = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(bar_width=BAR_WIDTH),
                progress.MofNCompleteColumn(),
                progress.TimeRemainingColumn(compact=True),
                progress.TextColumn("{task.fields[text]}", markup=False),
                console=_stderr(),
                refresh_per_second=4,
            )
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total, text="")
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, done: int, text: str | int = "") -> None:
        """Show that `done` of the total is done. An integer in place of the text sets the total."""
        if isinstance(text, int):
            self.total, text = text, ""
        if self._first is None:
            self._first = done
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=self.total, text=text[: self.room()])
        elif self.show and (time.monotonic() - self._printed_at > QUIET_SECONDS or (done == self.total and done > 0)):
            self._printed_at = time.monotonic()
            print(
                f"{self.title} {done}{f'/{self.total}' if self.total else ''} {self.left(done)} {text}".rstrip(),
                file=sys.stderr,
                flush=True,
            )

    def room(self) -> int:
        """Columns of the terminal that the bar leaves to a text; a longer one would shrink the bar and the time left."""
        count = 2 * len(str(self.total or "?")) + 1
        return max(0, self._bar.console.width - len(self.title) - BAR_WIDTH - count - len("00:00:00") - 5)

    def left(self, done: int) -> str:
        """The time left at the rate of this process, as text; "" while it is unknown."""
        since_begin = done - (self._first or 0)
        if not self.total or since_begin <= 0 or done >= self.total:
            return ""
        seconds = (time.monotonic() - self._begin) * (self.total - done) / since_begin
        return f"({clock(seconds)} left)"

    def say(self, text: str) -> None:
        """One line above the bar."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        elif self.show:
            print(text, file=sys.stderr, flush=True)


class LastingFile(io.FileIO):
    """A stream whose reader may end before this process: what is written then is dropped, and no error ends the run.

    A pipe that nobody reads any more (`2>&1 | head -1`) gives EPIPE, a terminal that was closed EIO.
    """

    def write(self, data) -> int:  # pyrefly: ignore[bad-override]
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO, errno.ECONNRESET):
                raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())  # for the messages of C++ too
        os.close(nowhere)
        return len(data)


def open_streams() -> None:
    """Make standard output and error last as long as this process, whatever becomes of who reads them.

    Where one was closed when the process started (`>&-`) the null device is opened in its place. Else the next file opened
    would get the descriptor of standard error, and what torch writes there.
    """
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  (it must stay open)
        elif stream is getattr(sys, f"__{name}__"):  # else somebody has put something in its place, as tests do
            file = io.BufferedWriter(LastingFile(descriptor, "w", closefd=False))
            lines = stream.line_buffering or stream.write_through
            setattr(sys, name, io.TextIOWrapper(file, stream.encoding, stream.errors, line_buffering=lines))


def _stderr():
    from rich.console import Console

    return Console(stderr=True)


def clock(seconds: float) -> str:
    """`75` as `1:15`, `4000` as `1:06:40`."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
