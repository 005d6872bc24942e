"""A run whose process dies in the middle of reading an image, for a process of its own."""

import os
import resource
import signal
import threading
from pathlib import Path

import torch
from fake_source import Fake
from tiny import tiny_run

from diptych.data.images import images
from diptych.runs.run import Run


class Dying(Fake):
    """48 pictures, read as a stream; the process gets SIGSEGV in one of its reading threads at read number `at`."""

    def __init__(self, at: int | None = None):
        super().__init__(48)
        self.at, self.reads = at, 0

    def read(self, i: int) -> bytes:
        self.reads += 1
        if self.reads == self.at:
            assert threading.current_thread() is not threading.main_thread()
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().read(i)


def streamed_run(out: Path, at: int | None = None) -> Run:
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return tiny_run(out, photos=images(Dying(at), size=12, resident=False))
