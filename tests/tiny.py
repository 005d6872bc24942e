"""A run small enough to repeat: 48 images of 12 pixels, a network of a few hundred weights, 4 steps an epoch."""

import os
import signal
from pathlib import Path

import numpy as np
import torch
from torch import nn

from diptych.data.images import Images, images
from diptych.methods import BarlowTwins, Method
from diptych.runs import checkpoints
from diptych.runs.run import Run
from diptych.training.optimizers import lars
from diptych.training.pretrain import pretrain
from diptych.training.schedules import warmup_cosine
from diptych.views import ColorJitter, HorizontalFlip, Normalize, RandomResizedCrop, View

EPOCHS, STEPS, TOTAL = 3, 4, 12


class TinyEncoder(nn.Sequential):
    """(N, 3, 12, 12) -> (N, 8), with batch statistics and dropout: both must survive a resume."""

    num_features = 8

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip


class NormlessEncoder(nn.Sequential):
    """(N, 3, 12, 12) -> (N, 8), each image by itself: pieces of a batch are the batch."""

    num_features = 8

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 8, 3, 2), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 8))


def without_norms(method: Method) -> Method:
    for parent in [*method.modules()]:
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm1d):
                setattr(parent, name, nn.Identity())
    return method


def tiny_images(count: int = 48, **options) -> Images:
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (4, 1, 1, 3))
    pixels = np.clip(colours[np.arange(count) % 4] + rng.integers(-60, 60, (count, 12, 12, 3)), 0, 255)
    return images(pixels.astype(np.uint8), labels=np.arange(count) % 4, **options)


class Struck(BarlowTwins):
    """Barlow Twins that can send a signal to its own process after a step, or give a loss that is not finite."""

    signal_at: tuple[int, int] = (-1, 0)
    itself = 0  # of the method that is trained
    nan_at = -1
    calls = 0

    def compare(self, projections, progress):
        compared = super().compare(projections, progress)
        self.calls += 1
        return compared._replace(loss=compared.loss * float("nan")) if self.calls == self.nan_at + 1 else compared

    def after_step(self, kept, progress) -> None:
        step, number = self.signal_at
        # Not of the copy that is tried before step 0. To read the progress is to wait for a device, which no graph allows.
        if step >= 0 and self.itself == id(self) and round(float(progress) * TOTAL) == step:
            os.kill(os.getpid(), number)


def tiny_method() -> Struck:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        method = Struck(TinyEncoder(), projector=(16, 16))
        method.itself = id(method)
        return method


def tiny_views() -> list[View]:
    colours = ColorJitter(0.4, 0.4, 0.2, 0.1, p=0.8)
    return [View([RandomResizedCrop(12), HorizontalFlip(), colours, Normalize((0.5,) * 3, (0.25,) * 3)]) for _ in "ab"]


def tiny_run(out: Path, method: Method | None = None, photos: Images | None = None, **options) -> Run:
    method = tiny_method() if method is None else method
    asked = {"epochs": EPOCHS, "batch_size": 12, "schedule": warmup_cosine(0.2), "log_steps": 1, "checkpoint_minutes": 0.0,
             "resume": True, "show": False, "device": "cpu"}  # fmt: skip
    optimizer = lars(method, lr=0.5, weight_decay=1e-4)
    return pretrain(method, photos or tiny_images(), tiny_views(), optimizer, out=out, **asked | options)


def struck_run(out: str, step: int, number: int) -> None:
    """For a process of its own: train until the signal comes."""
    torch.set_num_threads(1)
    method = tiny_method()
    method.signal_at = (step, number)
    tiny_run(Path(out), method)


def weights_of(run: Run) -> dict[str, torch.Tensor]:
    newest = checkpoints.newest(run.folder / "checkpoints")
    return {
        f"{name}.{key}": value
        for name in ("model", "optimizer")
        for key, value in checkpoints.read_tensors(newest / f"{name}.safetensors").items()
    }


def told(run: Run) -> list[dict]:
    """The log without what clocks wrote."""
    clocks = ("elapsed_seconds", "images_per_second")
    return [{k: v for k, v in line.items() if k not in clocks} for line in run.lines()]


SIGKILL, SIGTERM = signal.SIGKILL, signal.SIGTERM
