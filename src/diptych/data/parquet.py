"""Parquet in the layout of Hugging Face image datasets ({bytes, path} and label), read a block at a time."""

import json
import os
import re
import threading
from collections import deque
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from diptych.base.errors import DataError
from diptych.data.labels import no_folders, numbered
from diptych.data.source import FILE_BLOCKS, SAMPLED, digest, file_blocks, key_of
from diptych.data.untrusted import NO_FILE, BadImage, bad_image, refusing

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")
SPLIT = re.compile(r"(?:^|[-_.])(train|test|val|valid|validation)(?=[-_.]|$)", re.IGNORECASE)
BLOCK_BYTES = 128 << 20  # a row group of more (uncompressed) is read in blocks of about this size
BLOCKS = 2  # in memory; two, so that threads on both sides of a border do not reread each other's


def open_parquet(path: str | Path, labels: str = "auto") -> "Parquet":
    """The images of a Parquet file, a folder of them, or a pattern (`data/train-*.parquet`), by file name.

    Raises DataError when pyarrow or the columns are missing, a file is damaged, or a folder mixes splits.
    """
    pyarrow = _pyarrow()
    path = Path(path)
    no_folders(str(path), labels)
    if path.is_dir():
        root, files = path, parquet_files(path)
    else:
        root, files = path.parent, [path] if path.exists() else sorted(path.parent.glob(path.name))
    if pipes := [file for file in files if not file.is_file()]:
        raise DataError(f"{pipes[0]} is {NO_FILE}: remove it, or name the Parquet files")
    splits = {match[1].lower(): file for file in files if (match := SPLIT.search(file.stem))}
    if len(splits) > 1:
        name, file = next(iter(splits.items()))
        raise DataError(f"{path} mixes the splits {', '.join(splits)}: name one, as {file.parent}/*{name}*.parquet")
    with refusing(f"{path} is not complete Parquet", pyarrow.ArrowException):
        return Parquet(root, files, labels == "auto")


def parquet_files(folder: Path) -> list[Path]:
    """All Parquet files below a folder, by name."""
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() == ".parquet" and not file.is_dir())


def _pyarrow():
    try:
        import pyarrow.parquet  # an extra, and slow to import: only when needed
    except ImportError as error:
        raise DataError('reading Parquet needs pyarrow: pip install "diptych[parquet]"') from error
    return pyarrow


class Parquet:
    """A source over Parquet files. In memory: the labels, the footers, and two blocks of image bytes.

    A row is cheap to read near the row read before it; elsewhere its block is read again. In a row group of
    more than BLOCK_BYTES, a block is reached by reading through the group from its start.
    """

    native_size = None

    def __init__(self, root: Path, files: list[Path], with_labels: bool):
        self.parquet = _pyarrow().parquet
        self.files, self.skipped = files, []
        self.names = [key_of(os.fsencode(file.relative_to(root).as_posix())) for file in files]
        self.sizes = [file.stat().st_size for file in files]
        self.footers = [self.parquet.read_metadata(file) for file in files]
        self.groups = [(f, g) for f, footer in enumerate(self.footers) for g in range(footer.num_row_groups)]
        self.group_starts = np.cumsum([0, *(self.footers[f].row_group(g).num_rows for f, g in self.groups)])
        self.file_starts = np.cumsum([0, *(footer.num_rows for footer in self.footers)])
        if self.group_starts[-1] != self.file_starts[-1] or (np.diff(self.group_starts) < 0).any():
            raise DataError(f"{files[0].parent} holds Parquet whose footer contradicts itself: copy it again")
        schema = self.footers[0].schema.to_arrow_schema()
        self.column = _image_column(files[0], schema)
        label = next((name for name in LABEL_COLUMNS if name in schema.names), None)
        self.numbers, self.classes = self._labels(label, schema) if with_labels and label else (None, None)
        self.lock = threading.Lock()
        self.blocks: deque[tuple[int, int, Any]] = deque(maxlen=BLOCKS)  # (first row, row after the last, bytes)
        self.pieces, self.pieces_group, self.pieces_row = (
            iter(()),
            -1,
            0,
        )  # the iterator of a large group and its next row

    def __len__(self) -> int:
        return int(self.file_starts[-1])

    def key(self, i: int) -> str:
        file = int(np.searchsorted(self.file_starts, i, side="right")) - 1
        return f"{self.names[file]}:{i - self.file_starts[file]}"

    def label(self, i: int) -> str | None:
        if self.numbers is None or self.classes is None or self.numbers[i] < 0:
            return None
        return self.classes[self.numbers[i]]

    def read(self, i: int) -> bytes:
        with self.lock, bad_image("the Parquet file is damaged here", _pyarrow().ArrowException):
            start, block = self._block(i)
            data = block[i - start].as_py()
        if data is None:
            raise BadImage("no bytes in this row (null)")
        return data

    @cached_property
    def fingerprint(self) -> str:
        """A hash of names, sizes and rows of the files, and of SAMPLED blocks of 4 KiB, evenly spread over them."""
        described = repr(list(zip(self.names, self.sizes, self.file_starts.tolist(), strict=False)))
        count = max(FILE_BLOCKS, SAMPLED // len(self.files))
        return digest(described, *(file_blocks(*part, count) for part in zip(self.files, self.sizes, strict=True)))

    def _block(self, i: int) -> tuple[int, Any]:
        for start, stop, block in self.blocks:
            if start <= i < stop:
                return start, block
        group = int(np.searchsorted(self.group_starts, i, side="right")) - 1
        first, stop = self.group_starts[group : group + 2].tolist()
        file, number = self.groups[group]
        columns = self.footers[file].row_group(number)
        columns = [columns.column(c) for c in range(columns.num_columns)]
        size = sum(c.total_uncompressed_size for c in columns if c.path_in_schema == self.column)
        if size <= BLOCK_BYTES:
            with self.parquet.ParquetFile(self.files[file], metadata=self.footers[file]) as opened:
                column = opened.read_row_group(number, columns=[self.column]).column(0)
            self.blocks.append((first, stop, _bytes(column.combine_chunks())))
            return first, self.blocks[-1][2]
        if group != self.pieces_group or i < self.pieces_row:
            opened = self.parquet.ParquetFile(self.files[file], metadata=self.footers[file], buffer_size=1 << 20)
            rows = max(1, BLOCK_BYTES * (stop - first) // size)
            self.pieces = opened.iter_batches(rows, row_groups=[number], columns=[self.column])
            self.pieces_group, self.pieces_row = group, first
        while self.pieces_row <= i:
            piece = _bytes(next(self.pieces).column(0))
            start, self.pieces_row = self.pieces_row, self.pieces_row + len(piece)
            self.blocks.append((start, self.pieces_row, piece))
        return start, piece

    def _labels(self, name: str, schema) -> tuple[np.ndarray, list[str]]:
        tables = [self.parquet.read_table(file, columns=[name]) for file in self.files]
        column = _pyarrow().concat_tables(tables).column(0).combine_chunks()
        if schema.field(name).type in (_pyarrow().string(), _pyarrow().large_string()):
            column = column.dictionary_encode()
            words = column.dictionary.to_pylist()
            classes = sorted(words)
            number_of = {word: number for number, word in enumerate(classes)}
            numbers = np.array([number_of[word] for word in words] + [-1])  # the last for rows without a label
            return numbers[column.indices.fill_null(-1).to_numpy(zero_copy_only=False)], classes
        numbers = column.fill_null(-1).to_numpy(zero_copy_only=False)
        return numbered(numbers, len(self), str(self.files[0]), _class_names(schema, name))


def _bytes(column):
    """The array of bytes in a column that is {bytes} or bytes."""
    return column.flatten()[0] if hasattr(column, "flatten") and column.type.num_fields else column


def _image_column(file: Path, schema) -> str:
    """The dotted name of the image bytes: in image or img, or in the only column of {bytes, path}."""
    structs = [f.name for f in schema if "bytes" in [part.name for part in _parts(f.type) if _is_bytes(part)]]
    binaries = [field.name for field in schema if _is_bytes(field)]
    for name in (*IMAGE_COLUMNS, *structs[: len(structs) == 1]):
        if name in structs:
            return f"{name}.bytes"
        if name in binaries:
            return name
    columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
    raise DataError(f"{file} has no column image or img of {{bytes, path}}; it has {columns}")


def _is_bytes(field) -> bool:
    return str(field.type) in ("binary", "large_binary")


def _parts(kind) -> list:
    return [kind.field(k) for k in range(kind.num_fields)] if str(kind).startswith("struct") else []


def _class_names(schema, label: str) -> list[str] | None:
    """The class names that Hugging Face datasets writes into the schema."""
    try:
        return json.loads(schema.metadata[b"huggingface"])["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError):
        return None
