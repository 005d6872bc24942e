"""A trained encoder at work: what it is worth on labelled images, and the vectors it makes of any."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from diptych import pictures
from diptych.diagnose import diagnose
from diptych.embed import embeddings, raw_pixels, save_embeddings
from diptych.errors import RecipeError
from diptych.evaluate import chance, check_classes, nearest
from diptych.images import Images
from diptych.lifecycle import bytes_of, choose_device
from diptych.progress import Progress
from diptych.protocols import PROTOCOLS, Subject, Task
from diptych.random_at import random_at
from diptych.run import Run, is_run, read_lines
from diptych.supervised import names, readable, stream
from diptych.views import View
from diptych.weights import Preprocessing, load

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


def embed_both(encoder: nn.Module, train: Images, test: Images, expected: Preprocessing, device: torch.device,
               progress: Progress, name: str) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Embeddings of both sets, the progress over the two."""
    total, vectors = len(train) + len(test), []
    for images, before in ((train, 0), (test, len(train))):

        def tell(done: int, before: int = before) -> None:
            progress(before + done, f"{name} encoder of {total:,} images")

        vectors.append(
            embeddings(
                encoder,
                stream(images),
                expected.mean,
                expected.std,
                expected.size,
                device=device,
                progress=tell,
                resize=expected.resize,
            )
        )
    return vectors[0], vectors[1]


def keep_pictures(run: Run, bank: Tensor, queries: Tensor, train: Images, test: Images, seed: int) -> None:
    """Arrays for the report: a map of some test images, and the nearest training images of a few."""
    order = torch.randperm(len(queries), generator=random_at(seed, "pictures"))[:MAPPED]
    xy, made_by = pictures.map_2d(queries[order].numpy(), seed)
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


def embed(run: Run | str | Path, images: Images, *, out: str | Path | None = None, device: str = "auto",
          encoder: nn.Module | None = None, show: bool = True) -> Tensor:  # fmt: skip
    """The embeddings of images, (M, E) float32, in their order; with `out`, also as a folder of vectors.npy, index.jsonl
    (key, label, status: a bad image keeps its row there and has no vector) and meta.json.

    Raises CheckpointError when there is no encoder, DataError for images that cannot be read, OutputError for a folder
    that is already there.
    """
    folder = run.folder if isinstance(run, Run) else Path(run)
    trained = load(folder, encoder)
    expected: Preprocessing = trained.preprocessing  # pyrefly: ignore[bad-assignment]
    with Progress("embed", len(images), show) as progress:
        vectors = embeddings(trained, stream(images), expected.mean, expected.std, expected.size,
                             device=choose_device(device), progress=progress, resize=expected.resize)  # fmt: skip
    if out is not None:
        reasons = {row["key"]: row["reason"] for row in images.failed}
        named = {} if images.labels is None else dict(zip(images.keys, names(images, "embedded"), strict=True))
        keys = list(images.all_keys)
        meta = {"encoder": str(folder), "preprocessing": vars(expected)}
        save_embeddings(out, vectors, keys, [named.get(key) for key in keys], [reasons.get(key) for key in keys], meta)
    return vectors


def view_sheet(images: Images, views: Sequence[View], count: int, seed: int) -> Image.Image:
    """The contact sheet of `diptych views`: each image beside its two views."""
    chosen = torch.randperm(len(images), generator=random_at(seed, "sheet"))[:count]
    _, originals = next(images.batches(chosen, count, replace=(seed, 0)))
    made = [view.display(view(originals, random_at(seed, "views", 0, i))) for i, view in enumerate(views[:2])]
    return pictures.contact_sheet(bytes_of(originals / 255), bytes_of(made[0]), bytes_of(made[1]))


def table(lines: list[dict]) -> str:
    """The lines of `evaluate` for a terminal: a row a subject, a column a protocol, then the verdict."""
    scores = [line for line in lines if "accuracy" in line]
    columns = list(dict.fromkeys(line["protocol"] for line in scores))
    rows = list(dict.fromkeys(line["subject"] for line in scores))
    found = {(line["subject"], line["protocol"]): line for line in scores}
    wide = {name: max(20, len(name) + 2) for name in columns}
    text = [f"{'accuracy, %':<14}" + "".join(f"{name:>{wide[name]}}" for name in columns)]
    for row in rows:
        cells = [f"{cell_of(found.get((row, column))):>{wide[column]}}" for column in columns]
        text.append(f"{row:<14}" + "".join(cells))
    one = scores[-1]
    text.append(f"{one['test_images']:,} test and {one['train_images']:,} training images of {one['classes']} classes; "
                "[95 % interval over the test images]")  # fmt: skip
    for line in scores:
        if each := line["details"].get("accuracies"):
            told = ", ".join(f"{100 * accuracy:.1f}" for accuracy in each)
            spread = f"{100 * line['details']['spread']:.1f}"
            text.append(f"{line['subject']}: mean of {len(each)} seeds, standard deviation {spread} ({told})")
    return "\n".join(text + [verdict(line["diagnosis"]) for line in lines if "diagnosis" in line])


def verdict(diagnosis: dict) -> str:
    """The verdict, why, and what to try, a line each."""
    first = "; ".join([f"verdict: {diagnosis['verdict']}", *diagnosis["reasons"]])
    return "\n  try: ".join([first, *diagnosis["advice"]])


def finished(run: Run) -> str:
    """What a run that has ended says: its folder, the verdict, what to do next."""
    told = [line["diagnosis"] for line in read_lines(run.folder / "evaluations.jsonl") if "diagnosis" in line]
    after = f"next: diptych evaluate {run.folder} --train SOURCE --test SOURCE, or diptych report {run.folder}"
    return "\n".join([str(run.folder), *map(verdict, told[-1:]), after])


def cell_of(line: dict | None) -> str:
    return (
        ""
        if line is None
        else f"{100 * line['accuracy']:.1f} [{100 * line['interval'][0]:.1f}-{100 * line['interval'][1]:.1f}]"
    )
