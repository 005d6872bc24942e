"""Memory that was freed is kept for the next tensor, where glibc allows it."""

import platform
import subprocess
import sys

import pytest
from package import TEXTS

from diptych.base.memory import keep_freed_memory
from diptych.commands import cli

PAGES = """
import resource, threading
import torch
from diptych.base.memory import keep_freed_memory

def cleared(count):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        torch.ones(20_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

cleared(1)
given_back = cleared(8)
assert keep_freed_memory() and keep_freed_memory()
cleared(16)  # the heap grows to what is asked for at once, and by chance a little more
print(given_back, cleared(8))
whole = []
thread = threading.Thread(target=lambda: whole.append(torch.ones(40_000_000)))  # larger than a thread's own heap
thread.start(), thread.join()
assert whole[0].sum() == 40_000_000
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc is asked")
def test_freed_memory_is_not_cleared_again():
    """80 MB, freed and asked for again: the system maps every page anew before the call, next to none after it."""
    ran = subprocess.run([sys.executable, "-c", PAGES], capture_output=True, text=True, check=True)
    before, after = map(int, ran.stdout.split())
    assert before > 8 * 100 and after <= before / 4


def test_where_it_cannot_be_asked(monkeypatch):
    def fail(name):
        raise OSError

    monkeypatch.setattr("ctypes.CDLL", fail)
    assert keep_freed_memory() is False
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert keep_freed_memory() is False


def test_the_command_asks_for_it_and_a_library_call_does_not(monkeypatch):
    """It holds for the whole process, which belongs to whoever calls `pretrain` in it."""
    asked = []
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: asked.append("command"))
    users = {name for name, text in TEXTS.items() if "keep_freed_memory" in text}
    assert users == {"base.memory", "commands.cli"}
    monkeypatch.setattr(sys, "argv", ["diptych", "--help"])
    with pytest.raises(SystemExit):
        cli.main()
    assert asked == ["command"]
