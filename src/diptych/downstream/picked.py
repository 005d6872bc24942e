"""Pick the images to label next from saved embeddings."""

from pathlib import Path

import torch

from diptych.downstream.spreadsheet import as_csv, as_parquet
from diptych.downstream.vectors import open_bank
from diptych.embeddings.picking import pick

COLUMNS = ("rank", "path", "row")
KINDS = ("int64", "string", "int64")


def pick_images(path: str | Path, budget: int, seed: int = 0) -> list[tuple[int, str, int]]:
    """(rank from 1, key, row of the vectors) of the images to label, the most typical of the largest clusters first.

    path: a folder of `diptych embed`, or its Parquet. See `embeddings.picking.pick`. Raises DataError where there are no usable
    embeddings, RecipeError for a budget below 1 or above their number.
    """
    bank = open_bank(Path(path))
    rows = pick(torch.cat([*bank.blocks()]), budget, seed=seed).tolist()
    return [(rank, bank.name(row)[0], row) for rank, row in enumerate(rows, 1)]


def picked_table(picked: list[tuple[int, str, int]], ending: str) -> bytes:
    """The rows as .csv or .parquet."""
    return as_csv(COLUMNS, picked) if ending == ".csv" else as_parquet(COLUMNS, picked, KINDS)
