"""A page of pictures: queries and their neighbours. One HTML file that needs neither a network nor scripts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diptych.base.files import HTML_MARK, require_free_file, write_file
from diptych.reporting.page import page_template, text_of
from diptych.reporting.pictures import data_uri, shrink_to_fit

PICTURE = 128  # pixels of a side at most
QUERIES = 200  # on a page


@dataclass(frozen=True)
class Tile:
    """A picture (H, W, 3) uint8 or None, and what is written below it."""

    name: str
    picture: np.ndarray | None = None
    label: str | None = None
    similarity: float | None = None

    @property
    def uri(self) -> str | None:
        return None if self.picture is None else data_uri(shrink_to_fit(self.picture[None], PICTURE)[0])

    @property
    def is_small(self) -> bool:
        """Whether its pixels are shown enlarged, and so with sharp edges."""
        return self.picture is not None and max(self.picture.shape[:2]) <= PICTURE // 2


def require_page(out: Path) -> Path:
    """Return `out` if a page may be written there: a new file, or an older page of Diptych's. Raises OutputError."""
    return require_free_file(out, HTML_MARK)


def write_gallery(
    out: Path, title: str, facts: Sequence[str], rows: Sequence[tuple[Tile, Sequence[Tile]]], *, left_out: int = 0
) -> Path:
    """Write a page with a row of pictures for each query and its neighbours. Raises OutputError.

    left_out: the number of queries that are not among the rows. All texts are escaped: names and labels come from files.
    """
    style = text_of("report.css")
    notes = [f"Further queries that are not shown: {left_out:,}."] if left_out else []
    page = page_template("gallery.html.jinja").render(title=title, facts=facts, rows=rows, notes=notes, style=style)
    write_file(require_page(out), page.encode("utf-8", "replace"))
    return out
