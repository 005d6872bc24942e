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
    images: str | None = None
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
        raise DataError(f"{query} is not a file, folder, row or key of {options.vectors}; `index.jsonl` or the column file_name "
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


def write_answers(
    out: Path, bank: "Bank", answers: list["Answer"], photos: "Images | None", options: Search
) -> list[str]:
    """Write the page of pictures; returns remarks about pictures that are missing. photos: as of `answers_to`."""
    from diptych.downstream.search import pictures_of
    from diptych.reporting.gallery import QUERIES, Tile, write_gallery

    shown = answers[:QUERIES]
    rows = {near.row for answer in shown for near in answer.neighbours} | {a.row for a in shown if a.row is not None}
    saved, remarks = images_of(bank, options.images)
    pictures = dict(pictures_of(bank, rows, saved))
    if rows and not pictures and not remarks:
        remarks.append("the page has no pictures: name the source of the embedded images as --images")
    tiles = []
    for answer in shown:
        if answer.row is None:
            query = Tile(answer.query, query_picture(photos, answer.query), None)
        else:
            query = Tile(answer.query, pictures.get(answer.row), bank.name(answer.row)[1])
        near = [Tile(near.key, pictures.get(near.row), near.label, near.similarity) for near in answer.neighbours]
        tiles.append((query, near))
    facts = [f"{len(bank):,} vectors of {bank.width} numbers", str(options.vectors), f"{options.index} search"]
    title = answers[0].query if len(answers) == 1 else f"{len(answers):,} queries"
    write_gallery(out, title, facts, tiles, left_out=len(answers) - len(shown))
    return remarks


def images_of(bank: "Bank", source: str | None) -> tuple["Images | None", list[str]]:
    """The images that were embedded, from `source`, else from where they were recorded, and remarks; None for a bank that
    has thumbnails of its own. Raises DataError for a source that was named and cannot be opened."""
    recorded = bank.meta.get("source")
    if source is None and (not isinstance(recorded, str) or bank.picture(0) is not None):
        return None, []
    place = source or str(recorded)
    try:
        images = open_images(place, {"size": PICTURE, "resident": False, "labels": "none"})
    except DiptychError as error:
        if source is not None:
            raise
        return None, [f"the page has no pictures, {error}: name their source as --images"]
    changed = bank.meta.get("images_sha256") not in (None, images.fingerprint)
    return images, [f"{place} has changed since it was embedded; pictures are shown by their names"] * changed


def query_picture(photos: "Images | None", key: str) -> "np.ndarray | None":
    """The image of a query, (H, W, 3) uint8; None where it cannot be read any more."""
    from diptych.data.untrusted import BadImage

    try:
        return None if photos is None else photos.load(list(photos.keys).index(key)).permute(1, 2, 0).numpy()
    except BadImage:
        return None
