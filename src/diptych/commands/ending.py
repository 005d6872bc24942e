"""How a command ends: with code 0, or with one line of text and an exit code that the README lists."""

import errno
import os
import sys
import warnings
from collections.abc import Callable
from typing import NoReturn

import typer

from diptych.base.errors import DiptychError, OutputError, RecipeError
from diptych.base.signals import INTERRUPTED, PREEMPTED, Preempted, leaving

UsageError = typer.BadParameter.__base__ or typer.BadParameter  # click's; typer has moved it between versions
USAGE = 2
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


def run_command(command: Callable[[], int | None]) -> NoReturn:
    """Run a command and exit: with one line and a code for an error a user can fix, a traceback and 1 for a bug."""
    warnings.showwarning = lambda message, *rest, **more: print(f"diptych: {one_line(message)}", file=sys.stderr)
    try:
        with leaving():
            try:
                code = command() or 0
            finally:
                if (processes := sys.modules.get("diptych.base.processes")) is not None:
                    processes.leave_processes()
    except DiptychError as error:
        exit_with(str(error), error.exit_code)
    except Preempted as request:
        exit_with(request.message, PREEMPTED)
    except UsageError as error:
        exit_with(usage(error), USAGE)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except (OSError, RuntimeError, MemoryError) as error:
        if (known := as_diptych_error(error)) is None:
            raise
        exit_with(str(known), known.exit_code)
    if code == INTERRUPTED:
        exit_with("interrupted; no partial files remain", code)
    sys.exit(code)


def exit_with(message: str, code: int) -> NoReturn:
    print(f"diptych: {one_line(message)}", file=sys.stderr)
    sys.exit(code)


def one_line(message: object) -> str:
    """The message with its line breaks escaped: a file's name may contain some."""
    return str(message).replace("\n", "\\n").replace("\r", "\\r")


def usage(error) -> str:
    """The error of a mistyped command in one line, with the command that shows its help."""
    path = error.ctx.command_path if error.ctx is not None else "diptych"
    path = "diptych " + path.split("diptych", 1)[-1].strip() if "diptych" in path else path
    problem = " ".join(error.format_message().split()).rstrip(".")
    return f"{problem[:1].lower()}{problem[1:]} (see `{path.strip()} --help`)"


def as_diptych_error(error: OSError | RuntimeError | MemoryError) -> DiptychError | None:
    """The error of a full disk, of missing memory or of another process that has ended; None for a bug of Diptych."""
    message = str(error)
    if isinstance(error, OSError):
        if error.errno not in DISK_ERRORS:
            return None
        reason = (error.strerror or message).lower()
        return OutputError(f"cannot write {error.filename or 'a file'} ({reason}); make room and run again (pretrain: "
                           "with --resume)")  # fmt: skip
    if type(error).__name__ == "OutOfMemoryError":
        import torch

        from diptych.base.device import what_fills

        peak = torch.cuda.max_memory_allocated()
        used = f"peak use {peak / 1e9:.1f} GB" + (f": {parts}" if (parts := what_fills(peak)) else "")
        request = next((part for part in message.split(". ") if part.startswith("Tried")), "out of memory")
        request = request[:1].lower() + request[1:]
        return RecipeError(f"the GPU is out of memory ({request}, {used}): {LESS_MEMORY}")
    if isinstance(error, MemoryError) or "can't allocate memory" in message:
        return RecipeError(f"this machine is out of memory: {LESS_MEMORY}")
    if type(error).__name__.startswith("Dist") or "gloo" in message:
        here, world = os.environ.get("RANK", "?"), os.environ.get("WORLD_SIZE", "?")
        cause = "has lost another process, whose own message is the cause"
        if "NCCL" in message and "remote process" not in message:  # such as two processes on one GPU
            cause = f"cannot go on with the others over NCCL ({message.strip().splitlines()[-1]})"
        return DiptychError(f"process {here} of {world} {cause}; the last checkpoint is kept: run again with --resume")
    return None


LESS_MEMORY = (
    "halve pretrain.batch_size, or set pretrain.micro_batch to a part of it (slower; batch normalisation uses the "
    "statistics of the part), in a new --out; evaluate and embed: use --device cpu"
)
