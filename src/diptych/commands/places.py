"""Where a command writes: `--out`, with ~ for the home folder, and never among the images that it reads."""

import os
from pathlib import Path
from typing import Any

import typer

from diptych.base.errors import OutputError


def out_option(help: str, *names: str, show_default: bool | str = True) -> Any:
    """The option `--out`, a path; ~ is expanded, as in a source."""
    return typer.Option("--out", *names, help=help, parser=expanded, metavar="PATH", show_default=show_default)


def expanded(path: str | Path) -> Path:
    """The path with ~ and ~user expanded. Raises OutputError for a user who does not exist."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise OutputError(f"{path}: there is no such home folder; choose another --out") from None


def require_outside(out: Path, *sources: str) -> Path:
    """Return `out`. Raises OutputError where it lies in the folder of a source, or would become one with it.

    What is written there, such as the figures of a report, would be images of the source in the next run.
    """
    for source in sources:
        folder = os.path.expanduser(source)
        for real in (os.path.abspath, os.path.realpath):
            if os.path.isdir(folder) and Path(real(out)).is_relative_to(real(folder)):
                raise OutputError(f"{out} is inside the source {source}: pictures written there would be read as its images; "
                                  "choose an --out outside of it")  # fmt: skip
    return out
