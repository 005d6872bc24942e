"""Search by image in saved embeddings: exact, or by faiss where it is installed. M: bank, N: queries, E: width."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diptych.base.errors import CheckpointError, DataError, RecipeError
from diptych.data.decode import decode
from diptych.data.images import Images, images
from diptych.data.source import MAX_BYTES, key_of
from diptych.data.untrusted import BadImage, open_regular
from diptych.downstream.classifier import IMAGES_PER_BATCH
from diptych.downstream.embed import preprocessing_record
from diptych.downstream.vectors import Bank
from diptych.embeddings.nearest import nearest_in_blocks, not_finite
from diptych.runs.encoder import Trained, precision_for, weights_sha256

INDEXES = ("exact", "faiss")
HNSW_LINKS, HNSW_BREADTH = 32, 128  # of a node; of a search: recall 0.998 of ten neighbours at 50,000 x 256


@dataclass(frozen=True)
class Neighbour:
    """An image of the bank. similarity: its cosine with the query."""

    row: int
    key: str
    label: str | None
    similarity: float


@dataclass(frozen=True)
class Answer:
    """A query and its neighbours, the most similar first. row: of the bank, where the query is in it."""

    query: str
    neighbours: list[Neighbour]
    row: int | None = None


def search(bank: Bank, queries: Tensor, names: list[str], *, top: int = 20, index: str = "exact") -> list[Answer]:
    """The `top` images of the bank most similar to each query (N, E).

    Raises DataError for queries of another width, and for embeddings that are not finite, RecipeError for an index that is
    not known or not installed.
    """
    check_options(top, index)
    if queries.shape[1] != bank.width:
        raise DataError(
            f"the query is {queries.shape[1]} wide, the saved embeddings {bank.width}; embed both with one encoder"
        )
    top = min(top, len(bank))
    if index == "exact":
        similarities, rows = nearest_in_blocks(queries, bank.blocks, top)
    else:
        similarities, rows = nearest_by_faiss(queries, bank, top)
    return [
        Answer(name, neighbours(bank, *part))
        for name, *part in zip(names, similarities.tolist(), rows.tolist(), strict=True)
    ]


def search_row(bank: Bank, row: int, *, top: int = 20, index: str = "exact") -> Answer:
    """The neighbours of a row of the bank, itself excluded. Raises DataError for a row that it has not."""
    if not 0 <= row < len(bank):
        raise DataError(f"there is no row {row}; the saved embeddings have rows 0 to {len(bank) - 1}")
    name, _ = bank.name(row)
    (answer,) = search(bank, bank.vector(row), [name], top=top + 1, index=index)
    others = [neighbour for neighbour in answer.neighbours if neighbour.row != row]
    return Answer(name, others[:top], row)


def check_options(top: int, index: str) -> None:
    """Raises RecipeError, before anything is read or embedded."""
    if top < 1:
        raise RecipeError(f"--top is the number of neighbours, at least 1; got {top}")
    if index not in INDEXES:
        raise RecipeError(f"--index {index!r} is not one of {', '.join(INDEXES)}")
    if index == "faiss":
        faiss()


def neighbours(bank: Bank, similarities: list[float], rows: list[int]) -> list[Neighbour]:
    return [Neighbour(row, *bank.name(row), s) for s, row in zip(similarities, rows, strict=True) if row >= 0]


def nearest_by_faiss(queries: Tensor, bank: Bank, k: int) -> tuple[Tensor, Tensor]:
    """Approximate neighbours by a graph (HNSW) that is built in memory: worth its time for many queries of one bank."""
    library = faiss()
    graph = library.IndexHNSWFlat(bank.width, HNSW_LINKS, library.METRIC_INNER_PRODUCT)
    graph.hnsw.efSearch = max(HNSW_BREADTH, 2 * k)
    for block in bank.blocks():
        if bad := not_finite(block):
            raise DataError(f"{bad} of the saved embeddings hold NaN or infinity; the encoder has diverged")
        graph.add(directions(block))
    similarities, rows = graph.search(directions(queries), k)
    return torch.from_numpy(similarities), torch.from_numpy(rows)


def directions(z_NE: Tensor) -> np.ndarray:
    return np.ascontiguousarray(torch.nn.functional.normalize(z_NE.float(), dim=1).numpy())


def faiss():
    try:
        import faiss  # an extra
    except ImportError as error:
        raise RecipeError('--index faiss needs faiss: pip install "diptych[faiss]", or use --index exact') from error
    return faiss


# ---- queries that are images


class OneImage:
    """A source of one image file."""

    def __init__(self, file: Path):
        self.file = file
        try:
            with open(file, "rb", opener=open_regular) as opened:
                self.data = opened.read(MAX_BYTES + 1)
        except OSError as error:
            raise DataError(
                f"{file} cannot be read ({(error.strerror or str(error)).lower()}); name an image"
            ) from None
        if len(self.data) > MAX_BYTES:
            raise DataError(f"{file} has more than {MAX_BYTES >> 20} MiB; name an image")

    def __len__(self) -> int:
        return 1

    def key(self, i: int) -> str:
        return key_of(bytes(self.file))

    def label(self, i: int) -> str | None:
        return None

    def read(self, i: int) -> bytes:
        return self.data


def one_image(file: Path, options: dict) -> Images:
    """An image file as a set of one. options: of `images`. Raises DataError, also for a file that is no image."""
    source = OneImage(file)
    try:
        decode(source.data)
    except BadImage as error:
        raise DataError(f"{file} is not an image ({error.reason}); name an image, a folder, a row or a key") from None
    return images(source, **options)


def embed_queries(trained: Trained, photos: Images, device: torch.device) -> tuple[Tensor, list[str]]:
    """Embeddings (N, E) and names of the readable images of a query."""
    vectors, names = [], []
    for rows, pixels in photos.read(range(len(photos)), IMAGES_PER_BATCH):
        if len(rows):
            vectors.append(trained(pixels, device=device, precision=precision_for("auto", trained, device)))
            names += [photos.keys[row] for row in rows.tolist()]
    if not vectors:
        raise DataError("no image of the query can be read; `diptych doctor SOURCE` says why")
    return torch.cat(vectors), names


def require_same_encoder(bank: Bank, trained: Trained, path: Path) -> None:
    """Raise CheckpointError unless the encoder and its preprocessing are those of the saved embeddings."""
    require_encoder(bank, path)
    for what, mine in (("encoder_sha256", weights_sha256(trained)),
                       ("preprocessing", preprocessing_record(trained.preprocessing))):  # fmt: skip
        if bank.meta.get(what) != mine:
            name = "weights" if what == "encoder_sha256" else what
            raise CheckpointError(f"{path} was made by another encoder than {trained.folder} ({name} differ): name the one that "
                                  f"made it ({bank.meta.get('encoder')}) as --run, or embed again")  # fmt: skip


def require_encoder(bank: Bank, path: Path) -> None:
    """Raise DataError where the saved embeddings do not say which encoder made them, as those of `save_embeddings`."""
    if bank.meta.get("encoder_sha256") is None:
        raise DataError(f"{path} does not say which encoder made it: search by a row or a key, or embed again")


def recorded_encoder(bank: Bank, path: Path) -> Path:
    """Where the encoder of the saved embeddings was. Raises CheckpointError if it is not there any more, DataError for
    embeddings of an unknown encoder."""
    require_encoder(bank, path)
    name = bank.meta.get("encoder")
    if isinstance(name, str) and Path(name).is_dir():
        return Path(name)
    raise CheckpointError(f"{path} was made by {name}, which is not there: name the encoder as --run")


def pictures_of(bank: Bank, rows: set[int], photos: Images | None) -> Iterator[tuple[int, np.ndarray]]:
    """(row, (H, W, 3) uint8) of those rows of the bank whose pictures can be had: by key from `photos`, else thumbnails."""
    if photos is None:
        for row in sorted(rows):
            data = bank.picture(row)
            if isinstance(data, bytes):
                try:
                    yield row, decode(data)
                except BadImage:
                    continue
        return
    row_of = {bank.name(row)[0]: row for row in rows}
    for i, key in enumerate(photos.keys):
        if key in row_of:
            try:
                yield row_of.pop(key), photos.load(i).permute(1, 2, 0).numpy()
            except BadImage:
                continue
