"""Several processes watch over each other: one that does not run any more is noticed in a minute, not in half an hour.

A process that is stopped, swapped out or cut off from the network closes no connection, so a collective waits for it as long
as the timeout of collectives says. That has to be long: the first process may read images, evaluate or compile for many
minutes while the others wait. So a thread of each process, not its main thread, counts up a number in the store where the
processes have met. Slow work lets that thread run; only a process that does not run at all stops counting.
"""

import os
import threading
from collections.abc import Callable
from typing import Protocol

from diptych.base.errors import RecipeError
from diptych.base.signals import end_at_once, received

TICK = 1.0  # seconds between two counts
SILENT = 60.0  # seconds without a count after which a process is given up, unless the variable says otherwise
SILENT_VARIABLE = "DIPTYCH_PEER_TIMEOUT"
SILENT_STOPPING = 10.0  # the same, where a signal has asked this process to stop


class Store(Protocol):
    """A table of counts that all processes see, such as a TCPStore of torch."""

    def add(self, key: str, value: int, /) -> int: ...

    def set(self, key: str, value: str, /) -> object: ...


class Heartbeat:
    """Counts for process `rank` of `world` until `stop`, and ends this process when another one no longer counts.

    connect: opens a store for this thread alone, since a store that does not answer holds up whoever uses it. When a process
    is given up, the main thread may wait for it and cannot be woken, so `end_at_once` ends this one, with one line that names
    the other. The exit code is 1, or where a signal has asked to stop, 75 (Ctrl-C: 130); the last checkpoint remains. Seconds
    are counted, not read from a clock: a process that was suspended itself blames nobody when it goes on.

    A count of 0 says that a process takes no part: it has not begun, or has stopped of its own accord. Raises RecipeError
    where DIPTYCH_PEER_TIMEOUT is no number of seconds.
    """

    def __init__(self, connect: Callable[[], Store], rank: int, world: int):
        self.connect, self.rank, self.world, self.limit = connect, rank, world, peer_timeout()
        self.silent = [
            0.0
        ] * world  # seconds since the last count of each; this process' own: since the store has answered
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._count, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """Take no part any more."""
        self.over.set()
        self.thread.join(TICK)  # the store may not answer

    def _count(self) -> None:
        try:
            store = self.connect()
            threading.Thread(target=self._check, daemon=True).start()
            last = [0] * self.world
            while not self.over.is_set():
                store.add(key(self.rank), 1)
                for rank in range(self.world):
                    count = store.add(key(rank), 0)
                    if count == 0 or count != last[rank]:
                        self.silent[rank], last[rank] = 0.0, count
                self.over.wait(TICK)
            store.set(key(self.rank), "0")
        except RuntimeError:  # the process that holds the store has ended: the seconds go on being counted
            return

    def _check(self) -> None:
        while not self.over.wait(TICK):
            for rank in range(self.world):
                self.silent[rank] += TICK
            limit = min(self.limit, SILENT_STOPPING) if received() else self.limit
            # Without an answer of the store nothing is known but that its process, the first one, is silent
            ranks = range(self.world) if self.silent[self.rank] <= limit else (0,)
            for rank in ranks:
                if self.silent[rank] > limit:
                    self._give_up(rank)

    def _give_up(self, rank: int) -> None:
        silent = f"process {rank} of {self.world} has sent no heartbeat for {self.silent[rank]:.0f} s"
        kept = "the last checkpoint is kept: run again with --resume"
        if received():
            end_at_once(f"{received()}: stopped without saving, since {silent}; {kept}")
        end_at_once(f"{silent}: it hangs, or the network does; {kept}")


def key(rank: int) -> str:
    return f"diptych/count/{rank}"


def peer_timeout() -> float:
    """Seconds without a sign of another process after which it is given up: DIPTYCH_PEER_TIMEOUT, or SILENT."""
    text = os.environ.get(SILENT_VARIABLE, str(SILENT))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise RecipeError(f"{SILENT_VARIABLE}={text!r} is not a number of seconds above 0: correct it, or unset it")
    return seconds
