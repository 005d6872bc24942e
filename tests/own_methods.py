"""Methods of a user's own and those with a target, a queue or a centre, trained by name: by a test, and in two processes."""

import os
from pathlib import Path

import torch
from doubles import OwnKeys, QueueAndTarget, ThreeViews
from tiny import TinyEncoder, tiny_images, tiny_views

from diptych.methods import BYOL, DINO, Method, MoCo, MoCoV3, SimCLR, SwAV, VICReg
from diptych.runs.run import Run
from diptych.training.optimizers import sgd
from diptych.training.pretrain import pretrain
from diptych.views import Normalize, RandomResizedCrop, View

OWN: dict[str, type[Method]] = {"own_keys": OwnKeys, "three_views": ThreeViews, "queue_and_target": QueueAndTarget}
SIBLINGS: dict[str, type[Method]] = {
    "simclr": SimCLR, "byol": BYOL, "moco": MoCo, "moco_v3": MoCoV3, "swav": SwAV, "vicreg": VICReg, "dino": DINO,
}  # fmt: skip
OPTIONS: dict[str, dict] = {
    "byol": {"momentum": 0.9},
    "moco": {"queue": 31, "momentum": 0.9},
    "swav": {"prototypes": 9, "queue": 30, "queue_start": 0.0, "frozen": 0.3},
    "dino": {"prototypes": 9, "momentum": 0.9, "frozen": 0.3, "warmup": 0.5, "first_temperature": 0.06},
}


def own_run(name: str, out: Path | str, kill_after: int | None = None, **options) -> Run:
    """Two epochs of four steps of 12 images; with `kill_after`, SIGKILL when that step has been taken.

    A method that takes more than two views gets a third, smaller one.
    """
    torch.set_num_threads(1)
    torch.manual_seed(5)
    encoder = TinyEncoder()
    encoder[3].p = 0.0  # dropout draws by process
    kind = (OWN | SIBLINGS)[name]
    method = kind(encoder, **({"projector": (10, 7)} if name in SIBLINGS else {}), **OPTIONS.get(name, {}))
    method.statistics_rows = 2  # so that pieces of a batch, and processes, have the batch's own statistics
    views = tiny_views()
    if 3 in method.views:
        views.append(View([RandomResizedCrop(8), Normalize((0.5,) * 3, (0.25,) * 3)]))
    options = {"epochs": 2, "batch_size": 12, "resume": True, "show": False, "device": "cpu", "log_steps": 1} | options
    if kill_after is not None:

        def strike(method: Method, kept, progress) -> None:
            kind.after_step(method, kept, progress)
            if round(float(progress) * 8) == kill_after:
                os.kill(os.getpid(), 9)

        method.__class__ = type(kind.__name__, (kind,), {"after_step": strike})
    return pretrain(method, tiny_images(), views, sgd(method, lr=0.05), out=out, checkpoint_minutes=0.0, **options)


def one_of_two(name: str, out: str) -> None:
    own_run(name, out, precision="float64", epochs=1)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
