"""From images to vectors, (M, 3, H, W) uint8 to (M, E) float32, and the folder that keeps them."""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.errors import DataError, OutputError, RecipeError

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
RAW_SIZE = 32  # pixels: a larger image is shrunk before its pixels are compared, 3 x 32 x 32 numbers are enough


@torch.no_grad()
def embeddings(
    encoder: nn.Module,
    pixels: Tensor | Iterable[Tensor],
    mean: Sequence[float],
    std: Sequence[float],
    size: int | None = None,
    batch_size: int = 512,
    device: torch.device | str | None = None,
    precision: str = "float32",
    progress: Callable[[int], object] | None = None,
    resize: int | None = None,
) -> Tensor:
    """The embeddings of images as (M, E) float32 on the CPU, in their order.

    pixels: (M, 3, H, W) uint8, or an iterable of such batches when not all fit into memory at once. Each
    image is scaled to [0, 1], resized and cropped in the middle to `size` pixels where it differs (resize: the
    shorter side before the crop, `size` unless given), and normalized by `mean` and `std`. The encoder is in
    evaluation mode meanwhile, and each of its modules has its own mode back afterwards. device: where to
    compute; the encoder is moved there and stays (default: where it is). progress: called with the images done so far.

    Raises DataError for no images or ones that are not uint8 (M, 3, H, W), RecipeError for an unknown
    precision or an encoder that does not give (n, E).
    """
    if precision not in PRECISIONS:
        raise RecipeError(f"precision {precision!r} is unknown; it is one of {', '.join(PRECISIONS)}")
    if device is not None:
        encoder.to(device)
    parameter = next(encoder.parameters(), torch.empty(0))
    vectors, done = [], 0
    with (
        _evaluating(encoder),
        torch.autocast(parameter.device.type, PRECISIONS[precision], precision != "float32"),
    ):
        for batch in _batches(pixels, batch_size):
            images = prepare(batch.to(parameter.device), mean, std, size, resize).to(parameter.dtype)
            vector = encoder(images.contiguous(memory_format=torch.channels_last))
            if vector.ndim != 2 or len(vector) != len(batch):
                raise RecipeError(
                    f"the encoder gives {tuple(vector.shape)} for {len(batch)} images; embeddings are (n, E)"
                )
            vectors.append(vector.float().cpu())  # waits for the device
            done += len(batch)
            if progress is not None:
                progress(done)
    if not done:
        raise DataError("there are no images to embed")
    return torch.cat(vectors)


def raw_pixels(
    pixels: Tensor | Iterable[Tensor], mean: Sequence[float], std: Sequence[float], size: int = RAW_SIZE
) -> Tensor:
    """The baseline without any network: the normalized pixels of each image as one vector, (M, 3 * s * s)
    float32.

    Images of other sizes than s = min(size, their shorter side) are resized and cropped: by default,
    everything above 32 pixels is shrunk to 32, so that the baseline of large images stays affordable. Raises
    DataError as `embeddings`.
    """
    pieces = [prepare(batch, mean, std, min(size, *batch.shape[2:])).flatten(1) for batch in _batches(pixels, 4096)]
    if not pieces:
        raise DataError("there are no images to flatten")
    return torch.cat(pieces)


def prepare(
    pixels: Tensor, mean: Sequence[float], std: Sequence[float], size: int | None = None, resize: int | None = None
) -> Tensor:
    """(n, 3, H, W) uint8 as the encoder wants it: (n, 3, size, size) float32, normalized; without `size`, (n,
    3, H, W).

    The shorter side is resized to `resize` pixels (`size` unless given; bilinear, antialiased: Pillow's way) and
    the middle is kept.
    """
    images = pixels.float() / 255
    height, width = images.shape[2:]
    if size is not None and (height, width, resize or size) != (size, size, size):
        scale = (resize or size) / min(height, width)
        shape = max(size, round(height * scale)), max(size, round(width * scale))
        if shape != (height, width):
            images = F.interpolate(images, shape, mode="bilinear", align_corners=False, antialias=True)
        top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
        images = images[:, :, top : top + size, left : left + size]
    return (images - images.new_tensor(mean).view(1, -1, 1, 1)) / images.new_tensor(std).view(1, -1, 1, 1)


def _batches(pixels: Tensor | Iterable[Tensor], batch_size: int) -> Iterator[Tensor]:
    for batch in pixels.split(batch_size) if isinstance(pixels, Tensor) else pixels:
        if batch.dtype != torch.uint8 or batch.ndim != 4 or batch.shape[1] != 3:
            raise DataError(f"images to embed are uint8 (n, 3, H, W); these are {batch.dtype} {tuple(batch.shape)}")
        if len(batch):
            yield batch


@contextmanager
def _evaluating(encoder: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards each module's own mode again: a part that was frozen on purpose stays
    frozen."""
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class Saved(NamedTuple):
    """What `load_embeddings` finds: vectors (M, E), one `index` row an image that was asked for, and
    `meta`."""

    vectors: Tensor
    index: list[dict]
    meta: dict


def save_embeddings(
    folder: str | Path,
    vectors: Tensor | np.ndarray,
    keys: Sequence[str],
    labels: Sequence[int | str | None] | None = None,
    status: Sequence[str | None] | None = None,
    meta: Mapping[str, object] | None = None,
) -> Path:
    """Write vectors.npy (float32), index.jsonl and meta.json into a new `folder`, all or nothing; returns the
    folder.

    keys, labels, status: one entry for each image that was asked for, in order. status: None or "ok" for an
    image that has a vector, otherwise why it has none: it keeps its row in the index, with the error, and is
    absent from the vectors. index.jsonl: {"key", "label", "status": "ok" or "failed", "row": its row of
    vectors.npy or null[, "error"]}, ASCII.

    Raises DataError when the counts do not fit, OutputError when the folder is not empty or cannot be
    written.
    """
    folder = Path(folder)
    array = np.ascontiguousarray(torch.as_tensor(vectors).detach().cpu().numpy(), dtype=np.float32)
    index = _index(keys, labels, status)
    rows = sum(row["row"] is not None for row in index)
    if array.ndim != 2 or rows != len(array):
        raise DataError(f"{rows} images are said to have a vector, the vectors are {array.shape}; each needs one row")
    described = {
        **(meta or {}),
        "rows": rows,
        "width": array.shape[1],
        "dtype": "float32",
        "failed": len(index) - rows,
    }
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise OutputError(f"{folder} exists and is not empty; choose another folder or remove it")
    work = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
    try:
        work.mkdir(parents=True)
        with open(work / "vectors.npy", "wb") as file:
            np.save(file, array, allow_pickle=False)
            _flush(file)
        _write(work / "index.jsonl", "".join(json.dumps(row) + "\n" for row in index))
        _write(work / "meta.json", json.dumps(described, indent=2) + "\n")
        if folder.is_dir():
            folder.rmdir()  # empty, as seen above
        work.rename(folder)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written ({error.strerror}); it needs {array.nbytes:,} bytes") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def load_embeddings(folder: str | Path) -> Saved:
    """What `save_embeddings` wrote. Raises DataError when a file is missing, damaged or does not fit the
    others."""
    folder = Path(folder)
    try:
        vectors = torch.from_numpy(np.load(folder / "vectors.npy", allow_pickle=False))
        index = [json.loads(line) for line in (folder / "index.jsonl").read_text("ascii").splitlines()]
        meta = json.loads((folder / "meta.json").read_text("ascii"))
        rows = [row["row"] for row in index if row["status"] == "ok"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{folder} holds no embeddings ({error}); `diptych embed` writes them") from error
    if vectors.ndim != 2 or rows != list(range(len(vectors))):
        shape = tuple(vectors.shape)
        raise DataError(f"{folder}: index.jsonl lists {len(rows)} vectors, vectors.npy is {shape}; embed again")
    return Saved(vectors, index, meta)


def _index(
    keys: Sequence[str], labels: Sequence[int | str | None] | None, status: Sequence[str | None] | None
) -> list[dict]:
    labels, status = (
        [None] * len(keys) if labels is None else labels,
        [None] * len(keys) if status is None else status,
    )
    if not len(keys) == len(labels) == len(status):
        raise DataError(
            f"{len(keys)} keys, {len(labels)} labels and {len(status)} states; each image needs one of each"
        )
    index, row = [], 0
    for key, label, state in zip(keys, labels, status, strict=True):
        plain = label.item() if isinstance(label, Tensor | np.generic) else label
        if state in (None, "ok"):
            index.append({"key": key, "label": plain, "status": "ok", "row": row})
            row += 1
        else:
            index.append({"key": key, "label": plain, "status": "failed", "row": None, "error": state})
    return index


def _write(path: Path, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
        _flush(file)


def _flush(file) -> None:
    file.flush()
    os.fsync(file.fileno())
