"""A run without an end in each of the processes that the launcher starts; a checkpoint after each step.

With the word "slow": two epochs, in which the first process evaluates for SLOW_SECONDS while the others wait for it.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
from tiny import tiny_run

from diptych.commands import ending, launch

SLOW_SECONDS = 7.0


def evaluate_slowly(step, encoder) -> dict[str, float]:
    """In Python, which shares the interpreter with the thread that counts."""
    end = time.monotonic() + (SLOW_SECONDS if step == 4 else 0)
    while time.monotonic() < end:
        sum(range(1000))
    return {}


def main() -> None:
    launch.launched()
    torch.set_num_threads(1)
    if sys.argv[2:] == ["slow"]:
        tiny_run(Path(sys.argv[1]), epochs=2, watch=[evaluate_slowly])
    else:
        tiny_run(Path(sys.argv[1]), epochs=1_000_000)


if __name__ == "__main__":
    ending.run_command(main)
