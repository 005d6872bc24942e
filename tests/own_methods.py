"""Methods of a user's own, trained by name: by a test in its own process, by torchrun in two."""

import os
import sys
from pathlib import Path

import torch
from doubles import OwnKeys, QueueAndTarget, ThreeViews
from tiny import TinyEncoder, tiny_images, tiny_views

from diptych.methods import Method
from diptych.runs.run import Run
from diptych.training.optimizers import sgd
from diptych.training.pretrain import pretrain
from diptych.views import Normalize, RandomResizedCrop, View

OWN: dict[str, type[Method]] = {"own_keys": OwnKeys, "three_views": ThreeViews, "queue_and_target": QueueAndTarget}


def own_run(name: str, out: Path | str, kill_after: int | None = None, **options) -> Run:
    """Two epochs of four steps of 12 images; with `kill_after`, SIGKILL when that step has been taken."""
    torch.set_num_threads(1)
    torch.manual_seed(5)
    encoder = TinyEncoder()
    encoder[3].p = 0.0  # dropout draws by process
    method = OWN[name](encoder)
    method.statistics_rows = 2  # so that pieces of a batch, and processes, have the batch's own statistics
    views = tiny_views()
    if len(views) not in method.views:
        views.append(View([RandomResizedCrop(8), Normalize((0.5,) * 3, (0.25,) * 3)]))
    options = {"epochs": 2, "batch_size": 12, "resume": True, "show": False, "device": "cpu", "log_steps": 1} | options
    if kill_after is not None:

        def strike(method: Method, kept, progress) -> None:
            OWN[name].after_step(method, kept, progress)
            if round(float(progress) * 8) == kill_after:
                os.kill(os.getpid(), 9)

        method.__class__ = type(OWN[name].__name__, (OWN[name],), {"after_step": strike})
    return pretrain(method, tiny_images(), views, sgd(method, lr=0.05), out=out, checkpoint_minutes=0.0, **options)


if __name__ == "__main__":
    own_run(sys.argv[1], sys.argv[2], precision="float64")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
