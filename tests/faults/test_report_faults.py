"""Row 40 of docs/faults.md: file and folder names that attack whoever opens the report or the table."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from fake_run import fake_run
from page import Page
from spoiled import SMALL, diptych, jpeg, photographs, put

from diptych.reporting.report import report

HOSTILE = ('"><img src=x onerror=alert(1)>', "'-alert(1)-'", "=cmd()", "a\u202eb", "{{ 7 * 7 }}")
PLAIN = ("1st", "2nd", "3rd", "4th", "5th")
SHOWN = tuple(name.replace("\u202e", "%E2%80%AE") for name in HOSTILE)


def judged_run(place: Path, classes: tuple[str, ...]) -> Page:
    """Photographs in class folders of these names, trained on, judged, reported in a folder of such a name."""
    photographs(place / "photos", classes, count=6)
    run = place / classes[0]
    for words in (
        ["pretrain", place / "photos", *SMALL, "--out", run],
        ["evaluate", run, "--train", place / "photos", "--test", place / "photos", "--protocol", "knn"],
        ["report", run],
    ):
        code, _, err = diptych(*words)
        assert code == 0, err
    return Page(run / "report.html")


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> tuple[Page, Page]:
    return tuple(judged_run(tmp_path_factory.mktemp("pages"), classes) for classes in (PLAIN, HOSTILE))


def test_40_hostile_names_are_only_text_in_a_report(pages):
    """The page parses, and has no tag and no attribute that plain names would not make: no name became one."""
    (plain, hostile), (kinds, found) = pages, ({(tag, *names) for tag, names in page.shape()} for page in pages)
    assert found <= kinds and len(hostile.scripts) == len(plain.scripts) == 3
    for name in SHOWN:
        assert any(name in text for text in hostile.texts), name
    assert "<img src=x" not in hostile.source and "{{ 7 * 7 }}" in hostile.text and "\u202e" not in hostile.source


def test_40_a_report_asks_for_nothing_from_outside(pages):
    for page in pages:
        assert "http:" not in page.source and "https:" not in page.source
        assert "url(" not in page.source[page.source.index("<style>") : page.source.index("</style>")]
        for name in ("src", "href"):
            assert all(re.match(r"#|data:(image/(png|jpeg);base64,|,$)", value) for value in page.attributes(name))
        policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
        assert policy.startswith("default-src 'none'")


def test_40_a_report_says_everything_without_scripts(pages):
    """Pictures, numbers and curves stand in the markup; the script only shows a value under the pointer."""
    for page in pages:
        assert sum(value.startswith("data:image/png") for value in page.attributes("src")) > 12
        for words in ("untrained", "raw pixels", "chance", "kNN"):
            assert words in page.text, words
        assert any(tag == "svg" for tag, _ in page.tags) and any(tag == "table" for tag, _ in page.tags)


def test_40_five_thousand_thumbnails(tmp_path):
    """Of noise, which does not compress; one more is no map."""
    run, rng = fake_run(tmp_path / "run", classes=SHOWN), np.random.default_rng(0)
    for count in (5000, 5001):
        places = {"xy": rng.normal(size=(count, 2)).astype(np.float32), "labels": np.arange(count) % len(SHOWN)}
        places |= {"names": np.array([f"{row}.png" for row in range(count)]), "shows": np.array("test images")}
        thumbnails = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        np.savez(run / "pictures" / "map.npz", thumbnails=thumbnails, classes=np.array(SHOWN), **places)
        page = Page(report(run))
        assert (run / "report.html").stat().st_size < 6_000_000
        assert ("Each mark is one of 5,000 test images" in page.text) == (count == 5000)


def test_40_hostile_names_in_a_table(tmp_path):
    """A spreadsheet runs a cell that begins with = + - @: such names get a ' in front, in every column."""
    known = photographs(tmp_path / "known", ("=cmd|'C calc'!A0", "@SUM(1)"), count=5)
    names = ["=1+1.jpg", "+1.jpg", "-1.jpg", "@x.jpg", '"q", r.jpg', "\tb.jpg", "<b>.jpg"]
    new = put(tmp_path / "new", {name: jpeg(seed=k) for k, name in enumerate(names)} | {"=bad.jpg": b"=cmd()"})
    code, _, err = diptych("pretrain", known, *SMALL, "--out", tmp_path / "run")
    assert code == 0, err
    code, _, err = diptych("classify", tmp_path / "run", new, "--train", known, "--out", tmp_path / "labels.csv")
    assert code == 0, err
    with open(tmp_path / "labels.csv", newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["path", "label", "probability", "reason"] and len(rows) == len(names) + 1
    cells = [cell for row in rows for cell in row]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    assert {"'=1+1.jpg", "'+1.jpg", "'-1.jpg", "'@x.jpg", '"q", r.jpg', "%09b.jpg", "'=bad.jpg"} <= set(cells)
    assert {row[1] for row in rows if row[2]} <= {"'=cmd|'C calc'!A0", "'@SUM(1)"}
    assert np.all([0 <= float(row[2]) <= 1 for row in rows if row[2]])
