"""The embeddings of any images, in memory or as a folder."""

from pathlib import Path

import torch
from torch import Tensor, nn

from diptych.base.device import choose_device
from diptych.base.terminal import Progress
from diptych.data.images import Images
from diptych.downstream.classifier import names, stream
from diptych.embeddings.store import save_embeddings
from diptych.networks.inference import embeddings
from diptych.runs.encoder import Preprocessing, load
from diptych.runs.run import Run


def embed_both(encoder: nn.Module, train: Images, test: Images, expected: Preprocessing, device: torch.device,
               progress: Progress, name: str) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Embeddings of both sets, the progress over the two."""
    total, vectors = len(train) + len(test), []
    for images, before in ((train, 0), (test, len(train))):

        def tell(done: int, before: int = before) -> None:
            progress(before + done, f"{name} encoder of {total:,} images")

        vectors.append(
            embeddings(
                encoder,
                stream(images),
                expected.mean,
                expected.std,
                expected.size,
                device=device,
                progress=tell,
                resize=expected.resize,
            )
        )
    return vectors[0], vectors[1]


def embed(run: Run | str | Path, images: Images, *, out: str | Path | None = None, device: str = "auto",
          encoder: nn.Module | None = None, show: bool = True) -> Tensor:  # fmt: skip
    """The embeddings of images, (M, E) float32, in their order; with `out`, also as a folder of vectors.npy, index.jsonl
    (key, label, status: a bad image keeps its row there and has no vector) and meta.json.

    Raises CheckpointError when there is no encoder, DataError for images that cannot be read, OutputError for a folder
    that is already there.
    """
    folder = run.folder if isinstance(run, Run) else Path(run)
    trained = load(folder, encoder)
    expected: Preprocessing = trained.preprocessing  # pyrefly: ignore[bad-assignment]
    with Progress("embed", len(images), show) as progress:
        vectors = embeddings(trained, stream(images), expected.mean, expected.std, expected.size,
                             device=choose_device(device), progress=progress, resize=expected.resize)  # fmt: skip
    if out is not None:
        reasons = {row["key"]: row["reason"] for row in images.failed}
        named = {} if images.labels is None else dict(zip(images.keys, names(images, "embedded"), strict=True))
        keys = list(images.all_keys)
        meta = {"encoder": str(folder), "preprocessing": vars(expected)}
        save_embeddings(out, vectors, keys, [named.get(key) for key in keys], [reasons.get(key) for key in keys], meta)
    return vectors
