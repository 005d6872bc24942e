"""A run without an end in each of the processes that the launcher starts; a checkpoint after each step."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
from tiny import tiny_run

from diptych.commands import ending, launch


def main() -> None:
    launch.launched()
    torch.set_num_threads(1)
    tiny_run(Path(sys.argv[1]), epochs=1_000_000)


if __name__ == "__main__":
    ending.run_command(main)
