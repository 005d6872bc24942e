"""Images that cannot be read: recorded with their reasons, tolerated while they are few."""

from collections import Counter
from collections.abc import Sequence

from diptych.base.errors import DataError
from diptych.data.source import Source
from diptych.data.untrusted import BadImage

BAD_SHARE, BAD_FEW, BAD_RUN = 0.01, 10, 100  # tolerated: 1 % of the images or 10, and 100 one after the other


class Unreadable:
    """The images, among `total` of `source`, that were tried and could not be read.

    on_bad: "skip" tolerates a few, "error" raises at the first.
    """

    def __init__(self, source: Source, total: int, on_bad: str):
        self.source, self.total, self.on_bad = source, total, on_bad
        self.reasons: dict[int, str] = {}  # row of the source -> why

    @property
    def listed(self) -> list[dict]:
        """{"key", "reason"} of all, in the order of the source."""
        return [{"key": self.source.key(row), "reason": self.reasons[row]} for row in sorted(self.reasons)]


class Pass:
    """One pass over images in order, which stops if too many cannot be read."""

    def __init__(self, unreadable: Unreadable):
        self.unreadable, self.positions, self.run = unreadable, [], 0

    def add(self, position: int, row: int, reason: str) -> None:
        """Record the image at `position` of this pass, row `row` of the source.

        Raises BadImage where on_bad is "error"; DataError beyond 1 % (and 10), or 100 one after the other.
        """
        known = self.unreadable
        if known.on_bad == "error":
            raise BadImage(f"{reason}; repair or remove it, or use on_bad=skip", known.source.key(row))
        known.reasons[row] = reason
        self.run = self.run + 1 if self.positions and position - self.positions[-1] <= 1 else 1
        self.positions.append(position)
        bad = len(known.reasons)
        if too_many(bad, known.total) or self.run > BAD_RUN:
            first = f"{known.listed[0]['key']} ({known.listed[0]['reason']})"
            shown = f"{bad} of {known.total} images cannot be read, too many; first: {first}"
            raise DataError(f"{shown}; `diptych doctor SOURCE` lists them all: repair or remove them")


def reasons_in_words(entries: Sequence[dict], most: int = 3) -> str:
    """The reasons of {"key", "reason"} with their counts, the most frequent first: "20 HEIC: ...; 3 a broken link"."""
    counts = Counter(entry["reason"] for entry in entries).most_common()
    words = [f"{count:,} {reason}" for reason, count in counts[:most]]
    return "; ".join(words) + (f"; {len(counts) - most} more reasons" if len(counts) > most else "")


def left_out(entries: Sequence[dict]) -> str:
    """One line about the entries of a source that are not among its images."""
    first = f"first: {entries[0]['key']} ({entries[0]['reason']})"
    several = len({entry["reason"] for entry in entries}) > 1
    return f"{len(entries):,} entries of the source left out, {first}" + (
        f"; {reasons_in_words(entries)}" if several else ""
    )


def too_many(bad: int, total: int) -> bool:
    """Whether the unreadable images stop a run: more than 1 % of all, and more than 10."""
    return bad > max(BAD_FEW, BAD_SHARE * total)
