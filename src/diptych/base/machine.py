"""What was measured of this machine, in a small file of the user's cache, so that it is measured once."""

import hashlib
import json
import math
import os
import platform
from collections.abc import Callable
from pathlib import Path

import torch

from diptych.base.errors import CheckpointError, OutputError
from diptych.base.files import make_folder, read_object, write_file

VARIABLE = "DIPTYCH_CACHE"  # "off": nothing is read, and nothing is written
CPU_INFO = Path("/proc/cpuinfo")
LONGEST = 1000  # machines in one file, on a home that many of them share; a longer one begins anew


def remembered(name: str, measure: Callable[[], float], *, again: bool = False) -> float:
    """`measure()`, or what it gave before on the same processor with the same torch and number of threads.

    again: measure in any case, and remember that. The file is diptych/machine.json in XDG_CACHE_HOME, else in ~/.cache. Where it
    cannot be read, or holds something else, it is measured again and the file replaced; where it cannot be written, it is not.
    """
    if os.environ.get(VARIABLE) == "off":
        return measure()
    path, key = cache_folder() / "machine.json", f"{name}; {machine()}"
    known = read(path)
    if key in known and not again:
        return known[key]
    value = measure()
    known = known if len(known) < LONGEST else {}
    try:
        make_folder(path.parent)
        write_file(path, json.dumps(known | {key: value}, indent=1).encode())
    except OutputError:
        pass  # a home that is read-only or full costs a tenth of a second at each start, not the run
    return value


def cache_folder() -> Path:
    """Where this package keeps what it can make again. A relative XDG_CACHE_HOME is invalid, as its standard says."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(named) if os.path.isabs(named) else Path("~/.cache").expanduser()) / "diptych"


def read(path: Path) -> dict[str, float]:
    """The positive numbers of a JSON object, {} where there is none."""
    try:
        content = read_object(path)
    except CheckpointError:
        return {}
    return {key: float(value) for key, value in content.items()
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0}  # fmt: skip


def machine() -> str:
    """The processor with what it can do, torch and the number of threads, as a line."""
    try:
        lines = CPU_INFO.read_text().split("\n\n")[0].splitlines()  # of the first processor
    except OSError:
        lines = []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = facts.get("model name") or platform.processor() or platform.machine()
    kind = "/".join(facts.get(key, "") for key in ("cpu family", "model", "stepping"))
    flags = max(facts.values(), key=len, default="")  # the longest line
    skills = hashlib.sha256(flags.encode()).hexdigest()[:8]
    return f"{name} {kind} {skills}; torch {torch.__version__}; {torch.get_num_threads()} threads"
