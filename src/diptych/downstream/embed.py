"""Embed images, in memory or as a folder."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from diptych.base.device import choose_device
from diptych.base.files import require_free_folder
from diptych.base.terminal import ProgressBar
from diptych.data.images import Images
from diptych.downstream.classifier import class_names, stream
from diptych.embeddings.store import save_embeddings
from diptych.networks.inference import require_precision
from diptych.runs.encoder import Trained, as_trained
from diptych.runs.run import Run


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
    (key, label, status; an unreadable image has a row there but no vector) and meta.json.

    trained: an encoder (`diptych.load`), or the run or encoder folder that holds one. precision: float32 or bfloat16.

    Raises OutputError for a folder that already exists, before the first image is embedded, CheckpointError when there is
    no encoder, DataError for images that cannot be read.
    """
    if out is not None:
        require_free_folder(Path(out))
    require_precision(precision)
    trained, where = as_trained(trained), choose_device(device)
    with ProgressBar("embed", len(images), show) as progress:
        vectors = trained(stream(images), device=where, precision=precision, progress=progress)
    if out is not None:
        reasons = {row["key"]: row["reason"] for row in images.failed}
        labels = {}
        if images.labels is not None:
            labels = dict(zip(images.keys, class_names(images, "embedded"), strict=True))
        keys, origin = list(images.all_keys), trained.folder or type(trained.encoder).__name__
        meta = {"encoder": str(origin), "preprocessing": vars(trained.preprocessing)}
        save_embeddings(
            out,
            vectors,
            keys,
            labels=[labels.get(key) for key in keys],
            status=[reasons.get(key) for key in keys],
            meta=meta,
        )
    return vectors


def embed_sets(
    trained: Trained, sets: Sequence[Images], *, device: torch.device, precision: str, progress: ProgressBar, what: str
) -> list[Tensor]:
    """Embed several sets on `device`, one after the other; the progress counts the images of all sets."""
    total, vectors = sum(map(len, sets)), []
    for images in sets:
        before = sum(len(earlier) for earlier in sets[: len(vectors)])

        def count(done: int, before: int = before) -> None:
            progress(before + done, f"{what} of {total:,} images")

        vectors.append(
            trained(stream(images), device=device, output_device=device, precision=precision, progress=count)
        )
    return vectors
