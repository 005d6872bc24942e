"""`--seeds N`: runs that differ only in their seed, RUN/seed-0, RUN/seed-1, ..., and their table."""

import os
import re
from collections.abc import Callable
from pathlib import Path

from diptych.base.errors import OutputError, RecipeError
from diptych.base.processes import rank
from diptych.downstream.compare import compare
from diptych.runs.contents import is_run

PAGE = "compare.html"
OURS = re.compile(r"seed--?[0-9]+|" + re.escape(PAGE))


def run_seeds(
    count: int, first: int, out: Path, one: Callable[[int, Path], object], *, extend: int | None = None
) -> str:
    """Make the runs one after the other and return their table; "" on all processes but the first.

    one: called with a seed and the folder of its run, which it starts, continues, or leaves as it is where it has finished.
    Raises OutputError for a folder that holds anything else, RecipeError with --extend.
    """
    if extend is not None:
        raise RecipeError("--extend continues one run and --seeds makes several: extend each of them, as RUN/seed-0")
    require_folder_of_seeds(out)
    folders = [out / f"seed-{seed}" for seed in range(first, first + count)]
    for seed, folder in enumerate(folders, first):
        one(seed, folder)
    return "" if rank() != 0 else str(compare(*folders, out=out / PAGE))


def require_folder_of_seeds(out: Path) -> None:
    """Raise OutputError unless `out` is absent, or a folder of nothing but such runs."""
    if os.path.lexists(out) and not os.path.isdir(out):
        raise OutputError(f"{out} is a file; choose another --out")
    if is_run(out):
        raise OutputError(f"{out} holds a run: --seeds writes runs into {out}/seed-0, ...; choose another --out")
    strangers = [name for name in sorted(os.listdir(out)) if not OURS.fullmatch(name)] if out.is_dir() else []
    if strangers:
        raise OutputError(f"{out} holds {strangers[0]}, which is not a run of --seeds; choose another --out")
