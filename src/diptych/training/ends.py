"""How a run begins and ends: device, checks, folder, the untrained encoder; the trained one, the correlation matrix."""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from diptych.base import files
from diptych.base.device import PRECISIONS
from diptych.base.errors import CheckpointError, DataError, DivergedError, RecipeError
from diptych.base.files import read_lines
from diptych.base.processes import agree, copy_from_first, gather, rank, world_size
from diptych.base.random_at import random_at
from diptych.data.images import Images
from diptych.embeddings.diagnose import diagnose
from diptych.methods import Method
from diptych.methods.losses import cross_correlation
from diptych.runs import checkpoints
from diptych.runs.encoder import Preprocessing, save_encoder
from diptych.runs.run import Run
from diptych.training.job import Job, State
from diptych.training.optimizers import describe
from diptych.views import View
from diptych.views.view import bytes_of

LARGEST_PICTURE = 256  # rows of the correlation matrix that are kept for the report


def check(images: Images, views: Sequence[View], epochs: int, batch_size: int, precision: str,
          micro_batch: int | None = None, torch_compile: bool = False) -> int:  # fmt: skip
    """Steps an epoch; RecipeError for what cannot be trained, DataError where the processes see different images."""
    same_images(images)
    if precision not in PRECISIONS:
        raise RecipeError(f"precision {precision!r} is unknown; use one of {', '.join(PRECISIONS)}")
    if epochs < 1:
        raise RecipeError(f"epochs is {epochs}; it must be at least 1")
    if len(views) < 2:
        raise RecipeError(f"a method compares two views; {len(views)} given")
    if batch_size < 2 or batch_size % world_size():
        share = f" and divide by the {world_size()} processes" if world_size() > 1 else ""
        raise RecipeError(f"batch_size {batch_size} must be at least 2{share}: images are compared within their batch")
    if batch_size > len(images):
        most = len(images) // world_size() * world_size()
        fix = f"use at most {most}" if most > 1 else f"bring more images, at least {max(2, world_size())}"
        raise RecipeError(f"batch_size {batch_size} is larger than the {len(images)} images; {fix}")
    share = batch_size // world_size()
    if micro_batch is not None and torch_compile:
        raise RecipeError("micro_batch and torch_compile do not go together yet; leave one of them out")
    if micro_batch is not None and (micro_batch < 2 or share % micro_batch):
        raise RecipeError(
            f"micro_batch {micro_batch} must be at least 2 and divide the {share} images of a process' batch"
        )
    return len(images) // batch_size


def same_images(images: Images) -> None:
    """DataError on every process where one sees other images: their epochs would have different lengths."""
    rows = gather(torch.tensor([[len(images), int(images.fingerprint[:15], 16)]]))
    for other, (count, mark) in enumerate(rows.tolist()):
        if (count, mark) != tuple(rows[0].tolist()):
            raise DataError(f"process {other} reads {count} images (fingerprint {mark:015x}), process 0 reads {int(rows[0, 0])} "
                            f"({int(rows[0, 1]):015x}): give every process the same, whole source")  # fmt: skip


def describe_arguments(
    method: Method, images: Images, views: Sequence[View], optimizer: torch.optim.Optimizer, settings: dict
) -> dict:
    """What a run from Python was asked to do, for recipe.yaml."""
    built = getattr(method.encoder, "built_with", None) or {"name": type(method.encoder).__name__}
    told = [{k: v for k, v in row.items() if isinstance(v, str | int | float | bool)} for row in describe(optimizer)]
    return {"made_by": "diptych.pretrain in Python", "encoder": built, "method": {"name": type(method).__name__},
            "images": {"count": len(images), "size": images.size}, "views": [view.describe() for view in views],
            "optimizer": told, "pretrain": settings}  # fmt: skip


def start_run(out: str | Path, record: dict, resume: bool, overwrite: bool, method: Method, optimizer: torch.optim.Optimizer,
              images: Images) -> tuple[Run, State]:  # fmt: skip
    """The folder and where to go on from. The first process writes; the others read the same checkpoint after it."""
    first = Run.start(out, record, resume, overwrite) if rank() == 0 else None
    agree(False)  # wait: the others open the folder when the first has made it
    run = first or Run(out)
    with contextlib.ExitStack() as undo:
        undo.callback(run.release)
        found = checkpoints.newest(run.folder / "checkpoints")
        state = State() if found is None else restore(found, method, optimizer, images)
        if rank() == 0 and not state.finished:
            run.rewind(state.step if found else -1)
            list_bad(run, images)
        undo.pop_all()
    return run, state


def list_bad(run: Run, images: Images) -> None:
    """Append the images that could not be read, each once, to bad_files.jsonl."""
    listed = {line["key"] for line in read_lines(run.folder / "bad_files.jsonl")}
    if new := [row for row in images.failed if row["key"] not in listed]:
        run.append("bad_files.jsonl", new)


def restore(found: Path, method: Method, optimizer: torch.optim.Optimizer, images: Images) -> State:
    """Put weights and the optimizer's memory back where a checkpoint left them."""
    try:
        return State(**fill(checkpoints.read_state(found), found, method, optimizer, images))
    except (KeyError, ValueError, TypeError, AttributeError) as error:  # whole, by its hashes, but not as we write it
        raise CheckpointError(f"{found} was written by another version of diptych ({type(error).__name__}: {error}); "
                              "use that version, or start over with --overwrite") from None  # fmt: skip


def fill(numbers: dict, found: Path, method: Method, optimizer: torch.optim.Optimizer, images: Images) -> dict:
    """Load a checkpoint's tensors; returns what makes its State."""
    if (count := numbers.get("images", len(images))) != len(images):  # the same files, but another one turned out bad
        raise CheckpointError(f"{found} was made from {count} images, of which now {len(images)} can be read; "
                              "bring the same images back, or start a new run with another --out")  # fmt: skip
    if numbers["data"] != images.fingerprint:
        raise CheckpointError(
            f"{found} was made from other images (fingerprint {numbers['data'][:12]}, now {images.fingerprint[:12]}); "
            "bring the same images back, or start a new run with another --out"
        )
    checkpoints.load_exactly(method, checkpoints.read_tensors(found / "model.safetensors"), found)
    checkpoints.unpack_optimizer(
        optimizer, checkpoints.read_tensors(found / "optimizer.safetensors"), numbers["optimizer"]
    )
    best = found / "best.safetensors"
    kept = {name: type(value)(numbers[name]) for name, value in State().numbers().items()}
    return kept | {"best_weights": checkpoints.read_tensors(best) if best.exists() else {}}


def preprocessing(job: Job) -> Preprocessing:
    """What the encoder has been trained on: the first view's size and normalisation."""
    mean, std = job.views[0].normalization
    return Preprocessing(job.views[0].size or job.images.size, tuple(mean), tuple(std))


def begin(job: Job) -> None:
    """Room on the disk; before step 0 the untrained encoder to compare with, views to look at, a first reading."""
    if rank() == 0:
        files.require_space(job.run.folder, room(job))
    if job.state.step > 0:
        return
    if rank() == 0:
        save_encoder(job.run.folder / "untrained", job.method.encoder, preprocessing(job))
        originals = some_images(job, 12)
        shown = [
            view.display(view(originals, random_at(job.seed, "views", 0, index)))
            for index, view in enumerate(job.views)
        ]
        first, second = (bytes_of(view) for view in shown[:2])
        job.run.picture("views", originals=originals.permute(0, 2, 3, 1).numpy(), first=first, second=second)
    job.look(0)


def room(job: Job) -> int:
    """Bytes still to be written at most: two encoders, the checkpoints that are kept and the one that replaces them."""
    weights = sum(t.numel() * t.element_size() for t in job.method.state_dict().values())
    moments = 2 if "betas" in job.optimizer.defaults else 1  # Adam and LAMB remember two numbers a weight
    held = len(checkpoints.steps(job.run.folder / "checkpoints"))
    best = 1 if job.stop_on else 0
    return 2 * weights + (checkpoints.KEEP + 1 - held) * (1 + moments + best) * weights


def some_images(job: Job, count: int) -> Tensor:
    """The same few images each time, from all over the set: sources come class by class. (n, 3, S, S) uint8."""
    chosen = torch.randperm(len(job.images), generator=random_at(job.seed, "pictures"))[:count]
    return next(job.images.batches(chosen, count, replace=(job.seed, 0)))[1]


def finish(job: Job) -> None:
    """The best weights where early stopping kept some, the encoder, the correlation matrix, the last checkpoint."""
    state = job.state
    if state.best_weights and rank() == 0:
        checkpoints.load_exactly(job.method, state.best_weights, "the best epoch's weights")
    copy_from_first(job.method)  # it alone has the best ones
    embedding, z1, z2 = last_look(job)
    matrix = cross_correlation(
        z1[:, :LARGEST_PICTURE], z2[:, :LARGEST_PICTURE], eps=1e-5
    )  # over all processes, so on each of them
    if rank() == 0:
        list_bad(job.run, job.images)  # of a stream, they turned up on the way
        save_encoder(job.run.folder / "encoder", job.method.encoder, preprocessing(job))
        job.run.picture("correlation", matrix=matrix.cpu().numpy())
        job.run.picture(
            "projections", z1=z1[:, :LARGEST_PICTURE].cpu().numpy(), z2=z2[:, :LARGEST_PICTURE].cpu().numpy()
        )
        found = diagnose(embedding, (z1, z2), job.run.lines("epoch")[-1]["loss"])
        job.run.append("evaluations.jsonl", [{"diagnosis": vars(found)}])
        spent = max(time.monotonic() - (job.warm_at or job.began), 1e-9)
        rate = max(0, state.step - job.first_step - 1) * job.batch_size / spent
        job.run.log("end", step=state.step, epochs=state.step // job.steps_per_epoch, best_epoch=state.best_epoch,
                    elapsed_seconds=round(state.elapsed_seconds, 3), images_per_second=round(rate, 1))  # fmt: skip
    state.finished = True
    job.save()


@torch.no_grad()
def last_look(job: Job) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings of up to 1,024 images and the projections of their two views, in evaluation mode, float32."""
    job.method.eval()
    some = some_images(job, 1024).to(job.device)
    draws = [view.sample(len(some), random_at(job.seed, "picture", k)) for k, view in enumerate(job.views)]
    pair = [view.apply(some, draw).to(job.dtype) for view, draw in zip(job.views, draws, strict=True)]
    shown = job.method.shown(job.method.project(pair, {}))
    assert shown is not None
    embedding = job.method.encoder(pair[0]).float().cpu()
    if not embedding.isfinite().all():  # the last update, which no loss has seen
        raise DivergedError(
            "the encoder's embeddings are not finite after the last step: lower optimizer.lr or set pretrain.clip_norm; "
            "checkpoints/ holds an earlier step"
        )
    return embedding, shown[0].float(), shown[1].float()
