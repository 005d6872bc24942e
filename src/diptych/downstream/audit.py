"""Audit a set of images: what is in it twice, where it does not belong, or under a wrong label."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diptych.base.device import choose_device
from diptych.base.errors import DataError
from diptych.base.terminal import ProgressBar, counted
from diptych.data.images import Images
from diptych.data.images import images as open_pixels
from diptych.downstream.classifier import IMAGES_PER_BATCH
from diptych.downstream.copies import find_copies
from diptych.downstream.findings import LEAST_LABELS, Audit, Finding, accumulated, last_within
from diptych.downstream.inspection import BLANK, Inspection, inspect, odd_sizes
from diptych.embeddings.duplicates import equal_groups, groups_of, why_undecided
from diptych.embeddings.label_errors import suspect_labels
from diptych.embeddings.outliers import expected_ordinary, outlier_scores
from diptych.reporting.audit_page import TITLES
from diptych.runs.encoder import Trained, as_trained
from diptych.runs.run import Run
from diptych.training.quick import FEWEST, quick

TRAIN, TEST = "train", "test"


@dataclass(frozen=True)
class EmbeddedImages:
    """The n images that are compared by embedding: one of each group of exact duplicates in a set, and none that is blank.

    places: their numbers in `Audit.places` (n,). thumbnails: (n, 3, 32, 32) uint8. vectors: their embeddings (n, E).
    mirrored: those of their mirror images, None where these are the same.
    """

    places: Tensor
    thumbnails: Tensor
    vectors: Tensor
    mirrored: Tensor | None

    def __len__(self) -> int:
        return len(self.places)

    def finite(self) -> "EmbeddedImages":
        """Without the images whose embeddings hold NaN or infinity."""
        good = self.vectors.isfinite().all(1)
        if self.mirrored is not None:
            good &= self.mirrored.isfinite().all(1)
        mirrored = None if self.mirrored is None else self.mirrored[good]
        return EmbeddedImages(self.places[good], self.thumbnails[good], self.vectors[good], mirrored)


def audit(
    images: Images,
    *,
    test: Images | None = None,
    trained: Trained | Run | str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
    show: bool = True,
) -> Audit:
    """Audit images; with `test`, of a training and a test set, and of what leaks from one to the other.

    trained: the encoder (`diptych.load`), or the run or encoder folder that holds one; None: the closed form of these
    images (`diptych.quick`), from 50 images on. Every list is ranked, and says how many of its first lines are expected to
    be wrong: near duplicates by `copies.find_copies`, outliers by `embeddings.outliers`, labels by
    `embeddings.label_errors`. The others are facts. Files that cannot be read are listed, however many. Raises DataError
    if no image can be read, CheckpointError when there is no encoder.
    """
    network = None if trained is None else as_trained(trained)
    where = choose_device(device)
    sets = [("", images)] if test is None else [(TRAIN, images), (TEST, test)]
    with ProgressBar("audit", sum(len(part) for _, part in sets), show) as progress:
        seen = [inspect(part, progress) for _, part in sets]
        places = [(of, int(row)) for of, one in enumerate(seen) for row in one.rows]
        result = Audit(sets, places)
        plain_lists(result, seen)
        distinct = distinct_images(result, seen)
        thumbnails = torch.cat([one.thumbnails for one in seen])
        entire = embed_distinct(
            result, distinct, thumbnails[distinct], network, device=where, seed=seed, progress=progress
        )
        compared = None if entire is None else entire.finite()
        if entire is not None and compared is not None and (bad := len(entire) - len(compared)):
            result.notes.append(f"{bad:,} embeddings are not finite: these images are in no list")
        if compared is not None and len(compared) > 1:
            progress.say("compare embeddings and pixels ...")
            near_list(result, compared, seed)
            outlier_list(result, compared)
            label_list(result, compared, seed)
    result.lists = {name: result.lists[name] for name in TITLES if name in result.lists}
    return result


def plain_lists(result: Audit, seen: Sequence[Inspection]) -> None:
    """The lists that need no encoder."""
    digests = [digest for one in seen for digest in one.digests]
    files = [file for one in seen for file in one.files]
    exact: list[Finding] = []
    for number, rows in enumerate(equal_groups(digests), 1):
        for row in rows:
            same = files[row] is not None and files[row] == files[rows[0] if row != rows[0] else rows[1]]
            other = rows[0] if row != rows[0] else rows[1]
            remark = "the same file" if same else "the same pixels"
            exact.append(Finding(result.name(row), row, 1.0, 0.0, other, number, remark))
    result.lists["exact duplicates"] = exact
    if len(result.sets) > 1:
        result.lists["leaks"] = leaks_of(result, exact)
    contrast = np.concatenate([one.contrast for one in seen])
    blank = np.flatnonzero(contrast <= BLANK)
    result.lists["blank"] = [Finding(result.name(row), row, float(contrast[row])) for row in blank.tolist()]
    sizes = np.concatenate([one.sizes for one in seen])
    result.lists["odd sizes"] = [
        Finding(result.name(row), row, factor, remark=f"{sizes[row][0]} x {sizes[row][1]} pixels")
        for row, factor in odd_sizes(sizes)
    ]
    result.lists["unreadable"] = [
        Finding(entry["key"], remark=entry["reason"]) for one in seen for entry in one.unreadable
    ]


def leaks_of(result: Audit, findings: Sequence[Finding]) -> list[Finding]:
    """The test images of duplicates whose other image is a training image, best first."""
    groups: dict[int | None, list[Finding]] = {}
    for finding in findings:
        groups.setdefault(finding.group, []).append(finding)
    leaks = []
    for members in groups.values():
        places = [finding.place for finding in members if finding.place is not None]
        known = [place for place in places if result.set_of(place) == TRAIN]
        for finding in members if known else ():
            if finding.place is not None and result.set_of(finding.place) == TEST:
                other = finding.other if finding.other in known else known[0]
                leaks.append(Finding(finding.file, finding.place, finding.score, finding.expected_wrong, other,
                                     remark=finding.remark))  # fmt: skip
    return leaks


def distinct_images(result: Audit, seen: Sequence[Inspection]) -> Tensor:
    """The images that are compared by embedding: one of each group of exact duplicates in a set, and none that is blank."""
    first: dict[tuple[int, bytes], int] = {}
    digests = [(of, digest) for of, one in enumerate(seen) for digest in one.digests]
    for place, digest in enumerate(digests):
        first.setdefault(digest, place)
    blank = {finding.place for finding in result.lists["blank"]}
    return torch.tensor([place for place in first.values() if place not in blank], dtype=torch.int64)


def embed_distinct(
    result: Audit,
    distinct: Tensor,
    thumbnails: Tensor,
    trained: Trained | None,
    *,
    device: torch.device,
    seed: int,
    progress: ProgressBar,
) -> EmbeddedImages | None:
    """The images `distinct` with their embeddings; None, and a note, where there are too few images for an encoder."""
    if trained is None and len(distinct) < FEWEST:
        result.notes.append(f"fewer than {FEWEST} different images: no encoder can be computed from them, so duplicates are "
                            "exact ones only, and outliers and labels are left out; give --run")  # fmt: skip
        return None
    if len(distinct) < 2:
        result.notes.append("fewer than two different images that are not blank: there is nothing to compare")
        return None
    if trained is None:
        progress.say("closed-form encoder of these images ...")
        trained = quick(open_pixels(thumbnails), seed=seed, device=str(device), show=False)
        result.encoder = "the closed form of these images (diptych quick)"
        batches: Iterator[Tensor] = iter(thumbnails.split(IMAGES_PER_BATCH))
    else:
        result.encoder = str(trained.folder or type(trained.encoder).__name__)
        batches = batches_of(result, distinct)
    sample = thumbnails[:64]
    same = torch.allclose(trained(sample, device=device), trained(sample.flip(3), device=device), rtol=1e-3, atol=1e-5)
    progress.say("embed ...")
    sizes: list[int] = []
    vectors = trained(with_mirrored(batches, sizes, mirror=not same), device=device)
    if sum(sizes) != len(distinct):
        raise DataError("some images became unreadable during the audit: they have changed; start it again")
    if same:
        return EmbeddedImages(distinct, thumbnails, vectors, None)
    parts = vectors.split([size for size in sizes for _ in "ab"])
    return EmbeddedImages(distinct, thumbnails, torch.cat(parts[::2]), torch.cat(parts[1::2]))


def with_mirrored(batches: Iterator[Tensor], sizes: list[int], *, mirror: bool) -> Iterator[Tensor]:
    """Batches (n, 3, S, S), if `mirror` each with its mirror images behind it; n is added to `sizes`."""
    for batch in batches:
        sizes.append(len(batch))
        yield torch.cat([batch, batch.flip(3)]) if mirror else batch


def batches_of(result: Audit, distinct: Tensor) -> Iterator[Tensor]:
    """The images `distinct` at the encoder's size, in batches."""
    places = [result.places[place] for place in distinct.tolist()]
    for number, (_, part) in enumerate(result.sets):
        rows = [row for of, row in places if of == number]
        yield from (pixels for _, pixels in part.subset(rows).read(range(len(rows)), IMAGES_PER_BATCH))


def near_list(result: Audit, compared: EmbeddedImages, seed: int) -> None:
    """Near duplicates as groups, ranked by their best pair; and those that leak."""
    places = compared.places.tolist()
    apart = torch.tensor([result.places[place][0] == 1 for place in places])
    across = apart if 0 < int(apart.sum()) < len(apart) else None
    pairs = find_copies(compared.vectors, compared.thumbnails, mirrored=compared.mirrored, apart=across, seed=seed)
    chances = pairs.expected_wrong.diff(prepend=pairs.expected_wrong.new_zeros(1))  # of each pair to be wrong
    best: dict[int, tuple[float, float, int]] = {}  # row -> score, chance to be wrong, partner, of its best pair
    for first, second, score, wrong in zip(*(part.tolist() for part in (*pairs[:3], chances)), strict=True):
        for row, other in ((first, second), (second, first)):
            best.setdefault(row, (score, wrong, other))
    findings = []
    for number, rows in enumerate(groups_of(pairs.first, pairs.second), 1):
        for row in sorted(rows, key=lambda row: -best[row][0]):
            score, wrong, other = best[row]
            findings.append(Finding(result.name(places[row]), places[row], score, wrong, places[other], number))
    if count := pairs.undecided.shape[1]:
        images = counted(len(pairs.undecided.unique()), "image")
        result.notes.append(f"near duplicates: {counted(count, 'further pair')} of {images}, which are not listed, "
                            f"{'is' if count == 1 else 'are'} {why_undecided(pairs.alike)}")  # fmt: skip
    exact = {finding.place: finding.other for finding in result.lists["exact duplicates"]}
    copies = [f for f in findings if not (f.place in exact and exact[f.place] == f.other)]
    result.lists["near duplicates"] = accumulated(copies)
    if len(result.sets) > 1:
        known = {finding.place for finding in result.lists["leaks"]}
        more = [finding for finding in leaks_of(result, findings) if finding.place not in known]
        result.lists["leaks"] += accumulated(sorted(more, key=lambda finding: -(finding.score or 0)))


def outlier_list(result: Audit, compared: EmbeddedImages) -> None:
    distinct = compared.places
    scores, near = outlier_scores(compared.vectors)
    order = scores.argsort(descending=True, stable=True)
    wrong = expected_ordinary(scores[order])
    end = last_within(wrong)
    if not end:
        farthest = result.name(int(distinct[order[0]]))
        result.notes.append(f"outliers: none; {farthest}, the image farthest from all others, is not unusually far")
    result.lists["outliers"] = [
        Finding(result.name(int(distinct[row])), int(distinct[row]), float(scores[row]), float(wrong[i]),
                int(distinct[near[row]]))
        for i, row in enumerate(order[:end].tolist())
    ]  # fmt: skip


def label_list(result: Audit, compared: EmbeddedImages, seed: int) -> None:
    """Suspected labels, each beside the nearest image of the suggested class; a note where there are no labels to doubt."""
    distinct, vectors, names = compared.places, compared.vectors, []
    for place in distinct.tolist():
        of, row = result.places[place]
        part = result.sets[of][1]
        names.append(None if part.labels is None or part.classes is None else part.classes[part.labels[row]])
    if None in names:
        result.notes.append("no labels, so no suspected labels: use class folders, or a source with labels")
        return
    labels = [str(name) for name in names]
    if len(result.sets) > 1 and (note := other_classes(result)):
        result.notes.append(note)
        return
    if len(set(labels)) < 2:
        result.notes.append(f"all labels are {labels[0]!r}: suspected labels are left out")
        return
    suspects = suspect_labels(vectors, labels, seed=seed)
    number = {name: i for i, name in enumerate(suspects.classes)}
    class_of = torch.tensor([number[name] for name in labels])
    other = suspects.suggestion != class_of[suspects.row]  # a label that is the most probable one is not suspect
    rows, scores, suggestions = (part[other] for part in (suspects.row, suspects.score, suspects.suggestion))
    right = suspects.expected_right.diff(prepend=suspects.expected_right.new_zeros(1))[other].cumsum(0)
    directions = torch.nn.functional.normalize(vectors, dim=1)
    findings = []
    for i, row in enumerate(rows[: last_within(right, LEAST_LABELS)].tolist()):
        cosine = (directions @ directions[row]).masked_fill(class_of != suggestions[i], -2.0)
        beside = int(distinct[int(cosine.argmax())])
        remark = f"labelled {labels[row]}, looks like {suspects.classes[int(suggestions[i])]}"
        place = int(distinct[row])
        findings.append(Finding(result.name(place), place, float(scores[i]), float(right[i]), beside, remark=remark))
    result.lists["suspected labels"] = findings
    if suspects.noise > 0:
        result.notes.append(f"labels: at most {100 * suspects.noise:.1f} % wrong, estimated on the clearest images")


def other_classes(result: Audit) -> str | None:
    """A note about classes that only one of the sets has; None where both have the same."""
    train, test = (set(part.classes or ()) for _, part in result.sets)
    if train == test:
        return None
    only = [", ".join(sorted(one - other)[:5]) or "none" for one, other in ((train, test), (test, train))]
    return (
        f"suspected labels are left out: classes of the training set alone: {only[0]}; of the test set alone: {only[1]}"
    )
