"""Label images by a linear head fitted on labelled images, and write a table with one row per image.

z: embedding, N: images, E: width, K: classes.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.base.device import choose_device
from diptych.base.files import write_file
from diptych.base.terminal import ProgressBar
from diptych.data.images import Images
from diptych.downstream.classifier import class_names, stream
from diptych.downstream.embed import embed_sets
from diptych.downstream.spreadsheet import as_csv, as_parquet, require_table
from diptych.embeddings.nearest import checked_embeddings
from diptych.embeddings.paired import paired_difference
from diptych.embeddings.probe import PENALTIES, fit_probe, split
from diptych.embeddings.scores import accuracy_interval, check_classes
from diptych.networks.inference import centred, raw_pixels
from diptych.runs.encoder import Trained, as_trained, precision_for
from diptych.runs.run import Run
from diptych.runs.subjects import RAW_PIXELS, UNTRAINED

TABLE_COLUMNS = ("path", "label", "probability", "reason")
KINDS = ("string", "string", "double", "string")
LOGIT_FACTORS = torch.logspace(-2, 2, 401, dtype=torch.float64)  # candidates; 1 leaves the logits unchanged


@dataclass(frozen=True)
class HeldOut:
    """Accuracy on a held-out fifth of each class, of a head fitted on the other labelled images."""

    accuracy: float
    interval: tuple[float, float]  # 95 %, over the choice of images
    fitted_on: int
    judged_on: int
    largest_class: float  # accuracy of always predicting the most frequent class
    right: Tensor = field(repr=False, compare=False)  # (judged_on,) bool, of each held-out image


@dataclass(frozen=True)
class Classified:
    """Rows (path, label, probability, reason), one per image; as text, a readable summary."""

    rows: list[tuple[str, str | None, float | None, str | None]]
    held_out: HeldOut | None
    labelled: int
    sharpness: float  # factor on the logits
    references: dict[str, HeldOut] = field(
        default_factory=dict
    )  # raw pixels and the untrained encoder, on the same images

    @property
    def counts(self) -> Counter:
        """Number of images of each class, and under None of images that could not be read."""
        return Counter(label for _, label, _, _ in self.rows)

    def __str__(self) -> str:
        counts = self.counts
        failed = counts.pop(None, 0)
        text = [f"{len(self.rows):,} images, {failed:,} of them unreadable (without a label)"]
        text += [
            f"  {label}  {count:,}" for label, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        ]
        text.append(f"labelled by a linear head fitted on all {self.labelled:,} labelled images")
        if self.held_out is None:
            return "\n".join(
                [*text, "its accuracy is not known: with one labelled image per class nothing can be held out"]
            )
        test = self.held_out
        low, high = (100 * end for end in test.interval)
        text.append(f"held-out accuracy {100 * test.accuracy:.1f} % [{low:.1f}-{high:.1f}], of a similar head fitted on "
                    f"{test.fitted_on:,} of them and tested on the other {test.judged_on:,}; guessing the most frequent class: "
                    f"{100 * test.largest_class:.1f} %")  # fmt: skip
        text += [beside(test, name, other) for name, other in self.references.items()]
        text.append("valid for new images like the labelled ones; accuracy may be lower for another place or camera")
        return "\n".join(text)


def beside(test: HeldOut, name: str, other: HeldOut) -> str:
    """A line about a reference: its accuracy, and how much better the encoder is on the same held-out images."""
    paired = paired_difference(test.right, other.right)
    low, high = (100 * end for end in paired.interval)
    verdict = "" if low > 0 else "; the difference may be chance" if high >= 0 else "; do not use this encoder"
    name = "the untrained encoder" if name == UNTRAINED else name
    return (f"  the same head on {name}: {100 * other.accuracy:.1f} %; gain of this encoder: {100 * paired.difference:+.1f} "
            f"points [{low:+.1f} to {high:+.1f}]{verdict}")  # fmt: skip


def classify(
    trained: Trained | Run | str | Path,
    images: Images,
    train: Images,
    *,
    out: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
    show: bool = True,
) -> Classified:
    """Label `images` by a linear head on the embeddings of `train`; with `out`, also write a .csv or .parquet file.

    trained: an encoder (`diptych.load`), or the run or encoder folder that holds one.
    The head is the linear probe of `evaluate`, fitted on all labelled images. First, a similar head is fitted on four
    fifths of each class to choose the penalty of both. The remaining fifth gives the reported accuracy, and the factor on
    the logits that calibrates the probabilities (temperature scaling, Guo et al. 2017).

    Output, labels and classes are checked before the first image is embedded. Raises OutputError for another file
    extension, or a file that exists or cannot be written, CheckpointError when there is no encoder, DataError for images
    or labels that cannot be used.
    """
    file = None if out is None else require_table(Path(out))
    trained, where = as_trained(trained), choose_device(device)
    check_classes(class_names(train, "labelled"))
    with ProgressBar("classify", len(train) + len(images), show) as progress:
        z_ME, z_NE = embed_sets(
            trained,
            (train, images),
            device=where,
            precision=precision_for("auto", trained, where),
            progress=progress,
            what="encoder",
        )
        progress.say("fitting the head ...")
        known = labels_of_embedded(train)
        labels, probabilities, held_out, sharpness = label(z_ME, known, z_NE, seed)
        references = {} if held_out is None else references_of(trained, train, known, seed, where)
    reasons = {row["key"]: row["reason"] for row in images.failed}
    answers, rows = iter(zip(labels, probabilities, strict=True)), []
    for key in images.all_keys:
        answer, probability = (None, None) if key in reasons else next(answers)
        rows.append((key, answer, probability, reasons.get(key)))
    if file is not None:
        write_file(file, table_of(rows, file.suffix))
    return Classified(rows, held_out, len(z_ME), sharpness, references)


def references_of(
    trained: Trained, train: Images, known: Sequence[str], seed: int, device: torch.device
) -> dict[str, HeldOut]:
    """The held-out accuracy of the same head on raw pixels and, where the run has kept it, on the untrained encoder."""
    spaces = {RAW_PIXELS: raw_pixels(stream(train, device), *centred(trained.preprocessing), output_device=device)}
    if (untrained := trained.untrained()) is not None:
        spaces[UNTRAINED] = untrained(stream(train, device), device=device, output_device=device)
    numbers = class_numbers(known, check_classes(known)).to(device)
    judged = {name: judge_held_out(z_ME, numbers, seed) for name, z_ME in spaces.items()}
    return {name: result[0] for name, result in judged.items() if result is not None}


def labels_of_embedded(train: Images) -> list[str]:
    """The class of each labelled image that has an embedding: a stream skips bad images when it reads them."""
    bad = {row["key"] for row in train.failed}
    return [label for key, label in zip(train.keys, class_names(train, "labelled"), strict=True) if key not in bad]


def label(
    train: Tensor, train_labels: Sequence[str], z_NE: Tensor, seed: int = 0
) -> tuple[list[str], list[float], HeldOut | None, float]:
    """Labels and probabilities of embeddings (N, E) from labelled ones, the held-out accuracy, and the factor on the logits.

    Raises DataError for embeddings that are not finite or of another width, and for fewer than two classes.
    """
    z_ME = checked_embeddings(train, "labelled")
    z_NE = checked_embeddings(z_NE, "new", z_ME)
    classes = check_classes(train_labels)
    y_M = class_numbers(train_labels, classes).to(z_ME.device)
    held_out, sharpness, penalties = None, 1.0, PENALTIES
    if (judged := judge_held_out(z_ME, y_M, seed)) is not None:
        held_out, penalty, scores = judged
        penalties, sharpness = (penalty,), best_factor(scores, y_M[split(y_M, seed)[1]])
    scores = fit_probe(z_ME, y_M, len(classes), penalties, seed).scores(z_NE)
    probability, winner = (sharpness * scores).softmax(1).max(1)
    return [classes[i] for i in winner.tolist()], probability.tolist(), held_out, sharpness


def class_numbers(names: Sequence[str], classes: Sequence[str]) -> Tensor:
    position = {name: i for i, name in enumerate(classes)}
    return torch.tensor([position[name] for name in names])


def judge_held_out(z_ME: Tensor, y_M: Tensor, seed: int) -> tuple[HeldOut, float, Tensor] | None:
    """A head fitted on four fifths of each class, on the rest: its accuracy, its penalty and its scores; None without a rest."""
    fitted, held = split(y_M, seed)
    if not len(held):
        return None
    probe = fit_probe(z_ME[fitted], y_M[fitted], int(y_M.max()) + 1, seed=seed)
    scores = probe.scores(z_ME[held])
    right = scores.argmax(1) == y_M[held]
    largest = torch.bincount(y_M[fitted]).argmax()
    held_out = HeldOut(right.double().mean().item(), accuracy_interval(right), len(fitted), len(held),
                       (y_M[held] == largest).double().mean().item(), right.cpu())  # fmt: skip
    return held_out, probe.penalty, scores


def best_factor(scores_NK: Tensor, y_N: Tensor) -> float:
    """The factor from 0.01 to 100 on logits (N, K) that maximises the likelihood of the labels.

    One right and one wrong prediction are added to the N images (Platt 1999), so that few images that are all right do
    not give certainty.
    """
    doubt = 2 / (len(y_N) + 2)
    losses = [F.cross_entropy(factor * scores_NK.double(), y_N, label_smoothing=doubt) for factor in LOGIT_FACTORS]
    return LOGIT_FACTORS[torch.stack(losses).argmin()].item()


def table_of(rows: Sequence[tuple], ending: str) -> bytes:
    """The rows as .csv or .parquet."""
    return as_csv(TABLE_COLUMNS, rows, digits=6) if ending == ".csv" else as_parquet(TABLE_COLUMNS, rows, KINDS)
