"""Test images that are in the training set too, exactly or nearly, and the accuracy without them.

N: test images, M: training images. A copy in the training set tells a classifier the answer.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from diptych.data.images import Images
from diptych.downstream.copies import THUMBNAIL, farther, verified
from diptych.embeddings.duplicates import NEIGHBOURS, PROPOSED, WRONG, Pairs, why_undecided
from diptych.embeddings.nearest import nearest
from diptych.embeddings.scores import Score, accuracy_interval
from diptych.networks.inference import resized
from diptych.runs.subjects import PHRASES

MOST_PAIRS, DECOYS = 10_000, 2_000  # compared pixel by pixel
LISTED = 100  # pairs in evaluations.jsonl, at most


class PixelDigests:
    """A hash of every image that passes, as the encoder gets it: (3, S, S) uint8 after resizing and cropping."""

    def __init__(self) -> None:
        self.digests: list[bytes] = []

    def __call__(self, pixels: Tensor) -> None:
        rows = pixels.cpu().contiguous().numpy()
        self.digests += [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows]


@dataclass(frozen=True)
class Leaks:
    """Leaked test images, the surest first: `pairs` holds (test key, training key, score), 1.0 being the same pixels.

    rows: their rows in the test set. exact: how many have the same pixels as a training image at the encoder's size; near: the
    others. expected_wrong: how many of the near ones are expected to be no copies. undecided: further test images that are as
    similar to a training image as copies are, as is the fraction `alike` of the pairs assumed not to be copies.
    """

    rows: list[int]
    pairs: list[tuple[str, str, float]]
    exact: int
    near: int
    expected_wrong: float
    test_images: int
    undecided: int = 0
    alike: float = 0.0

    def without(self, scores: Sequence[Score]) -> list[Score]:
        """The scores on the other test images; [] if there are none, or no leaks. Scores without `correct` are left out."""
        left = torch.ones(self.test_images, dtype=torch.bool)
        left[self.rows] = False
        if not self.rows or not left.any():
            return []
        clean = []
        for score in scores:
            if score.correct is not None and score.correct.shape[-1] == len(left):
                correct = score.correct[..., left]
                interval = accuracy_interval(correct.double().reshape(-1, int(left.sum())).mean(0))
                clean.append(replace(score, accuracy=correct.double().mean().item(), interval=interval,
                                     test_images=int(left.sum()), correct=correct))  # fmt: skip
        return clean

    def line(self, scores: Sequence[Score]) -> dict[str, Any]:
        """A line of evaluations.jsonl: {"leaks": counts, the first pairs, accuracies without the leaked images}."""
        counts = {key: value for key, value in asdict(self).items() if key != "rows"}
        clean = [{"protocol": score.protocol, "subject": score.subject, "accuracy": score.accuracy,
                  "interval": list(score.interval), "test_images": score.test_images}
                 for score in self.without(scores)]  # fmt: skip
        return {"leaks": counts | {"pairs": self.pairs[:LISTED], "without": clean}}

    def text(self, scores: Sequence[Score], subject: str) -> list[str]:
        """Lines for people; [] without leaks."""
        unsure = [f"leaks: {self.undecided:,} {'further ' if self.rows else ''}test images, not counted here, are "
                  f"{why_undecided(self.alike)}"] if self.undecided else []  # fmt: skip
        if not self.rows:
            return unsure
        wrong = f", {self.expected_wrong:.1f} of these expected to be false alarms" if self.near else ""
        lines = [f"leaks: {len(self.rows):,} of {self.test_images:,} test images {'is' if len(self.rows) == 1 else 'are'} in the "
                 f"training set: same pixels {self.exact:,}, near copies {self.near:,}{wrong}"]  # fmt: skip
        clean = [score for score in self.without(scores) if score.subject == subject]
        with_leaks = {score.protocol: score.accuracy for score in scores if score.subject == subject}
        shown = [f"{score.protocol} {100 * score.accuracy:.1f} (with them {100 * with_leaks[score.protocol]:.1f})"
                 for score in clean]  # fmt: skip
        numbers = ", ".join(shown) or "no test image is left"
        return [*lines, f"accuracy of {PHRASES.get(subject, subject)} without them, %: {numbers}", *unsure]


def find_leaks(z_ME: Tensor, z_NE: Tensor, digests: Sequence[bytes], train: Images, test: Images) -> Leaks:
    """The test images that are in the training set.

    z_ME, z_NE: their embeddings; digests: of all training images, then of all test images (`PixelDigests`). Near copies are
    the nearest training images whose pixels agree (`copies.likeness`). Costs about what kNN costs, and the reading of at
    most 24,000 images if they are not in memory.
    """
    known = {digest: row for row, digest in reversed(list(enumerate(digests[: len(z_ME)])))}
    exact = [(row, known[digest], 1.0) for row, digest in enumerate(digests[len(z_ME) :]) if digest in known]
    leaked, near, wrong = {row for row, _, _ in exact}, [], 0.0
    finite = bool(z_ME.isfinite().all() and z_NE.isfinite().all())
    pairs = near_pairs(z_ME, z_NE, train, test) if finite and len(leaked) < len(z_NE) else None
    if pairs is not None:
        for row, other, score, expected in zip(*(part.tolist() for part in pairs[:4]), strict=True):
            if row not in leaked:
                leaked.add(row)
                near.append((row, other, score))
                wrong = expected
    both = exact + near
    names = [(test.keys[row], train.keys[other], round(score, 4)) for row, other, score in both]
    unsure = set() if pairs is None else set(pairs.undecided[0].tolist()) - leaked
    return Leaks([row for row, _, _ in both], names, len(exact), len(near), min(wrong, len(near)), len(z_NE), len(unsure),
                 0.0 if pairs is None else pairs.alike)  # fmt: skip


def near_pairs(z_ME: Tensor, z_NE: Tensor, train: Images, test: Images, wrong: float = WRONG) -> Pairs:
    """Pairs of a test image (first) and a training image (second) that are copies of each other, the surest first."""
    cosine, index = (part.cpu() for part in nearest(z_NE, z_ME, NEIGHBOURS))
    width = min(PROPOSED, index.shape[1])
    first, second = torch.arange(len(index)).repeat_interleave(width), index[:, :width].reshape(-1)
    distance = (1 - cosine[:, :width]) / (1 - cosine[:, -1:]).clamp_min(1e-6)  # in units of the farthest neighbour's
    chosen = distance.reshape(-1).argsort(stable=True)[:MOST_PAIRS]
    decoys = farther(index, DECOYS, 0)
    tests, place_of_test = torch.cat([first[chosen], decoys[0]]).unique(return_inverse=True)
    trains, place_of_train = torch.cat([second[chosen], decoys[1]]).unique(return_inverse=True)
    thumbnails = torch.cat([small(test, tests), small(train, trains)])
    place_of_train = place_of_train + len(tests)
    n = len(chosen)
    pairs = verified(thumbnails, place_of_test[:n], place_of_train[:n], (place_of_test[n:], place_of_train[n:]), wrong,
                     compared=len(first))  # fmt: skip
    first, second = pairs.undecided
    undecided = torch.stack([tests[first], trains[second - len(tests)]])
    return pairs._replace(first=tests[pairs.first], second=trains[pairs.second - len(tests)], undecided=undecided)


def small(images: Images, rows: Tensor) -> Tensor:
    """The images at `rows` as thumbnails (n, 3, 32, 32) uint8."""
    parts = []
    for part in rows.split(512):
        squares = torch.stack([images.load(int(row)) for row in part])
        parts.append(resized(squares, THUMBNAIL))
    return torch.cat(parts)
