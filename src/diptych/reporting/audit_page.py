"""The page of an audit: one HTML file with every list, its pictures and how much of it is expected to be wrong."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diptych.reporting.page import page_template, text_of
from diptych.reporting.pictures import data_uri

MOST_SHOWN = 48  # findings of a list; the table has all of them
# List -> title and explanation, in the order of the page.
TITLES = {
    "leaks": (
        "Leaks",
        "Test images with an exact or near copy in the training set. They make accuracy look better than it is.",
    ),
    "exact duplicates": (
        "Exact duplicates",
        "Images with the same decoded pixels (upright, RGB) and the same size; never a false alarm.",
    ),
    "near duplicates": (
        "Near duplicates",
        "Groups of images of which one is a copy of another: resized, re-encoded, mirrored or cropped. The score is the "
        "similarity of the pixels at the best alignment; 1 means identical.",
    ),
    "suspected labels": (
        "Suspected labels",
        "Images whose label is improbable for their embedding. The score is the probability of the given label, from images "
        "other than this one. Each is shown with the nearest image of the suggested class. If the encoder does not separate "
        "the classes, more of these labels are correct than expected.",
    ),
    "outliers": (
        "Outliers",
        "Images far from all others. The score is the mean distance to the ten nearest. Each is shown with its nearest image.",
    ),
    "blank": (
        "Blank images",
        "Images of one colour. The score is the difference between the lightest and darkest value, out of 255.",
    ),
    "odd sizes": (
        "Odd sizes",
        "Images whose area differs from the median by a factor of four or more, or whose aspect ratio by two or more.",
    ),
    "unreadable": ("Unreadable files", "Files that cannot be used, and why."),
}


@dataclass(frozen=True)
class FindingCard:
    """A finding as the page shows it. picture, other: (H, W, 3) uint8, or None."""

    file: str
    score: float | None
    expected_wrong: float
    picture: np.ndarray | None
    other: np.ndarray | None
    other_file: str
    group: int | None
    remark: str


def render_audit(
    name: str, facts: Sequence[str], lists: dict[str, tuple[int, int, float, list[FindingCard]]], notes: Sequence[str]
):
    """The HTML of the page. lists: name -> (findings, groups, expected wrong, the first cards)."""
    style = text_of("report.css", "audit.css")
    sections = [section(key, *content) for key, content in lists.items()]
    for key, part in zip(lists, sections, strict=True):  # what a list leaves out is said beside it too
        part["notes"] = [
            after[:1].upper() + after[1:] for note in notes if (after := note.removeprefix(f"{key}: ")) != note
        ]
    return page_template("audit.html.jinja").render(name=name, facts=facts, sections=sections, notes=notes, style=style)


def section(key: str, count: int, groups: int, wrong: float, cards: list[FindingCard]) -> dict:
    title, text = TITLES[key]
    shown, rows = [], grouped(cards)
    for members in rows:
        shown.append({"group": members[0].group, "cards": [view_of(card) for card in members]})
    number = f"{groups:,} group{'s' * (groups != 1)}, {count:,} images" if groups else f"{count:,}"
    return {"id": key.replace(" ", "-"), "title": title, "text": text, "count": count, "groups": groups,
            "number": number, "rows": shown,
            "wrong": f"{wrong:.1f}" if wrong >= 0.05 else "", "more": count - len(cards),
            "paired": any(card.other is not None for card in cards) and not groups}  # fmt: skip


def grouped(cards: Sequence[FindingCard]) -> list[list[FindingCard]]:
    """Cards of one group together; a card without a group alone."""
    rows: list[list[FindingCard]] = []
    for card in cards:
        if rows and card.group is not None and rows[-1][0].group == card.group:
            rows[-1].append(card)
        else:
            rows.append([card])
    return rows


def view_of(card: FindingCard) -> dict:
    return {
        "file": card.file, "other_file": card.other_file, "remark": card.remark,
        "score": "" if card.score is None else f"{card.score:.3g}" if card.score >= 1 else f"{card.score:.3f}",
        "wrong": f"{card.expected_wrong:.1f}" if card.expected_wrong >= 0.05 else "",
        "picture": jpeg_uri(card.picture), "other": jpeg_uri(card.other),
    }  # fmt: skip


def jpeg_uri(picture: np.ndarray | None) -> str | None:
    return None if picture is None else data_uri(picture, "JPEG", quality=88)
