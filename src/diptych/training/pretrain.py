"""The loop: it owns time. Order, draws and rates are functions of the step, so any step can be made again.

(seed, epoch) -> order of images        (seed, step, view) -> draws        progress in [0, 1] -> learning rates
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from diptych.base.device import choose_device
from diptych.base.memory import keep_freed_memory
from diptych.base.processes import rank, start, world_size, wrap
from diptych.base.random_at import random_at, seed_at
from diptych.base.signals import Preempted, StopRequest
from diptych.base.terminal import Progress
from diptych.data.images import RESIDENT_BYTES, Images
from diptych.methods import Method
from diptych.methods.method import Draw
from diptych.networks.batch_norm import share_statistics
from diptych.networks.convolution import quick_convolutions
from diptych.runs import boards
from diptych.runs.run import Run
from diptych.training.ends import begin, check, describe_arguments, finish, start_run
from diptych.training.gradients import in_pieces
from diptych.training.job import Job
from diptych.training.optimizers import set_rates
from diptych.training.schedules import warmup_cosine
from diptych.training.watch import Watch
from diptych.views import View, draw_slice


def pretrain(
    method: Method,
    images: Images,
    views: Sequence[View],
    optimizer: torch.optim.Optimizer,
    *,
    out: str | Path,
    epochs: int,
    batch_size: int,
    schedule: Callable[[float], float] | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "float32",
    clip_norm: float | None = None,
    micro_batch: int | None = None,
    torch_compile: bool = False,
    watch: Sequence[Watch] = (),
    watch_epochs: int = 1,
    stop_on: str | None = None,
    patience: int = 5,
    log_steps: int = 10,
    checkpoint_minutes: float = 5.0,
    tensorboard: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    record: dict | None = None,
    show: bool = True,
) -> Run:
    """Train `method` on two views of each image and leave a run folder with an encoder in it.

    batch_size is the global number of images a step, over all processes; a short last batch is dropped. precision is
    "float32", "bfloat16" (autocast; losses stay float32) or "float64". micro_batch: run the networks on that many images at a
    time; loss and gradient are the whole batch's (gradient caching: one more forward pass), batch normalisation sees the
    pieces. torch_compile: method and loss as fewer, fused kernels; takes a minute or more at the start, and a GPU or a C++
    compiler. stop_on names what early stopping looks at: "loss" (the epoch's mean) or a number that a watch returns, with a
    minus where larger is better ("-knn_accuracy"); after `patience` epochs without a better one the run ends, and the best
    weights are restored. `record` is what recipe.yaml will hold, by default a description of the arguments.

    Raises RecipeError for impossible arguments, OutputError for a folder that may not be written, CheckpointError when
    `resume` meets another recipe or other images, DivergedError at the first loss or gradient that is not finite, and
    Preempted (exit code 75), after saving, when the process is asked to stop.
    """
    where = start(choose_device(device))
    if where.type == "cpu":
        keep_freed_memory()
    if images.bytes_in_memory <= RESIDENT_BYTES:
        images.pixels()  # decodes once; bad images are left out before anything is counted
    steps_per_epoch = check(images, views, epochs, batch_size, precision, micro_batch, torch_compile)
    dtype = torch.float64 if precision == "float64" else torch.float32
    share_statistics(
        method, method.statistics_rows
    )  # in place, as the two moves: the optimizer's parameters stay the method's
    method.to(where, dtype).to(memory_format=torch.channels_last)  # pyrefly: ignore[no-matching-overload]
    numbers = dict(
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        precision=precision,
        clip_norm=clip_norm,
        micro_batch=micro_batch,
        torch_compile=torch_compile,
    )
    record = record or describe_arguments(method, images, views, optimizer, numbers)
    run, state = start_run(out, record, resume, overwrite, method, optimizer, images)
    job = Job(run, state, method, images, views, optimizer, schedule or warmup_cosine(), epochs, batch_size, steps_per_epoch,
              seed, where, dtype, precision == "bfloat16", clip_norm, micro_batch, torch_compile, tuple(watch), watch_epochs,
              stop_on, patience, log_steps, checkpoint_minutes)  # fmt: skip
    try:
        if tensorboard and rank() == 0:
            run.mirror = boards.tensorboard(run.folder)
        if not state.finished:
            begin(job)
            own_random = torch.random.fork_rng(devices=[where] if where.type == "cuda" else [])
            bar = Progress("pretrain", job.total, show and rank() == 0)
            with own_random, quick_convolutions(method), StopRequest() as stop, bar as progress:
                loop(job, stop, progress)
            finish(job)
    finally:
        run.release()
    return run


def loop(job: Job, stop: StopRequest, progress: Progress) -> None:
    """Rates, views, loss, gradient, update; then what happens between steps.

    A careful job looks at each step's numbers before its update. On a GPU to look is to wait, so there a job looks at log
    lines only; should a number then not be finite, it goes back to the look before and takes the same steps carefully.
    """
    state, method, optimizer, model = job.state, job.method, job.optimizer, wrap(job.method)
    if job.torch_compile:
        model = torch.compile(model)
    parameters = [p for p in method.parameters() if p.requires_grad]
    for step, batch in feed(job):
        set_rates(optimizer, job.schedule(step / job.total))
        pair, draw = make_views(job, batch, step), draw_of(job, len(batch), step)
        progress_now = torch.full((), step / job.total, device=job.device)
        method.train()
        optimizer.zero_grad(set_to_none=True)
        if job.careful:
            job.remember_buffers()
        if job.micro_batch is None:
            seed_networks(job, step)
            with job.arithmetic():
                loss, parts, kept = model(pair, draw, progress_now)
            loss.backward()
        else:
            seed = partial(seed_networks, job, step)
            loss, parts, kept = in_pieces(method, pair, draw, progress_now, job.micro_batch, job.arithmetic, seed)
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if job.careful and not math.isfinite(float(loss.detach() + norm)):  # the mean gradient tells every rank
            job.diverged(step, loss, parts, norm)
        if job.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, job.clip_norm, norm)
        optimizer.step()
        method.after_step(kept, torch.full((), (step + 1) / job.total, device=job.device))
        job.taken.append((step, loss.detach(), parts, norm))
        if not job.looks_at(step):
            continue

        told = job.look_back(bool(stop.asked), time.monotonic() - job.saved_at > 60 * job.checkpoint_minutes)
        if told is None:
            return loop(job, stop, progress)  # from the look before, carefully
        line, asked_to_stop, time_to_save = told
        progress(state.step, line)
        if state.step % job.steps_per_epoch == 0 and job.end_epoch():
            progress.say(f"stopped early: no better {job.stop_on} for {job.patience} epochs")
            return
        if asked_to_stop:
            job.save()
            raise Preempted(
                f"{stop.asked or 'a signal'}: saved at step {state.step} of {job.total}; --resume continues"
            )
        if time_to_save:
            job.save()


def draw_of(job: Job, rows: int, step: int) -> Draw:
    """This process' rows of the method's own randomness, drawn for the global batch."""
    draw = job.method.draw(job.batch_size, random_at(job.seed, "method", step))
    own = slice(rank() * rows, (rank() + 1) * rows)
    return {name: value[own].to(job.device, non_blocking=True) for name, value in draw.items()}


def seed_networks(job: Job, step: int, piece: int = 0) -> None:
    """For networks with dropout: their random numbers are a function of the step, and no state has to be saved."""
    torch.manual_seed(seed_at(job.seed, "network", step, rank(), piece))


def feed(job: Job) -> Iterator[tuple[int, Tensor]]:
    """(step, this process' rows of the global batch as (n, 3, S, S) uint8 on the device), from the state's step on."""
    share = job.batch_size // world_size()
    rows = slice(rank() * share, (rank() + 1) * share)
    first, done = divmod(job.state.step, job.steps_per_epoch)
    for epoch in range(first, job.epochs):
        order = torch.randperm(len(job.images), generator=random_at(job.seed, "order", epoch))
        order = order[: job.steps_per_epoch * job.batch_size].view(-1, job.batch_size)[done:, rows]
        start_step = epoch * job.steps_per_epoch + done
        yield from enumerate(epoch_batches(job, order, epoch), start_step)
        done = 0


def epoch_batches(job: Job, order: Tensor, epoch: int) -> Iterator[Tensor]:
    """Batches of the images named by the rows of `order` (batches, n): from memory, or decoded as they are needed."""
    if job.images.bytes_in_memory <= RESIDENT_BYTES:
        pixels = job.images.pixels()
        if job.device.type == "cuda":
            pixels = job.resident = job.resident if job.resident is not None else pixels.to(job.device)
        for rows in order:
            yield pixels[rows.to(pixels.device, non_blocking=True)]
    else:
        for _, batch in job.images.batches(order.flatten(), order.shape[1], replace=(job.seed, epoch)):
            yield batch.to(job.device, non_blocking=True)


def make_views(job: Job, batch: Tensor, step: int) -> list[Tensor]:
    """One (n, 3, s, s) tensor a view. Draws are made for the global batch and sliced: processes do not change what is seen."""
    rows = slice(rank() * len(batch), (rank() + 1) * len(batch))
    made = []
    for index, view in enumerate(job.views):
        draws = view.sample(job.batch_size, random_at(job.seed, "views", step, index))
        made.append(view.apply(batch, draw_slice(draws, rows)).to(job.dtype, memory_format=torch.channels_last))
    return made
