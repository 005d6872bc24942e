"""Embed images: in memory, or as a stream into a folder."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diptych.base.device import choose_device
from diptych.base.errors import DataError, RecipeError
from diptych.base.signals import Preempted
from diptych.base.terminal import ProgressBar, counted
from diptych.data.images import Images
from diptych.downstream.classifier import IMAGES_PER_BATCH, class_names, stream
from diptych.downstream.spreadsheet import pyarrow
from diptych.downstream.table import DEFAULTS, FOLDER_INSTEAD, TableOptions, require_parquet, write_table
from diptych.embeddings.store import load_embeddings, map_vectors, read_meta
from diptych.embeddings.writer import TABLE, Entry, Writer, remove_embeddings, require_place
from diptych.networks.inference import Preprocessing
from diptych.runs.encoder import Trained, as_trained, precision_for, weights_sha256
from diptych.runs.environment import version_of
from diptych.runs.run import Run

NOT_FINITE = "its embedding is not finite (NaN or infinite)"


def embed(
    trained: Trained | Run | str | Path,
    images: Images,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    source: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    show: bool = True,
) -> Tensor:
    """Embed images: (M, E) float32 on the CPU, in their order.

    With a folder as `out`, the embeddings are written to it block by block (see `embeddings.store`), and returned as a
    tensor that is memory-mapped: memory does not grow with their number. An image that is unreadable or has no finite
    embedding has a row in the folder's index, with the reason, but no vector. A file `out` that ends in .parquet: see
    `embed_table`. resume: continue an interrupted command or call, even after SIGKILL; start if there is nothing to
    continue.
    source: where the images are, recorded for readers of the folder.

    trained: an encoder (`diptych.load`), or the run or encoder folder that holds one. precision: float32, tf32, bfloat16 or
    "auto": on a GPU the precision of the training run, on a CPU float32.

    Raises OutputError for a folder that already exists, before the first image is embedded, CheckpointError when there is
    no encoder, or when the folder was started with another encoder, other preprocessing or other images, DataError for
    images that cannot be read, and when no embedding is finite. Warns if only some are.
    """
    if out is not None and Path(out).suffix == ".parquet":
        return embed_table(trained, images, Path(out), resume=resume, source=source, device=device, show=show)
    if out is not None:
        require_place(Path(out), resume)
    trained, where = as_trained(trained), choose_device(device)
    precision = precision_for(precision, trained, where)
    if out is None:
        with ProgressBar("embed", len(images), show) as progress:
            vectors = trained(stream(images, where), device=where, precision=precision, progress=progress)
        finite = vectors.isfinite().all(1)
        warn_of_infinite(int((~finite).sum()), len(finite), trained)
        return vectors
    images.prepare()
    settings = settings_of(trained, images, precision, source)
    with Writer(Path(out), settings, resume=resume) as writer, ProgressBar("embed", len(images), show) as progress:
        if writer.finished:
            progress.say(f"{out} is complete; nothing was embedded")
            return map_vectors(Path(out))
        try:
            infinite = write_embeddings(writer, images, lambda pixels: trained(pixels, device=where, precision=precision),
                                        progress, device=where)  # fmt: skip
        except Preempted as stopped:
            if not writer.images:
                raise
            name = stopped.message.split(":")[0]
            raise Preempted(
                f"{name}: stopped; {writer.images:,} images in {out} are embedded: run again with --resume"
            ) from None
        if bad := images.failed:
            first = f"first: {bad[0]['key']} ({bad[0]['reason']})"
            progress.say(f"{len(bad)} of {len(images.all_keys)} images cannot be read and have no vector, {first}")
        if not writer.rows:
            remove_embeddings(writer.folder)
        warn_of_infinite(infinite, writer.rows + infinite, trained)
        writer.finish({})
    return map_vectors(Path(out))


def embed_table(
    trained: Trained | Run | str | Path,
    images: Images,
    out: Path,
    *,
    resume: bool = False,
    source: str | None = None,
    device: str = "auto",
    options: TableOptions = DEFAULTS,
    show: bool = True,
) -> Tensor:
    """`embed` into one Parquet file (see `downstream.table`), or into a folder with such a file beside the others in it.

    Until the file is complete, the embeddings are in the folder `out`.partial, where `resume` goes on. The thumbnails are
    made in a second pass over the images, unless these are in memory. Raises as `embed` and `write_table`.
    """
    file, folder = table_places(out)
    require_format(out, "parquet", resume)
    vectors = embed(trained, images, out=folder, resume=resume, source=source, device=device, show=show)
    if not file.exists():
        with ProgressBar("table", show=show) as progress:
            write_table(file, load_embeddings(folder), images, options, progress.say)
    if folder != out:
        remove_embeddings(folder)
    return vectors


def require_format(out: Path, to: str | None, resume: bool) -> Path | None:
    """The Parquet file that `out` asks for, or None. Raises OutputError where it cannot be written, RecipeError for `to`."""
    if to not in (None, "npy", "parquet"):
        raise RecipeError(f"--to {to!r} is neither npy nor parquet")
    if to == "npy" and out.suffix == ".parquet":
        raise RecipeError(f"--to npy writes a folder, and {out} ends in .parquet; choose another --out")
    if to != "parquet" and out.suffix != ".parquet":
        require_place(out, resume)
        return None
    file, folder = table_places(out)
    if folder == out:
        pyarrow(FOLDER_INSTEAD)
    else:
        require_parquet(file)
    require_place(folder, resume)
    return file


def table_places(out: Path) -> tuple[Path, Path]:
    """The Parquet file, and the folder of the embeddings while it is made, for an --out."""
    if out.suffix == ".parquet":
        return out, out.with_name(f"{out.name}.partial")
    return out / TABLE, out


def settings_of(trained: Trained, images: Images, precision: str, source: str | None) -> dict:
    """What decides the embeddings, and where it came from."""
    return {
        "encoder": str(trained.folder or type(trained.encoder).__name__),
        "encoder_sha256": weights_sha256(trained),
        "preprocessing": preprocessing_record(trained.preprocessing),
        "precision": precision,
        "l2_normalized": False,
        "source": source,
        "images_sha256": images.fingerprint,
        "labelled": images.labels is not None,
        "diptych": version_of("diptych"),
    }


def preprocessing_record(preprocessing: Preprocessing) -> dict:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(preprocessing).items()}


def write_embeddings(
    writer: Writer,
    images: Images,
    encode: Callable[[Tensor], Tensor],
    progress: Callable[[int], object],
    *,
    device: torch.device,
) -> int:
    """Add all images after the first `writer.images` to the folder; returns how many embeddings were not finite."""
    keys, labels, infinite = images.all_keys, None, 0
    if images.labels is not None:
        labels = class_names(images, "embedded")
    # `prepare` may have removed images that cannot be read: place i is the position of image i among all.
    places = np.flatnonzero(np.isin(keys.rows, images.rows))
    start = int(np.searchsorted(places, writer.images))
    done = writer.images
    for begin, (rows, pixels) in zip(
        range(start, len(images), IMAGES_PER_BATCH),
        images.read(range(start, len(images)), IMAGES_PER_BATCH, device=device),
        strict=True,
    ):
        end = min(begin + IMAGES_PER_BATCH, len(images))
        stop = int(places[end]) if end < len(images) else len(keys)
        vectors = encode(pixels) if len(rows) else torch.empty(0, 0)
        finite = vectors.isfinite().all(1)
        infinite += int((~finite).sum())
        states: dict[int, str | None] = {}
        for row, good in zip(rows.tolist(), finite.tolist(), strict=True):
            states[int(places[row])] = None if good else NOT_FINITE
        reasons = {} if len(states) == stop - done else {row["key"]: row["reason"] for row in images.failed}
        names = {int(places[i]): labels[i] for i in range(begin, end)} if labels else {}
        entries = []
        for place in range(done, stop):
            key = keys[place]
            entries.append(Entry(key, names.get(place), states[place] if place in states else reasons[key]))
        writer.add(entries, vectors[finite].numpy())
        done = stop
        progress(end)
    if done < len(keys):  # all that were left could not be read
        reasons = {row["key"]: row["reason"] for row in images.failed}
        writer.add([Entry(key, None, reasons[key]) for key in keys[done:]], np.empty((0, 0), np.float32))
    return infinite


def warn_of_infinite(bad: int, count: int, trained: Trained) -> None:
    """Warn of `bad` embeddings of `count` that are not finite. Raises DataError if none is finite."""
    of = f" of {trained.folder}" if trained.folder else ""
    if bad == count:
        if not count:
            raise DataError("there are no images to embed")
        raise DataError(f"none of the {count:,} embeddings is finite: the encoder{of} is damaged; train it again")
    if bad:
        warnings.warn(f"{bad:,} of {count:,} embeddings are not finite (NaN or infinite): the encoder{of} "
                      "overflows on these images", stacklevel=3)  # fmt: skip


def summary(folder: Path) -> str:
    """One line about a folder that `embed` has written."""
    meta = read_meta(folder)
    return f"{folder}/vectors.npy  {meta['rows']} x {meta['width']} float32, {counted(meta['failed'], 'image')} failed"


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
    progress.total, vectors = sum(map(len, sets)), []
    for images in sets:
        before = sum(len(earlier) for earlier in sets[: len(vectors)])

        def count(done: int, before: int = before) -> None:
            progress(before + done, f"embedding with the {what}")

        batches = stream(images, device) if seen is None else passing(stream(images), seen)
        vectors.append(trained(batches, device=device, output_device=device, precision=precision, progress=count))
    return vectors


def passing(batches: Iterator[Tensor], seen: Callable[[Tensor], object]) -> Iterator[Tensor]:
    for batch in batches:
        seen(batch)
        yield batch
