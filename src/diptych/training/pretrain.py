"""Pretraining: what a user calls, and the loop, which owns time."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import torch

from diptych.base.arithmetic import arithmetic
from diptych.base.device import TRAINING_PRECISIONS, choose_device, waits_for
from diptych.base.processes import rank, start, together
from diptych.base.ranges import Count, Device, Positive, Range, Rate, Seed, Words, checked
from diptych.base.signals import Preempted, StopRequest
from diptych.base.terminal import ProgressBar
from diptych.data.images import Images
from diptych.methods import Method
from diptych.networks.batch_norm import shared_statistics
from diptych.networks.convolution import quick_convolutions
from diptych.runs import boards
from diptych.runs.run import Run
from diptych.training.budget import check_length, steps_within
from diptych.training.capture import capture, check_graph
from diptych.training.diary import Diary
from diptych.training.early_stop import EarlyStop
from diptych.training.ends import begin, check, finish, open_run
from diptych.training.feed import Feed
from diptych.training.keeper import Keeper
from diptych.training.learner import Learner
from diptych.training.record import describe_arguments
from diptych.training.schedules import Schedule, warmup_cosine
from diptych.training.trial import try_method
from diptych.training.watch import Watch, Watches
from diptych.views import View


@checked
@together()
def pretrain(
    method: Method,
    images: Images,
    views: Sequence[View],
    optimizer: torch.optim.Optimizer,
    *,
    out: str | Path,
    epochs: Count | None = None,
    budget: str | None = None,
    batch_size: Annotated[int, Range(2, 2**24)],
    schedule: Schedule | None = None,
    seed: Seed = 0,
    device: Device = "auto",
    precision: Annotated[str, Words("|".join(TRAINING_PRECISIONS))] = "float32",
    clip_norm: Positive | None = None,
    micro_batch: Annotated[int, Range(2, 2**24)] | None = None,
    torch_compile: bool = False,
    cuda_graph: bool | Annotated[str, Words("auto", "auto, true or false")] = "auto",
    deterministic: bool = False,
    watch: Sequence[Watch] = (),
    watch_epochs: Count = 1,
    stopping: EarlyStop | None = None,
    log_steps: Count = 10,
    checkpoint_minutes: Rate = 5.0,
    tensorboard: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    record: dict | None = None,
    show: bool = True,
) -> Run:
    """Train `method` on views of each image, and write a run folder with the encoder.

    Length: `epochs`, or a `budget` of steps ("5000 steps") or of time ("90s", "20m", "1h30m"), which is converted into
    steps by a measurement before step 0; see `training.budget`. The schedule spans it, and a resumed run keeps it.
    batch_size is the global number of images per step, over all processes; a short last batch is dropped. precision is
    "float32", "tf32" (a GPU multiplies with 10 bits in the networks), "bfloat16" (autocast), "float64", or "auto", the
    faster of float32 and bfloat16 here, which a resumed run keeps; losses and views stay float32. micro_batch: run the
    networks on that many images at a time; loss and gradient are those of the full batch (gradient caching, one more
    forward pass), but batch normalisation sees the pieces. torch_compile: compile method and loss into fewer, fused
    kernels; takes a minute or more at the start, and needs a GPU or a C++ compiler. cuda_graph: on a GPU, record steps
    as graphs; "auto" says why if it cannot. deterministic: bit-identical runs on a GPU too, with some slower kernels.
    stopping: when to end early, see `EarlyStop`. record: the content of recipe.yaml; default: the arguments.

    `method` is trained in place: afterwards it is on `device`, in the precision's type, in channels_last. The classes
    of its layers, which are replaced during training, and the process' random state are restored.

    Raises RecipeError for impossible arguments and for a method that breaks its contract, OutputError for a folder that may
    not be written, CheckpointError when `resume` meets another recipe or other images, DivergedError at the first loss or
    gradient that is not finite, and Preempted (exit code 75), after saving, when the process is asked to stop.
    """
    check_length(epochs, budget)
    where = start(choose_device(device))
    images.prepare()  # bad images are left out before anything is counted
    check(images, method, batch_size=batch_size, micro_batch=micro_batch, torch_compile=torch_compile)
    hindrance = check_graph(cuda_graph, where, micro_batch=micro_batch, torch_compile=torch_compile)
    dtype = torch.float64 if precision == "float64" else torch.float32
    method.to(where, dtype).to(memory_format=torch.channels_last)  # pyrefly: ignore[no-matching-overload]
    settings = dict(epochs=epochs, budget=budget, batch_size=batch_size, seed=seed, precision=precision,
                    clip_norm=clip_norm, micro_batch=micro_batch, torch_compile=torch_compile)  # fmt: skip
    record = record or describe_arguments(method, images, views, optimizer, settings)
    feed = Feed(images, views, epochs=epochs or 1, batch_size=batch_size, seed=seed, device=where, dtype=dtype)
    numerics = partial(arithmetic, deterministic=deterministic)
    with numerics(precision), shared_statistics(method, method.statistics_rows), quick_convolutions(method):
        try_method(method, views, images.size, precision)
    run = open_run(out, record, resume, overwrite)
    try:
        keeper = Keeper(run, method, optimizer, images, minutes=checkpoint_minutes)
        state = keeper.resume()
        if state.finished:
            return run
        precision = keeper.settle_precision(state, precision, where)
        if tensorboard and rank() == 0:
            run.mirrors.append(boards.tensorboard(run.folder))
        begin(keeper, feed, state.step, best=stopping is not None)
        learn = partial(Learner, schedule=schedule or warmup_cosine(), seed=seed, precision=precision, clip_norm=clip_norm,
                        micro_batch=micro_batch, torch_compile=torch_compile)  # fmt: skip
        if budget is not None:
            with numerics(precision):  # a GPU's speed depends on it
                feed.total = state.steps_in_budget or steps_within(budget, feed, learn, method, optimizer, run)
            state.steps_in_budget = feed.total
        own_random = torch.random.fork_rng(devices=[where] if where.type == "cuda" else [])
        bar = ProgressBar("pretrain", feed.total, show and rank() == 0)
        statistics = shared_statistics(method, method.statistics_rows)
        with own_random, statistics, numerics(precision), quick_convolutions(method), StopRequest() as request, bar:
            learner = learn(method, optimizer)
            capture(learner, feed, cuda_graph, bar.say, hindrance=hindrance, log_steps=log_steps)
            diary = Diary(run, state, total=feed.total, steps_per_epoch=feed.steps_per_epoch, batch_size=batch_size,
                          log_steps=log_steps, waits=waits_for(where), bar=bar)  # fmt: skip
            watches = Watches(watch, method.encoder, diary, every=watch_epochs)
            if loop(feed, learner, diary, keeper, watches=watches, stopping=stopping, request=request):
                bar.say(f"stopped early: {stopping.reading} did not improve for {stopping.patience} epochs")  # pyrefly: ignore
        finish(keeper, feed, diary)
    finally:
        run.release()
    return run


def loop(
    feed: Feed, learner: Learner, diary: Diary, keeper: Keeper, *,
    watches: Watches, stopping: EarlyStop | None, request: StopRequest,
) -> bool:  # fmt: skip
    """Views, loss, gradient, update; then what happens between steps. Returns whether early stopping ended it."""
    state = diary.state
    if state.step == 0:
        watches.read()
    for step, views in feed.starting_at(state.step):
        diary.taken.append(learner.step(step, feed.total, views))
        if not diary.due(step):
            continue

        look = diary.look(bool(request.signal_name), keeper.due())
        learner.guard.settle(look.undone)
        if look.bad is not None:
            raise keeper.give_up(state, look.bad)
        if state.step % feed.steps_per_epoch == 0:
            readings = diary.end_epoch()
            if watched := watches.due(diary.epoch):
                readings |= watches.read()
            if stopping is not None and stopping.ends(diary.epoch, readings, watched, state, learner.method):
                return True
        stop, time_to_save = look.flags
        if stop:
            keeper.save(state)
            name = request.signal_name or "a signal"
            raise Preempted(f"{name}: saved at step {state.step} of {feed.total}; --resume continues")
        if time_to_save:
            keeper.save(state)
    return False
