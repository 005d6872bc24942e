"""What a training will take, from a few of its steps on this machine: seconds, memory, room on the disk."""

import copy
import itertools
import resource
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from diptych.base.device import waits_for
from diptych.data.images import images
from diptych.methods import Method
from diptych.networks.batch_norm import shared_statistics
from diptych.networks.convolution import quick_convolutions
from diptych.training.budget import take
from diptych.training.ends import DIAGNOSED
from diptych.training.feed import Feed
from diptych.training.keeper import bytes_to_write
from diptych.training.learner import Learner
from diptych.views import View

FIRST_TRIED = 32  # images of a step, to see whether the whole batch can be measured in time
LEAST_STEPS, MOST_STEPS = 2, 20


class Pace(NamedTuple):
    """How fast training is. step, image: seconds of a step, and of an image through the encoder alone; cpu: CPU-seconds of a
    step. first: seconds of the first step, which prepares kernels. measured: images of the measured steps; where they are
    fewer than those of a batch, its seconds are in proportion. memory: bytes of weights, gradients, moments and activations."""

    step: float
    cpu: float
    image: float
    first: float
    measured: int
    batch_size: int
    memory: int
    disk: int

    def seconds(self, steps: int, watched: int, readings: int) -> float:
        """Of a run: its steps, its readings of `watched` images, and what looks at the encoder at the end."""
        return self.first + steps * self.step + (readings * watched + 5 * DIAGNOSED) * self.image


def measure_pace(
    method: Method,
    views: Sequence[View],
    optimizer: torch.optim.Optimizer,
    pixels: Tensor,
    *,
    batch_size: int,
    learn: Callable[[Method, torch.optim.Optimizer], Learner],
    device: torch.device,
    within: float = 8.0,
) -> Pace:
    """Take steps on copies of `method` and `optimizer`, of images like `pixels` (n, 3, S, S) uint8, for about `within` seconds.

    learn: (method, optimizer) -> learner, with the precision and the other settings of the run.
    """
    method, optimizer = copy.deepcopy((method, optimizer))
    method.to(device).to(memory_format=torch.channels_last)  # pyrefly: ignore[no-matching-overload]
    before = memory_in_use(device)
    random = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
    with random, shared_statistics(method, method.statistics_rows), quick_convolutions(method):
        learner = learn(method, optimizer)
        group = method.statistics_rows or 1  # rows of a step are a multiple of it
        few = min(batch_size, -(-FIRST_TRIED // group) * group)
        first, small, _ = steps_of(learner, views, pixels, few, device, within / 8)
        size = batch_size
        if small * batch_size / few * (LEAST_STEPS + 2) > within and not waits_for(device):
            size = min(batch_size, max(few, int(few * within / (LEAST_STEPS + 2) / small) // group * group))
        prepared, step, cpu = steps_of(learner, views, pixels, size, device, within / 2)
        used = max(0, memory_in_use(device) - before) * batch_size // size
        image = seconds_an_image(method, views, pixels, device, within / 8)
    weights = sum(t.numel() * t.element_size() for t in method.parameters())
    scale = batch_size / size
    return Pace(step * scale, cpu * scale, image, first + prepared * scale - step * scale, size, batch_size,
                max(used, 2 * weights), bytes_to_write(method, optimizer))  # fmt: skip


def steps_of(
    learner: Learner, views: Sequence[View], pixels: Tensor, size: int, device: torch.device, within: float
) -> tuple[float, float, float]:
    """(seconds of the first step, seconds and CPU-seconds of one of those that follow)."""
    dtype = next(learner.method.parameters()).dtype
    copies = images(pixels.repeat(-(-size // len(pixels)), 1, 1, 1)[:size])
    feed = Feed(copies, views, epochs=1, batch_size=size, device=device, dtype=dtype)
    steps = itertools.chain.from_iterable(feed.starting_at(0) for _ in itertools.count())
    first = take(1, steps, learner, feed.total)
    second = take(1, steps, learner, feed.total)
    began = time.process_time()
    count = max(LEAST_STEPS, min(MOST_STEPS, int(within / second)))
    return first, take(count, steps, learner, feed.total), (time.process_time() - began) / count


@torch.no_grad()
def seconds_an_image(
    method: Method, views: Sequence[View], pixels: Tensor, device: torch.device, within: float
) -> float:
    """Of an image through view and encoder, in evaluation mode."""
    method.eval()
    shown = pixels[:64].to(device)
    dtype = next(method.parameters()).dtype
    began, count = time.perf_counter(), 0
    while count < 2 or (time.perf_counter() - began < within and count < MOST_STEPS):
        view = views[0](shown, torch.Generator().manual_seed(count)).to(dtype, memory_format=torch.channels_last)
        float(method.encoder(view).sum())  # waits for the device
        if count == 0:
            began = time.perf_counter()  # the first one prepares kernels
        count += 1
    method.train()
    return (time.perf_counter() - began) / (count - 1) / len(shown)


def memory_in_use(device: torch.device) -> int:
    """The most bytes that this process has held so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
