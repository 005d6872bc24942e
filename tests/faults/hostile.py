"""What the security tests share. Where a hostile file asks for something, it asks for the folder `canary`: a test that
finds it has been broken into."""

import os
import subprocess
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings

from diptych.base.errors import DiptychError


def few(examples: int):
    """A quick search; the same one each time, because the suite must not fail by chance."""
    return settings(max_examples=examples, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
                    suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def is_one_line(error: DiptychError) -> bool:
    return str(error).isprintable() and 0 < len(str(error)) < 1000


class Calls:
    """Unpickled by a careless reader, it calls `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def attacks(canary: Path) -> list[Calls]:
    made = f"__import__('os').mkdir({str(canary)!r})"
    return [Calls(os.mkdir, str(canary)), Calls(os.makedirs, str(canary)), Calls(os.system, f"mkdir '{canary}'"),
            Calls(subprocess.check_call, ["mkdir", str(canary)]), Calls(eval, made), Calls(exec, made)]  # fmt: skip
