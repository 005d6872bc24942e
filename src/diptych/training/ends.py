"""How a run begins and ends: checks, folder, the untrained encoder; the trained one, pictures, the diagnosis."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diptych.base.errors import DataError, DivergedError, RecipeError
from diptych.base.files import require_space
from diptych.base.processes import barrier, copy_from_first, gather, rank, world_size
from diptych.base.random_at import random_at
from diptych.data.images import Images
from diptych.methods import Method
from diptych.methods.losses import cross_correlation
from diptych.runs import checkpoints
from diptych.runs.encoder import Preprocessing, save_encoder
from diptych.runs.pictures import save_picture
from diptych.runs.run import Run
from diptych.training.diary import Diary
from diptych.training.enough import require_images
from diptych.training.feed import Feed
from diptych.training.keeper import Keeper
from diptych.training.learned import judged
from diptych.views import View
from diptych.views.view import show_views

EXAMPLES, DIAGNOSED = 12, 1024  # images whose views are kept for the report; that are looked at when training has ended
LARGEST_PICTURE = 256  # rows of the correlation matrix that are kept for the report


def check(images: Images, method: Method, *, batch_size: int, micro_batch: int | None, torch_compile: bool) -> None:
    """RecipeError for what cannot be trained, DataError where the processes see different images."""
    same_images(images)
    if batch_size < 2 or batch_size % world_size():
        share = f" and divide by the {world_size()} processes" if world_size() > 1 else ""
        raise RecipeError(f"batch_size {batch_size} must be at least 2{share}: images are compared within their batch")
    require_images(len(images), batch_size)
    share = batch_size // world_size()
    if micro_batch is not None and torch_compile:
        raise RecipeError("micro_batch and torch_compile do not go together yet; leave one of them out")
    if micro_batch is not None and (micro_batch < 2 or share % micro_batch):
        raise RecipeError(
            f"micro_batch {micro_batch} must be at least 2 and divide the {share} images of a process' batch"
        )
    if (group := method.statistics_rows) is not None and (micro_batch or share) % group:
        pieces = f"micro_batch {micro_batch}" if micro_batch else f"the {share} images of a process' batch"
        raise RecipeError(
            f"{group} images share their batch statistics in {type(method).__name__}: it must divide {pieces}"
        )


def same_images(images: Images) -> None:
    """DataError on every process where one sees other images: their epochs would have different lengths."""
    rows = gather(torch.tensor([[len(images), int(images.fingerprint[:15], 16)]]))
    for other, (count, mark) in enumerate(rows.tolist()):
        if (count, mark) != tuple(rows[0].tolist()):
            first = f"process 0 reads {int(rows[0, 0])} ({int(rows[0, 1]):015x})"
            raise DataError(f"process {other} reads {count} images (fingerprint {mark:015x}), {first}: give every process the "
                            "same, whole source, or set images.resident")  # fmt: skip


def open_run(out: str | Path, record: dict, resume: bool, overwrite: bool) -> Run:
    """The folder of the run. The first process makes it, the others open it after that."""
    first = Run.start(out, record, resume, overwrite) if rank() == 0 else None
    barrier()
    return first or Run(out)


def preprocessing(feed: Feed) -> Preprocessing:
    """What the encoder is trained on: the first view's size and normalisation."""
    mean, std = feed.views[0].normalization
    return Preprocessing(feed.views[0].size or feed.images.size, tuple(mean), tuple(std))


def begin(keeper: Keeper, feed: Feed, step: int, *, best: bool) -> None:
    """Room on the disk; before step 0, the untrained encoder to compare with, and views to look at (first process)."""
    if rank() != 0:
        return
    run = keeper.run
    require_space(run.folder, keeper.room(best))
    if step > 0:
        return
    save_encoder(run.folder / "untrained", keeper.method.encoder, preprocessing(feed))
    save_picture(run.folder, "views", **view_arrays(feed.examples(EXAMPLES), feed.views, feed.seed))


def view_arrays(originals: Tensor, views: Sequence[View], seed: int) -> dict[str, np.ndarray]:
    """`originals` (n, 3, S, S) uint8 and their views of step 0, `view_0`, `view_1`, ..., as (n, H, W, 3) uint8."""
    arrays = {f"view_{index}": pixels for index, pixels in enumerate(show_views(views, originals, seed))}
    return {"originals": originals.permute(0, 2, 3, 1).numpy()} | arrays


def finish(keeper: Keeper, feed: Feed, diary: Diary) -> None:
    """The best weights where early stopping kept some, the encoder, pictures, the diagnosis, the last checkpoint."""
    run, method, state = keeper.run, keeper.method, diary.state
    if state.best_weights and rank() == 0:
        checkpoints.load_exactly(method, state.best_weights, "the best epoch's weights")
    copy_from_first(method)  # it alone has the best ones
    views, embedding, shown = last_look(method, feed)
    arrays = {} if shown is None else pictures_of(shown)  # over all processes, so on each of them
    if rank() == 0:
        keeper.list_bad()  # of a stream, they turned up on the way
        save_encoder(run.folder / "encoder", method.encoder, preprocessing(feed))
        for name, picture in arrays.items():
            save_picture(run.folder, name, **picture)
        diagnosis = judged(run, method, views, embedding, shown)
        run.append("evaluations.jsonl", [{"diagnosis": vars(diagnosis)}])
    diary.log("end", epochs=diary.epoch, best_epoch=state.best_epoch, elapsed_seconds=round(state.elapsed_seconds, 3),
              images_per_second=round(diary.rate, 1))  # fmt: skip
    state.finished = True
    keeper.save(state)


def pictures_of(shown: tuple[Tensor, Tensor]) -> Mapping[str, dict[str, np.ndarray]]:
    """For the report: the correlation matrix of two projections, and the projections, in their first columns."""
    z1, z2 = (z[:, :LARGEST_PICTURE] for z in shown)
    matrix = cross_correlation(z1, z2, eps=1e-5)
    return {
        "correlation": {"matrix": matrix.cpu().numpy()},
        "projections": {"z1": z1.cpu().numpy(), "z2": z2.cpu().numpy()},
    }


@torch.no_grad()
def last_look(method: Method, feed: Feed) -> tuple[list[Tensor], Tensor, tuple[Tensor, Tensor] | None]:
    """Views of up to 1,024 images, embeddings of the first view, and what the method shows of them, in evaluation mode."""
    method.eval()
    views = feed.views_of_examples(feed.examples(DIAGNOSED))
    draw = method.draw(len(views[0]), random_at(feed.seed, "picture", "method"))
    shown = method.shown(method.project(views, {name: value.to(feed.device) for name, value in draw.items()}))
    embedding = method.encoder(views[0]).float().cpu()
    if not embedding.isfinite().all():  # the last update, which no loss has seen
        raise DivergedError("the encoder's embeddings are not finite after the last step: lower optimizer.lr or set "
                            "pretrain.clip_norm; checkpoints/ holds an earlier step")  # fmt: skip
    return views, embedding, None if shown is None else (shown[0].float(), shown[1].float())
