"""Pick the images to label next from a folder of embeddings."""

from pathlib import Path

from diptych.downstream.spreadsheet import as_csv, as_parquet
from diptych.embeddings.picking import pick
from diptych.embeddings.store import load_embeddings

COLUMNS = ("rank", "path", "row")
KINDS = ("int64", "string", "int64")


def pick_images(folder: str | Path, budget: int, seed: int = 0) -> list[tuple[int, str, int]]:
    """(rank from 1, key, row of the vectors) of the images to label, the most typical of the largest clusters first.

    folder: as `diptych embed` writes it. See `embeddings.picking.pick`. Raises DataError for a folder without usable
    embeddings, RecipeError for a budget below 1 or above their number.
    """
    saved = load_embeddings(folder)
    keys = {line["row"]: line["key"] for line in saved.index if line["row"] is not None}
    rows = pick(saved.vectors, budget, seed=seed).tolist()
    return [(rank, keys[row], row) for rank, row in enumerate(rows, 1)]


def picked_table(picked: list[tuple[int, str, int]], ending: str) -> bytes:
    """The rows as .csv or .parquet."""
    return as_csv(COLUMNS, picked) if ending == ".csv" else as_parquet(COLUMNS, picked, KINDS)
