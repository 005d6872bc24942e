"""Embed images, in memory or as a folder."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from diptych.base.device import choose_device
from diptych.base.errors import DataError
from diptych.base.files import require_free_folder
from diptych.base.terminal import ProgressBar
from diptych.data.images import Images
from diptych.downstream.classifier import class_names, stream
from diptych.embeddings.store import load_embeddings, save_embeddings
from diptych.networks.inference import require_precision
from diptych.runs.encoder import Trained, as_trained
from diptych.runs.run import Run

NOT_FINITE = "its embedding is not finite (NaN or infinite)"


def embed(
    trained: Trained | Run | str | Path,
    images: Images,
    *,
    out: str | Path | None = None,
    device: str = "auto",
    precision: str = "float32",
    show: bool = True,
) -> Tensor:
    """Embed images: (M, E) float32 on the CPU, in their order. With `out`, also write a folder of vectors.npy, index.jsonl
    (key, label, status; an image that is unreadable or has no finite embedding has a row there but no vector) and meta.json.

    trained: an encoder (`diptych.load`), or the run or encoder folder that holds one. precision: float32 or bfloat16.

    Raises OutputError for a folder that already exists, before the first image is embedded, CheckpointError when there is
    no encoder, DataError for images that cannot be read, and where no embedding is finite. Warns if only some are.
    """
    if out is not None:
        require_free_folder(Path(out))
    require_precision(precision)
    trained, where = as_trained(trained), choose_device(device)
    with ProgressBar("embed", len(images), show) as progress:
        vectors = trained(stream(images), device=where, precision=precision, progress=progress)
    finite = vectors.isfinite().all(1)
    if not finite.all():
        warn_of_infinite(finite, trained)
    if out is not None:
        reasons = {row["key"]: row["reason"] for row in images.failed}
        embedded = (key for key in images.keys if key not in reasons)  # the key of each row
        reasons |= {key: NOT_FINITE for key, good in zip(embedded, finite.tolist(), strict=True) if not good}
        labels = {}
        if images.labels is not None:
            labels = dict(zip(images.keys, class_names(images, "embedded"), strict=True))
        keys, origin = list(images.all_keys), trained.folder or type(trained.encoder).__name__
        meta = {"encoder": str(origin), "preprocessing": vars(trained.preprocessing)}
        save_embeddings(
            out,
            vectors[finite],
            keys,
            labels=[labels.get(key) for key in keys],
            status=[reasons.get(key) for key in keys],
            meta=meta,
        )
    return vectors


def warn_of_infinite(finite: Tensor, trained: Trained) -> None:
    """Warn of embeddings that are not finite; finite: (M,) bool. Raises DataError if none is."""
    of = f" of {trained.folder}" if trained.folder else ""
    if not finite.any():
        raise DataError(f"none of the {len(finite):,} embeddings is finite: the encoder{of} is damaged; train it again")
    warnings.warn(f"{int((~finite).sum()):,} of {len(finite):,} embeddings are not finite (NaN or infinite): the encoder{of} "
                  "overflows on these images", stacklevel=3)  # fmt: skip


def summary(folder: Path) -> str:
    """One line about a folder that `embed` has written."""
    meta = load_embeddings(folder).meta
    return f"{folder}/vectors.npy  {meta['rows']} x {meta['width']} float32, {meta['failed']} images failed"


def embed_sets(
    trained: Trained,
    sets: Sequence[Images],
    *,
    device: torch.device,
    precision: str,
    progress: ProgressBar,
    what: str,
    seen: Callable[[Tensor], object] | None = None,
) -> list[Tensor]:
    """Embed several sets on `device`, one after the other; the progress counts the images of all sets.

    seen: called with every batch (n, 3, S, S) uint8, in order.
    """
    total, vectors = sum(map(len, sets)), []
    for images in sets:
        before = sum(len(earlier) for earlier in sets[: len(vectors)])

        def count(done: int, before: int = before) -> None:
            progress(before + done, f"{what} of {total:,} images")

        batches = stream(images) if seen is None else passing(stream(images), seen)
        vectors.append(trained(batches, device=device, output_device=device, precision=precision, progress=count))
    return vectors


def passing(batches: Iterator[Tensor], seen: Callable[[Tensor], object]) -> Iterator[Tensor]:
    for batch in batches:
        seen(batch)
        yield batch
