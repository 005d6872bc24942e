"""How a command ends: with 0, or with one line and the exit code that the README lists."""

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
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


def run(command: Callable[[], int | None]) -> NoReturn:
    """Run a command and leave; what a user can cause is one line and its exit code, anything else our traceback and 1."""
    warnings.showwarning = lambda message, *rest, **more: print(f"diptych: {one_line(message)}", file=sys.stderr)
    try:
        with leaving():
            code = command() or 0
    except DiptychError as error:
        stop(str(error), error.exit_code)
    except Preempted as request:
        stop(request.message, PREEMPTED)
    except UsageError as error:
        stop(usage(error), USAGE)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except (OSError, RuntimeError, MemoryError) as error:
        if (told := in_words(error)) is None:
            raise
        stop(str(told), told.exit_code)
    finally:
        if (processes := sys.modules.get("diptych.base.processes")) is not None:
            processes.leave_processes()
    if code == INTERRUPTED:
        stop("interrupted; nothing is half-written", code)
    sys.exit(code)


def stop(message: str, code: int) -> NoReturn:
    print(f"diptych: {one_line(message)}", file=sys.stderr)
    sys.exit(code)


def one_line(message: object) -> str:
    """A file's name may hold a line break."""
    return str(message).replace("\n", "\\n").replace("\r", "\\r")


def usage(error) -> str:
    """A mistyped command in one line, with the way to its help."""
    path = error.ctx.command_path if error.ctx is not None else "diptych"
    path = "diptych " + path.split("diptych", 1)[-1].strip() if "diptych" in path else path
    problem = " ".join(error.format_message().split()).rstrip(".")
    return f"{problem[:1].lower()}{problem[1:]} (see `{path.strip()} --help`)"


def in_words(error: OSError | RuntimeError | MemoryError) -> DiptychError | None:
    """What came from outside: a full disk, no memory, another process that is gone. None for what is our bug."""
    said = str(error)
    if isinstance(error, OSError):
        if error.errno not in DISK:
            return None
        return OutputError(f"cannot write {error.filename or 'a file'} ({(error.strerror or said).lower()}); make room and run "
                           "again (pretrain: with --resume)")  # fmt: skip
    if type(error).__name__ == "OutOfMemoryError":
        import torch

        peak = torch.cuda.max_memory_allocated() / 1e9
        asked = next((part for part in said.split(". ") if part.startswith("Tried")), "out of memory")
        asked = asked[:1].lower() + asked[1:]
        return RecipeError(f"the GPU has no memory left ({asked}, {peak:.1f} GB at most were in use): {SMALLER}")
    if isinstance(error, MemoryError) or "can't allocate memory" in said:
        return RecipeError(f"this machine has no memory left: {SMALLER}")
    if type(error).__name__.startswith("Dist") or "gloo" in said:
        here, world = os.environ.get("RANK", "?"), os.environ.get("WORLD_SIZE", "?")
        return DiptychError(f"process {here} of {world} has lost another process, whose own message is the cause; the last "
                            "checkpoint is kept: run again with --resume")  # fmt: skip
    return None


SMALLER = (
    "halve pretrain.batch_size, or set pretrain.micro_batch to a part of it (slower; batch normalisation sees the part), in a "
    "new --out; evaluate and embed: use --device cpu"
)
