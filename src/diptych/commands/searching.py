"""`diptych search`: what a query is, and how the answers are shown."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from diptych.base.errors import DataError, DiptychError
from diptych.commands.opening import image_options, open_encoder, open_images

if TYPE_CHECKING:
    import numpy as np

    from diptych.data.images import Images
    from diptych.downstream.search import Answer
    from diptych.downstream.vectors import Bank

PICTURE = 128  # pixels of a side, on the page


@dataclass(frozen=True)
class Search:
    """What the options of the command say."""

    vectors: Path
    top: int = 20
    run: Path | None = None
    encoder: str | None = None
    index: str = "exact"
    device: str = "auto"


def answers_to(query: str, bank: "Bank", options: Search) -> tuple[list["Answer"], "Images | None"]:
    """The answers, and the images of the query where it is not in the bank.

    A query is an image file or a folder of images, else a row number, else a key. Raises DataError for anything else.
    """
    from diptych.downstream.search import search, search_row

    path = Path(query).expanduser()
    if path.exists():
        photos, vectors, names = embedded(path, bank, options)
        return search(bank, vectors, names, top=options.top, index=options.index), photos
    row = int(query) if query.isascii() and query.lstrip("-").isdigit() and len(query) < 19 else bank.find(query)
    if row is None:
        raise DataError(f"{query} is no file, folder, row or key of {options.vectors}; `index.jsonl` or the column file_name "
                        "lists its keys")  # fmt: skip
    return [search_row(bank, row, top=options.top, index=options.index)], None


def embedded(path: Path, bank: "Bank", options: Search):
    """The images at `path`, their embeddings and their names, by the encoder that made the bank."""
    from diptych.base.device import choose_device
    from diptych.downstream.search import embed_queries, one_image, recorded_encoder, require_same_encoder

    device = choose_device(options.device)
    trained = open_encoder(options.run or recorded_encoder(bank, options.vectors), options.encoder)
    require_same_encoder(bank, trained, options.vectors)
    reading = image_options(trained) | {"resident": False}
    if path.is_dir():
        photos = open_images(str(path), reading | {"labels": "none"})
    else:
        photos = one_image(path, reading)
    return photos, *embed_queries(trained, photos, device)


def as_text(answers: list["Answer"]) -> str:
    """A table: a line per neighbour; with several queries, each below a line that names it."""
    lines = []
    for answer in answers:
        if len(answers) > 1:
            lines.append(f"{answer.query}:")
        lines.append(f"{'':>4}{'similarity':>12}{'row':>10}  {'label':<16}  image")
        for rank, near in enumerate(answer.neighbours, 1):
            label = "" if near.label is None else near.label
            lines.append(f"{rank:>4}{near.similarity:>12.4f}{near.row:>10}  {label:<16}  {near.key}")
    return "\n".join(lines)


def write_page(
    out: Path, bank: "Bank", answers: list["Answer"], photos: "Images | None", source: str | None, options: Search
) -> list[str]:
    """Write the page of pictures; returns remarks about pictures that are missing.

    source: where the images of the bank are: named, or recorded. Without it the thumbnails of a Parquet file are shown.
    """
    from diptych.data.untrusted import BadImage
    from diptych.downstream.search import pictures_of
    from diptych.reporting.gallery import QUERIES, Tile, write_gallery

    remarks, shown = [], answers[:QUERIES]
    rows = {near.row for answer in shown for near in answer.neighbours} | {a.row for a in shown if a.row is not None}
    saved = None
    recorded = bank.meta.get("source")
    if source is not None or (isinstance(recorded, str) and bank.picture(0) is None):
        try:
            saved = open_images(source or str(recorded), {"size": PICTURE, "resident": False, "labels": "none"})
        except DiptychError as error:
            if source is not None:
                raise
            remarks.append(f"the page has no pictures, {error}: name their source as --images")
    if saved is not None and bank.meta.get("images_sha256") not in (None, saved.fingerprint):
        remarks.append(f"{source or recorded} has changed since it was embedded; pictures are shown by their names")
    pictures = dict(pictures_of(bank, rows, saved))
    if rows and not pictures and not remarks:
        remarks.append("the page has no pictures: name the source of the embedded images as --images")

    def of_query(answer: "Answer") -> "np.ndarray | None":
        if answer.row is not None or photos is None:
            return pictures.get(-1 if answer.row is None else answer.row)
        try:
            return photos.load(list(photos.keys).index(answer.query)).permute(1, 2, 0).numpy()
        except BadImage:
            return None

    tiles = [
        (Tile(answer.query, of_query(answer), None if answer.row is None else bank.name(answer.row)[1]),
         [Tile(near.key, pictures.get(near.row), near.label, near.similarity) for near in answer.neighbours])
        for answer in shown
    ]  # fmt: skip
    facts = [f"{len(bank):,} images of {bank.width} numbers", str(options.vectors), f"{options.index} search"]
    title = answers[0].query if len(answers) == 1 else f"{len(answers):,} queries"
    write_gallery(out, title, facts, tiles)
    return remarks
