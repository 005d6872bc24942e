"""What an audit has to say: lists of findings, ranked."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from diptych.data.images import Images

# Share of the listed outliers and labels that may be expected to be wrong, and how many labels are listed in any case: more of
# them are wrong labels than is expected (docs/audit.md), and looking at them is cheap.
LOOKING, LEAST_LABELS = 0.5, 10


@dataclass(frozen=True)
class Finding:
    """One line of a list. place: the row in `Audit.places`; other: of the image beside it. Both None: a file that is no
    image. expected_wrong: of this line and those above it, how many are expected to be wrong; of groups, how many pairs.
    """

    file: str
    place: int | None = None
    score: float | None = None
    expected_wrong: float = 0.0
    other: int | None = None
    group: int | None = None
    remark: str = ""


@dataclass
class Audit:
    """The lists by name, in the order of the page; `notes`: what was left out, and why. `str` returns a summary."""

    sets: list[tuple[str, Images]]
    places: list[tuple[int, int]]  # of every readable image: its set, and its row there
    lists: dict[str, list[Finding]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    encoder: str = ""

    def name(self, place: int) -> str:
        of, row = self.places[place]
        return self.sets[of][1].keys[row]

    def set_of(self, place: int) -> str:
        return self.sets[self.places[place][0]][0]

    def __str__(self) -> str:
        text = [f"{len(self.places):,} images, compared by {self.encoder or 'their pixels alone'}"]
        for name, findings in self.lists.items():
            wrong = max((finding.expected_wrong for finding in findings), default=0.0)
            groups = {finding.group for finding in findings} - {None}
            count = f"{len(groups):,} group{'s' * (len(groups) > 1)}" if groups else f"{len(findings):,}"
            text.append(
                f"  {name:<20}{count:>12}"
                + (f"  {wrong:.1f} of them expected to be false alarms" if wrong >= 0.05 else "")
            )
        return "\n".join([*text, *self.notes])


def accumulated(findings: Sequence[Finding]) -> list[Finding]:
    """Pairs in their order, `expected_wrong` summed over each line and those above it instead of its own chance to be wrong.
    A pair that two lines name counts once."""
    lines, total, named = [], 0.0, set()
    for finding in findings:
        pair = frozenset((finding.place, finding.other))
        total += 0.0 if pair in named else finding.expected_wrong
        named.add(pair)
        lines.append(replace(finding, expected_wrong=total))
    return lines


def last_within(expected: Tensor, least: int = 0, share: float = LOOKING) -> int:
    """The end of the longest beginning of a list in which at most `share` is expected to be wrong; `least` in any case."""
    good = (expected <= share * torch.arange(1, len(expected) + 1)).nonzero()
    return max(int(good[-1]) + 1 if len(good) else 0, min(least, len(expected)))
