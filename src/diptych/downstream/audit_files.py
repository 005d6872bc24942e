"""The files of an audit: index.html, findings.csv and, where pyarrow is installed, findings.parquet."""

from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np

from diptych.base.errors import OutputError
from diptych.base.files import new_folder, write_file
from diptych.data.decode import fit_square
from diptych.data.untrusted import BadImage
from diptych.downstream.findings import Audit, Finding
from diptych.downstream.inspection import open_entire
from diptych.downstream.spreadsheet import as_csv, as_parquet
from diptych.reporting.audit_page import MOST_SHOWN, FindingCard, render_audit

COLUMNS = ("list", "rank", "group", "set", "file", "score", "expected_wrong", "beside_set", "beside", "remark")
KINDS = ("string", "int64", "int64", "string", "string", "double", "double", "string", "string", "string")
PICTURE = 96  # pixels of a picture on the page, at most


def write_audit(result: Audit, out: str | Path, name: str) -> list[Path]:
    """Write the page and the table into a new folder, all or nothing; returns the files. Raises OutputError for an occupied
    folder."""
    rows = table(result)
    files = {"findings.csv": as_csv(COLUMNS, rows), "index.html": page(result, name).encode("utf-8", "replace")}
    with suppress(OutputError):  # without pyarrow, which is optional
        files["findings.parquet"] = as_parquet(COLUMNS, rows, KINDS)
    with new_folder(Path(out)) as work:
        for file, data in files.items():
            write_file(work / file, data)
    return [Path(out) / file for file in files]


def table(result: Audit) -> list[tuple]:
    """Every finding as a row of COLUMNS; rank counts from 1 in its list."""
    rows = []
    for name, findings in result.lists.items():
        for rank, finding in enumerate(findings, 1):
            of, other = finding.place, finding.other
            rows.append((name, rank, finding.group, None if of is None else result.set_of(of), finding.file, finding.score,
                         finding.expected_wrong, None if other is None else result.set_of(other),
                         None if other is None else result.name(other), finding.remark))  # fmt: skip
    return rows


def page(result: Audit, name: str) -> str:
    """The HTML, with the pictures of the first findings of each list read again."""
    lists = {}
    for key, findings in result.lists.items():
        groups = {finding.group for finding in findings} - {None}
        wrong = max((finding.expected_wrong for finding in findings), default=0.0)
        cards = [finding_card(result, finding) for finding in findings[:MOST_SHOWN]]
        lists[key] = (len(findings), len(groups), wrong, cards)
    readable = Counter(of for of, _ in result.places)
    sets = [f"{readable[i]:,} {name_of + ' ' if name_of else ''}images" for i, (name_of, _) in enumerate(result.sets)]
    facts = [*sets, f"compared by {result.encoder or 'their pixels alone'}"]
    return render_audit(name, facts, lists, result.notes)


def finding_card(result: Audit, finding: Finding) -> FindingCard:
    places = finding.place, finding.other
    pictures = [None if place is None else picture(result, place) for place in places]
    sets = ["" if place is None or len(result.sets) == 1 else f"{result.set_of(place)}: " for place in places]
    beside = "" if finding.other is None else sets[1] + result.name(finding.other)
    return FindingCard(sets[0] + finding.file, finding.score, finding.expected_wrong, pictures[0], pictures[1], beside,
                finding.group, finding.remark)  # fmt: skip


def picture(result: Audit, place: int) -> np.ndarray | None:
    """An image for the page, (H, W, 3) uint8, square, never enlarged; None where it cannot be read any more."""
    of, row = result.places[place]
    squares = result.sets[of][1].squares
    try:
        _, image = open_entire(squares, int(result.sets[of][1].rows[row]))
    except BadImage:
        return None
    return fit_square(image, min(PICTURE, *image.size), squares.fit)
