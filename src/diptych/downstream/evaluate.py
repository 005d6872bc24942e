"""A trained encoder at work: what it is worth on labelled images, and the vectors it makes of any."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from diptych.base.device import choose_device
from diptych.base.errors import RecipeError
from diptych.base.random_at import random_at
from diptych.base.terminal import Progress
from diptych.data.images import Images
from diptych.downstream.classifier import names, readable, stream
from diptych.downstream.embed import embed_both
from diptych.downstream.frozen import Subject, Task
from diptych.downstream.protocols import PROTOCOLS
from diptych.embeddings import plane
from diptych.embeddings.diagnose import diagnose
from diptych.embeddings.nearest import nearest
from diptych.embeddings.scores import chance, check_classes
from diptych.networks.inference import raw_pixels
from diptych.reporting import pictures
from diptych.runs.encoder import Preprocessing, load
from diptych.runs.run import Run, is_run

DEFAULT = ("knn", "linear")  # quick, and made of embeddings alone
MAPPED, QUERIES, NEIGHBOURS = (
    600,
    10,
    6,
)  # test images on the report's map; rows and columns of its neighbours
THUMBNAIL = 48  # pixels


def evaluate(
    run: Run | str | Path,
    train: Images,
    test: Images,
    *,
    k: int = 200,
    temperature: float = 0.1,
    protocols: Sequence[str] = DEFAULT,
    baselines: bool = True,
    seed: int = 0,
    device: str = "auto",
    encoder: nn.Module | None = None,
    show: bool = True,
) -> list[dict]:
    """Judge the encoder of a run (or of an encoder folder) on labelled images; a run keeps the result for its report.

    Returns the lines of evaluations.jsonl: one a protocol and subject ("chance", "raw pixels", "untrained", "trained"),
    with accuracy, 95 % interval and sizes, and one with the diagnosis of the test images' embeddings. `protocols` are names
    of `diptych.protocols.PROTOCOLS`. The probe's regularisation is chosen on a held-out part of `train`; `test` is looked
    at once. `encoder` is needed where the trained network was the user's own module.

    Raises DataError when labels are missing or `test` has classes that `train` lacks, CheckpointError when there is no
    encoder, RecipeError for an unknown protocol.
    """
    if unknown := [name for name in protocols if name not in PROTOCOLS]:
        raise RecipeError(f"there is no protocol {unknown[0]!r}; there are {', '.join(PROTOCOLS)}")
    folder, where = run.folder if isinstance(run, Run) else Path(run), choose_device(device)
    train, test = readable(train), readable(test)
    vectors: dict[str, tuple[Tensor, Tensor]] = {}
    rows: list[dict] = []
    with Progress("evaluate", show=show) as progress:
        for subject, expected in subjects(folder, train, test, baselines, where, encoder, progress):
            vectors[subject.name] = subject.train, subject.test
            bank_labels, labels = names(train, "training"), names(test, "test")
            check_classes(bank_labels, labels)
            task = Task(train, test, bank_labels, labels, expected, where, k, temperature, seed, progress)
            if not rows:
                rows = [chance(labels).row("chance") | {"protocol": protocol} for protocol in protocols]
            for protocol in protocols:
                progress.say(f"{protocol} accuracy of {subject.name} ...")
                made = PROTOCOLS[protocol](subject, task)
                scratch = (protocol, subject.name) == ("finetune", "untrained")
                rows += [] if made is None else [made.row("from scratch" if scratch else subject.name)]
    lines = sorted(rows, key=lambda row: list(protocols).index(row["protocol"]))  # stable: subjects keep their order
    bank, queries = vectors["trained"]
    before = vectors["untrained"][1] if "untrained" in vectors else None
    lines.append({"diagnosis": vars(diagnose(queries, *training_signs(folder), untrained=before))})
    if is_run(folder):
        Run(folder).append("evaluations.jsonl", lines)
        keep_pictures(Run(folder), bank, queries, train, test, seed)
    return lines


def training_signs(folder: Path) -> tuple[tuple[np.ndarray, np.ndarray] | None, float | None]:
    """The projections of two views and the last loss that a run left: they may show a collapse that embeddings hide."""
    path = folder / "pictures" / "projections.npz"
    if not path.is_file():
        return None, None
    with np.load(path, allow_pickle=False) as kept:
        epochs = Run(folder).lines("epoch")
        return (kept["z1"], kept["z2"]), epochs[-1]["loss"] if epochs else None


def subjects(
    folder: Path, train: Images, test: Images, baselines: bool, device: torch.device, encoder: nn.Module | None,
    progress: Progress,
) -> Iterator[tuple[Subject, Preprocessing]]:  # fmt: skip
    """The trained encoder and, when asked, what it is compared with; a subject's network is to be used before the next."""
    trained = load(folder, encoder)
    expected: Preprocessing = trained.preprocessing  # pyrefly: ignore[bad-assignment]
    if baselines:
        flat = [raw_pixels(stream(each), expected.mean, expected.std) for each in (train, test)]
        yield Subject("raw pixels", flat[0], flat[1], None, folder), expected
        if (folder / "untrained" / "config.json").is_file():
            weights = {name: value.clone() for name, value in trained.state_dict().items()}
            untrained = load(folder / "untrained", encoder)
            both = embed_both(untrained, train, test, expected, device, progress, "untrained")
            yield Subject("untrained", *both, untrained, folder), expected
            trained.load_state_dict(weights)  # of the user's own module there is only one: the two took turns in it
    both = embed_both(trained, train, test, expected, device, progress, "trained")
    yield Subject("trained", *both, trained, folder), expected


def keep_pictures(run: Run, bank: Tensor, queries: Tensor, train: Images, test: Images, seed: int) -> None:
    """Arrays for the report: a map of some test images, and the nearest training images of a few."""
    order = torch.randperm(len(queries), generator=random_at(seed, "pictures"))[:MAPPED]
    xy, made_by = plane.map_2d(queries[order].numpy(), seed)
    classes = test.classes or []
    run.picture("map", xy=xy, labels=np.array([(test.labels or [-1] * len(test))[int(i)] for i in order]),
                thumbnails=thumbnails(test, order), classes=np.array(classes), made_by=np.array(made_by))  # fmt: skip
    few = order[:QUERIES]
    similarity, index = nearest(queries[few], bank, NEIGHBOURS)
    shown = thumbnails(train, index.flatten())
    known = {name: i for i, name in enumerate(classes)}
    labels = [known.get(name, -1) for name in names(train, "training")]
    run.picture("neighbours", query=thumbnails(test, few), similarity=similarity.numpy(),
                neighbours=shown.reshape(*index.shape, *shown.shape[1:]),
                query_labels=np.array([(test.labels or [])[int(i)] for i in few]),
                neighbour_labels=np.array([[labels[int(i)] for i in row] for row in index]),
                query_keys=np.array([test.keys[int(i)] for i in few]), classes=np.array(classes))  # fmt: skip


def thumbnails(images: Images, rows: Tensor) -> np.ndarray:
    """Some images as (n, t, t, 3) uint8, t at most THUMBNAIL."""
    some = torch.stack([images.load(int(i)) for i in rows]).permute(0, 2, 3, 1).numpy()
    return pictures.thumbnails(some, THUMBNAIL)
