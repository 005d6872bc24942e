"""Embeddings as one Parquet file, which embedding-atlas, Hugging Face datasets, DuckDB, polars and pandas read as it is.

file_name, label: text        image: {bytes, path}, a thumbnail        vector: E numbers, a list of fixed size
projection_x, projection_y    neighbors: {ids, distances}, the rows of the nearest others by 1 - cosine
"""

import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from diptych.base.errors import DataError, RecipeError
from diptych.base.files import disk_error, require_free_file
from diptych.data.images import Images
from diptych.downstream.spreadsheet import pyarrow
from diptych.embeddings.nearest import nearest_others, not_finite
from diptych.embeddings.plane import project
from diptych.embeddings.store import Index, Saved
from diptych.reporting.pictures import shrink_to_fit

ROWS_PER_GROUP = 4096
FOLDER_INSTEAD = "name a folder as --out"  # where pyarrow is not installed
LOSSLESS = 48  # pixels: JPEG blurs what is smaller
Say = Callable[[str], object]


@dataclass(frozen=True)
class TableOptions:
    """thumbnail: pixels of a side, 0 for no column image; neighbors: how many of each row, 0 for no column neighbors."""

    thumbnail: int = 96
    neighbors: int = 10

    def __post_init__(self) -> None:
        for name, most in (("thumbnail", 1024), ("neighbors", 1000)):
            if not 0 <= getattr(self, name) <= most:
                raise RecipeError(f"{name} is {getattr(self, name)}; it is from 0 (none) to {most}")


DEFAULTS = TableOptions()


@dataclass(frozen=True)
class TableContents:
    """What becomes a table. xy: the map (M, 2). near: cosines and rows of the nearest others, (M, k) each, or None."""

    saved: Saved
    xy: np.ndarray
    near: tuple[Tensor, Tensor] | None
    pictures: "Thumbnails | None"


def require_parquet(file: Path) -> Path:
    """Return `file` if a Parquet file can be written there. Raises OutputError, before the first image is embedded."""
    pyarrow(FOLDER_INSTEAD)
    return require_free_file(file)


def write_table(
    file: Path,
    saved: Saved,
    images: Images | None,
    options: TableOptions = DEFAULTS,
    say: Say = lambda text: None,
) -> Path:
    """Write the embeddings of a folder (`load_embeddings`) as `file`, one row per vector, a group of rows at a time.

    images: what was embedded, for the thumbnails; None: no column image. Neighbours are exact and cost M * M * E operations;
    in memory are 12 bytes of each. Raises OutputError for a file that exists or cannot be written, DataError without vectors
    or with ones that are not finite.
    """
    library = pyarrow(FOLDER_INSTEAD)
    require_parquet(file)
    vectors = saved.vectors
    if not len(vectors):
        raise DataError("there are no embeddings to write")
    if bad := not_finite(vectors):
        raise DataError(f"{bad} of {len(vectors)} embeddings hold NaN or infinity; embed again")
    say(f"map of {len(vectors):,} embeddings ...")
    xy, algorithm = project(vectors)
    near = None
    if options.neighbors and len(vectors) > 1:
        say(f"{min(options.neighbors, len(vectors) - 1)} neighbours of {len(vectors):,} embeddings ...")
        near = nearest_others(vectors, options.neighbors)
    size = options.thumbnail
    pictures = Thumbnails(images, saved.index, size) if images is not None and size else None
    contents = TableContents(saved, xy, near, pictures)
    schema = schema_of(library, vectors.shape[1], pictures is not None, near is not None)
    described = saved.meta | {"projection": algorithm, "distance": "1 - cosine"}
    schema = schema.with_metadata({"diptych": json.dumps(described), "huggingface": json.dumps(hugging_face(schema))})
    work = file.with_name(f".{file.name}.tmp-{os.getpid()}")
    try:
        with library.parquet.ParquetWriter(work, schema) as writer:
            for start in range(0, len(vectors), ROWS_PER_GROUP):
                rows = slice(start, min(start + ROWS_PER_GROUP, len(vectors)))
                writer.write_table(group(library, schema, contents, rows))
        with open(work, "rb") as written:
            os.fsync(written.fileno())
        require_free_file(file)  # again: another process may have written it in between
        os.replace(work, file)
    except OSError as error:
        raise disk_error(file, vectors.nbytes, error) from error
    finally:
        work.unlink(missing_ok=True)
    return file


def schema_of(library, width: int, with_images: bool, with_neighbours: bool):
    of = library
    fields = [("file_name", of.string()), ("label", of.string())]
    if with_images:
        fields.append(("image", of.struct([("bytes", of.binary()), ("path", of.string())])))
    fields += [
        ("vector", of.list_(of.float32(), width)),
        ("projection_x", of.float32()),
        ("projection_y", of.float32()),
    ]
    if with_neighbours:
        fields.append(("neighbors", of.struct([("ids", of.list_(of.int64())), ("distances", of.list_(of.float32()))])))
    return of.schema(fields)


def hugging_face(schema) -> dict:
    """What the datasets library reads: among others, that `image` is an image."""

    def value(kind: str) -> dict:
        return {"dtype": kind, "_type": "Value"}

    columns = {"file_name": value("string"), "label": value("string"), "image": {"_type": "Image"},
               "projection_x": value("float32"), "projection_y": value("float32")}  # fmt: skip
    columns["vector"] = {
        "feature": value("float32"),
        "length": schema.field("vector").type.list_size,
        "_type": "Sequence",
    }
    ids, distances = ({"feature": value(kind), "_type": "Sequence"} for kind in ("int64", "float32"))
    columns["neighbors"] = {"ids": ids, "distances": distances}
    info: dict[str, dict] = {}
    info["features"] = {name: columns[name] for name in schema.names}
    return {"info": info}


def group(library, schema, contents: TableContents, rows: slice):
    """Some rows as a table."""
    index: Index = contents.saved.index
    lines = [index.of_row(row) for row in range(rows.start, rows.stop)]
    names = [line["key"].encode("utf-8", "replace").decode() for line in lines]
    labels = [None if line["label"] is None else str(line["label"]) for line in lines]
    vectors = contents.saved.vectors[rows]
    columns = {
        "file_name": library.array(names, library.string()),
        "label": library.array(labels, library.string()),
        "vector": library.FixedSizeListArray.from_arrays(library.array(vectors.numpy().reshape(-1)), vectors.shape[1]),
        "projection_x": library.array(contents.xy[rows, 0]),
        "projection_y": library.array(contents.xy[rows, 1]),
    }
    if contents.pictures is not None:
        pictures = contents.pictures.of_rows(rows)
        images = [{"bytes": data, "path": name} for data, name in zip(pictures, names, strict=True)]
        columns["image"] = library.array(images, schema.field("image").type)
    if contents.near is not None:
        similarities, ids = (part[rows].numpy() for part in contents.near)
        offsets = library.array(np.arange(len(ids) + 1, dtype=np.int32) * ids.shape[1])
        parts = [library.ListArray.from_arrays(offsets, library.array(part.reshape(-1)))
                 for part in (ids, (1 - similarities).clip(0).astype(np.float32))]  # fmt: skip
        columns["neighbors"] = library.StructArray.from_arrays(parts, names=["ids", "distances"])
    return library.table([columns[name] for name in schema.names], schema=schema)


class Thumbnails:
    """Small pictures of the embedded images, read from their source a second time; of resident images, from memory."""

    def __init__(self, images: Images, index: Index, size: int):
        self.images, self.size = images, size
        places = np.flatnonzero(np.isin(images.all_keys.rows, images.rows))  # of every readable image among all
        if len(images.all_keys) != len(index):
            raise DataError(f"the source has {len(images.all_keys)} images, {len(index)} were embedded: name the same")
        self.positions = np.searchsorted(places, index.images)  # of every row among the images

    def of_rows(self, rows: slice) -> list[bytes | None]:
        """None for an image that cannot be read any more."""
        positions = self.positions[rows]
        pictures: dict[int, bytes] = {}
        for read, pixels in self.images.read(positions, 256):
            for position, image in zip(read.tolist(), pixels.permute(0, 2, 3, 1).numpy(), strict=True):
                pictures[position] = thumbnail(image, self.size)
        return [pictures.get(position) for position in positions.tolist()]


def thumbnail(image: np.ndarray, size: int) -> bytes:
    """(H, W, 3) uint8 as a JPEG of at most `size` pixels a side, or as a PNG where it is small."""
    small = shrink_to_fit(image[None], size)[0]
    file = io.BytesIO()
    lossless = max(small.shape[:2]) <= LOSSLESS
    Image.fromarray(small).save(file, "PNG" if lossless else "JPEG", **({} if lossless else {"quality": 85}))
    return file.getvalue()
