"""Saved embeddings, a folder or a Parquet file, as a bank to search in: read in blocks, whatever its size."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from diptych.base.errors import DataError
from diptych.data.untrusted import one_line, refusing
from diptych.downstream.spreadsheet import pyarrow
from diptych.embeddings.nearest import BANK_ROWS_PER_BLOCK
from diptych.embeddings.store import FORMAT, Index, load_embeddings
from diptych.runs.contents import is_run

COLUMNS = ("file_name", "vector")  # that a table must have


class Bank(Protocol):
    """Saved embeddings: `meta`, how they were made; `width`, numbers in each; `len`, how many."""

    meta: dict
    width: int

    def __len__(self) -> int: ...

    def blocks(self) -> Iterator[Tensor]:
        """The vectors, (m, E) float32 at a time, in order."""

    def vector(self, row: int) -> Tensor:
        """(1, E)."""

    def name(self, row: int) -> tuple[str, str | None]:
        """Key and label of an image."""

    def find(self, key: str) -> int | None:
        """The row of a key."""

    def picture(self, row: int) -> bytes | None:
        """A thumbnail as an image file, which nobody vouches for."""


def open_bank(path: Path) -> Bank:
    """The embeddings at a path: a folder of `diptych embed`, or its Parquet. Raises DataError."""
    if is_run(path) or (path / "config.json").is_file():
        raise DataError(f"{path} holds an encoder, no vectors; `diptych embed {path} SOURCE --out vectors` makes them")
    if path.is_dir():
        return FolderBank(path)
    if not path.exists():
        raise DataError(f"{path} does not exist; `diptych embed RUN SOURCE --out {path}` makes it")
    if not path.is_file():
        raise DataError(f"{path} is not a file; name a folder of `diptych embed`, or its Parquet")
    return TableBank(path)


class FolderBank:
    def __init__(self, folder: Path):
        self.vectors, index, self.meta = load_embeddings(folder)
        self.index: Index = index
        self.width = self.vectors.shape[1]
        if not len(self.vectors):
            raise DataError(f"{folder} holds no vector: no image could be embedded")

    def __len__(self) -> int:
        return len(self.vectors)

    def blocks(self) -> Iterator[Tensor]:
        return iter(self.vectors.split(BANK_ROWS_PER_BLOCK))

    def vector(self, row: int) -> Tensor:
        return self.vectors[row : row + 1]

    def name(self, row: int) -> tuple[str, str | None]:
        line = self.index.of_row(row)
        return line["key"], None if line["label"] is None else str(line["label"])

    def find(self, key: str) -> int | None:
        line = next((line for line in self.index if line["key"] == key), None)
        if line is not None and line["row"] is None:
            raise DataError(f"{key} has no vector ({line.get('error')})")
        return None if line is None else line["row"]

    def picture(self, row: int) -> bytes | None:
        return None


class TableBank:
    """A Parquet file. In memory: its names and labels, and a block of vectors."""

    def __init__(self, file: Path):
        self.file, self.library = file, pyarrow("search a folder of `diptych embed`")
        with refusing(f"{file} is not complete Parquet", self.library.ArrowException):
            self.table = self.library.parquet.ParquetFile(file)
            schema = self.table.schema_arrow
            self._require(schema)
            names = self.table.read(columns=[name for name in ("file_name", "label") if name in schema.names])
            self.keys = names.column("file_name")
            self.labels = names.column("label") if "label" in schema.names else None
        self.with_pictures = "image" in schema.names and str(schema.field("image").type).startswith(
            "struct<bytes: binary"
        )
        self.width = schema.field("vector").type.list_size
        self.count = len(self.keys)
        if not self.count:
            raise DataError(f"{file} holds no vector: it has no rows")
        self.meta = self._meta(schema)

    def _require(self, schema) -> None:
        kinds = {field.name: str(field.type) for field in schema}
        vector = kinds.get("vector", "")
        if not (vector.startswith("fixed_size_list<") and ": float" in vector and ": float16" not in vector):
            raise DataError(self._lacks("vector, a list of float of fixed size", kinds))
        if kinds.get("file_name") not in ("string", "large_string"):
            raise DataError(self._lacks("file_name, text", kinds))

    def _lacks(self, column: str, kinds: dict[str, str]) -> str:
        columns = one_line(", ".join(f"{name} ({kind})" for name, kind in kinds.items()))
        return f"{self.file} has no column {column}; it has {columns}: write it with `diptych embed --to parquet`"

    def _meta(self, schema) -> dict:
        try:
            meta = json.loads((schema.metadata or {})[b"diptych"])
        except (KeyError, ValueError, RecursionError):
            raise DataError(
                f"{self.file} does not say which encoder made it; write it with `diptych embed --to parquet`"
            ) from None
        if not isinstance(meta, dict) or meta.get("format") != FORMAT:
            version = meta.get("format") if isinstance(meta, dict) else meta
            raise DataError(f"{self.file} has format {version!r}, this version of diptych reads {FORMAT}; embed again")
        return meta

    def __len__(self) -> int:
        return self.count

    def blocks(self) -> Iterator[Tensor]:
        with refusing(f"{self.file} is damaged", self.library.ArrowException):
            for batch in self.table.iter_batches(BANK_ROWS_PER_BLOCK, columns=["vector"]):
                yield self._tensor(batch.column(0))

    def _tensor(self, column) -> Tensor:
        if column.null_count or column.values.null_count:
            raise DataError(f"{self.file} has rows without a vector; remove them")
        array = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, self.width)
        return torch.from_numpy(np.array(array, np.float32))

    def vector(self, row: int) -> Tensor:
        begin = 0
        for block in self.blocks():
            if row < begin + len(block):
                return block[row - begin : row - begin + 1]
            begin += len(block)
        raise DataError(f"{self.file} ends before row {row}; copy it again")

    def name(self, row: int) -> tuple[str, str | None]:
        label = None if self.labels is None else self.labels[row].as_py()
        return self.keys[row].as_py() or "", None if label is None else str(label)

    def find(self, key: str) -> int | None:
        import pyarrow.compute

        row = pyarrow.compute.index(self.keys, key).as_py()
        return None if row < 0 else row

    def picture(self, row: int) -> bytes | None:
        if not self.with_pictures:
            return None
        with refusing(f"{self.file} is damaged", self.library.ArrowException):
            begin = 0
            for group in range(self.table.num_row_groups):
                count = self.table.metadata.row_group(group).num_rows
                if row < begin + count:
                    column = self._pictures(group)
                    return column[row - begin].as_py()
                begin += count
        return None

    def _pictures(self, group: int):
        """The bytes of one group's images; the last group stays in memory."""
        if getattr(self, "_group", None) != group:
            self._group, self._images = group, self.table.read_row_group(group, columns=["image.bytes"])
        column = self._images.column("image").combine_chunks()
        return column.field("bytes") if hasattr(column, "field") else column
