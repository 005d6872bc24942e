"""Processes of a test's own. A server that has imported torch forks them: one import for all processes of a worker's tests.

It has not run torch, whose threads do not survive a fork.
"""

import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
# The server finds them by PYTHONPATH or as installed, never by this process' sys.path; it passes over what it cannot import.
PRELOADED = ["diptych.training.pretrain", "diptych.commands.cli"]
CONTEXT.set_forkserver_preload(PRELOADED)


def start(
    target: Callable, *arguments: object, said: Path | None = None, env: dict[str, str] | None = None
) -> BaseProcess:
    """A process that calls `target(*arguments)`. said: a file for its standard output and error. env: None for this process'."""
    process = CONTEXT.Process(target=begin, args=(said, env or dict(os.environ), target, *arguments),
                              daemon=True)  # fmt: skip
    process.start()
    return process


def begin(said: Path | None, env: dict[str, str], target: Callable, *arguments: object) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ.clear()  # it may have changed since the server was started
    os.environ.update(env)
    if said is not None:
        file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file, stream.fileno())
    target(*arguments)


def end(process: BaseProcess, seconds: float = 120) -> int:
    """Its exit code; a process that does not end within so many seconds is killed, and an error."""
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
        raise AssertionError(f"the process was still running after {seconds} s")
    code = process.exitcode
    process.close()
    return code


def run(target: Callable, *arguments: object, **options) -> int:
    """The exit code of a process that calls `target(*arguments)`."""
    return end(start(target, *arguments, **options))


def require_preloaded() -> None:
    """For a process of its own: exit code 0 if the server had imported everything."""
    sys.exit(0 if {"torch", *PRELOADED} <= set(sys.modules) else 1)
