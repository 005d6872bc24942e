"""One of two processes, started by `diptych.commands.launch`; four faults befall it, one after the other, the last for good."""

import json
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
from tiny import tiny_images, tiny_method, tiny_run

from diptych.base.errors import DiptychError
from diptych.base.signals import Preempted
from diptych.commands import ending


def told(out: Path, name: str, count: int = 48, **strikes) -> None:
    """Train as far as the strikes on this process allow, and write down how that ended."""
    method = tiny_method()
    vars(method).update(strikes)
    said = {"code": 0, "message": ""}
    try:
        tiny_run(out / name, method, tiny_images(count))
    except DiptychError as error:
        said = {"code": error.exit_code, "message": str(error)}
    except Preempted as request:
        said = {"code": request.code, "message": request.message}
    (out / f"{name}_rank_{os.environ['RANK']}.jsonl").open("a").write(json.dumps(said) + "\n")


def main() -> None:
    torch.set_num_threads(1)
    out, second = Path(sys.argv[1]), os.environ["RANK"] == "1"
    told(out, "quiet")
    told(out, "share", count=36 if second else 48)
    for name, strike in (("signal", {"signal_at": (4, signal.SIGTERM)}), ("nan", {"nan_at": 6})):
        told(out, name, **strike if second else {})
        told(out, name)  # and go on
    sys.stderr = (out / f"stderr_{os.environ['RANK']}").open("w", buffering=1)
    told(out, "crash", signal_at=(5, signal.SIGKILL) if second else (-1, 0))


if __name__ == "__main__":
    ending.run_command(main)
