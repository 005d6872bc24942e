"""For every test: one thread and no network. Warnings are errors (pyproject.toml)."""

import os
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from diptych.reporting import pictures

OFFLINE = Path(__file__).parent / "offline"
sys.path.insert(0, str(OFFLINE))
import offline  # noqa: E402

attempts: list[str] = []
offline.forbid(attempts)
# The processes that tests start keep the same rule: their Python finds offline/sitecustomize.py.
paths = [os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
os.environ["PYTHONPATH"] = os.pathsep.join([str(OFFLINE), *paths])

# What was measured of this machine stays out of the tests, and theirs out of the user's cache.
os.environ["DIPTYCH_CACHE"] = "off"

# A gradient summed by two threads differs in its last bits from one summed by one: tests need one way.
torch.set_num_threads(1)


def pytest_configure(config):
    # torch says these once on a GPU: where a thread of the backward pass is the first to multiply, which it puts right itself,
    # and where a test forbids waits.
    for message in ("Attempting to run cuBLAS, but there was no current", "Synchronization debug mode is a prototype"):
        config.addinivalue_line("filterwarnings", f"ignore:{message}")


@pytest.fixture(autouse=True)
def no_network():
    """A test that asked for the network fails, even where the program under test swallowed the refusal."""
    attempts.clear()
    yield
    assert not attempts, f"this test asked for {attempts}"


@pytest.fixture(autouse=True, scope="session")
def small_figures():
    """The curves that a report saves as PNG are drawn at a third of their size: at their own, they are nine tenths of its time.

    A test of what they look like calls `line_picture` as it has imported it.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "line_picture", partial(pictures.line_picture, scale=1))
        yield
