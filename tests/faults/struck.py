"""Runs that are struck while they train or save, each in a process of its own; a server that has imported torch forks it."""

import builtins
import os
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

import own_process
import torch
from tiny import EPOCHS, tiny_method, tiny_run

from diptych.commands import ending
from diptych.runs import checkpoints
from diptych.runs.run import Run


def in_own_process(target, *arguments, kill_after: float | None = None) -> int:
    """The exit code of `target(*arguments)`; kill_after: seconds from when it has started its work until SIGKILL."""
    if kill_after is None:
        return own_process.run(target, *arguments)
    ready, here = own_process.CONTEXT.Pipe(duplex=False)
    with ready, here:
        process = own_process.start(begin, here, target, *arguments)
        ready.recv()
        time.sleep(kill_after)
        process.kill()
        return own_process.end(process)


def begin(here, target, *arguments) -> None:
    here.send("begun")
    target(*arguments)


def tensors(step: int) -> dict[str, dict[str, torch.Tensor]]:
    return {"model": {"a": torch.full((300,), float(step))}, "optimizer": {"b": torch.full((300,), -float(step))}}


def save_and_die(folder: str, moment: int) -> None:
    """Save step 3, and die at the given operation on the disk; a write that dies leaves half its bytes."""
    done = 0

    def strike() -> bool:
        nonlocal done
        done += 1
        return done == moment

    def mortal(operation):
        def call(*arguments, **options):
            if strike():
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*arguments, **options)

        return call

    class Torn:
        def __init__(self, path, mode):
            self.file = builtins.open(path, mode)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            if strike():
                self.file.write(data[: len(data) // 2])
                self.file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            return self.file.write(data)

    checkpoints.open = Torn
    for place, name in ((os, "fsync"), (os, "replace"), (os, "mkdir"), (shutil, "rmtree")):
        setattr(place, name, mortal(getattr(place, name)))
    checkpoints.save(Path(folder), 3, tensors(3), {})


def keep_saving(out: str, epochs: int = EPOCHS) -> None:
    """A checkpoint after each step."""
    tiny_run(Path(out), epochs=epochs)


def dies_early(out: str) -> None:
    """A run that is killed after three steps, minutes before its first checkpoint."""
    method = tiny_method()
    method.signal_at = (3, signal.SIGKILL)
    tiny_run(Path(out), method, checkpoint_minutes=5.0)


def limited(out: str, said: str, bytes_a_file: int) -> None:
    """A run that no longer may write files beyond a size."""
    with open(said, "w", buffering=1) as sys.stderr:
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_a_file, resource.RLIM_INFINITY))
        ending.run_command(lambda: tiny_run(Path(out)) and None)


def ended(out: str, said: str) -> None:
    """A run as the command line ends it."""
    with open(said, "w", buffering=1) as sys.stderr:
        ending.run_command(lambda: tiny_run(Path(out)) and None)


def interrupted_twice(out: str) -> None:
    """Two Ctrl-C while a watch takes its time: nothing is waited for."""

    def watch(step, encoder):
        if step == 4:
            Path(out, "struck").touch()
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(600)
        return {}

    tiny_run(Path(out), tiny_method(), watch=[watch])


def hold(folder: str) -> None:
    """Write to a run folder, until killed."""
    run = Run.start(folder, {"a": 1}, resume=True)
    (Path(folder) / "held").touch()
    time.sleep(60)
    run.release()
